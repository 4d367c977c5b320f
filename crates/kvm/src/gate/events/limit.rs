//! A limit on how many events one MSR makes a second, so that a guest that hammers one register
//! does not hide what it does to others.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Disposition;

use crate::gate::kinds::Kind;

/// How many kinds of event are told apart; two that share a place share its limit.
const PLACES: usize = 64;

/// One vCPU's limit. A second begins with the first event of a kind.
pub(in crate::gate) struct Limit {
    per_second: u32,
    places: Box<[Place; PLACES]>,
    /// Of all kills, which no other event shares: by none may a guest hide them.
    kills: Place,
}

#[derive(Clone, Copy, Default)]
struct Place {
    began: u64,
    count: u32,
    /// Held back since the last one that was let through.
    held_back: u32,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Passage {
    /// It passes, and stands for so many before it that did not.
    Passes { held_back: u32 },
    /// It is counted only.
    HeldBack,
}

const SECOND: u64 = 1_000_000_000;

impl Limit {
    /// At most so many events of a kind a second.
    pub(in crate::gate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            places: Box::new([Place::default(); PLACES]),
            kills: Place::default(),
        }
    }

    /// Whether an event at `now`, in nanoseconds, passes.
    pub(in crate::gate) fn ask(
        &mut self,
        index: MsrIndex,
        access: Access,
        disposition: Disposition,
        now: u64,
    ) -> Passage {
        let kind = Kind::new(u64::from(disposition.number()), index, access);
        let place = if disposition == Disposition::Killed {
            &mut self.kills
        } else {
            &mut self.places[kind.home::<PLACES>() % PLACES]
        };
        if now.saturating_sub(place.began) >= SECOND || now < place.began {
            (place.began, place.count) = (now, 0);
        }
        if place.count >= self.per_second {
            place.held_back = place.held_back.saturating_add(1);
            return Passage::HeldBack;
        }
        place.count += 1;
        Passage::Passes {
            held_back: std::mem::take(&mut place.held_back),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_its_number_a_second_and_says_what_was_held_back() {
        let mut limit = Limit::new(2);
        let mut ask =
            |index, now| limit.ask(MsrIndex::new(index), Access::Read, Disposition::Denied, now);
        let passes = |held_back| Passage::Passes { held_back };
        assert_eq!(ask(0x10, 5), passes(0));
        assert_eq!(ask(0x10, 6), passes(0));
        assert_eq!(ask(0x10, 7), Passage::HeldBack);
        assert_eq!(ask(0x10, 8), Passage::HeldBack);
        assert_eq!(ask(0x11, 9), passes(0), "another MSR");
        assert_eq!(ask(0x10, 5 + SECOND), passes(2));
        // A clock that was set back begins anew rather than holding back for ever.
        assert_eq!(ask(0x10, 1), passes(0));
    }

    /// Whatever else there is; and a VMM that runs a guest on after each of its kills is not flooded.
    #[test]
    fn only_kills_hold_kills_back() {
        let mut limit = Limit::new(2);
        let mut ask =
            |index, disposition| limit.ask(MsrIndex::new(index), Access::Read, disposition, 5);
        for index in 0..10_000 {
            ask(index, Disposition::Denied);
        }
        let passes = Passage::Passes { held_back: 0 };
        assert_eq!(ask(0x10, Disposition::Denied), Passage::HeldBack);
        assert_eq!(ask(0x10, Disposition::Killed), passes);
        assert_eq!(ask(0x11, Disposition::Killed), passes);
        assert_eq!(ask(0x12, Disposition::Killed), Passage::HeldBack);
    }
}
