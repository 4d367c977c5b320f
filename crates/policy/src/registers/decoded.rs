//! The value of a register, split into its bit fields.

use super::Register;
use super::field::Field;
use super::fields::FIELDS;

/// A value of a register, split into the register's bit fields.
///
/// ```
/// use msrgate_policy::registers::{Named, by_name};
///
/// let Named::One(register) = by_name("IA32_MISC_ENABLE") else { panic!() };
/// let decoded = register.decode(0x85_0089);
/// let set = decoded.fields().filter(|(_, held)| *held != 0);
/// assert_eq!(set.last().map(|(field, _)| field.name), Some("(x)TPR_MESSAGE_DISABLE"));
/// assert_eq!(decoded.undescribed(), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    value: u64,
    fields: &'static [Field],
}

impl Decoded {
    /// Returns each field with its value, shifted down to bit 0. Fields come in the order of their
    /// lowest bits, and fields that hold 0 are included. Two fields may share bits, because the
    /// meaning of some bits depends on the processor.
    pub fn fields(&self) -> impl Iterator<Item = (&'static Field, u64)> + use<> {
        let value = self.value;
        self.fields
            .iter()
            .map(move |field| (field, field.of(value)))
    }

    /// Returns the bits that are set and that no field covers: reserved bits, or bits that no list
    /// of registers describes.
    #[must_use]
    pub fn undescribed(&self) -> u64 {
        let described = self
            .fields
            .iter()
            .fold(0, |mask, field| mask | field.mask());
        self.value & !described
    }
}

impl Register {
    /// The bit fields, in the order of their lowest bits. The list is empty for most registers,
    /// because the lists of registers do not have their fields. Bits that no field covers are
    /// reserved, or not described.
    #[must_use]
    pub fn fields(&self) -> &'static [Field] {
        match FIELDS.binary_search_by_key(&self.index, |(index, _)| *index) {
            Ok(place) => FIELDS[place].1,
            Err(_) => &[],
        }
    }

    /// Splits `value` into the register's fields.
    #[must_use]
    pub fn decode(&self, value: u64) -> Decoded {
        Decoded {
            value,
            fields: self.fields(),
        }
    }
}

#[cfg(test)]
mod tests {
    use msrgate_filter::MsrIndex;

    use super::super::{Named, all, by_index, by_name};
    use super::*;

    fn one(name: &str) -> &'static Register {
        let Named::One(register) = by_name(name) else {
            panic!("{name}");
        };
        register
    }

    #[test]
    fn field_of_extracts_bits_of_value() {
        let revision = one("IA32_BIOS_SIGN_ID").fields().last().unwrap();
        assert_eq!((revision.low, revision.high), (32, 63));
        assert_eq!(revision.of(0x2b00_0000 << 32), 0x2b00_0000);
        let all = Field {
            low: 0,
            high: 63,
            name: "ALL",
            summary: "",
        };
        assert_eq!((all.mask(), all.of(u64::MAX)), (u64::MAX, u64::MAX));
    }

    #[test]
    fn decode_splits_value_into_fields() {
        let decoded = one("IA32_MISC_ENABLE").decode(0x85_0089);
        let set: Vec<(u8, &str)> = decoded
            .fields()
            .filter(|(_, held)| *held == 1)
            .map(|(field, _)| (field.low, field.name))
            .collect();
        assert_eq!(
            set,
            [
                (0, "FAST_STRINGS"),
                (3, "AUTOMATIC_THERMAL_CONTROL_CIRCUIT"),
                (7, "PERFORMANCE_MONITORING"),
                (16, "EIST"),
                (18, "MONITOR"),
                (23, "(x)TPR_MESSAGE_DISABLE"),
            ]
        );
        assert_eq!(decoded.undescribed(), 0);
        assert_eq!(decoded.fields().count(), 10, "those that hold 0 too");
    }

    #[test]
    fn decode_returns_undescribed_bits() {
        let decoded = one("IA32_MISC_ENABLE").decode(0x8000_0000_0000_0002 | 1);
        assert_eq!(decoded.undescribed(), 0x8000_0000_0000_0002);
        let without_fields = by_index(MsrIndex::new(0x6e0)).unwrap();
        assert_eq!(
            without_fields.decode(0xdead_beef).undescribed(),
            0xdead_beef
        );
    }

    #[test]
    fn decode_fields_and_undescribed_bits_make_up_the_value() {
        for register in all() {
            for value in [0, u64::MAX, 0x0123_4567_89ab_cdef, 0xaaaa_aaaa_5555_5555] {
                let decoded = register.decode(value);
                let together = decoded
                    .fields()
                    .fold(decoded.undescribed(), |bits, (field, held)| {
                        bits | held << field.low
                    });
                assert_eq!(together, value, "{}", register.name);
            }
        }
    }
}
