//! The command `msrgate`: parses the arguments, calls the libraries, and prints.

mod access;
mod cli;
mod commands;
mod descriptors;
mod failure;
mod files;
mod links;
mod load;
mod missing;
mod named;
mod output;
mod processor;
mod remark;
mod results;
mod shipped;
mod side;
mod terminal;
mod until;
mod usage;
mod whole;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

use crate::cli::{Cli, Command, Format};
use crate::failure::{Answer, EXIT_NOT_BEHIND, Failure};
use crate::remark::Unanswered;
use crate::results::Results;

/// The exit code for yes: for example, the policy has no mistakes, or the guest got what the policy
/// promised.
const EXIT_YES: u8 = 0;
/// The exit code for no: for example, the policy has mistakes, an access did not get what the policy
/// promised, or KVM does not do what `docs/kvm-semantics.md` states.
const EXIT_NO: u8 = 1;
/// The exit code for a command that was not carried out, or only in part: wrong usage, or an error of
/// reading or writing.
const EXIT_TROUBLE: u8 = 2;
/// The exit code for a host that lacks something that the command needs.
const EXIT_HOST: u8 = 3;

fn main() -> ExitCode {
    // With a handler for SIGXFSZ, a write beyond the limit on file sizes returns an error, as on a full
    // disk. Without a handler the signal would end the command.
    let _ = flag::register(SIGXFSZ, Arc::default());
    let (code, written) = match Cli::try_parse() {
        Ok(cli) => {
            cli.color.write_global();
            let mut out = Results::new();
            if cli.command.is_for_reading() {
                out.fit(terminal::of_results());
            }
            (run(&cli.command, &mut out), out.finish())
        }
        Err(refused) => usage::answer(&refused),
    };
    ExitCode::from(match written {
        Ok(()) => code,
        // A reader that closes the pipe early has seen enough, as in `msrgate msr MSR | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            output::say(&Failure::Output(error));
            code.max(EXIT_TROUBLE)
        }
    })
}

/// Carries out a command, even if its results cannot be written. The exit code is the answer.
fn run(command: &Command, out: &mut Results) -> u8 {
    match commands::run(command, out) {
        Ok(Answer::Yes) => EXIT_YES,
        Ok(Answer::No) => EXIT_NO,
        Ok(Answer::Incomplete) => EXIT_TROUBLE,
        Ok(Answer::Status(status)) => status,
        Err(failure) => {
            if command.format() == Format::Json {
                // `out` notes an error of writing.
                let _ = output::json(out, &Unanswered::because(&failure));
            }
            output::say(&failure);
            let runs_vmm = command.runs_vmm();
            if runs_vmm && !matches!(failure, Failure::NotRun { .. }) {
                return EXIT_NOT_BEHIND;
            }
            match failure {
                Failure::Mistakes(_) | Failure::Refused(_) => EXIT_NO,
                Failure::Host(_) => EXIT_HOST,
                Failure::NotRun { status, .. } => status,
                Failure::Input { .. } | Failure::Usage(_) | Failure::Output(_) => EXIT_TROUBLE,
            }
        }
    }
}
