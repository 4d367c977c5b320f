//! What the bits of a register mean.

/// Consecutive bits of a register that mean one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// The lowest bit.
    pub low: u8,
    /// The highest bit, at most 63; `low` for a field of one bit.
    pub high: u8,
    /// The source's name for it.
    pub name: &'static str,
    /// What it is, in at most 90 bytes; empty where the source does not say.
    pub summary: &'static str,
}

impl Field {
    /// A one in each bit of the field.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        u64::MAX >> (63 - (self.high - self.low)) << self.low
    }

    /// What the field holds in a register's `value`, moved down to bit 0.
    #[must_use]
    pub const fn of(&self, value: u64) -> u64 {
        (value & self.mask()) >> self.low
    }
}
