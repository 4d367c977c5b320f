//! The layout of a state page, and the bytes of a new state page.

use std::fmt;

/// The text that identifies a build: the version of the crate, and a digest of the sources that the command
/// and its library share. The build script computes the digest. The command refuses a library with another
/// text.
pub const BUILD: &str = concat!(
    "msrgate-build ",
    env!("CARGO_PKG_VERSION"),
    " ",
    env!("MSRGATE_SOURCES")
);

/// The first bytes of a state page.
pub const MAGIC: &[u8; 8] = b"MSRGATE\n";
/// The first word of a state page: [`MAGIC`] as a number.
const MAGIC_WORD: u64 = u64::from_le_bytes(*MAGIC);
const VERSION: u64 = 2;

/// The largest size of an encoded program in bytes. Even a policy of the largest size becomes a far smaller
/// program.
pub const MAX_PROGRAM: usize = 16 << 20;

/// The number of places in a state page: each place records one kind of access.
const PLACES: usize = 8192;
/// The number of rings of events. Each VM has a ring of its own, unless the run has more VMs than rings:
/// some VMs then share a ring.
pub(crate) const RINGS: usize = 8;
/// The number of events for which a ring has room.
const EVENTS: usize = 2048;
/// The number of a ring's entries that are kept free for accesses with the action `kill`. Such accesses are
/// few, as each one ends the VMM.
pub(crate) const FOR_KILLS: u64 = 32;
/// The number of entries that a state page has for VMs.
const VMS: usize = 64;

/// The number of words of a place, which records one kind of access.
pub(crate) const PLACE_WORDS: usize = 8;
/// The number of words of an event in a ring.
pub(crate) const EVENT_WORDS: usize = 8;
/// The number of words of a VM's entry.
pub(crate) const VM_WORDS: usize = 4;

/// The positions of the fields in the state page's header, in words.
pub(crate) mod word {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    pub(crate) const SIZE: usize = 2;
    pub(crate) const COOKIE: usize = 3;
    pub(crate) const REASONS: usize = 4;
    pub(crate) const IGNORE_MSRS: usize = 5;
    pub(crate) const PROGRAM: usize = 6;
    pub(crate) const PLACES: usize = 7;
    pub(crate) const EVENTS: usize = 8;
    pub(crate) const WATCHED: usize = 9;
    /// The position of the number of VMs that were made in the run, including those that the VMM did not get
    /// in the end.
    pub(crate) const VMS_MADE: usize = 16;
    /// The position of the number of accesses whose kind found no free place in the page.
    pub(crate) const OTHERS: usize = 17;
    /// The position of the number of accesses that the policy wants no event of.
    pub(crate) const SILENT: usize = 18;
    /// The position of the number of events that the library did not put into a ring because of the limit on events
    /// per second, or because the ring had no room for them.
    pub(crate) const HELD_BACK: usize = 19;
    /// The position of the number of VMs into which the policy was put.
    pub(crate) const VMS_GUARDED: usize = 20;
    /// The position of the first of the counters of events that the library has put into a ring: one counter
    /// for each ring.
    pub(crate) const PUT: usize = 24;
    /// The position of the first of the counters of events that the command has read from a ring: one
    /// counter for each ring. The command writes them, and the library overwrites no event that is yet to be
    /// read.
    pub(crate) const TAKEN: usize = PUT + super::RINGS;
    /// The length of the header in words.
    pub(crate) const COUNT: usize = 64;
}

/// The positions of the parts of a state page, in words from the page's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(crate) vms: usize,
    pub(crate) places: usize,
    pub(crate) place_count: usize,
    pub(crate) events: usize,
    /// The number of events for which each ring has room.
    pub(crate) event_count: usize,
    pub(crate) program: usize,
    pub(crate) program_bytes: usize,
    pub(crate) words: usize,
}

/// The data of a new run that the command passes to the library in the VMM.
#[derive(Clone, Copy, Debug)]
pub struct NewRun<'p> {
    /// The cookie of the run: a number in the system calls that only the library may make. By the number the
    /// run's seccomp filter recognises these calls.
    pub cookie: u64,
    /// The exit reasons that this host's KVM accepts, as bits of the mask.
    pub reasons: u64,
    /// The exit reasons that the library asks for in addition to those that the program needs, as bits of the mask.
    pub watched: u64,
    /// The host's `kvm.ignore_msrs`: 0 off, 1 on, 2 unknown.
    pub ignore_msrs: u64,
    /// The encoded program into which the run's policy was compiled.
    pub program: &'p [u8],
    /// True if the command reads events of this run: the page then has rings for events.
    pub has_events: bool,
}

/// The reason why bytes are not a state page of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadPage {
    /// The bytes do not begin with `MSRGATE` and a line feed, or are shorter than the header.
    NotAPage,
    /// The state page has this version, but the crate reads another one.
    Version(u64),
    /// A number in the header contradicts another number in the header, or the size of the file.
    Header,
}

impl fmt::Display for BadPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPage => f.write_str("it is no state page of msrgate"),
            Self::Version(version) => write!(
                f,
                "it is a state page of version {version}, and this msrgate knows {VERSION}"
            ),
            Self::Header => f.write_str("its header contradicts itself"),
        }
    }
}

impl std::error::Error for BadPage {}

impl Layout {
    /// Returns the layout of a state page with `place_count` places, room for `event_count` events in each
    /// ring, and a program of `program_bytes` bytes.
    const fn of(place_count: usize, event_count: usize, program_bytes: usize) -> Self {
        let vms = word::COUNT;
        let places = vms + VMS * VM_WORDS;
        let events = places + place_count * PLACE_WORDS;
        let program = events + RINGS * event_count * EVENT_WORDS;
        Self {
            vms,
            places,
            place_count,
            events,
            event_count,
            program,
            program_bytes,
            words: program + program_bytes.div_ceil(8),
        }
    }

    /// Returns the layout of a state page from the words of the page's header. `words` is the number of
    /// words of the page that the caller has.
    ///
    /// # Errors
    /// The header is not that of a state page of this version, or the page is larger than `words`.
    pub(crate) fn read(header: impl Fn(usize) -> u64, words: usize) -> Result<Self, BadPage> {
        if words < word::COUNT || header(word::MAGIC) != MAGIC_WORD {
            return Err(BadPage::NotAPage);
        }
        if header(word::VERSION) != VERSION {
            return Err(BadPage::Version(header(word::VERSION)));
        }
        let bounded = |at: usize, most: usize| {
            let value = usize::try_from(header(at)).ok();
            value.filter(|value| *value <= most).ok_or(BadPage::Header)
        };
        let layout = Self::of(
            bounded(word::PLACES, PLACES)?,
            bounded(word::EVENTS, EVENTS)?,
            bounded(word::PROGRAM, MAX_PROGRAM)?,
        );
        let is_whole = usize::try_from(header(word::SIZE)) == Ok(layout.words * 8);
        if !is_whole || layout.words > words {
            return Err(BadPage::Header);
        }
        Ok(layout)
    }

    /// The position of the first word of the event with this number in this ring, in words.
    pub(crate) fn event(&self, ring: usize, number: u64) -> usize {
        let at = number.checked_rem(self.event_count as u64);
        let at = at.and_then(|at| usize::try_from(at).ok()).unwrap_or(0);
        self.events + (ring * self.event_count + at) * EVENT_WORDS
    }

    /// Returns the number of entries that a state page has for VMs.
    pub(crate) const fn vm_count() -> usize {
        VMS
    }

    /// The size of the largest state page in bytes. A reader reads at most this many bytes of a file.
    #[must_use]
    pub const fn largest() -> usize {
        Self::of(PLACES, EVENTS, MAX_PROGRAM).words * 8
    }
}

impl NewRun<'_> {
    /// Returns the bytes of a state page for this new run.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let events = if self.has_events { EVENTS } else { 0 };
        let layout = Layout::of(PLACES, events, self.program.len());
        let mut bytes = vec![0; layout.words * 8];
        let mut set = |at: usize, value: u64| {
            bytes[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        };
        set(word::MAGIC, MAGIC_WORD);
        set(word::VERSION, VERSION);
        set(word::SIZE, layout.words as u64 * 8);
        set(word::COOKIE, self.cookie);
        set(word::REASONS, self.reasons);
        set(word::WATCHED, self.watched);
        set(word::IGNORE_MSRS, self.ignore_msrs);
        set(word::PROGRAM, self.program.len() as u64);
        set(word::PLACES, PLACES as u64);
        set(word::EVENTS, events as u64);
        bytes[layout.program * 8..][..self.program.len()].copy_from_slice(self.program);
        bytes
    }
}
