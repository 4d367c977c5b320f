//! Names without the decorations of code bases: `X86X_MSR_TSC`, `MSR_K8_LSTAR` and `IA32_KERNEL_GSBASE` are the names
//! that other code bases use for `TSC`, `LSTAR` and `KERNEL_GS_BASE`.

use std::sync::LazyLock;

use super::super::Register;
use super::super::names::BY_NAME;
use super::super::table::TABLE;
use super::name_at;

/// The parts with which code bases begin the names of registers, beside the register's own name.
const DECORATIONS: [&[u8]; 12] = [
    b"CORE::X86::MSR::",
    b"X86X_",
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

/// Returns the registers that have a name with the same stem as `name`, sorted by index.
pub(super) fn alike(name: &str) -> Vec<&'static Register> {
    let wanted = stem(name);
    if wanted.is_empty() {
        return Vec::new();
    }
    let start = STEMS.partition_point(|(stem, _)| *stem < wanted);
    let same = STEMS[start..]
        .iter()
        .take_while(|(stem, _)| *stem == wanted);
    same.map(|(_, row)| &TABLE[usize::from(*row)]).collect()
}

/// Returns a name in capitals without its decorations and without `_`.
fn stem(name: &str) -> Vec<u8> {
    let capitals = name.trim().to_ascii_uppercase();
    let mut rest = capitals.as_bytes();
    while let Some(shorter) = DECORATIONS.iter().find_map(|part| rest.strip_prefix(*part)) {
        rest = shorter;
    }
    let rest = rest.strip_suffix(b"_MSR").unwrap_or(rest);
    rest.iter().copied().filter(|byte| *byte != b'_').collect()
}
