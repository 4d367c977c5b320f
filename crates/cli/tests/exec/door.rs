//! Tests of VMMs that do not load msrgate's library, or bypass it: the run's seccomp filter refuses their
//! requests for VMs.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Command, Stdio};

use msrgate_testing::host;

use crate::lab::{ALLOWS, DENIES, Lab, Ran, ran, skip};

const SENTENCE: &str = "asked KVM for a VM past msrgate's library, and was refused";

#[test]
fn kvm_request_that_bypasses_library_is_refused_and_one_through_library_succeeds() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let past = lab.build("past.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(past));
    let expected = "int 0x80: -1\nx32: -1\nsyscall: -1\nhigh bits: -1\nioctl: a VM\nfilter: -1\nfilter of 32 bits: -1\nanother request: 1\n\
        run by int 0x80: -1\nrun by x32: -1\nrun by syscall: -1\nrun by ioctl: not refused\n";
    assert_eq!((&*ran.out, ran.status), (expected, 0));
    // Each sentence comes once, however often the VMM tries.
    for sentence in [
        SENTENCE,
        "asked KVM to replace a VM's MSR filter past",
        "asked KVM to run a vCPU past",
    ] {
        assert_eq!(ran.err.matches(sentence).count(), 1, "{}", ran.err);
    }
}

#[test]
fn vmm_started_without_ld_preload_gets_no_vm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab.exec(&[]).args(["env", "-u", "LD_PRELOAD"]).arg(strict));
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("Operation not permitted"), "{}", ran.err);
    assert!(
        ran.err.contains(SENTENCE) && ran.err.contains("(strict)"),
        "{}",
        ran.err
    );
}

/// `exec` checks only the file that it starts, which is a script here. The statically linked VMM that the
/// script starts gets no VM.
#[test]
fn statically_linked_vmm_that_script_starts_gets_no_vm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    lab.build("strict.c", &["-static"]);
    let script = lab.path("start");
    fs::write(&script, "#!/bin/sh\nexec ./strict\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = ran(lab.exec(&[]).arg(script));
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains(SENTENCE), "{}", ran.err);
}

/// The dynamic linker loads msrgate's library into a program that has the C library linked into it, but the
/// program does not call the library. The program gets no VM.
#[test]
fn program_with_c_library_linked_into_it_gets_no_vm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    // A program that needs a shared library, even an empty one, has a dynamic linker.
    let empty = lab.path("empty.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"]);
    assert!(cc.arg(&empty).status().unwrap().success());
    let needs = empty.to_str().unwrap();
    let options = ["-nostdlib", "-no-pie", "-Wl,--no-as-needed", needs];
    let inside = lab.build("inside.c", &options);
    let plain = ran(&mut Command::new(&inside));
    assert_eq!((&*plain.out, plain.status), ("no library\na VM\n", 0));
    let ran = ran(lab.exec(&["--quiet"]).arg(inside));
    let shown = "the library is loaded\nno VM\n";
    assert_eq!((&*ran.out, ran.status), (shown, 0), "{}", ran.err);
    assert_eq!(ran.err.matches(SENTENCE).count(), 1, "{}", ran.err);
}

#[test]
fn fail_open_option_gives_vmm_without_library_its_vm_without_policy() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let ran = ran(lab
        .exec(&["--fail-open", "--summary", "summary"])
        .args(["env", "-u", "LD_PRELOAD"])
        .arg(strict));
    assert_eq!((&*ran.out, ran.status), (".\n", 0));
    assert!(
        ran.err
            .contains("--fail-open: a VMM that does not load the library"),
        "{}",
        ran.err
    );
    lab.assert_no_page_is_left();
    let summary = fs::read_to_string(lab.path("summary")).unwrap();
    let wanted = "run without the policy, and are not counted\n";
    assert!(summary.ends_with(wanted), "{summary}");
}

/// Returns the result of a run in which `starter` starts `exec` with the VMM `open.c`, which has /dev/kvm as
/// descriptor 9.
fn opened(lab: &Lab, starter: &[&str]) -> Ran {
    let mut exec = lab.exec(&["--quiet"]);
    exec.arg(lab.path("open"));
    let script = format!("exec {} \"$@\" 9<>/dev/kvm", starter.join(" "));
    ran(&mut lab.script(&[], &script, &exec))
}

fn assert_refused(lab: &Lab, starter: &[&str]) {
    let ran = opened(lab, starter);
    assert_eq!(&*ran.out, "no VM: Operation not permitted\n", "{}", ran.err);
    assert!(ran.err.contains(SENTENCE), "{}", ran.err);
}

/// The dynamic linker ignores `LD_PRELOAD` for a program that changes its user or gains privileges. `exec`
/// lets a VMM of this kind make no VM.
#[test]
fn vmm_with_setuid_bit_or_file_capabilities_gets_no_vm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let vmm = lab.build("open.c", &[]);
    // Not the user of the test, who has all privileges already, but another one.
    if chown(&vmm, Some(1000), None).is_err() {
        skip("root", "only root can make a program of another user");
        return;
    }
    let plain = opened(&lab, &[]);
    assert_eq!((&*plain.out, plain.status), ("a VM\n", 0), "{}", plain.err);
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o4755)).unwrap();
    assert_refused(&lab, &[]);
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    let given = Command::new("setcap")
        .arg("cap_net_raw=ep")
        .arg(&vmm)
        .status();
    if !given.is_ok_and(|status| status.success()) {
        host::say("SKIPPED: setcap(8) gives a file no capability here");
        return;
    }
    // With CAP_SYS_ADMIN msrgate need not promise that nobody gains privileges.
    let caps = "+sys_admin,+dac_override";
    assert_refused(
        &lab,
        &[
            "setpriv",
            "--reuid=1000",
            "--inh-caps",
            caps,
            "--ambient-caps",
            caps,
        ],
    );
}

/// A caller without `CAP_SYS_ADMIN` may set a seccomp filter only under `no_new_privs`. `exec` then sets
/// `no_new_privs`, and a VMM without the library gets no VM.
#[test]
fn vmm_without_library_gets_no_vm_if_caller_of_exec_lacks_cap_sys_admin() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let without = ["--bounding-set=-sys_admin"];
    if !Command::new("setpriv")
        .args(without)
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        host::say("SKIPPED: setpriv(1) takes no capability away here");
        return;
    }
    let strict = lab.build("strict.c", &[]);
    let exec = lab.exec(&["--quiet"]);
    let mut command = Command::new("setpriv");
    command
        .args(without)
        .arg(exec.get_program())
        .args(exec.get_args());
    command
        .args([
            "sh",
            "-c",
            "grep NoNewPrivs /proc/self/status; $0; LD_PRELOAD= $0",
        ])
        .arg(strict);
    command.current_dir(lab.folder.path());
    command.envs(
        exec.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let ran = ran(&mut command);
    assert_eq!(
        (&*ran.out, ran.status),
        ("NoNewPrivs:\t1\n.\n", 1),
        "{}",
        ran.err
    );
    assert!(ran.err.contains(SENTENCE), "{}", ran.err);
}

/// After the watcher was killed, a VM that the library makes is still guarded, and a process without the
/// library still gets no VM.
#[test]
fn vmm_without_library_gets_no_vm_after_watcher_was_killed() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let mark = lab.path("events");
    let mut command = lab.exec(&["--events", mark.to_str().unwrap()]);
    command
        .args(["sh", "-c", "read go; $0; LD_PRELOAD= $0"])
        .arg(strict);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let watcher = watcher(mark.to_str().unwrap(), child.id());
    assert!(
        Command::new("kill")
            .args(["-9", &watcher.to_string()])
            .status()
            .unwrap()
            .success()
    );
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "!\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Function not implemented"), "{said}");
}

/// Returns the process ID of the watcher: the process with this word on its command line, which was forked
/// before the VMM began.
fn watcher(word: &str, vmm: u32) -> u32 {
    for _ in 0..200 {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let has_word = String::from_utf8_lossy(&line).contains(word);
            // The search waits until the VMM has begun: its command line is then a shell's, without the
            // word.
            let own = fs::read(format!("/proc/{vmm}/cmdline")).unwrap_or_default();
            if let Some(pid) = pid.filter(|pid| *pid != vmm && has_word && own.starts_with(b"sh")) {
                return pid;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("there is no watcher");
}

/// If another seccomp filter of the process already has a listener, the run's filter has none. A VMM without
/// the library then gets EPERM, and no message is printed.
#[test]
fn vmm_without_library_is_refused_silently_if_other_seccomp_filter_has_listener() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let (strict, listener) = (lab.build("strict.c", &[]), lab.build("listener.c", &[]));
    let exec = lab.exec(&["--quiet"]);
    let mut command = Command::new(listener);
    command.arg(exec.get_program()).args(exec.get_args());
    command.args(["sh", "-c", "$0; LD_PRELOAD= $0"]).arg(strict);
    command.current_dir(lab.folder.path());
    command.envs(
        exec.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let ran = ran(&mut command);
    assert_eq!((&*ran.out, ran.status), ("!\n", 1), "{}", ran.err);
    assert!(
        ran.err.contains("Operation not permitted") && !ran.err.contains(SENTENCE),
        "{}",
        ran.err
    );
}

/// The watcher prints its messages to standard error. If no process reads standard error, a VMM that
/// bypasses the library still gets EPERM without waiting.
#[test]
fn refusal_of_kvm_request_does_not_wait_for_reader_of_standard_error() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let past = lab.build("past.c", &[]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'.'; room]).unwrap();
    let mut exec = lab.exec(&[]);
    exec.arg(past);
    // The limit ends a VMM that waits for ever.
    let starter = ["timeout", "--signal=KILL", "60"];
    let mut command = Command::new(starter[0]);
    command.args(&starter[1..]).arg(exec.get_program());
    command.args(exec.get_args()).current_dir(lab.path(""));
    let set = exec.get_envs();
    command.envs(set.filter_map(|(key, value)| Some((key, value?))));
    let child = command.stdout(Stdio::piped()).stderr(writer).spawn();
    drop(command);
    let output = child.unwrap().wait_with_output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("\nioctl: a VM\nfilter: -1\n"), "{shown}");
    assert!(shown.ends_with("run by ioctl: not refused\n"), "{shown}");
    drop(reader);
    lab.assert_no_page_is_left();
}
