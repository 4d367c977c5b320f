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

/// Parses a message in a text of small letters.
pub(super) fn parse(text: &str) -> Option<Message> {
    if let Some((_, message)) = text.split_once(OF_GUEST) {
        return of_guest(message.trim_start());
    }
    if !is_of_kvm(text) {
        return None;
    }
    let message = without_effect(text)
        .or_else(|| by_name(text))
        .or_else(|| by_index(text))?;
    let is_reset = is_at_reset_vector(text);
    Some(Message {
        is_reset,
        ..message
    })
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

/// Parses `msr_ia32_debugctlmsr 0x1, nop`.
fn without_effect(text: &str) -> Option<Message> {
    let (before, _) = text.split_once(", nop")?;
    let mut words = before.split_whitespace().rev();
    let (value, name) = (words.next()?, words.next()?);
    let (_, index) = NAMES.into_iter().find(|(known, _)| *known == name)?;
    Some(write(index, Wording::NoEffect, number(value)))
}

/// Parses `unimplemented hwcr wrmsr: 0x80`, which has the value in place of the index.
fn by_name(text: &str) -> Option<Message> {
    let named = [
        ("unimplemented hwcr wrmsr:", 0xc001_0015),
        ("unimplemented mmio_conf_base wrmsr:", 0xc001_0058),
    ];
    let found = |(words, index)| Some((text.split_once(words)?.1, index));
    let (value, index) = named.into_iter().find_map(found)?;
    Some(write(index, Wording::Unimplemented, number(value)))
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

/// Parses `unhandled rdmsr: 0x1c9`, `unhandled wrmsr(0x1d9) = 0x1`, and messages of that form.
fn by_index(text: &str) -> Option<Message> {
    let (at, access) = match (text.find("rdmsr"), text.find("wrmsr")) {
        (Some(at), _) => (at, Access::Read),
        (None, at) => (at?, Access::Write),
    };
    let after = &text[at + "rdmsr".len()..];
    let (is_call, after) = match after.strip_prefix('(') {
        Some(index) => (true, index),
        None => (false, after.strip_prefix(':')?.trim_start()),
    };
    let wording = wording(text[..at].trim_end(), is_call)?;
    let (index, rest) = index(after)?;
    let value = rest.trim_start_matches(')').trim_start();
    let value = value
        .strip_prefix("data")
        .or_else(|| value.strip_prefix('='));
    Some(Message {
        index,
        access,
        wording,
        value: value.and_then(number),
        is_reset: false,
    })
}

/// Returns the wording of a message by the words before `rdmsr` or `wrmsr`.
fn wording(before: &str, is_call: bool) -> Option<Wording> {
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
            if is_call {
                Wording::Call
            } else {
                Wording::Refused
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

/// Parses a value, which kernels before 3.4 print without `0x`.
fn number(text: &str) -> Option<u64> {
    let digits = text.trim_start();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let end = digits.find(|digit: char| !digit.is_ascii_hexdigit());
    u64::from_str_radix(&digits[..end.unwrap_or(digits.len())], 16).ok()
}

fn is_at_reset_vector(text: &str) -> bool {
    let rip = text.split_once("rip: ").map(|(_, rip)| hexadecimal(rip));
    matches!(rip, Some(Some((0xfff0, _))))
}
