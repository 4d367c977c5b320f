//! The lookup table of a filter's decisions. One decision costs the same for one range and for
//! sixteen.
//!
//! The table divides the MSR indices into pages of 4,096. For each page that a range touches, and
//! for the page of the x2APIC registers, the table stores a verdict bit and an owner for each MSR
//! and direction. The owner tells the reason for the verdict, such as the range that decides. All
//! other pages share the first stored page, which holds the default action. A perfect hash over the
//! numbers of the stored pages (at most 65) finds the page of an MSR.
//!
//! All fields of the table are 64-bit words, because [`publish`](crate::publish) keeps the same table
//! in atomics: without `unsafe`, threads can share and replace only words.
//!
//! The owner is stored as one byte for each block of 64 MSRs: the number of the range that decides,
//! [`DEFAULT`], [`NO_FILTER`], [`EXEMPT`], or [`MIXED`] + n. [`MIXED`] + n stands for a block in
//! which ranges begin or end: the n-th mixed block has an owner byte for each of its MSRs.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::decide::{Because, Decision, RangeNumber, Verdict};
use crate::msr::{Access, MsrIndex};
use crate::range::{DefaultAction, MAX_RANGES, Range};
use crate::revision::Revision;

pub(crate) mod shared;

const PAGE_BITS: u32 = 12;
/// The largest number of stored pages: the page of the default action, the page of the x2APIC
/// registers, and the pages of the ranges. An unaligned range of 0x3000 MSRs touches four pages.
const MAX_PAGES: usize = 2 + MAX_RANGES * 4;
const BLOCKS: usize = 1 << (PAGE_BITS - 6);
/// The largest number of mixed blocks: the block in which each range begins and the block in which
/// it ends, for reads and for writes.
const MAX_MIXED: usize = MAX_RANGES * 2 * 2;

/// The offset of the owners in a page: 128 words of verdicts (64 read, 64 write) precede the owners
/// (8 read, 8 write).
const OWNERS: usize = 2 * BLOCKS;
const PAGE_WORDS: usize = OWNERS + 2 * BLOCKS / 8;
/// The number of words for the owners of a mixed block: one byte for each MSR.
const MIXED_WORDS: usize = 64 / 8;

/// The largest length of [`Lookup::pages`], in words: 66 KiB of verdicts, 8 KiB of owners, 4 KiB of
/// mixed blocks.
pub(crate) const MAX_WORDS: usize = MAX_PAGES * PAGE_WORDS + MAX_MIXED * MIXED_WORDS;

const TABLE_BITS: u32 = 10;
const TABLE: usize = 1 << TABLE_BITS;
const VACANT: u64 = u64::MAX;

const DEFAULT: u8 = 16;
const NO_FILTER: u8 = 17;
const EXEMPT: u8 = 18;
const MIXED: u8 = 19;

/// A word of a lookup table: a plain `u64`, or an atomic that threads share.
pub(crate) trait Word {
    /// Returns the 64 bits of the word.
    fn get(&self) -> u64;
}

impl Word for u64 {
    #[inline]
    fn get(&self) -> u64 {
        *self
    }
}

/// A lookup table: the decisions of one filter, or of a VM without a filter, on all accesses.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Lookup<W = u64> {
    multiplier: W,
    /// The offset of the mixed blocks in `pages`.
    mixed: W,
    /// The hash table that finds a page. Each word is page number << 32 | offset of the page in
    /// `pages`, or [`VACANT`].
    table: Box<[W; TABLE]>,
    /// The pages, [`PAGE_WORDS`] words each, then the mixed blocks, [`MIXED_WORDS`] words each.
    pages: Box<[W]>,
}

impl<W: Word> Lookup<W> {
    /// Decides an access (S3). All decisions of this crate are made here.
    #[inline]
    pub(crate) fn decide(&self, index: MsrIndex, access: Access) -> Decision {
        let page = self.page(index);
        let word = self.word(page + access as usize * BLOCKS + block_of(index));
        Decision {
            verdict: Verdict::from_bit(word >> (index.get() % 64)),
            because: self.because(page, index, access),
        }
    }

    /// Returns the offset of the page of this MSR.
    #[inline]
    fn page(&self, index: MsrIndex) -> usize {
        let number = u64::from(index.get() >> PAGE_BITS);
        let entry = self.table[hash(number, self.multiplier.get())].get();
        if entry >> 32 == number {
            (entry & 0xffff_ffff) as usize
        } else {
            0
        }
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`mixed` is a place in `pages`, which are at most `MAX_WORDS`"
    )]
    fn because(&self, page: usize, index: MsrIndex, access: Access) -> Because {
        let owners = page + OWNERS + access as usize * (BLOCKS / 8);
        let mut owner = self.byte(owners, block_of(index));
        if let Some(number) = owner.checked_sub(MIXED) {
            let at = self.mixed.get() as usize + usize::from(number) * MIXED_WORDS;
            owner = self.byte(at, (index.get() % 64) as usize);
        }
        match owner {
            DEFAULT => Because::Default,
            NO_FILTER => Because::NoFilter,
            EXEMPT => Because::X2apic,
            range => Because::Range(RangeNumber::new(range)),
        }
    }

    /// Returns the word at the offset `at` of the pages, or 0 past the end of the pages. So a decision
    /// past the end would deny, because a verdict bit of 0 denies.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        self.pages.get(at).map_or(0, Word::get)
    }

    #[inline]
    fn byte(&self, at: usize, number: usize) -> u8 {
        self.word(at + number / 8).to_le_bytes()[number % 8]
    }
}

#[inline]
fn block_of(index: MsrIndex) -> usize {
    (index.get() >> 6) as usize % BLOCKS
}

#[inline]
fn hash(number: u64, multiplier: u64) -> usize {
    (number.wrapping_mul(multiplier) >> (64 - TABLE_BITS)) as usize
}

impl Lookup {
    /// Creates the lookup table of a VM in which no filter was ever set (S3.2).
    pub(crate) fn without_filter(revision: Revision) -> Self {
        Builder::new(revision, Verdict::Allow, NO_FILTER, &[]).finish(&[])
    }

    /// Creates the lookup table for a filter with these ranges and this default action.
    pub(crate) fn build(
        revision: Revision,
        default_action: DefaultAction,
        ranges: &[Range],
    ) -> Self {
        if ranges.is_empty() && revision.ignores_default_without_ranges() {
            return Self::without_filter(revision);
        }
        Builder::new(revision, default_action.verdict(), DEFAULT, ranges).finish(ranges)
    }

    /// The memory in bytes that the lookup table takes in addition to the size of this struct.
    pub(crate) fn footprint(&self) -> usize {
        size_of_val(&*self.table) + size_of_val(&*self.pages)
    }
}

/// Returns the numbers of the pages that differ from the default page, without duplicates: the
/// pages that a range touches, and the page of the MSRs below 0x1000, which include the x2APIC
/// registers. A range whose end would be 2^32 or higher touches no page (S3.5).
fn special_pages(ranges: &[Range]) -> Vec<u32> {
    let mut pages: Vec<u32> = ranges
        .iter()
        .filter_map(|range| Some((range.base().get(), range.end()?.get())))
        .flat_map(|(base, end)| base >> PAGE_BITS..=(end - 1) >> PAGE_BITS)
        .chain([0])
        .collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

struct Builder {
    revision: Revision,
    lookup: Lookup,
    numbers: Vec<u32>,
    default: Block,
    mixed: Vec<[u8; 64]>,
}

/// The verdicts on 64 MSRs in one direction, and the owners, which tell the reasons for the verdicts.
#[derive(Clone, Copy)]
struct Block {
    verdicts: u64,
    owner: u8,
}

impl Builder {
    fn new(revision: Revision, default: Verdict, owner: u8, ranges: &[Range]) -> Self {
        let numbers = special_pages(ranges);
        let multiplier = perfect_multiplier(&numbers);
        let mut table = Box::new([VACANT; TABLE]);
        for (slot, number) in (1..).zip(numbers.iter().copied().map(u64::from)) {
            table[hash(number, multiplier)] = number << 32 | (slot * PAGE_WORDS as u64);
        }
        let verdicts = match default {
            Verdict::Allow => u64::MAX,
            Verdict::Deny => 0,
        };
        Self {
            revision,
            lookup: Lookup {
                multiplier,
                mixed: 0,
                table,
                pages: Box::default(),
            },
            numbers,
            default: Block { verdicts, owner },
            mixed: Vec::new(),
        }
    }

    fn finish(mut self, ranges: &[Range]) -> Lookup {
        let mut pages = vec![0; (1 + self.numbers.len()) * PAGE_WORDS];
        for (direction, access) in Access::ALL.into_iter().enumerate() {
            for block in 0..BLOCKS {
                store(&mut pages[..PAGE_WORDS], direction, block, self.default);
            }
            for slot in 0..self.numbers.len() {
                let page = &mut pages[(slot + 1) * PAGE_WORDS..][..PAGE_WORDS];
                let page_base = self.numbers[slot] << PAGE_BITS;
                for (block, base) in (page_base..).step_by(64).take(BLOCKS).enumerate() {
                    let content = self.block(ranges, base, access);
                    store(page, direction, block, content);
                }
            }
        }
        self.lookup.mixed = pages.len() as u64;
        for owners in &self.mixed {
            pages.extend(owners.as_chunks().0.iter().copied().map(u64::from_le_bytes));
        }
        self.lookup.pages = pages.into_boxed_slice();
        self.lookup
    }

    /// Returns the decisions for the 64 MSRs from `base` on.
    ///
    /// The MSRs of a block are all exempt, or all not exempt (S3.1). For each MSR that is not
    /// exempt, the first range that contains it and covers this direction decides (S3.3), else the
    /// default action does (S3.4).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most `MAX_MIXED` blocks are mixed"
    )]
    fn block(&mut self, ranges: &[Range], base: u32, access: Access) -> Block {
        if self.revision.exempts(MsrIndex::new(base)) {
            return Block {
                verdicts: u64::MAX,
                owner: EXEMPT,
            };
        }
        let mut owners = [self.default.owner; 64];
        let mut verdicts = self.default.verdicts;
        let mut open = u64::MAX;
        for (number, range) in (0..).zip(ranges) {
            let taken = reach(range, base) & open;
            if taken == 0 || !range.accesses().contain(access) {
                continue;
            }
            let bits = match base.checked_sub(range.base().get()) {
                Some(offset) => range.bitmap().window(offset),
                None => range.bitmap().window(0) << (range.base().get() - base),
            };
            if taken == u64::MAX {
                return Block {
                    verdicts: bits,
                    owner: number,
                };
            }
            verdicts = verdicts & !taken | bits & taken;
            open &= !taken;
            for (bit, owner) in owners.iter_mut().enumerate() {
                if taken >> bit & 1 == 1 {
                    *owner = number;
                }
            }
        }
        let owner = if open == u64::MAX {
            self.default.owner
        } else {
            self.mixed.push(owners);
            MIXED + (self.mixed.len() - 1) as u8
        };
        Block { verdicts, owner }
    }
}

fn store(page: &mut [u64], direction: usize, block: usize, content: Block) {
    page[direction * BLOCKS + block] = content.verdicts;
    let owners = OWNERS + direction * (BLOCKS / 8) + block / 8;
    page[owners] |= u64::from(content.owner) << (block % 8 * 8);
}

/// Returns a bit for each of the 64 MSRs from `base` on: 1 if the range contains the MSR. A range
/// whose end would be 2^32 or higher contains no MSR (S3.5).
fn reach(range: &Range, base: u32) -> u64 {
    let Some(end) = range.end() else { return 0 };
    let start = u64::from(range.base().get().max(base));
    let end = u64::from(end.get()).min(u64::from(base) + 64);
    match end.checked_sub(start) {
        None | Some(0) => 0,
        Some(count) => (u64::MAX >> (64 - count)) << (start - u64::from(base)),
    }
}

/// Returns a multiplier for which no two of the pages share a place in the hash table.
///
/// For 64 random pages one multiplier in seven works, so a few tries find one. The hardest set of
/// pages found by search took 152 tries, a few microseconds. There is no proof that every set of
/// pages has such a multiplier, but it is very likely: there are fewer than 2^512 sets, each try
/// fails for less than 7/8 of the sets, and there are 2^63 multipliers.
fn perfect_multiplier(numbers: &[u32]) -> u64 {
    let mut state = 0_u64;
    loop {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let multiplier = mix(state) | 1;
        let mut taken = [0_u64; TABLE / 64];
        let is_perfect = numbers.iter().all(|&number| {
            let place = hash(u64::from(number), multiplier);
            let seen = taken[place / 64] >> (place % 64) & 1;
            taken[place / 64] |= 1 << (place % 64);
            seen == 0
        });
        if is_perfect {
            return multiplier;
        }
    }
}

/// Mixes the bits of `z`: the finaliser of `SplitMix64`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
pub(crate) mod tests;
