//! Tests of the documents: `docs/kvm-semantics.md` has every statement about KVM,
//! `docs/evidence.md` lists the tests of each statement, and these tests exist. A renamed test
//! fails here until `docs/evidence.toml` has its new name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use msrgate_kvm::measure::{Statement, statements};

/// The numbering of the statements in each chapter of `docs/kvm-semantics.md`. The statements of S4 and S7
/// have letters in place of numbers. S8 and S9 are one statement each.
const CHAPTERS: [(&str, Parts); 10] = [
    ("S1", Parts::Numbers(10)),
    ("S2", Parts::Numbers(7)),
    ("S3", Parts::Numbers(6)),
    ("S4", Parts::Letters('g')),
    ("S5", Parts::Numbers(8)),
    ("S6", Parts::Numbers(5)),
    ("S7", Parts::Letters('h')),
    ("S8", Parts::None),
    ("S9", Parts::None),
    ("S10", Parts::Numbers(5)),
];

enum Parts {
    None,
    Numbers(u32),
    Letters(char),
}

fn all_statements() -> Vec<String> {
    let of = |(chapter, parts): &(&str, Parts)| -> Vec<String> {
        match parts {
            Parts::None => vec![(*chapter).to_owned()],
            Parts::Numbers(last) => (1..=*last).map(|n| format!("{chapter}.{n}")).collect(),
            Parts::Letters(last) => ('a'..=*last).map(|l| format!("{chapter}{l}")).collect(),
        }
    };
    CHAPTERS.iter().flat_map(of).collect()
}

/// A reference in `docs/evidence.md`: a code span that names a test, or a statement that `msrgate doctor`
/// tests.
#[derive(Debug)]
enum Reference<'d> {
    /// A statement that `msrgate doctor` tests, such as `doctor S2.4a`.
    Doctor(&'d str),
    /// A test, such as `filter::set::tests::s2_4_set_checks_each_range`.
    Test(&'d str),
}

impl<'d> Reference<'d> {
    fn of(span: &'d str) -> Option<Self> {
        if let Some(number) = span.strip_prefix("doctor ") {
            return Some(Self::Doctor(number));
        }
        let (folder, _) = span.split_once("::")?;
        let is_crate = root().join("crates").join(folder).is_dir();
        is_crate.then_some(Self::Test(span))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// Returns the references to statements and tests in the text of the evidence document. The function takes
/// every second part between backquotes for a code span, which is right as long as no fenced code contains
/// backquotes.
fn references(text: &str) -> Vec<Reference<'_>> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter_map(Reference::of).collect()
}

/// Returns the reason why a reference is broken: its statement or test does not exist. Returns `None` if the
/// statement or test exists.
fn broken(reference: &Reference<'_>) -> Option<String> {
    match reference {
        Reference::Doctor(number) => {
            let exists = statements().any(|statement| statement.number() == *number);
            (!exists).then(|| format!("no statement of the doctor is {number}"))
        }
        Reference::Test(path) => (!test_exists(path)).then(|| format!("no test is {path}")),
    }
}

/// Returns true if the test at this path exists. The beginning of the path must be a file, the
/// middle of the path must be modules in that file, and its end must be a test.
fn test_exists(path: &str) -> bool {
    let parts: Vec<&str> = path.split("::").collect();
    let [folder, modules @ .., name] = parts.as_slice() else {
        return false;
    };
    ["src", "tests"].into_iter().any(|kind| {
        let base = root().join("crates").join(folder).join(kind);
        (1..=modules.len()).rev().any(|outer| {
            let module = base.join(modules[..outer].join("/"));
            let files = [module.with_extension("rs"), module.join("main.rs")];
            files.iter().flat_map(fs::read_to_string).any(|text| {
                let has = |module: &&str| text.contains(&format!("mod {module} {{"));
                modules[outer..].iter().all(has) && has_test(&text, name)
            })
        })
    })
}

fn has_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_test = |pair: &[&str]| pair[0] == "#[test]" && pair[1].starts_with(&head);
    lines.windows(2).any(is_test)
}

/// Returns the statements of `docs/kvm-semantics.md`: the number and the text of each.
fn stated(text: &str) -> Vec<(&str, &str)> {
    let chapters = text.split("\n## ").skip(1);
    let items = chapters.flat_map(|chapter| chapter.split("\n- **S").skip(1));
    items.filter_map(|item| item.split_once("**")).collect()
}

/// Returns every statement number in a text, such as `S1.2`, `S4a` or `S7`.
fn mentioned(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    text.split(|c: char| !is_part(c))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| {
            let rest = word.strip_prefix('S').unwrap_or_default();
            let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
            rest.len() <= digits.len() + 1
                && digits.starts_with(|c: char| c.is_ascii_digit())
                && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
        })
        .map(str::to_owned)
        .collect()
}

/// Returns the repository's own Markdown files.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(folder)).expect(folder);
        found.extend(entries.map(|entry| entry.expect(folder).path()));
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found
}

/// A claim of `docs/evidence.md`: the line with the claim, and the lines below it, which name the tests of
/// the claim.
struct Claim<'e> {
    number: &'e str,
    text: &'e str,
}

/// Returns the documents whose claims `docs/evidence.md` lists, each document with its claims.
fn evidence(text: &str) -> Vec<(&str, Vec<Claim<'_>>)> {
    let sections = text.split("\n## ").skip(1);
    sections
        .map(|section| {
            let (path, rest) = section.split_once('\n').expect("a section");
            let items = rest.split("\n- **").skip(1);
            let claims = items.filter_map(|item| {
                let (number, text) = item.split_once("** ")?;
                Some(Claim { number, text })
            });
            (path, claims.collect())
        })
        .collect()
}

/// Returns the words of a text that are this letter and a number, such as `P12`.
fn numbered(text: &str, letter: char) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter(|word| {
            let digits = word.strip_prefix(letter).unwrap_or_default();
            !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
        })
        .collect()
}

#[test]
fn every_test_that_evidence_document_names_exists() {
    let text = read("docs/evidence.md");
    let found = references(&text);
    assert!(
        found.len() > 300,
        "only {} references were found",
        found.len()
    );
    let missing: Vec<_> = found.iter().filter_map(broken).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_claim_in_evidence_document_names_a_test_or_states_that_none_exists() {
    for (path, claims) in evidence(&read("docs/evidence.md")) {
        for Claim { number, text } in claims {
            let has_test = !references(text).is_empty();
            assert!(has_test || text.contains("No test: "), "{path}: {number}");
        }
    }
}

#[test]
fn every_numbered_statement_about_kvm_exists_and_has_entry_in_evidence_document() {
    let (semantics, page) = (read("docs/kvm-semantics.md"), read("docs/evidence.md"));
    let stated = stated(&semantics);
    let numbers: Vec<String> = stated.iter().map(|(n, _)| format!("S{n}")).collect();
    assert_eq!(numbers, all_statements());
    let evidence = evidence(&page);
    let (_, claims) = evidence
        .iter()
        .find(|(path, _)| *path == "kvm-semantics.md")
        .expect("a section");
    let numbers: Vec<&str> = claims.iter().map(|claim| claim.number).collect();
    assert_eq!(numbers, all_statements());
}

#[test]
fn every_numbered_promise_and_claim_has_entry_in_evidence_document() {
    let page = read("docs/evidence.md");
    let evidence = evidence(&page);
    for (path, letters) in [
        ("threat-model.md", "P"),
        ("policy-reference.md", "R"),
        ("wrapping-vmms.md", "W"),
        ("architecture.md", "A"),
        ("seed.md", "HL"),
    ] {
        let text = read(&format!("docs/{path}"));
        let stated: BTreeSet<&str> = letters.chars().flat_map(|l| numbered(&text, l)).collect();
        let (_, claims) = evidence.iter().find(|(of, _)| *of == path).expect(path);
        let shown: BTreeSet<&str> = claims.iter().map(|claim| claim.number).collect();
        assert_eq!(stated, shown, "{path}");
        assert_eq!(shown.len(), claims.len(), "{path} has a number twice");
    }
}

#[test]
fn every_decision_record_that_evidence_document_names_exists() {
    let page = read("docs/evidence.md");
    let evidence = evidence(&page);
    let (_, claims) = evidence
        .iter()
        .find(|(path, _)| *path == "decisions")
        .expect("a section");
    let index = read("docs/decisions/README.md");
    for Claim { number, .. } in claims {
        assert!(index.contains(&format!("| [{number}](")), "{number}");
    }
}

#[test]
fn only_evidence_document_names_tests() {
    for document in documents() {
        if document.ends_with("docs/evidence.md") {
            continue;
        }
        let text = fs::read_to_string(&document).expect("a document");
        let found = references(&text);
        assert!(found.is_empty(), "{}: {found:?}", document.display());
    }
}

#[test]
fn evidence_document_names_every_statement_that_doctor_tests() {
    let text = read("docs/evidence.md");
    let named: BTreeSet<&str> = references(&text)
        .into_iter()
        .filter_map(|reference| match reference {
            Reference::Doctor(number) => Some(number),
            Reference::Test(_) => None,
        })
        .collect();
    let measured: BTreeSet<&str> = statements().map(Statement::number).collect();
    assert_eq!(named, measured);
}

/// The last column of the tables in `docs/seed.md` names items of the code, in code spans. Each of
/// these items exists.
#[test]
fn every_code_item_that_document_seed_md_names_exists() {
    let folders = [
        "crates/filter/src",
        "crates/filter/src/vcpu",
        "crates/svm/src",
    ];
    let source: String = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root().join(folder)).expect("a folder"))
        .map(|entry| fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default())
        .collect();
    let words: BTreeSet<&str> = source
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    let text = read("docs/seed.md");
    let mut count = 0;
    for row in text
        .lines()
        .filter(|line| line.starts_with("| H") || line.starts_with("| L"))
    {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next();
        for item in cell.unwrap_or_default().split('`').skip(1).step_by(2) {
            count += 1;
            let missing = item.split("::").find(|part| !words.contains(part));
            assert_eq!(missing, None, "{item}");
        }
    }
    assert!(count > 50, "only {count} items were found");
}

/// Each paragraph of `docs/msr-filter-api.md`, and each row of its tables, names a statement of
/// `docs/kvm-semantics.md`.
#[test]
fn every_paragraph_of_msr_filter_api_document_names_statement_about_kvm() {
    let text = read("docs/msr-filter-api.md");
    let blocks = text
        .split("\n\n")
        .skip_while(|block| !block.starts_with("## "));
    let mut count = 0;
    for block in blocks.filter(|block| !block.starts_with('#')) {
        let claims: Vec<&str> = if block.starts_with('|') {
            block.lines().skip(2).collect()
        } else {
            vec![block]
        };
        for claim in claims {
            count += 1;
            assert!(!mentioned(claim).is_empty(), "no statement: {claim}");
        }
    }
    assert!(count > 60, "only {count} claims were found");
}

#[test]
fn every_statement_number_that_a_document_mentions_exists() {
    let mut known: BTreeSet<String> = all_statements().into_iter().collect();
    known.extend(statements().map(|statement| statement.number().to_owned()));
    known.extend(CHAPTERS.map(|(chapter, _)| chapter.to_owned()));
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        let unknown: Vec<_> = mentioned(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", document.display());
    }
}

#[test]
fn picture_of_packed_filter_in_reference_is_output_of_check() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_msrgate"));
    let output = command
        .args(["check", "linux-guest", "--host", "none"])
        .output();
    let text = String::from_utf8(output.expect("msrgate runs").stdout).expect("text");
    let (_, picture) = text.split_once("\nfilter: ").expect("a picture");
    let shown = format!("```text,picture\nfilter: {picture}```\n");
    assert!(
        read("docs/policy-reference.md").contains(&shown),
        "docs/policy-reference.md is to have\n{shown}"
    );
    assert!(
        picture.lines().all(|line| line.chars().count() <= 80),
        "{picture}"
    );
}

#[test]
fn every_link_between_documents_has_a_target() {
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        let folder = document.parent().expect("a folder");
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = link.split('#').next().unwrap_or_default();
            let is_outside = link.contains("://") || file.is_empty();
            assert!(
                is_outside || folder.join(file).exists(),
                "{}: {link}",
                document.display()
            );
        }
    }
}

#[test]
fn reference_to_missing_test_or_doctor_statement_is_reported_as_broken() {
    for (path, exists) in [
        ("filter::set::tests::s2_4_set_checks_each_range", true),
        ("filter::set::tests::s2_4_each", false),
        ("filter::set::tests::outcome", false),
        ("filter::set::s2_4_set_checks_each_range", false),
        (
            "filter::bitmap::tests::bitmap_window_starts_at_any_bit",
            true,
        ),
        (
            "filter::bitmap::proofs::bitmap_window_starts_at_any_bit",
            false,
        ),
        (
            "filter::behaviour::s1_numbers::s1_4_exit_reason_bits_depend_on_revision",
            true,
        ),
        (
            "policy::behaviour::s1_numbers::s1_4_exit_reason_bits_depend_on_revision",
            false,
        ),
    ] {
        assert_eq!(test_exists(path), exists, "{path}");
    }
    assert!(broken(&Reference::Doctor("S1.99")).is_some());
    assert!(broken(&Reference::Doctor("S1.1")).is_none());
}

#[test]
fn numbers_of_kvm_statements_are_found_in_text() {
    let text = "S1.2, (S4a) S7; S10.5. SSE, S, xS1, SDM S2.4h: `doctor S3` Sixteen";
    let found: Vec<_> = mentioned(text).into_iter().collect();
    assert_eq!(found, ["S1.2", "S10.5", "S2.4h", "S3", "S4a", "S7"]);
}

#[test]
fn numbers_of_promises_are_found_in_text() {
    let text = "**P1. A** (P12), `P3`; xP4 P5a PR P";
    assert_eq!(numbered(text, 'P'), BTreeSet::from(["P1", "P12", "P3"]));
}
