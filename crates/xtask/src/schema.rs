//! The JSON schema of the policy language.

use std::path::{Path, PathBuf};

use crate::generated::{compare, write};

/// Writes the JSON schema of the policy language into `docs`.
pub(crate) fn regenerate(docs: &Path) -> anyhow::Result<()> {
    write(files(docs))
}

/// Returns an error if the JSON schema in `docs` differs from that of the policy language today.
pub(crate) fn check(docs: &Path) -> anyhow::Result<()> {
    let how = "the schema of the policy language: run `cargo run -p xtask -- schema`";
    compare(files(docs), how)
}

fn files(docs: &Path) -> Vec<(PathBuf, String)> {
    vec![(docs.join("policy.schema.json"), msrgate_policy::schema())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_schema_matches_policy_language() {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")).unwrap();
    }
}
