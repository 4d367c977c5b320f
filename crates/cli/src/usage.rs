//! The answer to arguments that name no command to carry out: the text that they ask for, or the reason why
//! they are wrong.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;

use clap::{CommandFactory as _, Parser as _, ValueEnum as _};
use msrgate_policy::{one_line, shown};

use crate::cli::{Cli, Format};
use crate::failure::{EXIT_NOT_BEHIND, Failure};
use crate::named::name;
use crate::output;
use crate::remark::Unanswered;
use crate::results::Results;
use crate::{EXIT_TROUBLE, EXIT_YES};

/// Prints the text that the arguments ask for, as `--help` does, or the reason why they are wrong. Returns the
/// exit code, and the error of writing the results.
pub(crate) fn answer(refused: &clap::Error) -> (u8, io::Result<()>) {
    // clap's message repeats arguments. An escape in an argument would look like a style of clap, so the
    // message is made again from arguments whose hidden characters are escaped.
    let safe = env::args_os().map(|argument| one_line(&name(Path::new(&argument))));
    let text = match Cli::try_parse_from(safe) {
        Err(again) => again.render().ansi().to_string(),
        Ok(_) => shown(&refused.render().to_string()),
    };
    let mut out = Results::new();
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    if !refused.use_stderr() {
        let _ = out.write_all(text.as_bytes());
        return (EXIT_YES, out.finish());
    }
    if asks_for_json(&arguments) {
        let plain = anstream::adapter::strip_str(&text).to_string();
        let why = plain.trim().trim_start_matches("error: ");
        let failure = Failure::Usage(why.to_owned());
        // `out` notes an error of writing.
        let _ = output::json(&mut out, &Unanswered::because(&failure));
    }
    output::say(&text);
    // `exec` and `learn` use one exit status of their own, because every other status is that of the VMM.
    let runs_vmm = arguments
        .first()
        .is_some_and(|first| first == "exec" || first == "learn")
        && !arguments.iter().any(|argument| argument == "--from");
    let code = if runs_vmm {
        EXIT_NOT_BEHIND
    } else {
        EXIT_TROUBLE
    };
    (code, out.finish())
}

/// Returns true if the arguments ask for JSON, and their command has a JSON form or does not exist.
fn asks_for_json(arguments: &[OsString]) -> bool {
    // The arguments after `--` are those of a VMM.
    let end = arguments.iter().position(|one| one == "--");
    let own = &arguments[..end.unwrap_or(arguments.len())];
    let cli = Cli::command();
    let command = own.iter().find_map(|one| cli.find_subcommand(one));
    let has_json = command.is_none_or(|command| {
        let mut all = command.get_arguments();
        let format = all.find(|one| one.get_id() == "format");
        // The option `--format` of `compile` is about the file that it writes. This file is no answer, and
        // has no text form.
        let text = Format::Text.to_possible_value();
        let values = format.map(clap::Arg::get_possible_values);
        values.is_some_and(|values| text.is_some_and(|text| values.contains(&text)))
    });
    let is_asked = own.iter().any(|one| one == "--format=json")
        || own
            .windows(2)
            .any(|two| two[0] == "--format" && two[1] == "json");
    has_json && is_asked
}
