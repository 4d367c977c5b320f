//! The hardware bitmaps that let an MSR access through without a VM exit (S6).
//!
//! A bit of 1 intercepts the access. A bit is 0 only if the hypervisor wants to pass the access
//! through *and* the filter allows it (S6.3). A map is always recomputed as a whole, from the
//! hypervisor's wishes and the filter. A map that was changed bit by bit could drift from these two
//! sources (S8).

use core::fmt;

use crate::decide::{Decision, Verdict};
use crate::msr::{Access, MsrIndex, X2APIC};

pub use layout::{Svm, Vmx};

/// The hypervisor's wish for one access, before the filter is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassThrough {
    /// The access should reach the register without a VM exit, if the filter allows it.
    Wanted,
    /// The access has to exit to the hypervisor, even if the filter allows it.
    Unwanted,
}

/// The 4 KiB MSR bitmap of Intel's VMX (S6.1): 1 KiB each for reads of low MSRs, reads of high
/// MSRs, writes to low MSRs and writes to high MSRs, in this order.
///
/// Low MSRs are 0x0–0x1fff, high MSRs are 0xc0000000–0xc0001fff. An access to any other MSR always
/// exits.
pub type VmxBitmap = InterceptMap<Vmx>;

/// The 8 KiB MSR permission map of AMD's SVM (S6.2), with two bits for each MSR.
///
/// The map covers 0x0–0x1fff, 0xc0000000–0xc0001fff and 0xc0010000–0xc0011fff. An access to any
/// other MSR always exits. The last 2 KiB are reserved and all ones.
pub type SvmMap = InterceptMap<Svm>;

/// An intercept map, which says for each access if it exits, in the layout of one vendor.
///
/// The map is aligned to a page, so that its address can be handed to the processor.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct InterceptMap<L: Layout> {
    bytes: L::Bytes,
}

/// A vendor's layout of an intercept map: [`Vmx`] or [`Svm`].
pub trait Layout: layout::Regions + Clone + Eq {}

impl Layout for Vmx {}
impl Layout for Svm {}

mod layout {
    use crate::msr::{Access, MsrIndex};

    /// The layout of Intel's MSR bitmap, [`VmxBitmap`](super::VmxBitmap).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Vmx {}

    /// The layout of AMD's MSR permission map, [`SvmMap`](super::SvmMap).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Svm {}

    /// The number of MSRs in a region, a stretch of MSRs that a hardware bitmap covers. The number
    /// is the same for Intel and AMD.
    pub(super) const REGION: u32 = 0x2000;

    /// The bits of a hardware bitmap for one stretch of MSRs and one direction of access: the bit
    /// of the MSR `base + n` has the position `first_bit + n * stride`.
    #[derive(Debug)]
    pub struct Region {
        pub(super) base: u32,
        pub(super) access: Access,
        first_bit: usize,
        stride: usize,
    }

    impl Region {
        const fn new(base: u32, access: Access, first_bit: usize, stride: usize) -> Self {
            Self {
                base,
                access,
                first_bit,
                stride,
            }
        }

        /// Returns the position of this MSR's bit in the hardware bitmap, or `None` if the MSR is
        /// outside the region.
        pub(super) fn bit(&self, index: MsrIndex) -> Option<usize> {
            let offset = index.get().checked_sub(self.base)?;
            (offset < REGION).then_some(self.first_bit + offset as usize * self.stride)
        }
    }

    pub trait Regions {
        type Bytes: AsRef<[u8]> + AsMut<[u8]> + Clone + PartialEq + Eq;
        const ONES: Self::Bytes;
        const REGIONS: &[Region];
        const NAME: &str;
    }

    /// Intel SDM volume 3, "MSR-Bitmap Address": 1 KiB for each direction and each of the two
    /// regions.
    impl Regions for Vmx {
        type Bytes = [u8; 0x1000];
        const ONES: Self::Bytes = [u8::MAX; 0x1000];
        const REGIONS: &[Region] = &[
            Region::new(0, Access::Read, 0, 1),
            Region::new(0xc000_0000, Access::Read, 0x2000, 1),
            Region::new(0, Access::Write, 0x4000, 1),
            Region::new(0xc000_0000, Access::Write, 0x6000, 1),
        ];
        const NAME: &str = "VmxBitmap";
    }

    /// AMD APM volume 2, "MSR Intercepts": 2 KiB for each region. The read bit of an MSR is
    /// directly below its write bit.
    impl Regions for Svm {
        type Bytes = [u8; 0x2000];
        const ONES: Self::Bytes = [u8::MAX; 0x2000];
        const REGIONS: &[Region] = &[
            Region::new(0, Access::Read, 0, 2),
            Region::new(0, Access::Write, 1, 2),
            Region::new(0xc000_0000, Access::Read, 0x4000, 2),
            Region::new(0xc000_0000, Access::Write, 0x4001, 2),
            Region::new(0xc001_0000, Access::Read, 0x8000, 2),
            Region::new(0xc001_0000, Access::Write, 0x8001, 2),
        ];
        const NAME: &str = "SvmMap";
    }
}

impl<L: Layout> InterceptMap<L> {
    /// Creates the map with which every access exits.
    #[must_use]
    pub const fn exit_all() -> Self {
        Self { bytes: L::ONES }
    }

    /// Creates a map from bytes, for example from the map of a nested hypervisor.
    #[must_use]
    pub const fn from_bytes(bytes: L::Bytes) -> Self {
        Self { bytes }
    }

    /// Recomputes the whole map: an access passes to the register without a VM exit if `wants`
    /// returns [`PassThrough::Wanted`] for the access and `decide` allows it.
    ///
    /// `decide` is called only for wanted accesses, and never for an MSR of [`X2APIC`], for which
    /// `wants` alone decides (S6.4).
    pub fn recompute(
        &mut self,
        wants: impl Fn(MsrIndex, Access) -> PassThrough,
        decide: impl Fn(MsrIndex, Access) -> Decision,
    ) {
        let passes = |index, access| match wants(index, access) {
            PassThrough::Unwanted => false,
            PassThrough::Wanted if X2APIC.contains(&index) => true,
            PassThrough::Wanted => decide(index, access).verdict == Verdict::Allow,
        };
        let mut next = L::ONES;
        let bytes = next.as_mut();
        for region in L::REGIONS {
            for index in (region.base..region.base + layout::REGION).map(MsrIndex::new) {
                if let Some(bit) = region.bit(index)
                    && passes(index, region.access)
                {
                    bytes[bit / 8] &= !(1 << (bit % 8));
                }
            }
        }
        self.bytes = next;
    }

    /// Returns the map for a nested guest: an access exits if this map or `other` intercepts it
    /// (S6.5).
    #[must_use]
    pub fn merged_with(&self, other: &Self) -> Self {
        let mut merged = self.clone();
        for (byte, other) in merged.bytes.as_mut().iter_mut().zip(other.bytes.as_ref()) {
            *byte |= other;
        }
        merged
    }

    /// Returns true if an access to the MSR `index` in the direction `access` exits to the
    /// hypervisor.
    #[must_use]
    pub fn intercepts(&self, index: MsrIndex, access: Access) -> bool {
        L::REGIONS
            .iter()
            .filter(|region| region.access == access)
            .find_map(|region| region.bit(index))
            .is_none_or(|bit| self.bytes.as_ref()[bit / 8] >> (bit % 8) & 1 == 1)
    }

    /// The bytes of the map, as the processor reads them.
    #[must_use]
    pub const fn as_bytes(&self) -> &L::Bytes {
        &self.bytes
    }
}

impl<L: Layout> Default for InterceptMap<L> {
    fn default() -> Self {
        Self::exit_all()
    }
}

/// Writes the number of accesses that the map lets through, instead of the 4 or 8 KiB of bits.
impl<L: Layout> fmt::Debug for InterceptMap<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passing: u32 = self
            .bytes
            .as_ref()
            .iter()
            .map(|byte| byte.count_zeros())
            .sum();
        write!(f, "{}({passing} accesses pass)", L::NAME)
    }
}

#[cfg(test)]
mod tests;
