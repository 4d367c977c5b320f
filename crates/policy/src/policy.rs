//! What a policy says, after its text is understood and before anything is resolved.

use miette::SourceSpan;
use msrgate_filter::Access;
use msrgate_program::{Action, CpuSet, EntryId, MsrSet};

use crate::limits::MAX_FILES;
use crate::source::{Place, Source, small};
pub(crate) use msrgate_program::{Log, Microcode, Mode, Unknown, UnknownAction, Update};

/// One of a policy's texts: [`Policy::sources`] by number, 0 the policy itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

/// One of a policy's `[[when]]`s: [`Policy::whens`] by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WhenId(u32);

/// An id is the number of something in a policy, of which there are far fewer than 2^32.
macro_rules! numbered {
    ($($id:ident)*) => {$(
        impl $id {
            pub(crate) fn new(number: usize) -> Self {
                Self(small(number))
            }

            pub(crate) const fn number(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

numbered!(SourceId WhenId);

/// Some of a policy's texts, of which there are at most [`MAX_FILES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SourceSet([u64; MAX_FILES.div_ceil(64)]);

impl SourceSet {
    pub(crate) fn insert(&mut self, id: SourceId) {
        if let Some(word) = self.0.get_mut(id.number() / 64) {
            *word |= 1 << (id.number() % 64);
        }
    }

    /// The set of one text.
    pub(crate) fn of(id: SourceId) -> Self {
        let mut set = Self::default();
        set.insert(id);
        set
    }

    /// The texts that are in both.
    pub(crate) fn shared(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        self
    }

    /// The texts that `other` does not contain.
    pub(crate) fn without(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
        self
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The first text.
    pub(crate) fn first(self) -> Option<SourceId> {
        let mut words = self.0.iter().enumerate();
        let (number, word) = words.find(|(_, word)| **word != 0)?;
        Some(SourceId::new(64 * number + word.trailing_zeros() as usize))
    }

    /// The texts, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = SourceId> {
        let all = (0..MAX_FILES).map(SourceId::new);
        all.filter(move |id| self.contains(*id))
    }

    /// Adds all texts of `other`.
    pub(crate) fn extend(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    pub(crate) fn contains(&self, id: SourceId) -> bool {
        let word = self.0.get(id.number() / 64);
        word.is_some_and(|word| word >> (id.number() % 64) & 1 == 1)
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// The policy's own text.
pub(crate) const OWN: SourceId = SourceId(0);

/// Where something stands. Small, since every entry has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct At {
    source: SourceId,
    offset: u32,
    length: u32,
}

impl At {
    pub(crate) fn new(source: SourceId, span: SourceSpan) -> Self {
        let [offset, length] = [span.offset(), span.len()].map(small);
        Self {
            source,
            offset,
            length,
        }
    }

    pub(crate) const fn source(self) -> SourceId {
        self.source
    }

    pub(crate) fn span(self) -> SourceSpan {
        SourceSpan::new((self.offset as usize).into(), self.length as usize)
    }
}

/// One line of `[msrs]`, or of a `[when.msrs]`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) at: At,
    pub(crate) place: Place,
    pub(crate) when: Option<WhenId>,
    pub(crate) msrs: MsrSet,
    /// By [`Access`]; `None` takes what a wider entry or the default says.
    pub(crate) actions: [Option<Action>; 2],
    pub(crate) why: Option<Box<str>>,
    pub(crate) log: Option<Log>,
    pub(crate) replaces: Replaces,
    pub(crate) firmness: Firmness,
}

/// Whether an entry may take the place of an included one (`override`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replaces {
    #[default]
    Nothing,
    Included,
}

/// Whether another entry may loosen one (`final`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Firmness {
    #[default]
    Loosenable,
    Final,
}

impl Entry {
    /// The key as the policy writes it: a name, an index, a range or a group.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Which text it stands in.
    #[must_use]
    pub const fn source(&self) -> SourceId {
        self.at.source()
    }

    /// Where in that text its key stands.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The `[[when]]` it belongs to; `None` holds for every processor.
    #[must_use]
    pub const fn when(&self) -> Option<WhenId> {
        self.when
    }

    /// The MSRs it speaks of.
    #[must_use]
    pub const fn msrs(&self) -> &MsrSet {
        &self.msrs
    }

    /// What it says of one direction, or `None` where it says `"inherit"`.
    #[must_use]
    pub const fn action(&self, access: Access) -> Option<&Action> {
        self.actions[access as usize].as_ref()
    }

    /// The author's reason.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// What it says of logging, if it says something.
    #[must_use]
    pub const fn log(&self) -> Option<Log> {
        self.log
    }
}

/// A `[[when]]`.
#[derive(Clone, Debug)]
pub struct When {
    pub(crate) cpus: CpuSet,
}

impl When {
    /// The processors it speaks of.
    #[must_use]
    pub const fn cpus(&self) -> &CpuSet {
        &self.cpus
    }
}

/// A policy without mistakes: entries that overlap are nested, or agree.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) sources: Vec<Source>,
    pub(crate) settings: Settings,
    pub(crate) whens: Vec<When>,
    pub(crate) entries: Vec<Entry>,
    /// The texts that each text includes, in one step or more.
    pub(crate) below: Vec<SourceSet>,
}

/// What a policy says outside of its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its `name`, if it has one.
    pub name: Option<Box<str>>,
    /// Whether refusals are carried out.
    pub mode: Mode,
    /// What happens to MSRs that no entry names: allow or deny.
    pub default: Action,
    /// What becomes of MSRs that KVM does not know.
    pub unknown: Unknown,
    /// Which accesses become events.
    pub log: Log,
    /// Gaps in enforcement that the author knows of, by their words.
    pub accept: Vec<Box<str>>,
    /// The microcode device, if it is set up.
    pub microcode: Option<Microcode>,
}

impl Policy {
    /// Its own text.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.sources[0]
    }

    /// Its own text, then those it includes.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The text of this number.
    ///
    /// # Panics
    /// The number is another policy's and this one has fewer texts.
    #[must_use]
    pub fn text(&self, id: SourceId) -> &Source {
        &self.sources[id.number()]
    }

    /// The texts by which this one is included, from the policy's own down to the one nearest to
    /// it; none for the policy's own.
    #[must_use]
    pub fn includers(&self, id: SourceId) -> Vec<&Source> {
        let mut way = Vec::new();
        let mut at = SourceId(0);
        while at != id && self.below[at.number()].contains(id) {
            way.push(self.text(at));
            // The one with most below it leaves out none between it and the rest.
            let below = &self.below[at.number()];
            let next = (0..self.sources.len())
                .map(SourceId::new)
                .filter(|next| below.contains(*next))
                .filter(|next| *next == id || self.below[next.number()].contains(id))
                .max_by_key(|next| (self.below[next.number()].len(), *next != id));
            at = next.unwrap_or(id);
        }
        way
    }

    /// What it says outside of its entries.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its `name`, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.settings.name.as_deref()
    }

    /// What happens to MSRs that no entry names, reads and writes alike.
    #[must_use]
    pub const fn default_action(&self) -> &Action {
        &self.settings.default
    }

    /// Its `[[when]]`s.
    #[must_use]
    pub fn whens(&self) -> &[When] {
        &self.whens
    }

    /// Its entries, in the order of the texts.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The ids of its entries, in the same order.
    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        (0..self.entries.len()).map(EntryId::new)
    }

    /// The entry with this id.
    ///
    /// # Panics
    /// The id is another policy's and this one has fewer entries.
    #[must_use]
    pub fn entry(&self, id: EntryId) -> &Entry {
        &self.entries[id.number()]
    }
}
