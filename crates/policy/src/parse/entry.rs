//! Parses the entries of `[msrs]`.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, Emulated, Mask, MsrSet, Outside};
use toml::de::DeValue;

use super::Reader;
use super::value::{Item, Key};
use super::words::{self, Says};
use crate::limits::{MAX_ENTRIES, MAX_GROUPS};
use crate::mistake::{Mistake, MistakeKind};
use crate::policy::{Entry, Firmness, Log, Replaces, WhenId};
use crate::selector::{SelectorError, parse_msrs};
use crate::source::quoted;

/// The table of an entry, as far as it was understood.
#[derive(Default)]
struct Long {
    /// The actions, indexed by [`Access`]: the key that set the action, and the action, if it was
    /// understood.
    actions: [Option<(String, Option<Says>)>; 2],
    why: Option<Box<str>>,
    log: Option<Log>,
    replaces: Replaces,
    firmness: Firmness,
}

impl Reader<'_> {
    pub(super) fn msrs(&mut self, item: Item<'_>, when: Option<WhenId>) {
        let DeValue::Table(table) = item.value.get_ref() else {
            let help = "write `[msrs]` on a line of its own, and below it entries such as `IA32_PAT = \"r\"`".to_owned();
            self.wrong_type(item, "a table", help);
            return;
        };
        let found = self.entries.len() + table.len();
        if found > MAX_ENTRIES {
            let (what, limit) = ("entries", MAX_ENTRIES);
            self.report_text(MistakeKind::TooMany { what, found, limit });
            return;
        }
        self.entries.reserve_exact(table.len());
        for item in super::items(table) {
            if self.has_enough_mistakes() {
                break;
            }
            let entry = self.entry(item, when);
            self.entries.extend(entry);
        }
    }

    /// Parses one entry. Mistakes of the key and of the value are both reported.
    fn entry(&mut self, item: Item<'_>, when: Option<WhenId>) -> Option<Entry> {
        if self.is_misplaced(item, when) {
            return None;
        }
        let before = self.mistakes.len();
        let msrs = self.msrs_of(item.key);
        // A key that does not look like an MSR may be meant for something else, so its value is not
        // checked.
        if self
            .mistakes
            .get(before..)
            .is_some_and(|new| new.iter().any(is_unlike_any_msr))
        {
            return None;
        }
        let long = match item.value.get_ref() {
            DeValue::String(word) => {
                if let Some(example) = of_one_direction(word) {
                    self.needs_a_table(item, word, &format!("{{ {example} }}"));
                    return None;
                }
                let both = self.word(item, &words::BOTH);
                let said = |action| (String::new(), Some(Says::This(action)));
                Long {
                    actions: both?.map(|action| Some(said(action))),
                    ..Long::default()
                }
            }
            DeValue::Table(_) => self.long_entry(item)?,
            _ => {
                let help = "write \"rw\", \"r\", \"w\", \"none\", or `{ read = \"allow\", write = \"deny\" }`".to_owned();
                self.wrong_type(item, "a word or a table", help);
                return None;
            }
        };
        let msrs = msrs?;
        self.count_group(&msrs)?;
        let [read, write] = long.actions.map(|said| said.and_then(|(_, says)| says));
        let action = |says| match says {
            Says::Inherit => None,
            Says::This(action) => Some(action),
        };
        let entry = Entry {
            key: item.key.text.trim().into(),
            at: self.key_at(item.key),
            place: self.text().place(item.key.span),
            when,
            msrs,
            actions: [action(read?), action(write?)],
            why: long.why,
            log: long.log,
            replaces: long.replaces,
            firmness: long.firmness,
        };
        self.devices_are_at_home(&entry);
        Some(entry)
    }

    /// Reports a key below `[msrs]` that is a setting of the policy or a part of an entry, and
    /// returns true. Other keys are not reported.
    fn is_misplaced(&mut self, item: Item<'_>, when: Option<WhenId>) -> bool {
        let key = item.key.text;
        let help = if words::TOP.contains(&key) {
            self.has_lost_default |= key == "default";
            "move it above the first line in brackets, such as `[msrs]`: all lines below such a line belong to its table"
        } else if words::ENTRY.contains(&key) {
            "write an entry for each MSR, such as `IA32_PAT = { read = \"allow\", write = \"deny\" }`"
        } else {
            return false;
        };
        let kind = MistakeKind::Misplaced {
            key: quoted(key),
            place: match when {
                Some(_) => "below `[when.msrs]`, where each key names MSRs",
                None => "below `[msrs]`, where each key names MSRs",
            },
            help: help.to_owned(),
        };
        self.report(self.key_at(item.key), kind);
        true
    }

    /// Reports a word that means nothing as the value of this key. The advice is to write `table`
    /// as the value instead.
    fn needs_a_table(&mut self, item: Item<'_>, word: &str, table: &str) {
        let kind = MistakeKind::UnknownWord {
            word: quoted(word),
            key: quoted(item.key.text),
            help: format!("write `{} = {table}`", quoted(item.key.text)),
        };
        self.report(self.at(item.span()), kind);
    }

    /// Counts a group. Groups beyond the limit are left out, because each is compared with all
    /// other entries.
    fn count_group(&mut self, msrs: &MsrSet) -> Option<()> {
        self.groups += usize::from(msrs.as_range().is_none());
        if self.groups == MAX_GROUPS + 1 {
            let (what, found, limit) = ("groups", self.groups, MAX_GROUPS);
            self.report_text(MistakeKind::TooMany { what, found, limit });
        }
        (self.groups <= MAX_GROUPS || msrs.as_range().is_some()).then_some(())
    }

    fn long_entry(&mut self, item: Item<'_>) -> Option<Long> {
        let mut long = Long::default();
        for inner in self.table(item, "{ read = \"allow\", write = \"deny\" }")? {
            match inner.key.text {
                "read" => self.say(item.key, &mut long, inner, &[Access::Read]),
                "write" => self.say(item.key, &mut long, inner, &[Access::Write]),
                "device" | "register" => self.say(item.key, &mut long, inner, &Access::ALL),
                "why" => long.why = self.string(inner).map(Box::from),
                "log" => long.log = self.word(inner, &words::LOGS),
                "override" if self.is_true(inner) => long.replaces = Replaces::Included,
                "final" if self.is_true(inner) => long.firmness = Firmness::Final,
                "override" | "final" => {}
                other if words::ACTION.contains(&other) => {
                    let kind = MistakeKind::Misplaced {
                        key: quoted(other),
                        place: "beside `read` and `write`, but is an action for one of them",
                        help: format!(
                            "write it inside one of them, such as `{}`",
                            in_one_direction(other)
                        ),
                    };
                    self.report(self.key_at(inner.key), kind);
                }
                _ => self.unknown_key(inner.key, &words::ENTRY),
            }
        }
        for access in Access::ALL {
            if long.actions[access as usize].is_none() {
                let key = quoted(item.key.text);
                self.report(
                    self.key_at(item.key),
                    MistakeKind::MissingDirection { key, access },
                );
            }
        }
        Some(long)
    }

    /// Records in `long` the action that the key and value `inner` give to the directions `of`.
    fn say(&mut self, key: Key<'_>, long: &mut Long, inner: Item<'_>, of: &[Access]) {
        let says = match inner.key.text {
            "device" => self.device(inner).map(Says::This),
            "register" => self.register(inner).map(Says::This),
            _ => self.action(inner, of[0]),
        };
        for &access in of {
            let this = inner.key.text.to_owned();
            if let Some((before, _)) = &long.actions[access as usize] {
                let kind = MistakeKind::SaidTwice {
                    key: quoted(key.text),
                    one: before.clone(),
                    other: this,
                };
                self.report(self.key_at(inner.key), kind);
                return;
            }
            long.actions[access as usize] = Some((this, says.clone()));
        }
    }

    /// Parses the value of `read =` or `write =`.
    fn action(&mut self, item: Item<'_>, access: Access) -> Option<Says> {
        let says = match item.value.get_ref() {
            DeValue::Table(_) => Says::This(self.action_table(item)?),
            DeValue::String(word) => {
                if let Some((_, example)) = EXAMPLES.iter().find(|(known, _)| known == word) {
                    self.needs_a_table(item, word, example);
                    return None;
                }
                self.word(item, &words::ONE)?
            }
            other => {
                let key = item.key.text;
                let help = match other {
                    DeValue::Integer(number) => format!("write `{key} = {{ value = {number} }}`"),
                    _ => format!("write `{key} = \"allow\"` or `{key} = \"deny\"`"),
                };
                self.wrong_type(item, "a word or a table", help);
                return None;
            }
        };
        if let Says::This(action) = &says
            && !action.is_for(access)
        {
            let word = action.word();
            self.report(
                self.at(item.span()),
                MistakeKind::OtherDirection { word, access },
            );
            return None;
        }
        Some(says)
    }

    /// Parses an action that is a table, such as `{ value = … }` or `{ mask = …, outside = … }`.
    fn action_table(&mut self, item: Item<'_>) -> Option<Action> {
        let before = self.mistakes.len();
        let mut action: Option<(&str, Option<Action>)> = None;
        let mut outside = None;
        for inner in self.table(item, "{ value = \"0x0\" }")? {
            let found = match inner.key.text {
                "value" => self.number(inner).map(Action::Value),
                "mask" => self.number(inner).map(|bits| {
                    let outside = Outside::default();
                    Action::Mask(Mask { bits, outside })
                }),
                "sticky" => self.number(inner).map(Action::Sticky),
                "handler" => self.string(inner).map(|name| Action::Handler(name.into())),
                "device" => self.device(inner),
                "register" => self.register(inner),
                "outside" => {
                    outside = Some((inner, self.outside(inner)));
                    continue;
                }
                _ => {
                    self.unknown_key(inner.key, &words::ACTION);
                    continue;
                }
            };
            if let Some((one, _)) = action {
                let kind = MistakeKind::SaidTwice {
                    key: quoted(item.key.text),
                    one: one.to_owned(),
                    other: inner.key.text.to_owned(),
                };
                self.report(self.key_at(inner.key), kind);
                return None;
            }
            action = Some((inner.key.text, found));
        }
        let Some((_, action)) = action else {
            if self.mistakes.len() == before {
                let kind = MistakeKind::WrongType {
                    key: quoted(item.key.text),
                    found: "a table without an action",
                    wanted: "a table with an action",
                    help: "write an action in it, such as `{ value = \"0x0\" }`".to_owned(),
                };
                self.report(self.at(item.span()), kind);
            }
            return None;
        };
        match (action?, outside) {
            (Action::Mask(mask), Some((_, outside))) => Some(Action::Mask(Mask {
                outside: outside?,
                ..mask
            })),
            (_, Some((inner, _))) => {
                self.unknown_key(inner.key, &words::ACTION[..1]);
                None
            }
            (action, None) => Some(action),
        }
    }

    fn outside(&mut self, item: Item<'_>) -> Option<Outside> {
        self.word(item, &words::OUTSIDES)
    }

    fn device(&mut self, item: Item<'_>) -> Option<Action> {
        let device = self.word(item, &words::DEVICES)?;
        Some(Action::Device(device))
    }

    fn register(&mut self, item: Item<'_>) -> Option<Action> {
        let (mut reset, mut bits, mut outside) = (None, None, Some(Outside::default()));
        let mut has_unknown = false;
        for inner in self.table(item, REGISTER)? {
            match inner.key.text {
                "reset" => reset = Some(self.number(inner)),
                "mask" => bits = Some(self.number(inner)),
                "outside" => outside = self.outside(inner),
                _ => {
                    has_unknown = true;
                    self.unknown_key(inner.key, &words::REGISTER);
                }
            }
        }
        let at = self.at(item.span());
        // An unknown key may be a misspelt form of the missing key. The missing key is then not
        // reported as well.
        if reset.is_none() && !has_unknown {
            let help = "write the register's value after a reset: `reset = \"0\"`";
            self.report(at, MistakeKind::MissingKey { key: "reset", help });
        }
        if bits.is_none() && !has_unknown {
            let help = "write the bits that a guest may change: `mask = \"0xffffffff\"`";
            self.report(at, MistakeKind::MissingKey { key: "mask", help });
        }
        let (reset, bits, outside) = (reset??, bits??, outside?);
        let mask = Mask { bits, outside };
        Some(Action::Register(Emulated { reset, mask }))
    }

    /// Reports a device that an entry names outside of the device's own registers.
    fn devices_are_at_home(&mut self, entry: &Entry) {
        const TRIGGERS: [u32; 2] = [0x79, 0xc001_0020];
        for access in Access::ALL {
            let Some(Action::Device(device)) = entry.action(access) else {
                continue;
            };
            let at_home = entry.msrs.as_range().is_some_and(|range| {
                range.count() == 1 && TRIGGERS.map(MsrIndex::new).contains(&range.first())
            });
            if !at_home {
                let kind = MistakeKind::DeviceElsewhere {
                    key: quoted(&entry.key),
                    device: device.to_string(),
                    help: "use this device for IA32_BIOS_UPDT_TRIG (0x79) or, on AMD, for 0xc0010020: a guest loads microcode through these registers",
                };
                self.report(entry.at, kind);
                return;
            }
        }
    }
}

const REGISTER: &str = "{ register = { reset = \"0\", mask = \"0xff\" } }";

/// The actions that are tables, each with an example.
const EXAMPLES: [(&str, &str); 5] = [
    ("value", "{ value = \"0x0\" }"),
    ("mask", "{ mask = \"0xff\" }"),
    ("handler", "{ handler = \"NAME\" }"),
    ("device", "{ device = \"microcode\" }"),
    ("register", REGISTER),
];

/// Returns an example that sets both directions, for a word that cannot be the whole value of an
/// entry, such as `kill`.
fn of_one_direction(word: &str) -> Option<String> {
    match word {
        "kill" => Some("read = \"kill\", write = \"kill\"".to_owned()),
        "inherit" => Some("read = \"inherit\", write = \"deny\"".to_owned()),
        "ignore" | "pin" | "sticky" => Some(format!("read = \"allow\", write = \"{word}\"")),
        "device" => Some("device = \"microcode\"".to_owned()),
        "register" => Some("register = { reset = \"0\", mask = \"0xff\" }".to_owned()),
        "value" | "mask" | "handler" => Some(match word {
            "value" => "read = { value = \"0x0\" }, write = \"deny\"".to_owned(),
            _ => format!("read = \"allow\", {}", in_one_direction(word)),
        }),
        _ => None,
    }
}

/// Returns an example of `read` or `write` with a table that contains this key.
fn in_one_direction(word: &str) -> String {
    let example = EXAMPLES.iter().find(|(known, _)| *known == word);
    let (direction, example) = match example {
        Some(("value", example)) => ("read", *example),
        Some((_, example)) => ("write", *example),
        None if word == "sticky" => ("write", "{ sticky = \"0x1\" }"),
        None => ("write", "{ mask = \"0xff\", outside = \"keep\" }"),
    };
    format!("{direction} = {example}")
}

/// Returns true if a key that is not a setting of the policy names MSRs, or may be meant to name
/// MSRs.
pub(super) fn names_msrs(key: &str) -> bool {
    match parse_msrs(key) {
        Err(SelectorError::UnknownName { near, .. }) => !near.is_empty(),
        Err(SelectorError::List(_)) => false,
        _ => true,
    }
}

fn is_unlike_any_msr(mistake: &Mistake) -> bool {
    let MistakeKind::Msrs(SelectorError::UnknownName { near, .. }) = &mistake.kind else {
        return false;
    };
    near.is_empty()
}
