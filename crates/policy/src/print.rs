//! From a policy to its text.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use msrgate_filter::Access;

use crate::action::Action;
use crate::cpu::CpuSet;
use crate::parse::overridden;
use crate::policy::{
    Entry, EntryId, Firmness, Log, Mode, Policy, Replaces, Settings, Unknown, UnknownAction,
    Update, WhenId,
};

/// The policy as one text without includes, which reads as the same policy: the same settings, the
/// same `[[when]]`s, and entries that say the same of the same MSRs. What an entry replaced for
/// good is left out, and so is what is said twice under one key. Each entry is one line: a `why` of
/// many lines can become one that is longer than [`MAX_LINE`](crate::MAX_LINE), and is not read.
#[must_use]
pub fn print(policy: &Policy) -> String {
    let mut text = head(policy.settings());
    text.push_str("\n[msrs]\n");
    text.push_str(&entries(policy, None));
    text.push_str(&devices(policy.settings()));
    for (number, when) in policy.whens().iter().enumerate() {
        let _ = write!(
            text,
            "\n[[when]]\ncpu = {}\n[when.msrs]\n",
            cpus(when.cpus())
        );
        text.push_str(&entries(policy, Some(WhenId::new(number))));
    }
    text
}

/// The tables of devices.
pub(crate) fn devices(settings: &Settings) -> String {
    settings.microcode.map_or(String::new(), |microcode| {
        let update = match microcode.update {
            Update::Accept => "accept",
            Update::Ignore => "ignore",
            Update::Deny => "deny",
        };
        format!(
            "\n[device.microcode]\nrevision = \"{:#x}\"\nupdate = \"{update}\"\n",
            microcode.revision
        )
    })
}

/// The settings that are not what silence means.
pub(crate) fn head(settings: &Settings) -> String {
    let mut text = "policy = 1\n".to_owned();
    if let Some(name) = &settings.name {
        let _ = writeln!(text, "name = {}", string(name));
    }
    if settings.mode == Mode::Audit {
        text.push_str("mode = \"audit\"\n");
    }
    let _ = writeln!(text, "default = {}", settings.default);
    if settings.unknown != Unknown::default() {
        let _ = writeln!(text, "unknown = {}", unknown(&settings.unknown));
    }
    if settings.log != Log::default() {
        let _ = writeln!(text, "log = \"{}\"", log(settings.log));
    }
    if !settings.accept.is_empty() {
        let accept = settings.accept.iter().map(|gap| string(gap));
        let _ = writeln!(text, "accept = [{}]", list(accept));
    }
    text
}

fn unknown(unknown: &Unknown) -> String {
    let one = |action| match action {
        UnknownAction::Deny => "\"deny\"".to_owned(),
        UnknownAction::Ignore => "\"ignore\"".to_owned(),
        UnknownAction::Value(value) => format!("{{ value = \"{value:#x}\" }}"),
    };
    let (read, write) = (one(unknown.read), one(unknown.write));
    let log = unknown.log.map(|one| format!(", log = \"{}\"", log(one)));
    format!(
        "{{ read = {read}, write = {write}{} }}",
        log.unwrap_or_default()
    )
}

pub(crate) const fn log(log: Log) -> &'static str {
    match log {
        Log::None => "none",
        Log::Denied => "denied",
        Log::First => "first",
        Log::All => "all",
    }
}

fn cpus(cpus: &CpuSet) -> String {
    let number = |range: &RangeInclusive<u32>| {
        let (first, last) = (range.start(), range.end());
        if first == last {
            format!("{first:#x}")
        } else {
            format!("\"{first:#x}..={last:#x}\"")
        }
    };
    let vendor = cpus.vendor.iter().map(|vendors| {
        let names = vendors.iter().map(|vendor| string(vendor));
        format!("vendor = [{}]", list(names))
    });
    let numbers = [
        ("family", &cpus.family),
        ("model", &cpus.model),
        ("stepping", &cpus.stepping),
    ];
    let numbers = numbers.iter().filter_map(|(part, ranges)| {
        let ranges = ranges.as_ref()?.iter().map(number);
        Some(format!("{part} = [{}]", list(ranges)))
    });
    format!("{{ {} }}", list(vendor.chain(numbers)))
}

/// The entries of `[msrs]`, or of one `[when.msrs]`.
fn entries(policy: &Policy, when: Option<WhenId>) -> String {
    let overridden = overridden(policy);
    let replaced_by = |id: EntryId| overridden.get(&id).into_iter().flatten();
    // Only an entry of the same `[[when]]`, or of none either, is there wherever this one is.
    let is_gone =
        |id: EntryId| replaced_by(id).any(|&by| policy.entry(by).when == policy.entry(id).when);
    let mut said = HashSet::new();
    let mut text = String::new();
    for id in policy.ids() {
        let entry = policy.entry(id);
        if entry.when != when || is_gone(id) || !said.insert(entry.key()) {
            continue;
        }
        let replaces = entry.replaces == Replaces::Included
            && overridden
                .iter()
                .any(|(&other, by)| !is_gone(other) && by.contains(&id));
        let replaces = if replaces {
            Replaces::Included
        } else {
            Replaces::Nothing
        };
        let _ = writeln!(text, "{} = {}", key(entry.key()), says(entry, replaces));
    }
    text
}

/// What an entry says: a word, or a table with both directions.
fn says(entry: &Entry, replaces: Replaces) -> String {
    let is_bare = entry.why.is_none()
        && entry.log.is_none()
        && replaces == Replaces::Nothing
        && entry.firmness == Firmness::Loosenable;
    let [read, write] = Access::ALL.map(|access| entry.action(access));
    if let (true, Some(word)) = (is_bare, word([read, write])) {
        return format!("\"{word}\"");
    }
    let parts = [
        Some(format!("read = {}", action(read))),
        Some(format!("write = {}", action(write))),
        entry.why().map(|why| format!("why = {}", string(why))),
        entry.log.map(|one| format!("log = \"{}\"", log(one))),
        (replaces == Replaces::Included).then(|| "override = true".to_owned()),
        (entry.firmness == Firmness::Final).then(|| "final = true".to_owned()),
    ];
    format!("{{ {} }}", list(parts.into_iter().flatten()))
}

/// The word for both directions, if there is one.
pub(crate) const fn word(actions: [Option<&Action>; 2]) -> Option<&'static str> {
    match actions {
        [Some(Action::Allow), Some(Action::Allow)] => Some("rw"),
        [Some(Action::Allow), Some(Action::Deny)] => Some("r"),
        [Some(Action::Deny), Some(Action::Allow)] => Some("w"),
        [Some(Action::Deny), Some(Action::Deny)] => Some("none"),
        _ => None,
    }
}

pub(crate) fn action(action: Option<&Action>) -> String {
    match action {
        None => "\"inherit\"".to_owned(),
        Some(Action::Handler(name)) => format!("{{ handler = {} }}", string(name)),
        Some(action) => action.to_string(),
    }
}

/// A key, in quotes where TOML wants them.
fn key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) {
        key.to_owned()
    } else {
        string(key)
    }
}

/// A string of TOML, on one line.
fn string(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            _ if c.is_control() => _ = write!(quoted, "\\u{:04x}", u32::from(c)),
            _ => quoted.push(c),
        }
    }
    quoted + "\""
}

fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
