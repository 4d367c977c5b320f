//! Tests of a filter and a mask that the VMM itself sets in addition to those of the policy, and of the
//! watcher.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use msrgate_filter::{
    Accesses, Bitmap, DefaultAction, ExitReason, Filter, MsrIndex, Range, ReasonMask, Revision,
};

use super::clock;
use super::machine::{Came, FMASK, LSTAR, STAR, Saw, on_each, policy};
use super::random::refuses_wild;
use crate::gate::{AnswerError, Beside, GateOptions, Told, Watcher};
use crate::measure::guest::Op::{Read, Write};

/// Returns the filter of a VMM that denies reads of one MSR, and a mask with these reasons.
fn refusing(index: MsrIndex, reasons: &[ExitReason]) -> Beside {
    let bitmap = Bitmap::from_fn(1, |_| false).unwrap();
    let range = Range::new(Accesses::Read, index, bitmap);
    let filter = Filter::new(Revision::Mainline, DefaultAction::Allow, vec![range]).unwrap();
    Beside {
        filter: Some(filter),
        reasons: ReasonMask::of(Revision::Mainline, reasons),
    }
}

#[test]
fn access_denied_by_vmms_filter_exits_to_vmm_or_faults() {
    let program = policy("default = 'allow'", "IA32_LSTAR = 'none'");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        machine.first().run(&[Write(STAR, 5)]);
        machine.gate.set_beside(refusing(STAR, &[])).unwrap();
        let saw = machine.first().run(&[Read(STAR), Read(LSTAR)]);
        assert_eq!(saw, [Saw::Fault, Saw::Fault]);
        let asks = refusing(STAR, &[ExitReason::Filter]);
        machine.gate.set_beside(asks).unwrap();
        let vcpu = machine.first();
        vcpu.guest.load(&[Read(STAR), Read(LSTAR)]);
        assert!(matches!(vcpu.guest.resume(), Came::ToAnMsr));
        let answered = vcpu.guest.answer(&mut vcpu.msrs);
        assert!(matches!(answered, Err(AnswerError::Theirs)), "{answered:?}");
        // The exit is as the kernel made it: a VMM that does not answer it gives the guest 0.
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(STAR)), Saw::Value(0));
        assert_eq!(vcpu.saw(1, Read(LSTAR)), Saw::Fault);
        machine.gate.set_beside(Beside::default()).unwrap();
        assert_eq!(machine.first().run(&[Read(STAR)]), [Saw::Value(5)]);
    });
}

/// If the gate has opened its filter for a first access before the VMM changes the VMM's own filter, the
/// gate's filter is open for that access afterwards, too. An access that the VMM's filter denies does not
/// wait for the publisher.
#[test]
fn filter_open_for_first_access_stays_open_after_vmm_sets_own_filter() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        machine
            .first()
            .run(&[Write(STAR, 5), Read(STAR), Read(LSTAR)]);
        machine.gate.set_beside(refusing(LSTAR, &[])).unwrap();
        let vcpu = machine.first();
        let before = vcpu.exits;
        assert_eq!(vcpu.run(&[Read(STAR)]), [Saw::Value(5)]);
        assert_eq!(vcpu.exits, before);
        assert_eq!(vcpu.run(&[Read(LSTAR)]), [Saw::Fault]);
    });
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Watcher for Notes {
    fn told(&self, told: &Told) {
        let (exit, disposition) = (told.exit, told.disposition);
        let note = format!("{} {} {disposition}", exit.access, exit.index);
        self.0.lock().unwrap().push(note);
    }
}

/// The watcher is told of each refusal, even under a policy that logs nothing. The watcher is told only once
/// of a first access that waits for a wider filter, however often the guest executes that access again.
#[test]
fn watcher_is_told_of_each_refusal_and_once_of_each_let_through_access() {
    for (settings, expected) in [
        (
            "default = 'deny'\nlog = 'none'",
            ["read 0xc0000081 deny", "read 0xc0000081 deny"].as_slice(),
        ),
        (
            "default = 'deny'\nmode = 'audit'",
            ["read 0xc0000081 would-deny"].as_slice(),
        ),
        ("default = 'allow'", [].as_slice()),
    ] {
        let program = policy(settings, "");
        // The body runs for each machine: the model, and a real KVM.
        let notes = Arc::new(Notes::default());
        let options = GateOptions::new().watcher(Arc::clone(&notes) as Arc<dyn Watcher>);
        on_each(&program, 1, &options, |machine| {
            machine.first().run(&[Read(STAR), Read(STAR)]);
            let told = std::mem::take(&mut *notes.0.lock().unwrap());
            assert_eq!(told, expected, "{settings}");
        });
    }
}

/// The filter lets the guest's first write of `IA32_LSTAR` through, and KVM refuses the value of this write. A KVM that
/// does not handle the write itself refuses nothing, and is left out.
#[test]
fn watcher_is_told_of_refused_value_only_if_its_reason_is_watched() {
    let program = policy("default = 'allow'\nlog = 'first'", "");
    let invalid = ReasonMask::of(Revision::Mainline, &[ExitReason::Invalid]);
    for (watched, expected) in [
        (ReasonMask::NONE, ["write 0xc0000082 allow"].as_slice()),
        (
            invalid,
            ["write 0xc0000082 allow", "write 0xc0000082 deny"].as_slice(),
        ),
    ] {
        let notes = Arc::new(Notes::default());
        let options = GateOptions::new()
            .watcher(Arc::clone(&notes) as Arc<dyn Watcher>)
            .watched_reasons(watched);
        on_each(&program, 1, &options, |machine| {
            // The address is not canonical.
            let script = [Write(LSTAR, 1 << 63), Write(LSTAR, 5), Read(LSTAR)];
            let saw = machine.first().run(&script);
            let mut told = std::mem::take(&mut *notes.0.lock().unwrap());
            if saw.first() == Some(&Saw::Written) && !refuses_wild() {
                return;
            }
            assert_eq!(saw, [Saw::Fault, Saw::Written, Saw::Value(5)]);
            assert_eq!(told.pop().as_deref(), Some("read 0xc0000082 allow"));
            assert_eq!(told, expected);
        });
    }
}

/// The filter for one access is not set before the guest has been idle and made other accesses, as an interrupt handler
/// does: the gate answers one of these accesses, and another one waits for its filter, too. The watcher is
/// told once of each of the three accesses.
#[test]
fn watcher_is_told_once_of_access_whose_wait_for_filter_is_interrupted() {
    let program = policy(
        "default = 'allow'",
        "IA32_STAR = { read = 'allow', write = 'allow', log = 'first' }\nIA32_LSTAR = 'none'\n\
         IA32_FMASK = { read = 'allow', write = 'allow', log = 'first' }",
    );
    let notes = Arc::new(Notes::default());
    let watcher = Arc::clone(&notes) as Arc<dyn Watcher>;
    let options = GateOptions::new().clock(clock::now).watcher(watcher);
    on_each(&program, 1, &options, |machine| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        // The publisher sets no filter while another thread has the gate.
        let control = gate.shared.lock();
        for index in [STAR, LSTAR, STAR, FMASK, STAR, FMASK] {
            vcpu.guest.load(&[Read(index)]);
            assert!(vcpu.step().is_some());
            clock::advance(Duration::from_secs(2));
        }
        drop(control);
        vcpu.run(&[Read(STAR), Read(FMASK)]);
        let told = std::mem::take(&mut *notes.0.lock().unwrap());
        let [star, lstar, fmask] = [STAR, LSTAR, FMASK].map(|index| format!("read {index}"));
        let expected = [star + " allow", lstar + " deny", fmask + " allow"];
        assert_eq!(told, expected);
    });
}
