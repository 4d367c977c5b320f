//! How long a vCPU has had one access executed again and again: for ever, if the VM's filter is not
//! the gate's.

use std::time::{Duration, Instant};

use msrgate_filter::{Access, MsrIndex};

/// An access under the program of a number.
type Waited = (u64, MsrIndex, Access);

/// The access that was rewound last.
pub(super) struct RewindTimer(Option<Stretch>);

struct Stretch {
    waited: Waited,
    since: Instant,
    last: Instant,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For the first time.
    Begin,
    GoOn,
    TooLong,
}

/// What the access waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// A filter that is still to be set, which may take as long as a busy host takes.
    InTheMaking,
    /// Nothing any more.
    Set,
}

/// How long one access is rewound for, once the kernel has the filter that lets it through.
const PATIENCE: Duration = Duration::from_secs(5);

/// After so long without it the guest has gone on meanwhile, and comes again.
const PAUSE: Duration = Duration::from_secs(1);

impl RewindTimer {
    /// None was, since an exit was answered.
    pub(super) const fn never() -> Self {
        Self(None)
    }

    /// An access is rewound, perhaps once more.
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

#[cfg(test)]
mod tests {
    use super::*;

    const STAR: MsrIndex = MsrIndex::new(0xc000_0081);

    /// Rewinds each half second, for so many, from `start` on.
    fn rewind(rewound: &mut RewindTimer, program: u64, start: Instant, halves: u32) -> Wait {
        let mut wait = Wait::Begin;
        for half in 0..halves {
            let now = start + Duration::from_millis(500) * half;
            wait = rewound.again((program, STAR, Access::Read), Filter::Set, now);
        }
        wait
    }

    #[test]
    fn one_access_without_a_pause_is_too_long() {
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

    /// The publisher of a busy host: nothing is anybody else's as long as the filter is to come.
    #[test]
    fn patience_begins_when_the_filter_is_set() {
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

    /// A guest that is idle but for one register comes to the gate only when a program has been
    /// replaced: that is no filter of somebody else's.
    #[test]
    fn a_pause_or_another_program_begins_anew() {
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
