//! Tests of the files that a policy is read from: which files are read, the names that messages give them,
//! and the memory that they need.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n";

/// The memory in KiB that a policy needs at most according to the reference: 1.5 GiB.
const MOST_MEMORY: u64 = 3 << 19;

fn msrgate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.current_dir(folder).env("NO_COLOR", "1");
    command
}

/// Runs the command with a limit on its memory, in KiB. A command that needs more memory aborts.
fn limited(folder: &Path, kibibytes: u64, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {kibibytes} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_msrgate")]);
    command
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1");
    command.output().expect("a shell")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).expect("text")
}

/// Runs `msrgate`, and returns its messages and its exit code.
fn run(folder: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    let output = msrgate(folder).args(arguments).output().expect("msrgate");
    (said(&output), output.status.code())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).expect("a file");
}

fn including(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?},\n")).collect();
    format!("include = [\n{}]\n", names.concat())
}

/// Returns the messages and the exit code of `check` for a policy that includes this name.
fn included(folder: &Path, name: &str) -> (String, Option<i32>) {
    write(folder, "p.toml", &format!("{HEAD}{}", including(&[name])));
    run(folder, &["check", "--host", "none", "p.toml"])
}

#[test]
fn message_does_not_quote_secret_file_that_included_link_leads_to() {
    let folder = folder();
    let folder = folder.path();
    write(folder, "secret", "hunter2 = 'a'\npassword: hunter2\n");
    symlink("secret", folder.join("link.toml")).expect("a link");
    symlink("link.toml", folder.join("twice.toml")).expect("a link");
    fs::hard_link(folder.join("secret"), folder.join("hard.toml")).expect("a link");
    fs::create_dir(folder.join("in")).expect("a folder");
    symlink("../secret", folder.join("in/up.toml")).expect("a link");
    for name in [
        "link.toml",
        "twice.toml",
        "hard.toml",
        "in/up.toml",
        "in/../link.toml",
        "secret",
    ] {
        let (said, code) = included(folder, name);
        assert!(!said.contains("hunter2"), "{name}: {said}");
        assert_eq!(code, Some(1), "{name}: {said}");
    }
    for name in ["link.toml", "twice.toml", "in/up.toml"] {
        let (said, _) = included(folder, name);
        assert!(
            said.replace("\n  │ ", " ")
                .contains("whose name does not end in"),
            "{said}"
        );
    }
    let (said, _) = included(folder, "hard.toml");
    assert!(said.contains("this text is not a policy"), "{said}");
}

/// If the policy itself is a symbolic link to a secret file, as may be in a stranger's repository, no
/// command quotes the file.
#[test]
fn message_does_not_quote_secret_file_that_link_in_place_of_policy_leads_to() {
    let folder = folder();
    let folder = folder.path();
    write(folder, "secret", "hunter2 = 'a'\nhunter2 = hunter2\n");
    write(folder, "good.toml", HEAD);
    symlink("secret", folder.join("p.toml")).expect("a link");
    for arguments in [
        &["check", "p.toml"][..],
        &["check", "--format", "json", "p.toml"],
        &["check", "good.toml", "--within", "p.toml"],
        &["explain", "p.toml", "0x10"],
        &["diff", "good.toml", "p.toml"],
        &["compile", "p.toml"],
        &["replay", "p.toml", "good.toml"],
        &["test", "p.toml", "--backend", "model"],
        &["fmt", "p.toml"],
        &["fmt", "--check", "p.toml"],
        &["fmt", "--format", "json", "p.toml"],
    ] {
        let (said, code) = run(folder, arguments);
        assert!(!said.contains("hunter2"), "{arguments:?}: {said}");
        assert!(
            said.contains("this text is not a policy"),
            "{arguments:?}: {said}"
        );
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
    }
}

/// If a file is no policy, or is in an unknown version of the language, messages tell at most the version.
/// Messages do not tell the file's length either, because the length of a secret is a part of the secret.
#[test]
fn message_about_file_that_is_no_policy_reveals_at_most_its_version() {
    const NONE: &str = "this text is not a policy";
    let folder = folder();
    let folder = folder.path();
    let long = format!("hunter2 = '{}'\n", "x".repeat(5000));
    let utf_16: Vec<u8> = "policy = 1\nhunter2\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let many = format!("hunter2{}", ",".repeat(5_000_001));
    for (secret, wanted) in [
        (
            b"policy = 7\nhunter2 = 'a'\nhunter2\n".to_vec(),
            "this msrgate does not know version 7 of the policy language",
        ),
        (
            b"policy = 30\nmode = 'hunter2'\n[msrs]\nhunter2 = 1\n".to_vec(),
            "this msrgate does not know version 30 of the policy language",
        ),
        (
            format!("policy = 30\n{long}").into_bytes(),
            "this msrgate does not know version 30 of the policy language",
        ),
        (long.clone().into_bytes(), NONE),
        (utf_16, NONE),
        (b"hunter2 = '\xe9'\n".to_vec(), NONE),
        (b"hunter2\npolicy = 1\n\xe9".to_vec(), NONE),
        (many.into_bytes(), NONE),
    ] {
        fs::write(folder.join("x.toml"), &secret).expect("a file");
        let shown = String::from_utf8_lossy(&secret);
        let shown = shown.chars().take(40).collect::<String>();
        let runs = [
            included(folder, "x.toml").0,
            run(folder, &["check", "x.toml"]).0,
            run(folder, &["check", "--format", "json", "x.toml"]).0,
            run(folder, &["fmt", "x.toml"]).0,
        ];
        for said in runs {
            assert!(
                said.replace("\n  │ ", " ").contains(wanted),
                "{shown}: {said}"
            );
            for part in ["hunter2", "5000", "5010", "5013", "5012", "byte"] {
                assert!(!said.contains(part), "{shown}: {said}");
            }
        }
    }
    // If the file is a policy, the messages do name lines and bytes.
    let policy = [HEAD.as_bytes(), b"name = '\xe9'\n"].concat();
    fs::write(folder.join("x.toml"), policy).expect("a file");
    let (said, _) = run(folder, &["check", "x.toml"]);
    assert!(said.contains("byte 36 is not UTF-8 text"), "{said}");
    write(folder, "x.toml", &format!("{HEAD}{long}"));
    let (said, _) = run(folder, &["check", "x.toml"]);
    assert!(said.contains("line 3 has 5012 bytes"), "{said}");
}

/// If an include is a pipe, a device or a folder, `check` refuses it. The command does not wait for a writer
/// of the pipe.
#[test]
fn check_refuses_include_of_pipe_device_or_folder() {
    let folder = folder();
    let folder = folder.path();
    let made = Command::new("mkfifo")
        .arg(folder.join("pipe.toml"))
        .status();
    assert!(made.expect("mkfifo").success());
    fs::create_dir(folder.join("folder.toml")).expect("a folder");
    symlink("/dev/zero", folder.join("zero.toml")).expect("a link");
    symlink("/proc/self/environ", folder.join("environ.toml")).expect("a link");
    symlink("loop.toml", folder.join("loop.toml")).expect("a link");
    for (name, why) in [
        ("pipe.toml", "not a regular file"),
        ("folder.toml", "not a regular file"),
        (
            "zero.toml",
            "the link points to a file whose name does not end in",
        ),
        (
            "environ.toml",
            "the link points to a file whose name does not end in",
        ),
        (
            "/proc/self/environ",
            "the name of an included file must end in",
        ),
        ("loop.toml", "too many levels of symbolic links"),
        ("absent.toml", "there is no such file in the current folder"),
    ] {
        let (said, code) = included(folder, name);
        let said = said.replace("\n  │ ", " ");
        assert!(said.contains(why), "{name}: {said}");
        assert_eq!(code, Some(1), "{name}: {said}");
    }
}

/// Returns the keys of a policy's entries, taken from the JSON of `check`.
fn entries(folder: &Path, policy: &OsStr) -> Vec<String> {
    let output = msrgate(folder)
        .args(["check", "--host", "none", "--format", "json"])
        .arg(policy)
        .output()
        .expect("msrgate");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let entries = report["enforcement"]["entries"].as_array();
    let keys = entries.expect("a list of entries").iter();
    keys.filter_map(|one| one["entry"].as_str())
        .filter(|key| *key != "default")
        .map(str::to_owned)
        .collect()
}

#[test]
fn file_included_by_several_paths_counts_as_one_file() {
    let folder = folder();
    let folder = folder.path();
    write(folder, "a.toml", "policy = 1\n[msrs]\n0x10 = \"r\"\n");
    symlink("a.toml", folder.join("link.toml")).expect("a link");
    fs::hard_link(folder.join("a.toml"), folder.join("hard.toml")).expect("a link");
    fs::create_dir(folder.join("in")).expect("a folder");
    let real = fs::canonicalize(folder).expect("a path").join("a.toml");
    let absolute = real.to_str().expect("text");
    let names = [
        "a.toml",
        "./a.toml",
        "in/../a.toml",
        "link.toml",
        "hard.toml",
        absolute,
    ];
    write(folder, "p.toml", &format!("{HEAD}{}", including(&names)));
    let (said, _) = run(folder, &["check", "--host", "none", "p.toml"]);
    assert!(said.contains("\n1 entry, default deny"), "{said}");
    // If a policy includes itself under another name, by way of another file, `check` notices it.
    symlink("p.toml", folder.join("self.toml")).expect("a link");
    write(
        folder,
        "p.toml",
        &format!("{HEAD}{}", including(&["b.toml"])),
    );
    write(
        folder,
        "b.toml",
        &format!("policy = 1\n{}", including(&["self.toml"])),
    );
    let (said, code) = run(folder, &["check", "p.toml"]);
    assert!(said.contains("`self.toml` includes itself"), "{said}");
    assert_eq!(code, Some(1));
}

/// If a policy's file has hard links in two folders, the policy that is read by one of the links includes
/// files from the folder of that link, although the text is the same for both links.
#[test]
fn includes_of_hard_link_are_looked_up_in_folder_of_that_link() {
    let folder = folder();
    let folder = folder.path();
    for (name, msr) in [("one", "0x10"), ("two", "0x11")] {
        fs::create_dir(folder.join(name)).expect("a folder");
        let entry = format!("policy = 1\n[msrs]\n{msr} = \"r\"\n");
        write(folder, &format!("{name}/entry.toml"), &entry);
    }
    let text = format!("policy = 1\n{}", including(&["entry.toml"]));
    write(folder, "one/all.toml", &text);
    fs::hard_link(folder.join("one/all.toml"), folder.join("two/all.toml")).expect("a link");
    let both = including(&["one/all.toml", "two/all.toml"]);
    write(folder, "p.toml", &format!("{HEAD}{both}"));
    assert_eq!(entries(folder, OsStr::new("p.toml")), ["0x10", "0x11"]);
    // An include may be in a folder above.
    let up = including(&["../two/entry.toml"]);
    write(folder, "one/p.toml", &format!("{HEAD}{up}"));
    assert_eq!(entries(folder, OsStr::new("one/p.toml")), ["0x11"]);
}

/// If a symbolic link leads to a policy, the policy's includes are looked up from the folder of the link's
/// target. The policy may be an argument or an include.
#[test]
fn includes_of_policy_behind_link_are_looked_up_in_folder_of_link_target() {
    let folder = folder();
    let folder = folder.path();
    for (name, msr) in [("real", "0x10"), ("link", "0x11")] {
        fs::create_dir(folder.join(name)).expect("a folder");
        let entry = format!("policy = 1\n[msrs]\n{msr} = \"r\"\n");
        write(folder, &format!("{name}/entry.toml"), &entry);
    }
    let text = format!("{HEAD}{}", including(&["entry.toml"]));
    write(folder, "real/p.toml", &text);
    symlink("../real/p.toml", folder.join("link/p.toml")).expect("a link");
    symlink("link", folder.join("way")).expect("a link");
    write(
        folder,
        "by.toml",
        &format!("{HEAD}{}", including(&["link/p.toml"])),
    );
    for policy in ["real/p.toml", "link/p.toml", "way/p.toml", "by.toml"] {
        assert_eq!(entries(folder, OsStr::new(policy)), ["0x10"], "{policy}");
    }
    // Messages still have the name that the user typed.
    write(folder, "real/p.toml", &text.replace("entry", "absent"));
    let (said, _) = run(folder, &["check", "link/p.toml"]);
    assert!(said.contains("[link/p.toml:4:"), "{said}");
}

/// If a policy comes from a pipe, its includes are looked up from the working folder. The name of the pipe
/// does not matter: `-`, `/dev/stdin`, or the result of `<(…)` in a shell.
#[test]
fn includes_of_policy_from_pipe_are_looked_up_in_working_folder() {
    let folder = folder();
    let folder = folder.path();
    write(
        folder,
        "p.toml",
        &format!("{HEAD}{}", including(&["entry.toml"])),
    );
    write(folder, "entry.toml", "policy = 1\n[msrs]\n0x10 = \"r\"\n");
    for script in [
        "cat p.toml | \"$0\" check --host none -",
        "cat p.toml | \"$0\" check --host none /dev/stdin",
        "cat p.toml | { exec 5<&0; \"$0\" check --host none /dev/fd/5; }",
        "cat p.toml | \"$0\" check --host none /proc/self/fd/0",
        // The file at this descriptor has a name, so its includes are looked up from its own folder.
        "cd /; \"$0\" check --host none /dev/stdin < \"$1/p.toml\"",
    ] {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script, env!("CARGO_BIN_EXE_msrgate")])
            .arg(folder);
        let output = shell.current_dir(folder).env("NO_COLOR", "1").output();
        let said = said(&output.expect("a shell"));
        assert!(said.contains("1 entry, default deny"), "{script}: {said}");
    }
}

/// If a dangling link is named like a shipped policy, the name means the link: files take precedence over
/// shipped policies.
#[test]
fn policy_argument_that_is_dangling_link_named_like_shipped_policy_is_an_error() {
    let folder = folder();
    let folder = folder.path();
    symlink("absent", folder.join("sandbox")).expect("a link");
    let (said, code) = run(folder, &["check", "sandbox"]);
    assert_eq!(code, Some(2), "{said}");
    let (said, code) = included(folder, "sandbox");
    assert_eq!(code, Some(1), "{said}");
}

/// Paths that differ only in bytes that are not UTF-8 are printed differently. A plain path whose text
/// equals the printed form of such a path is printed differently, too.
#[test]
fn different_paths_that_are_not_utf8_have_different_names_in_text_and_json() {
    let folder = folder();
    let folder = folder.path();
    let paths = [&b"d\xff"[..], b"d\xfe", b"d\\xff"].map(OsStr::from_bytes);
    let paths = paths.map(|path| Path::new(path).join("x.toml"));
    for path in &paths {
        fs::create_dir(folder.join(path).parent().expect("a folder")).expect("a folder");
        fs::write(folder.join(path), "policy = 1\n[[[").expect("a file");
    }
    let names = [r"d\xff/x.toml", r"d\xfe/x.toml", r"d\\xff/x.toml"];

    let output = msrgate(folder)
        .args(["fmt", "--check"])
        .args(&paths)
        .output();
    let text = said(&output.expect("msrgate"));
    for name in names {
        assert!(text.contains(&format!("{name}:2:")), "{name}: {text}");
    }
    let mut command = msrgate(folder);
    command
        .args(["fmt", "--check", "--format", "json"])
        .args(&paths);
    let report = command.arg("absent\\").output().expect("msrgate").stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let files = report["files"].as_array().expect("files");
    let shown: Vec<_> = files.iter().map(|file| &file["file"]).collect();
    // The name of a path that is UTF-8 text is the path itself.
    assert_eq!(shown, [names[0], names[1], names[2], "absent\\"]);
    for (name, file) in names.iter().zip(files) {
        assert_eq!(file["mistakes"][0]["file"], *name);
    }

    let (trace, refused) = (
        folder.join(OsStr::from_bytes(b"t\xff\x1b")),
        "a-1 [0] 1.2: kvm_msr: msr_read 10 = 0x7\n",
    );
    fs::write(&trace, refused).expect("a trace");
    let mut command = msrgate(folder);
    command
        .args(["replay", "sandbox", "--format", "json"])
        .arg(&trace);
    let report = command.output().expect("msrgate").stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let shown = report["trace"].as_str().expect("a name");
    assert!(shown.ends_with("/t\\xff\u{1b}"), "{shown}");
}

#[test]
fn included_files_whose_paths_differ_in_bytes_that_are_not_utf8_are_different() {
    let folder = folder();
    let folder = folder.path();
    let [one, other] = [b"\xff.toml", b"\xfe.toml"].map(|name| OsStr::from_bytes(name));
    let entry = |msr: &str| format!("{HEAD}[msrs]\n{msr} = \"r\"\n");
    fs::write(folder.join(one), entry("0x10")).expect("a file");
    fs::write(folder.join(other), entry("0x11")).expect("a file");
    symlink(one, folder.join("one.toml")).expect("a link");
    symlink(other, folder.join("other.toml")).expect("a link");
    let both = including(&["one.toml", "other.toml"]);
    write(folder, "p.toml", &format!("{HEAD}{both}"));
    assert_eq!(entries(folder, OsStr::new("p.toml")), ["0x10", "0x11"]);
    assert_eq!(entries(folder, one), ["0x10"]);
    assert_eq!(entries(folder, other), ["0x11"]);
    // An include is found in a folder whose name is not UTF-8.
    let inner = folder.join(OsStr::from_bytes(b"in\xff"));
    fs::create_dir(&inner).expect("a folder");
    write(
        &inner,
        "a.toml",
        &format!("{HEAD}{}", including(&["b.toml"])),
    );
    write(&inner, "b.toml", "policy = 1\n[msrs]\n0x12 = \"r\"\n");
    assert_eq!(entries(folder, inner.join("a.toml").as_os_str()), ["0x12"]);
}

#[test]
fn every_path_argument_of_commands_may_contain_bytes_that_are_not_utf8() {
    let folder = folder();
    let folder = folder.path();
    let name = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    let (policy, program) = (name(b"p\xff.toml"), name(b"p\xff.bin"));
    let (trace, log) = (name(b"t\xff"), name(b"l\xff"));
    fs::write(folder.join(&policy), format!("{HEAD}msrs.0x10='r'\n")).expect("a file");
    fs::write(folder.join(&trace), "{\"msr\": 16, \"access\": \"read\"}\n").expect("a file");
    fs::write(
        folder.join(&log),
        "kvm [1]: ignored rdmsr: 0x1c9 data 0x0\n",
    )
    .expect("a file");
    let word = |word: &str| OsStr::new(word).to_owned();
    for (arguments, code) in [
        (
            vec![
                word("check"),
                word("--within"),
                policy.clone(),
                policy.clone(),
            ],
            0,
        ),
        (vec![word("explain"), policy.clone(), word("0x10")], 0),
        (
            vec![word("compile"), policy.clone(), word("-o"), program.clone()],
            0,
        ),
        (vec![word("diff"), policy.clone(), program.clone()], 0),
        (
            vec![
                word("test"),
                policy.clone(),
                word("--backend"),
                word("model"),
            ],
            0,
        ),
        (vec![word("import"), log], 0),
        (vec![word("import"), program], 0),
        (vec![word("fmt"), word("--check"), policy.clone()], 1),
        (vec![word("fmt"), word("--write"), policy.clone()], 0),
        (vec![word("fmt"), word("--check"), policy.clone()], 0),
        (vec![word("check"), name(b"absent\xff\x1b[2J.toml")], 2),
        (vec![word("replay"), policy, name(b"absent\xff\x1b[2J")], 2),
    ] {
        let output = msrgate(folder).args(&arguments).output().expect("msrgate");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    let output = msrgate(folder)
        .arg("replay")
        .arg("linux-guest")
        .arg(trace)
        .output()
        .expect("msrgate");
    assert!(!said(&output).contains("UTF-8"));
}

/// If 140 files form seven layers, and each file includes all files of the next layer, `check` needs at most
/// 128 MiB.
#[test]
fn check_of_140_files_in_layers_of_includes_needs_at_most_128_mib() {
    let folder = folder();
    let folder = folder.path();
    let layer = |layer: usize| -> Vec<String> {
        (0..20)
            .map(|number| format!("{layer}-{number}.toml"))
            .collect()
    };
    let include = |of: usize| {
        let names = layer(of);
        including(&names.iter().map(|name| &**name).collect::<Vec<_>>())
    };
    for depth in 0..7 {
        let next = if depth < 6 {
            include(depth + 1)
        } else {
            String::new()
        };
        for name in layer(depth) {
            write(folder, &name, &format!("policy = 1\n{next}"));
        }
    }
    write(folder, "p.toml", &format!("{HEAD}{}", include(0)));
    let output = limited(folder, 128 << 10, &["check", "--host", "none", "p.toml"]);
    assert!(output.status.success(), "{}", said(&output));
}

/// If each of several small files includes the next one 20 times, every command needs at most 128 MiB.
#[test]
fn command_needs_at_most_128_mib_if_files_include_next_file_20_times() {
    let folder = folder();
    let folder = folder.path();
    for number in 0..6 {
        let next = format!("b{}.toml", number + 1);
        let text = format!("policy = 1\n{}", including(&[&*next; 20]));
        write(folder, &format!("b{number}.toml"), &text);
    }
    write(folder, "b6.toml", "policy = 1\n");
    write(
        folder,
        "p.toml",
        &format!("{HEAD}{}", including(&["b0.toml"; 20])),
    );
    for command in ["check", "compile", "fmt", "diff", "explain", "replay"] {
        // No filter can refuse this read, because MSR 0x802 is an x2APIC register (S3.1).
        write(
            folder,
            "trace",
            "a-1 [0] 1.2: kvm_msr: msr_read 802 = 0x0\n",
        );
        let more: &[&str] = match command {
            "check" => &["--host", "none"],
            "compile" => &["--format", "json"],
            "diff" => &["p.toml"],
            "explain" => &["0x10"],
            "replay" => &["trace"],
            _ => &[],
        };
        let arguments = [&[command, "p.toml"], more].concat();
        let output = limited(folder, 128 << 10, &arguments);
        assert!(output.status.success(), "{command}: {}", said(&output));
    }
}

/// If a text is just within the limits, and has as much as possible of something that costs the
/// parser memory, `check` needs no more memory than the reference says. Some of these texts once
/// took 10 GiB.
#[test]
fn check_of_text_within_limits_needs_no_more_memory_than_documented() {
    let folder = folder();
    let folder = folder.path();
    let lines = |line: &str, bytes: usize| line.repeat(bytes / line.len());
    let tables: String = (0..8_000)
        .map(|number| format!("a{number}{} = 1\n", ".a".repeat(60)))
        .collect();
    // Repeats a value on a line of about 1000 bytes, for a list.
    let values = |value: &str| value.repeat(1_000 / value.len()) + "\n";
    let mistakes = "=\n".repeat(2_000_000);
    let keys = lines("a = \"r\"\n", 4 << 20);
    for (what, text) in [
        ("mistakes", mistakes),
        (
            "tables and mistakes",
            format!("{tables}{}", "=\n".repeat(1_500_000)),
        ),
        (
            "tables and values",
            format!("{tables}x = [\n{}]\n", lines(&values("0, "), 5 << 20)),
        ),
        (
            "tables and bad values",
            format!("{tables}x = [\n{}]\n", lines(&values("y, "), 5 << 20)),
        ),
        (
            "tables and a key again and again",
            format!("{tables}[msrs]\n{keys}"),
        ),
        (
            "escapes",
            lines(&format!("b = \"{}\"\n", r"\q".repeat(1_900)), 15 << 20),
        ),
    ] {
        write(folder, "p.toml", &format!("{HEAD}{text}"));
        let output = limited(folder, MOST_MEMORY, &["check", "--host", "none", "p.toml"]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(
            !said.contains("are allowed"),
            "{what} beyond a limit: {said}"
        );
    }
}

#[test]
fn check_reads_other_includes_if_one_included_file_is_not_utf8() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("latin1.toml"), b"policy = 1\n# \xe9\n").expect("a file");
    write(folder, "good.toml", "policy = 1\n[msrs]\n0x10 = 'r'\n");
    let policy = format!("{HEAD}{}", including(&["latin1.toml", "good.toml"]));
    write(folder, "p.toml", &policy);
    let (said, code) = run(folder, &["check", "--host", "none", "p.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("p.toml has a mistake"), "{said}");
    assert!(said.contains("byte 13 is not UTF-8 text"), "{said}");
    assert!(!said.contains("longer than"), "{said}");
}
