//! The page `docs/evidence.md`, which names the tests for each numbered statement or claim of the
//! documents.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::generated::{compare, write};

/// The text at the head of `docs/evidence.md`. The test in `crates/cli/tests/docs.rs` reads the
/// lists that follow this text.
const HEAD: &str = "\
# Evidence

<!-- Generated from evidence.toml by `cargo run -p xtask -- evidence`. -->

This page lists what shows each numbered statement, promise and claim of the documents.

- `filter::set::tests::s2_4_set_checks_each_range` is a test in the folder `crates/filter`. The middle is its module in `src`; for a
  test in `tests`, it is the test's target and module. `cargo test -p msrgate-filter s2_4_set_checks_each_range` runs it.
- `doctor S2.4a` is a measurement of a real KVM that `msrgate doctor` prints. A test of `crates/kvm` fails on a host whose `/dev/kvm`
  contradicts it. The doctor says why if it cannot show a statement.
- *By source* means that the statement was read in the kernel's source, and that no test measures it.

`kvm::model_vs_kernel::model_and_kernel_agree_on_random_masks_filters_and_accesses` stands behind each test of the model. It runs the
same random masks, filters and accesses on the model and on a real KVM, and compares the results (S1.9, S2, S3, S5). The tests of the
target `nested`, whose guest is a hypervisor, need a KVM that offers SVM to guests, such as the one in [the lab](hosts.md#the-lab). The
tests of `publish::model`, `ring::model`, `kick::model` and `published::model` run under loom only: `scripts/check loom`.
";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evidence {
    document: Vec<Document>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The path of the document, a file or a folder, relative to `docs`.
    path: String,
    claim: Vec<Claim>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    number: String,
    title: String,
    #[serde(default)]
    tests: Vec<String>,
    /// The numbers of the statements that `msrgate doctor` checks on the host and that show the
    /// claim.
    #[serde(default)]
    doctor: Vec<String>,
    /// The part of the claim that no test shows, and the reason.
    note: Option<String>,
}

/// Writes the page `evidence.md` into `docs`.
pub(crate) fn regenerate(docs: &Path) -> anyhow::Result<()> {
    write(files(docs)?)
}

/// Returns an error if the page `evidence.md` in `docs` differs from the page that `evidence.toml`
/// produces.
pub(crate) fn check(docs: &Path) -> anyhow::Result<()> {
    let how = "the page that docs/evidence.toml produces: run `cargo run -p xtask -- evidence`";
    compare(files(docs)?, how)
}

fn files(docs: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let path = docs.join("evidence.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let evidence: Evidence =
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    Ok(vec![(docs.join("evidence.md"), page(&evidence))])
}

fn page(evidence: &Evidence) -> String {
    let mut page = HEAD.to_owned();
    for document in &evidence.document {
        let path = &document.path;
        let _ = write!(
            page,
            "\n## {path}\n\nThe numbers are those of [{path}]({path}).\n\n"
        );
        for claim in &document.claim {
            add(&mut page, claim);
        }
    }
    page
}

fn add(page: &mut String, claim: &Claim) {
    let _ = writeln!(page, "- **{}** {}", claim.number, claim.title);
    for test in &claim.tests {
        let _ = writeln!(page, "  - `{test}`");
    }
    if !claim.doctor.is_empty() {
        let lines = claim.doctor.iter();
        let lines: Vec<_> = lines.map(|number| format!("`doctor {number}`")).collect();
        let _ = writeln!(page, "  - {}", lines.join(", "));
    }
    if let Some(note) = &claim.note {
        let _ = writeln!(page, "  - {note}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_evidence_page_matches_evidence_toml() {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")).unwrap();
    }
}
