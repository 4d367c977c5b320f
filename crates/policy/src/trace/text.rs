//! Parses the kernel's own text of events.
//!
//! tracefs and `trace-cmd report` print
//! `TASK-PID [CPU] FLAGS SECONDS: kvm_msr: msr_read 8b = 0x0 (#GP)`; `perf script` calls the event
//! `kvm:kvm_msr:`, and `perf trace` prints `kvm:kvm_msr(ecx: 139)`. The text before the event's
//! name differs by tool, by version and by options. [`task`](super::task) reads the task in it.

use memchr::{memchr_iter, memmem};
use msrgate_filter::Access;

use super::fields::{kvm_msr, of_perf_trace};
use super::mail::unquoted;
use super::{Line, graph};

/// Parses a line without leading and trailing blanks.
pub(super) fn parse(line: &[u8]) -> Line {
    let line = unquoted(line);
    let mut timestamp = None;
    for colon in memchr_iter(b':', line) {
        let (before, after) = (&line[..colon], &line[colon + 1..]);
        if is_event(before, b"kvm_msr") {
            let access = kvm_msr(after).filter(|_| stands_for_one(before));
            return access.map_or(Line::Unreadable, Line::Access);
        }
        if is_event(before, b"kvm_userspace_exit") {
            return userspace_exit(after).map_or(Line::Other, Line::Deflected);
        }
        let has_digit = before.last().is_some_and(u8::is_ascii_digit);
        if timestamp.is_none() && has_digit && starts_blank(after) {
            timestamp = Some(after);
        }
    }
    match timestamp {
        _ if line.starts_with(b"#") => comment(line),
        _ if has_beginning(line, b"PERF_RECORD_LOST") => Line::Lost(last_number(line).unwrap_or(1)),
        _ if has_beginning(line, b"PERF_RECORD_THROTTLE") => Line::Lost(1),
        // The event has an unknown shape, and may be an access.
        Some(event) if has_word(event, b"kvm_msr") => Line::Unreadable,
        Some(event) if has_beginning(event, b"kvm_nested_") => Line::Nested,
        // A complete event has a name after its time, and a blank after the name.
        Some(event) if memchr_iter(b':', event).any(|at| starts_blank(&event[at + 1..])) => {
            Line::Other
        }
        Some(_) => Line::Unreadable,
        None => without_time(line),
    }
}

/// Parses a line in which no time stands before a colon: of `perf trace`, of the tracer
/// `function_graph`, and between events.
fn without_time(line: &[u8]) -> Line {
    if let Some(fields) = after(line, b"kvm:kvm_msr").filter(|fields| fields.starts_with(b"(")) {
        return of_perf_trace(fields).map_or(Line::Unreadable, Line::Access);
    }
    if has_word(line, b"kvm_msr") {
        return Line::Unreadable;
    }
    if let Some(fields) = after(line, b"kvm:kvm_userspace_exit(") {
        return userspace_exit(fields).map_or(Line::Other, Line::Deflected);
    }
    if graph::is_function(line) || is_of_perf_trace(line) {
        return Line::Other;
    }
    bare_event(line).unwrap_or_else(|| between_events(line))
}

/// Parses an event of KVM without a head, `kvm_exit: reason MSR_READ rip 0x1000`, as people quote
/// it.
fn bare_event(line: &[u8]) -> Option<Line> {
    let event = line.strip_prefix(b"kvm:").unwrap_or(line);
    let name = event
        .iter()
        .position(|byte| !(byte.is_ascii_lowercase() || *byte == b'_'))?;
    if !event.starts_with(b"kvm_") || event[name] != b':' || !starts_blank(&event[name + 1..]) {
        return None;
    }
    Some(if event.starts_with(b"kvm_nested_") {
        Line::Nested
    } else {
        Line::Other
    })
}

/// Returns true if a line is another event of `perf trace`, or a system call: `0.041 ( 0.001 ms):
/// qemu/12 ioctl(fd: 9) = 0`.
fn is_of_perf_trace(line: &[u8]) -> bool {
    let is_of_time = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
    let time = &line[..line.iter().take_while(is_of_time).count()];
    let has_time = time.first().is_some_and(u8::is_ascii_digit) && time.contains(&b'.');
    has_time
        && starts_blank(&line[time.len()..])
        && (line.ends_with(b")") || memmem::find(line, b") = ").is_some())
}

/// Returns true if `before`, the text before a colon, ends in this event's name.
fn is_event(before: &[u8], name: &[u8]) -> bool {
    let is_part_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    before
        .strip_suffix(name)
        .is_some_and(|rest| !rest.last().is_some_and(is_part_of_name))
}

/// Returns true if the line stands for one event. `perf script` may print a sampling period between
/// the time and the event's name. If the period is above 1, the line stands for several events.
fn stands_for_one(before: &[u8]) -> bool {
    let name = before.strip_suffix(b"kvm_msr").unwrap_or(before);
    let head = name.strip_suffix(b"kvm:").unwrap_or(name).trim_ascii_end();
    let digits = head.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let (head, period) = head.split_at(head.len() - digits.count());
    !head.trim_ascii_end().ends_with(b":") || matches!(period, b"" | b"1")
}

fn starts_blank(text: &[u8]) -> bool {
    matches!(text.first(), Some(b' ' | b'\t'))
}

/// Returns the number at the beginning of `text`, and the rest. `None`: there is no digit, or the
/// number has more than 64 bits.
pub(super) fn hexadecimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    let mut digits = 0;
    for &byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => break,
        };
        if number >> 60 != 0 {
            return None;
        }
        number = number << 4 | u64::from(digit);
        digits += 1;
    }
    (digits > 0).then(|| (number, &text[digits..]))
}

/// Parses `reason KVM_EXIT_X86_RDMSR (29)`, `reason=29 errno=0` and `reason: 29`. In some kernels
/// and tools the name is missing or a number.
fn userspace_exit(fields: &[u8]) -> Option<Access> {
    let named = [&b"reason="[..], b"reason: "]
        .into_iter()
        .find_map(|name| decimal(after(fields, name)?));
    let number = match named {
        Some((number, _)) => Some(number),
        None if fields.ends_with(b"(29)") => Some(29),
        None if fields.ends_with(b"(30)") => Some(30),
        None => None,
    };
    match number? {
        29 => Some(Access::Read),
        30 => Some(Access::Write),
        _ => None,
    }
}

/// Parses a comment of tracefs. `##### CPU 1 buffer started ####` occurs only if the ring buffer
/// of a processor has overrun (kernel/trace/trace.c).
fn comment(line: &[u8]) -> Line {
    if line.starts_with(b"##### CPU") && after(line, b"buffer started").is_some() {
        return Line::Lost(1);
    }
    match after(line, b"entries-written:") {
        Some(numbers) => heading(numbers).unwrap_or(Line::Unreadable),
        None => Line::Nothing,
    }
}

/// Returns true if some name in the text begins with `word`.
fn has_beginning(text: &[u8], word: &[u8]) -> bool {
    memmem::find_iter(text, word).any(|at| {
        let before = text[..at].last();
        before.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
    })
}

/// Returns true if the text contains `word`, not as a part of another name.
fn has_word(text: &[u8], word: &[u8]) -> bool {
    let ends =
        |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    memmem::find_iter(text, word)
        .any(|at| ends(text[..at].last()) && ends(text.get(at + word.len())))
}

/// Returns the number at the end of a line.
fn last_number(line: &[u8]) -> Option<u64> {
    let digits = line.iter().rev().take_while(|byte| byte.is_ascii_digit());
    decimal(&line[line.len() - digits.count()..]).map(|(number, _)| number)
}

/// Parses the numbers of tracefs's heading, `# entries-in-buffer/entries-written: 45/160   #P:2`.
fn heading(numbers: &[u8]) -> Option<Line> {
    let (kept, rest) = decimal(numbers.trim_ascii_start())?;
    let (written, _) = decimal(rest.strip_prefix(b"/")?)?;
    let overwritten = written.checked_sub(kept)?;
    Some(Line::Heading { kept, overwritten })
}

/// Parses lines without a time: reports of lost events, and headings of `trace-cmd`.
fn between_events(line: &[u8]) -> Line {
    // tracefs prints `[LOST 5 EVENTS]`, and trace-cmd prints `[5 EVENTS DROPPED]`. The number may
    // be missing. perf prints `LOST 5 events!`, and at its end `Processed 9 events and lost 5 chunks!`.
    for (before, behind) in [
        (&b"[LOST "[..], &b"EVENTS]"[..]),
        (b"[", b"EVENTS DROPPED]"),
        (b"LOST ", b"events!"),
        (b"events and lost ", b"chunks!"),
    ] {
        let number = memmem::find(line, behind).and_then(|end| after(&line[..end], before));
        if let Some(number) = number {
            return Line::Lost(decimal(number).map_or(1, |(lost, _)| lost));
        }
    }
    let is_heading = [&b"version = "[..], b"cpus="]
        .iter()
        .any(|heading| line.starts_with(heading));
    if is_heading {
        Line::Nothing
    } else {
        Line::Unreadable
    }
}

/// Returns the part of `text` after the first occurrence of `word`.
fn after<'t>(text: &'t [u8], word: &[u8]) -> Option<&'t [u8]> {
    let at = text.windows(word.len()).position(|part| part == word)?;
    Some(&text[at + word.len()..])
}

pub(super) fn decimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((number, &text[digits..]))
}
