//! Warnings about a policy that has no mistakes.
//!
//! [`of_policy`] returns the warnings that depend on the policy alone, [`of_cpuid`] and
//! [`of_saved`] those that depend on a host. The caller reads what the host offers and saves,
//! because this crate opens no device.

mod device;
mod entries;
mod gaps;
mod held;
mod host;
mod machine;
mod punctured;
#[cfg(test)]
mod tests;
mod warning;

use crate::compile::Compiled;
use crate::policy::OWN;
use crate::punctures::punctures;

pub use host::{of_cpuid, of_saved};
pub use warning::{Code, Warning};

/// Returns the warnings that depend on the policy alone and that the policy does not accept, grouped by
/// kind. In each group, the warnings about the policy's own entries come first.
#[must_use]
pub fn of_policy(compiled: &Compiled) -> Vec<Warning<'_>> {
    let punctures = punctures(compiled);
    let mut warnings = entries::without_effect(compiled, &punctures);
    warnings.extend(entries::nameless(compiled));
    warnings.extend(entries::too_wide(compiled));
    warnings.extend(punctured::punctured(compiled, &punctures));
    warnings.extend(gaps::gaps(compiled));
    warnings.extend(held::pins(compiled));
    warnings.extend(gaps::changed_unasked(compiled));
    warnings.extend(device::revision_unread(compiled));
    warnings.extend(held::state(compiled));
    warnings.retain(|one| !warning::is_accepted(compiled.policy(), one));
    // Warnings about included entries come last in each group, because the author of the policy
    // cannot edit an include.
    let is_included = |one: &Warning<'_>| one.entry.is_some_and(|entry| entry.source() != OWN);
    for warnings in warnings.chunk_by_mut(|one, next| one.code == next.code) {
        warnings.sort_by_key(is_included);
    }
    warnings
}
