//! Reads Firecracker's files about MSRs.
//!
//! A custom CPU template is `{"msr_modifiers":[{"addr":"0x10a","bitmap":"0b00x1…"}]}`. Before the
//! guest starts, Firecracker sets the bits that are 0 or 1; bits that are `x` keep the host's
//! values. A fingerprint contains a template of all registers as its `guest_cpu_config`. Neither a
//! template nor a fingerprint tells which accesses a guest may make.
//!
//! A policy therefore gets a value only if all bits of the value are given and no write of the
//! guest changes it. Otherwise a guest would read a value that it did not write, or its writes
//! would have no effect.
//!
//! Firecracker's lists of readable registers are text: `MSR_ADDR,VALUE`, and a line for each
//! register. Older lists have a column `STATUS` and also the registers that could not be read.

use std::ops::RangeInclusive;

use msrgate_filter::MsrIndex;
use msrgate_program::{Action, MsrRange};
use serde::de::IgnoredAny;

use super::draft::Draft;
use super::drafts::Drafts;
use super::wrong_json::wrong_json;
use super::{ImportError, hexadecimal, lines};

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
struct Fingerprint {
    guest_cpu_config: Template,
}

/// The keys of a template or of a fingerprint.
#[derive(serde::Deserialize)]
#[serde(expecting = "a CPU template, which is a JSON object")]
struct Keys {
    guest_cpu_config: Option<ArmKeys>,
    #[serde(flatten)]
    own: ArmKeys,
}

/// The keys that only a template for aarch64 has.
#[derive(serde::Deserialize)]
struct ArmKeys {
    vcpu_features: Option<IgnoredAny>,
    reg_modifiers: Option<IgnoredAny>,
}

impl ArmKeys {
    const fn is_any(&self) -> bool {
        self.vcpu_features.is_some() || self.reg_modifiers.is_some()
    }
}

/// Returns true if a text is a template or a fingerprint for aarch64.
pub(super) fn is_of_arm(bytes: &[u8]) -> bool {
    serde_json::from_slice(bytes).is_ok_and(|keys: Keys| {
        keys.own.is_any() || keys.guest_cpu_config.is_some_and(|config| config.is_any())
    })
}

#[derive(serde::Deserialize)]
struct Modifier {
    addr: String,
    bitmap: String,
}

/// The bits of a register that a template sets to 0 or 1.
#[derive(Clone, Copy)]
struct Bits {
    fixed: u64,
    value: u64,
}

pub(super) fn read(bytes: &[u8]) -> Result<Drafts, ImportError> {
    if is_of_arm(bytes) {
        return Err(ImportError::Aarch64);
    }
    let template = template(bytes).map_err(|error| wrong_json(bytes, &error))?;
    let mut drafts = Drafts::new(Action::Allow);
    let mut seen = std::collections::BTreeSet::new();
    for (number, modifier) in template.msr_modifiers.iter().enumerate() {
        let place = |key| format!("msr_modifiers[{number}].{key}");
        let index = index(&modifier.addr).ok_or_else(|| {
            ImportError::value(
                place("addr"),
                "the value must be an MSR index such as `0x10`",
            )
        })?;
        let bits = bits(&modifier.bitmap).ok_or_else(|| {
            ImportError::value(
                place("bitmap"),
                "the value must be a bitmap of up to 64 bits, such as `0b1x0`",
            )
        })?;
        if !seen.insert(index) {
            return Err(ImportError::value(
                place("addr"),
                "the template names this MSR twice",
            ));
        }
        say(&mut drafts, index, bits);
    }
    for (what, count) in [
        ("CPUID leaves", template.cpuid_modifiers.len()),
        ("KVM capabilities", template.kvm_capabilities.len()),
    ] {
        if count > 0 {
            let what = format!("{what} ({count}): a policy is only about MSRs");
            drafts.lose(None, what);
        }
    }
    Ok(drafts)
}

fn template(bytes: &[u8]) -> serde_json::Result<Template> {
    let keys: Keys = serde_json::from_slice(bytes)?;
    if keys.guest_cpu_config.is_some() {
        return Ok(serde_json::from_slice::<Fingerprint>(bytes)?.guest_cpu_config);
    }
    serde_json::from_slice(bytes)
}

/// The effect of a guest's writes of a register under KVM.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// KVM refuses the writes, and the register always has the value that the VMM gave it.
    Constant,
    /// KVM refuses the writes. But KVM itself changes the register's value, does not take the value
    /// from a VMM, or refuses reads, too.
    Refused,
    /// KVM drops the writes: they succeed, and have no effect.
    Dropped,
    /// The writes may change the register.
    Taken,
}

/// Registers that KVM's own checks let a guest only read, and whose value is all that a guest
/// needs: `IA32_PLATFORM_ID`, `MSR_PLATFORM_INFO`, `IA32_CORE_CAPABILITIES`,
/// `IA32_ARCH_CAPABILITIES`.
const CONSTANT: [u32; 4] = [0x17, 0xce, 0xcf, 0x10a];

/// Other registers of which KVM refuses a guest's writes: only the VMM may write them, or
/// `kvm_set_msr_common` has no case for them (6.x, x86.c, vmx.c, pmu.c).
static REFUSED: [RangeInclusive<u32>; 21] = [
    0x0..=0x1,                 // IA32_P5_MC_ADDR, IA32_P5_MC_TYPE
    0x2a..=0x2a,               // IA32_EBL_CR_POWERON
    0x2c..=0x2c,               // EBC_FREQUENCY_ID
    0x34..=0x34,               // SMI_COUNT, which counts on
    0x9e..=0x9e,               // IA32_SMBASE, which a guest cannot read
    0xcd..=0xcd,               // FSB_FREQ
    0xfe..=0xfe,               // MTRRcap
    0x179..=0x179,             // IA32_MCG_CAP
    0x198..=0x199,             // IA32_PERF_STATUS, IA32_PERF_CTL
    0x1db..=0x1de,             // LASTBRANCH*IP, LASTINT*IP
    0x345..=0x345,             // IA32_PERF_CAPABILITIES
    0x38e..=0x38e,             // IA32_PERF_GLOBAL_STATUS
    0x480..=0x491,             // the VMX capabilities
    0x606..=0x606,             // RAPL_POWER_UNIT
    0x611..=0x611,             // PKG_ENERGY_STATUS
    0x619..=0x619,             // DRAM_ENERGY_STATUS
    0x639..=0x639,             // PP0_ENERGY_STATUS
    0x641..=0x641,             // PP1_ENERGY_STATUS
    0xc001_0010..=0xc001_0010, // SYSCFG
    0xc001_0055..=0xc001_0055, // INT_PENDING_MSG
    0xc001_0112..=0xc001_0113, // TSEG_ADDR, TSEG_MASK
];

/// Registers of which KVM drops a guest's writes: their cases of `kvm_set_msr_common` end in `break`
/// (6.x, x86.c).
const DROPPED: [u32; 10] = [
    0x79,        // IA32_UCODE_WRITE
    0x8b,        // IA32_UCODE_REV
    0x11e,       // BBL_CR_CTL3
    0xc001_001b, // K7_CLK_CTL
    0xc001_001f, // NB_CFG
    0xc001_0020, // PATCH_LOADER
    0xc001_1022, // DC_CFG
    0xc001_1023, // TW_CFG
    0xc001_102a, // BU_CFG2
    0xc001_102c, // F15H_EX_CFG
];

fn writes(index: MsrIndex) -> Writes {
    let index = index.get();
    if CONSTANT.contains(&index) {
        Writes::Constant
    } else if REFUSED.iter().any(|msrs| msrs.contains(&index)) {
        Writes::Refused
    } else if DROPPED.contains(&index) {
        Writes::Dropped
    } else {
        Writes::Taken
    }
}

fn say(drafts: &mut Drafts, index: MsrIndex, Bits { fixed, value }: Bits) {
    let allow = Draft::new(MsrRange::one(index), [const { Some(Action::Allow) }; 2]);
    let writes = writes(index);
    if writes == Writes::Constant && fixed == u64::MAX {
        drafts.say(&Draft {
            actions: [Some(Action::Value(value)), Some(Action::Deny)],
            ..allow
        });
        return;
    }
    let write = match writes {
        Writes::Constant | Writes::Refused => Action::Deny,
        Writes::Dropped | Writes::Taken => Action::Allow,
    };
    drafts.say(&Draft {
        why: Some(format!("bits {fixed:#x} start as {value:#x}")),
        actions: [Some(Action::Allow), Some(write)],
        ..allow
    });
    let why = match writes {
        Writes::Constant => &format!(
            "and leaves {} bits as the host has them, so the policy has no value; it refuses writes, as KVM does",
            fixed.count_zeros()
        ),
        Writes::Refused => {
            "but KVM decides what a guest reads, so the policy has no value; it refuses writes, as KVM does"
        }
        Writes::Dropped => {
            "and KVM drops a guest's writes, so the policy leaves the register to KVM"
        }
        Writes::Taken => "but a guest may change them, so the policy has no value",
    };
    let what = format!("{index}: the template sets the bits {fixed:#x} to {value:#x}, {why}");
    drafts.lose(None, what);
}

/// The first lines that a list of MSRs may have: the first string is that of today's tools, the
/// second that of older ones.
const HEADS: [&str; 2] = ["MSR_ADDR,VALUE", "MSR_ADDR,STATUS,VALUE"];

/// Returns true if a line is the first line of a list of MSRs, which names the columns.
pub(super) fn is_head(line: &str) -> bool {
    HEADS
        .iter()
        .any(|head| line.trim().eq_ignore_ascii_case(head))
}

/// Returns true if a last line whose line feed is missing still names its register: a comma and a
/// value follow the index.
pub(super) fn is_whole(line: &str) -> bool {
    is_head(line) || row(line).is_some()
}

/// A line of a list of MSRs below the first line.
#[derive(Clone, Copy)]
enum Row {
    /// The address of a register that a guest could read.
    Readable(u64),
    /// A register that a guest could not read.
    Unreadable,
}

/// Parses `0x10,0x5`, `0x10,implemented,0x5` or `0x2,unimplemented,0x0`.
fn row(line: &str) -> Option<Row> {
    // Older tools print the number 0 without `0x`.
    let number = |text: &str| match hexadecimal(text) {
        Some((number, "")) => Some(number),
        _ => (text == "0").then_some(0),
    };
    let (address, rest) = line.trim().split_once(',')?;
    let address = number(address)?;
    match rest.split_once(',') {
        None => number(rest).map(|_| Row::Readable(address)),
        Some(("implemented", value)) => number(value).map(|_| Row::Readable(address)),
        Some(("unimplemented", value)) => {
            (value.is_empty() || number(value).is_some()).then_some(Row::Unreadable)
        }
        Some(_) => None,
    }
}

/// Reads a list of readable registers. The values in the list are those of one moment, and are not
/// used.
pub(super) fn read_list(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Deny);
    let mut readable = std::collections::BTreeSet::new();
    for (number, line) in lines(bytes) {
        let line = line.trim();
        if line.is_empty() || is_head(line) {
            continue;
        }
        let address = match row(line) {
            Some(Row::Unreadable) => continue,
            Some(Row::Readable(address)) => Some(address),
            None => None,
        };
        match address.map(u32::try_from) {
            Some(Ok(index)) => {
                if !readable.insert(index) {
                    let what = format!("the list names {index:#x} twice");
                    drafts.note(Some(number), what);
                }
            }
            Some(Err(_)) => drafts.skip(
                number,
                "an MSR index has at most 32 bits; the line was skipped",
            ),
            None => drafts.skip(
                number,
                "this line is not `0xADDRESS,0xVALUE` or `0xADDRESS,implemented,0xVALUE` and was skipped",
            ),
        }
    }
    if !readable.is_empty() {
        let what = format!(
            "writes of {} registers: the list does not say which registers a guest writes, so the policy refuses all writes",
            readable.len()
        );
        drafts.lose(None, what);
    }
    for index in readable.into_iter().map(MsrIndex::new) {
        let actions = [Some(Action::Allow), Some(Action::Deny)];
        drafts.say(&Draft::new(MsrRange::one(index), actions));
    }
    drafts
}

/// Parses an index: `0x10a`, `0b100001010` or `266`.
fn index(text: &str) -> Option<MsrIndex> {
    let index = match (hexadecimal(text), text.strip_prefix("0b")) {
        (Some((index, "")), _) => u32::try_from(index).ok()?,
        (None, Some(digits)) => u32::from_str_radix(digits, 2).ok()?,
        (None, None) => text.parse().ok()?,
        _ => return None,
    };
    Some(MsrIndex::new(index))
}

/// Parses `0b` and up to 64 of `0`, `1`, `x`, the highest bit first, with `_` anywhere. Missing
/// bits are `x`.
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
