//! A gate for a guest that is a hypervisor. The gate's own answers apply to the nested guest, too, but the
//! gate never forwards an access of the nested guest to KVM's registers.
//!
//! The guest runs its nested guest by SVM and does not intercept MSR accesses, so KVM asks its filter and
//! the gate answers while the nested guest runs. The tests need a KVM that offers SVM to guests, as
//! `scripts/lab` has. Without one, the tests print that they are skipped; with `MSRGATE_REQUIRE=nested`
//! they fail.

mod code;
mod layout;
mod machine;
mod vmcb;

use msrgate_filter::{Access, MsrIndex};
use msrgate_kvm::gate::{Outcome, StateError};
use msrgate_policy::answer::Disposition;
use vm_memory::{Bytes, GuestAddress};

use machine::Op::{Read, Write};
use machine::Who::{Guest, Nested};
use machine::{CSTAR, Came, FMASK, LSTAR, Machine, NESTED_REGISTERS, STAR, Saw, Who};

const PAT: MsrIndex = MsrIndex::new(0x277);

/// MSRs that no KVM has; the gate answers accesses to them by itself.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const HANDLED: MsrIndex = MsrIndex::new(0x1_0001);
const REGISTER: MsrIndex = MsrIndex::new(0x1_0002);
const DEADLY: MsrIndex = MsrIndex::new(0x1_0003);

/// A policy's entries: one register for each kind of write that the gate forwards.
const CARRIED: &str = "IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
    IA32_CSTAR = { read = 'allow', write = { mask = '0xffff' } }\n\
    IA32_FMASK = { read = 'allow', write = { sticky = '0x200' } }";

/// Returns the nested guest's own registers, from its VMCB after it has run.
fn nested_registers(machine: &Machine) -> [(MsrIndex, usize, u64); 4] {
    NESTED_REGISTERS.map(|(index, at, _)| (index, at, machine.vmcb(at)))
}

/// Returns the accesses to one register for which there were events, in order.
fn told(machine: &Machine, index: MsrIndex) -> Vec<(Access, Disposition)> {
    let mut told = Vec::new();
    machine.gate.events().expect("one reader").drain(|event| {
        if event.index == index {
            told.push((event.access, event.disposition));
        }
    });
    told
}

/// Writes of a nested guest to forwarded registers are denied: the gate writes no register and pins none.
/// Writes of the nested guest's hypervisor are forwarded, before and after the nested guest has run.
#[test]
fn nested_guest_writes_are_not_forwarded_to_kvms_registers() {
    let Some(mut machine) = Machine::new("", CARRIED) else {
        return;
    };
    assert_eq!(machine.run(Guest, Write(FMASK, 0x4200)), Saw::Written);
    assert_eq!(machine.exits, [Guest]);
    assert_eq!(machine.run(Guest, Write(CSTAR, 0x1234)), Saw::Written);
    let held = [(LSTAR, 0), (CSTAR, 0x1234), (FMASK, 0x4200)];
    let refused = |machine: &mut Machine, held: &[(MsrIndex, u64)]| {
        for (index, value) in [(LSTAR, 0x7000), (CSTAR, 0x4321), (FMASK, 0x600)] {
            let saw = machine.run(Nested, Write(index, value));
            assert_eq!(saw, Saw::Fault, "{index}");
            assert_eq!(machine.exits, [Nested], "{index}");
            assert_eq!(nested_registers(machine), NESTED_REGISTERS, "{index}");
            for &(index, value) in held {
                assert_eq!(machine.register(index), value, "{index}");
            }
        }
    };
    refused(&mut machine, &held);
    // The nested guest's writes have pinned nothing, so this first write of the guest succeeds.
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x6000)), Saw::Fault);
    assert_eq!(machine.run(Guest, Read(LSTAR)), Saw::Value(0x5000));
    // The sticky bit is the guest's own 0x200, not the value of the nested guest's register.
    assert_eq!(machine.run(Guest, Write(FMASK, 0x100)), Saw::Written);
    assert_eq!(machine.run(Guest, Read(FMASK)), Saw::Value(0x300));
    refused(
        &mut machine,
        &[(LSTAR, 0x5000), (CSTAR, 0x1234), (FMASK, 0x300)],
    );
    // The guest, as hypervisor, may write the pinned value again. The gate denies even that value to the
    // nested guest.
    assert_eq!(machine.run(Nested, Write(LSTAR, 0x5000)), Saw::Fault);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    let (denied, pinned) = (
        (Access::Write, Disposition::Denied),
        (Access::Write, Disposition::Pinned),
    );
    // One denial is that of the guest's second write, and three are those of the nested guest's writes.
    let denials = told(&machine, LSTAR);
    assert_eq!(denials.iter().filter(|one| **one == denied).count(), 4);
    assert!(!denials.contains(&pinned), "{denials:?}");
}

/// A filter does not protect a register's value (S4b): a hypervisor changes a pinned register by VMLOAD,
/// which no filter is asked about. The gate does not assume that the register still holds the pinned
/// value: writing that value again reaches the register.
#[test]
fn vmload_changes_pinned_register_and_write_of_pinned_value_restores_it() {
    let Some(mut machine) = Machine::new("", CARRIED) else {
        return;
    };
    let (_, _, loaded) = NESTED_REGISTERS[1];
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    machine.load();
    assert_eq!(machine.register(LSTAR), loaded);
    assert_eq!(machine.run(Guest, Write(LSTAR, loaded)), Saw::Fault);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    assert_eq!(machine.register(LSTAR), 0x5000);
}

/// The gate opens the filter for a nested guest's access that the policy allows and logs, instead of
/// forwarding it. The filter is then open for the guest, too, until the program is replaced.
#[test]
fn logged_access_of_nested_guest_opens_filter_for_later_accesses() {
    let entries = "IA32_STAR = { read = 'allow', write = 'allow', log = 'all' }";
    let Some(mut machine) = Machine::new("", entries) else {
        return;
    };
    assert_eq!(machine.run(Guest, Write(STAR, 0x10)), Saw::Written);
    for _ in 0..2 {
        assert_eq!(machine.run(Guest, Read(STAR)), Saw::Value(0x10));
        assert_eq!(machine.exits, [Guest], "carried, each time");
    }
    let (_, at, own) = NESTED_REGISTERS[0];
    assert_eq!(machine.run(Nested, Read(STAR)), Saw::Value(own));
    assert!(machine.exits.iter().all(|&who| who == Nested));
    assert!(!machine.exits.is_empty());
    assert_eq!(machine.run(Nested, Read(STAR)), Saw::Value(own));
    assert_eq!(machine.exits, [], "the filter is open");
    assert_eq!(machine.run(Nested, Write(STAR, 0x20)), Saw::Written);
    assert!(!machine.exits.is_empty());
    assert_eq!(machine.vmcb(at), 0x20);
    assert_eq!(machine.register(STAR), 0x10);
    assert_eq!(machine.run(Guest, Read(STAR)), Saw::Value(0x10));
    assert_eq!(machine.exits, [], "the filter is open");
    let program = (*machine.gate.program()).clone();
    machine.gate.replace(program).unwrap();
    assert_eq!(machine.run(Guest, Read(STAR)), Saw::Value(0x10));
    assert_eq!(machine.exits, [Guest], "carried again");
    let told = told(&machine, STAR);
    assert!(
        told.iter()
            .all(|(_, disposition)| *disposition == Disposition::Allowed)
    );
    assert!(told.len() >= 6, "{told:?}");
}

/// With `log = 'first'` the gate rewinds the first access of a nested guest. The nested guest then executes
/// the instruction again, on its own registers, not on those of the guest. For the rewind the gate queues a
/// #GP and cancels it: this #GP does not exit to the nested guest's hypervisor.
#[test]
fn first_access_of_nested_guest_is_rewound() {
    let Some(mut machine) = Machine::new("log = 'first'", "IA32_STAR = 'rw'\nIA32_PAT = 'rw'")
    else {
        return;
    };
    let (_, at, own) = NESTED_REGISTERS[0];
    assert_eq!(machine.run(Nested, Read(STAR)), Saw::Value(own));
    assert!(machine.exits.contains(&Nested));
    assert_eq!(
        machine.run(Nested, Write(STAR, 0x1_0000_0020)),
        Saw::Written
    );
    assert!(machine.exits.contains(&Nested));
    assert_eq!(machine.vmcb(at), 0x1_0000_0020);
    // A write whose value KVM refuses is executed again, like a write that succeeds.
    assert_eq!(machine.run(Nested, Write(PAT, 2)), Saw::Fault);
    assert!(machine.exits.contains(&Nested));
    assert_eq!(machine.run(Guest, Read(STAR)), Saw::Value(0));
    let both = [
        (Access::Read, Disposition::Allowed),
        (Access::Write, Disposition::Allowed),
    ];
    assert_eq!(told(&machine, STAR), both);
}

/// The gate answers the guest and the nested guest alike where the answer needs no register that KVM
/// keeps.
#[test]
fn gate_answers_nested_guest_as_it_answers_the_guest() {
    let entries = "0x10000 = { read = { value = '0x123456789abcdef0' }, write = 'ignore' }\n\
        0x10001 = { read = { handler = 'mine' }, write = { handler = 'mine' } }\n\
        0x10002 = { register = { reset = 7, mask = '0xff' } }\n\
        0x10003 = { read = 'kill', write = 'deny' }";
    let Some(mut machine) = Machine::new("", entries) else {
        return;
    };
    for (op, expected) in [
        (Read(SPARE), Saw::Value(0x1234_5678_9abc_def0)),
        (Write(SPARE, 1), Saw::Written),
        (Read(HANDLED), Saw::Value(0x5a)),
        (Write(HANDLED, 1), Saw::Written),
        (Read(REGISTER), Saw::Value(7)),
        (Write(REGISTER, 0x100), Saw::Fault),
        (Write(REGISTER, 0xfe), Saw::Written),
        (Write(DEADLY, 1), Saw::Fault),
        (Read(LSTAR), Saw::Fault),
        (Write(LSTAR, 1), Saw::Fault),
    ] {
        assert_eq!(machine.run(Nested, op), expected, "{op:?}");
        assert_eq!(machine.exits, [Nested], "{op:?}");
    }
    // A vCPU has one emulated register, which guest and nested guest share.
    assert_eq!(machine.run(Guest, Read(REGISTER)), Saw::Value(0xfe));
    assert_eq!(machine.run(Nested, Read(DEADLY)), Saw::Killed);
    // If the VMM runs the vCPU again after a kill, the killed access is a #GP.
    assert_eq!(machine.run_on(), Saw::Fault);
}

/// Runs the vCPU to a write of LSTAR by the nested guest, and leaves the exit of the write unanswered.
fn at_a_nested_write(machine: &mut Machine, value: u64) {
    machine.begin(Nested, Write(LSTAR, value));
    assert_eq!(machine.resume(), Came::ToAnMsr);
    assert_eq!(machine.exits, [Nested]);
}

/// `save` fails while the nested guest runs and its exit has no answer. After the answer, `save` completes
/// the exit, the nested guest's #GP is still to be delivered, and the saved state has only the guest's own
/// pin.
#[test]
fn vcpu_save_while_nested_guest_runs_has_only_pin_of_the_guest() {
    let Some(mut machine) = Machine::new("", CARRIED) else {
        return;
    };
    at_a_nested_write(&mut machine, 0x7000);
    let refused = machine.msrs.save(&mut machine.vcpu);
    assert_eq!(refused, Err(StateError::Unanswered));
    assert!(matches!(machine.answer(), Outcome::Resume));
    let unpinned = machine.msrs.save(&mut machine.vcpu).unwrap();
    assert_eq!(machine.level(), Nested);
    assert_eq!(machine.run_on(), Saw::Fault);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    at_a_nested_write(&mut machine, 0x7000);
    assert!(matches!(machine.answer(), Outcome::Resume));
    let pinned = machine.msrs.save(&mut machine.vcpu).unwrap();
    assert_eq!(machine.run_on(), Saw::Fault);
    assert_ne!(unpinned, pinned);
    let second = Write(LSTAR, 0x6000);
    machine.msrs.restore(&mut machine.vcpu, &unpinned).unwrap();
    assert_eq!(machine.run(Guest, second), Saw::Written);
    machine.msrs.restore(&mut machine.vcpu, &pinned).unwrap();
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x7000)), Saw::Fault);
}

/// After the state of a vCPU is restored in another VM while its nested guest runs, the nested guest
/// receives its #GP there, and the guest's pin holds there.
#[test]
fn vcpu_restored_in_other_vm_while_nested_guest_runs_keeps_fault_and_pin() {
    let machines = [(); 2].map(|()| Machine::new("", CARRIED));
    let [Some(mut machine), Some(mut other)] = machines else {
        return;
    };
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    at_a_nested_write(&mut machine, 0x7000);
    assert!(matches!(machine.answer(), Outcome::Resume));
    machine.move_to(&mut other);
    assert_eq!(other.level(), Nested);
    assert_eq!(other.run_on(), Saw::Fault);
    assert_eq!(nested_registers(&other), NESTED_REGISTERS);
    assert_eq!(other.run(Guest, Read(LSTAR)), Saw::Value(0x5000));
    assert_eq!(other.run(Guest, Write(LSTAR, 0x6000)), Saw::Fault);
}

/// After the vCPU is reset while its nested guest runs, no part of the nested guest's pending exit is
/// left.
#[test]
fn vcpu_reset_while_nested_guest_runs_discards_pending_exit() {
    let Some(mut machine) = Machine::new("", CARRIED) else {
        return;
    };
    for answer in [false, true] {
        assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
        at_a_nested_write(&mut machine, 0x5000);
        if answer {
            assert!(matches!(machine.answer(), Outcome::Resume));
        }
        machine.start();
        assert_eq!(machine.level(), Guest);
        assert_eq!(machine.run(Guest, Write(LSTAR, 0x6000)), Saw::Written);
        machine.start();
    }
}

/// The microcode device finds an update at the address that results from the nested guest's own page
/// tables and then the nested page tables.
#[test]
fn microcode_update_of_nested_guest_is_found_through_its_own_and_nested_page_tables() {
    let trigger = MsrIndex::new(0xc001_0020);
    let revision = MsrIndex::new(0x8b);
    let entries = "0xc0010020 = { device = 'microcode' }\nIA32_BIOS_SIGN_ID = 'rw'\n\
        [device.microcode]\nrevision = '0x8001100'\nupdate = 'accept'";
    let Some(mut machine) = Machine::new("", entries) else {
        return;
    };
    // AMD's header has the revision at offset 4 and the 16-bit processor ID at offset 24.
    let signature = machine.signature;
    let extended = signature >> 16 & 0xfff;
    let processor = (extended >> 4 & 0xf) << 12 | (extended & 0xf) << 8 | signature & 0xff;
    let mut header = [0; 64];
    header[4..8].copy_from_slice(&0x0800_1227_u32.to_le_bytes());
    header[24..28].copy_from_slice(&processor.to_le_bytes());
    let at = GuestAddress(layout::UPDATE);
    machine.memory.write_slice(&header, at).unwrap();
    let reads = |machine: &mut Machine, who: Who| machine.run(who, Read(revision));
    assert_eq!(reads(&mut machine, Guest), Saw::Value(0x0800_1100));
    for (who, address) in [
        (Guest, layout::NESTED_UPDATE),
        (Nested, layout::NESTED_NOWHERE),
        (Nested, 1 << 62),
    ] {
        let saw = machine.run(who, Write(trigger, address));
        assert_eq!(saw, Saw::Fault, "{who:?} {address:#x}");
    }
    assert_eq!(reads(&mut machine, Nested), Saw::Value(0x0800_1100));
    let update = Write(trigger, layout::NESTED_UPDATE);
    assert_eq!(machine.run(Nested, update), Saw::Written);
    assert_eq!(machine.exits, [Nested]);
    for who in [Guest, Nested] {
        assert_eq!(reads(&mut machine, who), Saw::Value(0x0800_1227));
    }
}
