//! Tests that a VMM under `exec` finds its process as without `exec`: signals, descriptors, umask, process
//! ID and name.

use std::process::{Command, Stdio};

use crate::lab::{ALLOWS, Lab, ran};

/// Returns the output of a shell script under `exec`, and its output without `exec`. The shell code `before`
/// runs first in both.
fn both(lab: &Lab, before: &str, script: &str) -> [String; 2] {
    let exec = lab.exec(&["--quiet"]);
    let guarded: Vec<_> = [exec.get_program()]
        .into_iter()
        .chain(exec.get_args())
        .collect();
    [guarded, Vec::new()].map(|words| {
        let mut shell = Command::new("sh");
        let run = format!("{before} exec \"$@\"");
        shell
            .args(["-c", &run, "sh"])
            .args(words)
            .args(["sh", "-c", script]);
        shell.current_dir(lab.folder.path()).stdin(Stdio::null());
        shell.envs(
            exec.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        let ran = ran(&mut shell);
        assert_eq!((&*ran.err, ran.status), ("", 0));
        ran.out
    })
}

#[test]
fn shell_under_exec_has_same_signals_descriptors_and_umask_as_without() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let script = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; umask; pwd; cat /proc/self/oom_score_adj; cut -d' ' -f6-8 /proc/$$/stat; readlink /proc/$$/fd/0; ls /proc/self/fd";
    for before in [
        "",
        "trap '' PIPE HUP;",
        "umask 077;",
        "exec 7</dev/null;",
        "exec 0<&-;",
    ] {
        let [guarded, plain] = both(&lab, before, script);
        assert_eq!(guarded, plain, "{before}");
    }
}

/// A process under `exec` has the same blocked and ignored signals and the same OOM score adjustment as
/// without `exec`. The VMM here is grep(1), because a shell would change the mask of blocked signals.
#[test]
fn vmm_under_exec_has_same_blocked_and_ignored_signals_and_oom_score_as_without() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let fields = "^Sig(Blk|Ign|Cgt)|^[0-9]";
    let grep = [
        "grep",
        "-Eh",
        fields,
        "/proc/self/status",
        "/proc/self/oom_score_adj",
    ];
    let mut plain = Command::new(grep[0]);
    plain.args(&grep[1..]);
    let mut guarded = lab.exec(&["--quiet"]);
    guarded.args(grep);
    let script = "echo 321 >/proc/self/oom_score_adj && exec env --block-signal=USR1 --block-signal=WINCH --block-signal=TERM --ignore-signal=HUP --ignore-signal=ALRM \"$@\"";
    let [plain, guarded] = [plain, guarded].map(|command| {
        let ran = ran(&mut lab.script(&[], script, &command));
        assert_eq!((&*ran.err, ran.status), ("", 0));
        ran.out
    });
    assert_eq!(guarded, plain);
    assert!(
        guarded.starts_with("SigBlk:\t0000000008004200\n"),
        "{guarded}"
    );
    assert!(guarded.ends_with("\n321\n"), "{guarded}");
}

#[test]
fn vmm_has_process_id_of_exec_and_its_own_name_and_command_line() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let mut command = lab.exec(&[]);
    command.args([
        "sh",
        "-c",
        "echo $$ $0; tr '\\0' ' ' </proc/$$/cmdline; exit 7",
    ]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.starts_with(&format!("{pid} sh\nsh -c ")), "{out}");
    lab.assert_no_page_is_left();
}

#[test]
fn parent_of_exec_sees_which_signal_ended_vmm() {
    let Some(lab) = Lab::with_kvm(ALLOWS) else {
        return;
    };
    let ran = ran(lab.exec(&[]).args(["sh", "-c", "kill -TERM $$"]));
    assert_eq!((&*ran.err, ran.status), ("", 128 + 15));
    lab.assert_no_page_is_left();
}
