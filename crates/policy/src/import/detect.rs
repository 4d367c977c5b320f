//! Detects the format of a file.

use msrgate_program::Program;
use serde::de::IgnoredAny;

use super::{Format, compiled, emitted, firecracker, kernel_log, lines, msr_safe};

/// The keys by which JSON formats are distinguished.
#[derive(serde::Deserialize)]
struct Keys {
    ranges: Option<IgnoredAny>,
    msr_modifiers: Option<IgnoredAny>,
    cpuid_modifiers: Option<IgnoredAny>,
    guest_cpu_config: Option<IgnoredAny>,
}

/// Returns the format of a file: by its first bytes if msrgate wrote it, by its keys if it is
/// JSON, else by its first line with content.
pub(super) fn detect(bytes: &[u8]) -> Option<Format> {
    if Program::is_program(bytes) {
        return Some(Format::Program);
    }
    if compiled::is_abi(bytes) || emitted::is_emitted(bytes) {
        return Some(Format::Compiled);
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        // A file that is cut off or misspelt still counts as a compiled filter or a template; its
        // reader reports the mistake.
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
