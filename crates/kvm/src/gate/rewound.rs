//! How long a vCPU has had one access executed again and again: for ever, if the VM's filter is not
//! the gate's.

use std::time::{Duration, Instant};

use msrgate_filter::{Access, MsrIndex};

/// An access under the program of a number.
type Waited = (u64, MsrIndex, Access);

/// The access that was rewound last.
pub(super) struct Rewound(Option<Stretch>);

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

/// How long one access is rewound for. A filter takes the kernel milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// After so long without it the guest has gone on meanwhile, and comes again.
const PAUSE: Duration = Duration::from_secs(1);

impl Rewound {
    /// None was, since an exit was answered.
    pub(super) const fn never() -> Self {
        Self(None)
    }

    /// An access is rewound, perhaps once more.
    pub(super) fn again(&mut self, waited: Waited, now: Instant) -> Wait {
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
    fn rewind(rewound: &mut Rewound, program: u64, start: Instant, halves: u32) -> Wait {
        let mut wait = Wait::Begin;
        for half in 0..halves {
            let now = start + Duration::from_millis(500) * half;
            wait = rewound.again((program, STAR, Access::Read), now);
        }
        wait
    }

    #[test]
    fn one_access_without_a_pause_is_too_long() {
        let start = Instant::now();
        let mut rewound = Rewound::never();
        assert_eq!(rewind(&mut rewound, 0, start, 11), Wait::GoOn);
        let next = start + Duration::from_millis(5500);
        let access = |access| (0, STAR, access);
        assert_eq!(rewound.again(access(Access::Write), next), Wait::Begin);
        assert_eq!(rewind(&mut Rewound::never(), 0, start, 12), Wait::TooLong);
    }

    /// A guest that is idle but for one register comes to the gate only when a program has been
    /// replaced: that is no filter of somebody else's.
    #[test]
    fn a_pause_or_another_program_begins_anew() {
        let start = Instant::now();
        let mut rewound = Rewound::never();
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
