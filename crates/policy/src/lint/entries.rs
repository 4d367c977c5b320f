//! Warnings about entries whose effect may differ from their author's intention.

use std::collections::HashSet;

use msrgate_filter::Access;
use msrgate_program::{Action, DecidedBy, EntryId, MsrRange, Variant, one_line};

use super::warning::{Code, Warning};
use crate::compile::Compiled;
use crate::policy::{Entry, OWN, Replaces};
use crate::punctures::Puncture;
use crate::registers;

/// Returns warnings about entries that decide no access on any processor. The wider entries in
/// `punctures` are left out: they have a warning of their own.
pub(super) fn without_effect<'c>(
    compiled: &'c Compiled,
    punctures: &[Puncture],
) -> Vec<Warning<'c>> {
    let tables = compiled.variants().iter().map(Variant::rules);
    let segments = tables.flat_map(|table| Access::ALL.map(|access| table.of(access)));
    let mut effective: HashSet<EntryId> = segments
        .flatten()
        .filter_map(|segment| match segment.by {
            DecidedBy::Entry(id) => Some(id),
            DecidedBy::Default | DecidedBy::Kvm => None,
        })
        .collect();
    effective.extend(punctures.iter().map(|one| one.wide));
    let policy = compiled.policy();
    // An override that inherits still removes the entries that it replaces.
    let takes_away = |id: &EntryId| policy.entry(*id).replaces == Replaces::Included;
    effective.extend(policy.ids().filter(takes_away));
    // An included entry that decides no access is not a mistake of the policy, so no warning is
    // given.
    let is_own = |id: &EntryId| policy.entry(*id).source() == OWN;
    let idle = policy
        .ids()
        .filter(|id| !effective.contains(id) && is_own(id));
    idle.map(|id| {
        let entry = policy.entry(id);
        if Access::ALL
            .iter()
            .all(|&access| entry.action(access).is_none())
        {
            let message = format!(
                "`{}` has no effect: it inherits the actions for reads and for writes",
                one_line(entry.key())
            );
            return Warning::new(Code::SaysNothing, Some(entry), message, "delete the entry");
        }
        let message = format!(
            "`{}` has no effect: other entries decide all of its MSRs",
            one_line(entry.key())
        );
        let help = "delete this entry, or the entries within it";
        Warning::new(Code::DecidesNothing, Some(entry), message, help)
    })
    .collect()
}

/// Returns warnings about entries that contain no register with a name.
pub(super) fn nameless(compiled: &Compiled) -> Vec<Warning<'_>> {
    let is_named = |entry: &&Entry| {
        let mut ranges = entry.msrs().ranges().iter();
        ranges.any(|range| {
            let all = registers::all();
            let from = all.partition_point(|register| register.index < range.first());
            all.get(from)
                .is_some_and(|register| range.contains(register.index))
        })
    };
    let nameless = compiled
        .policy()
        .entries()
        .iter()
        .filter(|entry| !is_named(entry));
    nameless
        .map(|entry| {
            let key = one_line(entry.key());
            let message = format!("`{key}` names no register that msrgate knows");
            let help = "check the index: `msrgate msr WORD` finds registers by name and by index";
            Warning::new(Code::Nameless, Some(entry), message, help)
        })
        .collect()
}

/// Returns warnings about ranges that allow far more MSRs than exist. A range from the first named
/// register to the last named register would be enough.
pub(super) fn too_wide(compiled: &Compiled) -> impl Iterator<Item = Warning<'_>> {
    /// The maximum number of MSRs without a name before the first named register of a range, or
    /// after the last.
    const SLACK: u64 = 0x100;
    let entries = compiled.policy().entries().iter();
    entries.filter_map(|entry| {
        let allows = |&access: &Access| entry.action(access) == Some(&Action::Allow);
        let range = entry
            .msrs()
            .as_range()
            .filter(|_| Access::ALL.iter().any(allows))?;
        let all = registers::all();
        let from = all.partition_point(|register| register.index < range.first());
        let to = all.partition_point(|register| register.index <= range.last());
        let named = all.get(from..to)?;
        let (first, last) = (named.first()?.index, named.last()?.index);
        let within = MsrRange::new(first, last)?;
        let outside = [
            u64::from(first.get() - range.first().get()),
            u64::from(range.last().get() - last.get()),
        ];
        outside.iter().any(|&count| count > SLACK).then(|| {
            let (key, count) = (one_line(entry.key()), range.count());
            let message = format!("`{key}` allows {count} MSRs, most of which do not exist");
            let help = format!("write `\"{within}\"`, which has all known registers of this range");
            Warning::new(Code::TooWide, Some(entry), message, help)
        })
    })
}
