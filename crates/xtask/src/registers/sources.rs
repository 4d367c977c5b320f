//! Parsers of the lists of MSRs in `crates/policy/data`, most of which come from other projects. Each
//! parser returns the MSRs of one list, with their names.

mod extra;
mod geopm;
mod ia32doc;
mod names;

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::code_bases;

/// The list of MSRs that a mention comes from. In the generated table each list has a bit, in the order
/// of these variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Ia32Doc,
    Linux,
    Edk2,
    Geopm,
    Extra,
    FreeBsd,
    Illumos,
    OpenVmm,
    Xen,
    RustX86,
    VirtualBox,
    CoreFreq,
    Coreboot,
    Bochs,
    HyperPlatform,
}

impl Source {
    /// The code bases, in the order of [`code_bases::ALL`].
    pub(super) const CODE: [Self; 10] = [
        Self::FreeBsd,
        Self::Illumos,
        Self::OpenVmm,
        Self::Xen,
        Self::RustX86,
        Self::VirtualBox,
        Self::CoreFreq,
        Self::Coreboot,
        Self::Bochs,
        Self::HyperPlatform,
    ];
}

/// The rank of a name among the names of a register. The name with the smallest rank is the best main name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The name comes from `extra.tsv`, the list written by hand.
    Hand,
    /// The name is the architectural name of the SDM.
    Sdm,
    /// The name is the SDM's long form, or comes from EDK2's architectural header.
    Architectural,
    /// The name begins with `IA32_` and comes from EDK2's header of a processor family.
    FamilyArchitectural,
    /// The name is a constant of Linux.
    Linux,
    /// The name is a constant of Linux for processors that are no longer in use.
    LinuxOld,
    /// The name comes from EDK2; the processor family is left out of the name.
    Generic,
    /// The name comes from geopm.
    Geopm,
    /// The name comes from EDK2 and includes the processor family. The number is the family's place in
    /// the list of EDK2's families.
    Family(usize),
    /// The name is a constant of another code base.
    Code,
    /// The name never becomes the main name of a register, only an alias.
    Alias,
}

/// A name that a list of MSRs gives to a register, with the name's rank.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) text: String,
    pub(super) rank: Rank,
}

/// A bit field of a register; `low` and `high` are inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) low: u8,
    pub(super) high: u8,
    pub(super) name: String,
    pub(super) summary: String,
}

/// One element of a list of MSRs: an MSR, with the names, bit fields and summary that the list has
/// for it.
#[derive(Clone, Debug)]
pub(super) struct Mention {
    pub(super) index: u32,
    pub(super) source: Source,
    pub(super) names: Vec<Name>,
    /// The word that `extra.tsv` has for the register's vendor; `None` if the mention comes from
    /// another list.
    pub(super) vendor: Option<String>,
    pub(super) summary: Option<String>,
    pub(super) fields: Vec<Field>,
}

impl Mention {
    pub(super) fn new(index: u32, source: Source) -> Self {
        Self {
            index,
            source,
            names: Vec::new(),
            vendor: None,
            summary: None,
            fields: Vec::new(),
        }
    }

    /// Returns the mention with this name added to the register's names.
    pub(super) fn named(mut self, text: impl Into<String>, rank: Rank) -> Self {
        let text = text.into();
        self.names.push(Name { text, rank });
        self
    }
}

/// Reads all lists of MSRs in the folder `data`, in the order of [`Source`].
pub(super) fn read_all(data: &Path) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = ia32doc::read(&text(&data.join("intel-architectural-msrs.yml"))?)?;
    mentions.extend(names::linux(&text(&data.join("msr-names-linux.tsv"))?)?);
    mentions.extend(names::edk2(&text(&data.join("msr-names-edk2.tsv"))?)?);
    for file in ["arch", "skx", "spr"] {
        let path = data.join(format!("geopm/msr_data_{file}.json"));
        mentions.extend(geopm::read(&text(&path)?)?);
    }
    mentions.extend(extra::read(&text(&data.join("extra.tsv"))?)?);
    for (base, source) in code_bases::ALL.iter().zip(Source::CODE) {
        mentions.extend(names::code(&text(&base.list(data))?, source)?);
    }
    Ok(mentions)
}

fn text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Parses a hexadecimal number such as `0x1b`.
fn hex(text: &str) -> anyhow::Result<u32> {
    let digits = text
        .strip_prefix("0x")
        .with_context(|| format!("{text} does not start with 0x"))?;
    u32::from_str_radix(digits, 16).with_context(|| format!("{text} is not a 32-bit number"))
}

/// The largest size of a summary in bytes. A summary of this size, with an index and a name, fits into two
/// lines of a terminal.
const SUMMARY_LIMIT: usize = 90;

/// Returns the first sentence of a description, on one line and cut to [`SUMMARY_LIMIT`]. Returns `None` if
/// the sentence is a single word, because such a word only repeats a name.
fn sentence(description: &str) -> Option<String> {
    let words: Vec<&str> = description.split_whitespace().collect();
    let line = words.join(" ").replace(['“', '”'], "\"").replace('’', "'");
    let end = line.find(". ").unwrap_or(line.len());
    let first = line[..end].trim_end_matches('.');
    if !first.contains(' ') {
        return None;
    }
    if first.len() <= SUMMARY_LIMIT {
        return Some(first.to_owned());
    }
    let mut short = String::new();
    for word in first.split(' ') {
        if short.len() + word.len() + 1 > SUMMARY_LIMIT - "…".len() {
            break;
        }
        short.push_str(word);
        short.push(' ');
    }
    Some(format!("{}…", short.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_cuts_register_description_to_first_sentence_and_limit() {
        let said = |text| sentence(text).unwrap_or_default();
        assert_eq!(
            said("Reads “this”\nand that. Writes nothing."),
            "Reads \"this\" and that"
        );
        assert_eq!(said("SYSENTER_CS_MSR"), "", "a name again");
        let long = said(&"word ".repeat(40));
        assert!(
            long.len() <= SUMMARY_LIMIT && long.ends_with("word…"),
            "{long}"
        );
    }

    #[test]
    fn hex_parses_only_hexadecimal_32_bit_numbers() {
        assert_eq!(hex("0x1B").unwrap(), 0x1b);
        for text in ["27", "0x", "0x100000000", "0x-1"] {
            assert!(hex(text).is_err(), "{text}");
        }
    }
}
