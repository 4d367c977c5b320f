use std::io;

use msrgate_program::{Origin, is_shown};

use super::*;
use crate::gate::id::VcpuId;

const DROPS: VcpuDrops = VcpuDrops {
    vcpu: VcpuId::new(2),
    dropped: 9,
    held_back: 300,
};

/// The name of a policy file, with characters that control a terminal and one that ends a line.
const NAME: &str = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2028}\u{e0041}\nb.toml";

/// Passes an event and a report of drops to a sink that writes to `out`.
fn written<'w, S: Sink>(
    out: &'w mut Vec<u8>,
    make: impl FnOnce(&'w mut Vec<u8>) -> S,
    event: &Event,
) {
    let mut sink = make(out);
    sink.event(event);
    sink.dropped(DROPS);
    sink.flush();
    assert_eq!(sink.failed(), 0);
}

#[test]
fn text_line_has_time_vm_name_and_text_of_event() {
    let mut out = Vec::new();
    written(
        &mut out,
        |out| TextLines::new(out, "web"),
        &Event::example(0x10),
    );
    let text = String::from_utf8(out).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    assert_eq!(
        first,
        "1.500 web: vCPU 1: write of MSR 0x10: deny (filter), value 0x5, by a.toml:7"
    );
    let lost = " web: vCPU 2: events lost so far: 9 dropped, 300 held back\n";
    assert!(second.ends_with(lost), "{second}");
}

/// The text of an event shows each optional part exactly if that part has a value.
#[test]
fn event_as_text_shows_each_optional_field_that_has_a_value() {
    let plain = Event {
        value: None,
        ..Event::example(0x10)
    };
    let texts = [
        Event {
            rip: Some(0x1000),
            held_back: 3,
            ..plain.clone()
        },
        Event {
            file: None,
            ..plain.clone()
        },
        Event {
            origin: Origin::Default,
            ..plain.clone()
        },
        Event {
            origin: Origin::Kvm,
            ..plain
        },
    ]
    .map(|event| event.to_string());
    assert_eq!(
        texts,
        [
            "vCPU 1: write of MSR 0x10: deny (filter), RIP 0x1000, by a.toml:7; similar events held back before it: 3",
            "vCPU 1: write of MSR 0x10: deny (filter), by line 7",
            "vCPU 1: write of MSR 0x10: deny (filter), by the policy's default",
            "vCPU 1: write of MSR 0x10: deny (filter), by KVM",
        ]
    );
}

/// A log that `cat` prints cannot control the terminal.
#[test]
fn text_line_has_no_control_character() {
    let mut out = Vec::new();
    let event = Event {
        file: Some(NAME.into()),
        ..Event::example(0x10)
    };
    written(&mut out, |out| TextLines::new(out, NAME), &event);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(
        text.lines().all(|line| line.chars().all(is_shown)),
        "{text:?}"
    );
}

/// A writer whose every write fails.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn failed_write_of_text_line_is_counted() {
    let mut sink = TextLines::new(Full, "");
    sink.event(&Event::example(1));
    sink.dropped(DROPS);
    assert_eq!(sink.failed(), 2);
}

#[cfg(feature = "json")]
mod json {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn json_sink_writes_event_as_one_line() {
        let mut out = Vec::new();
        written(
            &mut out,
            |out| JsonLines::new(out, "web"),
            &Event::example(0x10),
        );
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines[0],
            json!({
                "schema": 1, "time_ns": 1_500_000_000u64, "vm": "web", "vcpu": 1, "msr": "0x10", "access": "write",
                "reason": "filter", "action": "deny", "value": "0x5", "policy": "a.toml", "line": 7,
                "digest": "0".repeat(64),
            })
        );
        let time = &lines[1]["time_ns"];
        assert_eq!(
            lines[1],
            json!({ "schema": 1, "time_ns": time, "vm": "web", "vcpu": 2, "dropped": 9, "held_back": 300 })
        );
    }

    /// `msrgate replay` reads what this sink writes.
    #[test]
    fn json_lines_are_read_back_by_replay() {
        use msrgate_policy::trace::{Line, parse_line};

        let mut out = Vec::new();
        let event = Event::example(0x10);
        written(&mut out, |out| JsonLines::new(out, "web"), &event);
        let mut lines = out.split(|byte| *byte == b'\n');
        let Line::Access(access) = parse_line(lines.next().unwrap()) else {
            panic!("{}", String::from_utf8_lossy(&out));
        };
        assert_eq!(access.index, event.index);
        assert_eq!(access.access, event.access);
        assert_eq!(access.value, event.value);
        let lost = DROPS.dropped + DROPS.held_back;
        assert_eq!(parse_line(lines.next().unwrap()), Line::Lost(lost));
    }

    #[test]
    fn json_line_has_no_control_character() {
        let mut out = Vec::new();
        let event = Event {
            file: Some(NAME.into()),
            ..Event::example(0x10)
        };
        written(&mut out, |out| JsonLines::new(out, NAME), &event);
        let text = String::from_utf8(out).unwrap();
        let (line, _) = text.split_once('\n').unwrap();
        assert!(line.chars().all(is_shown), "{line:?}");
        let read: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&read["vm"], &read["policy"]), (&json!(NAME), &json!(NAME)));
    }

    #[test]
    fn failed_json_write_is_counted() {
        let mut sink = JsonLines::new(Full, "");
        sink.event(&Event::example(1));
        assert_eq!(sink.failed(), 1);
    }
}
