//! The other end of all vCPUs' queues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::Program;
use msrgate_policy::answer::Deed;

use super::counters::{Count, Counters};
use super::event::{Event, Happened};
use super::ring::Ring;
use crate::gate::VcpuId;

/// One vCPU's queue and counters.
pub(in crate::gate) struct Track {
    id: VcpuId,
    ring: Ring,
    counters: Counters,
}

impl Track {
    /// Counts an access. One thread at a time.
    pub(in crate::gate) fn count(&self, index: MsrIndex, access: Access, deed: Deed) {
        self.counters.add(index, access, deed);
    }

    /// Puts an event into the queue, or counts it as dropped. One thread at a time.
    #[inline]
    pub(in crate::gate) fn tell(&self, happened: &Happened) {
        self.ring.put(&happened.encode());
    }
}

/// The tracks of a VM's vCPUs.
#[derive(Default)]
pub(in crate::gate) struct Tracks {
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    tracks: Vec<Arc<Track>>,
    /// What vCPUs that are gone had counted.
    gone: BTreeMap<(MsrIndex, Access, Deed), u64>,
    others: u64,
    dropped: BTreeMap<VcpuId, u64>,
    /// Programs whose events may still be in a queue, the newest last.
    programs: Vec<Arc<Program>>,
}

/// So many programs are remembered: events that are older have no file name.
const PROGRAMS: usize = 16;

impl Tracks {
    /// A track for a vCPU, with a queue of so many events.
    pub(in crate::gate) fn add(&self, id: VcpuId, queue: usize) -> Arc<Track> {
        let track = Arc::new(Track {
            id,
            ring: Ring::new(queue),
            counters: Counters::new(),
        });
        self.lock().tracks.push(Arc::clone(&track));
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

    /// Forgets tracks of vCPUs that are gone and whose queues are empty, but for what they counted.
    fn prune(live: &mut Live) {
        let Live {
            tracks,
            gone,
            others,
            dropped,
            ..
        } = live;
        tracks.retain(|track| {
            if Arc::strong_count(track) > 1 || !track.ring.is_empty() {
                return true;
            }
            *others += track.counters.each(|count| add(gone, count));
            *dropped.entry(track.id).or_default() += track.ring.dropped();
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
    /// Accesses that are in none of these: a vCPU tells 256 kinds apart.
    pub others: u64,
}

/// How many events of a vCPU did not fit its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDrops {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// How many since it began.
    pub dropped: u64,
}

/// The reader of a VM's events. There is one.
pub struct Events {
    tracks: Arc<Tracks>,
}

impl Events {
    pub(in crate::gate) const fn new(tracks: Arc<Tracks>) -> Self {
        Self { tracks }
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
        Tracks::prune(&mut self.tracks.lock());
    }

    /// How many events each vCPU has had to drop so far, those that dropped any.
    #[must_use]
    pub fn drops(&self) -> Vec<VcpuDrops> {
        let live = self.tracks.lock();
        let mut sums = live.dropped.clone();
        for track in &live.tracks {
            *sums.entry(track.id).or_default() += track.ring.dropped();
        }
        let drops = sums
            .into_iter()
            .map(|(vcpu, dropped)| VcpuDrops { vcpu, dropped });
        drops.filter(|drops| drops.dropped > 0).collect()
    }

    /// The counters, as [`Gate::counted`](crate::gate::Gate::counted) gives them.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.tracks.counted()
    }
}
