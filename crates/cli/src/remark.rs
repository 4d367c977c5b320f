//! The JSON form of mistakes in a policy, of warnings about a policy, and of reasons why a command was not
//! carried out.

use msrgate_policy::{Mistake, Mistakes};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::SCHEMA;

/// A mistake in a policy, or a warning about a policy.
#[derive(Serialize)]
pub(crate) struct Remark {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// The file that the remark is about: the policy itself, or a file that the policy includes.
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
    /// The other places that the remark is about, such as the second of two entries that disagree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<Other>,
}

/// A further place in a policy that a mistake or a warning is about.
#[derive(Serialize)]
pub(crate) struct Other {
    file: String,
    line: u32,
    column: u32,
    /// The sentence about this place, if there is one.
    says: Option<String>,
}

/// The JSON that a command prints in place of its answer, because the command was not carried out.
#[derive(Serialize)]
pub(crate) struct Unanswered {
    schema: u32,
    ok: bool,
    error: Error,
    /// The mistakes in the policy's text.
    mistakes: Vec<Remark>,
}

/// The reason why a command, or `fmt` for one file, failed.
#[derive(Serialize)]
pub(crate) struct Error {
    /// The kind of the failure: `mistakes`, `refused`, `host`, `input`, `usage` or `output`.
    kind: &'static str,
    message: String,
}

impl Error {
    pub(crate) fn of(failure: &Failure) -> Self {
        let (kind, message) = match failure {
            Failure::Mistakes(mistakes) => ("mistakes", mistakes.to_string()),
            Failure::Refused(text) => ("refused", text.clone()),
            Failure::Host(text) => ("host", text.clone()),
            // `NotRun` comes only from `exec`, which prints no JSON.
            Failure::Input { what, why } | Failure::NotRun { what, why, .. } => {
                ("input", format!("{what}: {why}"))
            }
            Failure::Usage(text) => ("usage", text.clone()),
            Failure::Output(error) => ("output", error.to_string()),
        };
        Self { kind, message }
    }
}

impl Unanswered {
    pub(crate) fn because(failure: &Failure) -> Self {
        let mistakes = match failure {
            Failure::Mistakes(mistakes) => remarks(mistakes),
            _ => Vec::new(),
        };
        Self {
            schema: SCHEMA,
            ok: false,
            error: Error::of(failure),
            mistakes,
        }
    }
}

/// Returns a remark for each mistake that the parser has kept, with the mistake's place. The parser keeps a
/// limited number of mistakes.
pub(crate) fn remarks(mistakes: &Mistakes) -> Vec<Remark> {
    let remark = |mistake: &Mistake| {
        let (source, place) = mistakes.place(mistake).unzip();
        let others = mistakes.other_places(mistake);
        Remark {
            message: mistake.kind().to_string(),
            help: mistake.kind().help(),
            file: source.map(|source| source.name().to_owned()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            others: others
                .map(|(source, place, says)| Other {
                    file: source.name().to_owned(),
                    line: place.line,
                    column: place.column,
                    says: says.map(str::to_owned),
                })
                .collect(),
        }
    };
    mistakes.mistakes().iter().map(remark).collect()
}
