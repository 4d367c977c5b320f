//! One row of all that is said about an index, and the name it goes by.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

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

/// How much it counts that a list gives a name to a register; the smallest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Authority {
    /// The SDM's architectural names, which hold for every processor.
    Sdm,
    /// Linux's constants, which people copy. Linux means one MSR by each.
    Linux,
    /// Names from AMD's, Microsoft's and other manuals, in `extra.tsv`.
    Manual,
    /// A processor family's own names: another family may mean another register.
    Family,
}

impl Authority {
    fn of(mention: &Mention, name: &Name) -> Self {
        match name.rank {
            Rank::Sdm | Rank::Architectural => Self::Sdm,
            Rank::Linux | Rank::LinuxOld => Self::Linux,
            _ if mention.source == Source::Extra => Self::Manual,
            _ => Self::Family,
        }
    }
}

/// What each name means, by its key: the registers that the best authority on it gives it to.
struct Meanings(BTreeMap<String, (Authority, BTreeSet<u32>)>);

impl Meanings {
    /// # Errors
    ///
    /// A name that one authority, other than the families, gives to two registers.
    fn of(mentions: &[Mention]) -> anyhow::Result<Self> {
        let mut all: BTreeMap<String, (Authority, BTreeSet<u32>)> = BTreeMap::new();
        for mention in mentions {
            for name in &mention.names {
                let authority = Authority::of(mention, name);
                let (best, meant) = all
                    .entry(key(&name.text))
                    .or_insert_with(|| (authority, BTreeSet::new()));
                if authority < *best {
                    *best = authority;
                    meant.clear();
                }
                if authority == *best {
                    meant.insert(mention.index);
                }
            }
        }
        for (name, (authority, meant)) in &all {
            let clear = *authority == Authority::Family || meant.len() == 1;
            ensure!(clear, "{name} is {meant:#x?}, says one authority");
        }
        Ok(Self(all))
    }

    fn is(&self, name: &Name, index: u32) -> bool {
        self.0[&key(&name.text)].1.contains(&index)
    }

    fn is_only(&self, name: &Name, index: u32) -> bool {
        self.is(name, index) && self.0[&key(&name.text)].1.len() == 1
    }
}

/// The rows, by index.
///
/// # Errors
///
/// A register none of whose names is its alone, a vendor that is none, or an authority that gives
/// one name to two registers.
pub(super) fn merge(mentions: &[Mention]) -> anyhow::Result<Vec<Row>> {
    let meanings = Meanings::of(mentions)?;
    let mut by_index: BTreeMap<u32, Vec<&Mention>> = BTreeMap::new();
    for mention in mentions {
        by_index.entry(mention.index).or_default().push(mention);
    }
    by_index
        .into_iter()
        .map(|(index, mentions)| {
            row(index, &mentions, &meanings).with_context(|| format!("{index:#x}"))
        })
        .collect()
}

fn row(index: u32, mentions: &[&Mention], meanings: &Meanings) -> anyhow::Result<Row> {
    let mut names: Vec<&Name> = mentions.iter().flat_map(|mention| &mention.names).collect();
    names.sort_by_key(|name| name.rank);
    let mut seen = BTreeSet::new();
    names.retain(|name| meanings.is(name, index) && seen.insert(key(&name.text)));
    let alone = |name: &Name| meanings.is_only(name, index);
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
    fn a_name_means_what_the_best_authority_says() {
        let mut by_hand = mention(4, &[("B", Rank::Alias), ("D", Rank::Hand)]);
        by_hand.source = Source::Extra;
        let rows = merge(&[
            mention(1, &[("IA32_A", Rank::Architectural)]),
            mention(2, &[("MSR_IA32_A", Rank::Linux), ("MSR_C", Rank::Linux)]),
            mention(
                3,
                &[("MSR_B", Rank::Generic), ("MSR_ATOM_B", Rank::Family(0))],
            ),
            mention(
                3,
                &[("MSR_C", Rank::Generic), ("MSR_ATOM_C", Rank::Family(0))],
            ),
            by_hand,
        ])
        .unwrap();
        let named: Vec<(&str, &[String])> =
            rows.iter().map(|row| (&*row.name, &*row.aliases)).collect();
        assert_eq!(
            named,
            [
                ("IA32_A", &[][..]),
                ("MSR_C", &[]),
                ("MSR_ATOM_B", &["MSR_ATOM_C".to_owned()]),
                ("D", &["B".to_owned()]),
            ]
        );
    }

    #[test]
    fn a_name_that_one_authority_gives_to_two_registers_is_an_error() {
        let mentions = [
            mention(1, &[("A", Rank::Linux), ("X", Rank::Linux)]),
            mention(2, &[("MSR_a", Rank::Linux), ("Y", Rank::Linux)]),
        ];
        let error = merge(&mentions).err().unwrap().to_string();
        assert!(error.starts_with("A is"), "{error}");
    }

    #[test]
    fn a_register_without_a_name_of_its_own_is_an_error() {
        let mentions = [
            mention(1, &[("A", Rank::Generic)]),
            mention(2, &[("MSR_a", Rank::Generic)]),
        ];
        assert!(merge(&mentions).is_err());
    }
}
