//! Names without the decorations of code bases: `X86X_MSR_TSC`, `MSR_K8_LSTAR` and `IA32_KERNEL_GSBASE` are the names
//! that other code bases use for `TSC`, `LSTAR` and `KERNEL_GS_BASE`. Macros with a number, such as
//! `MSR_IA32_MCx_CTL(2)`, are names of this kind, too.

use std::sync::LazyLock;

use super::super::Register;
use super::super::names::BY_NAME;
use super::super::table::TABLE;
use super::name_at;

/// The parts with which code bases begin the names of registers, beside the register's own name.
const DECORATIONS: [&[u8]; 15] = [
    b"CORE::X86::MSR::",
    b"X86X_",
    b"BX_",
    b"SMSR_",
    b"KIA32",
    b"X86_",
    b"X64_",
    b"MSR_",
    b"IA32_",
    b"AMD64_",
    b"AMD_",
    b"INTEL_",
    b"INTC_",
    b"K7_",
    b"K8_",
];

/// The stem of each name, and the row of its register in the table of registers, sorted by stem.
static STEMS: LazyLock<Vec<(Vec<u8>, u16)>> = LazyLock::new(|| {
    let stems = BY_NAME.iter().map(|place| (stem(name_at(*place)), place.0));
    let mut stems: Vec<_> = stems.collect();
    stems.sort_unstable();
    stems.dedup();
    stems
});

/// The largest size of a macro's name in bytes. No code base has a longer one.
const MACRO_LIMIT: usize = 64;

/// Returns the registers that have a name with the same stem as `name`, sorted by index. If there are
/// none, returns the registers that `name` stands for as a macro with a number.
pub(super) fn alike(name: &str) -> Vec<&'static Register> {
    let found = with_stem(&stem(name));
    if !found.is_empty() {
        return found;
    }
    let expanded = expanded(pasted(name));
    let mut found: Vec<_> = expanded
        .iter()
        .flat_map(|name| with_stem(&stem(name)))
        .collect();
    found.sort_by_key(|register| register.index);
    found.dedup();
    found
}

/// Returns the registers that have a name with this stem, sorted by index.
fn with_stem(wanted: &[u8]) -> Vec<&'static Register> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let start = STEMS.partition_point(|(stem, _)| stem.as_slice() < wanted);
    let same = STEMS[start..].iter().take_while(|(stem, _)| stem == wanted);
    same.map(|(_, row)| &TABLE[usize::from(*row)]).collect()
}

/// Returns the text without the blanks and punctuation that surround a name in prose or code:
/// `IA32_XSS` for `` `IA32_XSS`, ``. A macro keeps its `)`, and a range without an end its `..`.
pub(super) fn pasted(text: &str) -> &str {
    let text = text.trim();
    let start = ['`', '\'', '"', '(', '<', '[', '{', '&', '*'];
    let text = text.trim_start_matches(start).trim_start();
    if text.ends_with("..") {
        return text;
    }
    let is_end = |letter: char| {
        let closes = letter == ')' && !text.contains('(');
        closes || letter.is_whitespace() || "`'\",;.:>]}".contains(letter)
    };
    text.trim_end_matches(is_end)
}

/// Returns the names that a macro with a number may stand for: `IA32_MC2_CTL` for `IA32_MCx_CTL(2)`.
/// If the macro has no `x`, the number may follow any of its words: `RTIT_ADDR_B(1)` is
/// `RTIT_ADDR1_B` or `RTIT_ADDR_B1`, for example.
fn expanded(name: &str) -> Vec<String> {
    let Some((name, number)) = name.split_once('(') else {
        return Vec::new();
    };
    let number = number.strip_suffix(')').unwrap_or(number).trim();
    let number = match number.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => number.parse().ok(),
    };
    let (Some(number), true) = (number, name.len() <= MACRO_LIMIT) else {
        return Vec::new();
    };
    let name = name.trim_end();
    let replaced = name.match_indices('x');
    let replaced: Vec<String> = replaced
        .map(|(place, _)| format!("{}{number}{}", &name[..place], &name[place + 1..]))
        .collect();
    if !replaced.is_empty() {
        return replaced;
    }
    let ends = name.match_indices('_').map(|(place, _)| place);
    ends.chain([name.len()])
        .map(|place| format!("{}{number}{}", &name[..place], &name[place..]))
        .collect()
}

/// Returns a name in capitals without its decorations and without `_`.
fn stem(name: &str) -> Vec<u8> {
    let capitals = pasted(name).to_ascii_uppercase();
    let mut rest = capitals.as_bytes();
    while let Some(shorter) = DECORATIONS.iter().find_map(|part| rest.strip_prefix(*part)) {
        rest = shorter;
    }
    let rest = rest.strip_suffix(b"_MSR").unwrap_or(rest);
    rest.iter().copied().filter(|byte| *byte != b'_').collect()
}
