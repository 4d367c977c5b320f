//! Parses the settings: everything outside of the entries.

use msrgate_program::Action;
use toml::de::DeValue;

use super::Reader;
use super::value::{Item, parse_number};
use super::words;
use crate::lint::Code;
use crate::mistake::{Label, Mistake, MistakeKind};
use crate::nearest::one_of;
use crate::policy::{At, Log, Microcode, Mode, Settings, SourceId, Unknown, UnknownAction};
use crate::source::quoted;

/// The settings of one text. A setting that is present but was not understood is `Some((None, _))`.
#[derive(Default)]
pub(super) struct Said {
    name: Option<Box<str>>,
    mode: Setting<Mode>,
    default: Setting<Action>,
    unknown: Setting<Unknown>,
    log: Setting<Log>,
    accept: Vec<Box<str>>,
    microcode: Setting<Microcode>,
}

/// The value and the place of a setting. The inner `None` stands for a value that was not
/// understood.
type Setting<T> = Option<(Option<T>, At)>;

/// The settings of one text that matter to final entries.
pub(crate) struct Stated {
    /// The mode and its place, if the text has a valid one.
    pub(crate) mode: Option<(Mode, At)>,
    /// True if the text has a `default`.
    pub(crate) has_default: bool,
}

impl Reader<'_> {
    /// Parses one of the keys that are settings.
    pub(super) fn setting(&mut self, item: Item<'_>) {
        let at = self.key_at(item.key);
        let id = self.current.number();
        match item.key.text {
            "name" => self.said[id].name = self.string(item).map(Box::from),
            "mode" => self.said[id].mode = Some((self.word(item, &words::MODES), at)),
            "default" => self.said[id].default = Some((self.word(item, &words::DEFAULTS), at)),
            "unknown" => self.said[id].unknown = Some((self.unknown(item), at)),
            "log" => self.said[id].log = Some((self.word(item, &words::LOGS), at)),
            "accept" => self.accept(item),
            _ => self.devices(item),
        }
    }

    fn unknown(&mut self, item: Item<'_>) -> Option<Unknown> {
        if let DeValue::String(word) = item.value.get_ref() {
            let known = words::UNKNOWNS.map(|(known, _)| known);
            if known.contains(&&**word) {
                return self.word(item, &words::UNKNOWNS);
            }
            let all = one_of(word, &known, "`unknown`", '"');
            let kind = MistakeKind::UnknownWord {
                word: quoted(word),
                key: quoted(item.key.text),
                help: format!(
                    "with \"gp\" the guest gets #GP; with \"ignore\" a read gives 0 and a write does nothing; {all}"
                ),
            };
            self.report(self.at(item.span()), kind);
            return None;
        }
        let before = self.mistakes.len();
        let mut unknown = Unknown::default();
        for inner in self.table(item, "unknown = { read = 0, write = \"ignore\" }")? {
            match inner.key.text {
                "read" => unknown.read = self.unknown_read(inner).unwrap_or_default(),
                "write" => {
                    let write = self.word(inner, &words::UNKNOWN_WRITES);
                    unknown.write = write.unwrap_or_default();
                }
                "log" => unknown.log = self.word(inner, &words::LOGS),
                _ => self.unknown_key(inner.key, &words::UNKNOWN),
            }
        }
        (self.mistakes.len() == before).then_some(unknown)
    }

    fn unknown_read(&mut self, item: Item<'_>) -> Option<UnknownAction> {
        match item.value.get_ref() {
            DeValue::String(word) if word == "deny" => Some(UnknownAction::default()),
            DeValue::String(word) if parse_number(word).is_none() => {
                let kind = MistakeKind::UnknownWord {
                    word: quoted(word),
                    key: quoted(item.key.text),
                    help: "write the number that a read gives, such as `read = 0`, or `read = \"deny\"`"
                        .to_owned(),
                };
                self.report(self.at(item.span()), kind);
                None
            }
            DeValue::Table(_) => match self.table(item, "")?.as_slice() {
                [value] if value.key.text == "value" => {
                    self.number(*value).map(UnknownAction::Value)
                }
                _ => {
                    let help = "write `read = \"deny\"`, or a number: `read = \"0x0\"`".to_owned();
                    self.wrong_type(item, "\"deny\" or a number", help);
                    None
                }
            },
            _ => self.number(item).map(UnknownAction::Value),
        }
    }

    fn accept(&mut self, item: Item<'_>) {
        let warnings = words::warnings().map(Code::word);
        let known: Vec<_> = words::gaps().chain(warnings).collect();
        for (name, span) in self.strings(item) {
            if self.has_enough_mistakes() {
                return;
            }
            if known.contains(&name) {
                once(&mut self.said[self.current.number()].accept, name.into());
            } else {
                let help = one_of(name, &known, "a gap or a warning", '"');
                let name = quoted(name);
                self.report(self.at(span), MistakeKind::UnknownAccepted { name, help });
            }
        }
    }

    fn devices(&mut self, item: Item<'_>) {
        let before = self.mistakes.len();
        let Some(devices) = self.table(item, "[device.microcode]") else {
            return;
        };
        for device in devices {
            let known = words::DEVICES.map(|(device, _)| device);
            if known.contains(&device.key.text) {
                let at = self.key_at(device.key);
                let microcode = self.microcode(device);
                self.said[self.current.number()].microcode = Some((microcode, at));
            } else if words::MICROCODE.contains(&device.key.text) {
                let key = quoted(device.key.text);
                let kind = MistakeKind::Misplaced {
                    help: "write `[device.microcode]` in place of `[device]`".to_owned(),
                    place: "below `[device]`, where each key names a device",
                    key,
                };
                self.report(self.key_at(device.key), kind);
            } else if !self.has_enough_mistakes() {
                let name = quoted(device.key.text);
                let help = "write `[device.microcode]`: the only device is `microcode`".to_owned();
                self.report(
                    self.key_at(device.key),
                    MistakeKind::UnknownDevice { name, help },
                );
            }
        }
        self.has_broken_device |= self.mistakes.len() != before;
    }

    fn microcode(&mut self, item: Item<'_>) -> Option<Microcode> {
        let (mut revision, mut update) = (None, None);
        let mut has_unknown = false;
        for inner in self.table(item, "[device.microcode]")? {
            match inner.key.text {
                "revision" => revision = Some(self.small_number(inner)),
                "update" => update = Some(self.word(inner, &words::UPDATES)),
                _ => {
                    has_unknown = true;
                    self.unknown_key(inner.key, &words::MICROCODE);
                }
            }
        }
        let at = self.key_at(item.key);
        // An unknown key may be a misspelt form of the missing key. The missing key is then not
        // reported as well.
        if revision.is_none() && !has_unknown {
            let help = "write the revision that the guest reads: `revision = \"0x2b000000\"`";
            self.report(
                at,
                MistakeKind::MissingKey {
                    key: "revision",
                    help,
                },
            );
        }
        if update.is_none() && !has_unknown {
            let help = "write the answer to an update: `update = \"accept\"`, `update = \"ignore\"` or `update = \"deny\"`";
            self.report(
                at,
                MistakeKind::MissingKey {
                    key: "update",
                    help,
                },
            );
        }
        let (revision, update) = (revision??, update??);
        Some(Microcode { revision, update })
    }

    pub(super) fn default_is_there(&mut self) {
        if self.said[0].default.is_none() && !self.has_lost_default {
            self.missing(
                "default",
                "write `default = \"deny\"` or `default = \"allow\"` above `[msrs]`: it decides the MSRs that no entry names",
            );
        }
    }

    /// Sets a `default` if the policy does not state one, so that reading can go on. Returns true
    /// if the policy states a `default`.
    pub(super) fn stand_in_for_default(&mut self) -> bool {
        let default = &mut self.said[0].default;
        let is_there = default.is_some();
        default.get_or_insert((Some(Action::Deny), At::new(SourceId::new(0), (0, 0).into())));
        is_there
    }

    /// Returns the settings of each text, indexed by [`SourceId`], before [`Self::settings`]
    /// combines them.
    pub(super) fn stated(&self) -> Vec<Stated> {
        let stated = |said: &Said| Stated {
            mode: said.mode.and_then(|(mode, at)| Some((mode?, at))),
            has_default: said.default.is_some(),
        };
        self.said.iter().map(stated).collect()
    }

    /// Combines the settings of all texts. An include may give a setting only the value that the
    /// policy gives it, too.
    pub(super) fn settings(&mut self) -> Option<Settings> {
        let mut said = std::mem::take(&mut self.said).into_iter();
        let mut all = said.next()?;
        // An include may set devices and accepted gaps that the policy does not have, because the
        // entries of the include need them.
        for one in said {
            let Said {
                mode,
                default,
                unknown,
                log,
                microcode,
                ..
            } = &one;
            self.agree(
                "mode",
                all.mode.as_ref(),
                mode.as_ref(),
                Some(&Mode::default()),
            );
            self.agree("default", all.default.as_ref(), default.as_ref(), None);
            self.agree(
                "unknown",
                all.unknown.as_ref(),
                unknown.as_ref(),
                Some(&Unknown::default()),
            );
            self.agree("log", all.log.as_ref(), log.as_ref(), Some(&Log::default()));
            self.agree(
                "device.microcode",
                all.microcode.as_ref(),
                microcode.as_ref(),
                None,
            );
            all.microcode = all.microcode.or(one.microcode);
            // An include does not accept warnings: for example, it could hide that it loosens the policy.
            for gap in one.accept {
                if words::gaps().any(|known| *known == *gap) {
                    once(&mut all.accept, gap);
                }
            }
        }
        let default = all.default.and_then(|(default, _)| default)?;
        let unknown_at = all.unknown.as_ref().map(|(_, at)| *at);
        let unknown = all
            .unknown
            .and_then(|(unknown, _)| unknown)
            .unwrap_or_default();
        let asks = (unknown.read, unknown.write) != Default::default();
        if let (true, Action::Deny, Some(at)) = (asks, &default, unknown_at) {
            self.report(at, MistakeKind::UnknownNeedsAllow);
        }
        Some(Settings {
            name: all.name,
            mode: understood(all.mode),
            default,
            unknown,
            log: understood(all.log),
            accept: all.accept,
            microcode: all.microcode.and_then(|(microcode, _)| microcode),
        })
    }

    /// Checks that an include has the same setting as the policy. If the policy does not state the
    /// setting, the policy's value is `silent`.
    fn agree<T: PartialEq>(
        &mut self,
        key: &'static str,
        policy: Option<&(Option<T>, At)>,
        include: Option<&(Option<T>, At)>,
        silent: Option<&T>,
    ) {
        let Some((Some(there), at)) = include else {
            return;
        };
        let here = match policy {
            Some((here, _)) => here.as_ref(),
            None => silent,
        };
        if here.is_some_and(|here| here != there) {
            let second =
                policy.map(|(_, at)| Label::saying(*at, "the value in the policy".to_owned()));
            let first = Label::saying(*at, "the value in the included file".to_owned());
            let file = quoted(self.sources[at.source().number()].name());
            self.mistake(Mistake {
                kind: MistakeKind::Disagrees { key, file },
                places: [first].into_iter().chain(second).collect(),
            });
        }
    }
}

/// Adds a word, unless the list has it. The list stays short: each entry is compared with all
/// accepted words.
fn once(words: &mut Vec<Box<str>>, word: Box<str>) {
    if !words.contains(&word) {
        words.push(word);
    }
}

fn understood<T: Default>(setting: Setting<T>) -> T {
    setting.and_then(|(value, _)| value).unwrap_or_default()
}
