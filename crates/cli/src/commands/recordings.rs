//! The reading of recordings of accesses (traces and files of events) by `learn --from` and `review`.

use std::path::{Path, PathBuf};

use msrgate_policy::learn::Recording;
use msrgate_policy::trace::{LineNumber, Replay};
use msrgate_policy::{Policy, Variant, one_line};

use super::replay::selected::Selected;
use super::replay::{self, report};
use crate::failure::Failure;
use crate::load::is_standard_input;

/// A recording of accesses that was read.
pub(super) struct Read<'c> {
    /// The name of the recording in messages.
    pub(super) name: String,
    pub(super) recording: Recording,
    /// The decisions of a policy about the accesses in the recording.
    pub(super) replay: Replay<'c>,
    /// The last line that was read before a Ctrl-C; `None` if the recording was read to its end.
    pub(super) stopped: Option<LineNumber>,
}

/// Reads a recording, and decides each of its accesses by a policy.
///
/// # Errors
/// The recording cannot be read, or [shows nothing](msrgate_policy::trace::Totals::is_silent).
pub(super) fn read<'c>(
    file: &Path,
    policy: &'c Policy,
    variant: &'c Variant,
) -> Result<Read<'c>, Failure> {
    let trace = replay::open(file)?;
    let name = trace.name.clone();
    let mut selected = Selected::new(&[]);
    let mut recording = Recording::default();
    let mut replay = Replay::new(policy, variant);
    let stopped = replay::read(trace, &mut selected, |number, line| {
        recording.add(number, line);
        replay.add(number, line);
    })?;
    if replay.totals().is_silent() {
        return Err(Failure::Input {
            what: name,
            why: report::no_access(replay.totals(), &selected),
        });
    }
    Ok(Read {
        name: one_line(&name),
        recording,
        replay,
        stopped,
    })
}

/// Refuses arguments that name standard input more than once.
///
/// # Errors
/// Several of the arguments are `-`.
pub(super) fn check_standard_input<'a>(
    files: impl Iterator<Item = &'a PathBuf>,
) -> Result<(), Failure> {
    if files.filter(|one| is_standard_input(one)).count() > 1 {
        return Err(Failure::Usage(
            "standard input can be only one of the files; name files for the others".to_owned(),
        ));
    }
    Ok(())
}
