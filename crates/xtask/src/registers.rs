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

use std::path::{Path, PathBuf};

use crate::generated::{compare, write};

/// Writes the generated files of the policy crate, whose folder is `policy`.
pub(crate) fn regenerate(policy: &Path) -> anyhow::Result<()> {
    write(generate(policy)?)
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

    use super::sources::Source;
    use super::*;

    #[test]
    fn committed_register_table_matches_data() {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy");
        check(&policy).unwrap();
    }

    #[test]
    fn register_names_of_linux_and_ia32_doc_keep_their_index() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/data");
        let mentions = weed::weed(sources::read_all(&data).unwrap()).unwrap();
        let mut names = 0;
        for mention in &mentions {
            if !matches!(mention.source, Source::Linux | Source::Ia32Doc) {
                continue;
            }
            for name in &mention.names {
                let Named::One(register) = by_name(&name.text) else {
                    panic!(
                        "the name {} stands for no register or for several",
                        name.text
                    );
                };
                // data/README.md explains this one exception.
                if name.text != "MSR_IA32_PMC0" {
                    assert_eq!(register.index.get(), mention.index, "{}", name.text);
                }
                names += 1;
            }
        }
        assert!(names > 900, "{names}");
    }
}
