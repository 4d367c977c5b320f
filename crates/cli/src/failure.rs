//! The ways in which a command of msrgate ends: an answer or a failure.

use std::fmt;
use std::io;

use miette::{GraphicalReportHandler, GraphicalTheme};
use msrgate_policy::{Mistakes, shown, shown_name};

use crate::missing;
use crate::terminal;

/// The largest width in columns of a message about a mistake in a policy, even on a wider terminal.
const WIDTH: usize = 100;

/// The exit code of `exec` and `learn` if they could not run the VMM under the policy. If they could, they
/// exit with the VMM's status.
pub(crate) const EXIT_NOT_BEHIND: u8 = 125;

/// The answer of a command that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    /// The command was carried out only in part. The results say what is missing, and why.
    Incomplete,
    /// The command is `exec` or `learn`, and ends with this exit status: the VMM's own, or a replacement for
    /// it.
    Status(u8),
}

/// The reason why a command was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The policy's text has these mistakes, so the command did nothing else with it.
    Mistakes(Box<Mistakes>),
    /// The policy has no mistakes, but the command cannot work with it. The string says why, and what to do.
    Refused(String),
    /// The host lacks something that the command needs. The string says what, and how to get it.
    Host(String),
    /// The input `what` could not be read, for the reason `why`.
    Input { what: String, why: String },
    /// The arguments of the command contradict each other.
    Usage(String),
    /// The VMM does not exist or cannot be run; `status` is the exit status that a shell gives for this.
    NotRun {
        status: u8,
        what: String,
        why: String,
    },
    /// The results could not be written.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    /// Turns an error of writing into [`Failure::Output`]. Only code that writes results may turn an I/O
    /// error into a failure by `?`; an error of reading becomes a failure that names the input.
    /// [`Results`](crate::results::Results) notes its errors instead.
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Prints the message about the failure, with styles, and with a line feed at its end. The stream that gets
/// the text removes styles that it cannot show.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let red = anstyle::AnsiColor::Red.on_default().bold();
        match self {
            Self::Mistakes(mistakes) => {
                GraphicalReportHandler::new_themed(GraphicalTheme::unicode())
                    .with_links(false)
                    .with_width(terminal::of_talk().map_or(WIDTH, |width| width.min(WIDTH)))
                    .render_report(f, mistakes.as_ref())
            }
            Self::Refused(text) | Self::Host(text) | Self::Usage(text) => {
                writeln!(f, "{red}error{red:#}: {}", shown(text))
            }
            Self::Input { what, why } | Self::NotRun { what, why, .. } => {
                writeln!(f, "{red}error{red:#}: {}: {}", shown_name(what), shown(why))
            }
            Self::Output(error) => {
                writeln!(
                    f,
                    "{red}error{red:#}: cannot write the results: {}",
                    missing::reason(error)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
