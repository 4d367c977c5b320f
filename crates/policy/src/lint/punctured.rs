//! Warnings about included entries that loosen part of a wider entry of another text.

use msrgate_filter::Access;
use msrgate_program::{MsrRange, MsrSet, one_line, shown_name};

use super::warning::{Code, Warning, listed};
use crate::compile::Compiled;
use crate::policy::Policy;
use crate::punctures::Puncture;
use crate::registers;

/// Returns a warning for each included entry and each wider entry that it loosens. The warnings
/// come in two parts: first one warning for each wider entry, then the further warnings.
pub(super) fn punctured<'c>(
    compiled: &'c Compiled,
    punctures: &[Puncture],
) -> impl Iterator<Item = Warning<'c>> {
    let policy = compiled.policy();
    let of = |puncture: &Puncture| {
        let wide = policy.entry(puncture.wide);
        let narrow = policy.entry(puncture.narrow);
        let loosened: Vec<_> = Access::ALL
            .into_iter()
            .filter_map(|access| loosened(policy, puncture, access))
            .collect();
        let (key, within) = (one_line(wide.key()), one_line(narrow.key()));
        let file = shown_name(policy.text(narrow.source()).name());
        let message = format!(
            "the included entry `{within}` at {file}:{} lies within `{key}` and loosens it: {}",
            narrow.place().line,
            loosened.join("; "),
        );
        let help = format!(
            "{}; if the included entry is right, copy it there unchanged",
            puncture.remedy
        );
        Warning {
            details: details(puncture),
            ..Warning::new(Code::Punctured, Some(wide), message, help)
        }
    };
    let by_wide = punctures.chunk_by(|one, next| one.wide == next.wide);
    let (firsts, others): (Vec<_>, Vec<_>) = by_wide
        .filter_map(<[Puncture]>::split_first)
        .map(|(first, others)| (of(first), others))
        .unzip();
    let others: Vec<_> = others.into_iter().flatten().map(of).collect();
    firsts.into_iter().chain(others)
}

/// Returns a phrase such as `reads of 0xe7 IA32_MPERF, 0xe8 IA32_APERF are "allow", not "deny"`.
fn loosened(policy: &Policy, puncture: &Puncture, access: Access) -> Option<String> {
    let msrs = puncture.msrs[access as usize].as_ref()?;
    let is = policy.entry(puncture.narrow).action(access)?;
    let not = policy.entry(puncture.wide).action(access)?;
    let names = names(msrs);
    Some(format!(
        "the action for {access}s of {names} is {is}, not {not}"
    ))
}

/// Returns the names of the registers among these MSRs, and the MSRs if some have no name.
fn names(msrs: &MsrSet) -> String {
    let within = |range: &MsrRange| {
        let all = registers::all();
        let from = all.partition_point(|register| register.index < range.first());
        let to = all.partition_point(|register| register.index <= range.last());
        &all[from..to]
    };
    let ranges = msrs.ranges().iter();
    let registers: Vec<_> = ranges.clone().flat_map(within).collect();
    let titles = registers.iter().map(|one| registers::titled(one.index));
    let names = listed(titles);
    if registers.len() as u64 == msrs.count() {
        return names;
    }
    let all = listed(ranges.map(ToString::to_string));
    if registers.is_empty() {
        all
    } else {
        format!("{all}, among them {names},")
    }
}

/// Returns a line such as "read of 0xe7..=0xe8" for each range and direction.
fn details(puncture: &Puncture) -> Vec<String> {
    let directions = Access::ALL.into_iter().zip(&puncture.msrs);
    directions
        .flat_map(|(access, msrs)| {
            let ranges = msrs.iter().flat_map(MsrSet::ranges);
            ranges.map(move |range| format!("{access} of {range}"))
        })
        .collect()
}
