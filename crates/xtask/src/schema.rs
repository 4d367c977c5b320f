//! The JSON schema of the language.

use std::path::{Path, PathBuf};

use crate::generated::{compare, write};

/// Writes the schema into `docs`.
pub(crate) fn regenerate(docs: &Path) -> anyhow::Result<()> {
    write(files(docs))
}

/// Fails when the schema in `docs` is another one.
pub(crate) fn check(docs: &Path) -> anyhow::Result<()> {
    let how = "the language is: run `cargo run -p xtask -- schema`";
    compare(files(docs), how)
}

fn files(docs: &Path) -> Vec<(PathBuf, String)> {
    vec![(docs.join("policy.schema.json"), msrgate_policy::schema())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schema_is_that_of_the_language() {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")).unwrap();
    }
}
