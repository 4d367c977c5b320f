//! The state page as the command reads it: a copy of the page's file, which a hostile VMM may have written.

use msrgate_program::Origin;

use crate::key::Kind;
use crate::layout::{BadPage, EVENT_WORDS, Layout, PLACE_WORDS, RINGS, VM_WORDS, word};
use crate::page::Seen;

/// A copy of a state page, from which the command reads what happened in the run.
#[derive(Clone, Debug)]
pub struct Snapshot {
    words: Vec<u64>,
    layout: Layout,
}

/// A kind of access that the library has recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The first access of this kind.
    pub first: Seen,
    /// The number of accesses of this kind so far.
    pub count: u64,
}

/// A record of a VM that was made in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmRecord {
    /// The ID of the process that made the VM.
    pub pid: u32,
    /// The time when the VM was made, in nanoseconds since 1970.
    pub time: u64,
}

/// An event that was read from a ring of the page: a record of one access.
pub type Event = Seen;

/// The treatment of an incomplete event: a thread is writing it, or was writing it when the VMM's process
/// ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// The reader stops before the event, and its next call looks at the event again. If newer events fill
    /// half of the ring, the reader counts the incomplete event as lost.
    Wait,
    /// The reader counts the event as lost, and goes on to the next event.
    Skip,
}

/// The number of the next event to read in each ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor([u64; RINGS]);

impl Cursor {
    /// The position in the page's file, in bytes, at which the command writes the bytes of [`Self::taken`].
    pub const POSITION: u64 = word::TAKEN as u64 * 8;

    /// Returns the bytes to write into the page so that the library learns which events were read: the
    /// library may then overwrite these events.
    #[must_use]
    pub fn taken(&self) -> Vec<u8> {
        self.0.iter().copied().flat_map(u64::to_le_bytes).collect()
    }
}

/// The new events that [`Snapshot::events_since`] has found, and the cursor for the next call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The events that were read, in order of their time.
    pub events: Vec<Event>,
    /// The cursor to pass to the next call of [`Snapshot::events_since`].
    pub next: Cursor,
    /// The number of events that the VMM's process did not finish writing, or that cannot be decoded.
    pub lost: u64,
}

impl Snapshot {
    /// Reads the state page in these bytes.
    ///
    /// # Errors
    /// The bytes are not a state page of this version.
    pub fn new(bytes: &[u8]) -> Result<Self, BadPage> {
        let bytes = &bytes[..bytes.len().min(Layout::largest())];
        let (chunks, _) = bytes.as_chunks();
        let words: Vec<u64> = chunks
            .iter()
            .map(|chunk| u64::from_le_bytes(*chunk))
            .collect();
        let header = |at: usize| words.get(at).copied().unwrap_or(0);
        let layout = Layout::read(header, words.len())?;
        Ok(Self { words, layout })
    }

    fn get(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// The number of VMs that the VMMs of the run got, each with the policy in it.
    #[must_use]
    pub fn vms_guarded(&self) -> u64 {
        self.get(word::VMS_GUARDED)
    }

    /// Returns the records of the first VMs of the run, at most 64.
    #[must_use]
    pub fn vms(&self) -> Vec<VmRecord> {
        let made = usize::try_from(self.get(word::VMS_MADE)).unwrap_or(usize::MAX);
        let entries = (0..made.min(Layout::vm_count())).map(|at| self.layout.vms + at * VM_WORDS);
        entries
            .map(|base| VmRecord {
                pid: low(self.get(base)),
                time: self.get(base + 1),
            })
            .collect()
    }

    /// The number of accesses whose kind found no free place in the page. The page stores only the number of
    /// such accesses.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.get(word::OTHERS)
    }

    /// The number of events that the limit on events per second, or a full ring, kept out of the rings.
    #[must_use]
    pub fn held_back(&self) -> u64 {
        self.get(word::HELD_BACK)
    }

    /// Returns the number of accesses of which the policy wants an event, and that the library counted and wrote no
    /// event for, because the VMM's
    /// process ended between the two steps: at most one for each vCPU.
    #[must_use]
    pub fn without_event(&self) -> u64 {
        let places = (0..self.layout.place_count).map(|at| self.layout.places + at * PLACE_WORDS);
        let counts = places.map(|base| self.get(base + 1));
        let counted = counts.fold(self.others(), u64::saturating_add);
        let put = (0..RINGS).map(|ring| self.get(word::PUT + ring));
        let silent = self.get(word::SILENT);
        let told = put.fold(self.held_back().saturating_add(silent), u64::saturating_add);
        counted.saturating_sub(told)
    }

    /// Returns a record for each kind of access that the library has recorded, in order of the time of the
    /// first access.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        let places = (0..self.layout.place_count).map(|at| self.layout.places + at * PLACE_WORDS);
        let mut recorded: Vec<_> = places.filter_map(|base| self.place(base)).collect();
        recorded.sort_by_key(|one| (one.first.time, one.first.kind));
        let mut kinds = std::collections::BTreeSet::new();
        recorded.retain(|one| kinds.insert(one.first.kind));
        recorded
    }

    /// Returns the time from which on accesses of this kind found no place in the page, because other kinds
    /// had taken every place that the kind may have. Returns `None` if the kind has a place, or would still
    /// find one.
    #[must_use]
    pub fn without_place_since(&self, kind: Kind) -> Option<u64> {
        let bases = kind.search(self.layout.place_count);
        let mut bases = bases.map(|place| self.layout.places + place * PLACE_WORDS);
        bases.try_fold(0, |latest: u64, base| {
            let held = self.get(base);
            let is_of_others = held != 0 && held != kind.to_bits();
            is_of_others.then(|| latest.max(self.get(base + 2)))
        })
    }

    fn place(&self, base: usize) -> Option<Recorded> {
        let count = self.get(base + 1);
        // The process may have died after it counted a kind and before it filled the place: the other fields
        // are then 0.
        let first = self.seen(base, base + 2)?;
        (count > 0).then_some(Recorded { first, count })
    }

    /// Decodes the record of an access: the word at `kind` holds the access's kind, and the other fields
    /// begin at the word `rest`.
    fn seen(&self, kind: usize, rest: usize) -> Option<Seen> {
        let who = self.get(rest + 2);
        Some(Seen {
            kind: Kind::from_bits(self.get(kind))?,
            time: self.get(rest),
            value: self.get(rest + 1),
            vcpu: low(who),
            pid: low(who >> 32),
            origin: Origin::from_bits(self.get(rest + 3)),
            vm: low(self.get(rest + 4)),
        })
    }

    /// Returns the events of all rings that come after those that the cursor `from` says were read.
    #[must_use]
    pub fn events_since(&self, from: &Cursor, unfinished: Unfinished) -> Followed {
        let mut followed = Followed {
            events: Vec::new(),
            next: *from,
            lost: 0,
        };
        for ring in 0..RINGS {
            self.follow(ring, unfinished, &mut followed);
        }
        followed.events.sort_by_key(|event| event.time);
        followed
    }

    /// Adds the new events of one ring to `followed`.
    fn follow(&self, ring: usize, unfinished: Unfinished, followed: &mut Followed) {
        let room = self.layout.event_count as u64;
        let from = followed.next.0[ring];
        let put = self.get(word::PUT + ring).max(from);
        // No library overwrites events. A hostile process may write any number.
        let oldest = put.saturating_sub(room).max(from);
        followed.lost = followed.lost.saturating_add(oldest - from);
        for number in oldest..put {
            let base = self.layout.event(ring, number);
            let done = self.get(base + EVENT_WORDS - 1);
            let may_wait = unfinished == Unfinished::Wait && put - number < room / 2;
            if done <= number && may_wait {
                break;
            }
            match self.seen(base, base + 1).filter(|_| done == number + 1) {
                Some(event) => followed.events.push(event),
                None => followed.lost = followed.lost.saturating_add(1),
            }
            followed.next.0[ring] = number + 1;
        }
    }
}

/// Returns the low half of a word.
fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use msrgate_filter::{Access, ExitReason, MsrIndex};
    use msrgate_program::answer::Disposition;
    use proptest::prelude::*;

    use super::*;
    use crate::layout::NewRun;
    use crate::page::{Limited, Page};

    fn run(has_events: bool) -> Vec<AtomicU64> {
        let bytes = NewRun {
            cookie: 7,
            reasons: 6,
            watched: 1,
            ignore_msrs: 2,
            program: b"a program",
            has_events,
        }
        .encode();
        words(&bytes)
    }

    fn words(bytes: &[u8]) -> Vec<AtomicU64> {
        let (chunks, _) = bytes.as_chunks();
        chunks
            .iter()
            .map(|chunk| AtomicU64::new(u64::from_le_bytes(*chunk)))
            .collect()
    }

    fn copy(words: &[AtomicU64]) -> Vec<u8> {
        let values = words.iter().map(|word| word.load(Ordering::Relaxed));
        values.flat_map(u64::to_le_bytes).collect()
    }

    fn seen(index: u32, time: u64) -> Seen {
        Seen {
            kind: Kind {
                index: MsrIndex::new(index),
                access: Access::Write,
                disposition: Disposition::Denied,
                reason: ExitReason::Filter,
            },
            value: 5,
            vcpu: 1,
            pid: 42,
            vm: 0,
            origin: Origin::Default,
            time,
        }
    }

    #[test]
    fn state_page_of_new_run_returns_cookie_exit_reasons_and_program_of_run() {
        let words = run(false);
        let page = Page::new(&words).unwrap();
        assert_eq!((page.cookie(), page.reasons(), page.watched()), (7, 6, 1));
        assert_eq!(page.ignore_msrs(), 2);
        assert_eq!(page.program(), b"a program");
    }

    #[test]
    fn state_page_keeps_first_access_of_each_kind_and_counts_all_accesses_of_kind() {
        let words = run(false);
        let page = Page::new(&words).unwrap();
        assert_eq!(page.add_vm(42, 1), 0);
        for time in 10..13 {
            page.note(&seen(0x8b, time), Limited::Passes);
        }
        page.note(&seen(0x10, 9), Limited::Passes);
        let snapshot = Snapshot::new(&copy(&words)).unwrap();
        let recorded: Vec<_> = snapshot
            .recorded()
            .iter()
            .map(|one| (one.first, one.count))
            .collect();
        assert_eq!(recorded, [(seen(0x10, 9), 1), (seen(0x8b, 10), 3)]);
        assert_eq!(snapshot.vms(), [VmRecord { pid: 42, time: 1 }]);
        assert_eq!(
            snapshot
                .events_since(&Cursor::default(), Unfinished::Wait)
                .events,
            []
        );
    }

    #[test]
    fn vm_counts_as_guarded_only_once_policy_is_in_it() {
        let words = run(false);
        let page = Page::new(&words).unwrap();
        let _ = (page.add_vm(42, 1), page.add_vm(42, 2));
        page.count_guarded_vm();
        let snapshot = Snapshot::new(&copy(&words)).unwrap();
        assert_eq!((snapshot.vms_guarded(), snapshot.vms().len()), (1, 2));
    }

    /// Returns the new events for a reader that has already read the events before `from`.
    fn read(words: &[AtomicU64], from: &Cursor, unfinished: Unfinished) -> Followed {
        let snapshot = Snapshot::new(&copy(words)).unwrap();
        snapshot.events_since(from, unfinished)
    }

    /// Writes into the page how many events of each ring were read, as the command does.
    fn take(words: &[AtomicU64], cursor: &Cursor) {
        let taken = cursor.taken();
        let (taken, _) = taken.as_chunks();
        let first = usize::try_from(Cursor::POSITION / 8).unwrap();
        for (word, bytes) in words[first..].iter().zip(taken) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }

    fn times(followed: &Followed) -> Vec<u64> {
        followed.events.iter().map(|event| event.time).collect()
    }

    /// A reader does not skip an incomplete event, whose last word is 0, until newer events fill half of the
    /// ring.
    #[test]
    fn reader_waits_for_incomplete_event_until_newer_events_fill_half_of_ring() {
        let words = run(true);
        let page = Page::new(&words).unwrap();
        let note = |time| page.note(&seen(0x8b, time), Limited::Passes);
        (0..3).for_each(note);
        let layout = Snapshot::new(&copy(&words)).unwrap().layout;
        words[layout.event(0, 1) + EVENT_WORDS - 1].store(0, Ordering::Relaxed);
        let begin = Cursor::default();
        let waited = read(&words, &begin, Unfinished::Wait);
        assert_eq!((times(&waited), waited.lost), (vec![0], 0));
        let skipped = read(&words, &waited.next, Unfinished::Skip);
        assert_eq!((times(&skipped), skipped.lost), (vec![2], 1));
        (3..1024).for_each(note);
        assert_eq!(
            read(&words, &waited.next, Unfinished::Wait),
            waited_again(&waited)
        );
        note(1024);
        let skipped = read(&words, &waited.next, Unfinished::Wait);
        assert_eq!((skipped.events.len(), skipped.lost), (1023, 1));
    }

    fn waited_again(waited: &Followed) -> Followed {
        Followed {
            events: Vec::new(),
            ..waited.clone()
        }
    }

    /// An access that was counted, but neither written into a ring nor held back, counts as one without an
    /// event.
    #[test]
    fn snapshot_returns_number_of_accesses_that_have_no_event() {
        let words = run(true);
        let page = Page::new(&words).unwrap();
        page.note(&seen(0x8b, 1), Limited::Passes);
        page.note(&seen(0x8b, 2), Limited::HeldBack);
        page.note(&seen(0x8b, 3), Limited::Silent);
        let snapshot = Snapshot::new(&copy(&words)).unwrap();
        assert_eq!((snapshot.without_event(), snapshot.held_back()), (0, 1));
        assert_eq!(snapshot.recorded()[0].count, 3);
        words[word::OTHERS].store(1, Ordering::Relaxed);
        assert_eq!(Snapshot::new(&copy(&words)).unwrap().without_event(), 1);
    }

    #[test]
    fn state_page_counts_accesses_whose_kind_finds_no_free_place_in_it() {
        let words = run(false);
        let page = Page::new(&words).unwrap();
        for index in 0..20_000 {
            page.note(&seen(index, 1), Limited::Passes);
        }
        let snapshot = Snapshot::new(&copy(&words)).unwrap();
        let counted: u64 = snapshot.recorded().iter().map(|one| one.count).sum();
        assert!(snapshot.others() > 0);
        assert_eq!(counted + snapshot.others(), 20_000);
        let recorded: Vec<_> = snapshot
            .recorded()
            .iter()
            .map(|one| one.first.kind)
            .collect();
        for index in 0..20_000 {
            let kind = seen(index, 1).kind;
            let since = (!recorded.contains(&kind)).then_some(1);
            assert_eq!(snapshot.without_place_since(kind), since, "{index}");
        }
    }

    /// A full ring keeps a VM's unread events, and each further event of the VM is counted as held back.
    /// Another VM's ring still has room.
    #[test]
    fn full_event_ring_keeps_unread_events_and_counts_further_ones_as_held_back() {
        let words = run(true);
        let page = Page::new(&words).unwrap();
        let of_vm = |vm, time| Seen {
            vm,
            ..seen(0x8b, time)
        };
        let mut cursor = Cursor::default();
        for round in 0..3 {
            for time in 0..3000 {
                page.note(&of_vm(1, round * 10_000 + time), Limited::Passes);
            }
            page.note(&of_vm(2, round * 10_000 + 1), Limited::Passes);
            let mut killed = of_vm(1, round * 10_000 + 9000);
            killed.kind.disposition = Disposition::Killed;
            page.note(&killed, Limited::Passes);
            let followed = read(&words, &cursor, Unfinished::Wait);
            assert_eq!(followed.lost, 0);
            assert_eq!(followed.events.len(), 2048 - 32 + 2);
            assert!(times(&followed).is_sorted());
            assert_eq!(followed.events.last(), Some(&killed));
            assert_eq!(
                followed.events.iter().filter(|event| event.vm == 2).count(),
                1
            );
            cursor = followed.next;
            take(&words, &cursor);
        }
        let snapshot = Snapshot::new(&copy(&words)).unwrap();
        assert_eq!(snapshot.held_back(), 3 * (3000 - 2048 + 32));
        assert_eq!(snapshot.without_event(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever bytes a VMM's process writes into the page, reading the page stays within bounds or
        /// returns an error.
        #[test]
        fn snapshot_of_any_bytes_stays_in_bounds_or_returns_error(
            changes in prop::collection::vec((0_usize..2000, any::<u64>()), 0..40),
            cut in 0_usize..5000,
        ) {
            let words = run(true);
            for (at, value) in changes {
                words[at].store(value, Ordering::Relaxed);
            }
            let mut bytes = copy(&words);
            bytes.truncate(bytes.len() - cut);
            if let Ok(snapshot) = Snapshot::new(&bytes) {
                let _ = (snapshot.recorded(), snapshot.vms(), snapshot.others());
                let followed = snapshot.events_since(&Cursor::default(), Unfinished::Skip);
                let _ = (snapshot.without_event(), snapshot.events_since(&Cursor::default(), Unfinished::Wait));
                prop_assert!(followed.events.len() <= RINGS * 2048);
            }
            if let Ok(page) = Page::new(&words) {
                page.note(&seen(1, 1), Limited::Passes);
                let _ = page.program();
            }
        }
    }
}
