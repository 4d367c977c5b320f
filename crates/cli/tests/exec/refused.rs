//! Tests of runs that `exec` refuses before the VMM starts: it prints one sentence, exits with a documented
//! status, and leaves no file behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::lab::{ALLOWS, Lab, MOUNTS, library, ran, starts};
use crate::places::installed;

/// Runs a command that is to fail, and returns the one line of its message and its exit status.
pub(crate) fn refused(command: &mut Command) -> (String, i32) {
    let ran = ran(command);
    assert_eq!(ran.out, "");
    assert_eq!(ran.err.trim_end().lines().count(), 1, "{}", ran.err);
    (ran.err, ran.status)
}

#[test]
fn exec_exits_127_for_missing_vmm_and_126_for_vmm_that_cannot_be_executed() {
    let lab = Lab::new(ALLOWS);
    fs::write(lab.path("text"), "no program\n").unwrap();
    fs::write(lab.path("script"), "echo no interpreter\n").unwrap();
    fs::write(lab.path("orphan"), "#!/no/such/shell -e\n").unwrap();
    for script in ["script", "orphan"] {
        fs::set_permissions(lab.path(script), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (vmm, status, why) in [
        ("no-such-program-anywhere", 127, "no such program in PATH"),
        ("./no-such-program", 127, "No such file or directory"),
        ("./text", 126, "may not be run: its mode has no x"),
        (
            "./script",
            126,
            "neither a program nor a script that begins with #!",
        ),
        (
            "./orphan",
            126,
            "./orphan: the interpreter of this script, /no/such/shell, cannot be run: No such file",
        ),
        ("/", 126, "this is a folder"),
    ] {
        let (said, code) = refused(lab.exec(&[]).arg(vmm));
        assert!(said.contains(why) && code == status, "{code} {said}");
    }
    lab.assert_no_page_is_left();
}

#[test]
fn exec_exits_125_for_statically_linked_vmm_before_vmm_starts() {
    let lab = Lab::new(ALLOWS);
    for option in ["-static", "-static-pie"] {
        let vmm = lab.build("strict.c", &[option]);
        let (said, status) = refused(lab.exec(&[]).arg(vmm));
        assert!(said.contains("this program is statically linked"), "{said}");
        assert_eq!(status, 125);
    }
    lab.assert_no_page_is_left();
}

#[test]
fn exec_refuses_vmm_for_whose_dynamic_linker_there_is_no_library() {
    let lab = Lab::new(ALLOWS);
    let linked = |linker: &str| lab.build("open.c", &[&format!("-Wl,--dynamic-linker={linker}")]);
    let vmm = linked("/lib/ld-other.so.1");
    let (said, status) = refused(lab.exec(&[]).arg(vmm));
    let why = "this program is loaded by /lib/ld-other.so.1, for which there is no library";
    assert!(said.contains(why) && status == 125, "{status} {said}");
    let vmm = linked("/lib/ld-musl-x86_64.so.1");
    let mut command = installed(&lab);
    let (said, status) = refused(command.args(["exec", "guest.toml", "--"]).arg(&vmm));
    let why = "there is no libmsrgate_preload.musl.so, neither in ";
    let advice = "build it by `scripts/build-musl`, or name it by MSRGATE_PRELOAD\n";
    assert!(
        said.contains(why) && said.ends_with(advice) && status == 125,
        "{status} {said}"
    );
    let (said, status) = refused(lab.exec(&[]).arg(&vmm));
    let why = "this library is for programs of glibc, and the VMM is one of musl";
    assert!(said.contains(why) && status == 125, "{status} {said}");
    lab.assert_no_page_is_left();
}

#[test]
fn exec_refuses_preload_library_that_is_missing_or_of_another_build() {
    let lab = Lab::new(ALLOWS);
    let (said, status) = refused(
        lab.exec(&[])
            .env("MSRGATE_PRELOAD", "/nonexistent")
            .arg("true"),
    );
    assert!(
        said.contains("/nonexistent: No such file") && status == 125,
        "{status} {said}"
    );
    let other = fs::canonicalize("/bin/sh").unwrap();
    let (said, status) = refused(lab.exec(&[]).env("MSRGATE_PRELOAD", other).arg("true"));
    assert!(
        said.contains("not the library of this msrgate") && status == 125,
        "{status} {said}"
    );
    let other = lab.path("other.so");
    fs::write(&other, of_other_sources()).unwrap();
    let (said, status) = refused(lab.exec(&[]).env("MSRGATE_PRELOAD", other).arg("true"));
    assert!(
        said.contains("other.so: this is not the library of this msrgate (msrgate-build 0.1.0 ")
            && said.ends_with("); install both from one build\n")
            && status == 125,
        "{status} {said}"
    );
    let odd = lab.path("a folder.so");
    fs::copy(library(), &odd).unwrap();
    let (said, status) = refused(lab.exec(&[]).env("MSRGATE_PRELOAD", odd).arg("true"));
    assert!(
        said.contains("no library whose path has a space") && status == 125,
        "{status} {said}"
    );
    let odd = lab.path("$LIB.so");
    fs::copy(library(), &odd).unwrap();
    let (said, status) = refused(lab.exec(&[]).env("MSRGATE_PRELOAD", odd).arg("true"));
    assert!(
        said.contains("other words in the place of a $") && status == 125,
        "{status} {said}"
    );
}

/// Returns the bytes of a preload library that claims the same version as the command, but another digest of
/// its sources.
fn of_other_sources() -> Vec<u8> {
    let mut bytes = fs::read(library()).unwrap();
    let id = format!("msrgate-build {} ", env!("CARGO_PKG_VERSION"));
    let places: Vec<_> = memchr::memmem::find_iter(&bytes, id.as_bytes()).collect();
    assert!(!places.is_empty());
    for at in places {
        let digest = &mut bytes[at + id.len()..][..16];
        assert!(digest.iter().all(u8::is_ascii_hexdigit), "{digest:?}");
        digest[15] = if digest[15] == b'0' { b'1' } else { b'0' };
    }
    bytes
}

/// The dynamic linker cannot load a library from a file system that is mounted `noexec`. `exec` refuses a
/// run with a library on such a file system.
#[test]
fn exec_refuses_preload_library_on_file_system_mounted_noexec() {
    if !starts(MOUNTS) {
        return;
    }
    let lab = Lab::new(ALLOWS);
    let mut exec = lab.exec(&[]);
    exec.arg("true");
    let script = "mkdir there && mount -t tmpfs -o noexec none there && cp $MSRGATE_PRELOAD there && MSRGATE_PRELOAD=there/libmsrgate_preload.so \"$@\"";
    let mut command = lab.script(MOUNTS, script, &exec);
    let (said, status) = refused(&mut command);
    assert!(
        said.contains("mounted noexec; name a copy elsewhere") && status == 125,
        "{status} {said}"
    );
}

#[test]
fn exec_names_action_and_line_of_policy_that_needs_gate_in_vmm() {
    for (entry, word) in [
        (
            "IA32_LSTAR = { read = 'allow', write = { mask = 0xffff } }",
            "`mask` on writes of 0xc0000082 IA32_LSTAR",
        ),
        (
            "IA32_LSTAR = { read = 'allow', write = 'pin' }",
            "`pin` on writes of 0xc0000082 IA32_LSTAR",
        ),
        (
            "IA32_FMASK = { read = 'allow', write = { sticky = 0x200 } }",
            "`sticky` on writes of 0xc0000084 IA32_FMASK",
        ),
        (
            "IA32_BIOS_UPDT_TRIG = { device = 'microcode' }\n[device.microcode]\nrevision = '0x12'\nupdate = 'accept'",
            "`device` on reads of 0x79 IA32_BIOS_UPDT_TRIG",
        ),
        (
            "IA32_LSTAR = { read = 'allow', write = { handler = 'mine' } }",
            "`handler` on writes",
        ),
        (
            "IA32_LSTAR = { read = 'allow', write = 'allow', log = 'all' }",
            "`log = \"all\"` on reads",
        ),
        (
            "IA32_LSTAR = { read = 'deny', write = 'deny', log = 'all' }",
            "write `log = \"denied\"`",
        ),
    ] {
        let lab = Lab::new(&format!("policy = 1\ndefault = 'allow'\n[msrs]\n{entry}\n"));
        let (said, status) = refused(lab.exec(&[]).arg("true"));
        assert!(
            said.contains("guest.toml:4: ") && said.contains(word),
            "{said}"
        );
        assert_eq!(status, 125);
    }
}

#[test]
fn exec_exits_125_for_unusable_policy_or_folder_of_state_page_or_events() {
    let lab = Lab::new("policy = 1\n");
    assert_eq!(ran(lab.exec(&[]).arg("true")).status, 125);
    for (policy, why) in [
        ("missing.toml", "there is no such file"),
        (".", "this is a folder"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command.args(["exec", policy, "--", "true"]);
        let (said, status) = refused(command.current_dir(lab.path("")));
        assert!(said.contains(why) && status == 125, "{status} {said}");
    }
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let (said, status) = refused(lab.exec(&[]).env("MSRGATE_STATE_DIR", "/proc").arg("true"));
    assert!(
        said.contains("/proc: the run's state page cannot be made there: ") && status == 125,
        "{status} {said}"
    );
    let mut nowhere = lab.exec(&[]);
    let (said, status) = refused(nowhere.env("MSRGATE_STATE_DIR", "/nowhere").arg("true"));
    let wanted = "error: /nowhere: the run's state page cannot be made there: No such file or directory (os error 2)\n";
    assert_eq!((&*said, status), (wanted, 125));
    let (said, status) = refused(lab.exec(&["--events", "/nonexistent/events"]).arg("true"));
    assert!(
        said.contains("/nonexistent/events: cannot be written") && status == 125,
        "{status} {said}"
    );
    lab.assert_no_page_is_left();
}

#[test]
fn exec_inside_of_another_run_of_exec_exits_125() {
    let lab = Lab::new(ALLOWS);
    let (said, status) = refused(
        lab.exec(&[])
            .env("MSRGATE_STATE", "/nonexistent")
            .arg("true"),
    );
    assert!(
        said.contains("inside of a run of msrgate exec") && status == 125,
        "{status} {said}"
    );
}

/// The library exports `ioctl` and `close`, and imports neither. A third exported function would replace a
/// function of the VMM, and an imported `ioctl` or `close` would make the library call itself.
#[test]
fn preload_library_exports_only_ioctl_and_close_and_imports_neither() {
    let output = Command::new("nm")
        .args(["-D", "--format=posix"])
        .arg(library())
        .output();
    let text = String::from_utf8(output.expect("nm is there").stdout).unwrap();
    let symbols = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?))
    });
    let (imported, exported): (Vec<_>, Vec<_>) =
        symbols.partition(|(_, kind)| matches!(*kind, "U" | "w" | "v"));
    assert_eq!(exported, [("close", "T"), ("ioctl", "T")]);
    let is_own = |name: &str| name.starts_with("ioctl") || name.starts_with("close@");
    assert!(
        !imported.iter().any(|(name, _)| is_own(name)),
        "{imported:?}"
    );
}

/// `exec` refuses a file of `--events` that is the policy or a file that the policy includes. Events that
/// are appended to it would be mistakes in the policy.
#[test]
fn exec_refuses_events_file_that_is_policy_or_included_by_policy() {
    let lab = Lab::new(ALLOWS);
    fs::write(lab.path("i.toml"), "policy = 1\n").unwrap();
    let text = "policy = 1\ndefault = 'allow'\ninclude = ['i.toml']\n";
    fs::write(lab.path("p.toml"), text).unwrap();
    for events in ["p.toml", "i.toml"] {
        let before = fs::read(lab.path(events)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command
            .current_dir(lab.path(""))
            .args(["exec", "--events", events, "p.toml", "--", "true"]);
        let (said, status) = refused(&mut command);
        assert!(said.contains("name another file for --events"), "{said}");
        assert_eq!(status, 125);
        assert_eq!(fs::read(lab.path(events)).unwrap(), before);
    }
    lab.assert_no_page_is_left();
}

/// Returns the names of all files in a lab's folder, once the watcher has ended.
fn files(lab: &Lab) -> Vec<String> {
    lab.assert_no_page_is_left();
    let names = fs::read_dir(lab.path("")).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs that do not begin: the VMM, an environment variable with its value, and the exit status that the run
/// has.
const FAILURES: &[(&str, (&str, &str), i32)] = &[
    ("./missing", ("A", "1"), 127),
    ("./text", ("A", "1"), 126),
    ("./static", ("A", "1"), 125),
    ("true", ("MSRGATE_PRELOAD", "/nonexistent"), 125),
    ("true", ("MSRGATE_PRELOAD", "/bin/sh"), 125),
    ("true", ("MSRGATE_STATE_DIR", "/nonexistent"), 125),
    ("true", ("MSRGATE_STATE", "/nonexistent"), 125),
    // A program that is open for writing is refused by execve(2) itself, when all else is done.
    ("./busy", ("A", "1"), 126),
];

/// Makes the programs of [`FAILURES`]. The program `busy` is refused while the returned file is open.
fn make_vmms_that_fail(lab: &Lab) -> fs::File {
    fs::write(lab.path("text"), "no program\n").unwrap();
    lab.build("open.c", &["-static"]);
    fs::rename(lab.path("open"), lab.path("static")).unwrap();
    fs::copy("/bin/true", lab.path("busy")).unwrap();
    let busy = fs::OpenOptions::new().append(true).open(lab.path("busy"));
    busy.unwrap()
}

#[test]
fn exec_that_fails_before_vmm_starts_leaves_no_new_file() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let busy = make_vmms_that_fail(&lab);
    let before = files(&lab);
    let options = ["--summary", "summary", "--events", "events"];
    for (vmm, (variable, value), status) in FAILURES {
        let mut command = lab.exec(&options);
        let (said, code) = refused(command.env(variable, value).arg(vmm));
        assert_eq!(code, *status, "{vmm} {variable}={value}: {said}");
        assert_eq!(files(&lab), before, "{vmm} {variable}={value}: {said}");
    }
    // A link to a file that is not there stays one.
    std::os::unix::fs::symlink("behind", lab.path("link")).unwrap();
    let with_link = files(&lab);
    refused(lab.exec(&["--summary", "link"]).arg("./missing"));
    assert_eq!(files(&lab), with_link);
    fs::remove_file(lab.path("link")).unwrap();
    let options = ["--summary", "summary", "--events", "missing/events"];
    let (said, code) = refused(lab.exec(&options).arg("true"));
    assert_eq!((code, files(&lab)), (125, before.clone()), "{said}");
    let options = ["--summary", "missing/summary", "--events", "events"];
    let (said, code) = refused(lab.exec(&options).arg("true"));
    assert_eq!((code, files(&lab)), (125, before), "{said}");
    drop(busy);
}

#[test]
fn exec_that_fails_before_vmm_starts_keeps_existing_summary_and_events_files() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let busy = make_vmms_that_fail(&lab);
    fs::write(lab.path("summary"), "an old summary\n").unwrap();
    fs::write(lab.path("events"), "").unwrap();
    let before = files(&lab);
    let options = ["--summary", "summary", "--events", "events"];
    for (vmm, (variable, value), _) in FAILURES {
        refused(lab.exec(&options).env(variable, value).arg(vmm));
        assert_eq!(files(&lab), before, "{vmm} {variable}={value}");
        let texts = ["summary", "events"].map(|name| fs::read_to_string(lab.path(name)).unwrap());
        assert_eq!(texts, ["an old summary\n", ""], "{vmm} {variable}={value}");
    }
    drop(busy);
}
