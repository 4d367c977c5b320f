//! `msrgate fmt`.

use std::io::Write;
use std::path::Path;

use msrgate_policy::{format, one_line};
use serde::Serialize;

use crate::cli::{FmtArgs, Format};
use crate::failure::{Answer, Failure};
use crate::load::{Input, is_standard_input};
use crate::output::{self, SCHEMA};
use crate::remark::{Remark, remarks};
use crate::whole;

#[derive(Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    files: Vec<FileReport>,
}

/// What became of one file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    /// Whether its canonical form is another text; null for one with mistakes.
    changed: Option<bool>,
    /// The canonical form, where nothing was written or only asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    mistakes: Vec<Remark>,
}

pub(super) fn run(args: &FmtArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if !args.write && !args.check && args.policies.len() > 1 {
        return Err(Failure::Usage(
            "standard output takes one policy; say --write or --check for several".to_owned(),
        ));
    }
    let mut report = Report {
        schema: SCHEMA,
        ok: true,
        files: Vec::new(),
    };
    for policy in &args.policies {
        let file = one(args, policy, out)?;
        report.ok &= file.mistakes.is_empty() && !(args.check && file.changed == Some(true));
        report.files.push(file);
    }
    if args.format.format == Format::Json {
        output::json(out, &report)?;
    }
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}

/// Formats one policy. Its mistakes do not keep the others from being looked at.
fn one(args: &FmtArgs, policy: &Path, out: &mut dyn Write) -> Result<FileReport, Failure> {
    let is_text = args.format.format == Format::Text;
    let source = Input::read(policy)?.source()?;
    if args.write && (is_standard_input(policy) || !policy.is_file()) {
        return Err(Failure::Usage(format!(
            "{} is no file that could be written; leave out --write",
            one_line(source.name())
        )));
    }
    let text = match format(&source) {
        Ok(text) => text,
        Err(mistakes) => {
            let report = FileReport {
                file: source.name().to_owned(),
                changed: None,
                text: None,
                mistakes: remarks(&mistakes),
            };
            if is_text {
                output::say(&Failure::Mistakes(mistakes));
            }
            return Ok(report);
        }
    };
    let is_changed = text != source.text();
    if args.write && is_changed {
        whole::write(policy, text.as_bytes())?;
    }
    if is_text && args.check && is_changed {
        writeln!(out, "{}", one_line(source.name()))?;
    }
    let is_asked_for = !args.write && !args.check;
    if is_text && is_asked_for {
        out.write_all(text.as_bytes())?;
    }
    Ok(FileReport {
        file: source.name().to_owned(),
        changed: Some(is_changed),
        text: is_asked_for.then_some(text),
        mistakes: Vec::new(),
    })
}
