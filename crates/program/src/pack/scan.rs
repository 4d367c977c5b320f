//! The scan of the MSRs that finds the fewest windows. The documentation of [`pack`](super)
//! explains why the scan finds them.

use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use msrgate_filter::{Accesses, Bitmap, MsrIndex};

use super::need::Need;
use super::window::Window;
use crate::msrs::MsrRange;

const COLOURS: [Accesses; 3] = [Accesses::Read, Accesses::Write, Accesses::Both];

/// A choice of windows that satisfies all needs up to the current MSR.
#[derive(Clone, Copy)]
struct State {
    /// The ends of the windows of each colour in [`COLOURS`]: the MSR directly after the last MSR that
    /// windows of the colour contain.
    ends: [u64; 3],
    count: u32,
    /// The newest window: a position in [`Scan::opened`], counted from 1.
    newest: Option<NonZeroU32>,
}

/// A window, with the window that was opened before it. The struct is small because the scan may open a
/// million windows for a policy that does not fit into a filter.
struct Opened {
    first: MsrIndex,
    before: Option<NonZeroU32>,
    colour: u8,
}

struct Scan {
    opened: Vec<Opened>,
    front: Vec<State>,
}

/// Returns the fewest windows that satisfy all needs, lowest first.
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
    /// Adds windows to every state until its windows satisfy `need` for all MSRs of `need`.
    fn satisfy(&mut self, need: &Need) {
        let own = COLOURS
            .iter()
            .position(|&colour| colour == need.accesses)
            .unwrap_or(0);
        let end = u64::from(need.msrs.last().get()) + 1;
        let mut at = u64::from(need.msrs.first().get());
        while at < end {
            let mut next = Vec::with_capacity(self.front.len() * 2);
            for state in core::mem::take(&mut self.front) {
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
            // Each window contains at least its first MSR, except for a window at MSR 0xffffffff (S3.5).
            // `pack` refuses verdicts that need such a window.
            match satisfied.min() {
                Some(next) if next > at => at = next,
                _ => return,
            }
        }
    }

    fn open(&mut self, mut state: State, colour: usize, first: u64) -> State {
        self.opened.push(Opened {
            // Both conversions succeed: `first` is the number of an MSR, and `colour` is below 3.
            first: MsrIndex::new(u32::try_from(first).unwrap_or(u32::MAX)),
            before: state.newest,
            colour: u8::try_from(colour).unwrap_or(u8::MAX),
        });
        state.ends[colour] = end_of(first);
        state.count += 1;
        state.newest = u32::try_from(self.opened.len())
            .ok()
            .and_then(NonZeroU32::new);
        state
    }

    fn windows(self) -> Vec<Window> {
        let best = self.front.iter().min_by_key(|state| state.count);
        let mut next = best.and_then(|state| state.newest);
        let mut windows = Vec::new();
        while let Some(opened) = next.and_then(|newest| self.opened.get(newest.get() as usize - 1))
        {
            let end = end_of(opened.first.get().into());
            if let Some(msrs) = MsrRange::below(opened.first.get().into(), end) {
                windows.push(Window {
                    colour: COLOURS[usize::from(opened.colour)],
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
    /// Returns the first MSR at which a need of the colour `own` is no longer satisfied: neither
    /// its own colour reaches that MSR, nor do both other colours.
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

/// Returns the MSR directly after the longest window that begins at `first`. No window ends at 2^32
/// (S3.5).
fn end_of(first: u64) -> u64 {
    (first + u64::from(Bitmap::MAX_COUNT)).min(u64::from(u32::MAX))
}

/// Returns the states that may still lead to the fewest windows. Of two equivalent states, the
/// earlier one is kept.
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
