//! The register table of `msrgate-policy`: raw lists in, Rust source out.
//!
//! [`sources`] reads each list into mentions of registers, [`weed`] drops names that are none,
//! [`merge`] makes one row of all mentions of an index and names it, [`emit`] writes the rows.

mod emit;
mod merge;
mod sources;
mod weed;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Writes the generated files of the crate in `policy`.
pub(crate) fn regenerate(policy: &Path) -> anyhow::Result<()> {
    for (path, text) in generate(policy)? {
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Fails when a generated file of the crate in `policy` differs from what its data says.
pub(crate) fn check(policy: &Path) -> anyhow::Result<()> {
    for (path, text) in generate(policy)? {
        let committed =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if committed != text {
            bail!(
                "{} is not what crates/policy/data says: run `cargo run -p xtask -- registers`",
                path.display()
            );
        }
    }
    Ok(())
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
    use super::*;

    #[test]
    fn the_committed_table_is_what_the_data_says() {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy");
        check(&policy).unwrap();
    }
}
