//! Reader of the lists of names: of Linux and of EDK2, `index<TAB>name<TAB>header`, and of other code bases,
//! without the header.

use anyhow::{Context, bail};

use super::{Mention, Rank, Source, hex};

/// The processor families of EDK2's headers, with the prefix that each header uses in its names. If a
/// register's name is unique only with a family, the name gets the first family of this list that has
/// the register. The servers from Nehalem on come first.
const FAMILIES: [(&str, &str); 21] = [
    ("NehalemMsr", "NEHALEM_"),
    ("SandyBridgeMsr", "SANDY_BRIDGE_"),
    ("IvyBridgeMsr", "IVY_BRIDGE_"),
    ("HaswellMsr", "HASWELL_"),
    ("HaswellEMsr", "HASWELL_E_"),
    ("BroadwellMsr", "BROADWELL_"),
    ("XeonDMsr", "XEON_D_"),
    ("SkylakeMsr", "SKYLAKE_"),
    ("XeonE7Msr", "XEON_E7_"),
    ("Xeon5600Msr", "XEON_5600_"),
    ("XeonPhiMsr", "XEON_PHI_"),
    ("SilvermontMsr", "SILVERMONT_"),
    ("GoldmontMsr", "GOLDMONT_"),
    ("GoldmontPlusMsr", "GOLDMONT_PLUS_"),
    ("AtomMsr", "ATOM_"),
    ("Core2Msr", "CORE2_"),
    ("CoreMsr", "CORE_"),
    ("Pentium4Msr", "PENTIUM_4_"),
    ("PentiumMMsr", "PENTIUM_M_"),
    ("P6Msr", "P6_"),
    ("PentiumMsr", "PENTIUM_"),
];

/// The headers of EDK2 whose registers have names without a family.
const NO_FAMILY: [&str; 3] = ["ArchitecturalMsr", "SevSnpMsr", "SvsmMsr"];

/// The prefixes of Linux's constants for processors that no VM has today. Current processors use the same
/// indices for other registers, whose names are better.
const OLD: [&str; 8] = [
    "MSR_P4_",
    "MSR_P6_",
    "MSR_K6_",
    "MSR_KNC_",
    "MSR_KNL_",
    "MSR_IDT_",
    "MSR_GEODE_",
    "MSR_ATOM_",
];

/// Reads `msr-names-linux.tsv`.
pub(super) fn linux(text: &str) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = Vec::new();
    for (index, name, _) in lines(text)? {
        let rank = if OLD.iter().any(|prefix| name.starts_with(prefix)) {
            Rank::LinuxOld
        } else {
            Rank::Linux
        };
        let mention = Mention::new(index, Source::Linux);
        mentions.push(mention.named(name, rank));
    }
    Ok(mentions)
}

/// Reads `msr-names-edk2.tsv`. Each register gets its name with the family and, as in the SDM, the name
/// without the family.
pub(super) fn edk2(text: &str) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = Vec::new();
    for (index, name, header) in lines(text)? {
        let mention = Mention::new(index, Source::Edk2);
        let family = FAMILIES.iter().position(|(family, _)| *family == header);
        let generic = family.and_then(|family| {
            let (_, prefix) = FAMILIES[family];
            name.strip_prefix("MSR_")?.strip_prefix(prefix)
        });
        mentions.push(match (family, generic) {
            (Some(family), Some(generic)) => {
                let rank = if generic.starts_with("IA32_") {
                    Rank::FamilyArchitectural
                } else {
                    Rank::Generic
                };
                mention
                    .named(format!("MSR_{generic}"), rank)
                    .named(name, Rank::Family(family))
            }
            (Some(_), None) => mention.named(name, Rank::FamilyArchitectural),
            (None, _) if NO_FAMILY.contains(&header) => mention.named(name, Rank::Architectural),
            (None, _) => bail!("{name}: names.rs does not know the header {header}"),
        });
    }
    Ok(mentions)
}

/// Reads the list of another code base.
pub(super) fn code(text: &str, source: Source) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (index, name) = line.split_once('\t').with_context(|| line.to_owned())?;
        mentions.push(Mention::new(hex(index)?, source).named(name, Rank::Code));
    }
    Ok(mentions)
}

fn lines(text: &str) -> anyhow::Result<Vec<(u32, &str, &str)>> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [index, name, header] = columns[..] else {
            bail!("not three columns: {line}");
        };
        rows.push((hex(index).with_context(|| line.to_owned())?, name, header));
    }
    Ok(rows)
}
