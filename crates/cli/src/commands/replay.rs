//! `msrgate replay`: says what a policy would have decided about each access in a trace.

mod progress;
pub(super) mod report;
pub(super) mod selected;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use msrgate_policy::shown_name;
use msrgate_policy::trace::{Line, LineNumber, Lines, Replay};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::cli::{Format, ReplayArgs};
use crate::failure::{Answer, Failure};
use crate::load::{self, is_standard_input};
use crate::missing;
use crate::named::name;
use crate::output;
use crate::processor;
use progress::Progress;
use selected::Selected;

/// The number of bytes of a trace that are read at once.
const BUFFER: usize = 256 << 10;

/// An open trace.
pub(super) struct Trace {
    /// The name of the trace in messages.
    pub(super) name: String,
    from: Box<dyn Read>,
    /// The size of the trace in bytes, if the trace is a regular file.
    size: Option<u64>,
}

/// The part of a trace that was read: the whole trace, or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Whole,
    /// The trace was not read as a whole: events are missing, lines could not be read, or a Ctrl-C ended the
    /// reading.
    Part,
}

pub(super) fn run(args: &ReplayArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if [&args.policy, &args.trace]
        .into_iter()
        .all(|one| is_standard_input(one))
    {
        return Err(Failure::Usage(
            "standard input cannot be both POLICY and TRACE; name a file for one of them"
                .to_owned(),
        ));
    }
    let compiled = load::compiled(&args.policy)?;
    let trace = open(&args.trace)?;
    let name = &trace.name.clone();
    let chosen = processor::choose(&compiled, &args.cpu)?;
    let mut replay = Replay::new(compiled.policy(), chosen.variant);
    let mut selected = Selected::new(&args.task);
    let stopped = read(trace, &mut selected, |number, line| {
        replay.add(number, line);
    })?;

    // That a run guards a VM shows nothing about single tasks.
    let is_of_tasks = selected.is_part() && replay.totals().accesses() == 0;
    if replay.totals().is_silent() || is_of_tasks {
        return Err(Failure::Input {
            what: name.clone(),
            why: report::no_access(replay.totals(), &selected),
        });
    }
    let extent = match stopped {
        None if replay.totals().is_whole() && selected.is_sure() => Extent::Whole,
        _ => Extent::Part,
    };
    let totals = replay.totals();
    let answer = match (totals.refused, totals.unsure, extent) {
        (0, 0, Extent::Whole) => Answer::Yes,
        // An access that is missing in the trace may be one that the policy denies.
        (0, _, _) => Answer::Incomplete,
        _ => Answer::No,
    };
    match args.format.format {
        Format::Json => {
            let report = report::for_programs(
                name,
                (&replay, &selected),
                chosen.cpu.as_ref(),
                stopped,
                answer,
            );
            output::json(out, &report)?;
        }
        Format::Text => report::for_people(out, name, (&replay, &selected), answer)?,
    }
    Ok(answer)
}

/// Opens a trace: a file, or `-` for standard input.
///
/// # Errors
/// The file cannot be read.
pub(super) fn open(trace: &Path) -> Result<Trace, Failure> {
    if is_standard_input(trace) {
        return Ok(Trace {
            name: "standard input".to_owned(),
            from: Box::new(load::standard_input()?),
            size: None,
        });
    }
    let name = name(trace);
    let trouble = |error: io::Error| unreadable(&name, &error);
    let file = File::open(trace).map_err(|error| Failure::Input {
        what: name.clone(),
        why: missing::why(trace, &error),
    })?;
    let metadata = file.metadata().map_err(trouble)?;
    Ok(Trace {
        name,
        from: Box::new(file),
        size: metadata.is_file().then_some(metadata.len()),
    })
}

/// Reads all lines of a trace, and passes each to `take`. An access of a task that `--task` does not select
/// is passed as an event that is no access. After a Ctrl-C the function stops, and returns the number of the
/// last line that it read. A second Ctrl-C ends the process.
///
/// # Errors
/// The trace cannot be read.
pub(super) fn read(
    trace: Trace,
    selected: &mut Selected<'_>,
    mut take: impl FnMut(LineNumber, Line),
) -> Result<Option<LineNumber>, Failure> {
    let trouble = |error: io::Error| unreadable(&trace.name, &error);
    let stop = Arc::new(AtomicBool::new(false));
    flag::register_conditional_default(SIGINT, Arc::clone(&stop)).map_err(trouble)?;
    flag::register(SIGINT, Arc::clone(&stop)).map_err(trouble)?;

    let mut progress = Progress::new(trace.size);
    let mut lines = Lines::new(BufReader::with_capacity(BUFFER, trace.from));
    let mut last = None;
    while !stop.load(Ordering::Relaxed)
        && let Some((number, line)) = lines.next_line().map_err(trouble)?
    {
        take(number, selected.of_line(line, || lines.task()));
        progress.at(number, lines.bytes());
        last = Some(number);
    }
    progress.clear();
    // The Ctrl-C may also have ended the tracer while this function waited for the next line. The end of the
    // input is then not the end of the trace.
    if !stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    if let Some(number) = last {
        let name = shown_name(&trace.name);
        output::say(&format_args!(
            "stopped by Ctrl-C after line {number} of {name}\n"
        ));
    }
    Ok(last)
}

fn unreadable(what: &str, error: &io::Error) -> Failure {
    Failure::Input {
        what: what.to_owned(),
        why: missing::reason(error),
    }
}
