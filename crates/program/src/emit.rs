//! Output of a variant's filter for programs that do not use msrgate.
//!
//! All formats contain the filter and the exit reasons. No format contains the answers of user
//! space, because the kernel alone enforces a filter that is used without msrgate.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::abi::{CallerWidth, EncodeError, Request, UserAddress};
use msrgate_filter::{Access, DefaultAction, ExitReason, Filter, MsrIndex, Range, Revision};

use crate::action::Action;
use crate::cpu::Cpu;
use crate::program::{Program, Variant};
use crate::settings::{Log, Mode, UnknownAction};

/// A part of a program that is lost if only the program's filter is given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// `default = "kill"`: user space has to end the guest at each access that no entry decides.
    KillByDefault,
    /// The action `kill` of an entry.
    Kill,
    /// The other actions, such as `value` and `handler`, whose accesses user space has to answer.
    Answers,
    /// The setting `unknown`, if it lets user space answer accesses to MSRs that KVM does not know.
    Unknown,
    /// The setting `mode = "audit"`, under which no access is refused.
    Audit,
    /// The setting `log = "first"` or `"all"`: events for accesses that the kernel allows.
    Log,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillByDefault => "`default = \"kill\"`, which ends the guest",
            Self::Kill => "the action `kill`, which ends the guest",
            Self::Answers => "answers from user space",
            Self::Unknown => "answers for MSRs that KVM does not know",
            Self::Audit => "the mode audit, which refuses no access",
            Self::Log => "a log of accesses that are allowed",
        })
    }
}

/// Returns the parts of the program that are lost if only this variant's filter is used.
///
/// The log level `denied` is not lost: refused accesses exit with the reason `filter`, so the VMM
/// that sets the filter sees them.
#[must_use]
pub fn losses(program: &Program, variant: &Variant) -> Vec<Loss> {
    let settings = program.settings();
    let rules = || variant.rules().all().map(|(_, rule)| rule);
    let is_answer = |action: &Action| action.needs_answer() && *action != Action::Kill;
    // In audit mode `kill` ends no guest: it is a refusal that is let through.
    let kills = |action: &Action| settings.mode == Mode::Enforce && *action == Action::Kill;
    let unknown = [settings.unknown.read, settings.unknown.write];
    // No entry decides the last MSR (S3.5), so its rule is the default.
    let last = MsrIndex::new(u32::MAX);
    let kills_by_default = Access::ALL
        .into_iter()
        .any(|access| kills(variant.rule(last, access).action));
    let kills_by_entry = !kills_by_default && rules().any(|rule| kills(rule.action));
    [
        (Loss::KillByDefault, kills_by_default),
        (Loss::Kill, kills_by_entry),
        (Loss::Answers, rules().any(|rule| is_answer(rule.action))),
        (Loss::Unknown, unknown != [UnknownAction::Deny; 2]),
        (Loss::Audit, settings.mode == Mode::Audit),
        (Loss::Log, rules().any(|rule| rule.log > Log::Denied)),
    ]
    .into_iter()
    .filter_map(|(loss, is_lost)| is_lost.then_some(loss))
    .collect()
}

/// Returns one line of JSON: `{"schema":1,"default":"deny","ranges":[…],"reasons":["filter"]}`.
///
/// A range is `{"access":"rw","base":"0x10","count":3,"bitmap":"05"}`, with its bitmap in bytes
/// from byte 0 on. If the variant was chosen for a processor, there is also
/// `"cpu":"GenuineIntel:6:0x6a:6"`.
#[must_use]
pub fn json(variant: &Variant, chosen_for: Option<&Cpu>) -> String {
    let range = |range: &Range| {
        let bytes = bytes(range).into_iter();
        let bitmap: String = bytes.map(|byte| format!("{byte:02x}")).collect();
        let (access, base) = (range.accesses(), range.base());
        let count = range.bitmap().count();
        format!(r#"{{"access":"{access}","base":"{base}","count":{count},"bitmap":"{bitmap}"}}"#)
    };
    let ranges: Vec<_> = variant.filter().ranges().iter().map(range).collect();
    let reasons = ExitReason::ALL
        .into_iter()
        .filter(|reason| variant.reasons().contains(Revision::Mainline, *reason));
    let reasons: Vec<_> = reasons.map(|reason| format!("\"{reason}\"")).collect();
    let cpu = chosen_for.map_or(String::new(), |cpu| {
        format!("\"cpu\":\"{}\",", cpu_name(cpu))
    });
    format!(
        "{{\"schema\":1,{cpu}\"default\":\"{}\",\"ranges\":[{}],\"reasons\":[{}]}}\n",
        word(variant.filter()),
        ranges.join(","),
        reasons.join(",")
    )
}

/// Returns the 392 bytes of a 64-bit caller's `struct kvm_msr_filter`, followed by the bitmaps.
///
/// The pointer of a range is the offset of its bitmap from the first byte, to which the loader has
/// to add the address of the first byte. The pointer of an unused range is 0.
///
/// # Errors
/// The function never fails in practice, because a pointer of 64 bits can hold any offset.
pub fn abi(variant: &Variant) -> Result<Vec<u8>, EncodeError> {
    let width = CallerWidth::Bits64;
    let bitmaps_at = UserAddress::new(width.struct_size() as u64);
    let (request, bitmaps) = Request::of(variant.filter(), bitmaps_at);
    let mut bytes = request.encode(width)?;
    bytes.extend(bitmaps);
    Ok(bytes)
}

/// Returns a C header that needs only `<linux/kvm.h>`.
///
/// The header contains the bitmaps, `MSRGATE_EXIT_REASONS` for `KVM_CAP_X86_USER_SPACE_MSR`, and
/// `msrgate_fill`, which fills in the struct. The first line names the processor that the variant
/// was chosen for.
#[must_use]
pub fn c(variant: &Variant, chosen_for: Option<&Cpu>) -> String {
    let filter = variant.filter();
    let mut arrays = String::new();
    let mut fill = String::new();
    for (number, range) in filter.ranges().iter().enumerate() {
        let (flags, base) = (range.accesses().bits(), range.base());
        let (bytes, nmsrs) = (bytes(range), range.bitmap().count());
        arrays.push_str(&format!(
            "static unsigned char msrgate_bitmap_{number}[{}] = {{\n{}}};\n\n",
            bytes.len(),
            rows(&bytes)
        ));
        fill.push_str(&format!(
            "\tfilter->ranges[{number}].flags = {flags};\n\
             \tfilter->ranges[{number}].nmsrs = {nmsrs};\n\
             \tfilter->ranges[{number}].base = {base};\n\
             \tfilter->ranges[{number}].bitmap = msrgate_bitmap_{number};\n"
        ));
    }
    let (flags, reasons) = (flags(filter), variant.reasons().bits());
    let cpu = for_cpu(chosen_for);
    format!(
        "/* Made by msrgate compile --format c{cpu}. */\n\
         #ifndef MSRGATE_FILTER_H\n\
         #define MSRGATE_FILTER_H\n\n\
         #include <linux/kvm.h>\n\n\
         /* args[0] of KVM_ENABLE_CAP for KVM_CAP_X86_USER_SPACE_MSR. With 0, refused accesses get #GP. */\n\
         #define MSRGATE_EXIT_REASONS {reasons:#x}\n\n\
         {arrays}\
         /* Fills in the argument of KVM_X86_SET_MSR_FILTER. The kernel only reads the bitmaps. */\n\
         static inline void msrgate_fill(struct kvm_msr_filter *filter)\n\
         {{\n\
         \t*filter = (struct kvm_msr_filter){{ .flags = {flags:#x} }};\n\
         {fill}\
         }}\n\n\
         #endif\n"
    )
}

/// Returns a Rust module of constants without dependencies.
///
/// The constants are `DEFAULT_DENY`, `EXIT_REASONS`, and `RANGES` with flags, base, count and
/// bitmap. The first line names the processor that the variant was chosen for.
#[must_use]
pub fn rust(variant: &Variant, chosen_for: Option<&Cpu>) -> String {
    let filter = variant.filter();
    let range = |range: &Range| {
        let bytes = bytes(range);
        format!(
            "    Range {{\n        flags: {},\n        base: {},\n        nmsrs: {},\n        bitmap: &[\n{}        ],\n    }},\n",
            range.accesses().bits(),
            range.base(),
            range.bitmap().count(),
            rows(&bytes)
        )
    };
    let ranges: String = filter.ranges().iter().map(range).collect();
    format!(
        "// Made by msrgate compile --format rust{}.\n\n\
         /// One range of `struct kvm_msr_filter`.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq)]\n\
         pub struct Range {{\n\
         \x20   /// The accesses that the range decides: 1 for reads, 2 for writes, 3 for both.\n\
         \x20   pub flags: u32,\n\
         \x20   /// The first MSR.\n\
         \x20   pub base: u32,\n\
         \x20   /// The number of MSRs.\n\
         \x20   pub nmsrs: u32,\n\
         \x20   /// One bit for each MSR, from bit 0 of byte 0 on; 1 allows the access. The length is a multiple of 8 bytes.\n\
         \x20   pub bitmap: &'static [u8],\n\
         }}\n\n\
         /// True if an access that no range decides is refused.\n\
         pub const DEFAULT_DENY: bool = {};\n\
         /// `args[0]` of `KVM_ENABLE_CAP` for `KVM_CAP_X86_USER_SPACE_MSR`. With 0, refused accesses get #GP.\n\
         pub const EXIT_REASONS: u64 = {:#x};\n\
         /// The ranges, in the order in which the kernel tries them.\n\
         pub const RANGES: &[Range] = &[\n{ranges}];\n",
        for_cpu(chosen_for),
        filter.default_action() == DefaultAction::Deny,
        variant.reasons().bits(),
    )
}

/// Returns ` for GenuineIntel:6:0x6a:6` for a processor, else an empty text.
fn for_cpu(cpu: Option<&Cpu>) -> String {
    cpu.map_or(String::new(), |cpu| format!(" for {}", cpu_name(cpu)))
}

/// Returns the name of a processor for these formats. The vendor in CPUID is any twelve bytes, so
/// characters other than letters, digits and blanks become `?`: the name cannot end a comment or a
/// string.
#[must_use]
pub fn cpu_name(cpu: &Cpu) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == ':' || c == ' ';
    let name = format!("{cpu}");
    let plain = name.chars().map(|c| if is_plain(c) { c } else { '?' });
    plain.collect()
}

const fn word(filter: &Filter) -> &'static str {
    match filter.default_action() {
        DefaultAction::Allow => "allow",
        DefaultAction::Deny => "deny",
    }
}

const fn flags(filter: &Filter) -> u32 {
    match filter.default_action() {
        DefaultAction::Allow => 0,
        DefaultAction::Deny => msrgate_filter::abi::DEFAULT_DENY,
    }
}

/// Returns the bytes of a range's bitmap, in whole words of 8 bytes, as the kernel reads the bitmap
/// (S2.4).
fn bytes(range: &Range) -> Vec<u8> {
    let words = range.bitmap().words().iter();
    words.flat_map(|word| word.to_le_bytes()).collect()
}

/// Formats bytes as the elements of an array in C or Rust, several on each line.
fn rows(bytes: &[u8]) -> String {
    const ROW: usize = 12;
    let row = |row: &[u8]| {
        let bytes: Vec<_> = row.iter().map(|byte| format!("{byte:#04x},")).collect();
        format!("\t{}\n", bytes.join(" "))
    };
    bytes.chunks(ROW).map(row).collect()
}
