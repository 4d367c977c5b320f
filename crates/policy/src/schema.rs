//! The language as a JSON schema, by which editors complete and check a policy.

mod shape;

use msrgate_filter::Access;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::parse::words::{self, Says, Words};
use crate::registers;

/// Returns the schema, which `docs/policy.schema.json` holds: JSON Schema, draft 7, the version
/// that TOML editors support.
///
/// The schema has keys, words and types. It does not have the names of registers or the limits of
/// numbers, and does not find entries that disagree: [`parse`](crate::parse()) does.
#[must_use]
pub fn schema() -> String {
    let settings = SchemaSettings::draft07();
    let generator = settings
        .with_transform(RecursiveTransform(without_null))
        .into_generator();
    let mut schema = generator.into_root_schema_for::<shape::Policy>();
    schema.insert("title".to_owned(), json!("A policy of msrgate"));
    format!("{:#}\n", schema.to_value())
}

/// Removes null from a schema: TOML has no null, and optional keys are absent.
fn without_null(schema: &mut Schema) {
    let null = json!({ "type": "null" });
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(shapes)) = schema.get_mut("anyOf")
        && shapes.contains(&null)
    {
        shapes.retain(|one| *one != null);
        // Draft 7 ignores everything beside a `$ref`, such as the field's description.
        if let Some(shapes) = schema.remove("anyOf") {
            schema.insert("allOf".to_owned(), shapes);
        }
    }
}

/// Returns the schema of one of these words, each with its meaning.
fn one_of(words: impl IntoIterator<Item = (&'static str, &'static str)>) -> Schema {
    let words = words.into_iter();
    let words: Vec<_> = words
        .map(|(word, description)| json!({ "const": word, "description": description }))
        .collect();
    json_schema!({ "oneOf": words })
}

/// Returns the schema of the words in `words`. `meanings` has the meaning of each word, in the same
/// order.
fn each<T, const N: usize>(words: &Words<T, N>, meanings: [&'static str; N]) -> Schema {
    one_of(words.iter().map(|(word, _)| *word).zip(meanings))
}

/// Returns the schema of a value that is one of `words`, or has the shape `other`.
fn or(words: &Schema, other: impl Into<Value>) -> Schema {
    json_schema!({ "anyOf": [words, other.into()] })
}

fn modes(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::MODES,
        [
            "Accesses are refused as the policy says.",
            "No access is refused; accesses that the policy would refuse are recorded.",
        ],
    )
}

fn defaults(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::DEFAULTS,
        [
            "KVM handles MSRs that no entry names.",
            "Accesses of MSRs that no entry names are refused with #GP.",
        ],
    )
}

fn logs(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::LOGS,
        [
            "No access becomes an event.",
            "Each refused access becomes an event.",
            "The VM's first read and first write of each MSR become events, allowed or refused.",
            "Every access becomes an event; possible only for MSRs that the VMM may safely access for the guest.",
        ],
    )
}

fn outsides(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::OUTSIDES,
        [
            "A write that would change bits outside of the mask gets #GP.",
            "The write succeeds, and bits outside of the mask keep their values.",
        ],
    )
}

fn devices(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::DEVICES,
        ["Microcode updates, set up in `[device.microcode]`."],
    )
}

fn updates(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::UPDATES,
        [
            "If the update's header is valid, the guest reads the update's revision from then on.",
            "The update has no effect, and the guest gets no error.",
            "The guest gets #GP.",
        ],
    )
}

/// Returns the schema of the words of `accept`: the kernel's gaps with their explanations, and the warnings
/// with their descriptions. The gate's own gap is not in the table of gaps, so its explanation is written here.
fn accepted(_: &mut SchemaGenerator) -> Schema {
    let why = |name: &'static str| {
        let gap = registers::gaps().find(|gap| gap.name == name);
        gap.map_or(
            "A migration loses pins and the values of registers and devices, unless the VMM saves them.",
            |gap| gap.why,
        )
    };
    let gaps = words::gaps().map(|name| (name, why(name)));
    let warnings = words::warnings().map(|code| (code.word(), code.about()));
    one_of(gaps.chain(warnings))
}

fn unknown(generator: &mut SchemaGenerator) -> Schema {
    let words = each(
        &words::UNKNOWNS,
        [
            "The guest gets #GP, as without a policy.",
            "A read gives 0; a write has no effect.",
        ],
    );
    or(&words, generator.subschema_for::<shape::Unknown>())
}

fn unknown_read(generator: &mut SchemaGenerator) -> Schema {
    let deny = one_of([("deny", "The guest gets #GP.")]);
    let number = generator.subschema_for::<shape::Number>();
    let value = generator.subschema_for::<shape::ValueOf>();
    json_schema!({ "anyOf": [deny, value, number] })
}

fn unknown_write(_: &mut SchemaGenerator) -> Schema {
    each(
        &words::UNKNOWN_WRITES,
        ["The guest gets #GP.", "The write has no effect."],
    )
}

/// Returns the schema of the action in one direction: words and tables.
fn action(generator: &mut SchemaGenerator, access: Access) -> Schema {
    const MEANINGS: [&str; 7] = [
        "KVM handles the access as without a policy.",
        "The guest gets #GP.",
        "The VMM ends the VM, or the call that the guest is serving, and an event records the access.",
        "The access gets the action of the next wider entry, or of `default`.",
        "The write succeeds, but has no effect.",
        "The first write after a reset of the vCPU succeeds; later writes of another value get #GP.",
        "Bits that are set in the register stay set.",
    ];
    let words = words::ONE.iter().zip(MEANINGS);
    let words = words.filter(|((_, says), _)| match says {
        Says::Inherit => true,
        Says::This(action) => action.is_for(access),
    });
    let words = one_of(words.map(|((word, _), meaning)| (*word, meaning)));
    let mut shapes = vec![words];
    match access {
        Access::Read => shapes.push(generator.subschema_for::<shape::ValueOf>()),
        Access::Write => {
            shapes.push(generator.subschema_for::<shape::MaskOf>());
            shapes.push(generator.subschema_for::<shape::StickyOf>());
        }
    }
    shapes.push(generator.subschema_for::<shape::HandlerOf>());
    shapes.push(generator.subschema_for::<shape::DeviceOf>());
    shapes.push(generator.subschema_for::<shape::RegisterOf>());
    json_schema!({ "anyOf": shapes })
}

fn read(generator: &mut SchemaGenerator) -> Schema {
    action(generator, Access::Read)
}

fn write(generator: &mut SchemaGenerator) -> Schema {
    action(generator, Access::Write)
}

/// Returns the schema of an entry's value.
fn said(generator: &mut SchemaGenerator) -> Schema {
    let words = each(
        &words::BOTH,
        [
            "KVM handles reads and writes.",
            "KVM handles reads; writes are refused.",
            "KVM handles writes; reads are refused.",
            "Reads and writes are refused.",
        ],
    );
    or(&words, generator.subschema_for::<shape::Entry>())
}

/// Returns the schema of entries by names, indices, ranges and groups. An editor offers the
/// groups.
fn msrs(generator: &mut SchemaGenerator) -> Schema {
    let entry = generator.subschema_for::<shape::Said>();
    let groups = registers::groups().iter();
    let groups: serde_json::Map<_, _> = groups
        .map(|group| {
            let said = json!({ "description": group.summary, "allOf": [&entry] });
            (group.name.to_owned(), said)
        })
        .collect();
    json_schema!({
        "type": "object",
        "properties": groups,
        "additionalProperties": entry,
    })
}

fn vendors(_: &mut SchemaGenerator) -> Schema {
    let one = json!({ "type": "string" });
    json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
}

fn numbers(generator: &mut SchemaGenerator) -> Schema {
    let one = generator.subschema_for::<shape::NumberOrRange>();
    json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
}

/// Returns the schema of a TOML number, or of a string that holds one. `more` is a regular
/// expression for the text that may follow the number in the string.
fn number(more: &str) -> Value {
    let digits = r"\s*(0[xX][0-9A-Fa-f_]+|[0-9][0-9_]*)\s*";
    let more = more.replace("NUMBER", digits);
    json!({ "anyOf": [
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": format!("^{digits}{more}$") },
    ] })
}

#[cfg(test)]
mod tests;
