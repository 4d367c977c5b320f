use std::collections::BTreeSet;

use super::*;
use crate::lint::Code;

fn committed() -> Value {
    serde_json::from_str(&schema()).expect("JSON")
}

/// Returns the keys that a shape allows.
fn keys(shape: &Value) -> BTreeSet<&str> {
    assert_eq!(shape["additionalProperties"], json!(false), "{shape}");
    let keys = shape["properties"].as_object().expect("a table");
    keys.keys().map(String::as_str).collect()
}

#[test]
fn schema_has_exactly_the_keys_of_the_language() {
    let schema = committed();
    let of = |name: &str| keys(&schema["definitions"][name]);
    let expected = |keys: &[&'static str]| keys.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(keys(&schema), expected(&words::TOP));
    assert_eq!(of("Entry"), expected(&words::ENTRY));
    assert_eq!(of("Register"), expected(&words::REGISTER));
    assert_eq!(of("Unknown"), expected(&words::UNKNOWN));
    assert_eq!(of("Microcode"), expected(&words::MICROCODE));
    assert_eq!(
        of("Devices"),
        expected(&words::DEVICES.map(|(word, _)| word))
    );
    assert_eq!(of("When"), expected(&words::WHEN));
    assert_eq!(of("CpuSet"), expected(&words::CPU));
    let action = [
        "ValueOf",
        "MaskOf",
        "StickyOf",
        "HandlerOf",
        "DeviceOf",
        "RegisterOf",
    ];
    let action: BTreeSet<_> = action.into_iter().flat_map(of).collect();
    assert_eq!(action, expected(&words::ACTION));
}

/// Returns the words that a shape allows, without those of the shapes that it refers to.
fn words_of(shape: &Value) -> BTreeSet<&str> {
    let inner = ["oneOf", "anyOf"]
        .into_iter()
        .filter_map(|key| shape[key].as_array());
    let inner = inner.flatten().flat_map(words_of);
    inner.chain(shape["const"].as_str()).collect()
}

#[test]
fn schema_has_exactly_the_words_of_the_language() {
    fn expected<T, const N: usize>(words: &Words<T, N>) -> BTreeSet<&'static str> {
        words.iter().map(|(word, _)| *word).collect()
    }
    let schema = committed();
    let top = |key: &str| words_of(&schema["properties"][key]);
    let of = |shape: &str, key: &str| words_of(&schema["definitions"][shape]["properties"][key]);
    assert_eq!(top("mode"), expected(&words::MODES));
    assert_eq!(top("default"), expected(&words::DEFAULTS));
    assert_eq!(top("unknown"), expected(&words::UNKNOWNS));
    assert_eq!(top("log"), expected(&words::LOGS));
    assert_eq!(of("Entry", "log"), expected(&words::LOGS));
    assert_eq!(of("Unknown", "log"), expected(&words::LOGS));
    assert_eq!(of("Unknown", "read"), BTreeSet::from(["deny"]));
    assert_eq!(of("Unknown", "write"), expected(&words::UNKNOWN_WRITES));
    assert_eq!(of("Entry", "device"), expected(&words::DEVICES));
    assert_eq!(of("Register", "outside"), expected(&words::OUTSIDES));
    assert_eq!(of("MaskOf", "outside"), expected(&words::OUTSIDES));
    assert_eq!(of("Microcode", "update"), expected(&words::UPDATES));
    let definition = |name: &str| words_of(&schema["definitions"][name]);
    assert_eq!(definition("Said"), expected(&words::BOTH));
    let warnings = words::warnings().map(Code::word);
    let accepted = words::gaps().chain(warnings).collect();
    assert_eq!(definition("Accepted"), accepted);
    let both = [of("Entry", "read"), of("Entry", "write")];
    let both: BTreeSet<_> = both.into_iter().flatten().collect();
    assert_eq!(both, expected(&words::ONE));
    assert!(!of("Entry", "read").contains("pin") && of("Entry", "read").contains("inherit"));
}

/// Every key has a description, which editors show.
#[test]
fn schema_describes_every_key() {
    fn look(shape: &Value, path: &str, count: &mut usize) {
        for (key, inner) in shape["properties"].as_object().into_iter().flatten() {
            let said = inner["description"].as_str().unwrap_or_default();
            assert!(said.len() > 5, "{path}.{key}");
            *count += 1;
        }
    }
    let schema = committed();
    let mut count = 0;
    look(&schema, "", &mut count);
    for (name, shape) in schema["definitions"].as_object().expect("shapes") {
        look(shape, name, &mut count);
    }
    assert!(count > 50, "{count}");
}
