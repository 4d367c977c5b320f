//! The ways in which a command ends.

use std::fmt;
use std::io;

use miette::{GraphicalReportHandler, GraphicalTheme};
use msrgate_policy::{Mistakes, shown, shown_name};

use crate::missing;
use crate::terminal;

/// The largest width in columns of a message about a mistake in a policy, even on a wider terminal.
const WIDTH: usize = 100;

/// The exit code if `exec` or `learn` could not put the VMM behind the policy. With any other exit status, both
/// pass on the status of the VMM.
pub(crate) const EXIT_NOT_BEHIND: u8 = 125;

/// The answer of a command that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    /// The command was carried out in part: the results say what is missing, and why.
    Incomplete,
    /// The command, `exec` or `learn`, ends with this exit status: the VMM's, or one in place of
    /// the VMM's.
    Status(u8),
}

/// The reason why a command was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The policy's text has these mistakes.
    Mistakes(Box<Mistakes>),
    /// The policy has no mistakes, but the command refuses it. The string says what to do.
    Refused(String),
    /// The host lacks something. The string says what, and how to get it.
    Host(String),
    /// An input could not be read.
    Input { what: String, why: String },
    /// The arguments do not fit together.
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
