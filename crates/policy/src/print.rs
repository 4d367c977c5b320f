//! Prints a policy as text.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use msrgate_filter::Access;
use msrgate_program::{Action, CpuSet, EntryId, Mask, Outside};

use crate::layout::{self, Body, Comments, EntryText, Field, Value, gap, header, shortened};
use crate::overrides::{Effect, Overrides};
use crate::parse::words::{self, word_for};
use crate::policy::{
    Entry, Firmness, Log, Mode, Policy, Replaces, Settings, Unknown, UnknownAction, WhenId,
};

/// Returns the policy as one text without includes. The text reads as the same policy: the same
/// settings, the same `[[when]]`s, and entries with the same actions for the same MSRs. Replaced
/// entries and repeated entries of one key are left out. The layout is that of
/// [`format`](crate::format()).
#[must_use]
pub fn print(policy: &Policy) -> String {
    let mut text = String::new();
    let overrides = Overrides::of(policy);
    layout::fields(&mut text, &head(policy.settings()));
    gap(&mut text);
    layout::entries(
        &mut text,
        "msrs",
        &Comments::default(),
        entries(policy, &overrides, None),
    );
    devices(&mut text, policy.settings());
    for (id, when) in policy.whens().iter().enumerate() {
        gap(&mut text);
        header(&mut text, "[[when]]", &Comments::default());
        layout::cpu(&mut text, field("cpu", cpus(when.cpus())));
        let entries = entries(policy, &overrides, Some(WhenId::new(id)));
        layout::entries(&mut text, "when.msrs", &Comments::default(), entries);
    }
    text
}

/// Writes the tables of the policy's devices, such as `[device.microcode]`.
pub(crate) fn devices(text: &mut String, settings: &Settings) {
    if let Some(microcode) = settings.microcode {
        let fields_of = [
            field("revision", number(microcode.revision)),
            field(
                "update",
                Value::text(word_for(&words::UPDATES, &microcode.update)),
            ),
        ];
        gap(text);
        header(text, "[device.microcode]", &Comments::default());
        layout::fields(text, &fields_of);
    }
}

fn field(key: &str, value: Value) -> Field {
    Field {
        comments: Comments::default(),
        key: key.to_owned(),
        value,
    }
}

/// Returns a number as a string, because TOML numbers have no room for all 64 bits.
fn number(number: impl std::fmt::LowerHex) -> Value {
    Value::Text(format!("{number:#x}"))
}

/// Returns `policy`, `default`, and the other settings that differ from their defaults.
pub(crate) fn head(settings: &Settings) -> Vec<Field> {
    let name = settings.name.as_deref();
    let audit = (settings.mode == Mode::Audit)
        .then(|| Value::text(word_for(&words::MODES, &settings.mode)));
    let unknown = (settings.unknown != Unknown::default()).then(|| unknown(&settings.unknown));
    let log = (settings.log != Log::default()).then(|| log(settings.log));
    let accept = settings.accept.iter().map(|gap| Value::text(&**gap));
    let accept = (!settings.accept.is_empty()).then(|| Value::list(accept));
    let all = [
        ("policy", Some(Value::Bare("1".to_owned()))),
        ("name", name.map(Value::text)),
        ("mode", audit),
        ("default", Some(Value::text(settings.default.word()))),
        ("unknown", unknown),
        ("log", log),
        ("accept", accept),
    ];
    let said = all.into_iter();
    said.filter_map(|(key, value)| Some(field(key, value?)))
        .collect()
}

fn unknown(unknown: &Unknown) -> Value {
    let one = |action| match action {
        UnknownAction::Deny => Value::text("deny"),
        UnknownAction::Ignore => Value::text("ignore"),
        UnknownAction::Value(value) => table([("value", number(value))]),
    };
    let log = unknown.log.map(|one| ("log", log(one)));
    let both = [("read", one(unknown.read)), ("write", one(unknown.write))];
    table(both.into_iter().chain(log))
}

fn table(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let fields = fields.into_iter();
    Value::Table(fields.map(|(key, value)| (key.to_owned(), value)).collect())
}

pub(crate) fn log(log: Log) -> Value {
    Value::text(word_for(&words::LOGS, &log))
}

pub(crate) fn cpus(cpus: &CpuSet) -> Value {
    let one = |range: &RangeInclusive<u32>| {
        let (first, last) = (range.start(), range.end());
        if first == last {
            Value::Bare(format!("{first:#x}"))
        } else {
            Value::Text(format!("{first:#x}..={last:#x}"))
        }
    };
    let vendor = cpus.vendor.iter().map(|vendors| {
        let names = vendors.iter().map(|vendor| Value::text(&**vendor));
        ("vendor", Value::list(names))
    });
    let numbers = [
        ("family", &cpus.family),
        ("model", &cpus.model),
        ("stepping", &cpus.stepping),
    ];
    let numbers = numbers.into_iter().filter_map(|(part, ranges)| {
        let ranges = ranges.as_ref()?.iter().map(one);
        Some((part, Value::list(ranges)))
    });
    table(vendor.chain(numbers))
}

/// Returns the entries of `[msrs]`, or of one `[when.msrs]`.
fn entries(policy: &Policy, overrides: &Overrides, when: Option<WhenId>) -> Vec<EntryText> {
    // If an overriding entry is in the same `[[when]]` as this entry, the two hold on the same
    // processors. The same is true if both entries are outside of every `[[when]]`.
    let is_gone = |id: EntryId| {
        let mut by = overrides.of_entry(id);
        by.any(|by| policy.entry(by).when == policy.entry(id).when)
    };
    let mut said = HashSet::new();
    let mut entries = Vec::new();
    for id in policy.ids() {
        let entry = policy.entry(id);
        if entry.when != when || is_gone(id) || !said.insert(entry.key()) {
            continue;
        }
        let replaces = match overrides.effect(id) {
            Some(Effect::OnSome) => Replaces::Included,
            Some(Effect::ForGood) | None => Replaces::Nothing,
        };
        entries.push(EntryText {
            comments: Comments::default(),
            key: entry.key().to_owned(),
            body: Body::Line(says(entry, replaces)),
        });
    }
    entries
}

/// Returns an entry's value: a word, or a table with both directions.
fn says(entry: &Entry, replaces: Replaces) -> Value {
    let is_true = |is: bool| is.then(|| Value::Bare("true".to_owned()));
    let all = [
        ("read", Some(action(entry.action(Access::Read)))),
        ("write", Some(action(entry.action(Access::Write)))),
        ("override", is_true(replaces == Replaces::Included)),
        ("final", is_true(entry.firmness == Firmness::Final)),
        ("log", entry.log.map(log)),
        ("why", entry.why().map(Value::text)),
    ];
    let said = all.into_iter();
    let said = said.filter_map(|(key, value)| Some((key.to_owned(), value?)));
    shortened(said.collect())
}

pub(crate) fn action(action: Option<&Action>) -> Value {
    match action {
        None => Value::text("inherit"),
        Some(Action::Handler(name)) => table([("handler", Value::text(&**name))]),
        Some(Action::Device(device)) => table([("device", Value::Text(device.to_string()))]),
        Some(Action::Register(register)) => {
            let reset = ("reset", number(register.reset));
            let fields = [reset].into_iter().chain(mask(register.mask));
            table([("register", table(fields))])
        }
        Some(Action::Value(value)) => table([("value", number(value))]),
        Some(Action::Mask(bits)) => table(mask(*bits)),
        Some(Action::Sticky(bits)) if *bits != u64::MAX => table([("sticky", number(bits))]),
        Some(action) => Value::text(action.word()),
    }
}

fn mask(mask: Mask) -> impl Iterator<Item = (&'static str, Value)> {
    let keep = match mask.outside {
        Outside::Deny => None,
        Outside::Keep => Some(("outside", Value::text("keep"))),
    };
    [("mask", number(mask.bits))].into_iter().chain(keep)
}

#[cfg(test)]
mod tests;
