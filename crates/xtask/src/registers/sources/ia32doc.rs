//! Reader of ia32-doc's list of the SDM's architectural MSRs. An element of the list is a register, which
//! has a `value`, or a group of registers.

use anyhow::{Context, bail};
use saphyr::{LoadableYamlNode, Yaml};

use super::{Field, Mention, Rank, Source, sentence};

/// The highest bit that a physical address can have. This number replaces `MAXPHYADDR-1` in ia32-doc's list.
const PHYSICAL_ADDRESS_TOP: u8 = 51;

pub(super) fn read(text: &str) -> anyhow::Result<Vec<Mention>> {
    let documents = Yaml::load_from_str(text)?;
    let entries = documents
        .first()
        .and_then(Yaml::as_sequence)
        .context("the file is not a list of registers")?;
    let mut mentions = Vec::new();
    for entry in entries {
        walk(entry, &[], &mut mentions)?;
    }
    Ok(mentions)
}

/// Appends to `mentions` the register that this element of the list describes, or each register of the
/// element if it describes a group. A register without bit fields of its own has those of its group,
/// `inherited`.
fn walk(entry: &Yaml<'_>, inherited: &[Field], mentions: &mut Vec<Mention>) -> anyhow::Result<()> {
    if is_bit_field_list(entry) {
        return Ok(()); // the layout of a structure in memory
    }
    let own = bit_fields(entry)?;
    let fields = if own.is_empty() { inherited } else { &own };
    // `tag: Custom` marks constants that the authors of the list computed themselves.
    let index = match entry.as_mapping_get("tag") {
        Some(_) => None,
        None => entry.as_mapping_get("value").and_then(Yaml::as_integer),
    };
    let Some(index) = index else {
        for child in children(entry) {
            walk(child, fields, mentions)?;
        }
        return Ok(());
    };
    let mut mention = Mention::new(u32::try_from(index)?, Source::Ia32Doc);
    let (short, others) = names(entry);
    mention = mention.named(format!("IA32_{}", short.context("no name")?), Rank::Sdm);
    for other in others {
        mention = mention.named(format!("IA32_{other}"), Rank::Architectural);
    }
    mention.summary = description(entry);
    mention.fields = fields.to_vec();
    mentions.push(mention);
    Ok(())
}

fn names<'a>(entry: &'a Yaml<'_>) -> (Option<&'a str>, Vec<&'a str>) {
    let text = |key| entry.as_mapping_get(key).and_then(Yaml::as_str);
    let short = text("name").or_else(|| text("short_name"));
    let mut others: Vec<&str> = Vec::new();
    for other in ["long_name", "alternative_name"]
        .into_iter()
        .filter_map(text)
    {
        if Some(other) != short && !others.contains(&other) {
            others.push(other);
        }
    }
    (short, others)
}

fn description(entry: &Yaml<'_>) -> Option<String> {
    ["short_description", "description", "long_description"]
        .into_iter()
        .filter_map(|key| entry.as_mapping_get(key)?.as_str())
        .find_map(sentence)
}

fn children<'a, 'i>(entry: &'a Yaml<'i>) -> impl Iterator<Item = &'a Yaml<'i>> {
    entry
        .as_mapping_get("fields")
        .and_then(Yaml::as_sequence)
        .into_iter()
        .flatten()
}

fn is_bit_field_list(entry: &Yaml<'_>) -> bool {
    let kind = entry.as_mapping_get("type").and_then(Yaml::as_str);
    matches!(kind, Some("bitfield" | "struct"))
}

/// Returns the bit fields that this element of the list has itself, not those of its group.
fn bit_fields(entry: &Yaml<'_>) -> anyhow::Result<Vec<Field>> {
    let mut fields = Vec::new();
    for list in children(entry).filter(|child| is_bit_field_list(child)) {
        for item in children(list) {
            let Some(bits) = item.as_mapping_get("bit") else {
                continue; // a struct counts sizes, not bits
            };
            let (low, high) = bits_of(bits)?;
            let (Some(name), _) = names(item) else {
                bail!("a bit field has no name");
            };
            fields.push(Field {
                low,
                high,
                name: name.to_owned(),
                summary: description(item).unwrap_or_default(),
            });
        }
    }
    fields.sort_by_key(|field| field.low);
    Ok(fields)
}

/// Parses bits such as `5`, `50-52` or `12-(MAXPHYADDR-1)`.
fn bits_of(bits: &Yaml<'_>) -> anyhow::Result<(u8, u8)> {
    if let Some(bit) = bits.as_integer() {
        let bit = u8::try_from(bit)?;
        return Ok((bit, bit));
    }
    let text = bits.as_str().context("the bits of a field are not text")?;
    let (low, high) = text.split_once('-').with_context(|| text.to_owned())?;
    let high = match high {
        "(MAXPHYADDR-1)" => PHYSICAL_ADDRESS_TOP,
        number => number.parse().with_context(|| text.to_owned())?,
    };
    Ok((low.parse().with_context(|| text.to_owned())?, high))
}
