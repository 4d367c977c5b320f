//! The emulated microcode device: what an update's header says, and where its revision is read.
//!
//! SDM volume 3, 11.11, and AMD's patch loader as Linux's `arch/x86/kernel/cpu/microcode` uses it.
//! Of an update only the header is looked at: its body is ciphertext to everyone but a processor,
//! and nothing is loaded. A header that hardware would not take is not an error of the guest's
//! access: hardware keeps the old revision and raises nothing.

use msrgate_filter::MsrIndex;

use crate::cpu::Cpu;

/// `IA32_BIOS_SIGN_ID`, where a guest reads the revision.
pub const SIGN_ID: MsrIndex = MsrIndex::new(0x8b);

/// AMD's trigger; Intel's is 0x79.
const AMD_LOADER: MsrIndex = MsrIndex::new(0xc001_0020);

/// How long an update's header is, by vendor.
const INTEL_BYTES: usize = 48;
const AMD_BYTES: usize = 64;

/// What [`SIGN_ID`] holds at this revision: in the upper half on Intel, in the lower on AMD.
#[must_use]
pub fn revision_value(cpu: &Cpu, revision: u32) -> u64 {
    match &*cpu.vendor {
        "AuthenticAMD" | "HygonGenuine" => revision.into(),
        _ => u64::from(revision) << 32,
    }
}

/// Whether a guest that loads through this trigger writes 0 to [`SIGN_ID`] before it reads a revision
/// from there: Intel's processors set it when CPUID is executed (SDM volume 3, 11.11.7), AMD's hold it.
#[must_use]
pub fn is_cleared_first(trigger: MsrIndex) -> bool {
    trigger != AMD_LOADER
}

/// The linear address of the header of an update, and its length in bytes, from a write of `value`
/// to the trigger. Intel's names the data, which the header stands before; AMD's the header.
#[must_use]
pub fn update_header_at(trigger: MsrIndex, value: u64) -> (u64, usize) {
    if trigger == AMD_LOADER {
        (value, AMD_BYTES)
    } else {
        (value.wrapping_sub(INTEL_BYTES as u64), INTEL_BYTES)
    }
}

/// An update's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicrocodeHeader {
    revision: u32,
}

impl MicrocodeHeader {
    /// The header in these bytes, if a processor with this EAX of CPUID leaf 1 would load an update
    /// that has it.
    #[must_use]
    pub fn accepted(trigger: MsrIndex, bytes: &[u8], signature: u32) -> Option<Self> {
        if trigger == AMD_LOADER {
            Self::of_amd(bytes, signature)
        } else {
            Self::of_intel(bytes, signature)
        }
    }

    /// The revision after the update.
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.revision
    }

    /// Table 11-6 of the SDM: version, revision, date, signature, checksum, loader, flags, sizes.
    fn of_intel(bytes: &[u8], signature: u32) -> Option<Self> {
        let field = |number: usize| word(bytes, number * 4);
        let (version, loader) = (field(0)?, field(5)?);
        let (data, total) = match (field(7)?, field(8)?) {
            // An update from before the sizes were written down.
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

    /// Date, patch number, data (2 bytes), length, flag, checksum, two devices, processor (2 bytes).
    fn of_amd(bytes: &[u8], signature: u32) -> Option<Self> {
        let revision = word(bytes, 4)?;
        let processor = word(bytes, 24)? & 0xffff;
        bytes.get(..AMD_BYTES)?;
        let is_sound = revision != 0 && processor == amd_processor(signature);
        is_sound.then_some(Self { revision })
    }
}

/// The sixteen bits by which AMD's patches name a processor: extended family, extended model,
/// model, stepping, of four bits each.
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

    /// Version, revision, date, signature, checksum, loader, flags, data, total, reserved.
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
    fn a_sound_header_gives_its_revision() {
        let seen = MicrocodeHeader::accepted(INTEL, &intel(SOUND), 0x606a6);
        assert_eq!(seen.map(MicrocodeHeader::revision), Some(0x2b00_0590));
        let mut old = SOUND;
        (old[7], old[8]) = (0, 0);
        assert!(MicrocodeHeader::accepted(INTEL, &intel(old), 0x606a6).is_some());
    }

    /// Each field that hardware looks at, wrong.
    #[test]
    fn what_hardware_does_not_take_is_not_taken() {
        for (field, wrong) in [
            (0, 2),
            (3, 0x606a5),
            (5, 0),
            (7, 2001),
            (7, 2004),
            (8, 2047),
        ] {
            let mut header = SOUND;
            header[field] = wrong;
            let seen = MicrocodeHeader::accepted(INTEL, &intel(header), 0x606a6);
            assert_eq!(seen, None, "field {field}");
        }
        for length in 0..INTEL_BYTES {
            let bytes = &intel(SOUND)[..length];
            // The last three words are reserved, and all that is looked at is before.
            let taken = MicrocodeHeader::accepted(INTEL, bytes, 0x606a6).is_some();
            assert_eq!(taken, length >= 36, "{length} bytes");
        }
    }

    #[test]
    fn amd_names_a_processor_in_sixteen_bits() {
        // Zen 2's family 17h, model 31h, stepping 0: CPUID 0x00830f10.
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
    fn the_revision_is_where_the_vendor_keeps_it() {
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
    fn a_guest_of_intel_clears_the_revision_before_it_reads_it() {
        assert!(is_cleared_first(INTEL));
        assert!(!is_cleared_first(AMD_LOADER));
    }

    #[test]
    fn the_header_stands_before_intels_data_and_at_amds_address() {
        assert_eq!(update_header_at(INTEL, 0x1030), (0x1000, 48));
        assert_eq!(update_header_at(INTEL, 0), (0_u64.wrapping_sub(48), 48));
        assert_eq!(update_header_at(AMD_LOADER, 0x1000), (0x1000, 64));
    }
}
