//! A guest that is a hypervisor itself, behind a gate: what the gate answers is the guest's, and what it
//! carries to KVM's registers is never its nested guest's.
//!
//! The guest runs its nested guest by SVM and does not intercept MSRs, so that KVM asks its filter, and
//! the gate answers, while the nested guest runs. That needs a KVM that offers SVM to its guests; where
//! there is none the tests are skipped, loudly, and `MSRGATE_REQUIRE=nested` makes that a failure.
//! `scripts/lab` has one.

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

/// MSRs that no KVM has, for what the gate answers by itself.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const HANDLED: MsrIndex = MsrIndex::new(0x1_0001);
const REGISTER: MsrIndex = MsrIndex::new(0x1_0002);
const DEADLY: MsrIndex = MsrIndex::new(0x1_0003);

/// A register of each kind of write that is carried.
const CARRIED: &str = "IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
    IA32_CSTAR = { read = 'allow', write = { mask = '0xffff' } }\n\
    IA32_FMASK = { read = 'allow', write = { sticky = '0x200' } }";

/// What the nested guest has in its own registers after it has run.
fn nested_registers(machine: &Machine) -> [(MsrIndex, usize, u64); 4] {
    NESTED_REGISTERS.map(|(index, at, _)| (index, at, machine.vmcb(at)))
}

/// The accesses of one register that were told, in order.
fn told(machine: &Machine, index: MsrIndex) -> Vec<(Access, Disposition)> {
    let mut told = Vec::new();
    machine.gate.events().expect("one reader").drain(|event| {
        if event.index == index {
            told.push((event.access, event.disposition));
        }
    });
    told
}

/// Of a nested guest they are refused: nothing is written and nothing pinned, neither its own registers
/// nor its hypervisor's, whose own writes are carried before and after.
#[test]
fn writes_of_a_nested_guest_are_not_carried() {
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
    // Nothing was pinned: the guest's first write is still to come.
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x6000)), Saw::Fault);
    assert_eq!(machine.run(Guest, Read(LSTAR)), Saw::Value(0x5000));
    // What stuck is the guest's own 0x200, and not what its nested guest has in that register.
    assert_eq!(machine.run(Guest, Write(FMASK, 0x100)), Saw::Written);
    assert_eq!(machine.run(Guest, Read(FMASK)), Saw::Value(0x300));
    refused(
        &mut machine,
        &[(LSTAR, 0x5000), (CSTAR, 0x1234), (FMASK, 0x300)],
    );
    // Not even that which its hypervisor may write again.
    assert_eq!(machine.run(Nested, Write(LSTAR, 0x5000)), Saw::Fault);
    assert_eq!(machine.run(Guest, Write(LSTAR, 0x5000)), Saw::Written);
    let (denied, pinned) = (
        (Access::Write, Disposition::Denied),
        (Access::Write, Disposition::Pinned),
    );
    // The guest's second, and the nested guest's three.
    let denials = told(&machine, LSTAR);
    assert_eq!(denials.iter().filter(|one| **one == denied).count(), 4);
    assert!(!denials.contains(&pinned), "{denials:?}");
}

/// A filter is no boundary for state (S4b): a hypervisor changes a pinned register by VMLOAD, which nobody is
/// asked about. The gate does not take the register for what was pinned: an equal write writes it.
#[test]
fn vmload_changes_a_pinned_register() {
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

/// What is only to be seen, a nested guest does itself: the filter opens for it. For the guest it is then
/// open, too, until another program is in force.
#[test]
fn what_is_only_to_be_seen_a_nested_guest_does_itself() {
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

/// First touch: the nested guest's instruction is executed again, by itself, with its own registers, and
/// the #GP that was queued meanwhile does not become an exit to its hypervisor.
#[test]
fn a_nested_guests_first_touch_is_rewound() {
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
    // A value that KVM itself refuses is executed again, too.
    assert_eq!(machine.run(Nested, Write(PAT, 2)), Saw::Fault);
    assert!(machine.exits.contains(&Nested));
    assert_eq!(machine.run(Guest, Read(STAR)), Saw::Value(0));
    let both = [
        (Access::Read, Disposition::Allowed),
        (Access::Write, Disposition::Allowed),
    ];
    assert_eq!(told(&machine, STAR), both);
}

/// What needs no register of KVM's is answered alike for both.
#[test]
fn answers_are_a_nested_guests_too() {
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
    // One register a vCPU, whoever runs on it.
    assert_eq!(machine.run(Guest, Read(REGISTER)), Saw::Value(0xfe));
    assert_eq!(machine.run(Nested, Read(DEADLY)), Saw::Killed);
    // A vCPU that is run on all the same.
    assert_eq!(machine.run_on(), Saw::Fault);
}

/// Runs to a nested guest's write of LSTAR, which waits for its answer.
fn at_a_nested_write(machine: &mut Machine, value: u64) {
    machine.begin(Nested, Write(LSTAR, value));
    assert_eq!(machine.resume(), Came::ToAnMsr);
    assert_eq!(machine.exits, [Nested]);
}

/// A snapshot while the nested guest runs: none of an exit without an answer; with one, it is complete, the
/// nested guest's #GP is still to come, and what is saved holds no pin but the guest's.
#[test]
fn a_snapshot_while_the_nested_guest_runs() {
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

/// And in the VM that goes on with it, the nested guest gets its #GP, and the pin holds.
#[test]
fn a_move_while_the_nested_guest_runs() {
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

/// A reset while the nested guest runs: nothing of its exit is left in the vCPU that begins anew.
#[test]
fn a_reset_while_the_nested_guest_runs() {
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

/// The microcode device finds an update where the nested guest's own tables, and then its hypervisor's, say
/// that it is.
#[test]
fn a_nested_guests_update_is_found_through_both_translations() {
    let trigger = MsrIndex::new(0xc001_0020);
    let revision = MsrIndex::new(0x8b);
    let entries = "0xc0010020 = { device = 'microcode' }\nIA32_BIOS_SIGN_ID = 'rw'\n\
        [device.microcode]\nrevision = '0x8001100'\nupdate = 'accept'";
    let Some(mut machine) = Machine::new("", entries) else {
        return;
    };
    // AMD's header: the revision at 4, the processor's sixteen bits at 24.
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
