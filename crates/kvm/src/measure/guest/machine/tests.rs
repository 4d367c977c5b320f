use std::sync::atomic::Ordering;

use super::*;
use crate::measure::observed::StepReply;

const STAR: MsrIndex = MsrIndex::new(0xc000_0081);

/// Where in a vCPU's memory, in words, these tests put code of their own.
const SPARE: usize = 0x4800 / 8;

/// A guest, or `None` with a word about it where this machine cannot run one.
fn guest() -> Option<Guest> {
    HostCaps::for_test().map(|host| Guest::new(&host, Apic::Absent).unwrap())
}

/// Three reads of STAR, the second of which runs `code` instead.
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

/// The guest is as good as new.
fn works(guest: &mut Guest) {
    let script = [
        (Op::Write(STAR, 5), StepReply::Fault),
        (Op::Read(STAR), StepReply::Fault),
    ];
    let seen = guest.run(&script).unwrap();
    assert_eq!(seen[1].outcome, crate::measure::GuestOutcome::Value(5));
}

#[test]
fn a_guest_that_never_ends_is_an_error_that_names_the_step() {
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
fn patience_may_be_without_end() {
    let Some(mut guest) = guest() else { return };
    guest.set_patience(Duration::MAX);
    works(&mut guest);
}

#[test]
fn a_guest_that_shuts_down_is_an_error_that_names_the_step() {
    let Some(mut guest) = guest() else { return };
    // ud2, for which there is no handler
    let error = derail(&mut guest, 0x0b0f);
    assert_eq!(
        error.to_string(),
        "the guest left at step 1, the read of 0xc0000081 with Shutdown"
    );
    works(&mut guest);
}

#[test]
fn a_guest_that_writes_to_a_port_is_an_error_that_names_the_step() {
    let Some(mut guest) = guest() else { return };
    // out 0x80, al
    let error = derail(&mut guest, 0x80e6);
    let text = error.to_string();
    assert!(
        text.starts_with("the guest left at step 1, the read of 0xc0000081 with IoOut(128"),
        "{text}"
    );
    works(&mut guest);
}

#[test]
fn an_exit_left_pending_is_forgotten_by_the_next_script() {
    let Some(mut guest) = guest() else { return };
    crate::sys::calls::enable_reasons(&guest.vm, crate::RawReasons::new(7)).unwrap();
    guest.load(&[Op::Read(MsrIndex::new(0x1234_5678))]).unwrap();
    assert!(matches!(guest.resume(), Ok(Stop::Msr(_))));
    works(&mut guest);
}

#[test]
fn a_script_may_be_longer_than_the_mailbox() {
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
