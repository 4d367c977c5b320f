//! Processors as people write them, in a policy or on the command line.

use std::fmt;
use std::iter;

use msrgate_program::{Cpu, CpuPart, Program, Variant, one_line};

use crate::mistake::MistakeKind;
use crate::nearest::one_of;
use crate::parse::words::VENDORS;
use crate::source::quoted;

/// The length in bytes of a vendor's name in CPUID leaf 0: EBX, EDX and ECX.
const CPUID_NAME: usize = 12;

/// The maximum number of letters in which a misspelt name may differ from the known vendor that was
/// meant.
const MISSPELT: usize = 3;

/// Words by which people know the vendors that KVM runs on, each with the vendor's name in CPUID.
const BRANDS: [(&str, &str); 6] = [
    ("intel", "GenuineIntel"),
    ("amd", "AuthenticAMD"),
    ("hygon", "HygonGenuine"),
    ("centaur", "CentaurHauls"),
    ("shanghai", "  Shanghai  "),
    ("zhaoxin", "  Shanghai  "),
];

/// The reason for which a text describes no processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuError(String);

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.0))
    }
}

impl std::error::Error for CpuError {}

impl From<MistakeKind> for CpuError {
    fn from(kind: MistakeKind) -> Self {
        Self(match kind.help() {
            Some(help) => format!("{kind}; {help}"),
            None => kind.to_string(),
        })
    }
}

/// A processor as a user named it. The user may have left out the stepping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCpu {
    cpu: Cpu,
    stepping: Stepping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stepping {
    Named,
    LeftOut,
}

impl NamedCpu {
    /// The processor that the user named. If the user left out the stepping, the stepping is 0.
    #[must_use]
    pub const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Returns the processor that the user named. If the user left out the stepping, the processor
    /// stands for all steppings, so each of `programs` must have the same variant for all
    /// steppings.
    ///
    /// # Errors
    /// Returns [`CpuError`] if the stepping was left out, and a program has different variants for
    /// different steppings.
    pub fn on<'p>(
        &self,
        programs: impl IntoIterator<Item = &'p Program>,
    ) -> Result<&Cpu, CpuError> {
        if self.stepping == Stepping::LeftOut {
            for program in programs {
                self.check_all_steppings(program)?;
            }
        }
        Ok(&self.cpu)
    }

    fn check_all_steppings(&self, program: &Program) -> Result<(), CpuError> {
        let holding = |stepping| {
            let cpu = Cpu {
                stepping,
                ..self.cpu.clone()
            };
            program.on(&cpu).map(Variant::holds)
        };
        let first = holding(0);
        match (1..=CpuPart::STEPPING.most).find(|&stepping| holding(stepping) != first) {
            None => Ok(()),
            Some(other) => {
                let Cpu {
                    vendor,
                    family,
                    model,
                    ..
                } = &self.cpu;
                let named = format!("{}:{family}:{model:#x}", quoted(vendor));
                Err(CpuError(format!(
                    "the policy differs between the steppings 0 and {other} of {named}; write a stepping, too: {named}:STEPPING"
                )))
            }
        }
    }
}

/// Parses a processor: `GenuineIntel:6:0x6a` or, with the stepping, `GenuineIntel:6:0x6a:6`.
///
/// # Errors
/// Returns [`CpuError`] if the text describes no processor; the message says how to write one.
pub fn parse_cpu(text: &str) -> Result<NamedCpu, CpuError> {
    let parts: Vec<_> = text.split(':').collect();
    let (vendor, family, model, stepping) = match parts[..] {
        [vendor, family, model] => (vendor, family, model, None),
        [vendor, family, model, stepping] => (vendor, family, model, Some(stepping)),
        _ => {
            return Err(CpuError(format!(
                "`{}` is not a processor; write VENDOR:FAMILY:MODEL[:STEPPING], such as GenuineIntel:6:0x6a:6",
                quoted(text)
            )));
        }
    };
    // `OTHER_VENDOR` stands for all vendors that a policy does not name; compiled policies use it
    // in examples.
    if vendor != Cpu::OTHER_VENDOR {
        check_vendor(vendor)?;
    }
    let (family, model) = (
        number(CpuPart::FAMILY, family)?,
        number(CpuPart::MODEL, model)?,
    );
    // No processor has family 0; compiled policies use it in examples for models of any family.
    if family != 0 {
        check_model(iter::once(family), iter::once(model))?;
    }
    let cpu = Cpu {
        vendor: vendor.into(),
        family,
        model,
        stepping: number(CpuPart::STEPPING, stepping.unwrap_or("0"))?,
    };
    let stepping = match stepping {
        Some(_) => Stepping::Named,
        None => Stepping::LeftOut,
    };
    Ok(NamedCpu { cpu, stepping })
}

/// Checks a vendor's name.
///
/// A `[[when]]` section for a vendor that does not exist holds on no processor. Under `default =
/// "allow"`, the accesses that the section's entries refuse would then be allowed.
///
/// # Errors
/// Returns a mistake if the name does not have the length of a name in CPUID, or is a misspelt name
/// of a known vendor.
pub(crate) fn check_vendor(name: &str) -> Result<(), MistakeKind> {
    if VENDORS.contains(&name) {
        return Ok(());
    }
    let written = name.trim().to_lowercase();
    // Spaces before and after a name do not count as misspelt letters.
    let is_misspelt =
        |known: &&str| strsim::osa_distance(&written, &known.trim().to_lowercase()) <= MISSPELT;
    let reordered = VENDORS.iter().find(|known| is_reordered(name, known));
    let is_text = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let brand = BRANDS.iter().find(|(brand, _)| written.contains(brand));
    let is_far = brand.is_none() && reordered.is_none() && !VENDORS.iter().any(is_misspelt);
    if name.len() == CPUID_NAME && is_text && is_far {
        return Ok(());
    }
    // `Intel` differs from every vendor's name in many letters, but is a part of `GenuineIntel`.
    let is_part = |known: &&&str| written.len() >= 3 && known.to_lowercase().contains(&written);
    let mut parts = VENDORS.iter().filter(is_part);
    let meant = match (parts.next(), parts.next(), brand, reordered) {
        (_, _, _, Some(vendor)) | (Some(vendor), None, _, _) | (_, _, Some((_, vendor)), _) => {
            vendor
        }
        _ => name,
    };
    Err(MistakeKind::NoVendor {
        name: quoted(name),
        help: one_of(meant, &VENDORS, "a vendor", '"'),
    })
}

/// Returns true if `name` is the name of `vendor` as people misread it from CPUID leaf 0: the
/// registers, or the bytes of a register, are in another order. CPUID holds the name in EBX, EDX
/// and ECX, the lowest byte first.
fn is_reordered(name: &str, vendor: &str) -> bool {
    let words = |name: &str| -> Vec<Vec<u8>> {
        let mut words: Vec<_> = name
            .as_bytes()
            .chunks(4)
            .map(|word| {
                let mut word = word.to_vec();
                word.sort_unstable();
                word
            })
            .collect();
        words.sort_unstable();
        words
    };
    words(name) == words(vendor)
}

/// Checks a family, model or stepping.
///
/// # Errors
/// Returns a mistake if the number is too large for CPUID.
pub(crate) fn check_number(part: CpuPart, number: u32) -> Result<u32, MistakeKind> {
    if number <= part.most {
        return Ok(number);
    }
    Err(MistakeKind::NoProcessor {
        number,
        key: part.key,
        help: format!(
            "the largest {} that CPUID leaf 1 can report is {:#x}",
            part.key, part.most
        ),
    })
}

/// Checks models against families: before family 6, a model in CPUID has four bits.
///
/// # Errors
/// Returns a mistake if all families are before family 6, and all models are too large for four
/// bits.
pub(crate) fn check_model(
    last_families: impl Iterator<Item = u32>,
    first_models: impl Iterator<Item = u32>,
) -> Result<(), MistakeKind> {
    match (last_families.max(), first_models.min()) {
        (Some(family), Some(model))
            if family < CpuPart::FIRST_WITH_LONG_MODEL && model > CpuPart::LAST_SHORT_MODEL =>
        {
            Err(MistakeKind::NoProcessor {
                number: model,
                key: CpuPart::MODEL.key,
                help: format!(
                    "the largest model that CPUID leaf 1 can report is {1:#x} for families below {0}",
                    CpuPart::FIRST_WITH_LONG_MODEL,
                    CpuPart::LAST_SHORT_MODEL
                ),
            })
        }
        _ => Ok(()),
    }
}

/// Parses a number: decimal digits, or `0x` and hexadecimal digits; no sign and no blank.
fn number(part: CpuPart, text: &str) -> Result<u32, CpuError> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let is_plain = digits.chars().all(|digit| digit.is_digit(radix));
    match u32::from_str_radix(digits, radix) {
        Ok(number) if is_plain => Ok(check_number(part, number)?),
        _ => Err(CpuError(format!(
            "`{}` is not a {}; write decimal digits, or `0x` and hexadecimal digits",
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
    fn parse_cpu_reads_printed_processor_back() {
        for text in [
            "GenuineIntel:6:0x6a:6",
            "AuthenticAMD:25:0x1:1",
            "any other:0:0x0:0",
            "VirtualApple:270:0xff:15",
            "  Shanghai  :7:0x3b:0",
        ] {
            let named = parse_cpu(text).unwrap();
            assert_eq!(named.cpu().to_string(), text);
        }
    }

    #[test]
    fn parse_cpu_refuses_misspelt_vendor_with_suggestion() {
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
            ("Shanghai", "  Shanghai  "),
            ("Shanghai    ", "  Shanghai  "),
            ("    Shanghai", "  Shanghai  "),
            ("IntelGenuine", "GenuineIntel"),
            ("Intel Corpor", "GenuineIntel"),
            ("INTEL_INTEL_", "GenuineIntel"),
            ("AMD AMD AMD ", "AuthenticAMD"),
            ("GenuineAMDxx", "AuthenticAMD"),
            ("Zhaoxin     ", "  Shanghai  "),
            // Names that were read from CPUID in a wrong order: the registers in the order EBX,
            // ECX, EDX; the bytes of each register from the highest down; the whole name from its
            // end.
            ("GenuntelineI", "GenuineIntel"),
            ("HygouinenGen", "HygonGenuine"),
            ("CentaulsurHa", "CentaurHauls"),
            ("uneGIeniletn", "GenuineIntel"),
            ("letnIeniuneG", "GenuineIntel"),
        ] {
            let error = refused(&format!("{vendor}:6:0x6a"));
            assert!(
                error.contains(&format!("did you mean \"{meant}\"?")),
                "{error}"
            );
        }
        assert!(refused("x:6:0x6a").contains("may be \"GenuineIntel\""));
        // The names have twelve bytes: some bytes are not ASCII, or one is a control character.
        assert!(refused("éééééé:6:0x6a").contains("no processor has the vendor"));
        assert!(refused("\u{1}23456789012:6:0x6a").contains("no processor has the vendor"));
        assert!(refused(":6:0x6a").contains("may be \"GenuineIntel\""));
        assert!(!refused("\u{202e}\u{1b}[2J:6:0x6a").contains(['\u{202e}', '\u{1b}']));
    }

    #[test]
    fn parse_cpu_refuses_number_too_large_for_cpuid() {
        for (text, part) in [
            ("GenuineIntel:0x10f:0", "family"),
            ("GenuineIntel:0x1ff:0", "family"),
            ("GenuineIntel:6:0x100", "model"),
            ("GenuineIntel:5:0x6a", "model"),
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
            assert!(refused(text).contains("is not a processor"), "{text}");
        }
    }
}
