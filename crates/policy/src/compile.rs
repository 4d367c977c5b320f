//! From a policy to a filter that is shown to be equal to it.

use msrgate_filter::Filter;

use crate::cpu::Cpu;
use crate::parse::variants;
use crate::policy::{Policy, WhenId};
use crate::table::Table;
use crate::verdicts::CompileError;

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
        let ids = (0..self.holds.len()).map(WhenId::new);
        ids.filter(|id| self.holds[id.number()])
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

/// Packs a policy, and compares the result with it over all 2^32 MSRs in both directions.
///
/// # Errors
/// The policy does not fit a filter, or the comparison failed.
pub fn compile(policy: Policy) -> Result<Compiled, CompileError> {
    let variants = variants(&policy).into_iter().map(|active| {
        let table = Table::resolve(&policy, &active.entries);
        let filter = table.verdicts().pack()?;
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

#[cfg(test)]
mod tests;
