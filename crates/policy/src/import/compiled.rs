//! Imports the filter of a compiled policy, as [`emit`](crate::emit) writes it: JSON, C, Rust, or
//! the bytes of the ioctl, also as a dump in text.
//!
//! The JSON is
//! `{"schema":1,"default":"deny","ranges":[{"access":"r","base":"0x0","count":3,"bitmap":"05"}]}`.
//! A bitmap's bytes start with byte 0, and have two digits each.

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, ExitReason, Filter, MsrIndex, Range, Revision,
    Verdict, X2APIC,
};
use msrgate_program::{Action, Log, MsrRange};

use super::draft::{Draft, Scope};
use super::drafts::Drafts;
use super::with_reasons::{Compiled, CompiledFilter, range_of};
use super::wrong_json::wrong_json;
use super::{
    ImportError, bytes_of_digits, dump, emitted, hexadecimal, ioctl, quoted, without_effect,
    without_mark,
};

/// The version of the JSON format that this module reads: the value of the key `schema`.
const SCHEMA: u64 = 1;

#[derive(serde::Deserialize)]
struct Document {
    schema: u64,
    default: String,
    cpu: Option<String>,
    ranges: Vec<Window>,
    reasons: Option<Vec<String>>,
}

#[derive(serde::Deserialize)]
struct Window {
    access: String,
    base: String,
    count: u32,
    bitmap: String,
}

/// Returns true if bytes look like the formats that [`compiled_filter`] reads.
#[must_use]
pub fn is_compiled_filter(bytes: &[u8]) -> bool {
    let bytes = without_mark(bytes);
    is_json(bytes) || is_compiled_bytes(bytes) || emitted::is_emitted(bytes)
}

/// Returns true if bytes look like those of the ioctl, or like a dump of them.
pub(super) fn is_compiled_bytes(bytes: &[u8]) -> bool {
    is_abi(bytes) || dump::is_dump(bytes)
}

fn is_json(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
}

/// Returns true if bytes contain a byte that is 0. A text has no byte that is 0; the struct of the
/// ioctl always has one, in its padding.
fn is_abi(bytes: &[u8]) -> bool {
    bytes.contains(&0)
}

/// Reads the filter that `compile` wrote, and the processor that the file names, if any. The file
/// is JSON, C, Rust, or the bytes of the ioctl.
///
/// # Errors
/// Returns [`ImportError`] if the bytes have none of these formats, or if the ranges cannot form a
/// filter.
pub fn compiled_filter(bytes: &[u8]) -> Result<CompiledFilter, ImportError> {
    compiled(without_mark(bytes)).map(|compiled| CompiledFilter {
        filter: compiled.filter,
        made_for: compiled.made_for,
    })
}

fn compiled(bytes: &[u8]) -> Result<Compiled, ImportError> {
    let mere = |filter: Filter| Compiled {
        filter,
        made_for: None,
        reasons: None,
    };
    if is_abi(bytes) {
        return ioctl::read(bytes).map(mere);
    }
    if dump::is_dump(bytes) {
        return ioctl::read_dump(&dump::read(bytes)?).map(mere);
    }
    if emitted::is_emitted(bytes) {
        return emitted::read(bytes);
    }
    if let Some(error) = emitted::foreign(bytes) {
        return Err(error);
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| wrong_json(bytes, &error))?;
    Ok(Compiled {
        filter: filter(&document)?,
        made_for: document.cpu,
        reasons: document.reasons,
    })
}

pub(super) fn read(bytes: &[u8]) -> Result<Drafts, ImportError> {
    let Compiled {
        filter,
        made_for,
        reasons,
    } = compiled(bytes)?;
    let mut drafts = Drafts::new(match filter.default_action() {
        DefaultAction::Allow => Action::Allow,
        DefaultAction::Deny => Action::Deny,
    });
    if let Some(cpu) = made_for {
        drafts.holds(Scope::CompiledFor(cpu));
    }
    for what in without_effect::remarks(&filter) {
        drafts.lose(None, what);
    }
    if let Some(reasons) = reasons {
        let filter = ExitReason::Filter.to_string();
        if !reasons.contains(&filter) {
            // Refusals that cause no exit are hidden from the VMM, so they cannot become events.
            drafts.log(Log::None);
        }
        for reason in reasons.iter().filter(|reason| **reason != filter) {
            let what = format!(
                "the exit reason {}: a policy's filter exits only for the reason `filter`",
                quoted(reason)
            );
            drafts.lose(None, what);
        }
    }
    for (msrs, verdicts) in runs(&filter) {
        let actions = verdicts.map(|verdict| match verdict {
            Verdict::Allow => Some(Action::Allow),
            Verdict::Deny => Some(Action::Deny),
        });
        drafts.say(&Draft::new(msrs, actions));
    }
    Ok(drafts)
}

fn filter(document: &Document) -> Result<Filter, ImportError> {
    if document.schema != SCHEMA {
        let why = format!(
            "this msrgate knows only version {SCHEMA}, and the file has version {}",
            document.schema
        );
        return Err(ImportError::value("schema", why));
    }
    let default_action = match document.default.as_str() {
        "allow" => DefaultAction::Allow,
        "deny" => DefaultAction::Deny,
        _ => {
            let why = "the value must be `allow` or `deny`";
            return Err(ImportError::value("default", why));
        }
    };
    let ranges = document.ranges.iter().enumerate();
    let ranges = ranges
        .map(|(number, window)| {
            range(window)
                .map_err(|(key, why)| ImportError::value(format!("ranges[{number}].{key}"), why))
        })
        .collect::<Result<_, _>>()?;
    Filter::new(Revision::Mainline, default_action, ranges).map_err(ImportError::Filter)
}

/// Returns the filter range that one element of the file's list `ranges` describes. If a value in
/// the element is wrong, returns the key of that value, and the reason.
fn range(window: &Window) -> Result<Range, (&'static str, String)> {
    let accesses = match window.access.as_str() {
        "r" => Accesses::Read,
        "w" => Accesses::Write,
        "rw" => Accesses::Both,
        _ => return Err(("access", "the value must be `r`, `w` or `rw`".to_owned())),
    };
    let base = match hexadecimal(&window.base) {
        Some((base, "")) => u32::try_from(base).ok(),
        _ => None,
    };
    let base = base.ok_or((
        "base",
        "the value must be an MSR index such as `0x10`".to_owned(),
    ))?;
    Bitmap::words_for(window.count).map_err(|_| {
        (
            "count",
            format!("the value must be 1 to {}", Bitmap::MAX_COUNT),
        )
    })?;
    let bytes = bytes_of_digits(&window.bitmap).ok_or((
        "bitmap",
        "the value must be bytes of two hexadecimal digits each".to_owned(),
    ))?;
    range_of(accesses, MsrIndex::new(base), window.count, &bytes)
}

/// Returns runs of MSRs for which the filter has one decision that differs from its default.
/// x2APIC registers are left out: KVM never asks the filter about them (S3.1).
fn runs(filter: &Filter) -> Vec<(MsrRange, [Verdict; 2])> {
    let default = filter.default_action().verdict();
    let mut indices: Vec<u32> = filter
        .ranges()
        .iter()
        .filter_map(|range| Some(range.base().get()..range.end()?.get()))
        .flatten()
        .collect();
    indices.sort_unstable();
    indices.dedup();
    let mut runs: Vec<(MsrRange, [Verdict; 2])> = Vec::new();
    for index in indices.into_iter().map(MsrIndex::new) {
        let verdicts = Access::ALL.map(|access| filter.decide(index, access).verdict);
        if X2APIC.contains(&index) || verdicts == [default; 2] {
            continue;
        }
        match runs.last_mut() {
            Some((msrs, same)) if *same == verdicts && msrs.last().get() + 1 == index.get() => {
                *msrs = MsrRange::new(msrs.first(), index).unwrap_or(*msrs);
            }
            _ => runs.push((MsrRange::one(index), verdicts)),
        }
    }
    runs
}
