//! JSON lines of msrgate's own: `{"schema":1,"access":"read","index":"0x8b","value":"0x0"}`, and the events of gates
//! and of `msrgate exec`: `{"schema":1,"access":"read","msr":"0x8b","action":"deny"}`. A run of `exec` says by
//! `{"schema":1,"event":"vm","guarded":1}` that its policy guards one more VM.

use std::borrow::Cow;
use std::fmt;

use msrgate_filter::{Access, MsrIndex};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, Visitor};

use super::{Line, Outcome, Told, Traced};

/// The version of the form of these JSON lines: the value of the key `schema`.
const SCHEMA: u64 = 1;

/// The keys that describe an access. Other keys are ignored.
#[derive(serde::Deserialize)]
struct Object<'l> {
    schema: Option<u64>,
    #[serde(borrow)]
    access: Option<Cow<'l, str>>,
    index: Option<Number>,
    /// The index of the MSR, under the key that events of gates use.
    msr: Option<Number>,
    /// The action that a gate gave to the access.
    #[serde(borrow)]
    action: Option<Cow<'l, str>>,
    /// The reason for which the access became an event.
    #[serde(borrow)]
    reason: Option<Cow<'l, str>>,
    value: Option<Number>,
    /// The name of an event that is not an access.
    event: Option<IgnoredAny>,
    /// The number of VMs that have come behind the policy of a run of `exec`, if the line reports that.
    guarded: Option<u64>,
    /// The number of events that a gate had to drop, if the line reports that.
    dropped: Option<u64>,
    held_back: Option<u64>,
}

/// Parses an object. An object of an unknown shape is unreadable, because it may describe an
/// access.
pub(super) fn parse(line: &[u8]) -> Line {
    match serde_json::from_slice::<Object<'_>>(line) {
        // Such a line stands for one access and for others that are missing, so the line cannot be
        // counted correctly.
        Ok(object) if object.access.is_some() && has_lost(&object) => Line::Unreadable,
        Ok(object) => match (lost(&object), traced(&object)) {
            (Some(events), _) => Line::Lost(events),
            (None, Some(access)) => Line::Access(access),
            (None, None) if is_other(&object) => match object.guarded {
                Some(vms @ 1..) => Line::Guarded(vms),
                _ => Line::Other,
            },
            (None, None) => Line::Unreadable,
        },
        Err(_) => Line::Unreadable,
    }
}

fn has_lost(object: &Object<'_>) -> bool {
    [object.dropped, object.held_back]
        .into_iter()
        .flatten()
        .any(|events| events > 0)
}

/// Returns the number of missing events, if the line reports missing events.
fn lost(object: &Object<'_>) -> Option<u64> {
    let is_known = object.schema == Some(SCHEMA) && object.access.is_none();
    match (object.dropped, object.held_back) {
        (None, None) => None,
        (dropped, held_back) if is_known => {
            Some(dropped.unwrap_or(0).saturating_add(held_back.unwrap_or(0)))
        }
        _ => None,
    }
}

fn is_other(object: &Object<'_>) -> bool {
    let is_access = object.access.is_some() || object.index.is_some() || object.msr.is_some();
    object.schema == Some(SCHEMA) && object.event.is_some() && !is_access
}

fn traced(object: &Object<'_>) -> Option<Traced> {
    if object.schema != Some(SCHEMA) {
        return None;
    }
    Some(Traced {
        index: index(object)?,
        access: match object.access.as_deref()? {
            "read" => Access::Read,
            "write" => Access::Write,
            _ => return None,
        },
        value: object.value.as_ref().map(|value| value.0),
        outcome: outcome(object.action.as_deref()),
        told: told(object.reason.as_deref(), object.action.as_deref()),
    })
}

/// Returns the index of the accessed MSR. `None`: the line names no index, or two different ones.
fn index(object: &Object<'_>) -> Option<MsrIndex> {
    let number = match (&object.index, &object.msr) {
        (Some(index), Some(msr)) if index.0 != msr.0 => return None,
        (index, msr) => index.as_ref().or(msr.as_ref())?.0,
    };
    Some(MsrIndex::new(u32::try_from(number).ok()?))
}

/// Returns the outcome of an access to which a gate gave this action. If the line names no action, the access counts
/// as done.
fn outcome(action: Option<&str>) -> Outcome {
    match action {
        Some("deny") => Outcome::Faulted,
        _ => Outcome::Done,
    }
}

/// Returns the result of the access that an event with this reason and this action reports.
fn told(reason: Option<&str>, action: Option<&str>) -> Option<Told> {
    match (reason, action?) {
        (Some("unknown"), _) => Some(Told::Unknown),
        (Some("invalid"), _) => Some(Told::Invalid),
        (_, "kill") => Some(Told::Ended),
        (_, "deny" | "would-deny" | "would-kill") => Some(Told::Refused),
        _ => Some(Told::Passed),
    }
}

/// A number: a string such as `"0xc0000080"`, or a plain number.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a string such as \"0x8b\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                let digits = text.strip_prefix("0x").unwrap_or_default();
                match u64::from_str_radix(digits, 16) {
                    Ok(number) if !digits.starts_with('+') => Ok(Number(number)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        from.deserialize_any(Either)
    }
}
