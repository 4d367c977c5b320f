use alloc::rc::Rc;
use core::cell::RefCell;
use msrgate_filter::{Access, Accesses, MsrIndex, Verdict};
use msrgate_program::{Action, Log, Mode, Program, ProgramBuilder, Unknown, UnknownAction};

use super::*;
use crate::machine::tests::Known;
use crate::machine::{Machine, Switched};

const LSTAR: u32 = 0xc000_0082;
const APERF: u32 = 0xe8;

fn cpu() -> Cpu {
    Cpu::from_cpuid([0x6874_7541, 0x6974_6e65, 0x444d_4163], 0x0080_0f12)
}

struct Tried {
    guard: Guard,
    processor: ProcessorGuard<Machine<Known>>,
    known: Known,
}

fn tried(program: Program) -> Tried {
    let known = Known(Rc::new(RefCell::new(
        [(LSTAR, 1), (APERF, 2), (0x10, 3), (0xc001_0117, 4)].into(),
    )));
    let guard = Guard::new(Arc::new(program), &cpu()).unwrap();
    let machine = Machine::new(known.clone(), Rc::new(Switched::default()));
    let mut processor = guard.processor(machine, |_| true);
    processor.enter(&guard);
    Tried {
        guard,
        processor,
        known,
    }
}

impl Tried {
    fn read(&mut self, index: u32) -> (Option<u64>, Option<Disposition>) {
        let gprs = Gprs {
            rcx: index.into(),
            ..Gprs::RESET
        };
        let (effect, event) = self
            .processor
            .access(&mut self.guard, gprs, Instruction::Rdmsr);
        let value = match effect {
            Effect::Complete(gprs) => Some(gprs.value()),
            Effect::Fault | Effect::Kill => None,
        };
        (value, event.map(|event| event.disposition))
    }

    fn write(&mut self, index: u32, value: u64) -> (Effect, Option<Disposition>) {
        let gprs = Gprs {
            rcx: index.into(),
            ..Gprs::RESET
        }
        .with_value(value);
        let (effect, event) = self
            .processor
            .access(&mut self.guard, gprs, Instruction::Wrmsr);
        (effect, event.map(|event| event.disposition))
    }

    fn is_written(&mut self, index: u32, value: u64) -> bool {
        matches!(self.write(index, value).0, Effect::Complete(_))
    }
}

fn msr(index: u32) -> MsrIndex {
    MsrIndex::new(index)
}

fn allowing() -> ProgramBuilder {
    ProgramBuilder::new(Verdict::Allow)
}

#[test]
fn allowed_accesses_reach_register_without_event() {
    let mut tried = tried(allowing().build().unwrap());
    assert_eq!(tried.read(LSTAR), (Some(1), None));
    assert!(tried.is_written(LSTAR, 9));
    assert_eq!(tried.read(LSTAR), (Some(9), None));
}

#[test]
fn denied_write_is_fault_and_event_and_leaves_register_alone() {
    let program = allowing().deny(msr(LSTAR), Accesses::Write);
    let mut tried = tried(program.build().unwrap());
    let refused = (Effect::Fault, Some(Disposition::Denied));
    assert_eq!(tried.write(LSTAR, 9), refused);
    assert_eq!(tried.known.0.borrow()[&LSTAR], 1);
    assert!(tried.processor.map().intercepts(msr(LSTAR), Access::Write));
    assert!(!tried.processor.map().intercepts(msr(LSTAR), Access::Read));
}

#[test]
fn value_and_ignore_answer_without_register() {
    let program = allowing().value(msr(0x8b), 7).ignore(msr(0x8b));
    let mut tried = tried(program.build().unwrap());
    assert_eq!(tried.read(0x8b), (Some(7), None));
    assert!(tried.is_written(0x8b, 1));
    assert!(!tried.known.0.borrow().contains_key(&0x8b));
}

#[test]
fn pinned_register_keeps_first_write() {
    let mut tried = tried(
        allowing()
            .action(msr(LSTAR), Access::Write, &Action::Pin)
            .build()
            .unwrap(),
    );
    assert!(tried.is_written(LSTAR, 5));
    assert_eq!(
        tried.write(LSTAR, 6),
        (Effect::Fault, Some(Disposition::Denied))
    );
    assert!(tried.is_written(LSTAR, 5));
    assert_eq!(tried.known.0.borrow()[&LSTAR], 5);
}

#[test]
fn first_access_is_event_once_and_reaches_register_each_time() {
    let mut tried = tried(allowing().log(Log::First).build().unwrap());
    assert_eq!(tried.read(LSTAR), (Some(1), Some(Disposition::Allowed)));
    assert_eq!(tried.read(LSTAR), (Some(1), None));
    let (effect, event) = tried.write(LSTAR, 2);
    assert!(matches!(effect, Effect::Complete(_)));
    assert_eq!(event, Some(Disposition::Allowed));
    assert_eq!(tried.read(LSTAR), (Some(2), None));
}

#[test]
fn audit_lets_refused_access_through_and_records_it() {
    let program = ProgramBuilder::new(Verdict::Deny).mode(Mode::Audit);
    let mut tried = tried(program.build().unwrap());
    assert_eq!(tried.read(LSTAR), (Some(1), Some(Disposition::WouldDeny)));
    assert_eq!(tried.read(LSTAR), (Some(1), None));
}

#[test]
fn register_that_processor_lacks_gets_answer_of_unknown() {
    let unknown = Unknown {
        read: UnknownAction::Value(0x55),
        write: UnknownAction::Deny,
        log: None,
    };
    for log in [Log::Denied, Log::First] {
        let program = allowing().log(log).unknown(unknown.clone());
        let mut tried = tried(program.build().unwrap());
        assert_eq!(tried.read(0x1234).0, Some(0x55), "{log:?}");
        assert_eq!(tried.write(0x1234, 1).0, Effect::Fault, "{log:?}");
    }
}

#[test]
fn register_of_svm_is_refused_even_if_policy_allows_or_audits_it() {
    for mode in [Mode::Enforce, Mode::Audit] {
        let program = allowing()
            .allow(msr(0xc001_0117), Accesses::Both)
            .mode(mode);
        let mut tried = tried(program.build().unwrap());
        assert_eq!(tried.read(0xc001_0117).0, None, "{mode:?}");
        assert_eq!(tried.write(0xc001_0117, 0).0, Effect::Fault, "{mode:?}");
        assert_eq!(tried.known.0.borrow()[&0xc001_0117], 4);
        assert!(
            tried
                .processor
                .map()
                .intercepts(msr(0xc001_0117), Access::Read)
        );
    }
}

#[test]
fn killed_access_ends_machine() {
    let program = ProgramBuilder::kill_by_default().allow(msr(0x10), Accesses::Both);
    let mut tried = tried(program.build().unwrap());
    assert_eq!(
        tried.write(LSTAR, 1),
        (Effect::Kill, Some(Disposition::Killed))
    );
    assert_eq!(tried.read(0x10), (Some(3), None));
}

#[test]
fn replaced_program_changes_map_at_next_entry_and_keeps_pin() {
    let mut tried = tried(
        allowing()
            .action(msr(LSTAR), Access::Write, &Action::Pin)
            .build()
            .unwrap(),
    );
    assert!(tried.is_written(LSTAR, 5));
    assert!(!tried.processor.map().intercepts(msr(APERF), Access::Read));
    let next = allowing()
        .action(msr(LSTAR), Access::Write, &Action::Pin)
        .deny(msr(APERF), Accesses::Both);
    let next = Arc::new(next.build().unwrap());
    tried.guard.replace(next, &cpu()).unwrap();
    assert!(!tried.processor.map().intercepts(msr(APERF), Access::Read));
    tried.processor.enter(&tried.guard);
    assert!(tried.processor.map().intercepts(msr(APERF), Access::Read));
    assert_eq!(tried.read(APERF).0, None);
    assert!(!tried.is_written(LSTAR, 6));
}

#[test]
fn program_with_handler_is_refused_and_old_program_stays() {
    let program = allowing().handler(msr(0x10), Accesses::Read, "vmm");
    let mut tried = tried(allowing().deny(msr(LSTAR), Accesses::Both).build().unwrap());
    let with_handler = Arc::new(program.build().unwrap());
    let error = tried.guard.replace(Arc::clone(&with_handler), &cpu());
    assert!(matches!(error, Err(GuardError::HasNoAnswer)));
    assert_eq!(tried.read(LSTAR).0, None);
    assert!(Guard::new(with_handler, &cpu()).is_err());
}

#[test]
fn first_refused_write_is_event_although_allowed_write_came_before() {
    let pins = allowing()
        .log(Log::First)
        .action(msr(LSTAR), Access::Write, &Action::Pin);
    let mut tried = tried(pins.build().unwrap());
    assert_eq!(tried.write(LSTAR, 5).1, Some(Disposition::Pinned));
    assert_eq!(tried.write(LSTAR, 6).1, Some(Disposition::Denied));
    assert_eq!(tried.write(LSTAR, 6).1, None);
}

#[test]
fn each_program_has_first_accesses_of_its_own() {
    let logs = || Arc::new(allowing().log(Log::First).build().unwrap());
    let mut tried = tried(Arc::unwrap_or_clone(logs()));
    assert_eq!(tried.read(LSTAR).1, Some(Disposition::Allowed));
    assert_eq!(tried.read(LSTAR).1, None);
    tried.guard.replace(logs(), &cpu()).unwrap();
    tried.processor.enter(&tried.guard);
    assert_eq!(tried.read(LSTAR).1, Some(Disposition::Allowed));
}
