//! Tests of resets, snapshots, the choice of the variant, events, and migration lists.

use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::answer::Disposition;

use super::clock;
use super::machine::{LSTAR, Machine, STAR, Saw, TestGuest, policy, program};
use super::model::{self, ModelVm};
use crate::gate::events::{EventOptions, Rip, Values};
use crate::gate::{CpuidEntry, Gate, GateError, GateOptions, StateError};
use crate::measure::guest::Op::{Read, Write};
use crate::probe::HostCaps;

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

const KEEPS: &str = "0x10000 = { register = { reset = 7, mask = '0xff' } }\n\
    IA32_LSTAR = { read = 'allow', write = 'pin' }";

#[test]
fn vcpu_reset_releases_pins_and_gives_emulated_registers_reset_values() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'", KEEPS), 1) else {
        return;
    };
    let vcpu = machine.first();
    let script = [Write(LSTAR, 0x1000), Write(SPARE, 9), Write(LSTAR, 0x2000)];
    assert_eq!(vcpu.run(&script), [Saw::Written, Saw::Written, Saw::Fault]);
    vcpu.msrs.reset(vcpu.guest.vcpu_mut()).unwrap();
    let script = [Read(SPARE), Write(LSTAR, 0x2000), Write(LSTAR, 0x3000)];
    assert_eq!(vcpu.run(&script), [Saw::Value(7), Saw::Written, Saw::Fault]);
    // A VMM resets the register by KVM_SET_MSRS.
    vcpu.guest.msr_set_by_host(&mut vcpu.msrs, LSTAR).unwrap();
    assert_eq!(vcpu.run(&[Write(LSTAR, 0x3000)]), [Saw::Written]);
}

#[test]
fn vcpu_restore_in_other_vm_keeps_registers_and_pins() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'", KEEPS), 1) else {
        return;
    };
    let vcpu = machine.first();
    vcpu.run(&[Write(LSTAR, 0x1000), Write(SPARE, 9)]);
    let saved = vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    let Some(mut other) = Machine::new(policy("default = 'deny'", KEEPS), 1) else {
        return;
    };
    let vcpu = other.first();
    vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
    assert_eq!(
        vcpu.run(&[Read(SPARE), Write(LSTAR, 0x2000)]),
        [Saw::Value(9), Saw::Fault]
    );
    let mut cut = saved.clone();
    cut.pop();
    assert!(matches!(
        vcpu.guest.restore(&mut vcpu.msrs, &cut),
        Err(StateError::Restore(_))
    ));
    assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(9)]);
}

/// The first vCPU chooses the variant. Adding a later vCPU whose CPUID describes another processor is an
/// error.
#[test]
fn cpuid_of_first_vcpu_chooses_variant_of_program() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let text = "policy = 1\ndefault = 'deny'\n[msrs]\n0x10000 = { read = { value = 1 }, write = 'deny' }\n\
        [[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n\
        0x10000 = { read = { value = 2 }, write = 'deny', override = true }\n\
        [[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\n\
        0x10000 = { read = { value = 3 }, write = 'deny', override = true }";
    let Some(mut machine) = Machine::new(program(text), 1) else {
        return;
    };
    let vendor = host.cpu().unwrap().vendor[0].to_le_bytes();
    let expected = match &vendor {
        b"Genu" => 2,
        b"Auth" => 3,
        _ => 1,
    };
    assert_eq!(
        machine.first().run(&[Read(SPARE), Read(STAR)]),
        [Saw::Value(expected), Saw::Fault]
    );
    // The same vCPU may be added again with the same CPUID, but not with a changed CPUID. Every other vCPU
    // must have the same processor.
    machine.vcpus.clear();
    machine.gate.vcpu(0, &machine.cpuid).map(drop).unwrap();
    let mut leaves = machine.cpuid.clone();
    leaves.last_mut().unwrap().eax ^= 1;
    let changed = machine.gate.vcpu(0, &leaves).map(drop);
    assert!(
        matches!(changed, Err(GateError::CpuidChanged { .. })),
        "{changed:?}"
    );
    machine.gate.vcpu(1, &leaves).map(drop).unwrap();
    let first = leaves.iter_mut().find(|leaf| leaf.function == 1).unwrap();
    first.eax ^= 0x10;
    let other = machine.gate.vcpu(2, &leaves).map(drop);
    assert!(
        matches!(other, Err(GateError::OtherCpu { .. })),
        "{other:?}"
    );
    assert!(matches!(
        machine.gate.vcpu(3, &Vec::<CpuidEntry>::new()),
        Err(GateError::NoCpuid)
    ));
    assert!(matches!(
        machine.gate.vcpu_of_any_cpuid(3),
        Err(GateError::NoCpuid)
    ));
}

#[test]
fn filter_of_install_denies_every_access_before_variant_is_chosen() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let text = "policy = 1\ndefault = 'allow'\n\
        [[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\nIA32_STAR = 'none'";
    let gate = Gate::new(program(text), &host).unwrap();
    let mut guest =
        crate::measure::guest::Guest::new(&host, crate::measure::guest::Apic::Absent).unwrap();
    gate.install(&**guest.vm()).unwrap();
    let step = (Read(LSTAR), crate::measure::StepReply::Value(1));
    let seen = guest.run(&[step]).unwrap();
    assert!(
        matches!(seen[0].outcome, crate::measure::GuestOutcome::Fault(_)),
        "{seen:?}"
    );
    assert_eq!(seen[0].exit, None);
    assert!(matches!(
        gate.install(&**guest.vm()),
        Err(GateError::InstalledTwice)
    ));
}

#[test]
fn gate_new_rejects_missing_guest_memory_and_too_many_registers() {
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let accepts = "[device.microcode]\nrevision = 1\nupdate = 'accept'";
    let entries = format!(
        "IA32_BIOS_UPDT_TRIG = {{ device = 'microcode' }}\nIA32_BIOS_SIGN_ID = 'rw'\n{accepts}"
    );
    let error = Gate::new(policy("default = 'deny'", &entries), &host).map(drop);
    assert!(matches!(error, Err(GateError::NoMemory)), "{error:?}");
    let many = "'0x20000..=0x20800' = { register = { reset = 0, mask = 0 } }";
    let error = Gate::new(policy("default = 'deny'", many), &host).map(drop);
    assert!(matches!(error, Err(GateError::Responder(_))), "{error:?}");
}

/// If `replace` refuses a program before it passes a filter to the kernel, the old program stays in force.
#[test]
fn replace_refused_before_kernel_gets_filter_keeps_old_program() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'", KEEPS), 1) else {
        return;
    };
    machine.first().run(&[Write(SPARE, 9)]);
    let before = machine.gate.program().digest();
    let many = "'0x20000..=0x20800' = { register = { reset = 0, mask = 0 } }";
    machine
        .gate
        .replace(policy("default = 'deny'", many))
        .unwrap_err();
    assert_eq!(machine.gate.program().digest(), before);
    assert_eq!(
        machine.first().run(&[Read(SPARE), Read(STAR)]),
        [Saw::Value(9), Saw::Fault]
    );
}

#[test]
fn event_of_refused_write_has_value_and_rip() {
    let events = EventOptions {
        values: Values::Shown,
        rip: Rip::Shown,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let program = policy("default = 'deny'", "IA32_STAR = 'rw'\nIA32_LSTAR = 'r'");
    let digest = program.digest();
    let Some(mut machine) = Machine::with_options(program, 1, options) else {
        return;
    };
    let vcpu = machine.first();
    vcpu.run(&[Write(LSTAR, 0x1234), Read(SPARE)]);
    let site = vcpu.guest.site(Write(LSTAR, 0));
    let mut seen = Vec::new();
    machine
        .gate
        .events()
        .unwrap()
        .drain(|event| seen.push(event));
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].index, seen[0].access), (LSTAR, Access::Write));
    assert_eq!((seen[0].value, seen[0].rip), (Some(0x1234), Some(site)));
    assert_eq!(
        (seen[1].value, seen[1].disposition),
        (None, Disposition::Denied)
    );
    assert_eq!(seen[0].digest, digest);
    assert_eq!(seen[0].file.as_deref(), Some("test.toml"));
    assert!(matches!(seen[0].origin, msrgate_policy::Origin::Line(line) if line.number == 5));
    assert_eq!(seen[1].origin, msrgate_policy::Origin::Default);
}

/// If the queue of events is full, further events are dropped and counted. The counters of accesses
/// still count every access.
#[test]
fn full_event_queue_drops_and_counts_events() {
    let events = EventOptions {
        queue: 4,
        per_second: u32::MAX,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let Some(mut machine) = Machine::with_options(policy("default = 'deny'", ""), 1, options)
    else {
        return;
    };
    machine.first().run(&[Read(LSTAR); 10]);
    let mut events = machine.gate.events().unwrap();
    let mut count = 0;
    events.drain(|_| count += 1);
    assert_eq!(count, 4);
    let drops = events.drops();
    assert_eq!((drops.len(), drops[0].dropped), (1, 6));
    let counted = machine.gate.counted();
    assert_eq!(counted.counts[0].count, 10);
    // The accesses of a vCPU that is gone are still counted.
    machine.vcpus.clear();
    events.drain(|_| ());
    assert_eq!(events.counted(), counted);
    assert_eq!(events.drops(), drops);
}

/// The migration list leaves out no register in each case in which KVM may hold a value that the guest wrote
/// under another program.
#[test]
fn migration_list_has_every_register_after_restore_and_before_variant_is_chosen() {
    let Some(mut machine) = Machine::new(policy("default = 'deny'", KEEPS), 1) else {
        return;
    };
    let clock = [MsrIndex::new(0x4b56_4d01)];
    assert_eq!(machine.gate.migration_list(&clock), []);
    let vcpu = machine.first();
    let saved = vcpu.msrs.save(vcpu.guest.vcpu_mut()).unwrap();
    vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
    assert_eq!(machine.gate.migration_list(&clock), clock);
    // Before the variant is chosen, the migration list has every MSR, since any variant may be the one that
    // is chosen.
    let Some(host) = HostCaps::for_test() else {
        return;
    };
    let text = "policy = 1\ndefault = 'deny'\n[[when]]\ncpu = { vendor = 'CentaurHauls' }\n\
        [when.msrs]\n0x4b564d01 = 'rw'";
    let gate = Gate::new(program(text), &host).unwrap();
    gate.install(&host.create_vm().unwrap()).unwrap();
    assert_eq!(gate.migration_list(&clock), clock);
    gate.vcpu(0, &machine.cpuid).map(drop).unwrap();
    assert_eq!(gate.migration_list(&clock), []);
}

#[test]
fn migration_list_omits_clock_msr_that_guest_cannot_access_until_replace() {
    let entries = format!("{KEEPS}\nIA32_STAR = 'rw'\nIA32_FMASK = 'r'");
    let Some(machine) = Machine::new(policy("default = 'deny'", &entries), 1) else {
        return;
    };
    // Of all MSRs the migration list leaves out only the MSR of KVM's own clock. The other MSRs change with
    // time, by SWAPGS, by the guest's writes, or by the VMM.
    let kept = [
        0x10,
        0xce,
        0xc000_0081,
        0xc000_0082,
        0xc000_0084,
        0xc000_0102,
    ]
    .map(MsrIndex::new);
    let clock = MsrIndex::new(0x4b56_4d01);
    let listed: Vec<_> = kept.into_iter().chain([clock]).collect();
    assert_eq!(machine.gate.migration_list(&listed), kept);
    machine
        .gate
        .replace(policy("default = 'deny'", "0x4b564d01 = 'r'"))
        .unwrap();
    assert_eq!(machine.gate.migration_list(&listed), listed);
    // If the guest has turned on a setting, the setting stays on when a stricter program replaces the old
    // one.
    let stricter = policy("default = 'deny'", "");
    machine.gate.replace(stricter).unwrap();
    assert_eq!(machine.gate.migration_list(&listed), listed);
}

/// The tight migration list leaves out registers that change only by a write and that the guest cannot
/// write. The registers in the list have their captured values again after `restore_registers`.
#[test]
fn tight_migration_list_omits_registers_that_only_vmm_sets() {
    let entries = format!("{KEEPS}\nIA32_STAR = 'rw'\nIA32_FMASK = 'r'");
    let Some(mut machine) = Machine::new(policy("default = 'deny'", &entries), 1) else {
        return;
    };
    let msrs = |list: &[u32]| list.iter().copied().map(MsrIndex::new).collect::<Vec<_>>();
    // The tight migration list has the TSC, which runs, KERNEL_GS_BASE, which SWAPGS changes, STAR, which
    // the guest may write, and LSTAR, which the guest may write once.
    let kept = msrs(&[0x10, 0xc000_0081, 0xc000_0082, 0xc000_0102]);
    let listed = [&kept[..], &msrs(&[0x174, 0x277, 0xc000_0084, 0x4b56_4d01])].concat();
    // If KVM offers SVM or VMX, the guest may run guests, and an exit of such a guest loads registers.
    let ecx = |leaf: u32| {
        let mut leaves = machine.cpuid.iter();
        leaves
            .find(|one| one.function == leaf)
            .map_or(0, |one| one.ecx)
    };
    let nests = ecx(1) >> 5 & 1 == 1 || ecx(0x8000_0001) >> 2 & 1 == 1;
    let tight = if nests { &listed[..7] } else { &kept };
    assert_eq!(machine.gate.tight_migration_list(&listed), tight);
    let vcpu = machine.first();
    vcpu.run(&[Write(STAR, 0x55), Write(LSTAR, 0x1000)]);
    let list = [STAR, LSTAR, SPARE];
    let values = vcpu
        .msrs
        .capture_registers(vcpu.guest.vcpu_mut(), &list)
        .unwrap();
    assert_eq!(values, [(STAR, 0x55), (LSTAR, 0x1000)]);
    vcpu.run(&[Write(STAR, 0x66)]);
    vcpu.msrs
        .restore_registers(vcpu.guest.vcpu_mut(), &values)
        .unwrap();
    assert_eq!(
        vcpu.run(&[Read(STAR), Write(LSTAR, 0x2000)]),
        [Saw::Value(0x55), Saw::Fault]
    );
    let refused = vcpu
        .msrs
        .restore_registers(vcpu.guest.vcpu_mut(), &[(STAR, 0x77), (SPARE, 1)]);
    assert_eq!(
        refused,
        Err(StateError::Register {
            index: SPARE,
            value: 1
        })
    );
    // The restored values may come from a VM with another program, which may have let the guest turn on a
    // setting.
    assert_eq!(machine.gate.tight_migration_list(&listed), listed);
    assert_eq!(machine.gate.migration_list(&listed), listed);
}

/// The tight migration list leaves out no register in two cases: if the guest may run guests, whose exits
/// load the guest's registers, and in audit mode, which refuses no write.
#[test]
fn tight_migration_list_has_every_register_if_guest_may_run_guests_or_in_audit_mode() {
    let listed = [0x174, 0x277, 0xc000_0084].map(MsrIndex::new);
    let list = |settings: &str, change: fn(&mut CpuidEntry)| {
        let gate = Gate::new(policy(settings, ""), &HostCaps::on_paper()).unwrap();
        gate.install_in(Box::new(ModelVm::that_nests())).unwrap();
        let mut cpuid = crate::gate::CpuidLeaves::leaves(&model::cpuid());
        change(&mut cpuid[1]);
        gate.vcpu(0, &cpuid).map(drop).unwrap();
        gate.tight_migration_list(&listed)
    };
    assert_eq!(list("default = 'deny'", |_| {}), []);
    assert_eq!(list("default = 'deny'", |leaf| leaf.ecx |= 1 << 5), listed);
    assert_eq!(list("default = 'deny'\nmode = 'audit'", |_| {}), listed);
}

/// If the VMM itself has set another filter in the VM, the guest does not hang: the VMM gets an error.
#[test]
fn filter_set_by_vmm_is_reported_as_other_filter() {
    let program = policy("default = 'deny'", "IA32_STAR = 'rw'");
    let options = GateOptions::new().clock(clock::now);
    let Some(mut machine) = Machine::with_options(program, 1, options) else {
        return;
    };
    let vcpu = machine.first();
    let vm = std::sync::Arc::clone(vcpu.guest.vm());
    let deny_all = crate::gate::filters::deny_all().unwrap();
    crate::sys::raw::set_filter_raw(&*vm, &crate::sys::raw_filter(&deny_all)).unwrap();
    vcpu.guest.load(&[Read(STAR)]).unwrap();
    let error = loop {
        assert!(matches!(
            vcpu.guest.resume(),
            Ok(crate::measure::guest::Stop::Msr(_))
        ));
        if let Err(error) = vcpu.msrs.answer(vcpu.guest.vcpu_mut()) {
            break error;
        }
        clock::advance(Duration::from_millis(200));
    };
    assert!(
        matches!(
            error,
            crate::gate::AnswerError::OtherFilter { index: STAR, .. }
        ),
        "{error}"
    );
}

/// If the gate has not asked KVM to put registers into `kvm_run` before an exit, RIP is unknown, and the
/// event of that exit has no RIP.
#[test]
fn event_has_no_rip_if_kvm_was_not_asked_for_registers() {
    let events = EventOptions {
        rip: Rip::Shown,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let program = policy("default = 'deny'", "");
    let Some(mut machine) = Machine::with_options(program, 1, options) else {
        return;
    };
    let vcpu = machine.first();
    vcpu.guest.vcpu_mut().get_kvm_run().kvm_valid_regs = 0;
    vcpu.run(&[Read(LSTAR), Read(LSTAR)]);
    let site = vcpu.guest.site(Read(LSTAR));
    let mut seen = Vec::new();
    machine
        .gate
        .events()
        .unwrap()
        .drain(|event| seen.push(event.rip));
    assert_eq!(seen, [None, Some(site)]);
}

/// While the kernel has not accepted a new program's filter, a vCPU that follows the new program sets aside
/// its state under the old program. The vCPU drops that state when the replacement has succeeded, because
/// the state takes as much memory as the vCPU's registers.
#[test]
fn old_state_set_aside_by_vcpu_is_dropped_once_replace_succeeds() {
    let program = policy("default = 'deny'", KEEPS);
    let Some(mut machine) = Machine::new(program.clone(), 1) else {
        return;
    };
    let gate = std::sync::Arc::clone(&machine.gate);
    let vcpu = machine.first();
    let mut sets_aside = || {
        vcpu.run(&[Read(SPARE)]);
        vcpu.msrs.sets_aside()
    };
    let responder = gate.shared.current.get().thing;
    let tried = gate.shared.try_out(responder, || {
        assert!(sets_aside());
        Ok::<_, GateError>(())
    });
    tried.unwrap();
    assert!(!sets_aside());
    gate.replace(program).unwrap();
    assert!(!sets_aside());
}
