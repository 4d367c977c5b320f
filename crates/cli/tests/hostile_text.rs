//! Text of a policy does nothing to the terminal that shows it.

use std::io::Write;
use std::process::{Command, Stdio};

/// A name, a reason and a key that would clear the screen, return, and turn what follows around.
const POLICY: &str = r#"
policy  = 1
name    = "a\u001b[2J\rb\u009b2J\u202ec"
default = "deny"
[msrs]
"\u0085\u000b0x10 " = { read = "allow", write = "deny", why = "d\u001b[2J\ne\u2066f" }
"0x10" = "r"
"#;

/// What a command prints of that policy, results and talk.
fn printed(arguments: &[&str]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_msrgate"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(POLICY.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).expect("text")
}

fn commands_the_terminal(c: char) -> bool {
    c != '\n' && c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[test]
fn no_command_passes_it_on() {
    for arguments in [
        &["check", "-"][..],
        &["explain", "-", "0x10"],
        &["test", "-", "--backend", "model", "--msr", "0x10"],
    ] {
        let text = printed(arguments);
        assert!(text.contains("0x10"), "{arguments:?}: {text}");
        assert!(!text.contains(commands_the_terminal), "{text:?}");
    }
}
