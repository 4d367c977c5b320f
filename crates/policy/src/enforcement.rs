//! The extent to which each entry of a policy is enforced.

use std::collections::BTreeMap;
use std::fmt;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, Comparison, DecidedBy, EntryId, MsrRange, MsrSet, Rule, Variant};

use crate::compile::Compiled;
use crate::policy::{Mode, Settings};
use crate::punctures::punctures;
use crate::registers::{self, Gap, Reach};

/// The extent to which an entry is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Every access for which KVM asks a filter gets the entry's action.
    Enforced,
    /// Some accesses bypass the entry, and the other accesses get its action.
    Partly,
    /// Every access to the entry's MSRs bypasses the entry.
    Not,
}

/// Writes `enforced`, `partly` or `not`.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforced => "enforced",
            Self::Partly => "partly",
            Self::Not => "not",
        })
    }
}

/// The reason for which some accesses bypass an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A gap in the kernel: KVM does not ask the filter about these accesses.
    Gap(&'static Gap),
    /// The policy's `mode` is `"audit"`, so no access is refused.
    Audit,
    /// A looser entry of another file lies within the bypassed entry, and decides these accesses.
    Puncture(EntryId),
}

impl Cause {
    /// The name of the cause. The name of a gap is also the word by which a policy's `accept`
    /// accepts the gap.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gap(gap) => gap.name,
            Self::Audit => "audit",
            Self::Puncture(_) => "punctured",
        }
    }

    /// The explanation of the cause, as a sentence without its full stop.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Gap(gap) => gap.why,
            Self::Audit => {
                "`mode = \"audit\"` refuses no access, but only records what the policy would refuse"
            }
            Self::Puncture(_) => {
                "an included entry that lies within this entry decides these accesses"
            }
        }
    }

    /// Returns true if this cause is a gap that the policy's `accept` names.
    #[must_use]
    pub fn is_accepted(self, settings: &Settings) -> bool {
        match self {
            Self::Gap(gap) => settings.accept.iter().any(|word| **word == *gap.name),
            Self::Audit | Self::Puncture(_) => false,
        }
    }
}

/// Accesses that do not, or not always, get the action that the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// The MSRs whose accesses bypass the entry. `None`: every MSR that the policy refuses.
    pub msrs: Option<MsrRange>,
    /// The direction of the accesses that bypass the entry: reads or writes.
    pub access: Access,
    /// The reason for which the accesses bypass the entry.
    pub cause: Cause,
}

/// The component that enforces an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Enforcer {
    /// The kernel's filter alone enforces the entry.
    Filter,
    /// A gate in the VMM enforces the entry by answering exits, or, in audit mode, lets the accesses through
    /// that the entry refuses. Without a gate the entry's accesses are refused.
    Gate,
}

/// Writes `filter` or `gate`.
impl fmt::Display for Enforcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Gate => "gate",
        })
    }
}

/// The extent to which one entry is enforced, on the accesses that the entry decides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enforcement {
    /// The entry that this enforcement is about. `None`: the policy's `default`.
    pub entry: Option<EntryId>,
    /// The extent to which the entry is enforced.
    pub extent: Extent,
    /// The component that enforces the entry.
    pub enforcer: Enforcer,
    /// The accesses that bypass the entry: reads before writes, in the order of MSRs.
    pub bypasses: Vec<Bypass>,
}

/// Returns the extent to which a rule is enforced, and the accesses that bypass the rule.
///
/// An allowed access counts as enforced, because nothing has to stop it. x2APIC registers never
/// count as enforced, because KVM asks no filter about them (S3.1).
#[must_use]
pub fn enforcement_of(
    settings: &Settings,
    segment: Rule<'_>,
    access: Access,
) -> (Extent, Vec<Bypass>) {
    if *segment.action == Action::Allow && segment.by != DecidedBy::Kvm {
        return (Extent::Enforced, Vec::new());
    }
    let bypass = |msrs, cause| Bypass {
        msrs,
        access,
        cause,
    };
    if is_let_through(settings, segment) {
        return (Extent::Not, vec![bypass(None, Cause::Audit)]);
    }
    let (mut extent, mut bypasses) = (Extent::Enforced, Vec::new());
    for (msrs, reach) in registers::exempt(segment.msrs, access) {
        extent = match reach {
            Reach::Not(_) if msrs == segment.msrs => Extent::Not,
            _ if extent == Extent::Not => Extent::Not,
            _ => Extent::Partly,
        };
        let gaps = reach.gaps().iter();
        for bypass in gaps.map(|gap| bypass(Some(msrs), Cause::Gap(gap))) {
            // Two rows of the table of gaps may have the same gap, which is listed once.
            if !bypasses.contains(&bypass) {
                bypasses.push(bypass);
            }
        }
    }
    (extent, bypasses)
}

/// Returns true if audit mode lets accesses through that this rule refuses. No filter can let MSR 0xffffffff
/// alone through, so an audit refuses it, too (S3.5).
fn is_let_through(settings: &Settings, segment: Rule<'_>) -> bool {
    settings.mode == Mode::Audit
        && segment.action.refuses()
        && segment.msrs.first() != MsrIndex::MAX
}

/// Returns the extent to which each entry is enforced, on all processors together, in the order of
/// the entries. Entries that neither decide an access nor are bypassed are left out. If the default
/// refuses, the default comes last.
#[must_use]
pub fn enforcement(compiled: &Compiled) -> Vec<Enforcement> {
    let settings = compiled.policy().settings();
    let mut found: BTreeMap<Option<EntryId>, (Vec<Extent>, Enforcement)> = BTreeMap::new();
    for (access, segment) in compiled.variants().iter().flat_map(|variant| {
        let of = |access| variant.rules().of(access).map(move |one| (access, one));
        Access::ALL.into_iter().flat_map(of)
    }) {
        let entry = match segment.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default if *segment.action == Action::Allow => continue,
            DecidedBy::Default => None,
            DecidedBy::Kvm => continue,
        };
        let (extent, bypasses) = enforcement_of(settings, segment, access);
        let (extents, so_far) = found.entry(entry).or_insert_with(|| new_enforcement(entry));
        // An entry's allowed accesses do not change the extent of its refusals.
        if *segment.action != Action::Allow {
            extents.push(extent);
        }
        if segment.action.needs_answer() || is_let_through(settings, segment) {
            so_far.enforcer = Enforcer::Gate;
        }
        for bypass in bypasses {
            if !so_far.bypasses.contains(&bypass) {
                so_far.bypasses.push(bypass);
            }
        }
    }
    let mut punctured = punctured(compiled);
    for &id in punctured.keys() {
        let (extents, _) = found
            .entry(Some(id))
            .or_insert_with(|| new_enforcement(Some(id)));
        // If other entries decide all accesses of this entry, and no action is as strict as this
        // entry's, then the entry is not enforced at all.
        if extents.is_empty() && !holds_somewhere(compiled, id) {
            extents.push(Extent::Not);
        }
    }
    let mut all: Vec<_> = found
        .into_values()
        .map(|(mut extents, mut enforcement)| {
            if let Some(bypasses) = enforcement.entry.and_then(|id| punctured.remove(&id)) {
                enforcement.bypasses.extend(bypasses);
                extents.push(match together(&extents) {
                    Extent::Not => Extent::Not,
                    Extent::Enforced | Extent::Partly => Extent::Partly,
                });
            }
            enforcement.extent = together(&extents);
            let order = |bypass: &Bypass| (bypass.access, bypass.msrs.map(MsrRange::first));
            enforcement.bypasses.sort_by_key(order);
            enforcement
        })
        .collect();
    // The enforcement of the default has `None` as its entry, which sorts first.
    if all.first().is_some_and(|one| one.entry.is_none()) {
        all.rotate_left(1);
    }
    all
}

/// Returns true if at least one access that the entry restricts gets an action no looser than the
/// entry's own action.
fn holds_somewhere(compiled: &Compiled, id: EntryId) -> bool {
    let entry = compiled.policy().entry(id);
    Access::ALL.into_iter().any(|access| {
        let said = entry.action(access).filter(|said| **said != Action::Allow);
        said.is_some_and(|said| {
            let tables = compiled.variants().iter().map(Variant::rules);
            let segments = tables.flat_map(|table| {
                let ranges = entry.msrs().ranges().iter();
                ranges.flat_map(move |&range| table.within(range, access))
            });
            let mut decided = segments.filter(|segment| segment.by != DecidedBy::Kvm);
            decided.any(|one| one.action.compared_with(said) == Comparison::NoLooser)
        })
    })
}

fn new_enforcement(entry: Option<EntryId>) -> (Vec<Extent>, Enforcement) {
    let enforcement = Enforcement {
        entry,
        extent: Extent::Enforced,
        enforcer: Enforcer::Filter,
        bypasses: Vec::new(),
    };
    (Vec::new(), enforcement)
}

/// Returns, for each entry, the accesses that bypass it because a looser entry of another file
/// decides them.
fn punctured(compiled: &Compiled) -> BTreeMap<EntryId, Vec<Bypass>> {
    let mut punctured = BTreeMap::<_, Vec<Bypass>>::new();
    for puncture in punctures(compiled) {
        let bypasses = punctured.entry(puncture.wide).or_default();
        for (access, msrs) in Access::ALL.into_iter().zip(&puncture.msrs) {
            let ranges = msrs.iter().flat_map(MsrSet::ranges);
            bypasses.extend(ranges.map(|&msrs| Bypass {
                msrs: Some(msrs),
                access,
                cause: Cause::Puncture(puncture.narrow),
            }));
        }
    }
    punctured
}

fn together(extents: &[Extent]) -> Extent {
    match extents.split_first() {
        None => Extent::Enforced,
        Some((first, rest)) if rest.iter().all(|one| one == first) => *first,
        Some(_) => Extent::Partly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoIncludes, Source, compile, parse};

    /// Lists the entries: name, extent, enforcer, and the accesses that bypass the entry.
    fn found(text: &str) -> Vec<String> {
        let source = Source::new("policy.toml", text);
        let policy = parse(&source, &mut NoIncludes).unwrap();
        let compiled = compile(policy).unwrap();
        let policy = compiled.policy();
        let shown = enforcement(&compiled).into_iter().map(|one| {
            let name = one.entry.map_or("default", |id| policy.entry(id).key());
            let bypasses = one.bypasses.iter().map(|bypass| {
                let accepted = if bypass.cause.is_accepted(policy.settings()) {
                    " accepted"
                } else {
                    ""
                };
                let msrs = bypass
                    .msrs
                    .map_or("all".to_owned(), |msrs| msrs.to_string());
                format!(
                    ", {} {msrs} {}{accepted}",
                    bypass.access,
                    bypass.cause.name()
                )
            });
            let bypasses: String = bypasses.collect();
            format!("{name} {} by {}{bypasses}", one.extent, one.enforcer)
        });
        shown.collect()
    }

    #[test]
    fn enforcement_of_refusal_that_some_accesses_bypass_through_kernel_gap_is_partial() {
        assert_eq!(
            found(
                "policy = 1\ndefault = 'deny'\naccept = ['tsc-deadline-fastpath']\n[msrs]\nIA32_EFER = 'rw'\nIA32_TSC_DEADLINE = 'r'\n'0x6d0..=0x6ef' = { read = 'allow', write = 'ignore' }"
            ),
            [
                "IA32_EFER enforced by filter",
                "IA32_TSC_DEADLINE partly by filter, write 0x6e0 tsc-deadline-fastpath accepted",
                "0x6d0..=0x6ef enforced by gate",
                "default enforced by filter",
            ]
        );
        assert_eq!(
            found("policy = 1\ndefault = 'deny'"),
            ["default partly by filter, write 0x6e0 tsc-deadline-fastpath"]
        );
    }

    #[test]
    fn enforcement_of_allowed_access_is_full_although_kernel_has_gap() {
        assert_eq!(
            found("policy = 1\ndefault = 'allow'\n[msrs]\nIA32_TSC_DEADLINE = 'rw'"),
            ["IA32_TSC_DEADLINE enforced by filter"]
        );
    }

    #[test]
    fn enforcement_reports_refusal_in_audit_mode_as_not_enforced_and_needing_gate() {
        assert_eq!(
            found(
                "policy = 1\ndefault = 'allow'\nmode = 'audit'\n[msrs]\n0x10 = 'none'\n0x11 = 'rw'\n0x12 = { read = 'allow', write = 'kill' }\n0x17 = { read = { value = 0 }, write = 'deny' }"
            ),
            [
                "0x10 not by gate, read all audit, write all audit",
                "0x11 enforced by filter",
                "0x12 not by gate, write all audit",
                "0x17 partly by gate, write all audit",
            ]
        );
    }

    #[test]
    fn enforcement_lists_entry_of_when_section_once() {
        assert_eq!(
            found(
                "policy = 1\ndefault = 'allow'\n[msrs]\n0x6e0 = 'r'\n[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n0x10 = 'r'"
            ),
            [
                "0x6e0 partly by filter, write 0x6e0 tsc-deadline-fastpath",
                "0x10 enforced by filter",
            ]
        );
    }
}
