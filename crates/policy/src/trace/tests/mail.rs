//! Tests of traces that a mail program has quoted, wrapped or encoded.

use super::super::*;
use super::{all, read, write};

const EVENT: &str = "CPU 0/KVM-16856 [007] ..... 380.398695: kvm_msr: msr_read 3a = 0x0\n";

fn task_of(trace: &str) -> Option<String> {
    let mut lines = Lines::new(trace.as_bytes());
    lines.next_line().unwrap().unwrap();
    lines.task().map(|task| task.to_string())
}

/// An event that is quoted and wrapped is read with its task, wherever the mail has wrapped it.
#[test]
fn next_line_joins_event_that_is_quoted_and_wrapped() {
    let blanks = EVENT.match_indices(' ').map(|(at, _)| at);
    let start = EVENT.find("kvm_msr").unwrap();
    let before_time = EVENT.find("380").unwrap() - 1;
    for at in blanks.filter(|at| *at > start).chain([before_time]) {
        for mark in [">", ">> ", "> > ", " >\t"] {
            let mut wrapped = format!("{mark}{EVENT}");
            let at = mark.len() + at;
            wrapped.replace_range(at..=at, &format!(" \n{mark}"));
            assert_eq!(
                all(wrapped.as_bytes(), 64),
                [(1, read(0x3a, 0)), (2, Line::Nothing)],
                "{wrapped}"
            );
            assert_eq!(
                task_of(&wrapped).as_deref(),
                Some("CPU 0/KVM-16856"),
                "{wrapped}"
            );
        }
    }
}

#[test]
fn next_line_reads_no_break_spaces_as_blanks() {
    for blank in [&b"\xc2\xa0"[..], b"\xa0"] {
        let line: Vec<u8> = EVENT
            .bytes()
            .flat_map(|byte| {
                if byte == b' ' {
                    blank.to_vec()
                } else {
                    vec![byte]
                }
            })
            .collect();
        assert_eq!(all(&line, 64), [(1, read(0x3a, 0))]);
        let mut lines = Lines::new(&line[..]);
        lines.next_line().unwrap().unwrap();
        let task = lines.task().map(|task| task.to_string());
        assert_eq!(task.as_deref(), Some("CPU 0/KVM-16856"));
    }
}

#[test]
fn next_line_reads_quoted_printable() {
    for (trace, wanted) in [
        (
            "x-1 [0] 1.5: kvm_msr: msr_read =\n3a =3D 0x0\n",
            read(0x3a, 0),
        ),
        (
            "x-1 [0] 1.5: kvm_msr: msr_write 99=\n99 =3D 0x1\n",
            write(0x9999, 1),
        ),
        (
            "x-1 [0] 1.5: kvm_msr: msr_write 9999 =3D 0x1=\n23\n",
            write(0x9999, 0x123),
        ),
        (
            "x-1 [0] 1.5: kvm_msr:=C2=A0msr_write 9999 =3D=20=\n0x1\n",
            write(0x9999, 1),
        ),
        (
            "> x-1 [0] 1.5: kvm_msr: msr_write 99=\n> 99 =3D 0x1\n",
            write(0x9999, 1),
        ),
    ] {
        assert_eq!(
            all(trace.as_bytes(), 64),
            [(1, wanted), (2, Line::Nothing)],
            "{trace}"
        );
    }
    let one = "x-1 [0] 1.5: kvm_msr: msr_write 9999 =3D 0x1\n";
    assert_eq!(all(one.as_bytes(), 64), [(1, write(0x9999, 1))]);
    let garbled = "x-1 [0] 1.5: kvm_msr: msr_write 9999 =4D 0x1\n";
    assert_eq!(all(garbled.as_bytes(), 64), [(1, Line::Unreadable)]);
}

/// Programs on Windows write a trace in UTF-16, or put a byte order mark before UTF-8.
#[test]
fn next_line_of_utf_16_is_error_that_names_encoding() {
    let little: Vec<u8> = EVENT.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = EVENT.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for wide in [
        little.clone(),
        big.clone(),
        [&b"\xff\xfe"[..], &little].concat(),
        [&b"\xfe\xff"[..], &big].concat(),
    ] {
        let error = Lines::new(&wide[..]).next_line().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("iconv -f UTF-16"), "{error}");
    }
    let marked =
        "\u{feff}{\"schema\":1,\"access\":\"read\",\"index\":\"0x3a\",\"value\":\"0x0\"}\n";
    assert_eq!(all(marked.as_bytes(), 4096), [(1, read(0x3a, 0))]);
}
