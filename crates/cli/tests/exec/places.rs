//! Tests of the folders and files that `exec` needs: the places where it looks for the library, and its
//! messages about a disk that is full, read-only or mounted `noexec`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::lab::{ALLOWS, DENIES, Lab, MOUNTS, library, ran, starts};
use crate::refused::refused;

/// Returns the command `msrgate` as a hard link in the folder `bin` of a lab. No library is beside it.
pub(crate) fn installed(lab: &Lab) -> Command {
    let folder = lab.path("bin");
    fs::create_dir_all(&folder).unwrap();
    let (own, link) = (
        Path::new(env!("CARGO_BIN_EXE_msrgate")),
        folder.join("msrgate"),
    );
    if !link.exists() && fs::hard_link(own, &link).is_err() {
        fs::copy(own, &link).unwrap();
    }
    let mut command = Command::new(link);
    command.current_dir(lab.folder.path()).stdin(Stdio::null());
    command
}

/// The arguments of a run whose VMM is a shell that prints the path of the library that `exec` has chosen.
const SHOWS_LIBRARY: [&str; 6] = ["exec", "guest.toml", "--", "sh", "-c", "echo $LD_PRELOAD"];

#[test]
fn library_is_found_by_variable_or_else_in_lib_msrgate_or_else_beside_command() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let mut nowhere = installed(&lab);
    let (said, status) = refused(nowhere.args(SHOWS_LIBRARY));
    assert!(
        said.contains("there is no libmsrgate_preload.so, neither in ") && status == 125,
        "{status} {said}"
    );
    let folder = fs::canonicalize(lab.folder.path()).unwrap();
    fs::create_dir_all(folder.join("lib/msrgate")).unwrap();
    for place in ["bin", "lib/msrgate", "elsewhere"] {
        fs::create_dir_all(folder.join(place)).unwrap();
        let file = folder.join(place).join("libmsrgate_preload.so");
        fs::copy(library(), &file).unwrap();
        let mut command = installed(&lab);
        command.args(SHOWS_LIBRARY);
        if place == "elsewhere" {
            command.env("MSRGATE_PRELOAD", &file);
        }
        let ran = ran(&mut command);
        assert_eq!(ran.out, format!("{}\n", file.display()), "{}", ran.err);
    }
}

/// If the library's file is removed before the VMM starts, the dynamic linker starts the VMM without it. The
/// VMM then gets no VM.
#[test]
fn vmm_gets_no_vm_if_library_file_was_removed_before_vmm_starts() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let (copy, strict) = (lab.path("copy.so"), lab.build("strict.c", &[]));
    fs::copy(library(), &copy).unwrap();
    let mut command = lab.exec(&["--quiet"]);
    command.env("MSRGATE_PRELOAD", &copy);
    let ran = ran(command
        .args(["sh", "-c", "rm copy.so; exec $0"])
        .arg(strict));
    assert_eq!((&*ran.out, ran.status), ("", 1), "{}", ran.err);
    let said = "asked KVM for a VM past msrgate's library, and was refused";
    assert!(ran.err.contains(said), "{}", ran.err);
}

#[test]
fn exec_works_without_home_variable_and_in_read_only_working_folder() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let strict = lab.build("strict.c", &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
    command.env_clear().env("MSRGATE_PRELOAD", library());
    command.arg("exec").arg(lab.path("guest.toml")).arg("--");
    command
        .arg(strict)
        .current_dir("/proc")
        .stdin(Stdio::null());
    let ran = ran(&mut command);
    assert_eq!((&*ran.out, ran.status), ("!\n", 0), "{}", ran.err);
    assert!(ran.err.contains("refused 1 access"), "{}", ran.err);
}

/// If no folder for the state page can be written, the page is in a file in memory, which the VMM inherits,
/// and the run works.
#[test]
fn state_page_is_in_memory_file_if_no_folder_can_be_written() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    if !starts(MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&["--summary", "summary"]);
    exec.args(["sh", "-c", "ls -l /proc/self/fd; $0 & wait $!"]);
    exec.arg(lab.build("strict.c", &[]));
    let script = "mount -t tmpfs -o ro none /dev/shm && unset MSRGATE_STATE_DIR XDG_RUNTIME_DIR && exec \"$@\"";
    let ran = ran(&mut lab.script(MOUNTS, script, &exec));
    assert!(ran.out.contains("memfd:msrgate"), "{}", ran.out);
    assert!(
        ran.out.ends_with("\n!\n") && ran.status == 0,
        "{}{}",
        ran.out,
        ran.err
    );
    for _ in 0..200 {
        if fs::read_to_string(lab.path("summary"))
            .is_ok_and(|text| text.contains("refused 1 access\n"))
        {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("there is no summary");
}

#[test]
fn exec_exits_125_if_disk_for_state_page_is_full_or_read_only() {
    if Lab::with_kvm(ALLOWS).is_none() || !starts(MOUNTS) {
        return;
    }
    for (option, why) in [
        ("size=64k", ["no room for", "No space left on device"]),
        ("ro", ["cannot be made there", "Read-only file system"]),
    ] {
        let lab = Lab::new(ALLOWS);
        let mut exec = lab.exec(&[]);
        exec.arg("true");
        let script = format!(
            "mkdir disk && mount -t tmpfs -o {option} none disk && MSRGATE_STATE_DIR=disk \"$@\"; code=$?; ls disk; exit $code"
        );
        let (said, status) = refused(&mut lab.script(MOUNTS, &script, &exec));
        let is_said = |part: &&str| said.contains(*part);
        assert!(
            said.contains("error: disk: ") && said.contains("the run's state page"),
            "{said}"
        );
        assert!(why.iter().all(is_said), "{said}");
        assert_eq!(status, 125);
    }
}

/// If the state page would exceed the limit of file sizes, `exec` says so, exits with 125, and is not ended
/// by SIGXFSZ.
#[test]
fn exec_exits_125_if_state_page_exceeds_limit_of_file_size() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let mut exec = lab.exec(&[]);
    exec.arg("true");
    let (said, status) = refused(&mut lab.script(&[], "ulimit -f 100; exec \"$@\"", &exec));
    assert!(
        said.contains("no room for the run's state page") && said.contains("File too large"),
        "{said}"
    );
    assert_eq!(status, 125);
}

/// Under any limit of descriptors, a run ends: as its program does, or with 125 or 126 and a message. The program's
/// status is 7. One limit leaves the watcher, which is forked from `exec`, not a single free descriptor.
#[test]
fn exec_ends_under_any_limit_of_descriptors() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let mut exec = lab.exec(&["--summary", "summary"]);
    exec.args(["sh", "-c", "exit 7"]);
    let mut statuses = Vec::new();
    for limit in 4..20 {
        let script = format!("ulimit -n {limit}; exec timeout 60 \"$@\"");
        let output = lab.script(&[], &script, &exec).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let status = output.status.code().unwrap();
        assert!(
            [7, 125, 126].contains(&status),
            "limit {limit}: {status} {said}"
        );
        assert_eq!(
            said.lines().count() > 0,
            status >= 125,
            "limit {limit}: {said}"
        );
        statuses.push(status);
    }
    assert!(
        statuses.is_sorted_by(|low, high| (*low == 7) <= (*high == 7)),
        "{statuses:?}"
    );
    assert_eq!(statuses.last(), Some(&7));
    lab.assert_no_page_is_left();
}

/// The state page's file has the mode 600 even under a umask of 777, so that the library can open the file.
#[test]
fn state_page_file_has_mode_600_under_umask_777() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    let mut exec = lab.exec(&["--quiet"]);
    exec.args(["sh", "-c", "stat -c %a msrgate-*"]);
    let ran = ran(&mut lab.script(&[], "umask 777; exec \"$@\"", &exec));
    assert_eq!((&*ran.out, ran.status), ("600\n", 0), "{}", ran.err);
}

/// Returns a script that runs the command `"$@"` as a user who has no other processes. State pages go into
/// the folder `pages`. A test of the limit of processes needs such a user: the limit does not hold for root,
/// and it counts all processes of the user.
fn as_user(user: u32, limit: &str) -> String {
    format!(
        "mkdir -p dev pages; chmod 755 .; mount -t tmpfs none dev && mknod dev/kvm c 10 232 && chmod 666 dev/kvm && mount --bind dev/kvm /dev/kvm && chown {user} pages && export MSRGATE_STATE_DIR=$PWD/pages && exec setpriv --reuid={user} --regid={user} --clear-groups {limit} \"$@\""
    )
}

const OWN_MOUNTS: &[&str] = &["unshare", "--mount"];

#[test]
fn exec_leaves_no_state_page_if_watcher_process_cannot_be_started() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    if !starts(OWN_MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&[]);
    exec.arg("true");
    // The first process is the command. The second one starts the watcher, which would be the third.
    for limit in ["prlimit --nproc=1", "prlimit --nproc=2"] {
        let script = as_user(64_917, limit);
        let (said, status) = refused(&mut lab.script(OWN_MOUNTS, &script, &exec));
        let wanted = "there is no process to watch the VMM: Resource temporarily unavailable";
        assert!(said.contains(wanted) && status == 125, "{status} {said}");
        let left = fs::read_dir(lab.path("pages")).unwrap().count();
        assert_eq!(left, 0, "{limit}");
    }
}

#[test]
fn message_says_if_library_cannot_start_its_helper_thread() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    if !starts(OWN_MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&["--quiet"]);
    exec.args(["prlimit", "--nproc=1"]);
    exec.arg(lab.build("refused.c", &[])).arg("many");
    let ran = ran(&mut lab.script(OWN_MOUNTS, &as_user(64_918, ""), &exec));
    let said = ran.err.lines().next().unwrap_or_default();
    assert!(
        said.starts_with("msrgate: the library cannot start its thread, and there is no VM: ")
            && said.ends_with("the limit of processes (ulimit -u) may be too low"),
        "{}",
        ran.err
    );
    assert_ne!(ran.status, 0);
}

/// If `/sys` is not readable and the policy has `unknown`, the message tells an operator what to make
/// readable. The message leaves out the error's own advice, which is for the author of a VMM.
#[test]
fn message_about_unreadable_ignore_msrs_tells_operator_what_to_make_readable() {
    let policy = "policy = 1\ndefault = 'allow'\nunknown = { read = 0, write = 'ignore' }\n";
    let Some(lab) = Lab::with_kvm(policy) else {
        return;
    };
    if !starts(MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&[]);
    exec.arg("true");
    let script = "mount -t tmpfs none /sys && exec \"$@\"";
    let (said, status) = refused(&mut lab.script(MOUNTS, script, &exec));
    assert!(
        said.contains("guest.toml: the policy answers for MSRs that KVM does not know")
            && said.contains("make /sys/module/kvm/parameters/ignore_msrs readable")
            && !said.contains("HostCaps"),
        "{said}"
    );
    assert_eq!(status, 125);
}

#[test]
fn exec_exits_126_if_vmm_is_on_file_system_mounted_noexec() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    if !starts(MOUNTS) {
        return;
    }
    let mut exec = lab.exec(&[]);
    exec.arg("there/true");
    let script =
        "mkdir there && mount -t tmpfs -o noexec none there && cp /bin/true there && \"$@\"";
    let (said, status) = refused(&mut lab.script(MOUNTS, script, &exec));
    assert!(said.contains("there/true: Permission denied"), "{said}");
    assert_eq!(status, 126);
    lab.assert_no_page_is_left();
}

#[test]
fn exec_exits_125_and_says_why_if_caller_may_not_open_dev_kvm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let starter = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let may = Command::new(starter[0])
        .args(&starter[1..])
        .args(["sh", "-c", ": <>/dev/kvm"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !starts(&starter) || may {
        return;
    }
    let mut command = Command::new(starter[0]);
    command
        .args(&starter[1..])
        .arg(env!("CARGO_BIN_EXE_msrgate"));
    command.args(["exec", "allow-all", "--", "true"]);
    command.env("MSRGATE_PRELOAD", library()).current_dir("/");
    let (said, status) = refused(&mut command);
    assert!(said.contains("no permission to open /dev/kvm"), "{said}");
    assert_eq!(status, 125);
    drop(lab);
}

/// The VMM's mount namespace has no `/sys`. The library then takes the value of `kvm.ignore_msrs`, which the
/// policy needs, from the state page.
#[test]
fn library_reads_ignore_msrs_from_state_page_if_vmm_has_no_sys() {
    let unknown = "policy = 1\ndefault = 'allow'\nunknown = 'ignore'\n";
    let Some(lab) = Lab::with_kvm(unknown) else {
        return;
    };
    if !starts(MOUNTS) {
        return;
    }
    let vmm = lab.build("answers.c", &[]);
    let script = "mount -t tmpfs none /sys && ls /sys && exec $0 unknown";
    let mut command = lab.exec(&["--quiet"]);
    command.args(MOUNTS).args(["sh", "-c", script]).arg(vmm);
    let ran = ran(&mut command);
    assert!(ran.out.starts_with("0.\nmask 0: 0 \n"), "{}", ran.out);
    assert_eq!((&*ran.err, ran.status), ("", 0));
}

/// The workspace's default members include the command and the library, so that `cargo build` puts the
/// library beside the command.
#[test]
fn default_members_of_workspace_include_command_and_preload_library() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--locked", "--format-version=1"]);
    // In the folder of a package, that package is the default.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = ran(cargo.current_dir(workspace)).out;
    let metadata: serde_json::Value = serde_json::from_str(&text).unwrap();
    let defaults = metadata["workspace_default_members"].as_array().unwrap();
    let built = |name: &str, kind: &str| {
        let packages = metadata["packages"].as_array().unwrap();
        packages.iter().any(|package| {
            let targets = package["targets"].as_array().unwrap();
            let is_it = |one: &serde_json::Value| one["name"] == name && one["kind"][0] == kind;
            defaults.contains(&package["id"]) && targets.iter().any(is_it)
        })
    };
    assert!(built("msrgate", "bin") && built("msrgate_preload", "cdylib"));
}
