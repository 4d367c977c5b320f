//! The library's side: words that it shares with whoever reads the file.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_program::Origin;

use crate::key::Kind;
use crate::layout::{BadPage, EVENT_WORDS, Layout, PLACE_WORDS, VM_WORDS, word};

/// A mapped state page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'w> {
    words: &'w [AtomicU64],
    layout: Layout,
}

/// An access as the library saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What kind of access it was.
    pub kind: Kind,
    /// The value of a write; 0 for a read.
    pub value: u64,
    /// The number of the vCPU.
    pub vcpu: u32,
    /// The process.
    pub pid: u32,
    /// The number of the VM in this run, from [`Page::add_vm`].
    pub vm: u32,
    /// What of the policy decided.
    pub origin: Origin,
    /// Nanoseconds since 1970.
    pub time: u64,
}

/// So many places are looked at for a kind: a guest that accesses everything must not make each access slow.
const PROBES: usize = 32;

impl<'w> Page<'w> {
    /// The page in these words.
    ///
    /// # Errors
    /// They are no page of this version.
    pub fn new(words: &'w [AtomicU64]) -> Result<Self, BadPage> {
        let header = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let layout = Layout::read(header, words.len())?;
        Ok(Self { words, layout })
    }

    fn word(&self, at: usize) -> &'w AtomicU64 {
        // `Layout::read` has checked that all parts lie within the words; any other place is a word that nobody reads.
        self.words.get(at).unwrap_or(&self.words[word::COUNT - 1])
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    /// The word that the library's calls carry.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.get(word::COOKIE)
    }

    /// The exit reasons that this host's KVM takes.
    #[must_use]
    pub fn reasons(&self) -> u64 {
        self.get(word::REASONS)
    }

    /// The host's `kvm.ignore_msrs`: 0 off, 1 on, 2 not seen.
    #[must_use]
    pub fn ignore_msrs(&self) -> u64 {
        self.get(word::IGNORE_MSRS)
    }

    /// A copy of the encoded program.
    #[must_use]
    pub fn program(&self) -> Vec<u8> {
        let words = (self.layout.program..self.layout.words).map(|at| self.get(at));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(self.layout.program_bytes);
        bytes
    }

    /// Notes a VM of a process, and gives its number.
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

    /// Counts an access, notes it if it is the first of its kind, and puts an event into the ring if `is_event` is
    /// true for it. Any number of threads may do this at once. Nothing is allocated, nobody is waited for.
    pub fn note(&self, seen: &Seen, is_event: bool) {
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
        if is_event && self.layout.event_count > 0 {
            self.put(seen);
        }
    }

    /// Counts an event that the limit holds back.
    pub fn hold_back(&self) {
        self.word(word::HELD_BACK).fetch_add(1, Ordering::Relaxed);
    }

    /// The place of a kind, which may be made just now.
    fn place(&self, kind: Kind) -> Option<usize> {
        let (bits, count) = (kind.to_bits(), self.layout.place_count);
        let home = kind.home(count);
        (0..PROBES.min(count)).find_map(|offset| {
            let base = self.layout.places + (home + offset) % count * PLACE_WORDS;
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
        // Release: whoever sees this sees the rest.
        self.word(base + 7).store(1, Ordering::Release);
    }

    /// Puts an event over the oldest one. Its last word says which it is, so that a reader sees whether it was whole.
    fn put(&self, seen: &Seen) {
        let number = self.word(word::EVENTS_PUT).fetch_add(1, Ordering::Relaxed);
        let slot = usize::try_from(number % self.layout.event_count as u64).unwrap_or(0);
        let base = self.layout.events + slot * EVENT_WORDS;
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
        done.store(number + 1, Ordering::Release);
    }
}

/// Two numbers in one word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
