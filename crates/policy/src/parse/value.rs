//! Values of TOML: their types, words and numbers.

use crate::nearest::one_of;
use miette::SourceSpan;
use toml::de::{DeTable, DeValue};

use super::{Reader, Value};
use crate::layout;
use crate::mistake::MistakeKind;
use crate::policy::At;
use crate::source::quoted;

/// A key of a policy's text, with its place.
#[derive(Clone, Copy)]
pub(super) struct Key<'k> {
    pub(super) text: &'k str,
    pub(super) span: SourceSpan,
}

/// A value of a policy's text, with its key.
#[derive(Clone, Copy)]
pub(super) struct Item<'k> {
    pub(super) key: Key<'k>,
    pub(super) value: &'k Value<'k>,
}

impl Item<'_> {
    pub(super) fn span(&self) -> SourceSpan {
        self.value.span().into()
    }
}

/// Returns a table's items in the order of the text.
pub(super) fn items<'t>(table: &'t DeTable<'t>) -> Vec<Item<'t>> {
    let mut items: Vec<_> = table
        .iter()
        .map(|(key, value)| Item {
            key: Key {
                text: key.get_ref(),
                span: key.span().into(),
            },
            value,
        })
        .collect();
    items.sort_by_key(|item| item.key.span.offset());
    items
}

impl Reader<'_> {
    pub(super) fn key_at(&self, key: Key<'_>) -> At {
        self.at(key.span)
    }

    pub(super) fn string<'k>(&mut self, item: Item<'k>) -> Option<&'k str> {
        if let DeValue::String(text) = item.value.get_ref() {
            Some(text)
        } else {
            let help = format!("write `{} = \"…\"`", quoted(item.key.text));
            self.wrong_type(item, "a string", help);
            None
        }
    }

    /// Returns the items of a table. `example` shows users the form of the table.
    pub(super) fn table<'k>(
        &mut self,
        item: Item<'k>,
        example: &'static str,
    ) -> Option<Vec<Item<'k>>> {
        if let DeValue::Table(table) = item.value.get_ref() {
            Some(items(table))
        } else {
            self.wrong_type(item, "a table", format!("write `{example}`"));
            None
        }
    }

    pub(super) fn is_true(&mut self, item: Item<'_>) -> bool {
        if let DeValue::Boolean(value) = item.value.get_ref() {
            *value
        } else {
            let help = format!("write `{} = true`, without quotes", quoted(item.key.text));
            self.wrong_type(item, "a boolean", help);
            false
        }
    }

    /// Returns the strings of a list.
    pub(super) fn strings<'k>(&mut self, item: Item<'k>) -> Vec<(&'k str, SourceSpan)> {
        let DeValue::Array(array) = item.value.get_ref() else {
            let help = match item.value.get_ref() {
                DeValue::String(text) => {
                    let (key, text) = (quoted(item.key.text), quoted(&layout::string(text)));
                    format!("write `{key} = [{text}]`")
                }
                _ => format!("write `{} = [\"…\"]`", quoted(item.key.text)),
            };
            self.wrong_type(item, "a list of strings", help);
            return Vec::new();
        };
        let each = array.iter().filter_map(|value| {
            let item = Item { value, ..item };
            let DeValue::String(text) = value.get_ref() else {
                let help = "write each item of the list in quotes".to_owned();
                self.wrong_type(item, "a list of strings", help);
                return None;
            };
            Some((&**text, item.span()))
        });
        each.collect()
    }

    /// Returns a number of 64 bits: a TOML number, or a string for numbers above 2^63.
    pub(super) fn number(&mut self, item: Item<'_>) -> Option<u64> {
        let found = match item.value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            DeValue::String(text) => parse_number(text),
            _ => {
                let help = "write a number such as `0x10`, or in quotes `\"0x10\"`".to_owned();
                self.wrong_type(item, "a whole number", help);
                return None;
            }
        };
        if found.is_none() {
            self.bad_number(item, 64);
        }
        found
    }

    /// Returns a number of 32 bits.
    pub(super) fn small_number(&mut self, item: Item<'_>) -> Option<u32> {
        let number = u32::try_from(self.number(item)?).ok();
        if number.is_none() {
            self.bad_number(item, 32);
        }
        number
    }

    fn bad_number(&mut self, item: Item<'_>, bits: u32) {
        let text = match item.value.get_ref() {
            DeValue::Integer(number) => number.to_string(),
            DeValue::String(text) => text.to_string(),
            _ => String::new(),
        };
        let kind = MistakeKind::BadNumber {
            help: number_instead(&text, bits),
            text: quoted(&text),
            key: quoted(item.key.text),
            bits,
        };
        self.report(self.at(item.span()), kind);
    }

    /// Returns the meaning of one of the allowed words.
    pub(super) fn word<T: Clone>(
        &mut self,
        item: Item<'_>,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let DeValue::String(word) = item.value.get_ref() else {
            let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
            let help = one_of("", &known, &format!("`{}`", quoted(item.key.text)), '"');
            self.wrong_type(item, "a word in quotes", help);
            return None;
        };
        let word = &**word;
        let found = words.iter().find(|(known, _)| *known == word);
        if found.is_none() && !self.has_enough_mistakes() {
            let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
            let kind = MistakeKind::UnknownWord {
                word: quoted(word),
                key: quoted(item.key.text),
                help: one_of(word, &known, &format!("`{}`", quoted(item.key.text)), '"'),
            };
            self.report(self.at(item.span()), kind);
        }
        found.map(|(_, meaning)| meaning.clone())
    }

    pub(super) fn wrong_type(&mut self, item: Item<'_>, wanted: &'static str, help: String) {
        let found = match item.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let key = quoted(item.key.text);
        self.report(
            self.at(item.span()),
            MistakeKind::WrongType {
                key,
                found,
                wanted,
                help,
            },
        );
    }

    pub(super) fn unknown_key(&mut self, key: Key<'_>, known: &[&str]) {
        if self.has_enough_mistakes() {
            return;
        }
        let kind = MistakeKind::UnknownKey {
            key: quoted(key.text),
            help: one_of(key.text, known, "a key here", '`'),
        };
        self.report(self.key_at(key), kind);
    }
}

pub(super) fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim().replace('_', "");
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        _ if !is_plain => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Returns the advice about text that is not a number.
fn number_instead(text: &str, bits: u32) -> String {
    let text = text.trim();
    let is_hexadecimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hexadecimal && !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return format!(
            "write `0x` before hexadecimal digits: `\"0x{}\"`",
            quoted(text)
        );
    }
    let digits = text.strip_prefix("0x").unwrap_or(text).replace('_', "");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let most = u64::MAX >> (u64::BITS - bits.clamp(1, u64::BITS));
        return format!("the largest possible number is `\"{most:#x}\"`");
    }
    if text.starts_with('-') {
        return "write the number without a sign".to_owned();
    }
    "write decimal digits, or `0x` and hexadecimal digits; a number above 2^63 needs quotes: `\"0xffffffffffffffff\"`"
        .to_owned()
}
