//! The pass requests: vCPUs ask the publisher to open the kernel's filter for these accesses.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use msrgate_filter::{Access, MsrIndex};

use crate::errno::CallErrno;

/// The pass requests of all vCPUs of a VM.
#[derive(Default)]
pub(super) struct PassRequests {
    state: Mutex<State>,
    asked: Condvar,
    /// The function that hands a publication to a thread of the VMM's, if the gate has no publisher's thread.
    hand_over: Option<Box<dyn Fn() + Send + Sync>>,
    /// The number of filters that threads are setting in the kernel now.
    making: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// The number of the program under which the requests were made.
    program: u64,
    /// The accesses that the kernel's filter is open for, or that the next filter will be open for.
    all: BTreeSet<(Access, MsrIndex)>,
    /// The accesses that were requested since the filter was last set.
    waiting: Vec<(Access, MsrIndex)>,
    /// The reason why the filter is no longer opened for any request; `None` as long as the filter is
    /// opened.
    closed: Option<Closed>,
}

/// The reasons why no filter is set any more for the vCPUs' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// The kernel refused a filter. A program that is put in force later starts without this error.
    Refused(CallErrno),
    /// The publisher has ended: its gate has been dropped, or the publisher panicked.
    Over,
}

/// The accesses for which the publisher is to open the filter.
pub(super) struct Wanted {
    /// All accesses that the filter should be open for, sorted.
    pub(super) all: Vec<(MsrIndex, Access)>,
    /// The accesses that vCPUs are waiting for now, sorted.
    pub(super) waiting: Vec<(MsrIndex, Access)>,
}

/// The largest number of accesses that the filter is opened for. If more accesses are requested, the filter
/// is closed again for all accesses except those for which vCPUs wait.
const MOST: usize = 4096;

/// The state of a request for the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The request is new: the access was refused by a filter that is about to be replaced.
    Newly,
    /// The access was requested before, or another program is in force.
    Before,
}

impl PassRequests {
    /// Makes an empty list. `hand_over`, if it is given, is called when a request waits and none has waited
    /// before.
    pub(super) fn handed_over(hand_over: Option<Box<dyn Fn() + Send + Sync>>) -> Self {
        Self {
            hand_over,
            ..Self::default()
        }
    }

    /// Wakes the publisher's thread, or hands the work to a thread of the VMM's. The caller does not hold
    /// the lock: the publisher needs it, and if there is only one processor, it may run there at once.
    fn wake(&self) {
        match &self.hand_over {
            Some(hand_over) => hand_over(),
            None => self.asked.notify_one(),
        }
    }

    /// Asks the publisher to let an access through, for the program of this number. If another program is in
    /// force, the request is ignored: the guest then executes the access again, and the vCPU takes over the
    /// program in force and asks again.
    ///
    /// # Errors
    /// The reason why no filter will let the access through. A vCPU that waited for that filter would
    /// wait for ever.
    pub(super) fn ask(
        &self,
        program: u64,
        index: MsrIndex,
        access: Access,
    ) -> Result<Asked, Closed> {
        let mut state = self.lock();
        match state.closed {
            Some(Closed::Over) => return Err(Closed::Over),
            _ if state.program != program => return Ok(Asked::Before),
            Some(closed) => return Err(closed),
            None => {}
        }
        let is_first = state.waiting.is_empty();
        let is_new = state.all.insert((access, index));
        if is_new {
            state.waiting.push((access, index));
        }
        drop(state);
        // The publisher takes all requests at once, so those that wait already have woken it.
        if is_new && is_first {
            self.wake();
        }
        Ok(if is_new { Asked::Newly } else { Asked::Before })
    }

    /// Waits until an access is requested. Returns `None` once the publisher is to end.
    pub(super) fn wait(&self) -> Option<()> {
        let mut state = self.lock();
        while state.waiting.is_empty() && state.closed != Some(Closed::Over) {
            let waited = self.asked.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (state.closed != Some(Closed::Over)).then_some(())
    }

    /// Returns the accesses that the kernel's filter is open for.
    pub(super) fn all(&self) -> Vec<(MsrIndex, Access)> {
        let state = self.lock();
        let all = state.all.iter();
        all.map(|&(access, index)| (index, access)).collect()
    }

    /// Tells if there is a request that the publisher has not taken yet.
    pub(super) fn is_waiting(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Tells if the kernel has the filter that lets all requested accesses through. If the kernel still
    /// refuses a requested access, something other than the gate has set another filter.
    pub(super) fn is_settled(&self) -> bool {
        // The order matters: `making` counts a filter before the requests for it are taken.
        !self.is_waiting() && self.making.load(Ordering::Acquire) == 0
    }

    /// Counts a filter as being set until the returned guard is dropped.
    pub(super) fn making(&self) -> Making<'_> {
        self.making.fetch_add(1, Ordering::AcqRel);
        Making(self)
    }

    /// Takes all requests for the publisher; `None` if there are no requests, or if the publisher has ended.
    /// The caller holds the lock of `Control`, so that the requests are of the program in force.
    pub(super) fn take(&self) -> Option<Wanted> {
        let mut state = self.lock();
        let is_over = state.closed == Some(Closed::Over);
        (!state.waiting.is_empty() && !is_over).then(|| state.take())
    }

    /// Forgets all requested accesses but these, because a filter that is open for all requested accesses
    /// needs too many ranges.
    pub(super) fn keep_only(&self, accesses: &[(MsrIndex, Access)]) {
        let mut state = self.lock();
        // The next filter is also open for the accesses that were requested in the meantime.
        let waiting = state.waiting.clone();
        state.all = accesses
            .iter()
            .map(|&(index, access)| (access, index))
            .collect();
        state.all.extend(waiting);
    }

    /// Puts the program of this number on trial, until the kernel has accepted its filter. The requests of
    /// the old program are set aside.
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
        let is_waiting = !state.waiting.is_empty();
        drop(state);
        if is_waiting {
            self.wake();
        }
    }

    /// Notes that the kernel has refused the publisher's filter.
    pub(super) fn refuse(&self, errno: CallErrno) {
        let mut state = self.lock();
        state.closed.get_or_insert(Closed::Refused(errno));
    }

    /// Notes that the publisher has ended.
    pub(super) fn end(&self) {
        self.lock().closed = Some(Closed::Over);
        self.asked.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The trial of a program, which lasts until the kernel has accepted its filter. If the trial is dropped
/// before that, the requests under the previous program are restored.
pub(super) struct PassTrial<'o> {
    opened: &'o PassRequests,
    before: Option<State>,
    _making: Making<'o>,
}

/// The guard that counts a filter as being set, until the guard is dropped.
#[must_use]
pub(super) struct Making<'o>(&'o PassRequests);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PassTrial<'_> {
    /// Ends the trial: the kernel has accepted the program's filter.
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
    fn publisher_takes_repeated_request_for_same_access_once() {
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
        assert_eq!(opened.ask(1, msr(0x30), Access::Read), Ok(Asked::Newly));
        opened.end();
        assert_eq!(opened.ask(1, msr(0x31), Access::Read), Err(Closed::Over));
        assert!(opened.wait().is_none());
    }

    /// Under one program, the filter is not opened for an access that was requested under another program.
    #[test]
    fn request_to_open_filter_under_program_not_in_force_is_ignored() {
        let opened = PassRequests::default();
        opened.ask(0, msr(0x10), Access::Read).unwrap();
        opened.wait().unwrap();
        let trial = opened.try_out(1);
        assert!(opened.take().is_none());
        // The vCPU that asks here still answers by the old program.
        opened.ask(0, msr(0x11), Access::Read).unwrap();
        assert!(opened.take().is_none());
        opened.ask(1, msr(0x20), Access::Read).unwrap();
        trial.keep();
        let wanted = opened.take().unwrap();
        assert_eq!(wanted.all, [(msr(0x20), Access::Read)]);
        // A filter that the kernel refused for one program is no error for another program. The end of the
        // publisher is an error for every program.
        opened.refuse(CallErrno::Known(msrgate_filter::Errno::Einval));
        assert_eq!(opened.ask(2, msr(0x10), Access::Read), Ok(Asked::Before));
        opened.end();
        assert_eq!(opened.ask(2, msr(0x10), Access::Read), Err(Closed::Over));
    }

    /// `is_settled` is false while a request waits, while a filter is being set, and while a program is on
    /// trial.
    #[test]
    fn pass_requests_are_not_settled_until_requested_filter_is_set() {
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

    /// A request that was made before the trial of a program is restored when the trial is withdrawn, and
    /// then wakes the publisher from `wait`.
    #[test]
    fn publisher_wakes_for_earlier_request_once_trial_of_program_is_withdrawn() {
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

    /// If the trial of a program is withdrawn, because the kernel refused the program's filter, the list of
    /// accesses for which the filter is open is again the one of the previous program.
    #[test]
    fn withdrawn_trial_of_program_restores_list_of_opened_accesses() {
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
