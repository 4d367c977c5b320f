//! The entries of `[msrs]`: what each says of its MSRs.

use msrgate_filter::{Access, MsrIndex};
use toml::de::DeValue;

use super::{Item, MAX_ENTRIES, Reader, items};
use crate::mistake::Mistake;
use crate::policy::{Action, Entry};
use crate::source::quoted;

/// Words for both directions at once.
const SHORT: [(&str, [Action; 2]); 4] = [
    ("rw", [Action::Allow, Action::Allow]),
    ("r", [Action::Allow, Action::Deny]),
    ("w", [Action::Deny, Action::Allow]),
    ("none", [Action::Deny, Action::Deny]),
];

/// Words for one direction.
const LONG: [(&str, Option<Action>); 3] = [
    ("allow", Some(Action::Allow)),
    ("deny", Some(Action::Deny)),
    ("inherit", None),
];

impl Reader<'_> {
    pub(super) fn msrs(&mut self, item: Item<'_>) -> Vec<Entry> {
        let DeValue::Table(table) = item.value.get_ref() else {
            self.wrong_type(item, "a table, [msrs]");
            return Vec::new();
        };
        if table.len() > MAX_ENTRIES {
            self.mistakes.push(Mistake::TooManyEntries {
                entries: table.len(),
                limit: MAX_ENTRIES,
            });
            return Vec::new();
        }
        items(table)
            .into_iter()
            .filter_map(|item| self.entry(item))
            .collect()
    }

    /// One entry. The key and the value are both looked at, so that both are complained of.
    fn entry(&mut self, item: Item<'_>) -> Option<Entry> {
        let msrs = self.msr_range(item.key);
        let (actions, why) = match item.value.get_ref() {
            DeValue::String(_) => (self.action(item, &SHORT).map(|both| both.map(Some)), None),
            DeValue::Table(_) => self.long_entry(item),
            _ => {
                self.wrong_type(item, "\"rw\", \"r\", \"w\", \"none\", or a table");
                (None, None)
            }
        };
        Some(Entry {
            key: item.key.text.into(),
            span: item.key.at,
            place: self.source.place(item.key.at),
            msrs: msrs?,
            actions: actions?,
            why,
        })
    }

    fn long_entry(&mut self, item: Item<'_>) -> (Option<[Option<Action>; 2]>, Option<Box<str>>) {
        let DeValue::Table(table) = item.value.get_ref() else {
            return (None, None);
        };
        let (mut actions, mut why) = ([None; 2], None);
        for inner in items(table) {
            match inner.key.text {
                "read" => actions[0] = Some(self.action(inner, &LONG)),
                "write" => actions[1] = Some(self.action(inner, &LONG)),
                "why" => why = self.string(inner).map(Box::from),
                _ => self.unknown_key(inner.key, &["read", "write", "why"]),
            }
        }
        for access in Access::ALL {
            if actions[access as usize].is_none() {
                self.mistakes.push(Mistake::MissingDirection {
                    key: quoted(item.key.text),
                    access,
                    at: item.key.at,
                });
            }
        }
        let [read, write] = actions.map(Option::flatten);
        (read.zip(write).map(|(read, write)| [read, write]), why)
    }

    /// No range reaches MSR 0xffffffff (S3.5): an entry may name it only to say what the default
    /// says.
    pub(super) fn last_msr_obeys_the_default(
        &mut self,
        entries: &[Entry],
        default: Option<Action>,
    ) {
        let Some(default) = default else { return };
        for entry in entries {
            let differs = entry
                .actions
                .iter()
                .flatten()
                .any(|&action| action != default);
            if entry.msrs.contains(MsrIndex::MAX) && differs {
                self.mistakes.push(Mistake::NamesTheLastMsr {
                    text: quoted(&entry.key),
                    at: entry.span,
                });
            }
        }
    }
}
