//! Tests with hostile text in every input: no output contains characters that command a terminal or that
//! hide something from a reader.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use msrgate_policy::is_seen;
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

/// A terminal escape for a text style that msrgate does not use.
const STYLE: &str = "\u{1b}[5;45m";

/// A line that a reader could mistake for a line of msrgate's output.
const FORGED: &str = "\nforged: no mistakes\n";

/// Texts with characters that a terminal executes as commands or does not show.
const FRAGMENTS: [&str; 26] = [
    STYLE,
    FORGED,
    "\u{1b}[2J",
    "\u{1b}]0;title\u{7}",
    "\r",
    "\n",
    "\t",
    "\u{8}",
    "\u{7f}",
    "\u{85}",
    "\u{9b}2J",
    "\u{ad}",
    "\u{61c}",
    "\u{200b}",
    "\u{200f}",
    "\u{2028}",
    "\u{202e}",
    "\u{2066}",
    "\u{3164}",
    "\u{feff}",
    "\u{e0041}\u{e007f}",
    "\u{fe00}\u{fe0f}",
    "\u{13437}\u{16fe4}",
    "\u{1160}\u{11ff}\u{2800}",
    "\u{fdd0}\u{e000}",
    "e\u{301}\u{301}\u{301}\u{301}\u{301}",
];

fn hostile() -> impl Strategy<Value = String> {
    let fragment = prop::sample::select(FRAGMENTS.to_vec()).prop_map(str::to_owned);
    let any = any::<char>().prop_map(String::from);
    let part = prop_oneof![4 => fragment, 1 => any, 2 => "[a-z\"'\\\\]{1,3}"];
    prop::collection::vec(part, 1..8).prop_map(|parts| parts.concat())
}

/// Returns the text as a TOML string.
fn toml(text: &str) -> String {
    let escaped = text.chars().map(|c| format!("\\U{:08x}", u32::from(c)));
    format!("\"{}\"", escaped.collect::<String>())
}

/// Runs a command with colours, as if it printed to a terminal.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).env("CLICOLOR_FORCE", "1");
    let command = command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command.output().expect("the command runs")
}

/// Returns the text without the escapes of text styles. Other terminal escapes are kept.
fn without_styles(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let mut rest = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let style = part.strip_prefix('[').and_then(|part| part.split_once('m'));
        match style {
            Some((numbers, after)) if numbers.bytes().all(|b| b.is_ascii_digit() || b == b';') => {
                rest.push_str(after);
            }
            _ => rest.push_str(&format!("\u{1b}{part}")),
        }
    }
    rest
}

/// Runs a command, and checks that its output has no hidden character, no style that msrgate does not use,
/// and no forged line.
fn looked_at(arguments: &[&str]) -> Output {
    let output = run(arguments);
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(bytes.clone()).expect("text");
        assert!(!text.contains(STYLE), "{arguments:?}: {text:?}");
        let plain = without_styles(&text);
        assert!(
            is_seen(&plain.replace('\t', " ")),
            "{arguments:?}: {plain:?}"
        );
        // `fmt` and `import` print a policy's text, in which any line may occur.
        let is_forged = !["fmt", "import"].contains(&arguments[0])
            && plain.lines().any(|line| line.starts_with("forged"));
        assert!(!is_forged, "{arguments:?}: {plain}");
    }
    output
}

/// Input files that have a hostile text in every place where text is allowed.
struct Files {
    folder: TempDir,
    /// A correct policy with the hostile text in its strings.
    policy: String,
    /// Policies with mistakes. Each policy has the hostile text in another place.
    wrong: Vec<String>,
    /// Files with the hostile text to replay or to import.
    others: Vec<String>,
}

impl Files {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().to_owned();
        let put = |name: &str, content: &str| {
            // A stranger also chooses the file's name.
            let name: String = format!("{name}{text}")
                .chars()
                .filter(|c| !"/\0".contains(*c))
                .collect();
            let mut name = name;
            while name.len() > 200 {
                name.pop();
            }
            let path = root.join(name + ".toml");
            fs::write(&path, content).expect("written");
            path.to_str().expect("text").to_owned()
        };
        let quoted = toml(text);
        let head = "policy = 1\ndefault = \"deny\"\n";
        let policy = format!(
            "{head}name = {quoted}\n[msrs]\n\
             0x10 = {{ read = {{ handler = {quoted} }}, write = \"deny\", why = {quoted} }}\n0x12 = \"rw\"\n"
        );
        let wrong = [
            format!("{head}[msrs]\n{quoted} = \"rw\"\n\"0x10 \" = \"r\"\n\"0x10\" = \"w\"\n"),
            format!(
                "{head}include = [{quoted}]\nmode = {quoted}\naccept = [{quoted}]\n{quoted} = 1\n"
            ),
            format!(
                "{head}[[when]]\ncpu = {{ vendor = {quoted}, model = {quoted} }}\n[when.msrs]\n"
            ),
            format!("{head}# {text}\nname = '{text}'\n[msrs]\n0x10 = \"rw\" # {text}\n"),
            text.to_owned(),
        ];
        let wrong = wrong.iter().enumerate();
        let others = [
            format!("kvm [1]: vcpu0, guest rIP: 0x1 ignored rdmsr: 0x1c9 {text}\n{text}\n"),
            format!("0x00000010 0x0 # {text}\n{text}\n"),
            format!(
                "{{\"msr_modifiers\": [{{\"addr\": {0}, \"bitmap\": {0}}}]}}",
                Value::from(text)
            ),
            format!(
                "{{\"time\":1,\"msr\":{0},\"access\":{0}}}\n",
                Value::from(text)
            ),
            format!("guest 1 [0] 1.0: kvm:kvm_msr: msr_read 10 = 0x0 ({text})\n{text}\n"),
        ];
        let others = others.iter().enumerate();
        Self {
            policy: put("policy", &policy),
            wrong: wrong
                .map(|(n, text)| put(&format!("wrong{n}"), text))
                .collect(),
            others: others
                .map(|(n, text)| put(&format!("other{n}"), text))
                .collect(),
            folder,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder
            .path()
            .join(name)
            .to_str()
            .expect("text")
            .to_owned()
    }
}

/// Asserts that the JSON contains the hostile text unchanged, for programs that read the JSON.
fn assert_named(text: &str, files: &Files) {
    let output = looked_at(&["check", &files.policy, "--host", "none", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["packed"]["name"], text);
    let output = looked_at(&["explain", &files.policy, "0x10", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["accesses"][0]["why"], text);
    // A name with `\x` in it could also stand for bytes that are not UTF-8, so its backslashes are doubled.
    let file = if files.policy.contains("\\x") {
        files.policy.replace('\\', "\\\\")
    } else {
        files.policy.clone()
    };
    assert_eq!(report["accesses"][0]["file"], file);
}

/// Asserts that `fmt` of a policy with the hostile text gives a policy with the same meaning.
fn assert_formatted(files: &Files) {
    let formatted = looked_at(&["fmt", &files.policy]);
    assert!(formatted.status.success(), "{formatted:?}");
    let path = files.path("formatted.toml");
    fs::write(&path, formatted.stdout).expect("written");
    let diff = looked_at(&["diff", &files.policy, &path]);
    assert!(diff.status.success(), "{diff:?}");
}

fn look_at_policies(files: &Files) {
    let policy = &*files.policy;
    let program = files.path("program");
    assert!(run(&["compile", policy, "-o", &program]).status.success());
    for arguments in [
        &["check", policy, "--host", "none", "--verbose"][..],
        &["check", policy, "--host", "none", "--within", "sandbox"],
        &["explain", policy, "0x10"],
        &["diff", policy, "sandbox"],
        &["diff", "sandbox", &program],
        &["diff", &program, "sandbox", "--format", "json"],
        &["import", &program],
        &["compile", policy, "--format", "json"],
        &["test", policy, "--backend", "model", "--msr", "0x10"],
        &["fmt", policy, "--check"],
        &["fmt", policy, "--check", "--format", "json"],
    ] {
        looked_at(arguments);
    }
    for wrong in &files.wrong {
        looked_at(&["check", wrong, "--host", "none"]);
        looked_at(&["check", wrong, "--host", "none", "--format", "json"]);
        looked_at(&["fmt", wrong]);
    }
    for other in &files.others {
        looked_at(&["replay", policy, other]);
        looked_at(&["replay", policy, other, "--format", "json"]);
        let imported = looked_at(&["import", other]);
        assert_ne!(imported.status.code(), Some(101));
    }
}

fn look_at_arguments(text: &str) {
    let text = &*text.replace('\0', "");
    for arguments in [
        &[text][..],
        &["check", text],
        &["check", "sandbox", text],
        &["check", "sandbox", "--format", "json", "--within", text],
        &["check", "sandbox", "--host", text],
        &["compile", "sandbox", "--format", text],
        &["compile", "sandbox", "-o", &format!("/nonexistent/{text}")],
        &["explain", "sandbox", text],
        &["explain", "sandbox", "0x10", "--cpu", text],
        &[
            "explain",
            "sandbox",
            "0x10",
            "--cpu",
            &format!("GenuineIntel:6:{text}"),
        ],
        &["diff", text, "sandbox", "--format", "json"],
        &["help", text],
        &["msr", text],
        &["msr", "0x10", "--decode", text],
        &["policies", text],
        &["replay", "sandbox", text],
        &["import", text],
        &["fmt", text],
        &[&format!("--{text}")],
    ] {
        looked_at(arguments);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_output_has_hidden_character_of_random_hostile_input(text in hostile()) {
        let files = Files::new(&text);
        assert_named(&text, &files);
        assert_formatted(&files);
        look_at_policies(&files);
        look_at_arguments(&text);
    }
}

/// If a text with all kinds of hidden characters is in every place of the input, the output has no
/// hidden character.
#[test]
fn no_output_contains_a_hidden_character_that_input_contains() {
    let text = FRAGMENTS.concat();
    let files = Files::new(&text);
    assert_named(&text, &files);
    assert_formatted(&files);
    look_at_policies(&files);
    look_at_arguments(&text);
}

/// If a policy contains hidden characters without an escape, every command refuses it and names their
/// places.
#[test]
fn every_command_refuses_policy_with_unescaped_hidden_characters() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.toml");
    let mut file = fs::File::create(&path).expect("created");
    let text = "policy = 1\ndefault = \"deny\"\n[msrs]\n0x10 = \"none\" # \u{202e}\u{2066}\"rw\" = \u{2069}\n";
    file.write_all(text.as_bytes()).expect("written");
    let path = Path::to_str(&path).expect("text");
    for arguments in [
        &["check", path][..],
        &["fmt", path],
        &["fmt", "--check", path],
        &["compile", path],
        &["explain", path, "0x10"],
    ] {
        let output = looked_at(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let talk = String::from_utf8(output.stderr).expect("text");
        assert!(talk.contains("invisible character: U+202E"), "{talk}");
    }
}
