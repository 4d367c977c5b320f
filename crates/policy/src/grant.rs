//! Grants: changes to a policy's text, each of which allows an access that the policy refuses.

use std::fmt;

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::{Action, DecidedBy, Line, Origin, shown_name};

use crate::compile::Compiled;
use crate::policy::{Entry, OWN, Policy, Replaces};
use crate::registers;

/// A change to a policy's text that allows accesses in one direction or both, and leaves the other direction as it is.
/// `Display` gives words such as `to allow, in line 4: IA32_PAT = "rw"`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Grant {
    /// A new entry for the policy's `[msrs]`.
    Add(String),
    /// A new entry for the `[[when]]` that contains the line.
    AddToWhen {
        /// The text of the new entry.
        entry: String,
        /// A line of the `[[when]]` section that gets the new entry.
        at: GrantLine,
    },
    /// A new text for the entry that begins in the line, or for a field of that entry.
    Change {
        /// The new text, such as `read = "allow"`.
        text: String,
        /// The first line of the entry.
        at: GrantLine,
    },
    /// No change of one direction alone is possible: the entry that refuses the access answers reads and writes
    /// together, as a `register` does, and may refuse a write for its value.
    Together {
        /// The first line of the entry.
        at: GrantLine,
    },
    /// No change is possible: the entry that refuses the access is `final`.
    Final {
        /// The first line of the entry.
        at: GrantLine,
    },
}

/// A line of a policy or of a file that it includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantLine {
    /// The name of the included file. `None`: the line is in the policy itself.
    pub include: Option<String>,
    /// The number of the line, counted from 1.
    pub number: u32,
}

impl GrantLine {
    fn of(policy: &Policy, entry: &Entry) -> Self {
        let is_own = entry.source() == OWN;
        Self {
            include: (!is_own).then(|| policy.text(entry.source()).name().to_owned()),
            number: entry.place().line,
        }
    }
}

impl fmt::Display for GrantLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.include {
            Some(file) => write!(f, "{}:{}", shown_name(file), self.number),
            None => write!(f, "line {}", self.number),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(entry) => write!(f, "to allow: {entry}"),
            Self::AddToWhen { entry, at } => {
                write!(f, "to allow, in the [[when]] of {at}: {entry}")
            }
            Self::Change { text, at } => write!(f, "to allow, in {at}: {text}"),
            Self::Together { at } => write!(
                f,
                "{at} answers reads and writes together; to allow, change that entry as a whole"
            ),
            Self::Final { at } => write!(f, "{at} is final, so only a change of it can allow this"),
        }
    }
}

/// Returns the change that allows accesses to an MSR, which the part of the policy that `origin` names has refused.
/// Returns `None` if no change of the policy can allow them: KVM refuses them, or the MSR is the last one, for which
/// only the `default` decides.
#[must_use]
pub fn grant(
    compiled: &Compiled,
    origin: Origin,
    index: MsrIndex,
    accesses: Accesses,
) -> Option<Grant> {
    if index == MsrIndex::MAX {
        return None;
    }
    let policy = compiled.policy();
    match origin {
        Origin::Kvm => None,
        Origin::Default => Some(beyond_default(compiled, index, accesses)),
        Origin::Line(line) => entry_at(policy, line, index)
            .map(|entry| beyond_entry(compiled, entry, index, accesses)),
    }
}

fn entry_at(policy: &Policy, line: Line, index: MsrIndex) -> Option<&Entry> {
    let mut entries = policy.ids().map(|id| policy.entry(id));
    entries.find(|entry| {
        entry.place().line == line.number
            && u32::try_from(entry.source().number()) == Ok(line.file.number())
            && entry.msrs().contains(index)
    })
}

/// Returns the policy's own entry for this MSR alone, on all processors.
fn own_entry(policy: &Policy, index: MsrIndex) -> Option<&Entry> {
    let mut entries = policy.ids().map(|id| policy.entry(id));
    entries.find(|entry| {
        entry.source() == OWN
            && entry.when().is_none()
            && is_alone(entry)
            && entry.msrs().contains(index)
    })
}

fn is_alone(entry: &Entry) -> bool {
    entry.msrs().count() == 1
}

fn beyond_default(compiled: &Compiled, index: MsrIndex, accesses: Accesses) -> Grant {
    let policy = compiled.policy();
    let mut entries = policy.ids().map(|id| policy.entry(id));
    if let Some(entry) = entries.find(|entry| entry.is_final() && entry.msrs().contains(index)) {
        let at = GrantLine::of(policy, entry);
        return Grant::Final { at };
    }
    if let Some(entry) = own_entry(policy, index) {
        return changed(policy, entry, accesses);
    }
    let other = other_than(accesses);
    let mut variants = compiled.variants().iter();
    let is_by_default = other
        .is_none_or(|other| variants.all(|one| one.rule(index, other).by == DecidedBy::Default));
    let entry = if is_by_default {
        short(&key(index), accesses, &Action::Deny)
    } else {
        long(&key(index), accesses, "inherit", Replaces::Nothing)
    };
    Grant::Add(entry)
}

fn beyond_entry(compiled: &Compiled, entry: &Entry, index: MsrIndex, accesses: Accesses) -> Grant {
    let policy = compiled.policy();
    let at = GrantLine::of(policy, entry);
    let is_own = entry.source() == OWN;
    match (is_alone(entry), entry.when().is_some()) {
        _ if entry.is_final() => Grant::Final { at },
        (true, _) if is_own => changed(policy, entry, accesses),
        (false, false) => match own_entry(policy, index) {
            Some(own) => changed(policy, own, accesses),
            None => Grant::Add(long(&key(index), accesses, "inherit", Replaces::Nothing)),
        },
        (false, true) => Grant::AddToWhen {
            entry: long(&key(index), accesses, "inherit", Replaces::Nothing),
            at,
        },
        (true, is_in_when) => match other_action(entry, accesses) {
            // An entry that replaces this one has to say what this one says of the other direction.
            Some(kept @ (Action::Allow | Action::Deny)) if !is_in_when => {
                Grant::Add(long(&key(index), accesses, kept.word(), Replaces::Included))
            }
            None if !is_in_when => {
                Grant::Add(long(&key(index), accesses, "inherit", Replaces::Included))
            }
            _ => changed(policy, entry, accesses),
        },
    }
}

/// Returns the change by which an entry for one MSR allows these accesses.
fn changed(policy: &Policy, entry: &Entry, accesses: Accesses) -> Grant {
    let at = GrantLine::of(policy, entry);
    let is_together = |action: &Action| matches!(action, Action::Register(_) | Action::Device(_));
    if Access::ALL
        .iter()
        .any(|one| entry.action(*one).is_some_and(is_together))
    {
        return Grant::Together { at };
    }
    let is_plain = entry.why().is_none()
        && entry.log().is_none()
        && !entry.is_final()
        && entry.replaces == Replaces::Nothing;
    let text = match other_action(entry, accesses) {
        Some(other @ (Action::Allow | Action::Deny)) if is_plain => {
            short(entry.key(), accesses, other)
        }
        _ => {
            let granted = Access::ALL.into_iter().filter(|one| accesses.contain(*one));
            let fields: Vec<_> = granted.map(|one| format!("{one} = \"allow\"")).collect();
            fields.join(", ")
        }
    };
    Grant::Change { text, at }
}

fn key(index: MsrIndex) -> String {
    registers::by_index(index)
        .map_or_else(|| index.to_string(), |register| register.name.to_owned())
}

/// The direction that is to stay as it is, if there is one.
const fn other_than(accesses: Accesses) -> Option<Access> {
    match accesses {
        Accesses::Read => Some(Access::Write),
        Accesses::Write => Some(Access::Read),
        Accesses::Both => None,
    }
}

/// Returns the entry's action for the direction that is to stay. If there is none, returns `allow`.
fn other_action(entry: &Entry, accesses: Accesses) -> Option<&Action> {
    match other_than(accesses) {
        Some(other) => entry.action(other),
        None => Some(&Action::Allow),
    }
}

/// Returns an entry of letters that allows the accesses, and has `other` for the other direction.
fn short(key: &str, accesses: Accesses, other: &Action) -> String {
    let letters = match (accesses, other) {
        (Accesses::Both, _) | (_, Action::Allow) => "rw",
        (Accesses::Read, _) => "r",
        (Accesses::Write, _) => "w",
    };
    format!("{key} = \"{letters}\"")
}

/// Returns an entry with fields that allows the accesses, and has the word `other` for the other direction.
fn long(key: &str, accesses: Accesses, other: &str, replaces: Replaces) -> String {
    let [read, write] = match accesses {
        Accesses::Read => ["allow", other],
        Accesses::Write => [other, "allow"],
        Accesses::Both => ["allow"; 2],
    };
    let replaces = match replaces {
        Replaces::Nothing => "",
        Replaces::Included => ", override = true",
    };
    format!("{key} = {{ read = \"{read}\", write = \"{write}\"{replaces} }}")
}

#[cfg(test)]
mod tests;
