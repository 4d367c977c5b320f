//! Tests that no message reveals the content or the length of a file that is not a policy.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n";

/// The largest size in bytes of a policy with its includes.
const MAX_BYTES: usize = 16 << 20;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).current_dir(folder);
    command.env("NO_COLOR", "1").output().expect("msrgate runs")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both)
        .expect("text")
        .replace("\n  │ ", " ")
}

/// If a file is no filter, no message quotes its values. The file may be a secret, because a link in a
/// stranger's repository may lead to any file.
#[test]
fn messages_quote_no_value_of_file_that_is_not_a_filter() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("e.toml"), HEAD).expect("written");
    symlink("secret", folder.join("org.toml")).expect("a link");
    let utf_16: Vec<u8> = "hunter2"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let range = |range: &str| format!("{{\"schema\":1,\"default\":\"deny\",\"ranges\":[{range}]}}");
    let modifier = |text: &str| format!("{{\"msr_modifiers\":[{text}]}}");
    for secret in [
        b"{\"schema\":\"hunter2\", \"x\": 1".to_vec(),
        b"{\"schema\":\"hunter2\",\"k\":1,}".to_vec(),
        b"{\"ranges\":\"hunter2\"}".to_vec(),
        b"{\"ranges\":[\"hunter2\"]}".to_vec(),
        b"{\"schema\":\"x, expected hunter2 at line 1 column 9\",\"ranges\":[]}".to_vec(),
        b"{\"hunter2\":\"hunter2\"}".to_vec(),
        b"{\"schema\":1,\"default\":\"hunter2\",\"ranges\":[]}".to_vec(),
        b"{\"schema\":1,\"default\":[\"hunter2\"],\"ranges\":[]}".to_vec(),
        range(r#"{"access":"hunter2","base":"0x0","count":1,"bitmap":"01"}"#).into_bytes(),
        range(r#"{"access":"r","base":"hunter2","count":1,"bitmap":"01"}"#).into_bytes(),
        range(r#"{"access":"r","base":"0x0","count":"hunter2","bitmap":"01"}"#).into_bytes(),
        range(r#"{"access":"r","base":"0x0","count":1,"bitmap":"hunter2"}"#).into_bytes(),
        range(r#"{"access":"r","base":"0x0","count":1212696648,"bitmap":"01"}"#).into_bytes(),
        modifier(r#"{"addr":"hunter2","bitmap":"0b1"}"#).into_bytes(),
        modifier(r#"{"addr":"0x1","bitmap":"hunter2"}"#).into_bytes(),
        b"{\"msr_modifiers\":\"hunter2\"}".to_vec(),
        // If this text were the bytes of a filter, its flags would be invalid.
        utf_16,
        b"hunter2\0".repeat(100),
    ] {
        fs::write(folder.join("secret"), &secret).expect("written");
        let shown = String::from_utf8_lossy(&secret);
        for arguments in [
            &["check", "e.toml", "--within", "org.toml"][..],
            &[
                "check", "e.toml", "--within", "org.toml", "--format", "json",
            ],
            &["diff", "e.toml", "org.toml"],
            &["import", "org.toml"],
            &["import", "org.toml", "--from", "compiled"],
            &["import", "org.toml", "--from", "firecracker"],
            &["import", "org.toml", "--from", "firecracker-list"],
            &["import", "org.toml", "--from", "msr-safe"],
            &["import", "org.toml", "--from", "kernel-log"],
            &["import", "org.toml", "--from", "program"],
        ] {
            let said = said(&run(folder, arguments));
            // These are the forms in which a message could show a value: the text `hunter2`, the number
            // 1212696648 in decimal and hexadecimal, and the first letters of `hunter2` as a number, from
            // UTF-16 and from UTF-8.
            for part in ["hunter2", "1212696648", "48484848", "750068", "746e7568"] {
                assert!(!said.contains(part), "{arguments:?} of {shown}: {said}");
            }
        }
    }
}

/// The message about wrong JSON has a column only if the file is one line that begins like an output of
/// `compile`. In other files the column of a mistake would tell the length of the value before it.
#[test]
fn message_about_invalid_json_does_not_reveal_length_of_a_value() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(folder.join("e.toml"), HEAD).expect("written");
    let diff = |text: &str| {
        fs::write(folder.join("x.json"), text).expect("written");
        said(&run(folder, &["diff", "e.toml", "x.json"]))
    };
    let short = diff("{\"schema\":\"a\", \"x\": 1");
    assert_eq!(short, diff("{\"schema\":\"abcdefgh\", \"x\": 1"));
    assert!(
        short.contains("x.json: invalid JSON: line 1: expected u64"),
        "{short}"
    );
    let ours = diff("{\"schema\":1,\"default\":\"deny\",\"ranges\":[");
    let wanted = "line 1, column 39: EOF while parsing a list";
    assert!(ours.contains(wanted), "{ours}");
}

/// An included text that is no policy does not count towards the limit on bytes. If the text counted, the
/// policy's author could find out the text's length from the length of the policy at which the limit is
/// exceeded.
#[test]
fn included_file_that_is_no_policy_does_not_count_towards_limit_on_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::write(
        folder.join("sec.toml"),
        format!("hunter2{}\n", "x".repeat(96)),
    )
    .expect("written");
    fs::write(folder.join("good.toml"), "policy = 1\n").expect("written");
    let head = format!("{HEAD}include = [\"sec.toml\", \"good.toml\"]\n");
    let padded = |left: usize| {
        let mut policy = head.clone();
        let line = format!("#{}\n", "x".repeat(1022));
        while policy.len() + line.len() < MAX_BYTES - left {
            policy.push_str(&line);
        }
        let rest = MAX_BYTES - left - policy.len();
        policy.push_str(&"\n".repeat(rest));
        fs::write(folder.join("p.toml"), policy).expect("written");
        said(&run(folder, &["check", "--host", "none", "p.toml"]))
    };
    let wanted = padded(10_000);
    assert!(wanted.contains("this text is not a policy"), "{wanted}");
    assert!(wanted.contains("p.toml has a mistake"), "{wanted}");
    for left in [110, 100] {
        assert_eq!(padded(left), wanted, "{left} bytes left");
    }
    let too_little = padded(10);
    assert!(
        too_little.contains("longer than 16777216 bytes"),
        "{too_little}"
    );
}

#[test]
fn message_about_long_file_that_is_no_policy_is_same_as_about_short_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let policy = format!("{HEAD}include = [\"x.toml\"]\n");
    fs::write(folder.join("p.toml"), policy).expect("written");
    fs::write(folder.join("e.toml"), HEAD).expect("written");
    for arguments in [
        &["check", "p.toml"][..],
        &["check", "x.toml"],
        &["check", "--format", "json", "x.toml"],
        &["fmt", "x.toml"],
        &["diff", "e.toml", "x.toml"],
    ] {
        let with = |lines: usize| {
            let text = "hunter2 = 'a'\n".repeat(lines);
            fs::write(folder.join("x.toml"), text).expect("written");
            let output = run(folder, arguments);
            (said(&output), output.status.code())
        };
        let short = with(10);
        assert!(short.0.contains("this text is not a policy"), "{short:?}");
        for lines in [10_000, 1_300_000] {
            assert_eq!(with(lines), short, "{lines} lines");
        }
    }
    // If the file is a policy, the message does tell that it is too long.
    fs::write(
        folder.join("x.toml"),
        HEAD.to_owned() + &"\n".repeat(MAX_BYTES),
    )
    .expect("written");
    let said = said(&run(folder, &["check", "x.toml"]));
    assert!(said.contains("longer than 16777216 bytes"), "{said}");
}
