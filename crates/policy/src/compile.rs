//! From a policy to a filter that is shown to be equal to it.

use std::fmt;

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use crate::cpu::Cpu;
use crate::equality;
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

    /// Which of them hold, in their order.
    pub(crate) fn holds(&self) -> &[bool] {
        &self.holds
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

/// The first access that the filter does not decide as the table says. x2APIC registers are left
/// out: the table says what KVM does, and KVM asks no filter.
pub(crate) fn first_difference(
    table: &Table,
    filter: &Filter,
) -> Option<(MsrIndex, Access, Verdict)> {
    let wanted = Access::ALL.into_iter().flat_map(|access| {
        let segments = table.segments(access).iter();
        segments
            .filter(|segment| segment.said != Said::ByKvm)
            .map(move |segment| (segment.msrs, access, segment.action.verdict()))
    });
    equality::first_difference(wanted, filter)
}

#[cfg(test)]
mod tests;
