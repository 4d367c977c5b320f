//! The scan for the fewest windows; [`pack`](super) says why it finds them.

use msrgate_filter::{Accesses, Bitmap, MsrIndex};

use super::Window;
use super::need::Need;
use crate::msrs::MsrRange;

const COLOURS: [Accesses; 3] = [Accesses::Read, Accesses::Write, Accesses::Both];

/// One way to cover all needs so far.
#[derive(Clone, Copy)]
struct State {
    /// One past the last MSR that each of [`COLOURS`] reaches.
    ends: [u64; 3],
    count: u32,
    /// Its newest window, in [`Scan::opened`].
    newest: Option<usize>,
}

/// A window with the one that was opened before it.
struct Opened {
    colour: usize,
    first: u64,
    before: Option<usize>,
}

struct Scan {
    opened: Vec<Opened>,
    front: Vec<State>,
}

/// The fewest windows that satisfy all needs, lowest first.
pub(super) fn fewest_windows(needs: &[Need]) -> Vec<Window> {
    let start = State {
        ends: [0; 3],
        count: 0,
        newest: None,
    };
    let mut scan = Scan {
        opened: Vec::new(),
        front: vec![start],
    };
    for need in needs {
        scan.satisfy(need);
    }
    scan.windows()
}

impl Scan {
    /// Extends every state until it satisfies `need` from end to end.
    fn satisfy(&mut self, need: &Need) {
        let own = COLOURS
            .iter()
            .position(|&colour| colour == need.accesses)
            .unwrap_or(0);
        let end = u64::from(need.msrs.last().get()) + 1;
        let mut at = u64::from(need.msrs.first().get());
        while at < end {
            let mut next = Vec::with_capacity(self.front.len() * 2);
            for state in std::mem::take(&mut self.front) {
                if state.satisfied_up_to(own) > at {
                    next.push(state);
                } else {
                    let others = [(own + 1) % 3, (own + 2) % 3];
                    next.push(self.open(state, own, at));
                    let opened = others.iter().fold(state, |state, &other| {
                        if state.ends[other] > at {
                            state
                        } else {
                            self.open(state, other, at)
                        }
                    });
                    next.push(opened);
                }
            }
            self.front = undominated(next, at);
            let satisfied = self.front.iter().map(|state| state.satisfied_up_to(own));
            at = satisfied.min().unwrap_or(end);
        }
    }

    fn open(&mut self, mut state: State, colour: usize, first: u64) -> State {
        self.opened.push(Opened {
            colour,
            first,
            before: state.newest,
        });
        state.ends[colour] = end_of(first);
        state.count += 1;
        state.newest = Some(self.opened.len() - 1);
        state
    }

    fn windows(self) -> Vec<Window> {
        let best = self.front.iter().min_by_key(|state| state.count);
        let mut next = best.and_then(|state| state.newest);
        let mut windows = Vec::new();
        while let Some(opened) = next.map(|newest| &self.opened[newest]) {
            let ends = [opened.first, end_of(opened.first) - 1].map(u32::try_from);
            if let [Ok(first), Ok(last)] = ends
                && let Some(msrs) = MsrRange::new(MsrIndex::new(first), MsrIndex::new(last))
            {
                windows.push(Window {
                    colour: COLOURS[opened.colour],
                    msrs,
                });
            }
            next = opened.before;
        }
        windows.reverse();
        windows
    }
}

impl State {
    /// Where the first MSR is that a need of this colour leaves unsatisfied: its own colour does,
    /// or both others.
    fn satisfied_up_to(&self, own: usize) -> u64 {
        let [a, b] = [(own + 1) % 3, (own + 2) % 3].map(|other| self.ends[other]);
        self.ends[own].max(a.min(b))
    }

    fn is_dominated_by(&self, other: &Self, at: u64) -> bool {
        let reaches = |end: u64, other: u64| end <= other || end <= at;
        self.count >= other.count
            && (0..3).all(|colour| reaches(self.ends[colour], other.ends[colour]))
    }
}

/// One past the last MSR of a window that begins at `first`. None ends at 2^32 (S3.5).
fn end_of(first: u64) -> u64 {
    (first + u64::from(Bitmap::MAX_COUNT)).min(u64::from(u32::MAX))
}

/// The states that may still win; of two that are worth the same, the earlier.
fn undominated(states: Vec<State>, at: u64) -> Vec<State> {
    let mut kept: Vec<State> = Vec::with_capacity(states.len());
    for state in states {
        if !kept.iter().any(|other| state.is_dominated_by(other, at)) {
            kept.retain(|other| !other.is_dominated_by(&state, at));
            kept.push(state);
        }
    }
    kept
}
