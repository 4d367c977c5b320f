//! Processors as people write them, in a policy and for a command.

use std::fmt;

use msrgate_program::{Cpu, CpuPart};

use crate::mistake::Wrong;
use crate::parse::one_of;
use crate::parse::words::VENDORS;
use crate::source::quoted;

/// The number of bytes that CPUID leaf 0 has for a name, in EBX, EDX and ECX.
const CPUID_NAME: usize = 12;

/// A known vendor that differs from a name in no more letters is the one that was meant.
const MISSPELT: usize = 3;

/// Text that describes no processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuError(String);

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CpuError {}

impl From<Wrong> for CpuError {
    fn from(wrong: Wrong) -> Self {
        Self(match wrong.help() {
            Some(help) => format!("{wrong}; {help}"),
            None => wrong.to_string(),
        })
    }
}

/// Reads `GenuineIntel:6:0x6a` or `GenuineIntel:6:0x6a:6`; without a stepping it is 0.
///
/// # Errors
/// The text describes no processor; the message says what would.
pub fn parse_cpu(text: &str) -> Result<Cpu, CpuError> {
    let parts: Vec<_> = text.split(':').collect();
    let (vendor, family, model, stepping) = match parts[..] {
        [vendor, family, model] => (vendor, family, model, "0"),
        [vendor, family, model, stepping] => (vendor, family, model, stepping),
        _ => {
            return Err(CpuError(format!(
                "`{}` is no processor; write VENDOR:FAMILY:MODEL[:STEPPING], such as GenuineIntel:6:0x6a:6",
                quoted(text)
            )));
        }
    };
    // The examples that a compiled policy gives have a vendor that stands for all unnamed ones.
    if vendor != Cpu::OTHER_VENDOR {
        check_vendor(vendor)?;
    }
    Ok(Cpu {
        vendor: vendor.into(),
        family: number(CpuPart::FAMILY, family)?,
        model: number(CpuPart::MODEL, model)?,
        stepping: number(CpuPart::STEPPING, stepping)?,
    })
}

/// Refuses a name that CPUID has no room for, and a known one misspelt: a `[[when]]` for it would never
/// hold, and a policy that allows what it does not name would allow all.
pub(crate) fn check_vendor(name: &str) -> Result<(), Wrong> {
    let written = name.to_lowercase();
    let is_misspelt = |known: &&str| {
        **known != *name && strsim::osa_distance(&written, &known.to_lowercase()) <= MISSPELT
    };
    if name.len() == CPUID_NAME && !VENDORS.iter().any(is_misspelt) {
        return Ok(());
    }
    // `Intel` is far from every vendor by its letters, and a part of one.
    let is_part = |known: &&&str| written.len() >= 3 && known.to_lowercase().contains(&written);
    let mut parts = VENDORS.iter().filter(is_part);
    let meant = match (parts.next(), parts.next()) {
        (Some(only), None) => only,
        _ => name,
    };
    Err(Wrong::NoVendor {
        name: quoted(name),
        help: one_of(meant, &VENDORS, '"'),
    })
}

/// Refuses a number that CPUID has no room for.
pub(crate) fn check_number(part: CpuPart, number: u32) -> Result<u32, Wrong> {
    if number <= part.most {
        return Ok(number);
    }
    Err(Wrong::NoProcessor {
        number,
        key: part.key,
        help: format!("CPUID leaf 1 has room for {:#x} at most", part.most),
    })
}

/// Digits, or `0x` and hexadecimal digits, and nothing else: no sign, no blank.
fn number(part: CpuPart, text: &str) -> Result<u32, CpuError> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let is_plain = digits.chars().all(|digit| digit.is_digit(radix));
    match u32::from_str_radix(digits, radix) {
        Ok(number) if is_plain => Ok(check_number(part, number)?),
        _ => Err(CpuError(format!(
            "`{}` is no {}; write digits, or `0x` and hexadecimal digits",
            quoted(text),
            part.key
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let Err(error) = parse_cpu(text) else {
            panic!("{text} is taken");
        };
        error.to_string()
    }

    #[test]
    fn a_processor_is_read_as_it_is_printed() {
        for text in [
            "GenuineIntel:6:0x6a:6",
            "AuthenticAMD:25:0x1:1",
            "any other:0:0x0:0",
            "VirtualApple:270:0xff:15",
        ] {
            let cpu = parse_cpu(text).unwrap();
            assert_eq!(cpu.to_string(), text);
        }
    }

    #[test]
    fn a_vendor_that_cpuid_does_not_spell_is_refused_with_the_one_meant() {
        for (vendor, meant) in [
            ("Intel", "GenuineIntel"),
            ("intel", "GenuineIntel"),
            ("AMD", "AuthenticAMD"),
            ("GenuineIntle", "GenuineIntel"),
            ("genuineintel", "GenuineIntel"),
            ("AUTHENTICAMD", "AuthenticAMD"),
            ("AuthenticAmd", "AuthenticAMD"),
            ("Genuine Intel", "GenuineIntel"),
            ("GenuineIntel ", "GenuineIntel"),
            ("Hygon", "HygonGenuine"),
            ("Centaur", "CentaurHauls"),
        ] {
            let error = refused(&format!("{vendor}:6:0x6a"));
            assert!(
                error.contains(&format!("did you mean \"{meant}\"?")),
                "{error}"
            );
        }
        assert!(refused("x:6:0x6a").contains("it may be \"GenuineIntel\""));
        assert!(refused(":6:0x6a").contains("it may be \"GenuineIntel\""));
        assert!(!refused("\u{202e}\u{1b}[2J:6:0x6a").contains(['\u{202e}', '\u{1b}']));
    }

    #[test]
    fn a_number_that_cpuid_cannot_have_is_refused() {
        for (text, part) in [
            ("GenuineIntel:0x10f:0", "family"),
            ("GenuineIntel:0x1ff:0", "family"),
            ("GenuineIntel:6:0x100", "model"),
            ("GenuineIntel:6:0x6a:16", "stepping"),
            ("GenuineIntel:-6:0x6a", "family"),
            ("GenuineIntel:+6:0x6a", "family"),
            ("GenuineIntel:6:0x+6a", "model"),
            ("GenuineIntel: 6:0x6a", "family"),
            ("GenuineIntel::0x6a", "family"),
            ("GenuineIntel:6:", "model"),
            ("GenuineIntel:6:0x", "model"),
            ("GenuineIntel:6:0x6a:", "stepping"),
            ("GenuineIntel:6:0x6a:6 ", "stepping"),
            ("GenuineIntel:6:0x6ag", "model"),
            ("GenuineIntel:99999999999:0", "family"),
            ("GenuineIntel:6:0x1ffffffff", "model"),
            ("GenuineIntel:6:٣", "model"),
        ] {
            assert!(refused(text).contains(part), "{}", refused(text));
        }
        for text in ["", "6:6", "GenuineIntel", "GenuineIntel:6:1:2:3"] {
            assert!(refused(text).contains("is no processor"), "{text}");
        }
    }
}
