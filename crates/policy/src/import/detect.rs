//! Detects the format of a file.

use msrgate_program::Program;
use serde::de::IgnoredAny;

use super::{Format, ImportError, compiled, emitted, firecracker, kernel_log, lines, msr_safe};

/// The keys by which JSON formats are distinguished.
#[derive(serde::Deserialize)]
struct Keys {
    ranges: Option<IgnoredAny>,
    msr_modifiers: Option<IgnoredAny>,
    cpuid_modifiers: Option<IgnoredAny>,
    kvm_capabilities: Option<IgnoredAny>,
    guest_cpu_config: Option<IgnoredAny>,
    /// The text of a record of `journalctl -o json`.
    #[serde(rename = "MESSAGE")]
    message: Option<IgnoredAny>,
}

/// Returns the format of a file: by its first bytes if msrgate wrote it, by its keys if it is
/// JSON, else by its first line with content.
pub(super) fn detect(bytes: &[u8]) -> Result<Format, ImportError> {
    if Program::is_program(bytes) {
        return Ok(Format::Program);
    }
    if compiled::is_compiled_bytes(bytes) || emitted::is_emitted(bytes) {
        return Ok(Format::Compiled);
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        return json(bytes);
    }
    let log = kernel_log::first_message(bytes);
    let other = lines(bytes).find_map(|(number, line)| {
        if firecracker::is_head(&line) {
            Some((number, Format::FirecrackerList))
        } else {
            msr_safe::is_entry(&line).then_some((number, Format::MsrSafe))
        }
    });
    match (log, other) {
        (Some(log), Some((line, _))) if log < line => Ok(Format::KernelLog),
        (_, Some((_, Format::MsrSafe))) if !msr_safe::is_commented(bytes) => {
            Err(ImportError::TwoColumns)
        }
        (_, Some((_, format))) => Ok(format),
        (Some(_), None) => Ok(Format::KernelLog),
        (None, None) if msr_safe::commented_entries(bytes) > 0 => Ok(Format::MsrSafe),
        (None, None) => Err(ImportError::UnknownFormat),
    }
}

fn json(bytes: &[u8]) -> Result<Format, ImportError> {
    // A file that is cut off or misspelt still counts as a compiled filter or a template; its
    // reader reports the mistake.
    match serde_json::from_slice::<Keys>(bytes) {
        Ok(keys) if keys.ranges.is_some() => Ok(Format::Compiled),
        Ok(keys)
            if keys.msr_modifiers.is_some()
                || keys.cpuid_modifiers.is_some()
                || keys.kvm_capabilities.is_some()
                || keys.guest_cpu_config.is_some() =>
        {
            Ok(Format::Firecracker)
        }
        Ok(keys) if keys.message.is_some() => Ok(Format::KernelLog),
        Ok(_) if firecracker::is_of_arm(bytes) => Ok(Format::Firecracker),
        // Other tools than the journal put a kernel's messages into JSON, too.
        Ok(_) if kernel_log::first_message(bytes).is_some() => Ok(Format::KernelLog),
        Ok(_) => Err(ImportError::UnknownFormat),
        Err(_) if is_journal(bytes) => Ok(Format::KernelLog),
        Err(_) => Ok(by_text(bytes)),
    }
}

/// Returns true for a text in UTF-16: it has a byte order mark, or each of its first letters has a
/// zero byte.
pub(crate) fn is_utf_16(bytes: &[u8]) -> bool {
    let is_text = |byte: u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match *bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [first, 0, second, 0, ..] | [0, first, 0, second, ..] => is_text(first) && is_text(second),
        _ => false,
    }
}

/// Returns true if bytes are JSON records of the systemd journal, one a line or each over several
/// lines.
fn is_journal(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, b"\"MESSAGE\"").is_some()
}

fn by_text(bytes: &[u8]) -> Format {
    if String::from_utf8_lossy(bytes).contains("_modifiers") {
        Format::Firecracker
    } else {
        Format::Compiled
    }
}
