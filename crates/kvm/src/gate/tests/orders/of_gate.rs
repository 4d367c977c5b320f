//! Tests of the calls of `Gate` in a wrong order.

use std::fs::File;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use msrgate_filter::MsrIndex;

use super::super::machine::{
    FMASK, KERNEL_GS_BASE, LSTAR, Machine, NOWHERE, STAR, Saw, TestGuest, gate_with_handlers,
    on_each, policy,
};
use super::super::model;
use super::{HANDLED, HostCaps, SPARE, entries, whens};
use crate::gate::{Gate, GateError, GateOptions, Outcome};
use crate::measure::guest::Op::{Read, Write};
use crate::measure::guest::{Apic, Guest, Report, Stop};
use crate::probe::IgnoreMsrs;

const EFER: MsrIndex = MsrIndex::new(0xc000_0080);

/// If a VMM forgets `install`, the VMM's first call of `vcpu` returns an error, whatever the program is.
#[test]
fn vcpu_before_install_is_an_error() {
    for program in [entries(), whens()] {
        let gate = gate_with_handlers(program, &HostCaps::on_paper());
        let seen = gate.vcpu(0, &model::cpuid()).map(drop);
        assert!(matches!(seen, Err(GateError::NotInstalled)), "{seen:?}");
        // The failed `vcpu` has chosen no variant, so the CPUID of another processor is accepted.
        let vm = Box::new(model::ModelVm::new());
        gate.install_in(vm).unwrap();
        let other = super::with_leaf(&model::cpuid(), 1, |leaf| leaf.eax ^= 0x10);
        drop(gate.vcpu(0, &other).unwrap());
    }
}

#[test]
fn replace_before_install_is_an_error_and_changes_nothing() {
    let gate = gate_with_handlers(entries(), &HostCaps::on_paper());
    let before = gate.program().digest();
    let seen = gate.replace(policy("default = 'deny'", ""));
    assert!(matches!(seen, Err(GateError::NotInstalled)), "{seen:?}");
    assert_eq!(gate.program().digest(), before);
}

/// Before `install` the migration list has every register: without a filter the guest may turn on anything
/// that KVM has.
#[test]
fn migration_list_before_install_has_every_register() {
    let gate = gate_with_handlers(entries(), &HostCaps::on_paper());
    let clock = [MsrIndex::new(0x4b56_4d01)];
    assert_eq!(gate.migration_list(&clock), clock);
    gate.install_in(Box::new(model::ModelVm::new())).unwrap();
    assert_eq!(gate.migration_list(&clock), []);
}

/// If the file descriptor is not a VM's, `install` returns an error and sets no filter. The gate can still
/// be installed in a VM.
#[test]
fn install_into_file_that_is_no_vm_is_an_error() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let guest = Guest::new(&host, Apic::Absent).unwrap();
    let plain = policy("default = 'deny'\nlog = 'none'", "IA32_STAR = 'rw'");
    for program in [entries(), plain] {
        let gate = gate_with_handlers(program, &host);
        let refused = [
            gate.install(guest.vcpu()),
            gate.install(&File::open("/dev/null").unwrap()),
            gate.install(&File::open(host.device()).unwrap()),
        ];
        for seen in refused {
            assert!(matches!(seen, Err(GateError::Install(_))), "{seen:?}");
        }
        assert!(gate.install(&host.create_vm().unwrap()).is_ok());
    }
}

#[test]
fn second_install_is_an_error() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let [first, second] = [(); 2].map(|()| host.create_vm().unwrap());
    let gate = gate_with_handlers(entries(), &host);
    gate.install(&first).unwrap();
    for vm in [&first, &second] {
        let seen = gate.install(vm);
        assert!(matches!(seen, Err(GateError::InstalledTwice)), "{seen:?}");
    }
}

/// If a VMM makes a second gate for a new policy instead of calling `replace`, the second gate cannot be
/// installed while a part of the first gate exists: the first gate's vCPUs would not know the second gate's
/// filters.
#[test]
fn second_gate_in_vm_is_an_error_until_first_is_dropped() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let vm = host.create_vm().unwrap();
    let same = crate::sys::calls::duplicate(&vm).unwrap();
    let [first, second] = [(); 2].map(|()| gate_with_handlers(entries(), &host));
    first.install(&vm).unwrap();
    if crate::sys::calls::is_one_file(&vm, &same).is_none() {
        // Linux before 6.10 has no F_DUPFD_QUERY, so the gate cannot tell if two file descriptors are of one
        // VM. There the second gate's filter replaces that of the first.
        second.install(&same).unwrap();
        return;
    }
    let msrs = first.vcpu(0, &model::cpuid()).unwrap();
    let mut first = Some(first);
    for gone in ["none", "the gate"] {
        for seen in [second.install(&vm), second.install(&same)] {
            assert!(
                matches!(seen, Err(GateError::OtherGate)),
                "{gone}: {seen:?}"
            );
        }
        first.take();
    }
    let other = gate_with_handlers(entries(), &host);
    other.install(&host.create_vm().unwrap()).unwrap();
    drop(msrs);
    second.install(&vm).unwrap();
}

/// If the VMM has set a mask of exit reasons before `install`, the program's mask replaces it, even if the
/// program's mask is empty.
#[test]
fn install_replaces_mask_of_exit_reasons_that_vmm_set() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let mut guest = Guest::new(&host, Apic::Absent).unwrap();
    crate::sys::calls::enable_reasons(&**guest.vm(), crate::RawReasons::new(7)).unwrap();
    let plain = policy("default = 'deny'\nlog = 'none'", "IA32_STAR = 'rw'");
    let gate = Gate::new(plain, &host).unwrap();
    gate.install(&**guest.vm()).unwrap();
    guest.load(&[Read(LSTAR), Read(STAR)]).unwrap();
    assert_eq!(guest.resume().unwrap(), Stop::End);
    assert!(matches!(guest.report(0), Report::Fault { .. }));
    assert!(matches!(guest.report(1), Report::Done(_)));
}

/// If the VMM sets a mask after `install`, an access that the gate would answer becomes a #GP, and an
/// access that KVM refuses stays a #GP. The gate cannot detect such a mask, because no call reads the mask
/// back.
#[test]
fn access_faults_if_vmm_sets_mask_after_install() {
    let entries = "0x10000 = { read = { value = 7 }, write = 'ignore' }\n\
                   IA32_EFER = 'rw'\n0x12345678 = 'rw'";
    let Some(mut machine) = Machine::new(policy("default = 'deny'", entries), 1) else {
        return;
    };
    let vcpu = machine.first();
    let vm = std::sync::Arc::clone(vcpu.guest.vm());
    let script = [
        Read(SPARE),
        Read(LSTAR),
        Read(NOWHERE),
        // Bit 63 of EFER is reserved, so KVM refuses this write.
        Write(EFER, 1 << 63),
    ];
    let masks = [
        (4, [Saw::Value(7), Saw::Fault, Saw::Fault, Saw::Fault]),
        (0, [Saw::Fault; 4]),
        (7, [Saw::Value(7), Saw::Fault, Saw::Fault, Saw::Fault]),
    ];
    for (mask, expected) in masks {
        crate::sys::calls::enable_reasons(&*vm, crate::RawReasons::new(mask)).unwrap();
        assert_eq!(vcpu.run(&script), expected, "{mask}");
    }
}

/// If the gate is installed after the guest has run, the gate filters only the guest's later accesses. The
/// gate can neither detect that the guest has run nor undo earlier writes.
#[test]
fn gate_installed_late_filters_only_later_accesses() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let mut guest = Guest::new(&host, Apic::Absent).unwrap();
    guest.load(&[Write(FMASK, 5)]).unwrap();
    assert_eq!(guest.resume().unwrap(), Stop::End);
    let entries = "IA32_FMASK = { read = 'allow', write = 'deny' }";
    let gate = Gate::new(policy("default = 'deny'\nlog = 'none'", entries), &host).unwrap();
    gate.install(&**guest.vm()).unwrap();
    guest.load(&[Write(FMASK, 6), Read(FMASK)]).unwrap();
    assert_eq!(guest.resume().unwrap(), Stop::End);
    assert!(matches!(guest.report(0), Report::Fault { .. }));
    assert!(matches!(guest.report(1), Report::Done(after) if after.value() == 5));
}

/// A second `VcpuGate` for a vCPU is an error while the first one exists: each of the two would know only
/// some of the vCPU's pins.
#[test]
fn second_vcpu_gate_of_same_id_is_an_error_until_first_is_dropped() {
    on_each(&entries(), 2, &GateOptions::new(), |machine| {
        for id in 0..2 {
            let seen = machine.gate.vcpu(id, &machine.cpuid).map(drop);
            let Err(GateError::VcpuTwice { vcpu }) = seen else {
                panic!("{seen:?}");
            };
            assert_eq!(vcpu.get(), id);
        }
        // At hot-plug the `VcpuGate` is dropped, and the vCPU is added again.
        let mut unplugged = machine.vcpus.remove(0);
        drop(unplugged.msrs);
        unplugged.msrs = machine.gate.vcpu(0, &machine.cpuid).unwrap();
        unplugged.guest.reset(&mut unplugged.msrs).unwrap();
        assert_eq!(unplugged.run(&[Read(SPARE)]), [Saw::Value(7)]);
    });
}

/// If a VMM makes a new `VcpuGate` for each exit, without a reset, the `VcpuGate` answers no exit: it would
/// not know the vCPU's pins.
#[test]
fn new_vcpu_gate_without_reset_answers_no_exit() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let mut vcpu = machine.vcpus.remove(0);
        let script = [Write(LSTAR, 0x1000), Write(LSTAR, 0x2000), Read(LSTAR)];
        vcpu.guest.load(&script);
        assert!(matches!(vcpu.step(), Some(Outcome::Resume)));
        let _ = vcpu.guest.resume();
        drop(vcpu.msrs);
        vcpu.msrs = machine.gate.vcpu(0, &machine.cpuid).unwrap();
        vcpu.guest.answer(&mut vcpu.msrs).unwrap_err();
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(1, script[1]), Saw::Fault);
        assert_eq!(vcpu.saw(2, script[2]), Saw::Value(0x1000));
    });
}

/// A second reader is an error while the first one exists: each of the two would get only some of the
/// events.
#[test]
fn second_reader_of_events_is_an_error_until_first_is_dropped() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let first = machine.gate.events().unwrap();
        let seen = machine.gate.events().map(drop);
        assert!(matches!(seen, Err(GateError::EventsTaken)), "{seen:?}");
        let thread = first.spawn(Vec::new()).unwrap();
        assert!(machine.gate.events().is_err());
        let reader = thread.stop().unwrap();
        assert!(machine.gate.events().is_err());
        drop(reader);
        drop(machine.gate.events().unwrap().spawn(Vec::new()).unwrap());
        drop(machine.gate.events().unwrap());
    });
}

/// If a VMM asks for the reader of events only after some events, the reader gets the events that fit the
/// queue, in order, and the number of events that did not fit.
#[test]
fn late_reader_of_events_gets_queued_events_and_number_of_dropped_ones() {
    let events = crate::gate::events::EventOptions {
        queue: 3,
        ..Default::default()
    };
    let options = GateOptions::new().events(events);
    on_each(&entries(), 1, &options, |machine| {
        let script = [0xc000_0083, 0xc000_0084, 0xc000_0102, 0x174].map(MsrIndex::new);
        machine.first().run(&script.map(Read));
        let mut reader = machine.gate.events().unwrap();
        let mut seen = Vec::new();
        reader.drain(|event| seen.push(event.index));
        assert_eq!(seen, script[..3]);
        assert_eq!(reader.drops()[0].dropped, 1);
    });
}

/// If the gate is dropped while its VM's vCPUs run, the gate's filter stays in force, and the `VcpuGate`s go
/// on answering by the gate's program.
#[test]
fn dropped_gate_leaves_filter_and_program_in_force() {
    on_each(&entries(), 1, &GateOptions::new(), |machine| {
        let other = Machine::of_model(entries(), 1, GateOptions::new(), model::cpuid());
        drop(std::mem::replace(&mut machine.gate, other.gate));
        let script = [
            Read(SPARE),
            Read(HANDLED),
            Write(LSTAR, 0x1000),
            Write(LSTAR, 0x2000),
            Read(KERNEL_GS_BASE),
        ];
        let saw = machine.first().run(&script);
        let expected = [
            Saw::Value(7),
            Saw::Value(0x5a),
            Saw::Written,
            Saw::Fault,
            Saw::Fault,
        ];
        assert_eq!(saw, expected);
    });
}

/// If the CPUID that the VMM gave to `Gate::vcpu`, which chose the variant, is not the CPUID that
/// the vCPU has in KVM, the vCPU's reset is an error. So the wrong variant does not answer the
/// vCPU's exits.
#[test]
fn vcpu_reset_with_cpuid_other_than_in_kvm_is_an_error() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let mut guest = Guest::new(&host, Apic::Absent).unwrap();
    let cpuid = guest.vcpu().get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    let is_amd = &host.cpu().unwrap().vendor[0].to_le_bytes() == b"Auth";
    let other = super::with_leaf(cpuid.as_slice(), 0, |leaf| {
        let words = if is_amd {
            [b"Genu", b"ineI", b"ntel"]
        } else {
            [b"Auth", b"enti", b"cAMD"]
        };
        [leaf.ebx, leaf.edx, leaf.ecx] = words.map(|word| u32::from_le_bytes(*word));
    });
    let gate = gate_with_handlers(whens(), &host);
    gate.install(&**guest.vm()).unwrap();
    let mut msrs = gate.vcpu(0, &other).unwrap();
    msrs.reset(guest.vcpu_mut()).unwrap_err();
    guest.load(&[Read(SPARE)]).unwrap();
    assert!(matches!(guest.resume().unwrap(), Stop::Msr(_)));
    msrs.answer(guest.vcpu_mut()).unwrap_err();
    assert_eq!(guest.resume().unwrap(), Stop::End);
    assert!(matches!(guest.report(0), Report::Fault { .. }));
}

/// If the gate cannot read the module parameter `kvm.ignore_msrs`, the parameter may be on. Then a program
/// that answers for MSRs that KVM does not know is refused, and any other program is accepted.
#[test]
fn gate_new_rejects_unread_ignore_msrs_if_policy_answers_unknown_msrs() {
    let host = |ignored| HostCaps::on_paper().with_ignore_msrs(ignored);
    let asks = || policy("default = 'allow'\nunknown = 'ignore'", "");
    let seen = Gate::new(asks(), &host(IgnoreMsrs::NotSeen)).map(drop);
    assert!(
        matches!(seen, Err(GateError::IgnoreMsrsNotSeen)),
        "{seen:?}"
    );
    let seen = Gate::new(asks(), &host(IgnoreMsrs::On)).map(drop);
    assert!(matches!(seen, Err(GateError::IgnoreMsrs)), "{seen:?}");
    drop(Gate::new(asks(), &host(IgnoreMsrs::Off)).unwrap());
    let silent = policy("default = 'deny'", "");
    let known = HostCaps::known(crate::RawReasons::new(4), IgnoreMsrs::NotSeen);
    drop(Gate::new(silent, &known).unwrap());
}

/// A program with a handler that the VMM does not have, or has under a misspelt name, is an error in `new`
/// and in `replace`. If the VMM names the handler, the program is accepted.
#[test]
fn gate_new_and_replace_reject_program_with_missing_handler() {
    let asks = || {
        policy(
            "default = 'deny'",
            "0x10001 = { read = { handler = 'clock' }, write = 'deny' }",
        )
    };
    let host = HostCaps::on_paper();
    let is_refused = |seen: Result<Gate, GateError>| match seen {
        Err(GateError::NoHandler { name }) => &*name == "clock",
        _ => false,
    };
    assert!(is_refused(Gate::new(asks(), &host)));
    let named = |name| Gate::with_options(asks(), &host, GateOptions::new().handlers([name]));
    assert!(is_refused(named("clok")));
    let gate = named("clock").unwrap();
    let seen = gate.replace(entries());
    assert!(matches!(seen, Err(GateError::NoHandler { .. })), "{seen:?}");
}
