//! Reader of geopm's lists, which have bit fields. The format is
//! `{"msrs": {NAME: {"offset": "0x10", "fields": {NAME: …}}}}`.

use anyhow::Context;
use serde_json::{Map, Value};

use super::{Field, Mention, Rank, Source, hex, sentence};

pub(super) fn read(text: &str) -> anyhow::Result<Vec<Mention>> {
    let document: Value = serde_json::from_str(text)?;
    let mut mentions = Vec::new();
    for (name, register) in object(&document, "msrs")? {
        let offset = register["offset"].as_str().context("no offset")?;
        let index = hex(offset).with_context(|| name.clone())?;
        let mut mention = Mention::new(index, Source::Geopm).named(styled(name), Rank::Geopm);
        for (name, field) in object(register, "fields")? {
            mention.fields.push(Field {
                low: bit(field, "begin_bit")?,
                high: bit(field, "end_bit")?,
                name: name.clone(),
                summary: field["description"]
                    .as_str()
                    .and_then(sentence)
                    .unwrap_or_default(),
            });
        }
        mention.fields.sort_by_key(|field| field.low);
        mentions.push(mention);
    }
    Ok(mentions)
}

/// Returns the name with the prefix `MSR_`, which geopm's lists leave out.
fn styled(name: &str) -> String {
    if name.starts_with("IA32_") {
        name.to_owned()
    } else {
        format!("MSR_{name}")
    }
}

fn object<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a Map<String, Value>> {
    value[key].as_object().with_context(|| format!("no {key}"))
}

fn bit(field: &Value, key: &str) -> anyhow::Result<u8> {
    let number = field[key].as_u64().with_context(|| format!("no {key}"))?;
    Ok(u8::try_from(number)?)
}
