//! From a policy to a filter that is shown to be equal to it.

use std::fmt;

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use crate::cpu::Cpu;
use crate::msrs::MsrRange;
use crate::pack::{PackError, pack};
use crate::parse::variants;
use crate::policy::{Policy, WhenId};
use crate::table::{Said, Table};

/// A policy with the filters that decide as it says.
#[derive(Clone, Debug)]
pub struct Compiled {
    policy: Policy,
    variants: Vec<Variant>,
}

/// What a policy says on the processors on which the same `[[when]]`s hold.
#[derive(Clone, Debug)]
pub struct Variant {
    holds: Vec<bool>,
    example: Cpu,
    table: Table,
    filter: Filter,
}

impl Compiled {
    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// One for each way in which the `[[when]]`s hold on some processor; at least one. That in
    /// which none does, if there is such a processor, is the first.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// What holds on this processor; without one, the first variant.
    #[must_use]
    pub fn on(&self, cpu: Option<&Cpu>) -> &Variant {
        let Some(cpu) = cpu else {
            return &self.variants[0];
        };
        let holds: Vec<_> = self
            .policy
            .whens()
            .iter()
            .map(|when| when.cpus().contains(cpu))
            .collect();
        let this = self.variants.iter().find(|variant| variant.holds == holds);
        this.unwrap_or(&self.variants[0])
    }
}

impl Variant {
    /// Which of the policy's `[[when]]`s hold.
    pub fn whens(&self) -> impl Iterator<Item = WhenId> {
        let ids = (0..self.holds.len()).map(WhenId);
        ids.filter(|id| self.holds[id.0])
    }

    /// A processor on which it holds.
    #[must_use]
    pub const fn example(&self) -> &Cpu {
        &self.example
    }

    /// What the policy says of every MSR.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// What the kernel gets.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }
}

/// A policy that became no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompileError {
    /// No filter can express it.
    Pack(PackError),
    /// The filter that was made is not what the policy says: a defect of this program, found by
    /// its check of all accesses. Nothing was installed.
    Differs {
        /// An MSR on which they differ.
        index: MsrIndex,
        /// In this direction.
        access: Access,
        /// What the policy says.
        wanted: Verdict,
    },
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pack(error) => fmt::Display::fmt(error, f),
            Self::Differs {
                index,
                access,
                wanted,
            } => write!(
                f,
                "a {access} of {index} is not decided as the policy says ({wanted:?}); this is a defect of msrgate, please report it with the policy"
            ),
        }
    }
}

impl std::error::Error for CompileError {}

/// Packs a policy, and compares the result with it over all 2^32 MSRs in both directions.
///
/// # Errors
/// The policy does not fit a filter, or the comparison failed.
pub fn compile(policy: Policy) -> Result<Compiled, CompileError> {
    let variants = variants(&policy).into_iter().map(|active| {
        let table = Table::resolve(&policy, &active.entries);
        let filter = pack(&table).map_err(CompileError::Pack)?;
        if let Some((index, access, wanted)) = first_difference(&table, &filter) {
            return Err(CompileError::Differs {
                index,
                access,
                wanted,
            });
        }
        Ok(Variant {
            holds: active.holds,
            example: active.example,
            table,
            filter,
        })
    });
    let variants = variants.collect::<Result<_, _>>()?;
    Ok(Compiled { policy, variants })
}

/// The first access that the filter does not decide as the table says.
///
/// Within the filter's ranges every MSR is asked about, at most 16 times 0x3000. Outside them the
/// filter has one answer, so one MSR of each stretch in which the table has one answer, too, is
/// enough. x2APIC registers are left out: the table says what KVM does, and KVM asks no filter.
pub(crate) fn first_difference(
    table: &Table,
    filter: &Filter,
) -> Option<(MsrIndex, Access, Verdict)> {
    let covered = covered(filter);
    for access in Access::ALL {
        for segment in table.segments(access) {
            let differs = |index: MsrIndex| {
                let wanted = segment.action.verdict();
                segment.said != Said::ByKvm && filter.decide(index, access).verdict != wanted
            };
            let found = points(segment.msrs, &covered).find(|&index| differs(index));
            if let Some(index) = found {
                return Some((index, access, segment.action.verdict()));
            }
        }
    }
    None
}

/// The MSRs that some range contains, in order and apart.
fn covered(filter: &Filter) -> Vec<MsrRange> {
    let mut ranges: Vec<_> = filter
        .ranges()
        .iter()
        .filter_map(|range| {
            let last = MsrIndex::new(range.end()?.get() - 1);
            MsrRange::new(range.base(), last)
        })
        .collect();
    ranges.sort_by_key(|range| range.first());
    let mut apart: Vec<MsrRange> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(before) if before.last() >= range.first() => {
                let last = before.last().max(range.last());
                *before = MsrRange::new(before.first(), last).unwrap_or(*before);
            }
            _ => apart.push(range),
        }
    }
    apart
}

/// Every MSR of `msrs` that is covered, and one of each stretch that is not.
fn points(msrs: MsrRange, covered: &[MsrRange]) -> impl Iterator<Item = MsrIndex> {
    let first = covered.partition_point(|range| range.last() < msrs.first());
    let within = covered[first..]
        .iter()
        .take_while(move |range| range.first() <= msrs.last());
    let inside = within.clone().flat_map(move |range| {
        let (first, last) = (
            range.first().max(msrs.first()),
            range.last().min(msrs.last()),
        );
        (first.get()..=last.get()).map(MsrIndex::new)
    });
    let outside = within
        .filter_map(|range| range.last().get().checked_add(1).map(MsrIndex::new))
        .filter(move |&index| msrs.contains(index))
        .chain([msrs.first(), msrs.last()]);
    inside.chain(outside)
}

#[cfg(test)]
mod tests;
