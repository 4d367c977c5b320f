//! The variants of error enums, read from the enums' source code, so that a new variant without an example
//! of its message fails a test.

use std::fmt::{Debug, Display};

/// Text with one character of each kind that a terminal obeys or hides, and with a letter that carries
/// five accents.
pub const HOSTILE: &str = "a\u{1b}[2J\r\u{9b}2J\u{202e}\u{200b}\u{fe01}\u{13430}\u{1160}\u{e0041}\n\te\u{301}\u{301}\u{301}\u{301}\u{301}";

/// Returns the names of the variants of the enum `name`, in the order of its source code.
fn variants<'s>(source: &'s str, name: &str) -> Vec<&'s str> {
    let head = format!("enum {name} {{\n");
    let (_, body) = source.split_once(&head).expect("the enum");
    let (body, _) = body.split_once("\n}\n").expect("the end of the enum");
    let one = |line: &'s str| {
        let line = line.strip_prefix("    ")?;
        let end = line.find(|c: char| !c.is_ascii_alphanumeric())?;
        line.starts_with(|c: char| c.is_ascii_uppercase())
            .then_some(&line[..end])
    };
    body.lines().filter_map(one).collect()
}

/// Returns the names of those variants of the enum `name` that have a field of text.
fn variants_with_text<'s>(source: &'s str, name: &str) -> Vec<&'s str> {
    let names = variants(source, name);
    let (_, body) = source
        .split_once(&format!("enum {name} {{\n"))
        .expect("the enum");
    let mut found = Vec::new();
    let mut current = None;
    for line in body.lines().take_while(|line| *line != "}") {
        let begun = |name: &&&str| {
            let rest = line
                .strip_prefix("    ")
                .and_then(|line| line.strip_prefix(**name));
            rest.is_some_and(|rest| rest.starts_with([' ', '(', ',']))
        };
        current = names.iter().find(begun).or(current);
        let is_text = ["String", "<str>", "PathBuf"]
            .iter()
            .any(|text| line.contains(text));
        if is_text && !line.trim_start().starts_with("//") {
            found.extend(current.copied());
        }
    }
    found.dedup();
    found
}

/// Returns the messages of these errors. The caller puts [`HOSTILE`] into each field of the errors that is
/// text; `examples` must have an error of every variant with such a field.
///
/// # Panics
/// Panics if the source has no enum of this name, or if a variant with text has no example.
pub fn messages_with_text<E: Debug + Display>(
    source: &str,
    name: &str,
    examples: &[E],
) -> Vec<String> {
    for wanted in variants_with_text(source, name) {
        let is_there = examples.iter().any(|one| variant(one) == wanted);
        assert!(is_there, "no example of {name}::{wanted}");
    }
    examples.iter().map(ToString::to_string).collect()
}

/// Returns the name of an error's variant, taken from the error's `Debug` output.
fn variant(error: &impl Debug) -> String {
    let debug = format!("{error:?}");
    let end = debug.find(|c: char| !c.is_ascii_alphanumeric());
    debug[..end.unwrap_or(debug.len())].to_owned()
}

/// Returns a line with the message of each error in `examples`, followed by a line with the error's help if
/// it has one. The lines are in the order of the enum's variants.
///
/// # Panics
/// Panics if the source has no enum of this name, or if a variant has no example.
pub fn messages<E: Debug + Display>(
    source: &str,
    name: &str,
    examples: &[E],
    help: impl Fn(&E) -> Option<String>,
) -> String {
    let mut text = format!("{name}\n");
    for wanted in variants(source, name) {
        let found: Vec<_> = examples
            .iter()
            .filter(|one| variant(one) == wanted)
            .collect();
        assert!(!found.is_empty(), "no example of {name}::{wanted}");
        for example in found {
            text += &format!("  {wanted}: {example}\n");
            if let Some(help) = help(example) {
                text += &format!("    help: {help}\n");
            }
        }
    }
    text
}
