use std::sync::atomic::Ordering;

use super::*;
use crate::measure::observed::StepReply;

const STAR: MsrIndex = MsrIndex::new(0xc000_0081);

/// The offset, in words, at which these tests put machine code of their own into a vCPU's memory.
const SPARE: usize = 0x4800 / 8;

/// Creates a guest; returns `None` and prints the reason if this machine cannot run one.
fn guest() -> Option<Guest> {
    HostCaps::for_test().map(|host| Guest::new(&host, Apic::Absent).unwrap())
}

/// Runs a script of three reads of STAR. In place of the second read, the guest executes `code`.
fn derail(guest: &mut Guest, code: u64) -> GuestError {
    guest.load(&[Op::Read(STAR); 3]).unwrap();
    let words = guest.memory.words();
    words[SPARE].store(code, Ordering::Relaxed);
    let address = guest.number.base() + SPARE as u64 * 8;
    layout::slot(words, 1)[0].store(address, Ordering::Relaxed);
    let stop = guest.resume();
    guest.spoil();
    stop.map_or_else(
        |error| error,
        |stop| GuestError::Left {
            step: guest.step(),
            exit: stop.to_string(),
        },
    )
}

/// Checks that the guest still runs scripts after an error.
fn works(guest: &mut Guest) {
    let script = [
        (Op::Write(STAR, 5), StepReply::Fault),
        (Op::Read(STAR), StepReply::Fault),
    ];
    let seen = guest.run(&script).unwrap();
    assert_eq!(seen[1].outcome, crate::measure::GuestOutcome::Value(5));
}

#[test]
fn guest_in_endless_loop_is_an_error_that_names_step_of_script() {
    let Some(mut guest) = guest() else { return };
    guest.set_patience(Duration::from_millis(100));
    // jmp $
    let error = derail(&mut guest, 0xfeeb);
    assert_eq!(
        error.to_string(),
        "the guest did not get past step 1, the read of 0xc0000081 within 100ms"
    );
    guest.set_patience(PATIENCE);
    works(&mut guest);
}

#[test]
fn script_of_guest_runs_without_time_limit() {
    let Some(mut guest) = guest() else { return };
    guest.set_patience(Duration::MAX);
    works(&mut guest);
}

#[test]
fn guest_shutdown_is_an_error_that_names_step_of_script() {
    let Some(mut guest) = guest() else { return };
    // ud2, for which the guest has no handler
    let error = derail(&mut guest, 0x0b0f);
    assert_eq!(
        error.to_string(),
        "the guest stopped unexpectedly at step 1, the read of 0xc0000081, with Shutdown"
    );
    works(&mut guest);
}

#[test]
fn guest_port_write_is_an_error_that_names_step_of_script() {
    let Some(mut guest) = guest() else { return };
    // out 0x80, al
    let error = derail(&mut guest, 0x80e6);
    let text = error.to_string();
    assert!(
        text.starts_with(
            "the guest stopped unexpectedly at step 1, the read of 0xc0000081, with IoOut(128"
        ),
        "{text}"
    );
    works(&mut guest);
}

#[test]
fn load_of_script_discards_pending_exit() {
    let Some(mut guest) = guest() else { return };
    crate::sys::calls::enable_reasons(&guest.vm, crate::RawReasons::new(7)).unwrap();
    guest.load(&[Op::Read(MsrIndex::new(0x1234_5678))]).unwrap();
    assert!(matches!(guest.resume(), Ok(Stop::Msr(_))));
    works(&mut guest);
}

#[test]
fn run_splits_script_that_is_longer_than_memory_of_guest_holds() {
    let Some(mut guest) = guest() else { return };
    let values = 0..Guest::LONGEST as u64 + 10;
    let script: Vec<_> = values
        .clone()
        .flat_map(|value| [Op::Write(STAR, value), Op::Read(STAR)])
        .map(|op| (op, StepReply::Fault))
        .collect();
    let seen = guest.run(&script).unwrap();
    assert_eq!(seen.len(), script.len());
    for (value, pair) in values.zip(seen.chunks(2)) {
        assert_eq!(pair[1].outcome, crate::measure::GuestOutcome::Value(value));
    }
}
