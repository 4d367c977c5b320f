//! How a command ends.

use std::fmt;
use std::io;

use miette::{GraphicalReportHandler, GraphicalTheme};
use msrgate_policy::{Mistakes, shown, shown_name};

use crate::missing;
use crate::terminal;

/// Mistakes have no longer lines, however wide the terminal is.
const WIDTH: usize = 100;

/// A command that was carried out, and the answer to the question it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    /// It was carried out in part: the results say what of it was not, and why.
    Incomplete,
}

/// A command that was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The policy's text is wrong.
    Mistakes(Box<Mistakes>),
    /// The policy is understood, and cannot be had. The text says what to do.
    Refused(String),
    /// The host lacks something. The text says what, and how to get it.
    Host(String),
    /// Something could not be read.
    Input { what: String, why: String },
    /// The arguments do not fit together.
    Usage(String),
    /// The VMM is not there, or cannot be run: the exit status of a shell that finds as much.
    NotRun {
        status: u8,
        what: String,
        why: String,
    },
    /// The results could not be written.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    /// Only results are written with `?`; what is read says what it was. [`Results`](crate::results::Results)
    /// notes its errors instead.
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Ready to print, with its last line's end. Styled; the stream strips what it does not show.
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
