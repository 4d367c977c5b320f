//! Which variants an enum has, by its source: what is held for each of them is held for one that
//! somebody adds.

use std::fmt::{Debug, Display};

/// The variants of the enum of this name, in their order.
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

/// The variant that a value is, by how it is debugged.
fn variant(error: &impl Debug) -> String {
    let debug = format!("{error:?}");
    let end = debug.find(|c: char| !c.is_ascii_alphanumeric());
    debug[..end.unwrap_or(debug.len())].to_owned()
}

/// A line for each variant of an enum of errors, with the message of an example, and the help if there
/// is some. Every variant has an example.
///
/// # Panics
/// The source has no such enum, or a variant has no example.
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
