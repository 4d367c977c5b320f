//! Advice about allowing an access, from the register table and from the shipped policies.

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::registers::{self, GapKind, Reach};
use msrgate_policy::{Action, Compiled, DecidedBy, compile, parse, write_effect};

use crate::failure::Failure;
use crate::files::{Files, Place};
use crate::shipped::shipped;

/// The shipped policy of an ordinary guest: what it allows is sound.
const ORDINARY: &str = "linux-guest";
/// The shipped policy that refuses what tells of other guests.
const SPIES: &str = "no-power-telemetry";

/// The shipped policies that are asked.
pub(super) struct Advisers {
    ordinary: Compiled,
    spies: Compiled,
}

/// The advice about allowing an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) verdict: Verdict,
    /// The reasons, as sentences without a full stop; the first one is that of the verdict.
    pub(super) reasons: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An ordinary guest needs the access, and KVM is safe with it.
    Sound,
    /// No shipped policy speaks for or against it.
    Look,
    /// The access tells of other guests, or a guest has no use for it.
    Unsound,
}

impl Verdict {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Look => "look",
            Self::Unsound => "unsound",
        }
    }

    /// Returns the verdict as the beginning of a line for people.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Sound => "sound to allow",
            Self::Look => "look before you allow it",
            Self::Unsound => "unsound to allow",
        }
    }
}

impl Advisers {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            ordinary: compiled(ORDINARY)?,
            spies: compiled(SPIES)?,
        })
    }

    /// Returns the advice about allowing an access.
    pub(super) fn of(&self, index: MsrIndex, access: Access) -> Advice {
        let (verdict, reason) = self.verdict(index, access);
        let mut reasons = vec![reason];
        let groups = registers::groups()
            .iter()
            .filter(|group| group.contains(index));
        reasons.extend(
            groups.map(|group| format!("it is in the group {}: {}", group.name, group.summary)),
        );
        if access == Access::Write
            && let Some(effect) = write_effect(index)
        {
            reasons.push(format!("a write {effect}"));
        }
        match registers::reach(index, access) {
            Reach::Enforced => {}
            Reach::Partly(gaps) | Reach::Not(gaps) => {
                reasons.extend(
                    gaps.iter()
                        .map(|gap| format!("a refusal does not hold always: {}", gap.why)),
                );
            }
        }
        let uses = registers::uses(index).filter(|gap| gap.kind == GapKind::Use);
        reasons.extend(uses.map(|gap| gap.why.to_owned()));
        Advice { verdict, reasons }
    }

    fn verdict(&self, index: MsrIndex, access: Access) -> (Verdict, String) {
        if let Some((false, why)) = says(&self.spies, index, access) {
            return (
                Verdict::Unsound,
                format!("the shipped policy {SPIES} refuses it{why}"),
            );
        }
        match says(&self.ordinary, index, access) {
            Some((true, why)) => (
                Verdict::Sound,
                format!("the shipped policy {ORDINARY} allows it{why}"),
            ),
            Some((false, _)) => (
                Verdict::Look,
                format!(
                    "the shipped policy {ORDINARY} refuses it: a Linux guest goes on without it"
                ),
            ),
            None if registers::by_index(index).is_none() => (
                Verdict::Look,
                "no public source names this MSR, and a Linux guest needs none of these".to_owned(),
            ),
            None => (
                Verdict::Look,
                format!(
                    "the shipped policy {ORDINARY} refuses it by its default: a Linux guest goes on without it"
                ),
            ),
        }
    }
}

/// Returns the decision that an entry of the policy makes about an access, and the entry's reason.
fn says(policy: &Compiled, index: MsrIndex, access: Access) -> Option<(bool, String)> {
    let rule = policy.on(None).rule(index, access);
    let DecidedBy::Entry(id) = rule.by else {
        return None;
    };
    let why = policy.policy().entry(id).why();
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    Some((*rule.action == Action::Allow, why))
}

fn compiled(name: &str) -> Result<Compiled, Failure> {
    let missing = || Failure::Refused(format!("there is no shipped policy {name}"));
    let shipped = shipped(name).ok_or_else(missing)?;
    let source = shipped.source();
    let mut files = Files::from(&source, &Place::Shipped(shipped));
    let resolved = parse(&source, &mut files).map_err(Failure::Mistakes)?;
    compile(resolved).map_err(|error| Failure::Refused(error.to_string()))
}
