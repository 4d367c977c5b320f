//! Merging of all mentions of an MSR, from all lists, into one row of the register table, and the
//! choice of the register's name.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

use super::sources::{Field, Mention, Name, Rank, Source};

/// One register as a row of the register table.
pub(super) struct Row {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    /// The name of the variant of the enum `Vendor` in the generated code.
    pub(super) vendor: &'static str,
    pub(super) summary: String,
    pub(super) sources: BTreeSet<Source>,
    pub(super) fields: Vec<Field>,
}

impl Row {
    /// Returns the register's name, then its aliases.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .map(String::as_str)
    }
}

/// Returns the key by which a name is looked up: the name in capitals, without `MSR_`. `registers::lookup`
/// of the policy crate computes the same key, and its tests look up every name.
pub(super) fn key(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    match name.strip_prefix("MSR_") {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

/// The authority of a list of MSR names. If several lists give the same name to different registers,
/// the name belongs to the register in the list with the smallest value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Authority {
    /// The architectural names of the SDM, which hold for every processor.
    Sdm,
    /// The constants of Linux, which people copy into other code. Linux uses each constant for one
    /// MSR only.
    Linux,
    /// The names from manuals of AMD, Microsoft and others, in `extra.tsv`.
    Manual,
    /// The constants of another code base.
    Code,
    /// The names that manuals use for one processor family; another family may have another
    /// register of the same name. The crate `x86` has such names, too, from an old SDM.
    Family,
}

impl Authority {
    fn of(mention: &Mention, name: &Name) -> Self {
        match name.rank {
            Rank::Sdm | Rank::Architectural => Self::Sdm,
            Rank::Linux | Rank::LinuxOld => Self::Linux,
            Rank::Code if mention.source != Source::RustX86 => Self::Code,
            _ if mention.source == Source::Extra => Self::Manual,
            _ => Self::Family,
        }
    }

    /// Returns true if a name of this authority means one MSR on all processors.
    fn is_for_all(self) -> bool {
        self <= Self::Manual
    }
}

/// The registers that each name can mean, by the name's key. If several lists use a name for different
/// registers, the name means all these registers. Names of processor families count only if no list that
/// holds for all processors has the same name.
struct Meanings {
    by_key: BTreeMap<String, BTreeSet<u32>>,
    /// The registers that each name can mean, by the full name in capitals. Names of processor
    /// families are left out.
    by_text: BTreeMap<String, BTreeSet<u32>>,
}

impl Meanings {
    /// Collects the registers that each name in these mentions can mean.
    ///
    /// # Errors
    ///
    /// Returns an error if the SDM or Linux gives a name to two registers. It is no error if the manuals of
    /// two vendors give the same name to different registers.
    fn of(mentions: &[Mention]) -> anyhow::Result<Self> {
        let mut all: BTreeMap<String, BTreeMap<Authority, BTreeSet<u32>>> = BTreeMap::new();
        let mut by_text: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for mention in mentions {
            for name in &mention.names {
                let authority = Authority::of(mention, name);
                let by_authority = all.entry(key(&name.text)).or_default();
                by_authority
                    .entry(authority)
                    .or_default()
                    .insert(mention.index);
                if authority != Authority::Family {
                    let text = name.text.to_ascii_uppercase();
                    by_text.entry(text).or_default().insert(mention.index);
                }
            }
        }
        let mut by_key = BTreeMap::new();
        for (name, by_authority) in all {
            for (authority, meant) in &by_authority {
                let clear = *authority > Authority::Linux || meant.len() == 1;
                ensure!(clear, "{name} is {meant:#x?}, says one authority");
            }
            let for_all = by_authority.keys().any(|authority| authority.is_for_all());
            let counts = |authority: Authority| !(for_all && authority == Authority::Family);
            let meant = by_authority.iter().filter(|(of, _)| counts(**of));
            by_key.insert(name, meant.flat_map(|(_, meant)| meant.clone()).collect());
        }
        Ok(Self { by_key, by_text })
    }

    fn is(&self, name: &Name, index: u32) -> bool {
        self.by_key[&key(&name.text)].contains(&index)
    }

    /// Returns true if no register except the one with this index has the name. A name of the SDM
    /// counts with its exact text: Linux gives `MSR_IA32_PMC0` to another register than the SDM's
    /// `IA32_PMC0`, so only the SDM's register has `IA32_PMC0`.
    fn is_only(&self, name: &Name, index: u32) -> bool {
        let only = |meant: &BTreeSet<u32>| meant.len() == 1 && meant.contains(&index);
        let text = name.text.to_ascii_uppercase();
        only(&self.by_key[&key(&name.text)])
            || name.rank == Rank::Sdm && self.by_text.get(&text).is_some_and(only)
    }
}

/// Returns the rows of the register table, sorted by the MSRs' indices.
///
/// # Errors
///
/// Returns an error if a register has no name that is unique, if a vendor is unknown, or if one authority
/// gives a name to two registers.
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
    let own = own_name(&names, alone)
        .context("each name of this register also names another register")?;
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

/// Returns the name in the style of the SDM: `IA32_EFER` for `MSR_IA32_EFER`, and names without
/// `MSR_IA32_` unchanged.
fn sdm_style(name: &str) -> &str {
    match name.strip_prefix("MSR_") {
        Some(rest) if rest.starts_with("IA32_") => rest,
        _ => name,
    }
}

/// Returns the position of the register's main name in `names`, which the caller has sorted by rank. `alone`
/// is true for a name that no other register has. The function goes through the names, the best rank first,
/// and takes the first one for which `alone` is true. If another register has the name too, the function
/// tries the same name with a processor family, before it goes on to the next name. For example,
/// `MSR_CORE_C3_RESIDENCY` also means another register, on Skylake, so the main name is
/// `MSR_NEHALEM_CORE_C3_RESIDENCY`.
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

/// Returns the vendor whose processors have this register. If `extra.tsv` names no vendor, the vendor is
/// derived from the name and the index.
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
    let is_hyper_v = name.starts_with("HV_X64_MSR_") || name.starts_with("MSR_GIM_HV_");
    Ok(if is_hyper_v {
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

/// Returns the register's summary: that of `extra.tsv` if there is one, or else the first summary in
/// the other lists.
fn summary(mentions: &[&Mention]) -> String {
    let by_hand = mentions.iter().rev();
    by_hand
        .filter(|mention| mention.source == Source::Extra)
        .chain(mentions)
        .find_map(|mention| mention.summary.clone())
        .unwrap_or_default()
}

/// Returns the register's bit fields from the first list that has bit fields for it. The bit fields of
/// several lists are not combined, because the lists disagree on the names of the fields.
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
    fn merge_picks_best_name_that_is_unique() {
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
    fn merge_keeps_a_name_for_every_register_that_a_list_for_all_processors_gives_it_to() {
        let mut by_hand = mention(4, &[("B", Rank::Alias), ("D", Rank::Hand)]);
        by_hand.source = Source::Extra;
        let rows = merge(&[
            mention(1, &[("IA32_A", Rank::Sdm)]),
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
                ("MSR_C", &["MSR_IA32_A".to_owned()]),
                ("MSR_ATOM_B", &["MSR_ATOM_C".to_owned()]),
                ("D", &["B".to_owned()]),
            ]
        );
    }

    #[test]
    fn merge_fails_if_one_authority_gives_a_name_to_two_registers() {
        let mentions = [
            mention(1, &[("A", Rank::Linux), ("X", Rank::Linux)]),
            mention(2, &[("MSR_a", Rank::Linux), ("Y", Rank::Linux)]),
        ];
        let error = merge(&mentions).err().unwrap().to_string();
        assert!(error.starts_with("A is"), "{error}");
    }

    #[test]
    fn merge_fails_if_a_register_has_no_name_of_its_own() {
        let mentions = [
            mention(1, &[("A", Rank::Generic)]),
            mention(2, &[("MSR_a", Rank::Generic)]),
        ];
        assert!(merge(&mentions).is_err());
    }
}
