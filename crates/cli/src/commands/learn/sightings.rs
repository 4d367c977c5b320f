//! The accesses that a run's state page has, as learning takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use msrgate_filter::{Access, ExitReason};
use msrgate_policy::answer::Disposition;
use msrgate_policy::learn::{Fate, First, Sighting};
use msrgate_state::{Kind, Recorded, Snapshot};

/// The accesses of a run.
pub(super) struct Sightings {
    /// One sighting for each kind of access whose fate is known.
    pub(super) seen: Vec<Sighting>,
    /// The number of kinds of accesses whose fate is not known: the record that KVM does not know the MSR may have
    /// found no place.
    pub(super) without_fate: usize,
}

/// Returns the accesses of a run.
///
/// KVM asks the filter before it looks for the register. The first access of an MSR that KVM does not know is
/// therefore recorded twice: as let through, and as unknown. The second record says what the guest got. In the same way
/// an access that KVM refuses although it knows the MSR has a second record, as invalid: others of its kind may have been
/// carried out.
pub(super) fn of(snapshot: &Snapshot) -> Sightings {
    let recorded = snapshot.recorded();
    let told = |one: &Recorded| (one.first.kind.index, one.first.kind.access);
    let of_reason = |reason| {
        let all = recorded.iter();
        all.filter(move |one| one.first.kind.reason == reason)
            .map(told)
            .collect::<BTreeSet<_>>()
    };
    let (let_through, unknown, invalid) = (
        of_reason(ExitReason::Filter),
        of_reason(ExitReason::Unknown),
        of_reason(ExitReason::Invalid),
    );
    let vcpus = Vcpus::of(&recorded);
    let vms = snapshot.vms();
    let mut without_fate = 0;
    let of = |one: &Recorded| {
        let (first, kind) = (&one.first, one.first.kind);
        let fate = match kind.reason {
            ExitReason::Unknown => Fate::Unknown,
            _ if unknown.contains(&told(one)) => return None,
            // The first record has the first access.
            ExitReason::Invalid if let_through.contains(&told(one)) => return None,
            _ if invalid.contains(&told(one)) => Fate::Refused,
            _ if !vcpus.show_fate_of(one, snapshot) => {
                without_fate += 1;
                return None;
            }
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
    let seen = recorded.iter().filter_map(of).collect();
    Sightings { seen, without_fate }
}

/// The times of the recorded accesses of each vCPU, as process, VM and vCPU.
struct Vcpus(BTreeMap<(u32, u32, u32), BTreeSet<u64>>);

impl Vcpus {
    fn of(recorded: &[Recorded]) -> Self {
        let mut all = BTreeMap::<_, BTreeSet<_>>::new();
        for first in recorded.iter().map(|one| one.first) {
            let vcpu = (first.pid, first.vm, first.vcpu);
            all.entry(vcpu).or_default().insert(first.time);
        }
        Self(all)
    }

    /// Returns true if this access, let through, would have a second record if KVM did not know the MSR. The second
    /// record comes before the next access of the same vCPU: if places were free at that time, it found one.
    fn show_fate_of(&self, one: &Recorded, snapshot: &Snapshot) -> bool {
        if snapshot.others() == 0 {
            return true;
        }
        let first = one.first;
        let unknown = Kind {
            disposition: Disposition::Denied,
            reason: ExitReason::Unknown,
            ..first.kind
        };
        let Some(since) = snapshot.without_place_since(unknown) else {
            return true;
        };
        let times = self.0.get(&(first.pid, first.vm, first.vcpu));
        let mut later = times
            .into_iter()
            .flat_map(|times| times.range(first.time + 1..));
        later.next().is_some_and(|next| *next < since)
    }
}

#[cfg(test)]
mod tests {
    use msrgate_filter::MsrIndex;
    use msrgate_testing::page::snapshot_after;

    use super::*;

    /// Returns the snapshot of a run in which a guest reads this many MSRs, none of which KVM knows.
    fn after_unknown_reads(count: u32) -> Snapshot {
        let ways = [
            (Disposition::Allowed, ExitReason::Filter),
            (Disposition::Denied, ExitReason::Unknown),
        ];
        let of_msr = |index| {
            ways.map(|(disposition, reason)| Kind {
                index: MsrIndex::new(0x1_0000 + index),
                access: Access::Read,
                disposition,
                reason,
            })
        };
        snapshot_after((0..count).flat_map(of_msr))
    }

    #[test]
    fn access_that_kvm_refused_for_its_value_has_fate_refused_and_its_first_time() {
        let kind = |index, disposition, reason| Kind {
            index: MsrIndex::new(index),
            access: Access::Write,
            disposition,
            reason,
        };
        let allowed = |index| kind(index, Disposition::Allowed, ExitReason::Filter);
        let refused = |index| kind(index, Disposition::Denied, ExitReason::Invalid);
        // The last one found no place for its first record, or came before the VMM set a filter of its own.
        let snapshot = snapshot_after([
            allowed(0x10),
            allowed(0xc000_0080),
            refused(0xc000_0080),
            refused(0x277),
        ]);
        let Sightings { seen, .. } = of(&snapshot);
        let seen: Vec<_> = seen
            .iter()
            .map(|one| (one.index.get(), one.fate, one.first.after))
            .collect();
        let after = |nanoseconds| Some(Duration::from_nanos(nanoseconds));
        let wanted = [
            (0x10, Fate::Done, after(0)),
            (0xc000_0080, Fate::Refused, after(1)),
            (0x277, Fate::Refused, after(3)),
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn unknown_msr_whose_second_record_found_no_place_is_not_taken_for_known() {
        let few = of(&after_unknown_reads(100));
        assert_eq!((few.seen.len(), few.without_fate), (100, 0));
        let full = of(&after_unknown_reads(20_000));
        assert!(full.without_fate > 0);
        for sightings in [few, full] {
            let is_unknown = |one: &Sighting| one.fate == Fate::Unknown;
            assert!(sightings.seen.iter().all(is_unknown));
        }
    }
}
