//! One row of all that is said about an index, and the name it goes by.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};

use super::sources::{Field, Mention, Name, Rank, Source};

/// One register, ready to be written.
pub(super) struct Row {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    /// The variant of `Vendor`.
    pub(super) vendor: &'static str,
    pub(super) summary: String,
    pub(super) sources: BTreeSet<Source>,
    pub(super) fields: Vec<Field>,
}

impl Row {
    /// The name, then the aliases.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .map(String::as_str)
    }
}

/// What a name is looked up by: without `MSR_`, in capitals. `registers::lookup` of the policy crate
/// does the same, and its tests find every name there is.
pub(super) fn key(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    match name.strip_prefix("MSR_") {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

/// The rows, by index.
///
/// # Errors
///
/// A register none of whose names is its alone, or a vendor that is none.
pub(super) fn merge(mentions: &[Mention]) -> anyhow::Result<Vec<Row>> {
    let mut by_index: BTreeMap<u32, Vec<&Mention>> = BTreeMap::new();
    let mut meanings: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for mention in mentions {
        by_index.entry(mention.index).or_default().push(mention);
        for name in &mention.names {
            let meaning = meanings.entry(key(&name.text)).or_default();
            meaning.insert(mention.index);
        }
    }
    by_index
        .into_iter()
        .map(|(index, mentions)| {
            row(index, &mentions, &meanings).with_context(|| format!("{index:#x}"))
        })
        .collect()
}

fn row(
    index: u32,
    mentions: &[&Mention],
    meanings: &BTreeMap<String, BTreeSet<u32>>,
) -> anyhow::Result<Row> {
    let mut names: Vec<&Name> = mentions.iter().flat_map(|mention| &mention.names).collect();
    names.sort_by_key(|name| name.rank);
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(key(&name.text)));
    let alone = |name: &Name| meanings[&key(&name.text)].len() == 1;
    let own = own_name(&names, alone).context("no name is this register's alone")?;
    let name = sdm_style(&names.remove(own).text).to_owned();
    Ok(Row {
        index,
        vendor: vendor(index, &name, mentions)?,
        aliases: names.iter().map(|name| name.text.clone()).collect(),
        summary: summary(mentions),
        sources: mentions.iter().map(|mention| mention.source).collect(),
        fields: fields(mentions),
        name,
    })
}

/// `IA32_EFER` for `MSR_IA32_EFER`; other names as they are.
fn sdm_style(name: &str) -> &str {
    match name.strip_prefix("MSR_") {
        Some(rest) if rest.starts_with("IA32_") => rest,
        _ => name,
    }
}

/// Which of `names`, best first, the register goes by: the first that is its `alone`, or the first
/// whose form with a family is. So `MSR_CORE_C3_RESIDENCY`, another one on Skylake, becomes
/// `MSR_NEHALEM_CORE_C3_RESIDENCY`, not whatever else a family calls it.
fn own_name(names: &[&Name], alone: impl Fn(&Name) -> bool) -> Option<usize> {
    let candidates = names.iter().filter(|name| name.rank < Rank::Alias);
    candidates.into_iter().find_map(|best| {
        let with_family = format!("_{}", key(&best.text));
        names.iter().position(|name| {
            let is_best = name.text == best.text;
            let is_long = matches!(name.rank, Rank::Family(_)) && name.text.ends_with(&with_family);
            (is_best || is_long) && alone(name)
        })
    })
}

/// Who has this register: `extra.tsv`'s word, else by name and index.
fn vendor(index: u32, name: &str, mentions: &[&Mention]) -> anyhow::Result<&'static str> {
    if let Some(word) = mentions
        .iter()
        .find_map(|mention| mention.vendor.as_deref())
    {
        return Ok(match word {
            "any" => "Any",
            "intel" => "Intel",
            "amd" => "Amd",
            "kvm" => "Kvm",
            "hyper-v" => "HyperV",
            other => bail!("{other} is no vendor"),
        });
    }
    Ok(if name.starts_with("HV_X64_MSR_") {
        "HyperV"
    } else if name.starts_with("MSR_IDT_") || name.starts_with("MSR_VIA_") {
        "Centaur"
    } else if name.starts_with("MSR_TMTA_") {
        "Transmeta"
    } else if (0xc000_0000..=0xc001_ffff).contains(&index) {
        "Amd"
    } else {
        "Intel"
    })
}

/// `extra.tsv`'s summary, else the first there is.
fn summary(mentions: &[&Mention]) -> String {
    let by_hand = mentions.iter().rev();
    by_hand
        .filter(|mention| mention.source == Source::Extra)
        .chain(mentions)
        .find_map(|mention| mention.summary.clone())
        .unwrap_or_default()
}

/// The fields of the first list that has any: lists disagree on names, and half of each is none.
fn fields(mentions: &[&Mention]) -> Vec<Field> {
    let mut lists = mentions.iter().map(|mention| &mention.fields);
    lists
        .find(|fields| !fields.is_empty())
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mention(index: u32, names: &[(&str, Rank)]) -> Mention {
        let mut mention = Mention::new(index, Source::Edk2);
        for (name, rank) in names {
            mention = mention.named(*name, *rank);
        }
        mention
    }

    #[test]
    fn the_best_name_that_is_a_registers_alone_is_its_name() {
        let rows = merge(&[
            mention(
                2,
                &[("MSR_B", Rank::Linux), ("MSR_IA32_B", Rank::Architectural)],
            ),
            mention(
                1,
                &[("MSR_A", Rank::Generic), ("MSR_NEHALEM_A", Rank::Family(0))],
            ),
            mention(1, &[("MSR_OTHER", Rank::Geopm)]),
            mention(
                3,
                &[("MSR_A", Rank::Generic), ("MSR_SKYLAKE_A", Rank::Family(7))],
            ),
            mention(3, &[("msr_a", Rank::Alias)]),
        ])
        .unwrap();
        let named: Vec<(u32, &str)> = rows.iter().map(|row| (row.index, &*row.name)).collect();
        assert_eq!(
            named,
            [(1, "MSR_NEHALEM_A"), (2, "IA32_B"), (3, "MSR_SKYLAKE_A")]
        );
        assert_eq!(rows[2].aliases, ["MSR_A"], "one alias a key");
    }

    #[test]
    fn a_register_without_a_name_of_its_own_is_an_error() {
        let mentions = [
            mention(1, &[("A", Rank::Linux)]),
            mention(2, &[("MSR_a", Rank::Linux)]),
        ];
        assert!(merge(&mentions).is_err());
    }
}
