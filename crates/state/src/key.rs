//! The kind of an MSR access, which is encoded in one 64-bit word.

use msrgate_filter::{Access, ExitReason, MsrIndex};
use msrgate_program::answer::Disposition;

/// A kind of access: an MSR, a direction, the gate's disposition and the reason of the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// The MSR that the guest accessed.
    pub index: MsrIndex,
    /// The direction of the access: read or write.
    pub access: Access,
    /// The disposition of the access: the way in which the gate handled it, such as denied or killed.
    pub disposition: Disposition,
    /// The reason of the exit to user space.
    pub reason: ExitReason,
}

/// The largest number of places at which the search for a kind of access looks. The bound keeps each access
/// fast even if a guest accesses every MSR.
const PROBES: usize = 32;

// The positions of the fields in the word. Bit 0 is always 1.
const ACCESS: u32 = 1;
const INDEX: u32 = 2;
const DEED: u32 = INDEX + u32::BITS;
const REASON: u32 = DEED + 8;

impl Kind {
    /// Encodes the kind of access in one 64-bit word, which is never 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        let reason = ExitReason::ALL.iter().position(|one| *one == self.reason);
        1 | u64::from(self.access == Access::Write) << ACCESS
            | u64::from(self.index.get()) << INDEX
            | u64::from(self.disposition.number()) << DEED
            | (reason.unwrap_or(0) as u64) << REASON
    }

    /// Decodes a word of [`Self::to_bits`]. Returns `None` for a word that [`Self::to_bits`] never
    /// returns.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let at = |shift: u32, mask: u64| usize::try_from(bits >> shift & mask).ok();
        let kind = Self {
            index: MsrIndex::new(u32::try_from(bits >> INDEX & 0xffff_ffff).ok()?),
            access: *Access::ALL.get(at(ACCESS, 1)?)?,
            disposition: *Disposition::ALL.get(at(DEED, 0xff)?)?,
            reason: *ExitReason::ALL.get(at(REASON, u64::MAX)?)?,
        };
        (kind.to_bits() == bits).then_some(kind)
    }

    /// Returns the numbers of the page's places at which this kind of access may be recorded, in the order
    /// of the search. Each number is below `places`.
    pub(crate) fn search(self, places: usize) -> impl Iterator<Item = usize> {
        let home = self.home(places);
        (0..PROBES.min(places)).map(move |offset| (home + offset) % places)
    }

    /// Returns the number of the place at which the search for this kind of access begins. The number is
    /// below `places`. The number is a hash of the encoded kind: a multiplication by 2^64 divided by the
    /// golden ratio.
    fn home(self, places: usize) -> usize {
        let hash = self.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(hash).unwrap_or(0) % places.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_from_bits_returns_every_kind_of_access_that_to_bits_encoded() {
        for access in Access::ALL {
            for disposition in Disposition::ALL {
                for reason in ExitReason::ALL {
                    for index in [0, 0x10, 0xc000_0082, u32::MAX].map(MsrIndex::new) {
                        let kind = Kind {
                            index,
                            access,
                            disposition,
                            reason,
                        };
                        assert_eq!(Kind::from_bits(kind.to_bits()), Some(kind));
                    }
                }
            }
        }
        assert_eq!(Kind::from_bits(0), None);
        assert_eq!(Kind::from_bits(u64::MAX), None);
    }
}
