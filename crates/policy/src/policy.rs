//! The content of a policy's text: parsed, not yet resolved.

use miette::SourceSpan;
use msrgate_filter::Access;
use msrgate_program::{Action, CpuSet, EntryId, MsrSet};

use crate::limits::MAX_FILES;
use crate::parse::words;
use crate::source::{Place, Source, small};
pub(crate) use msrgate_program::{Log, Microcode, Mode, Unknown, UnknownAction, Update};

/// The number of one of a policy's texts in [`Policy::sources`]; 0 is the policy's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

/// The number of one of a policy's `[[when]]` sections in [`Policy::whens`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WhenId(u32);

/// Defines the methods of ids, which are numbers of a policy's texts or `[[when]]` sections. A
/// policy has far fewer than 2^32 of either.
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

/// A set of a policy's texts. A policy has at most [`MAX_FILES`] texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SourceSet([u64; MAX_FILES.div_ceil(64)]);

impl SourceSet {
    pub(crate) fn insert(&mut self, id: SourceId) {
        if let Some(word) = self.0.get_mut(id.number() / 64) {
            *word |= 1 << (id.number() % 64);
        }
    }

    /// Returns the set that contains only this text.
    pub(crate) fn of(id: SourceId) -> Self {
        let mut set = Self::default();
        set.insert(id);
        set
    }

    /// Returns the texts that are in both sets.
    pub(crate) fn shared(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        self
    }

    /// Returns the texts of this set that `other` does not contain.
    pub(crate) fn without(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
        self
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Returns the text with the lowest number.
    pub(crate) fn first(self) -> Option<SourceId> {
        let mut words = self.0.iter().enumerate();
        let (number, word) = words.find(|(_, word)| **word != 0)?;
        Some(SourceId::new(64 * number + word.trailing_zeros() as usize))
    }

    /// Returns the texts in order of their numbers.
    pub(crate) fn iter(self) -> impl Iterator<Item = SourceId> {
        let all = (0..MAX_FILES).map(SourceId::new);
        all.filter(move |id| self.contains(*id))
    }

    /// Adds all texts of `other` to this set.
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

/// The number of the policy's own text.
pub(crate) const OWN: SourceId = SourceId(0);

/// A place in one of a policy's texts. The type is small because every entry has such a place.
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

/// One entry of a policy: a line of `[msrs]` or of a `[when.msrs]`, or a table below them.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) at: At,
    pub(crate) place: Place,
    pub(crate) when: Option<WhenId>,
    pub(crate) msrs: MsrSet,
    /// The actions, indexed by [`Access`]. `None` inherits the action of a wider entry or of the
    /// default.
    pub(crate) actions: [Option<Action>; 2],
    pub(crate) why: Option<Box<str>>,
    pub(crate) log: Option<Log>,
    pub(crate) replaces: Replaces,
    pub(crate) firmness: Firmness,
}

/// The permission of an entry to replace an included entry (`override`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replaces {
    #[default]
    Nothing,
    Included,
}

/// The permission of other entries to loosen an entry (`final` takes it away).
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

    /// The number of the text that contains the entry.
    #[must_use]
    pub const fn source(&self) -> SourceId {
        self.at.source()
    }

    /// The place of the entry's key in the text that contains the entry.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The `[[when]]` section that contains the entry. `None`: the entry holds on every processor.
    #[must_use]
    pub const fn when(&self) -> Option<WhenId> {
        self.when
    }

    /// The MSRs that the entry applies to.
    #[must_use]
    pub const fn msrs(&self) -> &MsrSet {
        &self.msrs
    }

    /// The entry's action in one direction. `None`: the entry says `"inherit"`.
    #[must_use]
    pub const fn action(&self, access: Access) -> Option<&Action> {
        self.actions[access as usize].as_ref()
    }

    /// Returns true if no other entry may loosen this one (`final`).
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self.firmness, Firmness::Final)
    }

    /// The reason that the author gives in `why`.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// The entry's own `log` setting, if the entry has one.
    #[must_use]
    pub const fn log(&self) -> Option<Log> {
        self.log
    }
}

/// A `[[when]]` section: entries for some processors.
#[derive(Clone, Debug)]
pub struct When {
    pub(crate) cpus: CpuSet,
}

impl When {
    /// The processors on which the section's entries hold.
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
    /// The texts that each text includes, directly or through others; indexed by [`SourceId`].
    pub(crate) below: Vec<SourceSet>,
}

/// The settings of a policy: everything but its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The policy's `name`, if the policy has one.
    pub name: Option<Box<str>>,
    /// The mode: enforce the policy, or only record what it would refuse (audit).
    pub mode: Mode,
    /// The default action, allow or deny, for MSRs that no entry names.
    pub default: Action,
    /// The answer to accesses of MSRs that KVM does not know.
    pub unknown: Unknown,
    /// The accesses that become events, unless an entry has a `log` of its own.
    pub log: Log,
    /// The gaps in enforcement that the author accepts, by [`Cause::name`](crate::Cause::name), and the
    /// warnings that the author accepts, by [`Warning::accept`](crate::lint::Warning::accept).
    pub accept: Vec<Box<str>>,
    /// The microcode device, if the policy sets it up.
    pub microcode: Option<Microcode>,
}

impl Settings {
    /// Returns the gaps that the author accepts. They are a part of what the policy enforces; an accepted
    /// warning is not.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = &str> {
        let words = self.accept.iter().map(|word| &**word);
        words.filter(|word| words::gaps().any(|gap| gap == *word))
    }
}

impl Policy {
    /// The policy's own text.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.sources[0]
    }

    /// The policy's own text, then the texts that it includes.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Returns the text with this number.
    ///
    /// # Panics
    /// Panics if the number comes from a policy with more texts, and is too large for this one.
    #[must_use]
    pub fn text(&self, id: SourceId) -> &Source {
        &self.sources[id.number()]
    }

    /// Returns the texts through which a text is included, from the policy's own text down to the
    /// one nearest to the included text. The list is empty for the policy's own text.
    #[must_use]
    pub fn includers(&self, id: SourceId) -> Vec<&Source> {
        let mut way = Vec::new();
        let mut at = SourceId(0);
        while at != id && self.below[at.number()].contains(id) {
            way.push(self.text(at));
            // Of the texts that lead to the included text, the one with the most texts below it
            // comes next: no other text lies between the two.
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

    /// The settings: everything but the entries.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The policy's `name`, if the policy has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.settings.name.as_deref()
    }

    /// The default action for reads and writes of MSRs that no entry names.
    #[must_use]
    pub const fn default_action(&self) -> &Action {
        &self.settings.default
    }

    /// The `[[when]]` sections of the policy.
    #[must_use]
    pub fn whens(&self) -> &[When] {
        &self.whens
    }

    /// The entries, in the order of the texts.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the ids of the entries, in the order of [`Self::entries`].
    pub fn ids(&self) -> impl Iterator<Item = EntryId> {
        (0..self.entries.len()).map(EntryId::new)
    }

    /// Returns the entry with this id.
    ///
    /// # Panics
    /// Panics if the id comes from a policy with more entries, and is too large for this one.
    #[must_use]
    pub fn entry(&self, id: EntryId) -> &Entry {
        &self.entries[id.number()]
    }
}
