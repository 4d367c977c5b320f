//! Generator of the register table of `msrgate-policy`: it reads the lists of MSR names in
//! `crates/policy/data` and writes Rust source.
//!
//! [`sources`] reads each list into mentions of registers, [`weed`] drops names that name no register,
//! [`merge`] combines all mentions of an MSR's index into one row with one name, and [`emit`] writes
//! the rows.

mod emit;
mod merge;
mod sources;
mod weed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::code_bases;
use crate::generated::{compare, write};
use merge::Row;
use sources::{Mention, Source};

/// Writes the generated files of the policy crate, whose folder is `policy`.
pub(crate) fn regenerate(policy: &Path) -> anyhow::Result<()> {
    let mentions = sources::read_all(&policy.join("data"))?;
    write(generate(policy)?)?;
    let rows = merge::merge(&weed::weed(mentions.clone())?)?;
    for line in counts(&mentions, &rows) {
        println!("{line}");
    }
    Ok(())
}

/// Returns a line for each code base, which says how many of the code base's names the register
/// table has.
fn counts(mentions: &[Mention], rows: &[Row]) -> Vec<String> {
    let mut meanings: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for row in rows {
        for name in row.names() {
            meanings
                .entry(merge::key(name))
                .or_default()
                .insert(row.index);
        }
    }
    let mut lines = Vec::new();
    for (base, source) in code_bases::ALL.iter().zip(Source::CODE) {
        let of_base = mentions.iter().filter(|mention| mention.source == source);
        let (mut all, mut found, mut shared) = (0, 0, 0);
        for mention in of_base {
            for name in &mention.names {
                let meant = meanings.get(&merge::key(&name.text));
                let is_found = meant.is_some_and(|meant| meant.contains(&mention.index));
                all += 1;
                found += usize::from(is_found);
                shared += usize::from(is_found && meant.is_some_and(|meant| meant.len() > 1));
            }
        }
        lines.push(format!(
            "{}: {found} of {all} names are found, {shared} of them mean other registers, too",
            base.folder
        ));
    }
    lines
}

/// Returns an error if a generated file of the policy crate differs from what its data produces.
pub(crate) fn check(policy: &Path) -> anyhow::Result<()> {
    let how = "the text that crates/policy/data produces: run `cargo run -p xtask -- registers`";
    compare(generate(policy)?, how)
}

fn generate(policy: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mentions = weed::weed(sources::read_all(&policy.join("data"))?)?;
    let rows = merge::merge(&mentions)?;
    let to = policy.join("src/registers");
    Ok(vec![
        (to.join("table.rs"), emit::table(&rows)),
        (to.join("fields.rs"), emit::fields(&rows)),
        (to.join("names.rs"), emit::names(&rows)),
    ])
}

#[cfg(test)]
mod tests {
    use msrgate_policy::registers::{Named, by_name};

    use super::*;

    #[test]
    fn committed_register_table_matches_data() {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy");
        check(&policy).unwrap();
    }

    #[test]
    fn each_register_name_of_linux_and_ia32_doc_finds_the_msr_that_it_has_there() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/data");
        let mentions = weed::weed(sources::read_all(&data).unwrap()).unwrap();
        let mut names = 0;
        for mention in &mentions {
            if !matches!(mention.source, Source::Linux | Source::Ia32Doc) {
                continue;
            }
            for name in &mention.names {
                match by_name(&name.text) {
                    Named::One(register) => {
                        assert_eq!(register.index.get(), mention.index, "{}", name.text);
                    }
                    Named::Several(several) => {
                        let is_meant = several.iter().any(|one| one.index.get() == mention.index);
                        assert!(is_meant, "{}", name.text);
                        // data/README.md explains this one exception.
                        assert_eq!(name.text, "MSR_IA32_PMC0");
                    }
                    Named::None(_) => panic!("{} is no register", name.text),
                }
                names += 1;
            }
        }
        assert!(names > 900, "{names}");
    }

    /// In the register table, each name that FreeBSD or another code base gives to a register stands for that
    /// register. Some of these names stand for a second register, too. The exceptions are the names that a
    /// rule of [`weed`] drops, and two names that the SDM gives to registers of old processors.
    #[test]
    fn each_name_that_a_code_base_gives_to_a_register_finds_that_register_in_the_table() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/data");
        let mentions = weed::weed(sources::read_all(&data).unwrap()).unwrap();
        let mut lost = Vec::new();
        let mut names = 0;
        for mention in &mentions {
            if !Source::CODE.contains(&mention.source) {
                continue;
            }
            for name in &mention.names {
                let is_meant = match by_name(&name.text) {
                    Named::One(register) => register.index.get() == mention.index,
                    Named::Several(several) => {
                        several.iter().any(|one| one.index.get() == mention.index)
                    }
                    Named::None(_) => false,
                };
                if !is_meant {
                    lost.push(name.text.as_str());
                }
                names += 1;
            }
        }
        assert_eq!(lost, ["MSR_PKG_C2_RESIDENCY", "MSR_PKG_C6_RESIDENCY"]);
        assert!(names > 1900, "{names}");
    }
}
