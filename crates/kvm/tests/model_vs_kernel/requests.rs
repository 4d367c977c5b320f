//! Random filters as user space may pass them: most are valid, some have one or two mistakes.
//!
//! A plan describes a filter by a few numbers, so that proptest can shrink a plan to a simpler filter.

use std::ops::RangeInclusive;

use msrgate_filter::{Bitmap, MAX_RANGES, MsrIndex};
use msrgate_kvm::sys::{RawBitmap, RawFilter, RawRange};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::registers;

/// A plan of one call of `KVM_X86_SET_MSR_FILTER`.
#[derive(Clone, Debug)]
pub(crate) struct FilterPlan {
    flags: u32,
    /// The number of unused ranges before the first range in use (S2.4).
    unused: usize,
    ranges: Vec<RangePlan>,
    mistakes: Vec<Mistake>,
}

/// A plan of a range. The range itself has no mistake; a [`Mistake`] is added later, but not to an empty
/// range.
#[derive(Clone, Debug)]
struct RangePlan {
    flags: u32,
    base: u32,
    nmsrs: u32,
    bits: Bits,
    /// The number of surplus bytes after the bitmap's last word. These bytes move the start of the bitmap
    /// off a word boundary.
    surplus: usize,
}

/// The content of a range's bitmap, up to the end of its last word.
#[derive(Clone, Copy, Debug)]
enum Bits {
    All,
    None,
    Random(u64),
    /// One MSR of the range is allowed, the others are denied.
    Only(u32),
    /// All MSRs of the range but one are allowed.
    AllBut(u32),
    /// All MSRs of the range are denied. The bits of the last word after the range's last MSR are set
    /// (S3.6).
    Spare,
    /// All MSRs of the range are allowed. The bits of the last word after the range's last MSR are clear.
    NotSpare,
}

/// A mistake in a call that sets a filter (S2.2 to S2.4).
#[derive(Clone, Copy, Debug)]
enum Mistake {
    /// An unknown bit in the filter's flags.
    FilterFlag(u32),
    /// A mistake in one range. The number is the place of the range, counted from the first range in use.
    Range(usize, RangeMistake),
}

#[derive(Clone, Copy, Debug)]
enum RangeMistake {
    NoFlags,
    UnknownFlag(u32),
    /// A range with more MSRs than a bitmap holds (S1.8, S10.2).
    Oversize(u32),
    Unreadable,
    /// A bitmap that is this many bytes shorter than the whole words that the kernel reads.
    Short(usize),
    /// A bitmap with one bit per MSR, rounded up to a byte. Such a bitmap is long enough only for some
    /// numbers of MSRs.
    Unpadded,
}

/// Returns a proptest strategy that generates plans of filters of all kinds.
pub(crate) fn filter() -> impl Strategy<Value = FilterPlan> {
    let ranges = prop_oneof![
        4 => vec(range(), 0..=3),
        2 => vec(range(), 4..MAX_RANGES),
        1 => vec(range(), MAX_RANGES),
    ];
    let mistakes = prop_oneof![
        11 => Just(Vec::new()),
        4 => vec(mistake(), 1),
        1 => vec(mistake(), 2),
    ];
    (0..=1_u32, 0..=2_usize, ranges, mistakes).prop_map(|(flags, unused, ranges, mistakes)| {
        FilterPlan {
            flags,
            unused: unused.min(MAX_RANGES - ranges.len()),
            ranges,
            mistakes,
        }
    })
}

fn range() -> impl Strategy<Value = RangePlan> {
    let surplus = prop_oneof![3 => Just(0), 1 => 1..8_usize];
    (1..=3_u32, place(), bits(), surplus).prop_map(|(flags, (base, nmsrs), bits, surplus)| {
        RangePlan {
            flags,
            base,
            nmsrs,
            bits,
            surplus,
        }
    })
}

/// Returns a strategy of the first MSR and the length of a range. The range is often near an edge, so that
/// ranges overlap.
fn place() -> impl Strategy<Value = (u32, u32)> {
    let near = || -2..=2_i32;
    let begins = (edge(), near(), count()).prop_map(|(edge, step, count)| {
        let base = edge.wrapping_add_signed(step);
        (base, count)
    });
    let ends = (edge(), near(), count()).prop_map(|(edge, step, count)| {
        let end = edge.wrapping_add_signed(step);
        (end.wrapping_sub(count), count)
    });
    let contains = (edge(), any::<u32>(), count()).prop_map(|(edge, before, count)| {
        let base = edge.wrapping_sub(before % count.max(1));
        (base, count)
    });
    prop_oneof![
        3 => begins,
        3 => ends,
        3 => contains,
        1 => (any::<u32>(), count()),
    ]
}

/// Returns a strategy of MSR indices at which something begins or ends: a register, a word of a bitmap, a
/// hardware bitmap, x2APIC, or the 32-bit numbers.
fn edge() -> impl Strategy<Value = u32> {
    const EDGES: [u32; 9] = [
        0x0,
        0x40,
        0x800,
        0x900,
        0x1000,
        0x2000,
        0x4000_0000,
        0xc000_2000,
        0xc001_0000,
    ];
    let register = select(registers::HARMLESS.map(MsrIndex::get).to_vec());
    prop_oneof![
        // 0 stands for 2^32, too.
        1 => Just(0),
        3 => select(EDGES.to_vec()),
        4 => register,
    ]
}

fn count() -> impl Strategy<Value = u32> {
    let full = Bitmap::MAX_COUNT;
    prop_oneof![
        1 => Just(0),
        4 => 1..=3_u32,
        4 => select(vec![63, 64, 65, 127, 128, 129]),
        2 => 0x100..=0x102_u32,
        3 => 4..=0x400_u32,
        1 => full - 65..=full,
    ]
}

fn bits() -> impl Strategy<Value = Bits> {
    prop_oneof![
        1 => Just(Bits::All),
        1 => Just(Bits::None),
        6 => any::<u64>().prop_map(Bits::Random),
        1 => any::<u32>().prop_map(Bits::Only),
        1 => any::<u32>().prop_map(Bits::AllBut),
        1 => Just(Bits::Spare),
        1 => Just(Bits::NotSpare),
    ]
}

fn mistake() -> impl Strategy<Value = Mistake> {
    const OVERSIZE: RangeInclusive<u32> = Bitmap::MAX_COUNT + 1..=Bitmap::MAX_COUNT + 65;
    let near_the_end = vec![
        0x8000_0000,
        0xffff_ff00,
        0xffff_ffc0,
        0xffff_ffc1,
        u32::MAX - 1,
        u32::MAX,
    ];
    let oversize = prop_oneof![OVERSIZE, select(near_the_end)];
    let of_range = prop_oneof![
        2 => Just(RangeMistake::NoFlags),
        2 => (2..32_u32).prop_map(|bit| RangeMistake::UnknownFlag(1 << bit)),
        3 => oversize.prop_map(RangeMistake::Oversize),
        2 => Just(RangeMistake::Unreadable),
        3 => (1..=8_usize).prop_map(RangeMistake::Short),
        3 => Just(RangeMistake::Unpadded),
    ];
    prop_oneof![
        1 => (1..32_u32).prop_map(|bit| Mistake::FilterFlag(1 << bit)),
        8 => (0..MAX_RANGES, of_range).prop_map(|(at, what)| Mistake::Range(at, what)),
    ]
}

impl FilterPlan {
    /// Returns the filter that this plan describes, as the argument of the call that sets it.
    pub(crate) fn request(&self) -> RawFilter {
        let mut raw = RawFilter {
            flags: self.flags,
            ..RawFilter::default()
        };
        let places = raw.ranges.iter_mut().skip(self.unused);
        for (place, range) in places.zip(&self.ranges) {
            *place = range.request();
        }
        for mistake in &self.mistakes {
            match *mistake {
                Mistake::FilterFlag(bit) => raw.flags |= bit,
                Mistake::Range(at, what) => {
                    let used = self.ranges.len().max(1);
                    let place = (self.unused + at % used).min(MAX_RANGES - 1);
                    what.spoil(&mut raw.ranges[place]);
                }
            }
        }
        raw
    }
}

impl RangePlan {
    fn request(&self) -> RawRange {
        let words = (0..self.nmsrs).step_by(64).map(|from| self.word(from));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.resize(bytes.len() + self.surplus, 0xa5);
        RawRange {
            flags: self.flags,
            nmsrs: self.nmsrs,
            base: self.base,
            bitmap: RawBitmap::Bytes(bytes),
        }
    }

    /// Returns the 64 bits of the bitmap that start at bit `from`. Some of these bits may come after the bit
    /// of the range's last MSR.
    fn word(&self, from: u32) -> u64 {
        let own = match self.nmsrs - from {
            left @ 0..64 => (1 << left) - 1,
            _ => u64::MAX,
        };
        let one = |offset: u32| match (offset % self.nmsrs).checked_sub(from) {
            Some(bit @ 0..64) => 1 << bit,
            _ => 0,
        };
        match self.bits {
            Bits::All => u64::MAX,
            Bits::None => 0,
            Bits::Random(seed) => mix(seed.wrapping_add(from.into())),
            Bits::Only(offset) => one(offset),
            Bits::AllBut(offset) => !one(offset),
            Bits::Spare => !own,
            Bits::NotSpare => own,
        }
    }
}

/// Mixes the bits of `z` as the finaliser of `SplitMix64` does.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl RangeMistake {
    fn spoil(self, range: &mut RawRange) {
        match self {
            Self::NoFlags => range.flags = 0,
            Self::UnknownFlag(bit) => range.flags |= bit,
            Self::Oversize(nmsrs) => range.nmsrs = nmsrs,
            Self::Unreadable => range.bitmap = RawBitmap::Unreadable,
            Self::Short(by) => cut(&mut range.bitmap, |bytes| bytes.saturating_sub(by)),
            Self::Unpadded => {
                let enough = range.nmsrs.div_ceil(8) as usize;
                cut(&mut range.bitmap, |bytes| bytes.min(enough));
            }
        }
    }
}

fn cut(bitmap: &mut RawBitmap, to: impl FnOnce(usize) -> usize) {
    if let RawBitmap::Bytes(bytes) = bitmap {
        bytes.truncate(to(bytes.len()));
    }
}
