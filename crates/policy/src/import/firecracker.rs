//! Custom CPU templates of Firecracker.
//!
//! `{"msr_modifiers":[{"addr":"0x10a","bitmap":"0b00x1…"}]}`: before the guest starts, the bits that
//! are 0 or 1 are set so, and those that are `x` are as the host has them. Which accesses a guest
//! may make, a template does not say.

use msrgate_filter::MsrIndex;
use serde::de::IgnoredAny;

use super::draft::{Draft, Drafts};
use super::{ImportError, hexadecimal, quoted};
use crate::action::Action;
use crate::msrs::MsrRange;

#[derive(serde::Deserialize)]
struct Template {
    #[serde(default)]
    kvm_capabilities: Vec<IgnoredAny>,
    #[serde(default)]
    cpuid_modifiers: Vec<IgnoredAny>,
    #[serde(default)]
    msr_modifiers: Vec<Modifier>,
}

#[derive(serde::Deserialize)]
struct Modifier {
    addr: String,
    bitmap: String,
}

/// Bits that a template fixes.
#[derive(Clone, Copy)]
struct Bits {
    fixed: u64,
    value: u64,
}

pub(super) fn read(bytes: &[u8]) -> Result<Drafts, ImportError> {
    let template: Template =
        serde_json::from_slice(bytes).map_err(|error| ImportError::Json(error.to_string()))?;
    let mut drafts = Drafts::new(Action::Allow);
    let mut seen = std::collections::BTreeSet::new();
    for (number, modifier) in template.msr_modifiers.iter().enumerate() {
        let place = |key| format!("msr_modifiers[{number}].{key}");
        let index = index(&modifier.addr).ok_or_else(|| {
            ImportError::value(
                place("addr"),
                format!("{} is no index", quoted(&modifier.addr)),
            )
        })?;
        let bits = bits(&modifier.bitmap).ok_or_else(|| {
            let why = format!("{} is no bitmap of up to 64 bits", quoted(&modifier.bitmap));
            ImportError::value(place("bitmap"), why)
        })?;
        if !seen.insert(index) {
            return Err(ImportError::value(place("addr"), format!("{index} again")));
        }
        say(&mut drafts, index, bits);
    }
    for (what, count) in [
        ("CPUID leaves", template.cpuid_modifiers.len()),
        ("KVM capabilities", template.kvm_capabilities.len()),
    ] {
        if count > 0 {
            let what = format!("{what} ({count}): a policy speaks of MSRs only");
            drafts.unsaid(None, what);
        }
    }
    Ok(drafts)
}

fn say(drafts: &mut Drafts, index: MsrIndex, Bits { fixed, value }: Bits) {
    drafts.say(&Draft {
        msrs: MsrRange::one(index),
        actions: [Some(Action::Allow), Some(Action::Allow)],
        why: Some(format!("bits {fixed:#x} begin as {value:#x}")),
    });
    let what = format!(
        "{index}: its value; the template sets the bits {fixed:#x} to {value:#x} and leaves {} as the host has them",
        fixed.count_zeros()
    );
    drafts.unsaid(None, what);
}

/// `0x10a`, `0b100001010` or `266`.
fn index(text: &str) -> Option<MsrIndex> {
    let index = match (hexadecimal(text), text.strip_prefix("0b")) {
        (Some((index, "")), _) => u32::try_from(index).ok()?,
        (None, Some(digits)) => u32::from_str_radix(digits, 2).ok()?,
        (None, None) => text.parse().ok()?,
        _ => return None,
    };
    Some(MsrIndex::new(index))
}

/// `0b` and up to 64 of `0`, `1`, `x`, the highest bit first, with `_` anywhere. Bits that are not
/// written are `x`.
fn bits(text: &str) -> Option<Bits> {
    let digits = text
        .strip_prefix("0b")?
        .bytes()
        .filter(|&byte| byte != b'_');
    let mut bits = Bits { fixed: 0, value: 0 };
    let mut count = 0;
    for digit in digits {
        count += 1;
        bits = Bits {
            fixed: bits.fixed << 1 | u64::from(digit != b'x'),
            value: bits.value << 1 | u64::from(digit == b'1'),
        };
        if !matches!(digit, b'0' | b'1' | b'x') || count > 64 {
            return None;
        }
    }
    (count > 0).then_some(bits)
}
