//! Tests of the output of `compile`: its content, and the file that it is written to.

#![expect(
    clippy::unwrap_used,
    reason = "a failed assumption is the result of a test"
)]

use std::fs::{self, OpenOptions, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const GOOD: &str = "tests/policies/good.toml";
const ORG: &str = "tests/policies/org.toml";

fn msrgate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Compiles the policy [`GOOD`] into a file in this folder, which has the format's name. Returns the file's
/// path.
fn compile(folder: &Path, format: &str) -> String {
    let file = folder.join(format).display().to_string();
    let output = msrgate(&["compile", GOOD, "--format", format, "-o", &file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty());
    file
}

#[test]
fn diff_finds_no_difference_between_policy_and_output_of_compile() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["program", "json", "abi"] {
        let file = compile(folder.path(), format);
        let of = |arguments: &[&str]| msrgate(arguments).status.code();
        assert_eq!(of(&["diff", GOOD, &file]), Some(0), "{format}");
        assert_eq!(of(&["diff", &file, GOOD]), Some(0), "{format}");
        assert_eq!(of(&["diff", &file, ORG]), Some(1), "{format}");
        assert_eq!(of(&["check", GOOD, "--within", &file]), Some(0), "{format}");
    }
}

#[test]
fn compile_writes_same_bytes_to_standard_output_and_file() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["program", "json", "rust", "c", "abi"] {
        let file = compile(folder.path(), format);
        let output = msrgate(&["compile", GOOD, "--format", format]);
        assert!(output.stdout == fs::read(file).unwrap(), "{format}");
    }
}

/// A filter cannot end the guest, so each format of a filter refuses a policy with `default = "kill"`, and says why.
/// With `--filter-only` the filter denies what the policy would end the guest for.
#[test]
fn compile_to_filter_names_default_kill_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let [kill, deny] = ["kill", "deny"].map(|default| {
        let file = folder.path().join(default).display().to_string();
        let text = format!("policy = 1\ndefault = \"{default}\"\n[msrs]\n0x10 = \"rw\"\n");
        fs::write(&file, text).unwrap();
        file
    });
    for format in ["json", "rust", "c", "abi"] {
        let refused = msrgate(&["compile", &kill, "--format", format]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(refused.stdout.is_empty(), "{format}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            said.ends_with(
                ": a filter cannot express `default = \"kill\"`, which ends the guest; compile a program, or leave these parts out with --filter-only\n"
            ),
            "{format}: {said}"
        );
        let only = msrgate(&["compile", &kill, "--format", format, "--filter-only"]);
        assert_eq!(only.status.code(), Some(0), "{only:?}");
        let of_deny = msrgate(&["compile", &deny, "--format", format]);
        assert!(only.stdout == of_deny.stdout, "{format}");
    }
    let program = msrgate(&["compile", &kill]);
    assert_eq!(program.status.code(), Some(0), "{program:?}");
}

#[test]
fn compile_with_output_dash_writes_to_standard_output_and_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    let policy = fs::canonicalize(GOOD).unwrap();
    command
        .arg("compile")
        .arg(policy)
        .args(["--format", "json", "-o", "-"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.starts_with(b"{"), "{output:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// `compile` replaces an existing output file, and no temporary file remains beside it. If the policy has
/// mistakes, the old output file stays.
#[test]
fn compile_replaces_whole_output_file_and_keeps_it_if_policy_has_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("json");
    fs::write(&file, "x".repeat(10_000)).unwrap();
    compile(folder.path(), "json");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let refused = msrgate(&[
        "compile",
        "tests/policies/bad.toml",
        "-o",
        file.to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn diff_with_truncated_program_file_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = compile(folder.path(), "program");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let output = msrgate(&["diff", &file, GOOD]);
    assert_eq!(output.status.code(), Some(2));
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("the program is cut off after"), "{talk}");
}

/// If the output path is a symbolic link, the link stays and its target is replaced. The new target has the
/// mode of the old one, so users who could not read the old file cannot read the new one.
#[test]
fn compile_to_symbolic_link_keeps_link_and_replaces_its_target_with_same_mode() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    symlink("a", &link).unwrap();
    let to = link.display().to_string();
    let output = msrgate(&["compile", GOOD, "--format", "json", "-o", &to]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap().first(), Some(&b'{'));
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
}

/// If the output path is a device or a pipe, the bytes are written to it. As root, `-o /dev/null` once
/// replaced the device by a file.
#[test]
fn compile_writes_to_output_device_or_pipe_and_does_not_replace_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let to = pipe.display().to_string();
    // The pipe is opened for reading and writing, so that neither end waits for the other.
    let mut both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    let output = msrgate(&["compile", GOOD, "--format", "json", "-o", &to]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let mut first = [0];
    both.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"{");
}

/// Runs a script in a shell. In the script, `COMPILE` stands for `msrgate compile GOOD --format json -o`.
fn in_shell(folder: &Path, script: &str) -> Output {
    let script = script.replace("COMPILE", "\"$0\" compile \"$1\" --format json -o");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_msrgate")]);
    shell.arg(fs::canonicalize(GOOD).unwrap());
    shell.current_dir(folder).output().unwrap()
}

/// If the output path leads to an open file, the output continues where the last write ended, even if the
/// file has been deleted.
#[test]
fn compile_output_to_open_descriptor_continues_at_position_of_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let json = String::from_utf8(msrgate(&["compile", GOOD, "--format", "json"]).stdout).unwrap();
    symlink("/dev/stdout", folder.path().join("link")).unwrap();
    let both = format!("before\n{json}after\n");
    for (script, wanted) in [
        (
            "{ echo before; COMPILE /dev/stdout; echo after; } >> log",
            format!("kept\n{both}"),
        ),
        (
            "{ echo before; COMPILE /dev/fd/1; echo after; } > log",
            both.clone(),
        ),
        (
            "{ echo before; COMPILE link; echo after; } >> log",
            format!("kept\n{both}"),
        ),
        (
            "exec 3>> log; COMPILE /proc/self/fd/3; echo after >&3",
            format!("kept\n{json}after\n"),
        ),
        (
            "exec 3>> log; COMPILE /proc/thread-self/fd/3",
            format!("kept\n{json}"),
        ),
        // In this script, the descriptor belongs to another process than `compile`: the shell.
        (
            "exec 3>> log; COMPILE /proc/$$/fd/3; exit $?",
            format!("kept\n{json}"),
        ),
        // In this script, the file has lost its name when `compile` runs.
        (
            "exec 3<> log; mv log old; rm old; COMPILE /dev/fd/3; cat /proc/self/fd/3 > log",
            json.clone(),
        ),
    ] {
        let log = folder.path().join("log");
        fs::write(&log, "kept\n").unwrap();
        let output = in_shell(folder.path(), script);
        assert_eq!(output.status.code(), Some(0), "{script}: {output:?}");
        assert_eq!(fs::read_to_string(&log).unwrap(), wanted, "{script}");
        // No temporary file is left: the folder has only the log and the link.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "{script}");
    }
    for script in [
        "COMPILE /dev/stdout >&-",
        "COMPILE /dev/fd/9",
        "COMPILE /dev/fd/3 3< link",
    ] {
        let output = in_shell(folder.path(), script);
        assert_eq!(output.status.code(), Some(2), "{script}: {output:?}");
    }
}

/// If the output path is a symbolic link whose target does not exist, `compile` makes the target and keeps
/// the link. Here `current` leads to `store/next`, and `store/next` leads to `store/1`.
#[test]
fn compile_output_to_dangling_link_makes_target_of_link() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("store")).unwrap();
    symlink("store/next", folder.join("current")).unwrap();
    symlink("1", folder.join("store/next")).unwrap();
    let output = in_shell(folder, "COMPILE current");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for link in ["current", "store/next"] {
        assert!(folder.join(link).is_symlink());
    }
    let made = fs::read_to_string(folder.join("store/1")).unwrap();
    assert!(made.starts_with('{'), "{made}");
    // If the target cannot be made, the link stays.
    for (target, says) in [
        (
            "absent/1",
            "cannot be written: the link leads to a folder that does not exist, absent",
        ),
        (
            "store/none/../1",
            "cannot be written: the link leads to a folder that does not exist, store/none/..",
        ),
        ("loop", "loop: "),
        ("store/2/", "loop: "),
        ("/proc/absent", "loop: cannot be written: "),
    ] {
        let link = folder.join("loop");
        symlink(target, &link).unwrap();
        let output = in_shell(folder, "COMPILE loop");
        assert_eq!(output.status.code(), Some(2), "{target}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(says), "{target}: {said}");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        fs::remove_file(link).unwrap();
    }
}

/// `compile` writes no binary output to a terminal, whatever path leads there. A program contains texts of
/// the policy's author, which a terminal may take for commands.
#[test]
fn compile_refuses_binary_output_to_terminal_whatever_path_leads_to_it() {
    let folder = tempfile::tempdir().unwrap();
    symlink("/dev/tty", folder.path().join("link")).unwrap();
    let text = "policy = 1\ndefault = 'deny'\nname = \"\\u001b]0;owned\\u0007\"\n";
    fs::write(folder.path().join("p.toml"), text).unwrap();
    let on_terminal = |command: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", command, "/dev/null"]);
        script.current_dir(folder.path()).stdin(Stdio::null());
        script.output()
    };
    if on_terminal("true").is_err() {
        eprintln!("SKIPPED: no script(1) on this machine, which makes a terminal");
        return;
    }
    let msrgate = env!("CARGO_BIN_EXE_msrgate");
    for format in ["program", "abi"] {
        for to in ["/dev/tty", "/dev/stdout", "/proc/self/fd/2", "link"] {
            let command = format!("{msrgate} compile p.toml --format {format} -o {to}");
            let output = on_terminal(&command).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(
                told.contains("is a terminal; name a file with -o"),
                "{told}"
            );
            assert!(!told.contains("owned"), "{told}");
        }
    }
    let output = on_terminal(&format!(
        "{msrgate} compile p.toml --format json -o /dev/tty"
    ))
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn compile_refuses_output_path_of_policy_that_it_compiles() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, link) = (folder.path().join("p.toml"), folder.path().join("link"));
    fs::copy(GOOD, &policy).unwrap();
    symlink("p.toml", &link).unwrap();
    let [hard, dotted] = ["hard", "./p.toml"].map(|name| folder.path().join(name));
    fs::hard_link(&policy, &hard).unwrap();
    let [policy, link, hard, dotted] =
        [policy, link, hard, dotted].map(|path| path.display().to_string());
    for (from, to) in [
        (&policy, &policy),
        (&policy, &link),
        (&link, &policy),
        (&policy, &hard),
        (&hard, &policy),
        (&dotted, &policy),
        (&policy, &dotted),
    ] {
        let output = msrgate(&["compile", from, "-o", to]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    for name in [&policy, &hard] {
        assert_eq!(fs::read(name).unwrap(), fs::read(GOOD).unwrap());
    }
}

/// If the output path leads to a file that `compile` has read, by a link or by an open descriptor, the
/// command exits with an error, and the file stays unchanged.
#[test]
fn compile_refuses_output_path_that_leads_to_policy_or_included_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let policy = "policy = 1\ndefault = 'deny'\ninclude = ['i.toml']\n";
    let included = "policy = 1\ninclude = ['in/deep.toml']\n";
    fs::create_dir(folder.join("in")).unwrap();
    symlink("i.toml", folder.join("out")).unwrap();
    let texts = [
        ("p.toml", policy),
        ("i.toml", included),
        ("in/deep.toml", "policy = 1\n"),
    ];
    for (name, text) in texts {
        fs::write(folder.join(name), text).unwrap();
    }
    for (what, script) in [
        (
            "a file that the policy includes",
            "compile p.toml -o i.toml",
        ),
        (
            "a file that the policy includes",
            "compile p.toml -o in/deep.toml",
        ),
        ("a file that the policy includes", "compile p.toml -o out"),
        (
            "a file that the policy includes",
            "compile p.toml -o /dev/fd/5 5>> i.toml",
        ),
        (
            "a file that the policy includes",
            "compile p.toml -o /dev/stdout >> in/deep.toml",
        ),
        (
            "a file that the policy includes",
            "compile - -o i.toml < p.toml",
        ),
        ("the policy itself", "compile - -o p.toml < p.toml"),
        ("the policy itself", "compile /dev/stdin -o p.toml < p.toml"),
        (
            "the policy itself",
            "compile p.toml -o /dev/fd/5 5>> p.toml",
        ),
        ("the policy itself", "compile /dev/fd/5 -o p.toml 5< p.toml"),
    ] {
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            &format!("\"$0\" {script}"),
            env!("CARGO_BIN_EXE_msrgate"),
        ]);
        let output = shell.current_dir(folder).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{script}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let wanted =
            format!("is {what}, and compile does not overwrite it; name another file with -o");
        assert!(said.contains(&wanted), "{script}: {said}");
        for (name, text) in texts {
            assert_eq!(
                fs::read_to_string(folder.join(name)).unwrap(),
                text,
                "{script}"
            );
        }
    }
}
