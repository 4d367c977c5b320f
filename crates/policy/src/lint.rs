//! Warnings about a policy: what is no mistake, and worth knowing.
//!
//! [`of_policy`] finds the warnings that depend on the policy alone, [`of_cpuid`] and [`of_saved`] those
//! that depend on a host. The caller asks the host: nothing here does.

mod device;
mod entries;
mod gaps;
mod host;
mod machine;
mod punctured;
#[cfg(test)]
mod tests;
mod warning;

use crate::compile::Compiled;

pub use host::{of_cpuid, of_saved};
pub use warning::{Code, Warning};

/// Returns the warnings that depend on the policy alone.
#[must_use]
pub fn of_policy(compiled: &Compiled) -> Vec<Warning<'_>> {
    let mut warnings = entries::without_effect(compiled);
    warnings.extend(entries::nameless(compiled));
    warnings.extend(entries::too_wide(compiled));
    warnings.extend(punctured::punctured(compiled));
    warnings.extend(gaps::gaps(compiled));
    warnings.extend(entries::pins(compiled));
    warnings.extend(gaps::changed_unasked(compiled));
    warnings.extend(device::revision_unread(compiled));
    warnings.extend(entries::state(compiled));
    warnings
}
