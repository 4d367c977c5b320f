//! Answers to what a person types to find a register.

use msrgate_filter::MsrIndex;

use super::super::{Group, Register, all, group, groups};
use super::alike::{alike, pasted};
use super::{Named, by_name};
use crate::nearest::meant;
use crate::selector::index_readings;

/// The answer to a text that a person looks up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// The text is the name of a group.
    Group(&'static Group),
    /// The text is an index. Digits alone may be decimal or hexadecimal: these are all readings of
    /// the text, the likeliest first. The register table may have no name for an index.
    Indices(Vec<MsrIndex>),
    /// Registers whose name is the text, then registers whose names or summaries contain all words
    /// of the text, best first.
    Registers {
        /// The registers that match the text, best match first.
        registers: Vec<&'static Register>,
        /// The number of registers at the beginning that have exactly this name. It is above one if
        /// code bases use the name for several registers.
        exact: usize,
    },
    /// No register has the name, but these registers have it if the parts that code bases add, such
    /// as `X86X_MSR_`, are left out, or the number of a macro is put into its place. They are sorted by
    /// index.
    Alike(Vec<&'static Register>),
    /// No register matches the text. The list has similar names, closest first, and may be empty.
    Nothing(Vec<&'static str>),
}

impl Found {
    /// Returns the registers in the answer, best first.
    #[must_use]
    pub fn registers(&self) -> Vec<&'static Register> {
        match self {
            Self::Group(group) => group.registers().collect(),
            Self::Indices(indices) => indices
                .iter()
                .copied()
                .filter_map(super::by_index)
                .collect(),
            Self::Registers { registers, .. } | Self::Alike(registers) => registers.clone(),
            Self::Nothing(_) => Vec::new(),
        }
    }
}

/// Looks up what a person types: a group (`@mtrr`), an index in any spelling (`0x8b`, `139`, `8Bh`,
/// `MSR0000_008B`), a name, a name in another code base's style (`Core::X86::Msr::HWCR`), or words
/// that all occur in a name or in the summary. Punctuation around the text, which is pasted with it from
/// prose or code, does not count.
#[must_use]
pub fn search(query: &str) -> Found {
    let query = pasted(query);
    if query.starts_with('@') {
        if let Some(group) = group(query) {
            return Found::Group(group);
        }
        let names: Vec<_> = groups().iter().map(|group| group.name).collect();
        return Found::Nothing(meant(query, &names).into_iter().collect());
    }
    let name = query.rsplit("::").next().unwrap_or(query);
    let exact = match by_name(name) {
        Named::One(register) => vec![register],
        Named::Several(registers) => registers,
        Named::None(_) => Vec::new(),
    };
    if exact.is_empty() {
        let indices = index_readings(query);
        if !indices.is_empty() {
            return Found::Indices(indices);
        }
    }
    let others = with_words(name);
    if exact.is_empty() && others.is_empty() {
        return not_found(name);
    }
    let count = exact.len();
    let mut registers = exact;
    for register in others {
        if !registers[..count].contains(&register) {
            registers.push(register);
        }
    }
    Found::Registers {
        registers,
        exact: count,
    }
}

fn not_found(name: &str) -> Found {
    let alike = alike(name);
    if !alike.is_empty() {
        return Found::Alike(alike);
    }
    match by_name(name) {
        Named::None(near) => Found::Nothing(near),
        Named::One(_) | Named::Several(_) => Found::Nothing(Vec::new()),
    }
}

/// Returns the registers whose names and summary contain all words of `query`, best first, then by
/// index.
fn with_words(query: &str) -> Vec<&'static Register> {
    let query = query.to_ascii_lowercase();
    let words: Vec<&str> = query.split_whitespace().collect();
    if words.is_empty() {
        return Vec::new();
    }
    let fits = all()
        .iter()
        .filter_map(|register| Some((fit(register, &words)?, register)));
    let mut found: Vec<(Fit, &Register)> = fits.collect();
    found.sort_by_key(|(fit, register)| (*fit, register.index));
    found.into_iter().map(|(_, register)| register).collect()
}

/// The quality of a match, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The register's own name contains all words of the query.
    Name,
    /// An alias of the register contains all words of the query.
    Alias,
    /// The register's summary contains all words of the query, or its names and summary contain
    /// them together.
    Summary,
}

/// Returns the quality of the match of `words`, which are in small letters.
fn fit(register: &Register, words: &[&str]) -> Option<Fit> {
    let has_all = |text: &str| words.iter().all(|word| text.contains(word));
    if has_all(&register.name.to_ascii_lowercase()) {
        return Some(Fit::Name);
    }
    let mut all = String::new();
    for alias in register.aliases {
        let alias = alias.to_ascii_lowercase();
        if has_all(&alias) {
            return Some(Fit::Alias);
        }
        all.push_str(&alias);
        all.push(' ');
    }
    all.push_str(&register.name.to_ascii_lowercase());
    all.push(' ');
    all.push_str(&register.summary.to_ascii_lowercase());
    has_all(&all).then_some(Fit::Summary)
}
