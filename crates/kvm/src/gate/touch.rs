//! Which accesses of a VM have been seen, and for which the kernel's filter has been asked to open.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use msrgate_filter::{Access, MsrIndex};

use super::Gate;
use crate::errno::CallErrno;

/// Accesses that a VM remembers to have seen: 64 KiB.
const SEEN: usize = 8192;

/// From which bit on a slot has the program's number.
const PROGRAM: u32 = 34;

/// The (MSR, access) pairs that a VM's guest has touched. Lock-free: any vCPU may ask and add.
pub(super) struct Seen {
    slots: Box<[AtomicU64]>,
}

/// An access of the VM's guest that was to be told the first time: see
/// [`Gate::touched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Touched {
    /// To which MSR.
    pub index: MsrIndex,
    /// In which direction.
    pub access: Access,
}

/// Whether an access is the VM's first of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    First,
    Again,
    /// More kinds than can be remembered have been seen: nobody knows.
    Forgotten,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SEEN).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes an access under the program of this number: what one program let pass in silence may be
    /// what the next one is to tell of.
    pub(super) fn touch(&self, program: u64, index: MsrIndex, access: Access) -> Touch {
        let key = program << PROGRAM | u64::from(index.get()) << 2 | (access as u64) << 1 | 1;
        let home = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
        let home = usize::try_from(home).unwrap_or(0);
        for offset in 0..64 {
            let slot = &self.slots[(home + offset) % SEEN];
            let held = slot.load(Ordering::Relaxed);
            if held == key {
                return Touch::Again;
            }
            if held == 0 {
                match slot.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Touch::First,
                    Err(other) if other == key => return Touch::Again,
                    Err(_) => {}
                }
            }
        }
        Touch::Forgotten
    }

    /// What was seen under the program of this number, in order.
    pub(super) fn under(&self, program: u64) -> Vec<Touched> {
        let keys = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let of_it = keys.filter(|key| key & 1 == 1 && key >> PROGRAM == program);
        let mut touched: Vec<_> = of_it.filter_map(Touched::of_key).collect();
        touched.sort_unstable();
        touched
    }

    /// The program of this number is in force, under which everything is seen anew: what there is of
    /// others makes room.
    pub(super) fn begin(&self, program: u64) {
        for slot in &self.slots {
            if slot.load(Ordering::Relaxed) >> PROGRAM != program {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Gate {
    /// The accesses that were to be told the first time and have come, under the program in force, in
    /// order: with `log = "first"` all that came to the gate, but for those that ended the VM; with
    /// `mode = "audit"` those that the program would refuse. With other levels of `log` there are none.
    ///
    /// It is what to learn a policy from, once the guest has done what it is to do: such an access
    /// becomes an event once, and passes by the gate from then on, so that an event which is lost comes no
    /// second time. What is here stays, whatever became of the event.
    ///
    /// There are 8,192 places, and 64 of them where an access may be. What finds none is missing here, and is
    /// an event each time that it comes: from some five thousand accesses on, all over the MSR space, or
    /// before if the guest picks its MSRs for that. Another program, by [`Self::replace`] or as the first
    /// vCPU chooses a variant, begins with none. This waits for a replacement that is under way.
    #[must_use]
    pub fn touched(&self) -> Vec<Touched> {
        let _control = self.shared.lock();
        let program = self.shared.current.get().number;
        self.shared.seen.under(program)
    }
}

impl Touched {
    fn of_key(key: u64) -> Option<Self> {
        let index = u32::try_from(key >> 2 & u64::from(u32::MAX)).ok()?;
        let access = usize::from(key & 2 != 0);
        Some(Self {
            index: MsrIndex::new(index),
            access: *Access::ALL.get(access)?,
        })
    }
}

/// What the kernel's filter has been asked to open for.
#[derive(Default)]
pub(super) struct Opened {
    state: Mutex<State>,
    asked: Condvar,
    /// How many filters are being set.
    making: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// The number of the program that all this is about.
    program: u64,
    /// What the filter opens for, or will with the next one.
    all: BTreeSet<(Access, MsrIndex)>,
    /// What was asked for since the filter was last set.
    waiting: Vec<(Access, MsrIndex)>,
    /// Why nothing is opened any more.
    closed: Option<Closed>,
}

/// Why no filter is set any more for what vCPUs ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// The kernel refused one. A program that is put in force later opens anew.
    Refused(CallErrno),
    /// There is no publisher any more: its gate has been dropped, or it panicked.
    Over,
}

/// What to open for.
pub(super) struct Wanted {
    /// Everything, in order.
    pub(super) all: Vec<(MsrIndex, Access)>,
    /// What vCPUs are waiting for now, in order.
    pub(super) waiting: Vec<(MsrIndex, Access)>,
}

/// So many accesses the filter is opened for at most, before it is closed again but for those that
/// are waited for.
const MOST: usize = 4096;

impl Opened {
    /// Asks for an access to be let through, by the program of this number. If another is in force,
    /// nothing comes of it: the guest executes the access again, the vCPU follows, and asks again.
    ///
    /// # Errors
    /// Nobody would let it through: a vCPU that waited for it would do so for ever.
    pub(super) fn ask(&self, program: u64, index: MsrIndex, access: Access) -> Result<(), Closed> {
        let mut state = self.lock();
        match state.closed {
            Some(Closed::Over) => return Err(Closed::Over),
            _ if state.program != program => return Ok(()),
            Some(closed) => return Err(closed),
            None => {}
        }
        let is_new = state.all.insert((access, index));
        if is_new {
            state.waiting.push((access, index));
        }
        // The publisher runs at once, on this processor if there is no other: not into this lock.
        drop(state);
        if is_new {
            self.asked.notify_one();
        }
        Ok(())
    }

    /// Waits until something is asked for; `None` when it is over.
    pub(super) fn wait(&self) -> Option<()> {
        let mut state = self.lock();
        while state.waiting.is_empty() && state.closed != Some(Closed::Over) {
            let waited = self.asked.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (state.closed != Some(Closed::Over)).then_some(())
    }

    /// Whether something is asked for that nobody has taken yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether the kernel has the filter that all who asked wait for: an access that it still refuses, it
    /// refuses by another.
    pub(super) fn is_settled(&self) -> bool {
        // In this order: what is taken is being made, from before it was taken.
        !self.is_waiting() && self.making.load(Ordering::Acquire) == 0
    }

    /// A filter is being set, until what this returns is dropped.
    pub(super) fn making(&self) -> Making<'_> {
        self.making.fetch_add(1, Ordering::AcqRel);
        Making(self)
    }

    /// What to open for; `None` if nothing is asked for any more. Under the lock of who sets filters,
    /// so that it is of the program in force.
    pub(super) fn take(&self) -> Option<Wanted> {
        let mut state = self.lock();
        (!state.waiting.is_empty()).then(|| state.take())
    }

    /// The filter is to open for nothing but these: for all together there is no room.
    pub(super) fn keep_only(&self, these: &[(MsrIndex, Access)]) {
        let mut state = self.lock();
        // What was asked for since is in a filter to come.
        let waiting = state.waiting.clone();
        state.all = these
            .iter()
            .map(|&(index, access)| (access, index))
            .collect();
        state.all.extend(waiting);
    }

    /// The program of this number is in force, for now: what had been opened for was the old one's.
    #[must_use = "it is withdrawn at once"]
    pub(super) fn try_out(&self, program: u64) -> OpenedTrial<'_> {
        let mut state = self.lock();
        let new = State {
            program,
            closed: state.closed.filter(|closed| *closed == Closed::Over),
            ..State::default()
        };
        OpenedTrial {
            opened: self,
            _making: self.making(),
            before: Some(std::mem::replace(&mut state, new)),
        }
    }

    fn withdraw(&self, before: State) {
        let mut state = self.lock();
        let is_over = state.closed == Some(Closed::Over);
        *state = before;
        if is_over {
            state.closed = Some(Closed::Over);
        }
        self.asked.notify_one();
    }

    /// The kernel refuses the filter.
    pub(super) fn refuse(&self, errno: CallErrno) {
        let mut state = self.lock();
        state.closed.get_or_insert(Closed::Refused(errno));
    }

    /// There is no publisher any more.
    pub(super) fn end(&self) {
        self.lock().closed = Some(Closed::Over);
        self.asked.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program in force is so for now. When this is dropped, the one before is again, and what had
/// been opened for it still is.
pub(super) struct OpenedTrial<'o> {
    opened: &'o Opened,
    before: Option<State>,
    _making: Making<'o>,
}

/// A filter is being set.
#[must_use]
pub(super) struct Making<'o>(&'o Opened);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::AcqRel);
    }
}

impl OpenedTrial<'_> {
    /// The kernel took the program's filter.
    pub(super) fn keep(mut self) {
        self.before = None;
    }
}

impl Drop for OpenedTrial<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.opened.withdraw(before);
        }
    }
}

impl State {
    fn take(&mut self) -> Wanted {
        let mut waiting: Vec<_> = std::mem::take(&mut self.waiting);
        waiting.sort_unstable();
        if self.all.len() > MOST {
            self.all = waiting.iter().copied().collect();
        }
        let swap = |&(access, index): &(Access, MsrIndex)| (index, access);
        Wanted {
            all: self.all.iter().map(swap).collect(),
            waiting: waiting.iter().map(swap).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use super::*;

    const fn msr(index: u32) -> MsrIndex {
        MsrIndex::new(index)
    }

    #[test]
    fn each_access_is_first_once_and_directions_are_apart() {
        let seen = Seen::new();
        for index in [0, 0x10, 0xc000_0082, u32::MAX] {
            for access in Access::ALL {
                assert_eq!(seen.touch(0, msr(index), access), Touch::First);
                assert_eq!(seen.touch(0, msr(index), access), Touch::Again);
                assert_eq!(seen.touch(1, msr(index), access), Touch::First);
            }
        }
        let all: Vec<_> = [0, 0x10, 0xc000_0082, u32::MAX]
            .into_iter()
            .flat_map(|index| Access::ALL.map(|access| (msr(index), access)))
            .map(|(index, access)| Touched { index, access })
            .collect();
        assert_eq!((seen.under(0), seen.under(1)), (all.clone(), all.clone()));
        assert_eq!(seen.under(2), []);
        seen.begin(1);
        assert_eq!((seen.under(0), seen.under(1)), (vec![], all));
        assert_eq!(seen.touch(1, msr(0), Access::Read), Touch::Again);
        assert_eq!(seen.touch(0, msr(0), Access::Read), Touch::First);
    }

    /// Of threads that touch the same, one is first.
    #[test]
    fn one_vcpu_is_first() {
        let seen = Seen::new();
        let first = || {
            let touches = (0..2000).map(|index| seen.touch(0, msr(index), Access::Read));
            touches.filter(|&touch| touch == Touch::First).count()
        };
        let sum: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(sum, 2000);
    }

    #[test]
    fn a_guest_that_touches_everything_is_not_remembered() {
        let seen = Seen::new();
        let forgotten = (0..100_000)
            .map(|index| seen.touch(0, msr(index), Access::Read))
            .filter(|&touch| touch == Touch::Forgotten)
            .count();
        assert!(forgotten > 100_000 - SEEN - 1, "{forgotten}");
    }

    #[test]
    fn what_is_asked_for_twice_is_opened_for_once() {
        let opened = Opened::default();
        opened.ask(0, msr(0x20), Access::Read).unwrap();
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        opened.ask(0, msr(0x20), Access::Read).unwrap();
        opened.wait().unwrap();
        let wanted = opened.take().unwrap();
        assert_eq!(
            wanted.waiting,
            [(msr(0x10), Access::Read), (msr(0x20), Access::Read)]
        );
        opened.ask(0, msr(0x10), Access::Write).unwrap();
        let wanted = opened.take().unwrap();
        assert_eq!(wanted.waiting, [(msr(0x10), Access::Write)]);
        assert_eq!(wanted.all.len(), 3);
        opened.keep_only(&wanted.waiting);
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        assert_eq!(opened.take().unwrap().all.len(), 2);
        assert!(opened.take().is_none());
        let refused = CallErrno::Known(msrgate_filter::Errno::Einval);
        opened.refuse(refused);
        let asked = opened.ask(0, msr(0x30), Access::Read);
        assert_eq!(asked, Err(Closed::Refused(refused)));
        opened.try_out(1).keep();
        assert_eq!(opened.ask(1, msr(0x30), Access::Read), Ok(()));
        opened.end();
        assert_eq!(opened.ask(1, msr(0x31), Access::Read), Err(Closed::Over));
        assert!(opened.wait().is_none());
    }

    /// What one program has seen is not what the filter opens for under another.
    #[test]
    fn each_program_asks_for_itself() {
        let opened = Opened::default();
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        opened.wait().unwrap();
        let trial = opened.try_out(1);
        assert!(opened.take().is_none());
        // Of a vCPU that has not followed yet.
        opened.ask(0, msr(0x11), Access::Read).unwrap();
        assert!(opened.take().is_none());
        opened.ask(1, msr(0x20), Access::Read).unwrap();
        trial.keep();
        let wanted = opened.take().unwrap();
        assert_eq!(wanted.all, [(msr(0x20), Access::Read)]);
        // What the kernel refused of one is no error of another, and the end of all is.
        opened.refuse(CallErrno::Known(msrgate_filter::Errno::Einval));
        assert_eq!(opened.ask(2, msr(0x10), Access::Read), Ok(()));
        opened.end();
        assert_eq!(opened.ask(2, msr(0x10), Access::Read), Err(Closed::Over));
    }

    /// Whatever is asked for, taken or tried is not settled before it is done.
    #[test]
    fn what_is_being_set_is_not_settled() {
        let opened = Opened::default();
        assert!(opened.is_settled());
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        assert!(!opened.is_settled());
        let making = opened.making();
        opened.take().unwrap();
        assert!(!opened.is_settled());
        drop(making);
        assert!(opened.is_settled());
        let trial = opened.try_out(1);
        assert!(!opened.is_settled());
        trial.keep();
        assert!(opened.is_settled());
    }

    /// Who waits for something to be asked for is told of what was asked for before a trial.
    #[test]
    fn what_was_asked_for_is_told_after_a_trial() {
        let opened = Arc::new(Opened::default());
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        let trial = opened.try_out(1);
        let (told, was_told) = channel();
        let waits = Arc::clone(&opened);
        std::thread::spawn(move || told.send(waits.wait()));
        let early = was_told.recv_timeout(Duration::from_millis(50));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        drop(trial);
        let late = was_told.recv_timeout(Duration::from_secs(20));
        assert_eq!(late, Ok(Some(())));
    }

    /// The kernel refused a program's filter: what the one before had opened is open.
    #[test]
    fn what_was_open_is_open_after_a_trial() {
        let opened = Opened::default();
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        opened.take().unwrap();
        opened.ask(0, msr(0x11), Access::Read).unwrap();
        let trial = opened.try_out(1);
        opened.ask(1, msr(0x20), Access::Read).unwrap();
        drop(trial);
        let wanted = opened.take().unwrap();
        assert_eq!(wanted.waiting, [(msr(0x11), Access::Read)]);
        assert_eq!(wanted.all.len(), 2);
        let trial = opened.try_out(2);
        opened.end();
        drop(trial);
        assert_eq!(opened.ask(0, msr(0x12), Access::Read), Err(Closed::Over));
    }
}
