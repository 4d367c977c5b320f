//! Tests of the names of files in all output: different files are printed with different names.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use msrgate_policy::is_seen;
use serde_json::Value;

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n";

/// A policy that is not in canonical form, so that `fmt --check` names its file.
const UNTIDY: &str = "policy=1\ndefault='deny'\n";

fn run<A: AsRef<OsStr>>(folder: &Path, arguments: &[A]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.args(arguments).current_dir(folder);
    let command = command.env("NO_COLOR", "1").stdin(Stdio::null());
    command.output().expect("msrgate runs")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).expect("text")
}

#[test]
fn file_names_that_differ_only_in_hidden_characters_are_printed_differently() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let names: [(&[u8], &str); 10] = [
        (b"a\x1b.toml", r"a\x1b.toml"),
        (b"a\x01.toml", r"a\x01.toml"),
        (b"a?.toml", "a?.toml"),
        (b"a b.toml", "a b.toml"),
        (b"a\nb.toml", r"a\nb.toml"),
        (b"a\tb.toml", r"a\tb.toml"),
        ("a\u{202e}.toml".as_bytes(), r"a\u{202e}.toml"),
        ("a\u{fffd}.toml".as_bytes(), "a\u{fffd}.toml"),
        (b"a\xff.toml", r"a\xff.toml"),
        (b"a\\x1b.toml", r"a\\\\x1b.toml"),
    ];
    let paths = names.map(|(path, _)| OsStr::from_bytes(path));
    for path in paths {
        fs::write(folder.join(path), UNTIDY).expect("written");
    }
    let check = [OsStr::new("fmt"), OsStr::new("--check")];
    let output = run(folder, &[&check[..], &paths].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines, names.map(|(_, shown)| shown));

    // Besides `fmt --check`, these are all commands that print the name of a file.
    for (path, shown) in names {
        let path = OsStr::from_bytes(path);
        let word = OsStr::new;
        for arguments in [
            &[word("check"), word("--host"), word("none"), path][..],
            &[word("check"), word("--within"), path, word("allow-all")],
            &[word("explain"), path, word("0x10")],
            &[word("diff"), path, word("allow-all")],
            &[word("test"), word("--backend"), word("model"), path],
            &[word("import"), path],
            &[word("replay"), word("allow-all"), path],
            &[word("compile"), path, word("-o"), path],
        ] {
            let said = said(&run(folder, arguments));
            assert!(said.contains(shown), "{arguments:?}: {said}");
            assert!(is_seen(&said), "{arguments:?}: {said:?}");
        }
        fs::write(folder.join(path), UNTIDY).expect("written");
    }
    // The JSON has the name itself; its hidden characters are escapes of JSON.
    let output = run(
        folder,
        &[
            "fmt",
            "--check",
            "--format",
            "json",
            "a\u{1b}.toml",
            "a\nb.toml",
        ],
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["files"][0]["file"], "a\u{1b}.toml");
    assert_eq!(report["files"][1]["file"], "a\nb.toml");
}

#[test]
fn file_named_like_shipped_policy_or_standard_input_is_shown_with_dot_slash() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let entry = format!("{HEAD}[msrs]\n0x12345 = \"r\"\n");
    for name in ["linux-boot.toml (shipped)", "standard input"] {
        fs::write(folder.join(name), &entry).expect("written");
        let wanted = format!("./{name}");
        for arguments in [
            &["check", "--host", "none", name][..],
            &["explain", name, "0x12345"],
            &["diff", name, "linux-boot"],
            &["diff", "linux-boot", name],
        ] {
            let text = said(&run(folder, arguments));
            assert!(text.contains(&wanted), "{arguments:?}: {text}");
        }
        let output = run(folder, &["explain", "--format", "json", name, "0x12345"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["accesses"][0]["file"], *wanted);
        // A compiled program has the names of files without their folders, so both paths give the same name.
        for path in [name, &*folder.join(name).to_string_lossy()] {
            let output = run(folder, &["compile", path, "-o", "program"]);
            assert!(output.status.success(), "{output:?}");
            let text = said(&run(folder, &["diff", "program", "linux-boot"]));
            assert!(text.contains(&format!("({wanted}:4)")), "{text}");
        }
    }
}

/// If paths of more than 200 characters are in a message, about a circle of includes or about a missing
/// file, the message has them in full.
#[test]
fn messages_have_paths_of_more_than_200_characters_in_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = fs::canonicalize(folder.path()).expect("a path");
    let deep = format!("{}/{}", "d".repeat(100), "e".repeat(100));
    fs::create_dir_all(folder.join(&deep)).expect("a folder");
    let names = [1, 2, 3].map(|number| format!("{deep}/{number}.toml"));
    let including = |name: &str| format!("include = [\"{name}\"]\n");
    fs::write(
        folder.join("p.toml"),
        format!("{HEAD}{}", including(&names[0])),
    )
    .expect("written");
    for (name, next) in names.iter().zip(["2.toml", "3.toml", "1.toml"]) {
        fs::write(
            folder.join(name),
            format!("policy = 1\n{}", including(next)),
        )
        .expect("written");
    }
    let way = [0, 1, 2, 0].map(|at| format!("{}/{}", folder.display(), names[at]));
    let way = way.join(" → ");
    let output = run(&folder, &["check", "--format", "json", "p.toml"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let message = report["mistakes"][0]["message"]
        .as_str()
        .expect("a message");
    assert!(message.contains(&way), "{message}");
    let text = said(&run(&folder, &["check", "p.toml"]));
    let joined: String = text.split(['\n', '│', ' ']).collect();
    assert!(joined.contains(&way.replace(' ', "")), "{text}");
    // The name of a file that does not exist is quoted in full, too.
    let absent = format!("{deep}/absent.toml");
    fs::write(
        folder.join("p.toml"),
        format!("{HEAD}{}", including(&absent)),
    )
    .expect("written");
    let output = run(&folder, &["check", "--format", "json", "p.toml"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let message = report["mistakes"][0]["message"]
        .as_str()
        .expect("a message");
    assert!(message.contains(&absent), "{message}");
}

#[test]
fn json_about_conflict_of_entries_in_two_files_has_place_in_both_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let policy = format!("{HEAD}include = [\"i.toml\"]\n[msrs]\n0x10 = \"r\"\n");
    fs::write(folder.join("p.toml"), policy).expect("written");
    fs::write(
        folder.join("i.toml"),
        "policy = 1\n[msrs]\n# two lines\n\n  0x10 = \"w\"\n",
    )
    .expect("written");
    let output = run(folder, &["check", "--format", "json", "p.toml"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mistakes = report["mistakes"].as_array().expect("mistakes");
    assert_eq!(mistakes.len(), 1, "{report}");
    let place = |one: &Value| {
        let file = one["file"].as_str().expect("a file");
        let file = Path::new(file).file_name().and_then(OsStr::to_str);
        let (line, column) = (one["line"].as_u64(), one["column"].as_u64());
        (file.map(str::to_owned), line, column)
    };
    let others = mistakes[0]["others"].as_array().expect("other places");
    let mut places = vec![place(&mistakes[0]), place(&others[0])];
    places.sort();
    let wanted = [("i.toml", 5, 3), ("p.toml", 5, 1)];
    let wanted =
        wanted.map(|(file, line, column)| (Some(file.to_owned()), Some(line), Some(column)));
    assert_eq!(places, wanted);
    assert!(others[0]["says"].is_string(), "{report}");
}

/// `compile` refuses an output path through `/proc/PID/root` into another mount namespace. The kernel
/// follows such a path to a file in the other namespace. With its links resolved, the path would name a file
/// in this namespace. Neither file is changed.
#[test]
fn compile_refuses_output_path_into_another_mount_namespace() {
    let folder = tempfile::tempdir().expect("a folder");
    let below = folder.path().join("ns");
    fs::create_dir(&below).expect("a folder");
    fs::write(below.join("out.json"), "here").expect("a file");
    fs::write(
        folder.path().join("p.toml"),
        "policy = 1\ndefault = 'deny'\n",
    )
    .expect("a file");
    let script =
        "mount -t tmpfs none \"$1\" && echo there > \"$1/out.json\" && echo ready && exec sleep 60";
    let mut other = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(&below)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare runs");
    let mut line = String::new();
    let stdout = other.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("text");
    if line.trim() == "ready" {
        let path = format!("/proc/{}/root{}/out.json", other.id(), below.display());
        let output = Command::new(env!("CARGO_BIN_EXE_msrgate"))
            .current_dir(folder.path())
            .args(["compile", "p.toml", "--format", "json", "-o", &path])
            .output()
            .expect("msrgate runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(
            fs::read_to_string(below.join("out.json")).expect("text"),
            "here"
        );
        assert_eq!(fs::read_to_string(&path).expect("text"), "there\n");
    } else {
        msrgate_testing::host::say("SKIPPED: no mount namespace can be made here");
    }
    let _ = other.kill();
    let _ = other.wait();
}
