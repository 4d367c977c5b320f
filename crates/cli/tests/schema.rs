//! Tests of the JSON schema: it accepts every policy, and refuses files whose shape is not a policy's.

use std::fs;
use std::path::Path;

use jsonschema::Validator;
use msrgate_policy::{NoIncludes, Source, parse};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../docs/policy.schema.json");
const REFERENCE: &str = include_str!("../../../docs/policy-reference.md");
const HEAD: &str = "policy  = 1\ndefault = \"deny\"\n";

fn validator() -> Validator {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    jsonschema::draft7::new(&schema).expect("a schema of draft 7")
}

fn read(text: &str) -> Value {
    let is_whole = text.lines().any(|line| line.starts_with("policy"));
    let head = if is_whole { "" } else { HEAD };
    toml::from_str(&format!("{head}{text}")).expect("TOML")
}

/// Returns the texts of the shipped policies, and of all examples of the reference that are policies.
fn policies() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let files = fs::read_dir(folder).expect("policies");
    let shipped = files.map(|file| file.expect("a policy").path());
    let shipped = shipped.map(|path| fs::read_to_string(path).expect("its text"));
    let blocks = REFERENCE.split("\n```").skip(1).step_by(2);
    let examples = blocks.filter_map(|block| {
        let (kind, text) = block.split_once('\n')?;
        (kind == "toml" || kind.starts_with("toml,file=")).then(|| text.to_owned())
    });
    shipped.chain(examples).collect()
}

#[test]
fn shipped_policies_and_reference_examples_match_json_schema() {
    let validator = validator();
    let policies = policies();
    assert!(policies.len() > 20, "{}", policies.len());
    for text in policies {
        let errors: Vec<_> = validator
            .iter_errors(&read(&text))
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{text}\n{errors:#?}");
    }
}

#[test]
fn json_schema_and_parser_refuse_file_without_shape_of_policy() {
    let validator = validator();
    for text in [
        "policy = 2\ndefault = \"deny\"",
        "policy = \"1\"\ndefault = \"deny\"",
        "name = 7",
        "include = \"linux-boot\"",
        "mode = \"dry\"",
        "policy = 1\ndefault = \"ignore\"",
        "unknown = \"allow\"",
        "unknown = { write = \"allow\" }",
        "unknown = { read = true }",
        "unknown = { why = \"x\" }",
        "log = \"some\"",
        "log = [\"all\"]",
        "accept = [\"everything\"]",
        "colour = \"red\"",
        "[device.disk]",
        "[device.microcode]\nrevision = 1",
        "[device.microcode]\nrevision = 1\nupdate = \"later\"",
        "[[when]]\ncpu = { family = 6 }",
        "[[when]]\n[when.msrs]",
        "[[when]]\ncpu = { cores = 6 }\n[when.msrs]",
        "[[when]]\ncpu = { model = \"0x6a..0x6c\" }\n[when.msrs]",
        "[[when]]\ncpu = { family = \"six\" }\n[when.msrs]",
        "[[when]]\ncpu = { vendor = 6 }\n[when.msrs]",
        "[msrs]\n0x10 = \"rx\"",
        "[msrs]\n0x10 = 3",
        "[msrs]\n0x10 = { read = \"allow\" }",
        "[msrs]\n0x10 = { read = \"ignore\", write = \"deny\" }",
        "[msrs]\n0x10 = { read = \"allow\", write = { value = 3 } }",
        "[msrs]\n0x10 = { read = { value = 1, handler = \"x\" }, write = \"deny\" }",
        "[msrs]\n0x10 = { read = { value = -1 }, write = \"deny\" }",
        "[msrs]\n0x10 = { read = { value = \"0xg\" }, write = \"deny\" }",
        "[msrs]\n0x10 = { read = \"deny\", write = { sticky = 1, outside = \"keep\" } }",
        "[msrs]\n0x10 = { register = { reset = 0 } }",
        "[msrs]\n0x10 = { register = { reset = 0, mask = 1, outside = \"ignore\" } }",
        "[msrs]\n0x10 = { read = \"deny\", write = \"deny\", because = \"x\" }",
        "[msrs]\n0x10 = { read = \"deny\", write = \"deny\", final = \"yes\" }",
        "[msrs]\n0x10 = { read = \"deny\", write = \"deny\", log = \"some\" }",
        "[msrs]\n0x79 = { device = \"disk\" }",
        "[msrs]\n\"@mtrr\" = \"rx\"",
    ] {
        assert!(!validator.is_valid(&read(text)), "{text}");
        let is_whole = text.starts_with("policy");
        let head = if is_whole { "" } else { HEAD };
        let source = Source::new("policy.toml", &format!("{head}{text}"));
        assert!(parse(&source, &mut NoIncludes).is_err(), "{text}");
    }
}

/// If a table has an unknown key, or a word of the language is replaced by an unknown one, the schema
/// refuses the policy. Tables whose keys are MSRs are left out.
#[test]
fn json_schema_refuses_policy_with_unknown_key_or_word() {
    let validator = validator();
    let mut count = 0;
    for text in policies() {
        let policy = read(&text);
        for (path, is_free) in places(&policy) {
            let mut broken = policy.clone();
            let place = broken.pointer_mut(&path).expect(&path);
            match place {
                Value::Object(table) if !is_free => _ = table.insert("nonsense".into(), json!(1)),
                Value::String(word) if !is_free => "nonsense".clone_into(word),
                _ => continue,
            }
            assert!(!validator.is_valid(&broken), "{path}: {broken:#}");
            count += 1;
        }
    }
    assert!(count > 200, "{count}");
}

/// Returns the JSON pointers to all values in `value`. The flag is true if the place may have any text, or a
/// table with any keys.
fn places(value: &Value) -> Vec<(String, bool)> {
    fn look(value: &Value, path: &str, places: &mut Vec<(String, bool)>) {
        let is_free = ["name", "why", "include", "vendor", "handler"]
            .iter()
            .any(|key| path.contains(&format!("/{key}")));
        places.push((path.to_owned(), is_free || path.ends_with("/msrs")));
        let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
        match value {
            Value::Object(table) => {
                for (key, inner) in table {
                    look(inner, &format!("{path}/{}", escaped(key)), places);
                }
            }
            Value::Array(list) => {
                for (number, inner) in list.iter().enumerate() {
                    look(inner, &format!("{path}/{number}"), places);
                }
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    look(value, "", &mut all);
    all
}
