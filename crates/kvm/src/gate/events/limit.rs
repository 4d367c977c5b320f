//! A limit on the number of events of one kind in a second, so that a guest that accesses one register all
//! the time does not hide its accesses to other registers.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::Disposition;

use crate::gate::kinds::Kind;

/// The number of counters of a limit. Kinds of events that hash to the same counter share one limit.
const PLACES: usize = 64;

/// The limit of one vCPU on its events: for each kind, a number of events in a second. For each kind, the
/// second begins with the first event of that kind.
pub(in crate::gate) struct Limit {
    per_second: u32,
    places: Box<[Place; PLACES]>,
    /// The counter of the events of all kills. Events of other accesses do not share this counter, so a
    /// guest cannot hide a kill by them.
    kills: Place,
}

#[derive(Clone, Copy, Default)]
struct Place {
    began: u64,
    count: u32,
    /// The number of events that were held back since the last event that went into the queue.
    held_back: u32,
}

/// The decision on an event: it goes into the queue, or it is only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Passage {
    /// The event goes into the queue; `held_back` events just before it did not.
    Passes { held_back: u32 },
    /// The event does not go into the queue.
    HeldBack,
}

const SECOND: u64 = 1_000_000_000;

impl Limit {
    /// Makes a limit of `per_second` events of each kind in a second.
    pub(in crate::gate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            places: Box::new([Place::default(); PLACES]),
            kills: Place::default(),
        }
    }

    /// Decides if an event at the time `now`, in nanoseconds, goes into the queue.
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
    fn event_limit_passes_first_events_and_reports_number_held_back() {
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
        // If the clock was set back, a new second begins. Otherwise events would be held back until the
        // clock is again where it was.
        assert_eq!(ask(0x10, 1), passes(0));
    }

    /// A kill is held back only by earlier kills. So a VMM that runs the guest on after each kill is not
    /// flooded.
    #[test]
    fn event_of_kill_is_held_back_only_by_earlier_kills() {
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
