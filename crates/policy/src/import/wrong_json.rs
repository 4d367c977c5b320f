//! The mistakes of JSON, without any of its values.
//!
//! A file that is named as a compiled filter or a template may be somebody's secret. So a message names the line and what
//! should stand there. The column would tell how long the text before it is: only of what begins as
//! [`emit`](crate::emit) writes it, it is named, too.

use serde_json::error::Category;

use super::ImportError;

/// What all JSON of [`emit`](crate::emit) begins with, blanks left out.
const HEADS: [&str; 3] = [
    r#"{"schema":1,"default":"allow","#,
    r#"{"schema":1,"default":"deny","#,
    r#"{"schema":1,"cpu":""#,
];

/// The mistake that a reader of `bytes` met.
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

/// The words of an error that are the same whatever the values are.
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    if error.classify() != Category::Data || is_about_a_key(text) {
        return text.to_owned();
    }
    // What was found comes first, and may be any text. What was expected is of our own types.
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "not a value that may stand there".to_owned(),
    }
}

/// Returns true for the errors of data that name a key of our own types, and no value.
fn is_about_a_key(text: &str) -> bool {
    ["missing field `", "duplicate field `"]
        .iter()
        .any(|start| text.starts_with(start))
}
