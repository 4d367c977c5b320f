//! What a file looks like.

use msrgate_program::Program;
use serde::de::IgnoredAny;

use super::{Format, compiled, emitted, firecracker, kernel_log, lines, msr_safe};

/// The keys by which JSON files are told apart.
#[derive(serde::Deserialize)]
struct Keys {
    ranges: Option<IgnoredAny>,
    msr_modifiers: Option<IgnoredAny>,
    cpuid_modifiers: Option<IgnoredAny>,
    guest_cpu_config: Option<IgnoredAny>,
}

/// The format of a file: by its first bytes if it is one of ours, by its keys if it is JSON, else by its
/// first line that has a meaning.
pub(super) fn detect(bytes: &[u8]) -> Option<Format> {
    if Program::is_program(bytes) {
        return Some(Format::Program);
    }
    if compiled::is_abi(bytes) || emitted::is_emitted(bytes) {
        return Some(Format::Compiled);
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        // What is cut off or misspelt is a compiled filter or a template all the same, and its
        // reader says what is wrong.
        return match serde_json::from_slice::<Keys>(bytes) {
            Ok(keys) if keys.ranges.is_some() => Some(Format::Compiled),
            Ok(keys)
                if keys.msr_modifiers.is_some()
                    || keys.cpuid_modifiers.is_some()
                    || keys.guest_cpu_config.is_some() =>
            {
                Some(Format::Firecracker)
            }
            Ok(_) => None,
            Err(_) => Some(by_text(bytes)),
        };
    }
    lines(bytes).find_map(|(_, line)| {
        if kernel_log::is_message(&line) {
            Some(Format::KernelLog)
        } else if firecracker::is_head(&line) {
            Some(Format::FirecrackerList)
        } else {
            msr_safe::is_entry(&line).then_some(Format::MsrSafe)
        }
    })
}

fn by_text(bytes: &[u8]) -> Format {
    if String::from_utf8_lossy(bytes).contains("_modifiers") {
        Format::Firecracker
    } else {
        Format::Compiled
    }
}
