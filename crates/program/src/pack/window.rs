//! The ranges of a packed filter, before they have bits.

use msrgate_filter::Accesses;

use crate::msrs::MsrRange;

/// The directions a window speaks of: a range's accesses, as the packer sees them.
pub type Colour = Accesses;

/// One range of a packed filter, before it has bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it speaks of.
    pub colour: Colour,
    /// The MSRs, at most 0x3000.
    pub msrs: MsrRange,
}
