mod mail;
mod tools;

use std::io::BufReader;

use proptest::prelude::*;

use super::*;
use crate::answer::Disposition;
use crate::source::Source;
use crate::{Compiled, NoIncludes, compile, parse};

fn access(access: Access, index: u32, value: u64, outcome: Outcome) -> Line {
    Line::Access(Traced {
        index: MsrIndex::new(index),
        access,
        value: Some(value),
        outcome,
        told: None,
    })
}

fn read(index: u32, value: u64) -> Line {
    access(Access::Read, index, value, Outcome::Done)
}

fn write(index: u32, value: u64) -> Line {
    access(Access::Write, index, value, Outcome::Done)
}

#[test]
fn parse_line_reads_output_of_each_tool() {
    let lines = [
        // Lines of tracefs: before 5.11, since 5.11 with a fifth flag, and with preemption
        // debugging on.
        " qemu-system-x86-613   [000] .N..  1165.185227: kvm_msr: msr_read 40000083 = 0x0",
        " qemu-system-x86-8397    [002] .....  1404.389509: kvm_msr: msr_read 40000083 = 0x0",
        "     CPU 0/KVM-16856   [007] .......   380.398695: kvm_msr: msr_read 40000083 = 0x0   ",
        "           <...>-8397    [002] .....  1404.389509: kvm_msr: msr_read 40000083 = 0x0\r",
        // perf script, with a blank in the task's name.
        "       CPU 0/KVM 1821753 [015] 4831258.258053: kvm:kvm_msr: msr_read 40000083 = 0x0",
        // trace-cmd report.
        "           <...>-43752 [001]  3615.602299: kvm_msr:              msr_read 40000083 = 0x0",
        "  kvm_msr:              msr_read 40000083 = 0x0",
        r#"{"schema":1,"access":"read","index":"0x40000083","value":"0x0"}"#,
        r#" {"time":"12:00","index":1073741955,"vcpu":{"id":[0]},"value":0,"access":"read","schema":1}"#,
    ];
    for line in lines {
        assert_eq!(parse_line(line.as_bytes()), read(0x4000_0083, 0), "{line}");
    }
}

#[test]
fn parse_line_returns_value_and_outcome_of_access() {
    let fault = "x-1 [001] 1.2: kvm_msr: msr_write 1d9 = 0xffffffffffffffff (#GP)";
    assert_eq!(
        parse_line(fault.as_bytes()),
        access(Access::Write, 0x1d9, u64::MAX, Outcome::Faulted)
    );
    let line = b"x-1 [001] 1.2: kvm_msr: msr_write ffffffff = 0x1";
    assert_eq!(parse_line(line), write(u32::MAX, 1));
    let without_value = br#"{"schema":1,"access":"write","index":"0x10"}"#;
    let Line::Access(traced) = parse_line(without_value) else {
        panic!("an access without a value is one");
    };
    assert_eq!((traced.access, traced.value), (Access::Write, None));
}

/// An event of a gate or of `msrgate exec` has the MSR under the key `msr`, and tells the gate's
/// action.
#[test]
fn parse_line_reads_events_of_gates() {
    let event = |action: &str| {
        format!(
            r#"{{"schema":1,"time":0.1,"pid":7,"vm":0,"vcpu":0,"msr":"0x8b","access":"read","reason":"filter","action":"{action}","policy":"a.toml","line":4,"digest":"00"}}"#
        )
    };
    for disposition in [
        Disposition::Denied,
        Disposition::WouldDeny,
        Disposition::Killed,
        Disposition::Allowed,
        Disposition::Value,
    ] {
        let outcome = match disposition {
            Disposition::Denied => Outcome::Faulted,
            _ => Outcome::Done,
        };
        let line = event(&disposition.to_string());
        let Line::Access(traced) = parse_line(line.as_bytes()) else {
            panic!("{line}");
        };
        assert_eq!(
            (traced.index, traced.access),
            (MsrIndex::new(0x8b), Access::Read)
        );
        assert_eq!((traced.value, traced.outcome), (None, outcome), "{line}");
    }
    let both = r#"{"schema":1,"msr":"0x8b","index":139,"access":"write","value":"0x1"}"#;
    assert_eq!(parse_line(both.as_bytes()), write(0x8b, 1));
}

#[test]
fn parse_line_distinguishes_kinds_of_lines_without_access() {
    for (line, meaning) in [
        ("", Line::Nothing),
        ("   \t", Line::Nothing),
        ("# tracer: nop", Line::Nothing),
        (
            "# entries-in-buffer/entries-written: 45/45   #P:2",
            Line::Heading {
                kept: 45,
                overwritten: 0,
            },
        ),
        (
            "# entries-in-buffer/entries-written: 45/160   #P:2",
            Line::Heading {
                kept: 45,
                overwritten: 115,
            },
        ),
        ("version = 6", Line::Nothing),
        ("cpus=8", Line::Nothing),
        ("CPU:3 [LOST 42 EVENTS]", Line::Lost(42)),
        ("CPU:3 [LOST EVENTS]", Line::Lost(1)),
        ("CPU:7 [204600 EVENTS DROPPED]", Line::Lost(204_600)),
        ("CPU:7 [EVENTS DROPPED]", Line::Lost(1)),
        (
            "x-1 [002] d.... 1404.389509: kvm_exit: vcpu 1 reason MSR_READ rip 0xffff",
            Line::Other,
        ),
        (
            "x 1 [002] 1404.389509: kvm:kvm_entry: vcpu 1, rip 0xffff",
            Line::Other,
        ),
        (
            "x-1 [001] 1.5: kvm_userspace_exit:   reason KVM_EXIT_IO (2)",
            Line::Other,
        ),
        (
            "x-1 [001] 1.5: kvm_userspace_exit:   reason 0x1d (29)",
            Line::Deflected(Access::Read),
        ),
        (
            "x 1 [001] 1.5: kvm:kvm_userspace_exit: reason KVM_EXIT_X86_WRMSR (30)",
            Line::Deflected(Access::Write),
        ),
        (r#"{"schema":1,"event":"reload"}"#, Line::Other),
        (r#"{"schema":1,"event":"vm","guarded":2}"#, Line::Guarded(2)),
        (r#"{"schema":1,"event":"vm","guarded":0}"#, Line::Other),
        (
            r#"{"schema":1,"time":1.0,"vcpu":0,"dropped":9,"held_back":300}"#,
            Line::Lost(309),
        ),
        ("##### CPU 2 buffer started ####", Line::Lost(1)),
        ("qemu 1 [0] 1.0: PERF_RECORD_LOST lost 5", Line::Lost(5)),
        (
            "io 1: x 12 [000] 100.5: PERF_RECORD_LOST lost 5",
            Line::Lost(5),
        ),
        (
            "q 1 [0] 100.5: PERF_RECORD_THROTTLE time: 1 id: 4",
            Line::Lost(1),
        ),
        ("qemu 1 [0] 1.0: PERF_RECORD_LOST: lost 5", Line::Lost(5)),
        (
            "qemu 1 [0] 1.0: PERF_RECORD_LOST_SAMPLES lost",
            Line::Lost(1),
        ),
        ("kvm_msr 1 [0] 1.0: kvm_msrs: x", Line::Other),
    ] {
        assert_eq!(parse_line(line.as_bytes()), meaning, "{line}");
    }
}

#[test]
fn parse_line_of_garbled_text_is_unreadable() {
    for line in [
        "x-1 [001] 1.2: kvm_msr: msr_read 8b",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 0x",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 12",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 0x0 (#G",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 0x0 and more",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 0x0g",
        "x-1 [001] 1.2: kvm_msr: msr_read 8b = 0x10000000000000000",
        "x-1 [001] 1.2: kvm_msr: msr_read 100000000 = 0x0",
        "x-1 [001] 1.2: kvm_msr: msr_reads 8b = 0x0",
        "x-1 [001] 1.2: kvm_msr: read 8b = 0x0",
        "x-1 [001] 1.2: kvm_ms",
        "x-1 [001] 1.2:",
        "x-1 [001] ",
        "x-1 [001] 1.2: kvm_msr : msr_read 8b = 0x0",
        // perf with a sampling period: the line stands for 4,096 events.
        "CPU 0/KVM  1234 [001] 123.456:       4096 kvm:kvm_msr: msr_read 10 = 0x0",
        "x-1 [001] 1.2: 2 kvm_msr: msr_read 10 = 0x0",
        // A hole of zeros, as a crash leaves it in a file.
        "x-1 [0] 1.5: kvm_m\0\0 [0] 1.6: kvm_msr: msr_read 10 = 0x0",
        "# tracer: nop\0\0",
        "\0\0\0",
        "# entries-in-buffer/entries-written: 45/",
        "# entries-in-buffer/entries-written:",
        "# entries-in-buffer/entries-written: 45/99999999999999999999999",
        "# entries-in-buffer/entries-written: 45/44",
        "x-1 [001] 1.2: annotated: kvm_msr msr_read 8b = 0x0",
        "word",
        "{",
        r#"{"schema":1,"acces":"read","indx":"0x8b"}"#,
        r#"{"schema":2,"msr":"0x63a","write":"0x99"}"#,
        r#"{"schema":2,"event":"reload"}"#,
        r#"{"schema":2,"event":"vm","guarded":1}"#,
        r#"{"schema":1,"guarded":1}"#,
        r#"{"schema":1,"event":"vm","guarded":-1}"#,
        r#"{"schema":2,"dropped":9}"#,
        r#"{"schema":1,"access":"write","index":"0xc0000082","value":"0x5","held_back":7}"#,
        r#"{"level":"info","message":"started"}"#,
        r#"{"schema":1,"access":"read","index":"0x8b""#,
        r#"{"schema":2,"access":"read","index":"0x8b"}"#,
        r#"{"access":"read","index":"0x8b"}"#,
        r#"{"schema":1,"access":"read","index":"0x8b","msr":"0x8c"}"#,
        r#"{"schema":1,"event":"reload","msr":"0x8c"}"#,
        r#"{"schema":1,"access":"write","msr":"0xc0000082","held_back":7}"#,
        r#"{"schema":1,"access":"exec","index":"0x8b"}"#,
        r#"{"schema":1,"access":"read"}"#,
        r#"{"schema":1,"access":"read","index":"8b"}"#,
        r#"{"schema":1,"access":"read","index":"0x+8b"}"#,
        r#"{"schema":1,"access":"read","index":"0x100000000"}"#,
        r#"{"schema":1,"access":"read","index":-1}"#,
    ] {
        assert_eq!(parse_line(line.as_bytes()), Line::Unreadable, "{line}");
    }
    let not_utf8 = b"\xff\xfe-1 [001] 1.2: kvm_msr: msr_read 8b = 0x0";
    assert_eq!(parse_line(not_utf8), read(0x8b, 0));
}

/// A line cut off anywhere before its value is never read as another access or another event.
#[test]
fn parse_line_of_truncated_access_is_unreadable() {
    for line in [
        "x-1 [001] ..... 1404.389509: kvm_msr: msr_write c0000080 = 0x",
        "CPU 0/KVM 1821753 [015] 4831258.258053: kvm:kvm_msr: msr_write 6e0 = 0x",
        r#"{"schema":1,"access":"read","index":"0x40000083","value":"0x0""#,
    ] {
        for end in 1..=line.len() {
            let cut = &line[..end];
            assert_eq!(parse_line(cut.as_bytes()), Line::Unreadable, "{cut}");
        }
    }
}

fn all(trace: &[u8], buffer: usize) -> Vec<(u64, Line)> {
    let mut lines = Lines::new(BufReader::with_capacity(buffer, trace));
    let mut all = Vec::new();
    while let Some((number, line)) = lines.next_line().unwrap() {
        all.push((number.get(), line));
    }
    assert_eq!(lines.bytes(), trace.len() as u64);
    all
}

#[test]
fn next_line_returns_same_lines_for_every_buffer_size() {
    let trace = b"# head\n\na-1 [0] 1.2: kvm_msr: msr_read 8b = 0x7\r\nwhat\na-1 [0] 1.2: kvm_msr: msr_write 10 = 0x1";
    let wanted = [
        (1, Line::Nothing),
        (2, Line::Nothing),
        (3, read(0x8b, 7)),
        (4, Line::Unreadable),
        (5, Line::CutOff),
    ];
    for buffer in 1..=trace.len() + 1 {
        assert_eq!(all(trace, buffer), wanted, "a buffer of {buffer}");
    }
    assert_eq!(all(b"", 64), []);
}

#[test]
fn next_line_of_long_line_is_unreadable_in_bounded_memory() {
    let access = b"a-1 [0] 1.2: kvm_msr: msr_read 8b = 0x7";
    let mut trace = vec![b' '; MAX_LINE_BYTES - access.len()];
    trace.extend_from_slice(access);
    trace.push(b'\n');
    assert_eq!(all(&trace, 1 << 20), [(1, read(0x8b, 7))]);
    assert_eq!(all(&trace, 100), [(1, read(0x8b, 7))]);
    trace.insert(0, b' ');
    trace.extend_from_slice(access);
    trace.push(b'\n');
    let wanted = [(1, Line::Unreadable), (2, read(0x8b, 7))];
    assert_eq!(all(&trace, 1 << 20), wanted);
    assert_eq!(all(&trace, 100), wanted);

    let endless = vec![b'x'; 40 * MAX_LINE_BYTES];
    let mut lines = Lines::new(&endless[..]);
    assert_eq!(
        lines.next_line().unwrap().map(|(_, line)| line),
        Some(Line::CutOff)
    );
    assert_eq!(lines.next_line().unwrap(), None);
}

/// A last line without a line feed counts as cut off: `0xff` may be the beginning of `0xff00`, and
/// the end `(#GP)` may be missing.
#[test]
fn next_line_without_line_feed_is_cut_off() {
    let access = b"a-1 [0] 1.2: kvm_msr: msr_write 8b = 0xff00 (#GP)\n";
    for end in 1..access.len() {
        assert_eq!(all(&access[..end], 64), [(1, Line::CutOff)], "{end}");
    }
    for other in ["a-1 [0] 1.2: kvm_entry: vcpu 0", "CPU:0 [LOST 3 EVENTS]"] {
        assert_eq!(all(other.as_bytes(), 64), [(1, Line::CutOff)], "{other}");
    }
    let object = br#"{"schema":1,"access":"read","index":"0x8b","value":"0x0"}"#;
    assert_eq!(all(object, 64), [(1, read(0x8b, 0))]);
    let part = &object[..object.len() - 1];
    assert_eq!(all(part, 64), [(1, Line::CutOff)]);
    for nothing in [&b"# head"[..], b"  ", b"version = 6"] {
        assert_eq!(all(nothing, 64), [(1, Line::Nothing)]);
    }
}

fn compiled_from(text: &str) -> Compiled {
    compile(parse(&Source::new("test.toml", text), &mut NoIncludes).unwrap()).unwrap()
}

fn compiled() -> Compiled {
    compiled_from("policy = 1\ndefault = 'deny'\n[msrs]\n0x10 = 'r'\n0xc0000080 = 'rw'")
}

/// Returns the numbers of accesses of this trace that are refused, unsure, answered and allowed.
fn fates(compiled: &Compiled, trace: &[Line]) -> [u64; 4] {
    let mut replay = Replay::new(compiled.policy(), compiled.on(None));
    let (number, _) = Lines::new(&b"\n"[..]).next_line().unwrap().unwrap();
    for line in trace {
        replay.add(number, *line);
    }
    let totals = replay.totals();
    let counted = [
        totals.refused,
        totals.unsure,
        totals.answered,
        totals.allowed,
    ];
    let listed: [u64; 4] =
        Fate::ALL.map(|fate| replay.rows(fate).iter().map(|row| row.count).sum());
    assert_eq!(counted, listed);
    counted
}

fn write_without_value(index: u32) -> Line {
    Line::Access(Traced {
        index: MsrIndex::new(index),
        access: Access::Write,
        value: None,
        outcome: Outcome::Done,
        told: None,
    })
}

/// The value alone decides if a register in user space refuses a write: bits outside of the mask
/// keep their values from reset.
#[test]
fn replay_refuses_write_outside_register_mask() {
    let register = |outside: &str| {
        let register =
            format!("register = {{ reset = '0x100', mask = '0xff', outside = '{outside}' }}");
        compiled_from(&format!(
            "policy = 1\ndefault = 'deny'\n[msrs]\n0x8b = {{ read = {{ {register} }}, write = {{ {register} }} }}"
        ))
    };
    let trace = [
        write(0x8b, 0x1ff),
        write(0x8b, 0x0ff),
        write(0x8b, 0xff00),
        write(0x8b, 0x100),
        read(0x8b, 0xff00),
        write_without_value(0x8b),
    ];
    assert_eq!(fates(&register("deny"), &trace), [2, 1, 3, 0]);
    assert_eq!(fates(&register("keep"), &trace), [0, 0, 6, 0]);
}

fn forwarded(register: &str, write: &str) -> Compiled {
    compiled_from(&format!(
        "policy = 1\ndefault = 'deny'\n[msrs]\n{register} = {{ read = 'allow', write = {write} }}"
    ))
}

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;

/// A write through a refusing mask is compared with the register of the vCPU. No earlier access
/// shows the register's value: that access may be another vCPU's, and SWAPGS changes registers,
/// too.
#[test]
fn replay_of_write_through_refusing_mask_is_unsure() {
    let deny = forwarded("IA32_STAR", "{ mask = '0xff' }");
    let trace = [read(STAR, 0x100), write(STAR, 0x100), write(STAR, 0x101)];
    assert_eq!(fates(&deny, &trace), [0, 2, 0, 1]);
    assert_eq!(fates(&deny, &[write_without_value(STAR)]), [0, 1, 0, 0]);
    let all_bits = forwarded("IA32_STAR", "{ mask = '0xffffffffffffffff' }");
    assert_eq!(fates(&all_bits, &trace), [0, 0, 2, 1]);
    let keep = forwarded("IA32_STAR", "{ mask = '0xff', outside = 'keep' }");
    assert_eq!(fates(&keep, &trace), [0, 0, 2, 1]);
}

/// A mix of bits from the write and from the register may be a non-canonical address, which KVM
/// refuses.
#[test]
fn replay_of_merged_address_is_unsure_unless_upper_bits_have_one_origin() {
    let address = write(LSTAR, 0xffff_ffff_8100_0000);
    let cases = [
        ("{ sticky = '0xff' }", [0, 0, 1, 0]),
        ("{ sticky = '0x800000000000' }", [0, 1, 0, 0]),
        ("'sticky'", [0, 1, 0, 0]),
        ("{ mask = '0xfff', outside = 'keep' }", [0, 0, 1, 0]),
        (
            "{ mask = '0x7fffffffffff', outside = 'keep' }",
            [0, 0, 1, 0],
        ),
        (
            "{ mask = '0xffff800000000000', outside = 'keep' }",
            [0, 0, 1, 0],
        ),
        (
            "{ mask = '0xffff000000000000', outside = 'keep' }",
            [0, 1, 0, 0],
        ),
    ];
    for (action, wanted) in cases {
        assert_eq!(
            fates(&forwarded("IA32_LSTAR", action), &[address]),
            wanted,
            "{action}"
        );
        // Every value of STAR is valid.
        let star = forwarded("IA32_STAR", action);
        assert_eq!(
            fates(&star, &[write(STAR, 1 << 63)]),
            [0, 0, 1, 0],
            "{action}"
        );
    }
}

/// The gate forwards no write to FMASK or `SYSENTER_CS` that sets a bit of the upper half.
#[test]
fn replay_refuses_write_that_gate_does_not_forward() {
    let (high, low) = (write(FMASK, 1 << 32), write(FMASK, 0x4_7700));
    for action in [
        "'pin'",
        "'sticky'",
        "{ mask = '0xff' }",
        "{ mask = '0xffffffffffffffff' }",
    ] {
        let compiled = forwarded("IA32_FMASK", action);
        assert_eq!(fates(&compiled, &[high])[0], 1, "{action}");
        assert_eq!(fates(&compiled, &[low])[0], 0, "{action}");
    }
    // With this mask, the upper bits of the write do not reach the register.
    let keep = forwarded("IA32_FMASK", "{ mask = '0xff', outside = 'keep' }");
    assert_eq!(fates(&keep, &[high]), [0, 0, 1, 0]);
    // The gate itself carries out an allowed access that becomes an event.
    let logged = forwarded("IA32_FMASK", "'allow', log = 'all'");
    assert_eq!(fates(&logged, &[high, low]), [1, 0, 0, 1]);
    let unlogged = forwarded("IA32_FMASK", "'allow', log = 'none'");
    assert_eq!(fates(&unlogged, &[high, low]), [0, 0, 0, 2]);
    // A refused write pins nothing.
    let pin = forwarded("IA32_FMASK", "'pin'");
    assert_eq!(fates(&pin, &[high, low, low]), [1, 0, 2, 0]);
}

#[test]
fn replay_of_writes_of_two_values_to_pinned_register_is_unsure() {
    let pin = forwarded("IA32_LSTAR", "'pin'");
    let same = [write(LSTAR, 7), write(LSTAR, 7), read(LSTAR, 0)];
    assert_eq!(fates(&pin, &same), [0, 0, 2, 1]);
    let other = [write(LSTAR, 7), write(LSTAR, 8), write(LSTAR, 7)];
    assert_eq!(fates(&pin, &other), [0, 3, 0, 0]);
    let without = write_without_value(LSTAR);
    for trace in [[write(LSTAR, 7), without], [without, write(LSTAR, 7)]] {
        assert_eq!(fates(&pin, &trace), [0, 2, 0, 0]);
    }
}

/// Beyond [`MAX_ROWS`] the replay remembers nothing about a register, so the fate of its writes is
/// unknown.
#[test]
fn replay_of_write_to_pinned_register_beyond_row_limit_is_unsure() {
    let pin = forwarded("IA32_LSTAR", "'pin'");
    let mut replay = Replay::new(pin.policy(), pin.on(None));
    let (number, _) = Lines::new(&b"\n"[..]).next_line().unwrap().unwrap();
    for index in 0..u32::try_from(MAX_ROWS).unwrap() {
        replay.add(number, read(index, 0));
    }
    replay.add(number, write(0xc000_0082, 0));
    let totals = replay.totals();
    assert_eq!((totals.unsure, totals.unlisted), (1, 1));
}

#[test]
fn replay_counts_accesses_by_msr_and_fate() {
    let trace = b"# entries-in-buffer/entries-written: 9/14   #P:2\n\
        a-1 [0] 1.2: kvm_msr: msr_read 10 = 0x7\n\
        a-1 [0] 1.2: kvm_msr: msr_write 10 = 0x8 (#GP)\n\
        a-1 [0] 1.2: kvm_msr: msr_write c0000080 = 0x9\n\
        a-1 [0] 1.2: kvm_msr: msr_write 10 = 0xa\n\
        a-1 [0] 1.2: kvm_msr: msr_write 8b = 0xb\n\
        a-1 [0] 1.2: kvm_msr: msr_write 808 = 0xc\n\
        a-1 [0] 1.2: kvm_userspace_exit: reason 0x1e (30)\n\
        a-1 [0] 1.2: kvm_entry: vcpu 0\n\
        CPU:0 [LOST 3 EVENTS]\n\
        CPU:1 [LOST 4 EVENTS]\n\
        a-1 [0] 1.2: kvm_m";
    let compiled = compiled();
    let mut replay = Replay::new(compiled.policy(), compiled.on(None));
    let mut lines = Lines::new(&trace[..]);
    while let Some((number, line)) = lines.next_line().unwrap() {
        replay.add(number, line);
    }
    let totals = replay.totals();
    assert_eq!((totals.lines, totals.allowed, totals.refused), (12, 3, 3));
    assert_eq!((totals.other, totals.lost, totals.unlisted), (1, 7, 0));
    assert_eq!(totals.deflected, [0, 1]);
    assert_eq!(totals.unreadable, 1);
    assert!(!totals.is_whole());
    assert_eq!(totals.first_unreadable[0].get(), 12);

    let row = |row: &Row| {
        let Row { count, faulted, .. } = *row;
        (row.index.get(), count, faulted, row.first.get(), row.value)
    };
    let refused: Vec<_> = replay.rows(Fate::Refused).iter().map(row).collect();
    assert_eq!(
        refused,
        [(0x10, 2, 1, 3, Some(8)), (0x8b, 1, 0, 6, Some(0xb))]
    );
    // x2APIC registers are always allowed (S3.1).
    let allowed: Vec<_> = replay.rows(Fate::Allowed).iter().map(row).collect();
    assert_eq!(
        allowed,
        [
            (0x10, 1, 0, 2, Some(7)),
            (0xc000_0080, 1, 0, 4, Some(9)),
            (0x808, 1, 0, 7, Some(0xc))
        ]
    );
}

/// While a nested guest runs, a gate refuses writes to pinned registers, whoever makes them.
#[test]
fn trace_with_nested_guest_is_not_whole_if_gate_forwards_writes() {
    let is_whole = |action: &str, lines: &[&str]| {
        let compiled = forwarded("IA32_LSTAR", action);
        let mut replay = Replay::new(compiled.policy(), compiled.on(None));
        let (number, _) = Lines::new(&b"\n"[..]).next_line().unwrap().unwrap();
        for line in lines {
            replay.add(number, parse_line(line.as_bytes()));
        }
        replay.totals().is_whole()
    };
    let write = "a-1 [0] 1.2: kvm_msr: msr_write c0000082 = 0x7";
    let nested = "a-1 [0] 1.1: kvm_nested_vmenter: rip: 0x0 vmcb: 0x0";
    assert!(is_whole("'pin'", &[write]));
    assert!(is_whole("'pin'", &[nested]));
    assert!(!is_whole("'pin'", &[nested, write]));
    assert!(!is_whole("'pin'", &[write, nested]));
    assert!(is_whole("'allow'", &[nested, write]));
}

/// A trace that was cut at a line's end has fewer events than its heading says. The missing events
/// count as lost.
#[test]
fn replay_counts_events_missing_after_heading_as_lost() {
    let lost = |trace: &[u8]| {
        let compiled = compiled();
        let mut replay = Replay::new(compiled.policy(), compiled.on(None));
        let mut lines = Lines::new(trace);
        while let Some((number, line)) = lines.next_line().unwrap() {
            replay.add(number, line);
        }
        replay.totals().lost
    };
    let access = b"a-1 [0] 1.2: kvm_msr: msr_read 10 = 0x7\n";
    let heading = |numbers: &str| format!("# entries-in-buffer/entries-written: {numbers} #P:2\n");
    let trace = |numbers: &str| [heading(numbers).as_bytes(), access].concat();
    assert_eq!(lost(&trace("1/1")), 0);
    assert_eq!(lost(&trace("45/45")), 44);
    assert_eq!(lost(&trace("45/50")), 49);
    assert_eq!(lost(&[trace("1/1"), trace("1/1")].concat()), 0);
}

/// A trace with more MSRs than [`MAX_ROWS`] is counted as a whole, in bounded memory.
#[test]
fn replay_keeps_at_most_max_rows() {
    let compiled = compiled();
    let mut replay = Replay::new(compiled.policy(), compiled.on(None));
    let mut lines = Lines::new(&b"\n"[..]);
    let (number, _) = lines.next_line().unwrap().unwrap();
    for index in 0..u32::try_from(MAX_ROWS).unwrap() + 10 {
        replay.add(number, read(index, 0));
    }
    let listed = replay.rows(Fate::Refused).len() + replay.rows(Fate::Allowed).len();
    assert_eq!(listed, MAX_ROWS);
    let totals = replay.totals();
    assert_eq!(totals.unlisted, 10);
    assert_eq!(totals.allowed + totals.refused, MAX_ROWS as u64 + 10);
}

proptest! {
    #[test]
    fn parse_line_accepts_any_bytes(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_line(&line);
    }

    #[test]
    fn parse_line_reads_printed_access_back(index: u32, is_write: bool, value: u64, is_fault: bool, task in "[^\n\r:\0]{0,16}") {
        let traced = Traced {
            index: MsrIndex::new(index),
            access: if is_write { Access::Write } else { Access::Read },
            value: Some(value),
            outcome: if is_fault { Outcome::Faulted } else { Outcome::Done },
            told: None,
        };
        let line = format!("t{task}-12 [001] ..... 1.2: kvm_msr: {traced}");
        prop_assert_eq!(parse_line(line.as_bytes()), Line::Access(traced));
    }
}
