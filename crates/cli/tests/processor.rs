//! Tests of commands whose answer is about one processor. The answer names the processor, which is this
//! host's unless `--cpu` names another processor.

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The path of a policy that has different entries for processors of different vendors.
const POLICY: &str = "tests/policies/vendors.toml";
const TRACE: &str = "tests/traces/perf.txt";

/// The commands whose answers are about one processor, each with the JSON pointer to the processor in its
/// output.
const COMMANDS: [(&[&str], &str); 5] = [
    (&["explain", POLICY, "MSR_PPERF"], "/accesses/0/cpu"),
    (&["replay", POLICY, TRACE], "/cpu"),
    (
        &["test", POLICY, "--backend", "model", "--msr", "0x10"],
        "/cpu",
    ),
    (&["diff", POLICY, "sandbox"], "/cpu"),
    (&["check", POLICY, "--host", "none"], "/cpu"),
];

fn msrgate(arguments: &[&str], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).args(more).stdin(Stdio::null());
    command.output().expect("the command runs")
}

fn talk(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn cpu_in(output: &Output, pointer: &str) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report.pointer(pointer).expect("a field").clone()
}

/// Returns the processor of this host, if it can be read.
fn of_host() -> Option<String> {
    let output = msrgate(
        &["explain", POLICY, "0x10", "--format", "json"],
        &["--cpu", "host"],
    );
    match output.status.code() {
        Some(0) => Some(
            cpu_in(&output, "/accesses/0/cpu")
                .as_str()
                .expect("text")
                .to_owned(),
        ),
        code => {
            assert_eq!(code, Some(3), "{output:?}");
            assert!(talk(&output).contains("msrgate cannot read the processor of this host"));
            None
        }
    }
}

#[test]
fn output_of_command_names_processor_that_cpu_option_asks_for() {
    for (command, pointer) in COMMANDS {
        let named = ["--cpu", "AuthenticAMD:25:1"];
        let output = msrgate(command, &named);
        assert!(
            talk(&output).contains("AuthenticAMD:25:0x1:0"),
            "{output:?}"
        );
        let json = msrgate(command, &[&named[..], &["--format", "json"]].concat());
        assert_eq!(
            cpu_in(&json, pointer),
            "AuthenticAMD:25:0x1:0",
            "{command:?}"
        );
    }
}

#[test]
fn output_without_cpu_option_is_about_processor_of_this_host() {
    let host = of_host();
    for (command, pointer) in &COMMANDS[..3] {
        let output = msrgate(command, &[]);
        let json = cpu_in(&msrgate(command, &["--format", "json"]), pointer);
        let cpu = json.as_str().expect("a processor");
        assert!(talk(&output).contains(cpu), "{output:?}");
        match &host {
            Some(host) => {
                assert_eq!(cpu, host);
                let asked = msrgate(command, &["--cpu", "host"]);
                assert_eq!(asked.stdout, output.stdout, "{command:?}");
            }
            None => assert!(
                talk(&output).contains("cannot read the processor of this host"),
                "{output:?}"
            ),
        }
    }
    for (command, pointer) in &COMMANDS[3..] {
        let json = msrgate(command, &["--format", "json"]);
        assert_eq!(cpu_in(&json, pointer), Value::Null, "{command:?}");
    }
}

/// If a policy differs by processor, `compile` asks for `--cpu` and does not choose this host's processor,
/// because the output may be for another machine.
#[test]
fn compile_asks_for_cpu_option_if_policy_differs_by_processor() {
    let json = ["compile", POLICY, "--format", "json", "--filter-only"];
    let output = msrgate(&json, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(talk(&output).contains("--cpu"), "{output:?}");
    let output = msrgate(&json, &["--cpu", "AuthenticAMD:25:1"]);
    assert!(output.status.success());
    assert!(
        talk(&output).contains("AuthenticAMD:25:0x1:0"),
        "{output:?}"
    );
    let program = msrgate(&["compile", POLICY], &["--cpu", "AuthenticAMD:25:1"]);
    assert_eq!(program.status.code(), Some(2), "{program:?}");
}

/// The path of a policy that has different entries for different steppings of one processor model.
const BY_STEPPING: &str = "tests/policies/steppings.toml";

/// If a policy differs by stepping, every command asks for the stepping. With a wrong stepping, the answer
/// could allow what the policy denies.
#[test]
fn command_asks_for_stepping_if_policy_differs_by_stepping() {
    let commands: [&[&str]; 5] = [
        &["compile", BY_STEPPING, "--format", "json"],
        &["explain", BY_STEPPING, "IA32_LSTAR"],
        &["replay", BY_STEPPING, TRACE],
        &["diff", "allow-all", BY_STEPPING, "--fail-on", "looser"],
        &["check", BY_STEPPING, "--host", "none"],
    ];
    for command in commands {
        let output = msrgate(command, &["--cpu", "GenuineIntel:6:0x6a"]);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(
            talk(&output).contains("write a stepping, too: GenuineIntel:6:0x6a:STEPPING"),
            "{output:?}"
        );
        // All steppings of the first processor's model have the same variant, and the second
        // processor is named with its stepping.
        for cpu in ["GenuineIntel:6:0x6c", "GenuineIntel:6:0x6a:6"] {
            let output = msrgate(command, &["--cpu", cpu]);
            assert!(!talk(&output).contains("STEPPING"), "{output:?}");
            assert_ne!(output.status.code(), Some(2), "{command:?} {output:?}");
        }
    }
}

/// A compiled filter names the processor that `--cpu` chose, unless the policy is the same for all
/// processors.
#[test]
fn compiled_filter_names_processor_that_cpu_option_chose() {
    for format in ["json", "c", "rust"] {
        let compile = ["compile", POLICY, "--filter-only", "--format", format];
        let output = msrgate(&compile, &["--cpu", "AuthenticAMD:25:1"]);
        let text = String::from_utf8(output.stdout).expect("text");
        let first = text.lines().next().expect("a line");
        assert!(first.contains("AuthenticAMD:25:0x1:0"), "{first}");
        // A vendor's name may have any twelve characters; in the output it must not end a comment or a
        // string.
        let output = msrgate(&compile, &["--cpu", "*/\"x\\*/zzzzz:6:1"]);
        let text = String::from_utf8(output.stdout).expect("text");
        let first = text.lines().next().expect("a line");
        assert!(first.contains("???x???zzzzz:6:0x1:0"), "{first}");
    }
    let output = msrgate(
        &["compile", "sandbox", "--filter-only", "--format", "c"],
        &["--cpu", "AuthenticAMD:25:1"],
    );
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        !text.contains("AuthenticAMD"),
        "the policy sandbox is the same for all processors"
    );
}

/// Every command refuses a misspelt vendor. No `[[when]]` section would hold for a misspelt vendor, so a
/// default action of `allow` would allow everything.
#[test]
fn misspelt_vendor_is_refused_by_every_command() {
    let others = [&["compile", POLICY, "--format", "json", "--filter-only"][..]];
    let commands = COMMANDS.iter().map(|(command, _)| *command).chain(others);
    for command in commands {
        for cpu in ["Intel:6:0x6a", "GenuineIntle:6:0x6a", "genuineintel:6:0x6a"] {
            let output = msrgate(command, &["--cpu", cpu]);
            assert_eq!(output.status.code(), Some(2), "{command:?}");
            assert!(output.stdout.is_empty());
            assert!(
                talk(&output).contains("did you mean \"GenuineIntel\"?"),
                "{output:?}"
            );
        }
    }
}

/// If the message of `compile` offers processors, `compile` accepts each of them.
#[test]
fn compile_accepts_every_processor_that_its_message_offers() {
    for policy in [POLICY, "tests/policies/cpus.toml"] {
        let json = ["compile", policy, "--format", "json", "--filter-only"];
        let offered = talk(&msrgate(&json, &[]));
        let offered: Vec<_> = offered
            .lines()
            .filter_map(|line| line.trim().strip_prefix("--cpu "))
            .collect();
        assert!(offered.len() > 1, "{offered:?}");
        // This host's processor is offered first, and the processor that stands for all other
        // vendors last.
        assert_eq!(offered[0], "host");
        let is_other = |cpu: &str| cpu.contains(" # for all vendors that the policy does not name");
        assert!(offered.iter().rev().skip(1).all(|cpu| !is_other(cpu)));
        for cpu in &offered[1..] {
            let cpu = cpu.split(" #").next().expect("a part");
            let output = msrgate(&json, &["--cpu", cpu.trim().trim_matches('\'')]);
            assert!(output.status.success(), "{cpu}: {output:?}");
        }
    }
}

/// Makes a folder with `amd.json`, `amd.h` and `amd.rs`, which are the filters of `POLICY` on AMD, and with
/// `program`, which has all variants.
fn compiled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (format, file) in [("json", "amd.json"), ("c", "amd.h"), ("rust", "amd.rs")] {
        let compile = ["compile", POLICY, "--filter-only", "--format", format];
        let output = msrgate(&compile, &["--cpu", "AuthenticAMD:25:1"]);
        fs::write(folder.path().join(file), output.stdout).expect("written");
    }
    let output = msrgate(&["compile", POLICY], &[]);
    fs::write(folder.path().join("program"), output.stdout).expect("written");
    folder
}

#[test]
fn import_of_compiled_filter_names_processor_it_was_compiled_for() {
    let folder = compiled();
    for file in ["amd.json", "amd.h", "amd.rs"] {
        let file = folder.path().join(file);
        let output = msrgate(&["import", file.to_str().expect("text")], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let talk = talk(&output);
        assert!(
            talk.contains("was compiled for AuthenticAMD:25:0x1:0; on other processors"),
            "{talk}"
        );
        let policy = String::from_utf8(output.stdout).expect("text");
        let said = "# The filter was compiled for AuthenticAMD:25:0x1:0.\n";
        assert!(policy.contains(said), "{policy}");
    }
}

/// `import` of a program with several variants imports one of them and exits with 1, because that variant
/// may allow what the others deny.
#[test]
fn import_of_program_with_several_variants_exits_with_1() {
    let folder = compiled();
    let program = folder.path().join("program");
    let output = msrgate(&["import", program.to_str().expect("text")], &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        talk(&output).contains("for processors such as any other:0:0x0:0; on other processors"),
        "{output:?}"
    );
    let policy = String::from_utf8(output.stdout).expect("text");
    assert!(
        policy.contains("# This holds on processors such as any other:0:0x0:0.\n"),
        "{policy}"
    );
}

#[test]
fn diff_with_compiled_filter_compares_on_processor_that_filter_names() {
    let folder = compiled();
    for file in ["amd.json", "amd.h", "amd.rs"] {
        let file = folder.path().join(file);
        let file = file.to_str().expect("text");
        for sides in [[file, POLICY], [POLICY, file]] {
            let diff = ["diff", sides[0], sides[1]];
            let output = msrgate(&diff, &[]);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let said = format!(
                "note: the results are for AuthenticAMD:25:0x1:0, the processor that {file} was compiled for\n"
            );
            assert_eq!(talk(&output), said);
            let json = msrgate(&diff, &["--format", "json"]);
            assert_eq!(cpu_in(&json, "/cpu"), "AuthenticAMD:25:0x1:0");

            let output = msrgate(&diff, &["--cpu", "AuthenticAMD:25:1"]);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let output = msrgate(&diff, &["--cpu", "GenuineIntel:6:0x6a"]);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let talk = talk(&output);
            let both = ["AuthenticAMD:25:0x1:0", "GenuineIntel:6:0x6a:0"];
            assert!(both.iter().all(|cpu| talk.contains(cpu)), "{talk}");
        }
        // A policy that does not depend on the processor is compared with the filter on all processors.
        let output = msrgate(&["diff", file, "sandbox", "--format", "json"], &[]);
        assert_eq!(cpu_in(&output, "/cpu"), Value::Null);
        assert_eq!(talk(&output), "");
        // The message says that the filter is for one processor only.
        let output = msrgate(&["check", POLICY, "--host", "none", "--within", file], &[]);
        assert!(
            talk(&output).contains("was compiled for AuthenticAMD:25:0x1:0;"),
            "{output:?}"
        );
    }
}

/// If a compiled filter does not have the vendor's name in full, `diff` asks for the processor, so that the
/// filter is not taken for another vendor's.
#[test]
fn diff_with_compiled_filter_that_lacks_full_vendor_name_asks_for_processor() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("filter.json");
    let cpu = "VIA-VIA-VIA-:6:1:0";
    let compile = ["compile", POLICY, "--filter-only", "--format", "json"];
    let output = msrgate(&compile, &["--cpu", cpu]);
    fs::write(&file, output.stdout).expect("written");
    let diff = ["diff", file.to_str().expect("text"), POLICY];
    let output = msrgate(&diff, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(talk(&output).contains("VIA?VIA?VIA?:6:0x1:0"), "{output:?}");
    assert_eq!(msrgate(&diff, &["--cpu", cpu]).status.code(), Some(0));
}
