//! The state page as the library in the VMM uses it: words in a shared mapping of the page's file, which the
//! command reads.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_program::Origin;
use msrgate_program::answer::Disposition;

use crate::key::Kind;
use crate::layout::{BadPage, EVENT_WORDS, FOR_KILLS, Layout, PLACE_WORDS, RINGS, VM_WORDS, word};

/// A state page that the library has mapped.
#[derive(Clone, Copy, Debug)]
pub struct Page<'w> {
    words: &'w [AtomicU64],
    layout: Layout,
}

/// A record of a guest's access to an MSR that the library has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The kind of the access.
    pub kind: Kind,
    /// The value that the guest wrote to the MSR; 0 for a read.
    pub value: u64,
    /// The number of the vCPU that made the access.
    pub vcpu: u32,
    /// The process ID of the VMM whose guest made the access.
    pub pid: u32,
    /// The number of the VM in this run, from [`Page::add_vm`].
    pub vm: u32,
    /// The part of the policy that decided about the access.
    pub origin: Origin,
    /// The time of the access in nanoseconds since 1970.
    pub time: u64,
}

/// The decision about one access: it becomes an event, or is only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// The access is within the limit, and becomes an event.
    Passes,
    /// The access is beyond the limit: it is counted, but does not become an event.
    HeldBack,
    /// The policy wants no event of the access: it is only counted.
    Silent,
}

impl<'w> Page<'w> {
    /// Reads the header of the state page that `words` hold, and returns the page.
    ///
    /// # Errors
    /// The words are not a state page of this version.
    pub fn new(words: &'w [AtomicU64]) -> Result<Self, BadPage> {
        let header = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let layout = Layout::read(header, words.len())?;
        Ok(Self { words, layout })
    }

    fn word(&self, at: usize) -> &'w AtomicU64 {
        // `Layout::read` has checked that all parts lie within the words. A position beyond them gets the
        // last word of the header, which has no meaning.
        self.words.get(at).unwrap_or(&self.words[word::COUNT - 1])
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    /// The cookie of the run: a number in the system calls that only the library may make. By the number the
    /// run's seccomp filter recognises these calls.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.get(word::COOKIE)
    }

    /// The exit reasons that this host's KVM accepts, as bits of the mask.
    #[must_use]
    pub fn reasons(&self) -> u64 {
        self.get(word::REASONS)
    }

    /// The exit reasons that the library asks for in addition to those that the program needs, as bits of the mask.
    #[must_use]
    pub fn watched(&self) -> u64 {
        self.get(word::WATCHED)
    }

    /// The host's `kvm.ignore_msrs`: 0 off, 1 on, 2 unknown.
    #[must_use]
    pub fn ignore_msrs(&self) -> u64 {
        self.get(word::IGNORE_MSRS)
    }

    /// A copy of the encoded program into which the run's policy was compiled.
    #[must_use]
    pub fn program(&self) -> Vec<u8> {
        let words = (self.layout.program..self.layout.words).map(|at| self.get(at));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(self.layout.program_bytes);
        bytes
    }

    /// Adds a VM of the process `pid`, made at `time` in nanoseconds since 1970. Returns the VM's number in
    /// the run.
    #[must_use]
    pub fn add_vm(&self, pid: u32, time: u64) -> u32 {
        let number = self.word(word::VMS_MADE).fetch_add(1, Ordering::Relaxed);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let at = number as usize;
        if at < Layout::vm_count() {
            let base = self.layout.vms + at * VM_WORDS;
            self.word(base).store(pid.into(), Ordering::Relaxed);
            self.word(base + 1).store(time, Ordering::Relaxed);
        }
        number
    }

    /// Counts a VM that has the policy in it, and that the VMM gets.
    pub fn count_guarded_vm(&self) {
        self.word(word::VMS_GUARDED).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an access, records it if it is the first of its kind, and puts an event into the VM's ring if `limit`
    /// is [`Limited::Passes`] and the ring has room. Any number of threads may call this at once. The function does not allocate
    /// and does not wait.
    pub fn note(&self, seen: &Seen, limit: Limited) {
        match self.place(seen.kind) {
            Some(base) => {
                let before = self.word(base + 1).fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    self.fill(base, seen);
                }
            }
            None => {
                self.word(word::OTHERS).fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.layout.event_count == 0 {
            return;
        }
        let number = match limit {
            Limited::Passes => self.next_event(seen),
            Limited::HeldBack | Limited::Silent => None,
        };
        let without_event = match limit {
            Limited::Silent => word::SILENT,
            Limited::Passes | Limited::HeldBack => word::HELD_BACK,
        };
        // This comes last: if the process is killed before, the access counts as one without an event.
        match number {
            Some(number) => self.put(seen, number),
            None => {
                self.word(without_event).fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns the position of the first word of the place for this kind of access. If the kind has no
    /// place, the function gives it a free one. Returns `None` if every place of the [search](Kind::search)
    /// belongs to another kind.
    fn place(&self, kind: Kind) -> Option<usize> {
        let bits = kind.to_bits();
        kind.search(self.layout.place_count).find_map(|place| {
            let base = self.layout.places + place * PLACE_WORDS;
            let key = self.word(base);
            let held = key.load(Ordering::Relaxed);
            let is_here = held == bits
                || held == 0
                    && match key.compare_exchange(0, bits, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => true,
                        Err(other) => other == bits,
                    };
            is_here.then_some(base)
        })
    }

    fn fill(&self, base: usize, seen: &Seen) {
        let rest = [
            seen.time,
            seen.value,
            pair(seen.vcpu, seen.pid),
            seen.origin.to_bits(),
            seen.vm.into(),
        ];
        for (word, value) in (base + 2..).zip(rest) {
            self.word(word).store(value, Ordering::Relaxed);
        }
        // `Release`: a thread that reads this 1 with `Acquire` also finds the values stored in the other
        // words above.
        self.word(base + 7).store(1, Ordering::Release);
    }

    /// Reserves the next event number of the VM's ring, and returns it. Returns `None` if all entries of the
    /// ring hold events that the command has yet to read.
    fn next_event(&self, seen: &Seen) -> Option<u64> {
        let all = self.layout.event_count as u64;
        let room = match seen.kind.disposition {
            Disposition::Killed => all,
            _ => all.saturating_sub(FOR_KILLS),
        };
        let (put, taken) = (word::PUT + ring(seen), word::TAKEN + ring(seen));
        let next = |put: u64| {
            // `Acquire`: the place is written only after the reader was seen to have its event.
            let taken = self.word(taken).load(Ordering::Acquire);
            (put.wrapping_sub(taken) < room).then(|| put.wrapping_add(1))
        };
        let put = self.word(put);
        put.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .ok()
    }

    /// Writes an event into its entry of the ring. The entry's last word is the event's number plus 1, or 0
    /// while the event is being written, so that a reader recognises an incomplete event.
    fn put(&self, seen: &Seen, number: u64) {
        let base = self.layout.event(ring(seen), number);
        let done = self.word(base + EVENT_WORDS - 1);
        done.store(0, Ordering::Release);
        let words = [
            seen.kind.to_bits(),
            seen.time,
            seen.value,
            pair(seen.vcpu, seen.pid),
            seen.origin.to_bits(),
            seen.vm.into(),
        ];
        for (at, value) in (base..).zip(words) {
            self.word(at).store(value, Ordering::Release);
        }
        done.store(number.wrapping_add(1), Ordering::Release);
    }
}

/// Returns the number of the ring for the events of the VM that made this access.
fn ring(seen: &Seen) -> usize {
    seen.vm as usize % RINGS
}

/// Encodes two 32-bit numbers in one word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
