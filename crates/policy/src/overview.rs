//! An overview of all 2^32 MSRs, for a picture: the clusters of MSRs that a policy or its filter
//! names, and the rest.

use std::num::NonZeroUsize;
use std::ops::{AddAssign, Sub};

use msrgate_filter::{Access, Bitmap, MsrIndex};
use msrgate_program::{Action, DecidedBy, MsrRange, MsrSet, Rule, Rules, Variant};

/// The maximum distance between MSRs of one cluster.
const NEAR: u64 = 0x1000;

/// The numbers of MSRs by the result of an access in one direction: a read or a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// The number of MSRs whose accesses KVM handles.
    pub allowed: u64,
    /// The number of MSRs whose accesses are refused: the guest gets #GP, or the VMM ends the VM or
    /// the call that the guest is serving.
    pub refused: u64,
    /// The number of MSRs whose accesses a gate answers.
    pub answered: u64,
    /// The number of x2APIC registers, about which KVM asks no filter (S3.1).
    pub exempt: u64,
}

/// The result for accesses of consecutive MSRs in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The access is allowed for all MSRs of the cell.
    Allowed,
    /// The access is allowed for some MSRs of the cell, and refused for others.
    Mixed,
    /// The access is refused for all MSRs of the cell.
    Refused,
    /// A gate answers the access for at least one MSR of the cell.
    Answered,
    /// KVM asks no filter about any MSR of the cell.
    Exempt,
}

/// MSRs that lie together, with the results of their accesses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cluster {
    /// The MSRs, from the first to the last that the policy or the filter names.
    pub msrs: MsrRange,
    /// The numbers of the filter's ranges that lie in the cluster, counted from 0.
    pub ranges: Vec<usize>,
    /// The tallies of reads and of writes, in this order.
    pub tallies: [Tally; 2],
}

/// The results for all MSRs under one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overview {
    /// The clusters of MSRs. The clusters contain the filter's ranges, and the rules of entries
    /// that have no more MSRs than a filter's range can have.
    pub clusters: Vec<Cluster>,
    /// The tallies of reads and of writes, in this order, for all MSRs outside of the clusters.
    pub rest: [Tally; 2],
}

impl Tally {
    /// Counts these MSRs by the result of an access.
    fn of(table: &Rules, msrs: MsrRange, access: Access) -> Self {
        let mut tally = Self::default();
        for segment in table.within(msrs, access) {
            let count = segment.msrs.shared(msrs).map_or(0, MsrRange::count);
            *tally.field(segment) += count;
        }
        tally
    }

    fn field(&mut self, segment: Rule<'_>) -> &mut u64 {
        match segment.action {
            _ if segment.by == DecidedBy::Kvm => &mut self.exempt,
            Action::Allow => &mut self.allowed,
            action if action.refuses() => &mut self.refused,
            _ => &mut self.answered,
        }
    }

    const fn cell(self) -> Cell {
        match self {
            Self { answered: 1.., .. } => Cell::Answered,
            Self {
                allowed: 1..,
                refused: 1..,
                ..
            } => Cell::Mixed,
            Self { allowed: 1.., .. } => Cell::Allowed,
            Self { refused: 1.., .. } => Cell::Refused,
            _ => Cell::Exempt,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.allowed += other.allowed;
        self.refused += other.refused;
        self.answered += other.answered;
        self.exempt += other.exempt;
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, part: Self) -> Self {
        Self {
            allowed: self.allowed - part.allowed,
            refused: self.refused - part.refused,
            answered: self.answered - part.answered,
            exempt: self.exempt - part.exempt,
        }
    }
}

impl Cluster {
    /// Returns the cluster's MSRs in one direction, from the first to the last, divided into at
    /// most `most` cells of about equal size. A cluster with fewer MSRs has a cell for each MSR.
    #[must_use]
    pub fn cells(&self, variant: &Variant, access: Access, most: NonZeroUsize) -> Vec<Cell> {
        let count = self.msrs.count();
        let cells = count.min(most.get() as u64);
        let start = u64::from(self.msrs.first().get());
        (0..cells)
            .filter_map(|cell| {
                let [from, to] = [cell, cell + 1].map(|edge| start + edge * count / cells);
                let msrs = MsrRange::below(from, to)?;
                Some(Tally::of(variant.rules(), msrs, access).cell())
            })
            .collect()
    }
}

/// Returns the overview of all MSRs under one variant of a policy.
#[must_use]
pub fn overview(variant: &Variant) -> Overview {
    let table = variant.rules();
    let tallies = |msrs| Access::ALL.map(|access| Tally::of(table, msrs, access));
    let ranges = ranges(variant);
    let clusters: Vec<_> = clusters(table, &ranges)
        .into_iter()
        .map(|msrs| Cluster {
            msrs,
            ranges: (0..)
                .zip(&ranges)
                .filter(|(_, range)| range.overlaps(msrs))
                .map(|(number, _)| number)
                .collect(),
            tallies: tallies(msrs),
        })
        .collect();
    let everything = MsrRange::new(MsrIndex::MIN, MsrIndex::MAX);
    let mut rest = everything.map_or([Tally::default(); 2], tallies);
    for access in Access::ALL {
        let mut inside = Tally::default();
        for cluster in &clusters {
            inside += cluster.tallies[access as usize];
        }
        rest[access as usize] = rest[access as usize] - inside;
    }
    Overview { clusters, rest }
}

/// Returns the MSRs of each of the filter's ranges, in the filter's order.
fn ranges(variant: &Variant) -> Vec<MsrRange> {
    let ranges = variant.filter().ranges().iter();
    ranges
        .filter_map(|range| {
            let base = u64::from(range.base().get());
            MsrRange::below(base, base + u64::from(range.bitmap().count()))
        })
        .collect()
}

/// Returns the filter's ranges, and the rules of entries that are no larger than such a range can
/// be. Ranges and rules that lie near each other are joined.
fn clusters(table: &Rules, ranges: &[MsrRange]) -> Vec<MsrRange> {
    let most = u64::from(Bitmap::MAX_COUNT);
    let segments = Access::ALL.iter().flat_map(|&access| table.of(access));
    let spoken = segments
        .filter(|segment| matches!(segment.by, DecidedBy::Entry(_)))
        .map(|segment| segment.msrs)
        .filter(|msrs| msrs.count() <= most);
    let Some(all) = MsrSet::new(spoken.chain(ranges.iter().copied())) else {
        return Vec::new();
    };
    let mut clusters: Vec<MsrRange> = Vec::new();
    for &msrs in all.ranges() {
        if let Some(before) = clusters.last_mut()
            && u64::from(msrs.first().get() - before.last().get()) <= NEAR
            && let Some(joined) = MsrRange::new(before.first(), msrs.last())
        {
            *before = joined;
        } else {
            clusters.push(msrs);
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compiled, NoIncludes, Source, compile, parse};

    fn compiled(text: &str) -> Compiled {
        let source = Source::new("policy.toml", text);
        compile(parse(&source, &mut NoIncludes).unwrap()).unwrap()
    }

    fn bar(cluster: &Cluster, variant: &Variant, access: Access) -> String {
        let cells = cluster.cells(variant, access, NonZeroUsize::new(8).unwrap());
        let letter = |cell: &Cell| match cell {
            Cell::Allowed => 'a',
            Cell::Mixed => 'm',
            Cell::Refused => 'r',
            Cell::Answered => 'g',
            Cell::Exempt => 'x',
        };
        cells.iter().map(letter).collect()
    }

    #[test]
    fn overview_clusters_nearby_msrs_and_counts_each_once() {
        let compiled = compiled(
            "policy = 1\ndefault = 'deny'\n[msrs]\n'0x700..=0x7ff' = 'rw'\n'0x900..=0x93f' = 'r'\n'0x970..=0x9ff' = 'r'\n0xc0000080 = { read = { value = 0 }, write = 'kill' }\n0xc0000081 = 'w'\n'0x40000000..=0x50000000' = { read = 'deny', write = 'kill' }",
        );
        let variant = &compiled.variants()[0];
        let space = overview(variant);
        let shown: Vec<_> = space
            .clusters
            .iter()
            .map(|one| {
                let [read, write] = Access::ALL.map(|access| bar(one, variant, access));
                format!("{} {:?} {read} {write}", one.msrs, one.ranges)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "0x700..=0x9ff [0, 2] aaaxxama aaaxxrrr",
                "0xc0000080..=0xc0000081 [1] gr ra",
            ]
        );
        let mut all = space.rest;
        for (sum, access) in all.iter_mut().zip(Access::ALL) {
            for cluster in &space.clusters {
                *sum += cluster.tallies[access as usize];
            }
        }
        for (access, sum) in Access::ALL.into_iter().zip(all) {
            let whole = sum.allowed + sum.refused + sum.answered + sum.exempt;
            assert_eq!(whole, 1 << 32, "{access}");
            assert_eq!(sum.exempt, 0x100);
        }
        assert_eq!((all[0].allowed, all[0].answered), (0x1d0, 1));
        assert_eq!((all[1].allowed, all[1].answered), (0x101, 0));
    }

    #[test]
    fn overview_of_policy_without_entries_has_at_most_one_cluster() {
        let allow = compiled("policy = 1\ndefault = 'allow'");
        assert_eq!(overview(&allow.variants()[0]).clusters, []);
        let deny = compiled("policy = 1\ndefault = 'deny'");
        assert_eq!(overview(&deny.variants()[0]).clusters.len(), 1);
    }
}
