//! Tests of a VMM that runs on a terminal. script(1) makes the terminal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::lab::{DENIES, Lab, skip};

/// A shell with job control on a terminal that script(1) has made.
struct Terminal {
    script: Child,
    keys: ChildStdin,
    screen: ChildStdout,
}

impl Terminal {
    /// Starts the shell in a lab's folder, with the environment variables that the command `exec` has.
    fn start(lab: &Lab, exec: &Command) -> Self {
        // The limit ends a test whose text never comes.
        let mut command = Command::new("timeout");
        command.args(["--foreground", "300", "script", "-qefc", "sh", "/dev/null"]);
        command.current_dir(lab.path(""));
        let set = exec.get_envs();
        command.envs(set.filter_map(|(key, value)| Some((key, value?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().unwrap();
        let (keys, screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        Self {
            script,
            keys,
            screen,
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads the terminal's output until it contains `wanted`.
    fn wait_for(&mut self, wanted: &str) {
        let (mut shown, mut byte) = (Vec::new(), [0]);
        while !shown.ends_with(wanted.as_bytes()) {
            let read = self.screen.read(&mut byte).unwrap();
            let all = String::from_utf8_lossy(&shown).into_owned();
            assert_eq!(read, 1, "no {wanted:?} in {all:?}");
            shown.push(byte[0]);
        }
    }
}

/// Ctrl-Z stops the VMM, and Ctrl-C ends it. Neither key stops or ends the watcher, which writes the summary
/// afterwards.
#[test]
fn ctrl_z_stops_and_ctrl_c_ends_vmm_without_ending_watcher() {
    let Some(lab) = Lab::with_kvm(DENIES) else {
        return;
    };
    if Command::new("script").arg("--version").output().is_err() {
        skip("script", "there is no script(1), which makes a terminal");
        return;
    }
    let mut exec = lab.exec(&["--summary", "summary"]);
    exec.arg(lab.build("refused.c", &[])).arg("for-ever");
    let mut terminal = Terminal::start(&lab, &exec);
    // What is typed is shown, too: the texts that are waited for are not among it. With `noflsh` the terminal
    // does not drop what the shell prints at the moment of Ctrl-Z or Ctrl-C.
    terminal.type_keys("stty noflsh; set -m; PS1=; echo rea''dy\n");
    terminal.wait_for("ready\r\n");
    let words = [exec.get_program()].into_iter().chain(exec.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    terminal.type_keys(&(words.join(" ") + "\n"));
    terminal.wait_for("begun\r\n");
    terminal.type_keys("\u{1a}");
    terminal.wait_for("Stopped");
    terminal.type_keys("echo shell goes o''n; fg\n");
    terminal.wait_for("shell goes on\r\n");
    // The shell prints the command's words before it gives the command the terminal: they do not suffice.
    terminal.wait_for("continued\r\n");
    terminal.type_keys("\u{3}");
    terminal.wait_for("^C");
    terminal.type_keys("echo status'' $?\n");
    terminal.wait_for("status 130\r\n");
    // The keys stay open until script(1) has ended: if they end first, its status is not always the shell's.
    terminal.type_keys("exit\n");
    terminal.script.wait().unwrap();
    lab.assert_no_page_is_left();
    let summary = fs::read_to_string(lab.path("summary")).unwrap();
    let said = "msrgate: guest.toml guarded 1 VM, and refused ";
    assert!(summary.starts_with(said), "{summary}");
}
