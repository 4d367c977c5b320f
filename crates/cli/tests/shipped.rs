//! Tests of the shipped policies: each entry has a reason, each policy fits into a filter, and a
//! guest gets what the policy promises.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use msrgate_filter::{Access, MsrIndex, X2APIC};
use msrgate_kvm::HostCaps;
use msrgate_policy::{
    Action, Compiled, IncludeError, Includes, ResolvedPolicy, Source, UnknownAction, compile,
    parse, registers,
};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../policies"))
}

/// Returns the names of all policies in the folder `policies/`.
fn names() -> BTreeSet<String> {
    let files = fs::read_dir(folder()).expect("the folder of policies");
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    files
        .filter_map(|file| name(file.expect("a file").path()))
        .collect()
}

/// A source of included policies that looks up shipped policies by name.
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

fn read(name: &str) -> ResolvedPolicy {
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
fn every_policy_file_in_folder_is_built_into_command() {
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
fn shipped_policy_has_summary_and_its_own_name_and_each_entry_has_reason() {
    for name in names() {
        let resolved = read(&name);
        let policy = resolved.policy();
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
fn check_prints_as_many_ranges_as_filter_of_shipped_policy_has() {
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

/// Returns the policy's action for one access. No shipped policy has a `[[when]]` section, so each has one
/// variant.
fn action(compiled: &Compiled, index: MsrIndex, access: Access) -> &Action {
    compiled.variants()[0].rules().at(index, access).action
}

/// An MSR that a recorded boot accessed. The flags are indexed by [`Access`].
struct Recorded {
    index: MsrIndex,
    /// True if the boot tried the access.
    tried: [bool; 2],
    /// True if an access succeeded.
    succeeded: [bool; 2],
}

/// Returns each MSR that the recorded boots accessed, once for each boot.
fn recorded() -> Vec<Recorded> {
    let text = include_str!("../../policy/data/seen/linux-boot-msrs.txt");
    let row = |line: &str| {
        let mut columns = line.split_whitespace();
        let index = u32::from_str_radix(columns.next()?.strip_prefix("0x")?, 16).ok()?;
        let mut count = || columns.next().and_then(|count| count.parse::<u32>().ok());
        let [reads, writes, failed_reads, failed_writes] = [count()?, count()?, count()?, count()?];
        Some(Recorded {
            index: MsrIndex::new(index),
            tried: [reads > 0, writes > 0],
            succeeded: [reads > failed_reads, writes > failed_writes],
        })
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn shipped_linux_policies_allow_every_access_of_recorded_linux_boots() {
    let recorded = recorded();
    assert!(recorded.len() > 100, "only {} rows", recorded.len());
    for name in ["linux-boot", "linux-guest"] {
        let compiled = compile(read(name)).expect(name);
        for &Recorded {
            index, succeeded, ..
        } in &recorded
        {
            for access in Access::ALL
                .into_iter()
                .filter(|&one| succeeded[one as usize])
            {
                let action = action(&compiled, index, access);
                assert_eq!(*action, Action::Allow, "{name}: a {access} of {index}");
            }
        }
    }
}

/// The policy names these accesses in its last comment.
#[test]
fn linux_guest_policy_refuses_three_kinds_of_accesses_of_recorded_boots() {
    let compiled = compile(read("linux-guest")).expect("linux-guest");
    let mut refused = BTreeSet::new();
    for row in recorded() {
        for access in Access::ALL
            .into_iter()
            .filter(|&one| row.tried[one as usize])
        {
            if *action(&compiled, row.index, access) != Action::Allow {
                refused.insert((row.index.get(), access));
            }
        }
    }
    let wanted = [
        (0x3a, Access::Write),
        (0x64e, Access::Read),
        (0xc001_1028, Access::Read),
    ];
    assert_eq!(refused, BTreeSet::from(wanted));
    let source = source("linux-guest");
    let comment = source.text().rsplit("# Compared with").next();
    let comment = comment.unwrap_or_default();
    for (index, access) in wanted {
        let register = registers::by_index(MsrIndex::new(index)).expect("a name");
        let said = format!("{access} of {}:", register.name);
        assert!(comment.contains(&said), "{said}\n{comment}");
    }
}

#[test]
fn policy_linux_guest_allows_every_access_that_policy_linux_boot_allows() {
    let [boot, guest] = ["linux-boot", "linux-guest"].map(|name| compile(read(name)).expect(name));
    for access in Access::ALL {
        for segment in boot.variants()[0].rules().of(access) {
            if *segment.action == Action::Allow {
                let (first, last) = (segment.msrs.first(), segment.msrs.last());
                for index in (first.get()..=last.get()).map(MsrIndex::new) {
                    let action = action(&guest, index, access);
                    assert_eq!(*action, Action::Allow, "a {access} of {index}");
                }
            }
        }
    }
}

/// Returns the registers that have a name and whose reads or writes, as `access` says, get the action
/// `wanted` from the policy. The x2APIC registers are left out.
fn with(name: &str, access: Access, wanted: &Action) -> Vec<MsrIndex> {
    let compiled = compile(read(name)).expect(name);
    let named = registers::all().iter().map(|register| register.index);
    named
        .filter(|index| !X2APIC.contains(index))
        .filter(|&index| action(&compiled, index, access) == wanted)
        .collect()
}

/// Returns the registers of these groups.
fn in_groups(names: &[&str]) -> Vec<MsrIndex> {
    let groups: Vec<_> = names
        .iter()
        .filter_map(|name| registers::group(name))
        .collect();
    assert_eq!(groups.len(), names.len());
    let all = registers::all().iter().map(|register| register.index);
    all.filter(|&index| groups.iter().any(|group| group.contains(index)))
        .collect()
}

#[test]
fn shipped_policy_acts_only_on_registers_that_its_name_says() {
    for access in Access::ALL {
        let calls = in_groups(&["@segment", "@syscall"]);
        assert_eq!(with("sandbox", access, &Action::Allow), calls);
        let mut power = in_groups(&["@power"]);
        let kept = [0x198, 0x199, 0x1fc].map(MsrIndex::new);
        power.retain(|index| !kept.contains(index));
        assert_eq!(with("no-power-telemetry", access, &Action::Deny), power);
        assert_eq!(with("allow-all", access, &Action::Deny), []);
    }
    let calls = in_groups(&["@syscall"]);
    assert_eq!(with("pin-security", Access::Write, &Action::Pin), calls);
    assert_eq!(with("pin-security", Access::Write, &Action::Deny), []);
    assert_eq!(with("pin-security", Access::Read, &Action::Deny), []);
    let unknown = read("quiet-unknown").policy().settings().unknown.clone();
    let [read, write] = [UnknownAction::Value(0), UnknownAction::Ignore];
    assert_eq!((unknown.read, unknown.write), (read, write));
}

/// The policy `linux-guest` denies registers that an ordinary Linux guest has no use for.
#[test]
fn linux_guest_policy_denies_power_counters_microcode_and_virtualization() {
    let refused = with("linux-guest", Access::Write, &Action::Deny);
    let written = in_groups(&["@power", "@svm", "@vmx", "@hyperv"]);
    assert!(written.iter().all(|index| refused.contains(index)));
    for index in [0x79, 0xc001_0020, 0x186, 0x38f, 0xc001_0200] {
        assert!(refused.contains(&MsrIndex::new(index)), "{index:#x}");
    }
    let refused = with("linux-guest", Access::Read, &Action::Deny);
    for index in [0x606, 0x611, 0x639, 0x19c, 0xc001_029a, 0xc001_029b] {
        assert!(refused.contains(&MsrIndex::new(index)), "{index:#x}");
    }
}

/// Returns the number of warnings that `check` prints about this text of a policy.
fn warnings(text: &str) -> usize {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let path = file.path().to_str().expect("a path");
    let output = msrgate(&["check", path, "--host", "none", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    json["warnings"].as_array().expect("warnings").len()
}

/// Each gap in the enforcement that a shipped policy lists in `accept` really exists: without this word in
/// `accept`, `check` gives more warnings. For the word `state-not-migrated`, the policy must have an action
/// that keeps state.
#[test]
fn check_warns_of_each_gap_that_shipped_policy_accepts_if_it_is_not_accepted() {
    let mut seen = 0;
    for name in names() {
        let (resolved, source) = (read(&name), source(&name));
        let policy = resolved.policy();
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

/// A shipped policy includes other shipped policies, even if the working folder has a file with the name of
/// one.
#[test]
fn shipped_policy_includes_only_shipped_policies() {
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
fn shipped_policy_passes_msrgate_test_on_model_of_kvm() {
    holds_on("model");
}

#[test]
fn shipped_policy_passes_msrgate_test_in_guest_on_kvm() {
    if let Err(error) = HostCaps::probe() {
        let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
        let advice = error.advice();
        assert!(
            !required.split(',').any(|word| word == "kvm"),
            "MSRGATE_REQUIRE=kvm, but {error}. {advice}"
        );
        let line = format!("SKIPPED: {error}. {advice}\n");
        // This line is written past the test harness, which would hide the output of a passing test.
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    holds_on("kvm");
}
