//! `msrgate fmt`: writes policies in their canonical form.

use std::io::Write;
use std::path::Path;

use msrgate_policy::{format, shown_name};
use serde::Serialize;

use crate::cli::{FmtArgs, Format};
use crate::failure::{Answer, Failure};
use crate::files::{Opened, Place};
use crate::links;
use crate::load::Input;
use crate::named::name;
use crate::output::{self, SCHEMA};
use crate::remark::{Error, Remark, remarks};
use crate::whole;

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    files: Vec<FileReport>,
}

/// The result of `fmt` for one file, in JSON.
#[derive(Serialize)]
struct FileReport {
    file: String,
    /// True if the file's text is not in canonical form; null if the file has mistakes or could not be read
    /// or written.
    changed: Option<bool>,
    /// True if `fmt --write` has replaced the file by the policy's canonical form.
    written: bool,
    /// The policy's text in canonical form; absent with `--write` and with `--check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    mistakes: Vec<Remark>,
    /// The reason why the file could not be read or written; absent if there was no such error.
    error: Option<Error>,
}

impl FileReport {
    fn of(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            changed: None,
            written: false,
            text: None,
            mistakes: Vec::new(),
            error: None,
        }
    }
}

pub(super) fn run(args: &FmtArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if !args.write && !args.check && args.policies.len() > 1 {
        return Err(Failure::Usage(
            "fmt prints only one policy; use --write or --check for several".to_owned(),
        ));
    }
    let mut report = Report {
        schema: SCHEMA,
        ok: true,
        files: Vec::new(),
    };
    let mut answer = Answer::Yes;
    for policy in &args.policies {
        let file = one(args, policy, out).unwrap_or_else(|failure| {
            output::say(&failure);
            answer = Answer::Incomplete;
            FileReport {
                error: Some(Error::of(&failure)),
                ..FileReport::of(&name(policy))
            }
        });
        let is_wrong = !file.mistakes.is_empty() || (args.check && file.changed == Some(true));
        if is_wrong && answer == Answer::Yes {
            answer = Answer::No;
        }
        report.files.push(file);
    }
    if args.format.format == Format::Json {
        report.ok = answer == Answer::Yes;
        output::json(out, &report)?;
    }
    Ok(answer)
}

/// Formats one policy. After an error, `run` still formats the other policies.
fn one(args: &FmtArgs, policy: &Path, out: &mut dyn Write) -> Result<FileReport, Failure> {
    let is_text = args.format.format == Format::Text;
    let input = Input::read(policy)?;
    let source = input.source()?;
    let to_write = if args.write {
        Some(file_to_write(policy, &input)?)
    } else {
        None
    };
    let mut report = FileReport::of(source.name());
    let text = match format(&source) {
        Ok(text) => text,
        Err(mistakes) => {
            report.mistakes = remarks(&mistakes);
            if is_text {
                output::say(&Failure::Mistakes(mistakes));
            }
            return Ok(report);
        }
    };
    let is_changed = text != source.text();
    report.changed = Some(is_changed);
    if let (Some(file), true) = (to_write, is_changed) {
        whole::replace(policy, file, text.as_bytes())?;
        report.written = true;
    }
    if is_text && args.check && is_changed {
        writeln!(out, "{}", shown_name(source.name()))?;
    }
    let is_asked_for = !args.write && !args.check;
    if is_text && is_asked_for {
        out.write_all(text.as_bytes())?;
    }
    report.text = is_asked_for.then_some(text);
    Ok(report)
}

/// Returns the regular file that the policy was read from, for `fmt --write` to replace. The function does
/// not follow the path's symbolic links again, because they may lead to another file now.
fn file_to_write<'i>(policy: &Path, input: &'i Input) -> Result<&'i Opened, Failure> {
    match &input.place {
        Place::File {
            opened: Some(opened),
            ..
        } if !links::is_open_file(policy) => Ok(opened),
        _ => Err(Failure::Usage(format!(
            "{} is not a file, so fmt cannot write it; leave out --write",
            shown_name(&input.name)
        ))),
    }
}
