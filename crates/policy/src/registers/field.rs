//! The bit fields of a register.

/// A field: consecutive bits of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// The lowest bit.
    pub low: u8,
    /// The highest bit, at most 63; `low` for a field of one bit.
    pub high: u8,
    /// The field's name in the list of registers from which it comes.
    pub name: &'static str,
    /// The description, in at most 90 bytes; empty if the list of registers has none.
    pub summary: &'static str,
}

impl Field {
    /// The mask with a one in each bit of the field.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        u64::MAX >> (63 - (self.high - self.low)) << self.low
    }

    /// Returns the field's part of a register's `value`, shifted down to bit 0.
    #[must_use]
    pub const fn of(&self, value: u64) -> u64 {
        (value & self.mask()) >> self.low
    }
}
