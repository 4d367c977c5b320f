//! The bits of one range: which of its MSRs are allowed.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// `KVM_MSR_FILTER_MAX_BITMAP_SIZE`: the most bytes one bitmap may have (S1.8).
const MAX_BYTES: u64 = 0x600;

/// One bit an MSR, 1 allows. Bit 0 belongs to the range's base.
///
/// Bits past the last MSR do not exist here, whatever user space left in its last word (S3.6).
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap {
    count: u32,
    words: Box<[u64]>,
}

/// A number of MSRs that no bitmap has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapError {
    /// No MSR at all: the kernel takes such a range for an unused one (S2.4).
    Empty,
    /// More MSRs than 0x600 bytes have bits (S1.8). The count is the one that was asked for.
    TooLong(u32),
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a range of no MSRs"),
            Self::TooLong(count) => write!(
                f,
                "a range of {count:#x} MSRs, more than the {:#x} that one bitmap holds",
                Bitmap::MAX_COUNT
            ),
        }
    }
}

impl core::error::Error for BitmapError {}

impl Bitmap {
    /// The most MSRs one bitmap speaks of.
    pub const MAX_COUNT: u32 = 0x3000;

    /// A bitmap of `count` MSRs in which `allowed(offset)` says which bits are 1.
    ///
    /// # Errors
    /// `count` is 0 or above [`Self::MAX_COUNT`].
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

    /// A bitmap of `count` MSRs from the words the kernel would copy: little-endian, bit 0 of word
    /// 0 first. Missing words are 0, surplus words and bits are dropped.
    ///
    /// # Errors
    /// `count` is 0 or above [`Self::MAX_COUNT`].
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

    /// How many 64-bit words the kernel reads for `count` MSRs: whole ones (S2.4). The size in
    /// bytes is computed in 64 bits, so that no count near 2^32 wraps to a small one (S10.2).
    ///
    /// # Errors
    /// `count` is 0 or above [`Self::MAX_COUNT`].
    pub fn words_for(count: u32) -> Result<usize, BitmapError> {
        let bytes = u64::from(count).next_multiple_of(64) / 8;
        match bytes {
            0 => Err(BitmapError::Empty),
            1..=MAX_BYTES => Ok(count.div_ceil(64) as usize),
            _ => Err(BitmapError::TooLong(count)),
        }
    }

    /// How many MSRs it speaks of, 1 to [`Self::MAX_COUNT`].
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether the MSR `offset` above the base is allowed. One past the end is not.
    #[must_use]
    pub fn allows(&self, offset: u32) -> bool {
        self.words
            .get((offset / 64) as usize)
            .is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }

    /// The words, bit 0 of word 0 first; bits past [`Self::count`] are 0.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The 64 bits from `offset` on, in one word; 0 where there is no MSR.
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
    fn sizes_are_whole_words_up_to_0x600_bytes() {
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
    fn bits_past_the_count_do_not_exist() {
        let bitmap = Bitmap::from_words(3, vec![u64::MAX, u64::MAX]).unwrap();
        assert_eq!(bitmap.words(), [0b111]);
        assert!(bitmap.allows(2));
        assert!(!bitmap.allows(3));
        assert!(!bitmap.allows(u32::MAX));
    }

    #[test]
    fn a_window_starts_at_any_bit() {
        let bitmap = Bitmap::from_fn(200, |offset| offset % 3 == 0).unwrap();
        for offset in 0..260 {
            for bit in 0..64 {
                let inside = offset + bit < 200 && (offset + bit) % 3 == 0;
                assert_eq!(bitmap.window(offset) >> bit & 1 == 1, inside);
            }
        }
    }
}
