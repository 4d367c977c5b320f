//! Messages about mistakes in JSON, which quote none of the JSON's values.
//!
//! A file that is passed as a compiled filter or a template may be a secret. So a message names
//! the line and the expected content only. The column would tell the length of the text before it,
//! so a message names the column only if the file begins as [`emit`](crate::emit) writes it.

use serde_json::error::Category;

use super::ImportError;

/// The beginnings of all JSON of [`emit`](crate::emit), without blanks.
const HEADS: [&str; 3] = [
    r#"{"schema":1,"default":"allow","#,
    r#"{"schema":1,"default":"deny","#,
    r#"{"schema":1,"cpu":""#,
];

/// Returns the error of an import of `bytes`, which serde could not read as JSON because of
/// `error`.
pub(super) fn wrong_json(bytes: &[u8], error: &serde_json::Error) -> ImportError {
    let line = error.line();
    let what = what(error);
    ImportError::Json(if is_ours(bytes) {
        format!("line {line}, column {}: {what}", error.column())
    } else {
        format!("line {line}: {what}")
    })
}

fn is_ours(bytes: &[u8]) -> bool {
    let head = || {
        let bytes = bytes.iter().filter(|byte| !byte.is_ascii_whitespace());
        bytes.copied()
    };
    HEADS
        .iter()
        .any(|ours| head().take(ours.len()).eq(ours.bytes()))
}

/// Returns the part of an error's message that does not depend on the values in the JSON.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    if error.classify() != Category::Data || is_about_a_key(text) {
        return text.to_owned();
    }
    // The text that was found comes first, and may be anything. The expected text comes from
    // msrgate's own types.
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "unexpected value".to_owned(),
    }
}

/// Returns true if an error's message about JSON data quotes only a key of msrgate's own types, and
/// no value of the JSON.
fn is_about_a_key(text: &str) -> bool {
    ["missing field `", "duplicate field `"]
        .iter()
        .any(|start| text.starts_with(start))
}
