//! Parses the fields of the event `kvm_msr`, in each form in which tools print them.

use msrgate_filter::{Access, MsrIndex};

use super::text::{decimal, hexadecimal};
use super::{Outcome, Traced};

/// Parses `msr_write c0000080 = 0xd01 (#GP)`, the kernel's own form, or the fields with their
/// names: `write=1 ecx=3221225600 data=0xd01 exception=1`, as `trace-cmd report -R` and the option
/// `fields` of tracefs print them.
pub(super) fn kvm_msr(fields: &[u8]) -> Option<Traced> {
    let fields = fields.trim_ascii_start();
    match fields.strip_prefix(b"msr_") {
        Some(fields) => printed(fields),
        None => named(fields, Zeros::Printed),
    }
}

/// Parses `(write: 1, ecx: 3221225600, data: 3329)`, as `perf trace` prints the event.
pub(super) fn of_perf_trace(fields: &[u8]) -> Option<Traced> {
    named(
        fields.strip_prefix(b"(")?.strip_suffix(b")")?,
        Zeros::LeftOut,
    )
}

fn traced(access: Access, index: u64, value: u64, outcome: Outcome) -> Option<Traced> {
    Some(Traced {
        index: MsrIndex::new(u32::try_from(index).ok()?),
        access,
        value: Some(value),
        outcome,
        told: None,
    })
}

fn printed(fields: &[u8]) -> Option<Traced> {
    let (access, fields) = match fields.strip_prefix(b"read ") {
        Some(rest) => (Access::Read, rest),
        None => (Access::Write, fields.strip_prefix(b"write ")?),
    };
    let (index, fields) = hexadecimal(fields.trim_ascii_start())?;
    let fields = fields.trim_ascii_start().strip_prefix(b"=")?;
    let fields = fields.trim_ascii_start().strip_prefix(b"0x")?;
    let (value, rest) = hexadecimal(fields)?;
    let (outcome, rest) = match rest.trim_ascii_start().strip_prefix(b"(#GP)") {
        Some(rest) => (Outcome::Faulted, rest),
        None => (Outcome::Done, rest),
    };
    is_end(rest).then(|| traced(access, index, value, outcome))?
}

/// Returns true if the text after the fields is no part of the event: nothing, the bracket of
/// `perf trace`, the end of a comment of `function_graph`, or the note of a person.
fn is_end(rest: &[u8]) -> bool {
    const NOTES: [&[u8]; 6] = [b"<", b"#", b"//", b"/*", b";", b"--"];
    let text = rest.trim_ascii_start();
    if text.is_empty() {
        return true;
    }
    let blanks = &rest[..rest.len() - text.len()];
    let is_note = NOTES.iter().any(|note| text.starts_with(note));
    matches!(text, b")" | b"*/")
        || !blanks.is_empty() && is_note
        || (blanks.len() > 1 || blanks == b"\t") && is_remark(text)
}

/// Returns true if a text that stands apart from the fields is the remark of a person without a
/// mark, such as `EFER.LME`, and no part of the event or of another line.
fn is_remark(text: &[u8]) -> bool {
    let is_of_event = |byte: &u8| matches!(byte, b':' | b'[' | b']' | b'=' | b'(' | b')');
    text.first().is_some_and(u8::is_ascii_alphabetic) && !text.iter().any(is_of_event)
}

/// The way in which a tool prints fields whose value is 0: it prints them, or leaves them out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Printed,
    LeftOut,
}

/// Parses pairs of a name, `=` or `:`, and a number.
fn named(mut text: &[u8], zeros: Zeros) -> Option<Traced> {
    let mut fields: [(&[u8], Option<u64>); 4] =
        [b"write".as_slice(), b"ecx", b"data", b"exception"].map(|name| (name, None));
    loop {
        text = text.trim_ascii_start();
        if text.is_empty() || text == b"*/" {
            break;
        }
        let end = text.iter().position(|byte| matches!(byte, b'=' | b':'))?;
        let name = text[..end].trim_ascii();
        let (value, rest) = number(text[end + 1..].trim_ascii_start())?;
        let (_, slot) = fields.iter_mut().find(|(known, _)| *known == name)?;
        if slot.replace(value).is_some() {
            return None;
        }
        text = rest.trim_ascii_start();
        text = text.strip_prefix(b",").unwrap_or(text);
    }
    let [write, index, value, exception] = fields.map(|(_, value)| value);
    let of = |value: Option<u64>| value.or((zeros == Zeros::LeftOut).then_some(0));
    // Kernels before 2.6.35 have no field `exception`.
    let outcome = match exception {
        None | Some(0) => Outcome::Done,
        Some(_) => Outcome::Faulted,
    };
    let access = match of(write)? {
        0 => Access::Read,
        _ => Access::Write,
    };
    traced(access, of(index)?, of(value)?, outcome)
}

/// Parses `0xd01`, `3329`, `true`, or a number that is followed by itself in another base, in
/// brackets: `0xd01 (3329)`.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = match text.strip_prefix(b"0x") {
        Some(digits) => hexadecimal(digits)?,
        None if text.starts_with(b"true") => (1, &text[4..]),
        None if text.starts_with(b"false") => (0, &text[5..]),
        None => decimal(text)?,
    };
    if rest.first().is_some_and(u8::is_ascii_alphanumeric) {
        return None;
    }
    let other = rest.trim_ascii_start().strip_prefix(b"(");
    let end = other.and_then(|other| other.iter().position(|byte| *byte == b')'));
    match (other, end) {
        (Some(other), Some(end)) => Some((number, &other[end + 1..])),
        (Some(_), None) => None,
        (None, _) => Some((number, rest)),
    }
}
