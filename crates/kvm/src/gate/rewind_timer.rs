//! A timer for the rewinds of one access by a vCPU. If something other than the gate has set the VM's
//! filter, the rewinds would otherwise never end.

use std::time::{Duration, Instant};

use msrgate_filter::{Access, MsrIndex};

/// An access that waits for its filter, and the number of the program that allows the access.
type Waited = (u64, MsrIndex, Access);

/// A timer for the access that the vCPU rewound last.
pub(super) struct RewindTimer(Option<Stretch>);

struct Stretch {
    waited: Waited,
    since: Instant,
    last: Instant,
}

/// The decision if the vCPU may rewind an access once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The access is rewound for the first time.
    Begin,
    GoOn,
    TooLong,
}

/// The state of the filter for which the access waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// The filter is still to be set, which a busy host may delay for any time.
    InTheMaking,
    /// The filter is set, so the access should not have been refused.
    Set,
}

/// The longest time for which a vCPU rewinds one access after the kernel has got the filter that lets the
/// access through.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after which a rewind counts as new: the guest has made progress, and has come to the
/// access again.
const PAUSE: Duration = Duration::from_secs(1);

impl RewindTimer {
    /// Makes the timer of a vCPU that has rewound no access since its last answer.
    pub(super) const fn never() -> Self {
        Self(None)
    }

    /// Returns true if the last access that the vCPU rewound is this one, and the vCPU has got no answer since.
    pub(super) fn waits_for(&self, waited: Waited) -> bool {
        let stretch = self.0.as_ref();
        stretch.is_some_and(|stretch| stretch.waited == waited)
    }

    /// Notes a rewind of an access, and decides if the vCPU may go on rewinding that access.
    pub(super) fn again(&mut self, waited: Waited, filter: Filter, now: Instant) -> Wait {
        let goes_on = |before: &&mut Stretch| {
            before.waited == waited && now.saturating_duration_since(before.last) < PAUSE
        };
        let Some(stretch) = self.0.as_mut().filter(goes_on) else {
            self.0 = Some(Stretch {
                waited,
                since: now,
                last: now,
            });
            return Wait::Begin;
        };
        stretch.last = now;
        if filter == Filter::InTheMaking {
            stretch.since = now;
        }
        if now.saturating_duration_since(stretch.since) > PATIENCE {
            Wait::TooLong
        } else {
            Wait::GoOn
        }
    }
}

/// The answer to the question if an access begins to wait for its filter only now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    Yes,
    /// The access has begun to wait before. The guest may have been idle or handled an interrupt since.
    No,
}

/// The accesses of a vCPU that were the last to begin to wait for a filter. Several may wait at once: a
/// guest may take an interrupt, or run another task, before it executes an access again.
pub(super) struct Begun([Option<Waited>; BEGUN]);

/// The number of accesses that are remembered. The filter is opened in the order of the requests: an access still waits
/// only while those that have begun later wait, too.
const BEGUN: usize = 32;

impl Begun {
    pub(super) const fn none() -> Self {
        Self([None; BEGUN])
    }

    /// Notes that an access waits for its filter.
    pub(super) fn begin(&mut self, waited: Waited) -> First {
        if self.0.contains(&Some(waited)) {
            return First::No;
        }
        self.0.rotate_right(1);
        self.0[0] = Some(waited);
        First::Yes
    }

    /// Notes that an access waits no longer, since the VMM or the guest has got an answer.
    pub(super) fn end(&mut self, waited: Waited) {
        for one in &mut self.0 {
            one.take_if(|one| *one == waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAR: MsrIndex = MsrIndex::new(0xc000_0081);

    /// Rewinds one access every half second from `start` on, `halves` times. Returns the last decision.
    fn rewind(rewound: &mut RewindTimer, program: u64, start: Instant, halves: u32) -> Wait {
        let mut wait = Wait::Begin;
        for half in 0..halves {
            let now = start + Duration::from_millis(500) * half;
            wait = rewound.again((program, STAR, Access::Read), Filter::Set, now);
        }
        wait
    }

    #[test]
    fn rewinds_of_one_access_without_pause_end_as_too_long() {
        let start = Instant::now();
        let mut rewound = RewindTimer::never();
        assert_eq!(rewind(&mut rewound, 0, start, 11), Wait::GoOn);
        let next = start + Duration::from_millis(5500);
        let access = |access| (0, STAR, access);
        let wait = rewound.again(access(Access::Write), Filter::Set, next);
        assert_eq!(wait, Wait::Begin);
        assert_eq!(
            rewind(&mut RewindTimer::never(), 0, start, 12),
            Wait::TooLong
        );
    }

    #[test]
    fn access_begins_to_wait_once_until_its_wait_ends_or_many_others_begin() {
        let mut begun = Begun::none();
        let one = |index| (0, MsrIndex::new(index), Access::Read);
        for index in [1, 2, 3] {
            assert_eq!(begun.begin(one(index)), First::Yes);
        }
        assert_eq!(begun.begin(one(1)), First::No);
        begun.end(one(1));
        assert_eq!(begun.begin(one(1)), First::Yes);
        for index in 10..42 {
            assert_eq!(begun.begin(one(index)), First::Yes);
        }
        assert_eq!(begun.begin(one(1)), First::Yes);
    }

    /// The time for which a vCPU may rewind an access begins when the filter for the access is set. On a
    /// busy host that may be late.
    #[test]
    fn rewind_timer_starts_when_filter_is_set() {
        let (start, mut rewound) = (Instant::now(), RewindTimer::never());
        let mut again = |filter, half: u32| {
            let now = start + Duration::from_millis(500) * half;
            rewound.again((0, STAR, Access::Read), filter, now)
        };
        assert_eq!(again(Filter::InTheMaking, 0), Wait::Begin);
        assert!((1..100).all(|half| again(Filter::InTheMaking, half) == Wait::GoOn));
        assert!((100..110).all(|half| again(Filter::Set, half) == Wait::GoOn));
        assert_eq!(again(Filter::Set, 110), Wait::TooLong);
    }

    /// The timer of a vCPU's rewinds starts anew after a pause, and under another program. A guest that is
    /// mostly idle and accesses one register may come to the gate only after each replacement of the
    /// program. Such an access is no sign that another filter than the gate's is in force.
    #[test]
    fn pause_or_other_program_restarts_rewind_timer() {
        let start = Instant::now();
        let mut rewound = RewindTimer::never();
        for round in 0..10 {
            let now = start + Duration::from_secs(3) * round;
            assert_eq!(rewind(&mut rewound, 0, now, 3), Wait::GoOn);
        }
        let start = start + Duration::from_secs(60);
        for program in 0..10 {
            let now = start + Duration::from_secs(4) * program;
            assert_eq!(rewind(&mut rewound, program.into(), now, 8), Wait::GoOn);
        }
    }
}
