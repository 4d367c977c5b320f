//! Parses the kernel's own text of events.
//!
//! tracefs and `trace-cmd report` print
//! `TASK-PID [CPU] FLAGS SECONDS: kvm_msr: msr_read 8b = 0x0 (#GP)`; `perf script` calls the event
//! `kvm:kvm_msr:`. The text before the event's name is ignored, because it differs by tool, by
//! version and by options.

use memchr::{memchr_iter, memmem};
use msrgate_filter::{Access, MsrIndex};

use super::{Line, Outcome, Traced};

/// Parses a line without leading and trailing blanks.
pub(super) fn parse(line: &[u8]) -> Line {
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
        None => between_events(line),
    }
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

/// Parses `msr_write c0000080 = 0xd01`, followed by `(#GP)` or nothing.
fn kvm_msr(fields: &[u8]) -> Option<Traced> {
    let fields = fields.trim_ascii_start().strip_prefix(b"msr_")?;
    let (access, fields) = match fields.strip_prefix(b"read ") {
        Some(rest) => (Access::Read, rest),
        None => (Access::Write, fields.strip_prefix(b"write ")?),
    };
    let (index, fields) = hexadecimal(fields.trim_ascii_start())?;
    let fields = fields.trim_ascii_start().strip_prefix(b"=")?;
    let fields = fields.trim_ascii_start().strip_prefix(b"0x")?;
    let (value, rest) = hexadecimal(fields)?;
    Some(Traced {
        index: MsrIndex::new(u32::try_from(index).ok()?),
        access,
        value: Some(value),
        outcome: match rest {
            b"" => Outcome::Done,
            rest if rest.trim_ascii_start() == b"(#GP)" => Outcome::Faulted,
            _ => return None,
        },
        told: None,
    })
}

/// Returns the number at the beginning of `text`, and the rest. `None`: there is no digit, or the
/// number has more than 64 bits.
fn hexadecimal(text: &[u8]) -> Option<(u64, &[u8])> {
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

/// Parses `reason KVM_EXIT_X86_RDMSR (29)`. In some kernels and tools the name is missing or a
/// number.
fn userspace_exit(fields: &[u8]) -> Option<Access> {
    match fields {
        fields if fields.ends_with(b"(29)") => Some(Access::Read),
        fields if fields.ends_with(b"(30)") => Some(Access::Write),
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
    // be missing.
    for (before, behind) in [
        (&b"[LOST "[..], &b"EVENTS]"[..]),
        (b"[", b"EVENTS DROPPED]"),
    ] {
        if let Some(number) = line.strip_suffix(behind)
            && line.starts_with(b"CPU:")
            && let Some(number) = after(number, before)
        {
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

/// Returns the text after the first `word`.
fn after<'t>(text: &'t [u8], word: &[u8]) -> Option<&'t [u8]> {
    let at = text.windows(word.len()).position(|part| part == word)?;
    Some(&text[at + word.len()..])
}

fn decimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((number, &text[digits..]))
}
