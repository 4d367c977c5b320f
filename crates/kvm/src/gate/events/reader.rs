//! The other end of all vCPUs' queues.

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

/// One vCPU's queue and counters.
pub(in crate::gate) struct VcpuLog {
    id: VcpuId,
    ring: Ring,
    counters: Counters,
    /// How many events the limit has held back; written by the vCPU.
    held_back: AtomicU64,
}

impl VcpuLog {
    /// Counts an access. One thread at a time.
    pub(in crate::gate) fn count(&self, index: MsrIndex, access: Access, disposition: Disposition) {
        self.counters.add(index, access, disposition);
    }

    /// Puts an event into the queue, or counts it as dropped. One thread at a time.
    #[inline]
    pub(in crate::gate) fn tell(&self, happened: &EventRecord) {
        let room = if happened.disposition == Disposition::Killed {
            Room::Kept
        } else {
            Room::Shared
        };
        self.ring.put(&happened.encode(), room);
    }

    /// Counts an event that the limit holds back. One thread at a time.
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
    /// What vCPUs that are gone had counted.
    gone: BTreeMap<(MsrIndex, Access, Disposition), u64>,
    others: u64,
    /// What became no event of theirs. Of each number that the VMM gives, which KVM bounds.
    lost: BTreeMap<VcpuId, Lost>,
    /// Programs whose events may still be in a queue, the newest last.
    programs: Vec<Arc<Program>>,
}

/// How many events of a vCPU did not come to the reader.
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

/// So many vCPUs that are gone leave their events to a reader, the newest ones.
const UNREAD: usize = 16;

/// So many kinds of (MSR, access, disposition) are told apart of vCPUs that are gone.
const KINDS: usize = 4096;

/// So many programs are remembered: events that are older have no file name.
const PROGRAMS: usize = 16;

impl VcpuLogs {
    /// A log for a vCPU, with a queue of so many events. Those of vCPUs that are gone make room: there
    /// may be no reader.
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

    /// Events may be of this program from now on.
    pub(in crate::gate) fn expect(&self, program: &Arc<Program>) {
        let mut live = self.lock();
        let digest = program.digest();
        live.programs.retain(|known| known.digest() != digest);
        if live.programs.len() == PROGRAMS {
            live.programs.remove(0);
        }
        live.programs.push(Arc::clone(program));
    }

    /// All counters of the VM.
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

    /// Forgets logs of vCPUs that are gone, but for what they counted: those whose queues are empty,
    /// and of the others all but so many, the newest ones.
    fn prune(live: &mut Live, most: usize) {
        let Live {
            logs,
            gone,
            others,
            lost,
            ..
        } = live;
        // Whom nobody else has, neither a vCPU nor a reader: what they did last is seen here.
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

/// How often each access came to the gate and what was done, in the whole VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// By MSR, access and disposition, in this order.
    pub counts: Vec<Count>,
    /// Accesses that are in none of these: a vCPU tells 256 kinds apart, and of all vCPUs that are gone
    /// 4,096 are.
    pub others: u64,
}

/// How many events of a vCPU the reader does not get, since the vCPU was first added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDrops {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// How many did not fit its queue. Also those of vCPUs that were dropped, of which more than
    /// sixteen had left events that nobody read: the oldest ones' go.
    pub dropped: u64,
    /// How many the limit held back: [`EventOptions::per_second`](super::EventOptions::per_second). An
    /// event that comes later says how many of its kind were, see
    /// [`Event::held_back`](super::Event::held_back); those are in this number, too.
    pub held_back: u64,
}

/// One line for people.
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

/// The reader of a VM's events. There is one at a time.
#[must_use = "without a reader, events are dropped once a queue is full"]
pub struct Events {
    logs: Arc<VcpuLogs>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The reader of these logs; `None` if they have one.
    pub(in crate::gate) fn take(logs: &Arc<VcpuLogs>) -> Option<Self> {
        // Acquire: what the reader before took out is seen as taken.
        let had_one = logs.has_reader.swap(true, Ordering::Acquire);
        (!had_one).then(|| Self {
            logs: Arc::clone(logs),
        })
    }

    /// Takes all events out that are there, those of each vCPU in their order.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) {
        let (logs, programs) = {
            let live = self.logs.lock();
            (live.logs.clone(), live.programs.clone())
        };
        for log in &logs {
            // No more than there were at the start: a busy vCPU must not keep the others' waiting.
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
        // There is a reader: what came meanwhile it gets the next time.
        VcpuLogs::prune(&mut self.logs.lock(), usize::MAX);
    }

    /// How many events of each vCPU were dropped or held back so far, where any were.
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

    /// The counters, as [`Gate::counted`](crate::gate::Gate::counted) gives them.
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
