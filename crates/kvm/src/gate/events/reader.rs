//! The other end of all vCPUs' queues.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::Program;
use msrgate_program::answer::Deed;

use super::counters::{Count, Counters, add_one};
use super::event::{Event, Happened};
use super::ring::{Ring, Room};
use crate::gate::id::VcpuId;

/// One vCPU's queue and counters.
pub(in crate::gate) struct Track {
    id: VcpuId,
    ring: Ring,
    counters: Counters,
    /// How many events the limit has held back; written by the vCPU.
    held_back: AtomicU64,
}

impl Track {
    /// Counts an access. One thread at a time.
    pub(in crate::gate) fn count(&self, index: MsrIndex, access: Access, deed: Deed) {
        self.counters.add(index, access, deed);
    }

    /// Puts an event into the queue, or counts it as dropped. One thread at a time.
    #[inline]
    pub(in crate::gate) fn tell(&self, happened: &Happened) {
        let room = if happened.deed == Deed::Killed {
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

/// The tracks of a VM's vCPUs.
#[derive(Default)]
pub(in crate::gate) struct Tracks {
    live: Mutex<Live>,
    has_reader: AtomicBool,
}

#[derive(Default)]
struct Live {
    tracks: Vec<Arc<Track>>,
    /// What vCPUs that are gone had counted.
    gone: BTreeMap<(MsrIndex, Access, Deed), u64>,
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

/// So many kinds of (MSR, access, deed) are told apart of vCPUs that are gone.
const KINDS: usize = 4096;

/// So many programs are remembered: events that are older have no file name.
const PROGRAMS: usize = 16;

impl Tracks {
    /// A track for a vCPU, with a queue of so many events. Those of vCPUs that are gone make room: there
    /// may be no reader.
    pub(in crate::gate) fn add(&self, id: VcpuId, queue: usize) -> Arc<Track> {
        let track = Arc::new(Track {
            id,
            ring: Ring::new(queue),
            counters: Counters::new(),
            held_back: AtomicU64::new(0),
        });
        let mut live = self.lock();
        Self::prune(&mut live, UNREAD);
        live.tracks.push(Arc::clone(&track));
        track
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
        for track in &live.tracks {
            others += track.counters.each(|count| add(&mut sums, count));
        }
        let counts = sums
            .into_iter()
            .map(|((index, access, deed), count)| Count {
                index,
                access,
                deed,
                count,
            });
        Counted {
            counts: counts.collect(),
            others,
        }
    }

    /// Forgets tracks of vCPUs that are gone, but for what they counted: those whose queues are empty,
    /// and of the others all but so many, the newest ones.
    fn prune(live: &mut Live, most: usize) {
        let Live {
            tracks,
            gone,
            others,
            lost,
            ..
        } = live;
        // Whom nobody else has, neither a vCPU nor a reader: what they did last is seen here.
        let unread = tracks.iter_mut().filter_map(Arc::get_mut);
        let unread = unread.filter(|track| !track.ring.is_empty()).count();
        let mut too_many = unread.saturating_sub(most);
        tracks.retain_mut(|track| {
            let Some(track) = Arc::get_mut(track) else {
                return true;
            };
            let left = track.ring.len();
            if left > 0 {
                if too_many == 0 {
                    return true;
                }
                too_many -= 1;
            }
            let mut beyond = 0;
            *others += track.counters.each(|count| {
                let kind = (count.index, count.access, count.deed);
                if gone.len() < KINDS || gone.contains_key(&kind) {
                    add(gone, count);
                } else {
                    beyond += count.count;
                }
            });
            *others += beyond;
            let mut sum = track.lost();
            sum.dropped += left;
            sum.add_to(lost, track.id);
            false
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sums: &mut BTreeMap<(MsrIndex, Access, Deed), u64>, count: Count) {
    *sums
        .entry((count.index, count.access, count.deed))
        .or_default() += count.count;
}

/// How often each access came to the gate and what was done, in the whole VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// By MSR, access and deed, in this order.
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
    tracks: Arc<Tracks>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The reader of these tracks; `None` if they have one.
    pub(in crate::gate) fn take(tracks: &Arc<Tracks>) -> Option<Self> {
        // Acquire: what the reader before took out is seen as taken.
        let had_one = tracks.has_reader.swap(true, Ordering::Acquire);
        (!had_one).then(|| Self {
            tracks: Arc::clone(tracks),
        })
    }

    /// Takes all events out that are there, those of each vCPU in their order.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) {
        let (tracks, programs) = {
            let live = self.tracks.lock();
            (live.tracks.clone(), live.programs.clone())
        };
        for track in &tracks {
            // No more than there were at the start: a busy vCPU must not keep the others' waiting.
            for _ in 0..track.ring.len() {
                let Some(entry) = track.ring.take() else {
                    break;
                };
                if let Some(event) = Event::decode(&entry, track.id, &programs) {
                    each(event);
                }
            }
        }
        drop(tracks);
        // There is a reader: what came meanwhile it gets the next time.
        Tracks::prune(&mut self.tracks.lock(), usize::MAX);
    }

    /// How many events of each vCPU were dropped or held back so far, where any were.
    #[must_use]
    pub fn drops(&self) -> Vec<VcpuDrops> {
        let live = self.tracks.lock();
        let mut sums = live.lost.clone();
        for track in &live.tracks {
            track.lost().add_to(&mut sums, track.id);
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
        self.tracks.counted()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.tracks.has_reader.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
