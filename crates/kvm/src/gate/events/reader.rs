//! The reading end of the event queues of a VM's vCPUs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::Program;
use msrgate_program::answer::Disposition;

use super::counters::{Count, Counters, add_one};
use super::event::{Event, EventRecord};
use super::ring::{Ring, Room};
use crate::gate::id::VcpuId;

/// The log of one vCPU: its event queue and its counters.
pub(in crate::gate) struct VcpuLog {
    id: VcpuId,
    ring: Ring,
    counters: Counters,
    /// The number of events that the limit has held back. Only the thread of the vCPU changes this number.
    held_back: AtomicU64,
}

impl VcpuLog {
    /// Counts an access. Only one thread may call this function at a time.
    pub(in crate::gate) fn count(&self, index: MsrIndex, access: Access, disposition: Disposition) {
        self.counters.add(index, access, disposition);
    }

    /// Puts an event into the queue, or counts it as dropped. Only one thread may call this function at a
    /// time.
    #[inline]
    pub(in crate::gate) fn tell(&self, happened: &EventRecord) {
        let room = if happened.disposition == Disposition::Killed {
            Room::Kept
        } else {
            Room::Shared
        };
        self.ring.put(&happened.encode(), room);
    }

    /// Counts an event that the limit holds back. Only one thread may call this function at a time.
    pub(in crate::gate) fn hold_back(&self) {
        add_one(&self.held_back);
    }

    fn lost(&self) -> Lost {
        Lost {
            dropped: self.ring.dropped(),
            held_back: self.held_back.load(Ordering::Relaxed),
        }
    }
}

/// The logs of a VM's vCPUs.
#[derive(Default)]
pub(in crate::gate) struct VcpuLogs {
    live: Mutex<Live>,
    has_reader: AtomicBool,
}

#[derive(Default)]
struct Live {
    logs: Vec<Arc<VcpuLog>>,
    /// The counters of the vCPUs whose `VcpuGate`s were dropped, added together by kind.
    gone: BTreeMap<(MsrIndex, Access, Disposition), u64>,
    others: u64,
    /// The numbers of lost events of the vCPUs whose `VcpuGate`s were dropped, by vCPU id. The map stays
    /// small, because KVM limits the number of vCPU ids.
    lost: BTreeMap<VcpuId, Lost>,
    /// The programs that may have decided an access whose event is still in a queue, the newest last.
    programs: Vec<Arc<Program>>,
}

/// The number of events of a vCPU that did not reach the reader.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Lost {
    dropped: u64,
    held_back: u64,
}

impl Lost {
    fn add_to(self, sums: &mut BTreeMap<VcpuId, Self>, id: VcpuId) {
        if self != Self::default() {
            let sum = sums.entry(id).or_default();
            sum.dropped += self.dropped;
            sum.held_back += self.held_back;
        }
    }
}

/// The largest number of gone vCPUs whose unread events are kept. The unread events of vCPUs that have been
/// gone for longer are dropped.
const UNREAD: usize = 16;

/// The largest number of kinds (MSR, access, disposition) that have a counter of their own in the counts of
/// the vCPUs that are gone. These vCPUs share one set of counters.
const KINDS: usize = 4096;

/// The largest number of programs whose policy file's name is kept for their events. An event of an older
/// program has no file name.
const PROGRAMS: usize = 16;

impl VcpuLogs {
    /// Makes a log for a vCPU, with a queue of `queue` events. This function also removes the logs of vCPUs
    /// whose `VcpuGate`s were dropped, since there may be no reader that removes them.
    pub(in crate::gate) fn add(&self, id: VcpuId, queue: usize) -> Arc<VcpuLog> {
        let log = Arc::new(VcpuLog {
            id,
            ring: Ring::new(queue),
            counters: Counters::new(),
            held_back: AtomicU64::new(0),
        });
        let mut live = self.lock();
        Self::prune(&mut live, UNREAD);
        live.logs.push(Arc::clone(&log));
        log
    }

    /// Notes that from now on this program may decide accesses that become events.
    pub(in crate::gate) fn expect(&self, program: &Arc<Program>) {
        let mut live = self.lock();
        let digest = program.digest();
        live.programs.retain(|known| known.digest() != digest);
        if live.programs.len() == PROGRAMS {
            live.programs.remove(0);
        }
        live.programs.push(Arc::clone(program));
    }

    /// Returns the counters of the whole VM.
    pub(in crate::gate) fn counted(&self) -> Counted {
        let live = self.lock();
        let mut sums = live.gone.clone();
        let mut others = live.others;
        for log in &live.logs {
            others += log.counters.each(|count| add(&mut sums, count));
        }
        let counts = sums
            .into_iter()
            .map(|((index, access, disposition), count)| Count {
                index,
                access,
                disposition,
                count,
            });
        Counted {
            counts: counts.collect(),
            others,
        }
    }

    /// Removes the logs of vCPUs whose `VcpuGate`s were dropped, and keeps their counts. The function
    /// removes the logs whose queues are empty. Of the logs with unread events it keeps the newest `most`,
    /// and removes the older ones.
    fn prune(live: &mut Live, most: usize) {
        let Live {
            logs,
            gone,
            others,
            lost,
            ..
        } = live;
        // No vCPU and no reader uses these logs any more, so this thread sees the last writes to them.
        let unread = logs.iter_mut().filter_map(Arc::get_mut);
        let unread = unread.filter(|log| !log.ring.is_empty()).count();
        let mut too_many = unread.saturating_sub(most);
        logs.retain_mut(|log| {
            let Some(log) = Arc::get_mut(log) else {
                return true;
            };
            let left = log.ring.len();
            if left > 0 {
                if too_many == 0 {
                    return true;
                }
                too_many -= 1;
            }
            let mut beyond = 0;
            *others += log.counters.each(|count| {
                let kind = (count.index, count.access, count.disposition);
                if gone.len() < KINDS || gone.contains_key(&kind) {
                    add(gone, count);
                } else {
                    beyond += count.count;
                }
            });
            *others += beyond;
            let mut sum = log.lost();
            sum.dropped += left;
            sum.add_to(lost, log.id);
            false
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sums: &mut BTreeMap<(MsrIndex, Access, Disposition), u64>, count: Count) {
    *sums
        .entry((count.index, count.access, count.disposition))
        .or_default() += count.count;
}

/// The number of accesses that came to the gate, for each kind of access, in the whole VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The counts, sorted by MSR, access and disposition.
    pub counts: Vec<Count>,
    /// The number of accesses that are not in `counts`. A vCPU has counters for at most 256 kinds (MSR,
    /// access, disposition), and the vCPUs that are gone have, together, counters for 4,096 kinds.
    pub others: u64,
}

/// The number of events of a vCPU that the reader does not get, since the vCPU was first added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDrops {
    /// The vCPU whose events were lost.
    pub vcpu: VcpuId,
    /// The number of events that did not fit the queue. Of the vCPUs whose `VcpuGate` was dropped, only the
    /// newest sixteen keep their unread events. The unread events of older ones are lost and counted here.
    pub dropped: u64,
    /// The number of events that the limit of [`EventOptions::per_second`](super::EventOptions::per_second)
    /// held back. The number includes events that a later event reports in
    /// [`Event::held_back`](super::Event::held_back).
    pub held_back: u64,
}

/// Formats the vCPU's two numbers of lost events as one line of text.
impl fmt::Display for VcpuDrops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            dropped,
            held_back,
        } = self;
        write!(
            f,
            "vCPU {vcpu}: events lost so far: {dropped} dropped, {held_back} held back"
        )
    }
}

/// The reader of a VM's events. A VM has at most one such reader at a time.
#[must_use = "without a reader, events are dropped as soon as a queue is full"]
pub struct Events {
    logs: Arc<VcpuLogs>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Returns the reader of these logs; `None` if the logs have a reader already.
    pub(in crate::gate) fn take(logs: &Arc<VcpuLogs>) -> Option<Self> {
        // Acquire: the new reader sees which entries the previous reader has taken from the queues.
        let had_one = logs.has_reader.swap(true, Ordering::Acquire);
        (!had_one).then(|| Self {
            logs: Arc::clone(logs),
        })
    }

    /// Takes all events out of the queues and passes them to `each`. The events of each vCPU are passed in
    /// the order in which they happened.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) {
        let (logs, programs) = {
            let live = self.logs.lock();
            (live.logs.clone(), live.programs.clone())
        };
        for log in &logs {
            // Take no more events than there were at the start: the events of a busy vCPU must not delay
            // those of other vCPUs.
            for _ in 0..log.ring.len() {
                let Some(entry) = log.ring.take() else {
                    break;
                };
                if let Some(event) = Event::decode(&entry, log.id, &programs) {
                    each(event);
                }
            }
        }
        drop(logs);
        // Keep every log with unread events: at its next call this reader takes the events that have come in
        // the meantime.
        VcpuLogs::prune(&mut self.logs.lock(), usize::MAX);
    }

    /// Returns the number of events that were dropped or held back so far, for each vCPU that lost any.
    #[must_use]
    pub fn drops(&self) -> Vec<VcpuDrops> {
        let live = self.logs.lock();
        let mut sums = live.lost.clone();
        for log in &live.logs {
            log.lost().add_to(&mut sums, log.id);
        }
        let drops = sums.into_iter().map(|(vcpu, lost)| VcpuDrops {
            vcpu,
            dropped: lost.dropped,
            held_back: lost.held_back,
        });
        drops.collect()
    }

    /// Returns the counters of all accesses, as [`Gate::counted`](crate::gate::Gate::counted) does.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.logs.counted()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.logs.has_reader.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
