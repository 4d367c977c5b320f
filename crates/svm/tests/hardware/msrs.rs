//! MSR accesses of a guest, on hardware's own map.

use msrgate_emulated::{Ended, Outcome, READS, Step};
use msrgate_filter::{Access, Accesses, MsrIndex, Verdict};
use msrgate_program::{
    Action, Log, Mode, MsrRange, Program, ProgramBuilder, Unknown, UnknownAction,
};

use crate::{completed, has_qemu, machine, steps};

const LSTAR: u32 = 0xc000_0082;
const PAT: u32 = 0x277;
const REPLACE: u32 = 0x4d53_5247;

fn msr(index: u32) -> MsrIndex {
    MsrIndex::new(index)
}

fn allowing() -> ProgramBuilder {
    ProgramBuilder::new(Verdict::Allow)
}

fn built(builder: ProgramBuilder) -> Program {
    builder.build().unwrap()
}

#[test]
fn allowed_accesses_reach_register_and_do_not_exit() {
    if !has_qemu() {
        return;
    }
    let program = built(allowing());
    let tried = [
        Step::Write(LSTAR, 0x1234_5678_9abc),
        Step::Read(LSTAR),
        Step::PrefixedRead(LSTAR),
    ];
    let (outcomes, ran) = steps(&program, &tried);
    assert_eq!(outcomes[1..], [Outcome::Done(0x1234_5678_9abc); 2]);
    assert_eq!(ran.exits("msr"), Some(0));
}

#[test]
fn each_answer_of_policy_reaches_guest() {
    if !has_qemu() {
        return;
    }
    let program = built(
        allowing()
            .deny(msr(LSTAR), Accesses::Write)
            .value(msr(0x8b), 0x77 << 32 | 0x55)
            .ignore(msr(0x10))
            .action(msr(0xc000_0083), Access::Write, &Action::Pin),
    );
    let tried = [
        Step::Write(LSTAR, 1),
        Step::Read(LSTAR),
        Step::Read(0x8b),
        Step::Write(0x10, 0),
        Step::Write(0xc000_0083, 5),
        Step::Write(0xc000_0083, 6),
        Step::Write(0xc000_0083, 5),
        Step::Read(0xc000_0083),
    ];
    let (outcomes, ran) = steps(&program, &tried);
    assert_eq!(outcomes[0], Outcome::GeneralProtection);
    assert_eq!(outcomes[1], Outcome::Done(0));
    assert_eq!(outcomes[2], Outcome::Done(0x77 << 32 | 0x55));
    assert!(matches!(outcomes[3], Outcome::Done(_)));
    assert!(matches!(outcomes[4], Outcome::Done(_)));
    assert_eq!(outcomes[5], Outcome::GeneralProtection);
    assert!(matches!(outcomes[6], Outcome::Done(_)));
    assert_eq!(outcomes[7], Outcome::Done(5));
    assert_eq!(ran.exits("msr"), Some(6));
    let events = ran.events();
    assert_eq!(events.len(), 2, "{}", ran.debug);
    assert_eq!(events[0]["msr"], "0xc0000082");
    assert_eq!(events[0]["action"], "deny");
    assert_eq!(events[1]["value"], "0x6");
}

/// The edges of the permission map's three regions, and one MSR inside of each.
const EDGES: [u32; 9] = [
    0,
    0x10,
    0x1fff,
    0xc000_0000,
    0xc000_0082,
    0xc000_1fff,
    0xc001_0000,
    0xc001_0015,
    0xc001_1fff,
];

#[test]
fn refused_access_always_exits_at_edges_of_map_and_outside() {
    if !has_qemu() {
        return;
    }
    let outside = [
        0x2000,
        0xbfff_ffff,
        0xc000_2000,
        0xc000_ffff,
        0xc001_2000,
        u32::MAX,
    ];
    let accesses = EDGES.iter().chain(&outside);
    let tried: Vec<_> = accesses
        .flat_map(|&index| [Step::Read(index), Step::Write(index, 0)])
        .collect();
    let (outcomes, ran) = steps(&built(ProgramBuilder::new(Verdict::Deny)), &tried);
    assert!(
        outcomes
            .iter()
            .all(|one| *one == Outcome::GeneralProtection),
        "{outcomes:?}"
    );
    assert_eq!(ran.exits("msr"), Some(tried.len() as u64));
    assert_eq!(ran.events().len(), tried.len());
}

#[test]
fn register_outside_of_list_gets_answer_of_unknown() {
    if !has_qemu() {
        return;
    }
    let unknown = Unknown {
        read: UnknownAction::Value(9),
        write: UnknownAction::Ignore,
        log: None,
    };
    let tried = [
        Step::Read(0x1234),
        Step::Write(0x1234, 1),
        Step::Read(0x5000_0000),
    ];
    let (outcomes, _) = steps(&built(allowing().unknown(unknown)), &tried);
    assert_eq!(outcomes[0], Outcome::Done(9));
    assert!(matches!(outcomes[1], Outcome::Done(_)));
    assert_eq!(outcomes[2], Outcome::Done(9));
    let (outcomes, _) = steps(&built(allowing()), &tried);
    assert_eq!(outcomes, [Outcome::GeneralProtection; 3]);
}

#[test]
fn first_accesses_are_events_and_reach_register() {
    if !has_qemu() {
        return;
    }
    let tried = [Step::Write(LSTAR, 7), Step::Read(LSTAR), Step::Read(LSTAR)];
    let (outcomes, ran) = steps(&built(allowing().log(Log::First)), &tried);
    assert_eq!(outcomes[1..], [Outcome::Done(7); 2]);
    assert_eq!(ran.events().len(), 2, "{}", ran.debug);
    let denies = ProgramBuilder::new(Verdict::Deny).mode(Mode::Audit);
    let (outcomes, ran) = steps(&built(denies), &tried);
    assert_eq!(outcomes[1..], [Outcome::Done(7); 2]);
    assert_eq!(ran.events()[0]["action"], "would-deny");
}

#[test]
fn registers_in_vmcb_are_guests_own() {
    if !has_qemu() {
        return;
    }
    let tried = [
        Step::Read(0xc000_0080),
        Step::Write(0xc000_0080, 1),
        Step::Read(0xc000_0080),
        Step::Write(0xc000_0080, 1 << 12),
        Step::Write(PAT, 2),
        Step::Write(PAT, 0x0007_0406_0007_0406),
        Step::Read(PAT),
        Step::Write(0x1b, 0xfed0_0900),
        Step::Write(0x1b, 0xfee0_0d00),
    ];
    let (outcomes, _) = steps(&built(allowing()), &tried);
    assert_eq!(outcomes[0], Outcome::Done(0));
    assert_eq!(outcomes[2], Outcome::Done(1));
    assert_eq!(outcomes[3..5], [Outcome::GeneralProtection; 2]);
    assert_eq!(outcomes[6], Outcome::Done(0x0007_0406_0007_0406));
    assert_eq!(outcomes[7..], [Outcome::GeneralProtection; 2]);
}

#[test]
fn registers_that_hypervisor_keeps_are_refused_under_policy_that_allows_all() {
    if !has_qemu() {
        return;
    }
    let both = [
        0xc001_0111,
        0xc001_0114,
        0xc001_0116,
        0xc001_0117,
        0xc001_0119,
        0xc001_011b,
    ];
    let writes = [
        0x79,
        0xc001_0010,
        0xc001_0016,
        0xc001_001a,
        0xc001_001d,
        0xc001_0020,
    ];
    let both = both
        .iter()
        .flat_map(|&index| [Step::Read(index), Step::Write(index, 0)]);
    let writes = writes.iter().map(|&index| Step::Write(index, 0));
    let tried: Vec<_> = both.chain(writes).collect();
    let (outcomes, ran) = steps(&built(allowing()), &tried);
    assert_eq!(outcomes, vec![Outcome::GeneralProtection; tried.len()]);
    assert_eq!(ran.exits("msr"), Some(tried.len() as u64));
}

#[test]
fn killed_access_ends_machine_with_message() {
    if !has_qemu() {
        return;
    }
    let program = built(allowing().action(msr(LSTAR), Access::Write, &Action::Kill));
    let ran = machine(&program, &[Step::Write(LSTAR, 1)]).run().unwrap();
    assert_eq!(ran.ended, Ended::Code(0x37));
    let said = String::from_utf8(ran.serial).unwrap();
    assert!(
        said.contains("the policy ends the machine at a write of 0xc0000082"),
        "{said}"
    );
}

#[test]
fn hypercall_replaces_program_only_if_policy_allows_it_by_entry() {
    if !has_qemu() {
        return;
    }
    let tried = [
        Step::Vmmcall(REPLACE),
        Step::Read(LSTAR),
        Step::Vmmcall(REPLACE),
    ];
    let replacement = built(ProgramBuilder::new(Verdict::Deny)).encode();
    let with_entry = built(allowing().allow(MsrRange::one(msr(REPLACE)), Accesses::Write));
    let run = |program: &Program| completed(&machine(program, &tried)).0;
    let run_with_replacement = |program: &Program| {
        completed(&machine(program, &tried).file("replacement", &replacement)).0
    };
    let ud = Outcome::UndefinedOpcode;
    let outcomes = run_with_replacement(&with_entry);
    assert!(matches!(outcomes[0], Outcome::Done(_)), "{outcomes:?}");
    assert_eq!(outcomes[1..], [Outcome::GeneralProtection, ud]);
    assert_eq!(run(&with_entry), [ud, Outcome::Done(0), ud]);
    assert_eq!(
        run_with_replacement(&built(allowing())),
        [ud, Outcome::Done(0), ud]
    );
}

/// The other processor reads a register that passes through, so that it never exits by itself.
#[test]
fn replaced_program_holds_on_other_processor_before_hypercall_returns() {
    if !has_qemu() {
        return;
    }
    let tried = [
        Step::StartOthers,
        Step::Vmmcall(REPLACE),
        Step::Memory(READS),
        Step::WaitForFault,
        Step::Memory(READS),
    ];
    let program = built(allowing().allow(msr(REPLACE), Accesses::Write));
    let replacement = built(allowing().deny(msr(LSTAR), Accesses::Read));
    let machine = machine(&program, &tried)
        .options(&["-smp", "2"])
        .file("replacement", &replacement.encode());
    let (outcomes, ran) = completed(&machine);
    let value = |at: usize| match outcomes[at] {
        Outcome::Done(value) => value & 0xffff_ffff,
        other => panic!("step {at} gave {other:?}"),
    };
    assert!(value(0) > 0, "the other processor reads the register");
    assert_eq!(value(3), 1, "the other processor gets #GP");
    // The last completed read may be counted after the hypercall.
    assert!(
        value(4) - value(2) <= 1,
        "{} reads more",
        value(4) - value(2)
    );
    let refused: Vec<_> = ran.events();
    assert_eq!(refused.len(), 1, "{}", ran.debug);
    assert_eq!(refused[0]["vcpu"], 1);
}
