//! The shipped policies: each says why, packs, and holds in a guest.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use msrgate_filter::Access;
use msrgate_kvm::HostCaps;
use msrgate_policy::{Action, IncludeError, Includes, Policy, Source, compile, parse};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../policies"))
}

/// Every policy of the folder, by name.
fn names() -> BTreeSet<String> {
    let files = fs::read_dir(folder()).expect("the folder of policies");
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    files
        .filter_map(|file| name(file.expect("a file").path()))
        .collect()
}

/// Shipped policies include each other by name.
struct ByName;

impl Includes for ByName {
    fn open(&mut self, _: &Source, name: &str) -> Result<Source, IncludeError> {
        let text = fs::read_to_string(folder().join(format!("{name}.toml")));
        text.map(|text| Source::new(name, &text))
            .map_err(|error| IncludeError::new(error.to_string()))
    }
}

fn source(name: &str) -> Source {
    let file = folder().join(format!("{name}.toml"));
    Source::new(name, &fs::read_to_string(file).expect(name))
}

fn read(name: &str) -> Policy {
    parse(&source(name), &mut ByName).expect(name)
}

fn msrgate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).output().expect("msrgate runs")
}

fn holds_on(backend: &str) {
    for name in names() {
        let output = msrgate(&["test", &name, "--backend", backend]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name} on {backend}:\n{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains("0 deviations"), "{name}: {last}");
        assert!(!last.starts_with("0 of"), "{name} tried nothing: {last}");
    }
}

#[test]
fn the_program_has_every_policy_of_the_folder() {
    let output = msrgate(&["policies"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, names());
    for name in names() {
        let output = msrgate(&["policies", &name]);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            source(&name).text()
        );
    }
}

#[test]
fn each_has_a_summary_its_own_name_and_a_reason_for_every_entry() {
    for name in names() {
        let policy = read(&name);
        assert_eq!(policy.name(), Some(name.as_str()));
        let first = policy.source().text().lines().next().unwrap_or_default();
        assert!(first.starts_with("# ") && first.ends_with('.'), "{first}");
        for entry in policy.entries() {
            let why = entry.why().unwrap_or_default();
            assert!(!why.is_empty(), "{name}: {} says no why", entry.key());
        }
    }
}

#[test]
fn each_packs_into_the_same_filter_wherever_it_is_compiled() {
    for name in names() {
        let compiled = compile(read(&name)).expect(&name);
        let ranges: usize = compiled
            .variants()
            .iter()
            .map(|variant| variant.filter().ranges().len())
            .sum();
        let output = msrgate(&["check", &name, "--format", "json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&name);
        let packed = json["packed"]["variants"].as_array().expect(&name);
        let told: usize = packed
            .iter()
            .filter_map(|one| one["ranges"].as_array())
            .map(Vec::len)
            .sum();
        assert_eq!(ranges, told, "{name}");
    }
}

/// What `check` warns of in a text.
fn warnings(text: &str) -> usize {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let path = file.path().to_str().expect("a path");
    let output = msrgate(&["check", path, "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    json["warnings"].as_array().expect("warnings").len()
}

/// An accepted gap is one that the policy has: it answers from a state, or `check` warns of the gap
/// where the word for it is missing.
#[test]
fn nothing_is_accepted_in_vain() {
    let mut seen = 0;
    for name in names() {
        let (policy, source) = (read(&name), source(&name));
        for gap in &policy.settings().accept {
            let without = source.text().replace(&format!("\"{gap}\""), "");
            assert_ne!(without, source.text(), "{name} accepts {gap} by an include");
            let is_needed = if **gap == *"state-not-migrated" {
                let entries = policy.entries().iter();
                let mut actions =
                    entries.flat_map(|entry| Access::ALL.map(|access| entry.action(access)));
                actions.any(|action| action.is_some_and(Action::keeps_state))
            } else {
                warnings(&without) > warnings(source.text())
            };
            assert!(is_needed, "{name} accepts {gap}, and has no such gap");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// What lies in the folder where the command is run does not change a shipped policy.
#[test]
fn a_shipped_policy_includes_shipped_ones_only() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("linux-boot"), "policy = 1\n").expect("written");
    let here = msrgate(&["check", "linux-guest"]);
    let there = Command::new(env!("CARGO_BIN_EXE_msrgate"))
        .args(["check", "linux-guest"])
        .current_dir(folder.path())
        .output()
        .expect("msrgate runs");
    assert!(here.status.success());
    assert_eq!(
        String::from_utf8_lossy(&here.stdout),
        String::from_utf8_lossy(&there.stdout)
    );
}

#[test]
fn each_holds_on_the_model() {
    holds_on("model");
}

#[test]
fn each_holds_in_a_real_guest() {
    if let Err(error) = HostCaps::probe() {
        let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
        let advice = error.advice();
        assert!(
            !required.split(',').any(|word| word == "kvm"),
            "MSRGATE_REQUIRE=kvm, but {error}. {advice}"
        );
        let line = format!("SKIPPED: {error}. {advice}\n");
        // Past the test's capture, which a passing test's prints never leave.
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    holds_on("kvm");
}
