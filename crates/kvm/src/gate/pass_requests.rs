//! The accesses for which the kernel's filter has been asked to open.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use msrgate_filter::{Access, MsrIndex};

use crate::errno::CallErrno;

/// What the kernel's filter has been asked to open for.
#[derive(Default)]
pub(super) struct PassRequests {
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

impl PassRequests {
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
    pub(super) fn try_out(&self, program: u64) -> PassTrial<'_> {
        let mut state = self.lock();
        let new = State {
            program,
            closed: state.closed.filter(|closed| *closed == Closed::Over),
            ..State::default()
        };
        PassTrial {
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
pub(super) struct PassTrial<'o> {
    opened: &'o PassRequests,
    before: Option<State>,
    _making: Making<'o>,
}

/// A filter is being set.
#[must_use]
pub(super) struct Making<'o>(&'o PassRequests);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PassTrial<'_> {
    /// The kernel took the program's filter.
    pub(super) fn keep(mut self) {
        self.before = None;
    }
}

impl Drop for PassTrial<'_> {
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
    fn what_is_asked_for_twice_is_opened_for_once() {
        let opened = PassRequests::default();
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
        let opened = PassRequests::default();
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
        let opened = PassRequests::default();
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
        let opened = Arc::new(PassRequests::default());
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
        let opened = PassRequests::default();
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
