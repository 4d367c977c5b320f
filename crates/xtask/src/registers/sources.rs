//! Each raw list, read into mentions of registers.

mod extra;
mod geopm;
mod ia32doc;
mod names;

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Which list a mention is from. The order is that of the bits in the generated table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Ia32Doc,
    Linux,
    Edk2,
    Geopm,
    Extra,
}

/// How good a name is as the one a register goes by; the smallest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// `extra.tsv` says so.
    Hand,
    /// The SDM's architectural name.
    Sdm,
    /// The SDM's long form of it, or EDK2's architectural header.
    Architectural,
    /// An `IA32_` name in a family header of EDK2.
    FamilyArchitectural,
    /// A constant of Linux.
    Linux,
    /// A constant of Linux for processors long gone.
    LinuxOld,
    /// EDK2's name without its family.
    Generic,
    /// geopm's name.
    Geopm,
    /// EDK2's name with its family: the place is the family's among EDK2's.
    Family(usize),
    /// Never the name, always an alias.
    Alias,
}

/// What a list calls a register.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) text: String,
    pub(super) rank: Rank,
}

/// One field of a register, `low` and `high` inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) low: u8,
    pub(super) high: u8,
    pub(super) name: String,
    pub(super) summary: String,
}

/// What one list says about one index.
#[derive(Clone, Debug)]
pub(super) struct Mention {
    pub(super) index: u32,
    pub(super) source: Source,
    pub(super) names: Vec<Name>,
    /// The vendor in `extra.tsv`'s word, where it says one.
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

    /// The same, with one more name.
    pub(super) fn named(mut self, text: impl Into<String>, rank: Rank) -> Self {
        let text = text.into();
        self.names.push(Name { text, rank });
        self
    }
}

/// Everything that the files in `data` say, in the order of [`Source`].
pub(super) fn read_all(data: &Path) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = ia32doc::read(&text(&data.join("intel-architectural-msrs.yml"))?)?;
    mentions.extend(names::linux(&text(&data.join("msr-names-linux.tsv"))?)?);
    mentions.extend(names::edk2(&text(&data.join("msr-names-edk2.tsv"))?)?);
    for file in ["arch", "skx", "spr"] {
        let path = data.join(format!("geopm/msr_data_{file}.json"));
        mentions.extend(geopm::read(&text(&path)?)?);
    }
    mentions.extend(extra::read(&text(&data.join("extra.tsv"))?)?);
    Ok(mentions)
}

fn text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The number in `0x1b`.
fn hex(text: &str) -> anyhow::Result<u32> {
    let digits = text
        .strip_prefix("0x")
        .with_context(|| format!("{text} does not start with 0x"))?;
    u32::from_str_radix(digits, 16).with_context(|| format!("{text} is no 32-bit number"))
}

/// The most bytes of a summary: with an index and a name it still fits a terminal's line or two.
const SUMMARY_LIMIT: usize = 90;

/// The first sentence of a description, on one line and cut to [`SUMMARY_LIMIT`]; nothing when it
/// only repeats a name.
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
    fn a_description_is_cut_to_its_first_sentence_and_to_size() {
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
    fn indices_are_hexadecimal_and_have_32_bits() {
        assert_eq!(hex("0x1B").unwrap(), 0x1b);
        for text in ["27", "0x", "0x100000000", "0x-1"] {
            assert!(hex(text).is_err(), "{text}");
        }
    }
}
