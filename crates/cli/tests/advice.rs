//! Tests of the advice in messages about files and folders, and of the counts that `check` prints.

use std::fs;
use std::path::Path;
use std::process::Command;

fn said(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.current_dir(folder).env("NO_COLOR", "1");
    let output = command.args(arguments).output().expect("msrgate");
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).expect("text")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Returns the message of `check` for a policy that includes `name`, without line breaks.
fn included(folder: &Path, name: &str) -> String {
    let text = format!("policy = 1\ndefault = \"deny\"\ninclude = [\"{name}\"]\n");
    fs::write(folder.join("p.toml"), text).expect("a file");
    let said = said(folder, &["check", "--host", "none", "p.toml"]);
    said.replace("\n  │ ", " ").replace("\n        ", " ")
}

#[test]
fn message_about_misspelt_shipped_policy_suggests_its_name() {
    let folder = folder();
    for (name, meant) in [
        ("linux-gest", "linux-guest"),
        ("Linux-Boot", "linux-boot"),
        ("linux-guest.toml", "linux-guest"),
        ("unikernl", "unikernel"),
    ] {
        let said = said(folder.path(), &["check", name]);
        let help = format!("did you mean the shipped policy `{meant}`?");
        assert!(said.contains(&help), "{name}: {said}");
        let said = included(folder.path(), name);
        assert!(said.contains("did you mean"), "{name}: {said}");
        assert!(said.contains(&format!("\"{meant}\"?")), "{name}: {said}");
    }
    let said = said(folder.path(), &["check", "nothing-alike"]);
    assert!(
        said.contains("the shipped policies are allow-all, linux-boot"),
        "{said}"
    );
}

#[test]
fn message_about_folder_named_like_shipped_policy_says_that_it_is_a_folder() {
    let folder = folder();
    fs::create_dir(folder.path().join("linux-boot")).expect("a folder");
    let said = said(folder.path(), &["check", "linux-boot"]);
    assert!(
        said.contains("this folder hides the shipped policy of the same name"),
        "{said}"
    );
    assert!(
        said.contains("msrgate policies linux-boot | msrgate check -"),
        "{said}"
    );
    let said = included(folder.path(), "linux-boot");
    assert!(
        said.contains("a file or folder of this name hides the shipped policy"),
        "{said}"
    );
    assert!(
        said.contains("msrgate policies linux-boot > linux-boot.toml"),
        "{said}"
    );
}

#[test]
fn message_about_missing_file_names_its_folder() {
    let folder = folder();
    fs::create_dir(folder.path().join("conf")).expect("a folder");
    for (arguments, why) in [
        (
            &["check", "a.toml"][..],
            "a.toml: there is no such file in the current folder",
        ),
        (
            &["check", "conf/a.toml"],
            "conf/a.toml: there is no such file in conf",
        ),
        (
            &["check", "cnof/a.toml"],
            "cnof/a.toml: there is no folder cnof",
        ),
        (
            &["check", "conf"],
            "conf: this is a folder; name a file in it",
        ),
        (
            &["replay", "sandbox", "conf/t"],
            "conf/t: there is no such file in conf",
        ),
        (&["import", "cnof/t"], "cnof/t: there is no folder cnof"),
        (
            &["compile", "sandbox", "-o", "cnof/out"],
            "cnof/out: cannot be written: there is no folder cnof",
        ),
    ] {
        let said = said(folder.path(), arguments);
        assert!(said.contains(why), "{arguments:?}: {said}");
        assert!(
            !said.contains("os error") && !said.contains("entity"),
            "{said}"
        );
    }
    let said = included(folder.path(), "conf/org.toml");
    assert!(
        said.contains("there is no such file; an included path starts from the current folder"),
        "{said}"
    );
}

#[test]
fn message_about_include_without_toml_suggests_existing_file() {
    let folder = folder();
    fs::write(folder.path().join("org.toml"), "policy = 1\n").expect("a file");
    let said = included(folder.path(), "org");
    assert!(said.contains("did you mean \"org.toml\"?"), "{said}");
}

/// `check` prints how many of a policy's entries KVM's filter enforces fully, partly and not. For each
/// policy these numbers add up to the number of all entries.
#[test]
fn numbers_of_entries_by_enforcement_that_check_prints_add_up_to_all_entries() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies");
    let files = fs::read_dir(&own).expect("policies");
    let files = files.map(|file| file.expect("a file").path().display().to_string());
    let shipped = [
        "allow-all",
        "linux-boot",
        "linux-guest",
        "pin-security",
        "sandbox",
    ];
    let mut count = 0;
    for policy in files.chain(shipped.map(str::to_owned)) {
        let said = said(
            &own,
            &["check", "--host", "none", "--format", "json", &policy],
        );
        let report: serde_json::Value = match serde_json::from_str(&said) {
            Ok(report) => report,
            // The policy has mistakes: the messages about them follow the JSON.
            Err(_) => continue,
        };
        let of = |key: &str| report["enforcement"][key].as_u64().expect("a count");
        let sum = of("enforced") + of("partly") + of("not") + of("idle");
        assert_eq!(Some(sum), report["packed"]["entries"].as_u64(), "{policy}");
        count += 1;
    }
    assert!(count > 12, "only {count} policies");
}
