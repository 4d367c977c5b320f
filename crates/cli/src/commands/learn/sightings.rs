//! The accesses that a run's state page has, as learning takes them.

use std::collections::BTreeSet;
use std::time::Duration;

use msrgate_filter::{Access, ExitReason};
use msrgate_policy::learn::{Fate, First, Sighting};
use msrgate_state::{Recorded, Snapshot};

/// Returns one sighting for each kind of access.
///
/// KVM asks the filter before it looks for the register. The first access of an MSR that KVM does not know is
/// therefore recorded twice: as let through, and as unknown. The second record says what the guest got.
pub(super) fn of(snapshot: &Snapshot) -> Vec<Sighting> {
    let recorded = snapshot.recorded();
    let unknown: BTreeSet<_> = recorded
        .iter()
        .map(|one| one.first.kind)
        .filter(|kind| kind.reason == ExitReason::Unknown)
        .map(|kind| (kind.index, kind.access))
        .collect();
    let vms = snapshot.vms();
    let of = |one: &Recorded| {
        let (first, kind) = (&one.first, one.first.kind);
        let fate = match kind.reason {
            ExitReason::Unknown => Fate::Unknown,
            _ if unknown.contains(&(kind.index, kind.access)) => return None,
            _ => Fate::Done,
        };
        let made = usize::try_from(first.vm).ok().and_then(|at| vms.get(at));
        let after = made.map_or(0, |vm| first.time.saturating_sub(vm.time));
        let mut by = First::by_vcpu(first.vcpu, Duration::from_nanos(after));
        if snapshot.vms_guarded() > 1 {
            by = by.of_vm(first.vm);
        }
        if kind.access == Access::Write {
            by = by.writing(first.value);
        }
        Some(Sighting::new(kind.index, kind.access, fate).with_first(by))
    };
    recorded.iter().filter_map(of).collect()
}
