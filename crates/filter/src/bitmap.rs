//! The bitmap of one range: the bits that say which of the range's MSRs are allowed.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// `KVM_MSR_FILTER_MAX_BITMAP_SIZE`: the size limit of one bitmap, in bytes (S1.8).
const MAX_BYTES: u64 = 0x600;

/// A bitmap with one bit for each MSR of a range: 1 allows, 0 denies. Bit 0 belongs to the range's
/// base.
///
/// Bits past the last MSR are 0, whatever user space left in the last word (S3.6).
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap {
    count: u32,
    words: Box<[u64]>,
}

/// An error for a number of MSRs that one bitmap cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapError {
    /// The number of MSRs is 0: the kernel treats such a range as unused (S2.4).
    Empty,
    /// The bitmap for this number of MSRs would need more than 0x600 bytes (S1.8).
    TooLong(u32),
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a range must have at least one MSR"),
            Self::TooLong(count) => write!(
                f,
                "a range of {count:#x} MSRs is too large: a bitmap holds at most {:#x}",
                Bitmap::MAX_COUNT
            ),
        }
    }
}

impl core::error::Error for BitmapError {}

impl Bitmap {
    /// The largest number of MSRs in one bitmap.
    pub const MAX_COUNT: u32 = 0x3000;

    /// Creates a bitmap of `count` MSRs, in which the bit at `offset` is 1 if `allowed(offset)` is
    /// true.
    ///
    /// # Errors
    /// - [`BitmapError::Empty`]: `count` is 0.
    /// - [`BitmapError::TooLong`]: `count` is above [`Self::MAX_COUNT`].
    pub fn from_fn(count: u32, mut allowed: impl FnMut(u32) -> bool) -> Result<Self, BitmapError> {
        let mut words = vec![0; Self::words_for(count)?];
        for offset in (0..count).filter(|&offset| allowed(offset)) {
            words[(offset / 64) as usize] |= 1 << (offset % 64);
        }
        Ok(Self {
            count,
            words: words.into_boxed_slice(),
        })
    }

    /// Creates a bitmap of `count` MSRs from the 64-bit words that the kernel would copy. The bit
    /// at `offset` is bit `offset % 64` of word `offset / 64`. If `words` is too short, the missing
    /// words count as 0. Words and bits past the last MSR are dropped.
    ///
    /// # Errors
    /// - [`BitmapError::Empty`]: `count` is 0.
    /// - [`BitmapError::TooLong`]: `count` is above [`Self::MAX_COUNT`].
    pub fn from_words(count: u32, mut words: Vec<u64>) -> Result<Self, BitmapError> {
        words.resize(Self::words_for(count)?, 0);
        if let (Some(last), used @ 1..) = (words.last_mut(), count % 64) {
            *last &= (1 << used) - 1;
        }
        Ok(Self {
            count,
            words: words.into_boxed_slice(),
        })
    }

    /// Returns the number of 64-bit words that the kernel reads for `count` MSRs: it reads whole
    /// words (S2.4).
    ///
    /// The size is computed in 64 bits, so that a count near 2^32 does not wrap to a small size
    /// (S10.2).
    ///
    /// # Errors
    /// - [`BitmapError::Empty`]: `count` is 0.
    /// - [`BitmapError::TooLong`]: `count` is above [`Self::MAX_COUNT`].
    pub fn words_for(count: u32) -> Result<usize, BitmapError> {
        let bytes = u64::from(count).next_multiple_of(64) / 8;
        match bytes {
            0 => Err(BitmapError::Empty),
            1..=MAX_BYTES => Ok(count.div_ceil(64) as usize),
            _ => Err(BitmapError::TooLong(count)),
        }
    }

    /// The number of MSRs in the bitmap, 1 to [`Self::MAX_COUNT`].
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Returns true if the MSR at `offset` from the base is allowed; false for an offset past the
    /// end.
    #[must_use]
    pub fn allows(&self, offset: u32) -> bool {
        self.words
            .get((offset / 64) as usize)
            .is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }

    /// The 64-bit words of the bitmap, bit 0 of word 0 first. Bits past [`Self::count`] are 0.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the 64 bits of the bitmap from bit `offset` on, in one word. Bits past the end of the
    /// bitmap are 0.
    pub(crate) fn window(&self, offset: u32) -> u64 {
        let word = |at: u32| self.words.get(at as usize).copied().unwrap_or(0);
        let (first, shift) = (offset / 64, offset % 64);
        match shift {
            0 => word(first),
            _ => word(first) >> shift | word(first + 1) << (64 - shift),
        }
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed: u32 = self.words.iter().map(|word| word.count_ones()).sum();
        write!(f, "Bitmap({allowed} of {} allowed)", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_words_for_counts_whole_words_up_to_0x600_bytes() {
        assert_eq!(Bitmap::words_for(0), Err(BitmapError::Empty));
        assert_eq!(Bitmap::words_for(1), Ok(1));
        assert_eq!(Bitmap::words_for(64), Ok(1));
        assert_eq!(Bitmap::words_for(65), Ok(2));
        assert_eq!(Bitmap::words_for(0x3000), Ok(192));
        for count in [0x3001, 0x7fff_ffff, 0xffff_ffc1, u32::MAX] {
            assert_eq!(Bitmap::words_for(count), Err(BitmapError::TooLong(count)));
        }
    }

    #[test]
    fn bitmap_from_words_drops_bits_past_the_last_msr() {
        let bitmap = Bitmap::from_words(3, vec![u64::MAX, u64::MAX]).unwrap();
        assert_eq!(bitmap.words(), [0b111]);
        assert!(bitmap.allows(2));
        assert!(!bitmap.allows(3));
        assert!(!bitmap.allows(u32::MAX));
    }

    #[test]
    fn bitmap_window_starts_at_any_bit() {
        let bitmap = Bitmap::from_fn(200, |offset| offset % 3 == 0).unwrap();
        for offset in 0..260 {
            for bit in 0..64 {
                let inside = offset + bit < 200 && (offset + bit) % 3 == 0;
                assert_eq!(bitmap.window(offset) >> bit & 1 == 1, inside);
            }
        }
    }
}
