//! The ranges of a packed filter, before their bitmaps are computed.

use msrgate_filter::Accesses;

use crate::msrs::MsrRange;

/// The directions that a window covers: the accesses of its range.
pub type Colour = Accesses;

/// One range of a packed filter, before the range's bitmap is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The directions that the window covers.
    pub colour: Colour,
    /// The MSRs of the window, at most 0x3000.
    pub msrs: MsrRange,
}
