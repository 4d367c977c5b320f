//! Parses one message of a kernel about an MSR.

use msrgate_filter::{Access, MsrIndex};

use crate::import::hexadecimal;

/// The wording of a message, which differs by kernel and by the part of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// A message that KVM refused the access: `unhandled rdmsr: 0x1c9`, `unhandled wrmsr: 0x391
    /// data 0x1`.
    Refused,
    /// A message that KVM ignored the access: `ignored rdmsr: 0x1c9 data 0x0`.
    Ignored,
    /// A message in the form of a function call: `Unhandled WRMSR(0x186) = 0x130079`, `Unhandled
    /// RDMSR(0x40000021)`.
    Call,
    /// A message about a performance counter: `disabled perfctr wrmsr: 0x186 data 0x1`,
    /// `unimplemented perfctr wrmsr: …`.
    Perfctr,
    /// A message of KVM's Hyper-V emulation: `Hyper-V uhandled wrmsr: 0x40000004 data 0x94`, and
    /// other spellings.
    HyperV,
    /// A message about a write that KVM does not implement: `unimplemented wrmsr: 0xc0010115 data
    /// 0x0`, `unimplemented HWCR wrmsr: 0x80`.
    Unimplemented,
    /// A message that a write has no effect: `MSR_IA32_DEBUGCTLMSR 0x1, nop`.
    NoEffect,
    /// A message of a guest's own kernel: `unchecked MSR access error: WRMSR to 0x48 (tried to
    /// write 0x4)`.
    Guest,
}

/// A message of a kernel about an access of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) index: MsrIndex,
    pub(super) access: Access,
    pub(super) wording: Wording,
    /// The value that the guest tried to write, if the message has it.
    pub(super) value: Option<u64>,
    /// True for an access at the reset vector. A firmware's first instruction is a jump, so the VMM
    /// itself makes the access, before the vCPU runs or while it resets the vCPU.
    pub(super) is_reset: bool,
}

/// Registers that messages call by name, in small letters.
const NAMES: [(&str, u32); 7] = [
    ("msr_ia32_debugctlmsr", 0x1d9),
    ("ia32_debugctlmsr", 0x1d9),
    ("msr_ia32_debugctl", 0x1d9),
    ("ia32_debugctl", 0x1d9),
    ("msr_ia32_mcg_status", 0x17a),
    ("msr_ia32_mcg_ctl", 0x17b),
    ("msr_ia32_mc0_status", 0x401),
];

/// The words before a message of a guest's kernel, in small letters.
pub(super) const OF_GUEST: &str = "unchecked msr access error:";

/// Returns true if a text of small letters may contain a message of KVM, or the beginning of one.
pub(super) fn is_of_kvm(text: &str) -> bool {
    text.contains("kvm") || text.contains("vcpu")
}

/// The messages of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Messages {
    /// The messages that could be read, in their order.
    pub(super) read: Vec<Message>,
    /// The end of the last index, or of the last word, of the messages that were read.
    pub(super) end: usize,
    /// True if the text has a further message, whose words are KVM's or those of a guest's kernel,
    /// but which could not be read.
    pub(super) has_unread: bool,
}

/// The words by which messages are found, in small letters. Each message has one of them.
const SIGNS: [&str; 4] = [OF_GUEST, "rdmsr", "wrmsr", NOP];

/// The end of a message that a write has no effect.
const NOP: &str = ", nop";

/// Parses all messages in a text of small letters.
pub(super) fn parse(text: &str) -> Messages {
    let places = |sign: &'static str| text.match_indices(sign);
    let mut signs: Vec<_> = SIGNS.into_iter().flat_map(places).collect();
    signs.sort_unstable();
    let is_of_kvm = is_of_kvm(text);
    let mut messages = Messages::default();
    for (at, sign) in signs {
        let before = &text[messages.end..at];
        let after = &text[at + sign.len()..];
        let message = match sign {
            OF_GUEST => of_guest(after.trim_start()),
            _ if !is_of_kvm => None,
            NOP => of_kvm(before, without_effect(before)),
            _ => of_kvm(before, by_word(before, sign, after)),
        };
        if let Some(message) = message {
            messages.read.push(message);
            messages.end = at + sign.len();
        } else {
            messages.has_unread |= sign == OF_GUEST || has_wording(before, after);
        }
    }
    messages
}

/// Returns a message of KVM, with the place of the access that stands before the message.
fn of_kvm(before: &str, message: Option<Message>) -> Option<Message> {
    let is_reset = is_at_reset_vector(before);
    message.map(|message| Message {
        is_reset,
        ..message
    })
}

/// Parses a message whose word is `rdmsr` or `wrmsr`.
fn by_word(before: &str, word: &str, after: &str) -> Option<Message> {
    let access = match word {
        "rdmsr" => Access::Read,
        _ => Access::Write,
    };
    by_name(before, access, after).or_else(|| by_index(before, access, after))
}

/// Returns true if the words before and behind a `rdmsr` or `wrmsr` are those of a message. A text
/// about KVM may say `an ignored wrmsr` without a number.
fn has_wording(before: &str, after: &str) -> bool {
    let behind = after.trim_start_matches(|next: char| !next.is_ascii_alphanumeric());
    let has_number = behind.starts_with(|next: char| next.is_ascii_digit());
    has_number && wording(before.trim_end(), Form::Colon).is_some()
}

/// Parses `wrmsr to 0x48 (tried to write 0x0000000000000004) at rip: …` and `rdmsr from 0x1ad at …`.
fn of_guest(text: &str) -> Option<Message> {
    let (access, text) = match text.strip_prefix("rdmsr from") {
        Some(rest) => (Access::Read, rest),
        None => (Access::Write, text.strip_prefix("wrmsr to")?),
    };
    let (index, rest) = index(text.trim_start())?;
    let value = rest.trim_start().strip_prefix("(tried to write");
    Some(Message {
        index,
        access,
        wording: Wording::Guest,
        value: value.and_then(number),
        is_reset: false,
    })
}

/// Parses `msr_ia32_debugctlmsr 0x1`, the text before `, nop`.
fn without_effect(before: &str) -> Option<Message> {
    let mut words = before.split_whitespace().rev();
    let (value, name) = (words.next()?, words.next()?);
    let (_, index) = NAMES.into_iter().find(|(known, _)| *known == name)?;
    Some(write(index, Wording::NoEffect, number(value)))
}

/// Parses `unimplemented hwcr wrmsr: 0x80`, which has the value in place of the index.
fn by_name(before: &str, access: Access, after: &str) -> Option<Message> {
    let named = [
        ("unimplemented hwcr", 0xc001_0015),
        ("unimplemented mmio_conf_base", 0xc001_0058),
    ];
    let before = before
        .strip_suffix(' ')
        .filter(|_| access == Access::Write)?;
    let (_, index) = named
        .into_iter()
        .find(|(words, _)| before.ends_with(words))?;
    Some(write(
        index,
        Wording::Unimplemented,
        number(after.strip_prefix(':')?),
    ))
}

const fn write(index: u32, wording: Wording, value: Option<u64>) -> Message {
    Message {
        index: MsrIndex::new(index),
        access: Access::Write,
        wording,
        value,
        is_reset: false,
    }
}

/// The form in which a message gives an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The index follows a colon or a blank: `rdmsr: 0x1c9`.
    Colon,
    /// The index stands in brackets: `RDMSR(0x1c9)`.
    Call,
}

/// Parses `unhandled rdmsr: 0x1c9`, `unhandled wrmsr(0x1d9) = 0x1`, and messages of that form. A
/// report that was copied by hand may lack the colon.
fn by_index(before: &str, access: Access, after: &str) -> Option<Message> {
    let (form, text) = if let Some(index) = after.strip_prefix('(') {
        (Form::Call, index)
    } else {
        let index = after.strip_prefix(':').unwrap_or(after);
        let is_apart = index.len() < after.len() || index.starts_with(char::is_whitespace);
        (Form::Colon, is_apart.then(|| index.trim_start())?)
    };
    let wording = wording(before.trim_end(), form)?;
    let (index, rest) = match index(text) {
        None if wording == Wording::Refused => index_without_mark(text)?,
        other => other?,
    };
    let rest = rest.strip_prefix(')').unwrap_or(rest);
    let text = rest.trim_start();
    let value = text.strip_prefix("data").or_else(|| text.strip_prefix('='));
    let value = value.and_then(number);
    // The kernel always prints the value. Where other text closes the message, a person has quoted
    // a part of it: ``the cause is `Unhandled WRMSR(0xc0010007)`, which …``.
    let is_closed = rest.starts_with(|next: char| next.is_ascii_punctuation() && next != '=');
    if form == Form::Call && access == Access::Write && value.is_none() && is_closed {
        return None;
    }
    Some(Message {
        index,
        access,
        wording,
        value,
        is_reset: false,
    })
}

/// Returns the wording of a message by the words before `rdmsr` or `wrmsr`.
fn wording(before: &str, form: Form) -> Option<Wording> {
    let ends = |words: &[&str]| words.iter().find_map(|word| before.strip_suffix(word));
    // `uhandled` is the spelling of kernels before 5.7.
    if let Some(rest) = ends(&["unhandled", "uhandled", "unimplemented"])
        && rest.trim_end().ends_with("hyper-v")
    {
        return Some(Wording::HyperV);
    }
    let wordings: [(&[&str], Wording); 4] = [
        (
            &["disabled perfctr", "unimplemented perfctr"],
            Wording::Perfctr,
        ),
        (&["unimplemented"], Wording::Unimplemented),
        (&["ignored"], Wording::Ignored),
        (
            &["unhandled"],
            match form {
                Form::Call => Wording::Call,
                Form::Colon => Wording::Refused,
            },
        ),
    ];
    let found = wordings
        .into_iter()
        .find(|(words, _)| ends(words).is_some());
    found.map(|(_, wording)| wording)
}

/// Parses the index of an MSR. No letter may follow the index directly, so that no digit of it is
/// missing.
fn index(text: &str) -> Option<(MsrIndex, &str)> {
    let (index, rest) = hexadecimal(text)?;
    let is_cut = rest.starts_with(|next: char| next.is_ascii_alphanumeric());
    let index = u32::try_from(index).ok().filter(|_| !is_cut)?;
    Some((MsrIndex::new(index), rest))
}

/// Parses an index without `0x`, as the first kernels with KVM print it: `unhandled rdmsr: 9b`. A
/// word such as `add` has no digit, and other words do not end here or before `data`.
fn index_without_mark(text: &str) -> Option<(MsrIndex, &str)> {
    let end = text.find(|next: char| !next.is_ascii_hexdigit());
    let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
    let has_end = rest.trim().is_empty() || rest.trim_start().starts_with("data ");
    let is_number = has_end && digits.contains(|digit: char| digit.is_ascii_digit());
    let index = u32::from_str_radix(digits, 16).ok().filter(|_| is_number)?;
    Some((MsrIndex::new(index), rest))
}

/// Parses a value, which kernels before 3.4 print without `0x`.
fn number(text: &str) -> Option<u64> {
    let digits = text.trim_start();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let end = digits.find(|digit: char| !digit.is_ascii_hexdigit());
    u64::from_str_radix(&digits[..end.unwrap_or(digits.len())], 16).ok()
}

/// Returns true if the text before a message says that the access is at the reset vector.
fn is_at_reset_vector(before: &str) -> bool {
    let rip = before.rsplit_once("rip: ").map(|(_, rip)| hexadecimal(rip));
    matches!(rip, Some(Some((0xfff0, _))))
}
