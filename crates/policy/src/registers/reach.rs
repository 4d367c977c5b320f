//! The reach of a filter: the accesses of a register about which KVM asks the filter, and the gaps,
//! about which KVM does not ask.
//!
//! Through a gap of [*access*](GapKind::Access), KVM carries out a guest's RDMSR or WRMSR without
//! asking the filter: a policy that refuses the access is not enforced, or only in part. A gap of
//! [*use*](GapKind::Use) is not a hole in the filter: KVM asks the filter about every RDMSR and
//! WRMSR of `IA32_LSTAR`, and SYSCALL still jumps to the register's value (S4). A gap of
//! [*change*](GapKind::Change) is not a hole in the filter either, but bypasses a policy: WRMSR
//! cannot move a pinned `IA32_LSTAR`, but VMLOAD can.

mod table;

use std::fmt;
use std::ops::RangeInclusive;

use msrgate_filter::{Access, Accesses, MsrIndex};
use msrgate_program::MsrRange;

use super::{Register, Vendor};

/// The reach of a filter to accesses of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// KVM asks the filter about each RDMSR and WRMSR, except through [`vm_gaps`].
    Enforced,
    /// KVM does not ask the filter about some accesses, because of these gaps.
    Partly(&'static [Gap]),
    /// KVM does not ask the filter about any access, because of these gaps.
    Not(&'static [Gap]),
}

impl Reach {
    /// The gaps through which KVM carries out RDMSR or WRMSR of the register without asking the
    /// filter. The list is empty if the register is enforced.
    #[must_use]
    pub const fn gaps(self) -> &'static [Gap] {
        match self {
            Self::Enforced => &[],
            Self::Partly(gaps) | Self::Not(gaps) => gaps,
        }
    }
}

/// Writes `enforced`, `partly` or `not`, without the reasons.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforced => "enforced",
            Self::Partly(_) => "partly",
            Self::Not(_) => "not",
        })
    }
}

/// A way to bypass a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The name. Except for gaps of use, a policy accepts the gap by this name in its `accept`.
    pub name: &'static str,
    /// The kind: the operation about which KVM does not ask the filter.
    pub kind: GapKind,
    /// The explanation, as a sentence without its full stop.
    pub why: &'static str,
    /// The vendor whose processors have the gap.
    pub on: Vendor,
    /// The feature of the guest's CPUID that opens the gap. `None`: the VMM cannot close the gap
    /// through CPUID.
    pub needs: Option<&'static str>,
    /// The kernels known to have the gap.
    pub kernels: Kernels,
}

/// The kind of a gap: the operation about which KVM does not ask the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapKind {
    /// RDMSR or WRMSR, or a list of MSRs that stands for them.
    Access,
    /// Writes by instructions other than WRMSR into a register whose writes a policy may restrict
    /// by `mask`, `pin` or `sticky`. These actions restrict WRMSR only.
    Change,
    /// Uses of the register by instructions other than RDMSR and WRMSR, except for the writes that
    /// [`Self::Change`] covers.
    Use,
}

/// A range of Linux versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    first: Kernel,
    last: Option<Kernel>,
}

/// A version of Linux, such as 6.12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kernel {
    /// The 6 in 6.12.
    pub major: u16,
    /// The 12 in 6.12.
    pub minor: u16,
}

/// The first kernel with filters (S9).
const FIRST: Kernel = Kernel {
    major: 5,
    minor: 10,
};

impl Kernels {
    /// Every kernel that has filters.
    const ALL: Self = Self {
        first: FIRST,
        last: None,
    };

    /// Returns the kernels that have filters, up to and including `last`.
    const fn to(last: Kernel) -> Self {
        Self {
            first: FIRST,
            last: Some(last),
        }
    }
}

/// Writes `5.10 to 6.11`, or `5.10 on`.
impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Some(last) => write!(f, "{} to {last}", self.first),
            None => write!(f, "{} on", self.first),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Returns the extent to which a mainline kernel asks a filter about `access` of the MSR `index`.
/// The MSR need not have a name.
#[must_use]
pub fn reach(index: MsrIndex, access: Access) -> Reach {
    let mut exempt = table::EXEMPT.iter();
    exempt
        .find(|row| row.indices.contains(&index.get()) && row.accesses.contain(access))
        .map_or(Reach::Enforced, |row| row.reach)
}

/// Returns the parts of `msrs` for which KVM does not ask a filter about every access, each with
/// its reach. A part may come several times if several rows of the table have it.
pub(crate) fn exempt(msrs: MsrRange, access: Access) -> impl Iterator<Item = (MsrRange, Reach)> {
    let rows = table::EXEMPT.iter();
    rows.filter(move |row| row.accesses.contain(access))
        .filter_map(move |row| {
            let [first, last] =
                [row.indices.start(), row.indices.end()].map(|&at| MsrIndex::new(at));
            let part = MsrRange::new(first, last)?.shared(msrs)?;
            Some((part, row.reach))
        })
}

/// Returns the operations on the MSR at `index` other than RDMSR and WRMSR. KVM asks no filter
/// about these operations.
pub fn uses(index: MsrIndex) -> impl Iterator<Item = &'static Gap> {
    let of_index = move |ranges: &[RangeInclusive<u32>]| {
        let mut ranges = ranges.iter();
        ranges.any(|range| range.contains(&index.get()))
    };
    let uses = table::USES.iter();
    uses.filter(move |(_, ranges)| of_index(ranges))
        .map(|(gap, _)| gap)
}

/// Returns the gaps of access that concern every register, but only in VMs with a certain CPUID or
/// of a certain type.
#[must_use]
pub fn vm_gaps() -> &'static [Gap] {
    &table::VM
}

/// Returns every gap once: first the gaps of access to certain registers, then the gaps of access
/// in certain VMs, then the gaps of use and of change.
pub fn gaps() -> impl Iterator<Item = &'static Gap> {
    let access = table::ACCESS.iter();
    access
        .chain(vm_gaps())
        .chain(table::USES.iter().map(|(gap, _)| gap))
}

impl Register {
    /// Returns the extent to which a mainline kernel asks a filter about accesses of the register,
    /// both directions together. If only one direction has a gap, the reach is partial.
    #[must_use]
    pub fn reach(&self) -> Reach {
        let [read, write] = Access::ALL.map(|access| reach(self.index, access));
        match (read, write) {
            (Reach::Enforced, Reach::Enforced) => Reach::Enforced,
            (Reach::Not(_), Reach::Not(gaps)) => Reach::Not(gaps),
            (_, Reach::Partly(gaps) | Reach::Not(gaps))
            | (Reach::Partly(gaps) | Reach::Not(gaps), _) => Reach::Partly(gaps),
        }
    }

    /// Returns the operations on the register other than RDMSR and WRMSR. KVM asks no filter about
    /// these operations.
    pub fn uses(&self) -> impl Iterator<Item = &'static Gap> {
        uses(self.index)
    }
}

/// Accesses about which KVM never asks a filter, or asks a filter only at times.
struct Exempt {
    indices: RangeInclusive<u32>,
    accesses: Accesses,
    reach: Reach,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use msrgate_filter::X2APIC;

    use super::super::{all, by_index};
    use super::*;

    fn names(reach: Reach) -> Vec<&'static str> {
        reach.gaps().iter().map(|gap| gap.name).collect()
    }

    fn used(index: u32) -> Vec<&'static str> {
        uses(MsrIndex::new(index)).map(|gap| gap.name).collect()
    }

    #[test]
    fn reach_excludes_exactly_the_x2apic_registers() {
        for access in Access::ALL {
            let at = |index: u32| reach(MsrIndex::new(index), access);
            for index in X2APIC.start().get()..=X2APIC.end().get() {
                assert!(matches!(at(index), Reach::Not(_)), "{index:#x}");
                assert_eq!(names(at(index))[0], "x2apic");
            }
            assert_eq!(at(0x7ff), Reach::Enforced);
            assert_eq!(at(0x900), Reach::Enforced);
        }
        let icr = MsrIndex::new(0x830);
        assert_eq!(names(reach(icr, Access::Read)), ["x2apic"]);
        assert_eq!(
            names(reach(icr, Access::Write)),
            ["x2apic", "x2apic-icr-fastpath"]
        );
    }

    #[test]
    fn reach_of_tsc_deadline_write_is_partial() {
        let deadline = by_index(MsrIndex::new(0x6e0)).unwrap();
        assert_eq!(reach(deadline.index, Access::Read), Reach::Enforced);
        let write = reach(deadline.index, Access::Write);
        assert!(matches!(write, Reach::Partly(_)));
        assert_eq!(names(write), ["tsc-deadline-fastpath"]);
        assert_eq!(deadline.reach(), write);
        assert_eq!(write.to_string(), "partly");
    }

    #[test]
    fn reach_is_enforced_for_msrs_about_whose_every_access_kvm_asks_the_filter() {
        for register in all() {
            let index = register.index;
            if X2APIC.contains(&index) {
                assert!(matches!(register.reach(), Reach::Not(_)), "{index}");
            } else if index.get() != 0x6e0 {
                assert_eq!(register.reach(), Reach::Enforced, "{index}");
            }
        }
        assert_eq!(reach(MsrIndex::MAX, Access::Write), Reach::Enforced);
    }

    #[test]
    fn reach_is_enforced_for_register_that_other_instructions_than_rdmsr_and_wrmsr_use() {
        for (index, uses) in [
            (0x10, &["rdtsc", "tsc-adjust"][..]),
            (0x3b, &["tsc-adjust"]),
            (0xc1, &["rdpmc"]),
            (0x175, &["sysenter", "vmload", "vmcs"]),
            (0x277, &["nested-state"]),
            (0xda0, &["xsaves"]),
            (0xc000_0080, &["paging", "nested-state"]),
            (0xc000_0082, &["syscall", "vmload"]),
            (0xc000_0100, &["segment-base", "vmload", "vmcs"]),
            (0xc000_0101, &["segment-base", "swapgs", "vmload", "vmcs"]),
            (0xc000_0102, &["swapgs", "vmload"]),
            (0xc000_0103, &["rdtscp"]),
            (0x8b, &[]),
            (0xc001_0200, &[]),
            (0xc001_0201, &["rdpmc"]),
        ] {
            assert_eq!(used(index), uses, "{index:#x}");
            let index = MsrIndex::new(index);
            assert_eq!(reach(index, Access::Write), Reach::Enforced, "{index}");
        }
    }

    #[test]
    fn gaps_have_unique_names_and_matching_kinds() {
        let mut seen = BTreeSet::new();
        for gap in gaps() {
            assert!(seen.insert(gap.name), "{} twice", gap.name);
            let fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(gap.name.bytes().all(fit), "{}", gap.name);
            assert!(
                !gap.why.is_empty() && !gap.why.ends_with('.'),
                "{}",
                gap.why
            );
        }
        for row in &table::EXEMPT {
            for gap in row.reach.gaps() {
                assert_eq!(gap.kind, GapKind::Access);
                assert!(gaps().any(|other| other == gap), "{}", gap.name);
            }
        }
        assert!(vm_gaps().iter().all(|gap| gap.kind == GapKind::Access));
        for (gap, ranges) in &table::USES {
            assert_ne!(gap.kind, GapKind::Access);
            for index in ranges.iter().cloned().flatten() {
                assert!(by_index(MsrIndex::new(index)).is_some(), "{index:#x}");
            }
        }
    }

    /// The registers that a policy may pin are those that VMLOAD loads, by AMD's manual (volume 3).
    /// So VMLOAD can change each of them, and no other register has a gap of change.
    #[test]
    fn gaps_of_change_belong_exactly_to_pinnable_registers() {
        for register in all() {
            let may_be_pinned = register.forward().is_some();
            let has_change = register.uses().any(|gap| gap.kind == GapKind::Change);
            assert_eq!(has_change, may_be_pinned, "{}", register.name);
            let by_vmload = register.uses().any(|gap| gap.name == "vmload");
            assert_eq!(by_vmload, may_be_pinned, "{}", register.name);
        }
    }

    #[test]
    fn kernels_are_shown_from_first_version_with_filters() {
        let to_6_11 = Kernels::to(Kernel {
            major: 6,
            minor: 11,
        });
        assert_eq!(to_6_11.to_string(), "5.10 to 6.11");
        assert_eq!(Kernels::ALL.to_string(), "5.10 on");
    }
}
