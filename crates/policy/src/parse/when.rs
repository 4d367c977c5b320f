//! Parses `[[when]]`: entries for some processors only.

use std::ops::RangeInclusive;

use msrgate_program::{CpuPart, CpuSet};
use toml::de::DeValue;

use super::Reader;
use super::entry::names_msrs;
use super::value::Item;
use super::words;
use crate::cpu::{check_model, check_number, check_vendor};
use crate::limits::MAX_WHENS;
use crate::mistake::MistakeKind;
use crate::policy::{When, WhenId};
use crate::source::quoted;

impl Reader<'_> {
    pub(super) fn whens(&mut self, item: Item<'_>) {
        let DeValue::Array(array) = item.value.get_ref() else {
            let help = "write `[[when]]`, with two brackets".to_owned();
            self.wrong_type(item, "a list of tables", help);
            return;
        };
        let found = self.whens.len() + array.len();
        if found > MAX_WHENS {
            let (what, limit) = ("`[[when]]`s", MAX_WHENS);
            self.report_text(MistakeKind::TooMany { what, found, limit });
            return;
        }
        for value in array {
            let one = Item { value, ..item };
            if let Some(parts) = self.table(one, "[[when]]") {
                self.when(one, &parts);
            }
        }
    }

    fn when(&mut self, item: Item<'_>, parts: &[Item<'_>]) {
        let id = WhenId::new(self.whens.len());
        let at = self.at(item.span());
        let mut cpus = None;
        let mut msrs = None;
        let mut has_misplaced = false;
        for part in parts {
            match part.key.text {
                "cpu" => cpus = Some(self.cpus(*part)),
                "msrs" => msrs = Some(*part),
                _ => {
                    has_misplaced = true;
                    self.misplaced_in_a_when(*part);
                }
            }
        }
        // A misplaced or misspelt key may be the missing key, or may belong below the missing key.
        // The missing key is then not reported as well.
        if cpus.is_none() && !has_misplaced {
            let help = "write the processors for which the `[[when]]` holds: `cpu = { vendor = \"GenuineIntel\", family = 6 }`";
            self.report(at, MistakeKind::MissingKey { key: "cpu", help });
        }
        if msrs.is_none() && !has_misplaced {
            let help =
                "write `[when.msrs]` below `cpu`, and the entries of the `[[when]]` below it";
            self.report(at, MistakeKind::MissingKey { key: "msrs", help });
        }
        // A `[[when]]` whose `cpu` was not understood holds on no processor, so its entries
        // conflict with no others.
        let cpus = cpus.flatten().unwrap_or_else(CpuSet::none);
        self.whens.push(When { cpus });
        if let Some(msrs) = msrs {
            self.msrs(msrs, Some(id));
        }
    }

    /// Reports a key of a `[[when]]` that belongs elsewhere, or is unknown.
    fn misplaced_in_a_when(&mut self, part: Item<'_>) {
        if self.has_enough_mistakes() {
            return;
        }
        let key = part.key.text;
        let help = if words::CPU.contains(&key) {
            format!("write it as a part of `cpu`: `{CPU}`")
        } else if names_msrs(key) && crate::nearest::meant(key, &words::WHEN).is_none() {
            "write `[when.msrs]` above the entries".to_owned()
        } else if words::TOP.contains(&key) {
            self.has_lost_default |= key == "default";
            "move it above the first line in brackets, such as `[msrs]`".to_owned()
        } else {
            self.unknown_key(part.key, &words::WHEN);
            return;
        };
        let kind = MistakeKind::Misplaced {
            key: quoted(key),
            place: "directly below `[[when]]`, where only `cpu` and `msrs` may be",
            help,
        };
        self.report(self.key_at(part.key), kind);
    }

    fn cpus(&mut self, item: Item<'_>) -> Option<CpuSet> {
        let before = self.mistakes.len();
        let mut cpus = CpuSet::default();
        let mut models_at = None;
        for part in self.table(item, CPU)? {
            match part.key.text {
                "vendor" => cpus.vendor = Some(self.vendors(part)),
                "family" => cpus.family = Some(self.numbers(part, CpuPart::FAMILY)),
                "model" => {
                    models_at = Some(self.at(part.span()));
                    cpus.model = Some(self.numbers(part, CpuPart::MODEL));
                }
                "stepping" => cpus.stepping = Some(self.numbers(part, CpuPart::STEPPING)),
                _ => self.unknown_key(part.key, &words::CPU),
            }
        }
        let families = cpus.family.iter().flatten().map(|range| *range.end());
        let models = cpus.model.iter().flatten().map(|range| *range.start());
        if let (Err(kind), Some(at)) = (check_model(families, models), models_at) {
            self.report(at, kind);
        }
        (self.mistakes.len() == before).then_some(cpus)
    }

    /// Reports an empty list. The entries of such a `[[when]]` would hold on no processor, and
    /// `default = "allow"` would then allow the accesses that they refuse.
    fn check_names_one(&mut self, item: Item<'_>, key: &'static str) {
        if matches!(item.value.get_ref(), DeValue::Array(array) if array.is_empty()) {
            self.report(self.at(item.span()), MistakeKind::ListsNothing { key });
        }
    }

    /// Returns one vendor, or a list of vendors.
    fn vendors(&mut self, item: Item<'_>) -> Vec<Box<str>> {
        self.check_names_one(item, "vendor");
        let names = match item.value.get_ref() {
            DeValue::Array(_) => self.strings(item),
            _ => Vec::from_iter(self.string(item).map(|name| (name, item.span()))),
        };
        for &(name, span) in &names {
            if let Err(kind) = check_vendor(name)
                && !self.has_enough_mistakes()
            {
                self.report(self.at(span), kind);
            }
        }
        names.into_iter().map(|(name, _)| name.into()).collect()
    }

    /// Returns a number, a range such as `"0x6a..=0x6f"`, or a list of both.
    fn numbers(&mut self, item: Item<'_>, part: CpuPart) -> Vec<RangeInclusive<u32>> {
        self.check_names_one(item, part.key);
        let each = match item.value.get_ref() {
            DeValue::Array(array) => array.iter().map(|value| Item { value, ..item }).collect(),
            _ => vec![item],
        };
        let ranges = each.into_iter().filter_map(|item| {
            let range = self.range(item)?;
            // A range may end beyond the limit: it means all numbers from its start on.
            if let Err(kind) = check_number(part, *range.start()) {
                self.report(self.at(item.span()), kind);
                return None;
            }
            Some(range)
        });
        ranges.collect()
    }

    fn range(&mut self, item: Item<'_>) -> Option<RangeInclusive<u32>> {
        if let DeValue::String(text) = item.value.get_ref()
            && let Some((first, last)) = ends(text)
        {
            let is_joined = text.contains("..=");
            let [first_number, last_number] = [first, last].map(super::value::parse_number);
            let range = first_number.zip(last_number).and_then(|(first, last)| {
                let first = u32::try_from(first).ok()?;
                Some(first..=u32::try_from(last).ok()?)
            });
            let help = match range {
                Some(range) if is_joined && !range.is_empty() => return Some(range),
                Some(range) if range.is_empty() => format!("write `\"{last}..={first}\"`"),
                Some(_) => format!("write `\"{first}..={last}\"`"),
                None => "a range looks like `\"0x6a..=0x6f\"`".to_owned(),
            };
            let (key, text) = (quoted(item.key.text), quoted(text));
            self.report(
                self.at(item.span()),
                MistakeKind::BadRange { text, key, help },
            );
            return None;
        }
        self.small_number(item).map(|number| number..=number)
    }
}

/// An example of a `cpu`, for advice.
const CPU: &str = "cpu = { vendor = \"GenuineIntel\", family = 6 }";

/// Returns the ends of a range, or of a text that is meant as one.
fn ends(text: &str) -> Option<(&str, &str)> {
    let (first, last) = ["..=", "..", "-"]
        .iter()
        .find_map(|joint| text.split_once(joint))?;
    let (first, last) = (first.trim(), last.trim());
    (!first.is_empty()).then_some((first, last))
}
