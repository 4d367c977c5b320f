//! The command `msrgate`: it parses, calls the libraries, and prints.

mod cli;
mod commands;
mod failure;
mod files;
mod load;
mod output;
mod remark;
mod side;
mod whole;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Format};
use crate::failure::{Answer, Failure};
use crate::remark::Unanswered;

/// The answer is yes: the policy is sound, the guest got what was promised.
const EXIT_YES: u8 = 0;
/// The answer is no: the policy has mistakes, an access deviated, a statement does not hold.
const EXIT_NO: u8 = 1;
/// The command could not be carried out: wrong usage, or something could not be read or written.
const EXIT_TROUBLE: u8 = 2;
/// The host lacks something the command needs.
const EXIT_HOST: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.color.write_global();
    let code = match commands::run(&cli.command, &mut anstream::stdout()) {
        Ok(Answer::Yes) => EXIT_YES,
        Ok(Answer::No) => EXIT_NO,
        Err(failure) => {
            // The reader has seen enough: `msrgate msr MSR | head` did what was asked.
            if failure.is_broken_pipe() {
                return ExitCode::from(EXIT_YES);
            }
            if cli.command.format() == Format::Json {
                // If that cannot be written either, the exit code still tells.
                let _ = output::json(&mut anstream::stdout(), &Unanswered::because(&failure));
            }
            output::say(&failure);
            match failure {
                Failure::Mistakes(_) | Failure::Refused(_) => EXIT_NO,
                Failure::Host(_) => EXIT_HOST,
                Failure::Input { .. } | Failure::Usage(_) | Failure::Output(_) => EXIT_TROUBLE,
            }
        }
    };
    ExitCode::from(code)
}
