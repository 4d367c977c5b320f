//! The emulated microcode device: it reads an update's header, and keeps the revision that the
//! guest reads.
//!
//! The device follows SDM volume 3, 11.11, and AMD's patch loader as Linux's
//! `arch/x86/kernel/cpu/microcode` uses it. The device reads only the header of an update and loads
//! nothing, because only a processor can decrypt the body. A header that hardware would not accept
//! causes no error in the guest's access: hardware keeps the old revision and raises no exception.

use msrgate_filter::MsrIndex;

use crate::cpu::Cpu;

/// The register `IA32_BIOS_SIGN_ID`, in which a guest reads the revision.
pub const SIGN_ID: MsrIndex = MsrIndex::new(0x8b);

/// The MSR that a guest writes on AMD's processors to start a microcode update. On Intel's processors
/// the MSR is 0x79.
const AMD_LOADER: MsrIndex = MsrIndex::new(0xc001_0020);

/// The length of the header of an Intel update in bytes.
const INTEL_BYTES: usize = 48;
const AMD_BYTES: usize = 64;

/// Returns the value of [`SIGN_ID`] for this revision: the revision is in the upper half on Intel, in
/// the lower half on AMD.
#[must_use]
pub fn revision_value(cpu: &Cpu, revision: u32) -> u64 {
    match &*cpu.vendor {
        "AuthenticAMD" | "HygonGenuine" => revision.into(),
        _ => u64::from(revision) << 32,
    }
}

/// Returns true if a guest that updates its microcode by writes to the MSR `trigger` has to write 0
/// to [`SIGN_ID`] before it reads a revision there.
///
/// Intel's processors set [`SIGN_ID`] when CPUID is executed (SDM volume 3, 11.11.7); AMD's processors
/// always have the revision in [`SIGN_ID`].
#[must_use]
pub fn is_cleared_first(trigger: MsrIndex) -> bool {
    trigger != AMD_LOADER
}

/// Returns the linear address of an update's header and the header's length in bytes, for a write
/// of `value` to the MSR `trigger`. On Intel the value is the address of the data after the header,
/// on AMD the address of the header.
#[must_use]
pub fn update_header_at(trigger: MsrIndex, value: u64) -> (u64, usize) {
    if trigger == AMD_LOADER {
        (value, AMD_BYTES)
    } else {
        (value.wrapping_sub(INTEL_BYTES as u64), INTEL_BYTES)
    }
}

/// The header of a microcode update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicrocodeHeader {
    revision: u32,
}

impl MicrocodeHeader {
    /// Returns the header that `bytes` contain if a processor with this signature would load the
    /// microcode update after a write to the MSR `trigger`. `signature` is EAX of the processor's
    /// CPUID leaf 1.
    #[must_use]
    pub fn accepted(trigger: MsrIndex, bytes: &[u8], signature: u32) -> Option<Self> {
        if trigger == AMD_LOADER {
            Self::of_amd(bytes, signature)
        } else {
            Self::of_intel(bytes, signature)
        }
    }

    /// The revision that the guest reads after the update.
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.revision
    }

    /// Reads a header of an Intel update, which has the fields of SDM table 11-6: version, revision,
    /// date, signature, checksum, loader, flags, sizes.
    fn of_intel(bytes: &[u8], signature: u32) -> Option<Self> {
        let field = |number: usize| word(bytes, number * 4);
        let (version, loader) = (field(0)?, field(5)?);
        let (data, total) = match (field(7)?, field(8)?) {
            // In old updates the field for the data size is 0, which stands for a data size of 2000 and
            // a total size of 2048.
            (0, _) => (2000, 2048),
            sizes => sizes,
        };
        let header = u32::try_from(INTEL_BYTES).ok()?;
        let fits = data.checked_add(header).is_some_and(|end| end <= total);
        let is_sound = version == 1
            && loader == 1
            && field(3)? == signature
            && data % 4 == 0
            && total % 1024 == 0
            && fits;
        let revision = field(1)?;
        is_sound.then_some(Self { revision })
    }

    /// Reads a header of an AMD update, which has these fields: date, patch number, data (2 bytes),
    /// length, flag, checksum, two devices, processor (2 bytes).
    fn of_amd(bytes: &[u8], signature: u32) -> Option<Self> {
        let revision = word(bytes, 4)?;
        let processor = word(bytes, 24)? & 0xffff;
        bytes.get(..AMD_BYTES)?;
        let is_sound = revision != 0 && processor == amd_processor(signature);
        is_sound.then_some(Self { revision })
    }
}

/// Returns the sixteen bits that identify a processor in AMD's patches: extended family, extended
/// model, model, stepping, of four bits each.
const fn amd_processor(signature: u32) -> u32 {
    let extended = signature >> 16 & 0xfff;
    (extended >> 4 & 0xf) << 12 | (extended & 0xf) << 8 | signature & 0xff
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: MsrIndex = MsrIndex::new(0x79);

    fn intel(fields: [u32; 12]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect()
    }

    /// A valid header of Intel: version, revision, date, signature, checksum, loader, flags, data
    /// size, total size, reserved.
    const SOUND: [u32; 12] = [
        1,
        0x2b00_0590,
        0x0101_2024,
        0x606a6,
        0,
        1,
        0x87,
        2000,
        2048,
        0,
        0,
        0,
    ];

    #[test]
    fn microcode_header_that_hardware_accepts_returns_its_revision() {
        let seen = MicrocodeHeader::accepted(INTEL, &intel(SOUND), 0x606a6);
        assert_eq!(seen.map(MicrocodeHeader::revision), Some(0x2b00_0590));
        let mut old = SOUND;
        (old[7], old[8]) = (0, 0);
        assert!(MicrocodeHeader::accepted(INTEL, &intel(old), 0x606a6).is_some());
    }

    /// A header is rejected if any one of the fields that hardware checks is wrong, or if the bytes
    /// end before the last of these fields.
    #[test]
    fn microcode_header_that_hardware_rejects_is_not_accepted() {
        for (field, bad) in [
            (0, 2),
            (3, 0x606a5),
            (5, 0),
            (7, 2001),
            (7, 2004),
            (8, 2047),
        ] {
            let mut header = SOUND;
            header[field] = bad;
            let seen = MicrocodeHeader::accepted(INTEL, &intel(header), 0x606a6);
            assert_eq!(seen, None, "field {field}");
        }
        for length in 0..INTEL_BYTES {
            let bytes = &intel(SOUND)[..length];
            // The last three words are reserved. All words that are checked come before them.
            let taken = MicrocodeHeader::accepted(INTEL, bytes, 0x606a6).is_some();
            assert_eq!(taken, length >= 36, "{length} bytes");
        }
    }

    #[test]
    fn amd_microcode_header_is_accepted_only_for_the_processor_that_it_names() {
        // Family 17h, model 31h, stepping 0 of Zen 2: CPUID 0x00830f10.
        let mut bytes = [0; AMD_BYTES];
        bytes[4..8].copy_from_slice(&0x0830_107c_u32.to_le_bytes());
        bytes[24..26].copy_from_slice(&0x8310_u16.to_le_bytes());
        let taken = |signature| MicrocodeHeader::accepted(AMD_LOADER, &bytes, signature);
        assert_eq!(
            taken(0x0083_0f10).map(MicrocodeHeader::revision),
            Some(0x0830_107c)
        );
        assert_eq!(taken(0x0083_0f11), None);
        assert_eq!(
            MicrocodeHeader::accepted(AMD_LOADER, &bytes[..63], 0x0083_0f10),
            None
        );
    }

    #[test]
    fn microcode_revision_is_in_upper_half_of_register_on_intel_and_in_lower_half_on_amd() {
        let cpu = |vendor: &str| Cpu {
            vendor: vendor.into(),
            family: 6,
            model: 0,
            stepping: 0,
        };
        assert_eq!(revision_value(&cpu("GenuineIntel"), 0x2b), 0x2b << 32);
        assert_eq!(revision_value(&cpu("AuthenticAMD"), 0x2b), 0x2b);
    }

    #[test]
    fn guest_clears_microcode_revision_register_before_reading_it_only_on_intel() {
        assert!(is_cleared_first(INTEL));
        assert!(!is_cleared_first(AMD_LOADER));
    }

    #[test]
    fn microcode_header_ends_at_written_address_on_intel_and_starts_there_on_amd() {
        assert_eq!(update_header_at(INTEL, 0x1030), (0x1000, 48));
        assert_eq!(update_header_at(INTEL, 0), (0_u64.wrapping_sub(48), 48));
        assert_eq!(update_header_at(AMD_LOADER, 0x1000), (0x1000, 64));
    }
}
