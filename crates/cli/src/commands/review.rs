//! `msrgate review`: lists what a policy refuses of recorded accesses, and allows it on request.

mod advice;
mod report;
mod rows;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use msrgate_filter::MsrIndex;
use msrgate_policy::learn::{Fate, KeptBy, LearnError, Sighting, accept};
use msrgate_policy::{Compiled, MsrSet, one_line, registers};

use super::exec::say;
use super::learn::kept_in_words;
use super::recordings::{check_standard_input, read};
use crate::cli::{Format, ReviewArgs};
use crate::failure::{Answer, Failure};
use crate::files::{Files, Place};
use crate::links;
use crate::load::Input;
use crate::named;
use crate::output;
use crate::processor;
use crate::whole;

use advice::Advisers;
use rows::{Rows, State};

pub(super) fn run(args: &ReviewArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    check_standard_input(args.events.iter().chain([&args.policy]))?;
    let input = Input::read(&args.policy)?;
    if args.accept.is_some() {
        check_writable(&args.policy, &input)?;
    }
    let compiled = input.compiled()?;
    let chosen = processor::choose(&compiled, &args.cpu)?;
    let (policy, variant) = (compiled.policy(), chosen.variant);
    let advisers = Advisers::new()?;
    let mut rows = Rows::new(&compiled, variant, &advisers);
    let (mut missing, mut ends) = (Vec::new(), Vec::new());
    for file in &args.events {
        let read = read(file, policy, variant)?;
        missing.extend(
            read.recording
                .notes(&read.name, read.replay.totals())
                .missing,
        );
        if read.stopped.is_some() {
            missing.push(format!("Ctrl-C ended the reading of {}.", read.name));
        }
        ends.extend(read.recording.end(&read.name));
        rows.add(&read);
    }
    let accepted = match &args.accept {
        Some(named) => accept_rows(args, &input, &compiled, &mut rows, named)?,
        None => Accepted::All,
    };
    let answer = match (rows.undecided(), missing.is_empty()) {
        _ if accepted == Accepted::Part => Answer::No,
        (0, true) => Answer::Yes,
        (0, false) => Answer::Incomplete,
        _ => Answer::No,
    };
    match args.format.format {
        Format::Json => output::json(
            out,
            &report::for_programs(policy, &rows, (&missing, &ends), answer),
        )?,
        Format::Text => {
            // Without --cpu, the policy is the same for all processors, or this host's is chosen again.
            let cpu = chosen.cpu.as_ref().filter(|_| args.cpu.cpu.is_some());
            report::for_people(out, (args, cpu), policy, &rows, (&missing, &ends))?;
        }
    }
    Ok(answer)
}

fn check_writable(policy: &Path, input: &Input) -> Result<(), Failure> {
    let is_file = matches!(
        &input.place,
        Place::File {
            opened: Some(_),
            ..
        }
    );
    if is_file && !links::is_open_file(policy) {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{} is not a file, so review cannot change it; leave out --accept",
        named::shown(policy)
    )))
}

/// The result of `--accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    All,
    /// The policy goes on to refuse accesses that were to be accepted.
    Part,
}

/// Allows rows in the policy's file: all that are open, or those of the named MSRs.
fn accept_rows(
    args: &ReviewArgs,
    input: &Input,
    compiled: &Compiled,
    rows: &mut Rows<'_>,
    named: &[MsrSet],
) -> Result<Accepted, Failure> {
    let is_named = |index: MsrIndex| named.iter().any(|set| set.contains(index));
    for set in named {
        if !rows.iter().any(|row| set.contains(row.sighting.index)) {
            return Err(Failure::Usage(format!(
                "--accept {set}: the policy refuses no recorded access of it"
            )));
        }
    }
    let is_wanted = |row: &rows::Row<'_>| match named {
        [] => row.state == State::Open,
        _ => is_named(row.sighting.index),
    };
    let wanted: Vec<_> = rows
        .iter()
        .filter(|row| is_wanted(row))
        .map(|row| to_allow(&row.sighting))
        .collect();
    if wanted.is_empty() {
        return Ok(Accepted::All);
    }
    let indices: BTreeSet<_> = match named {
        [] => BTreeSet::new(),
        _ => wanted.iter().map(|one| one.index).collect(),
    };
    let source = input.source()?;
    let mut files = Files::from(&source, &input.place);
    let learnt = accept(&source, &mut files, &wanted, &indices).map_err(|error| match error {
        LearnError::Mistakes(mistakes) => Failure::Mistakes(mistakes),
        error => Failure::Refused(error.to_string()),
    })?;
    for kept in &learnt.kept {
        let change = match rows.grant(kept.index, kept.access) {
            Some(grant) if matches!(kept.by, KeptBy::ByHand { .. }) => format!("; {grant}"),
            _ => String::new(),
        };
        say(&format!("not accepted: {}{change}", kept_in_words(kept)));
    }
    if !learnt.added.is_empty()
        && let Place::File {
            opened: Some(opened),
            ..
        } = &input.place
    {
        whole::replace(&args.policy, opened, learnt.text.as_bytes())?;
    }
    let name = compiled.policy().source().name();
    for (index, access) in &learnt.added {
        if let Some(why) = rows.accept(*index, *access) {
            say(&format!(
                "the entry that now allows a {access} of {} has its author's why, which may not fit any more: {}",
                registers::titled(*index),
                one_line(why)
            ));
        }
    }
    say(&format!(
        "{} now allows {}",
        msrgate_policy::shown_name(name),
        output::count(
            learnt.added.len(),
            "more kind of access",
            "more kinds of accesses"
        )
    ));
    Ok(if learnt.kept.is_empty() {
        Accepted::All
    } else {
        Accepted::Part
    })
}

/// Returns a sighting that lets the access be allowed, although the guest got #GP for it.
fn to_allow(seen: &Sighting) -> Sighting {
    let mut seen = seen.clone();
    if matches!(seen.fate, Fate::Faulted | Fate::Unknown) {
        seen.fate = Fate::Untried;
    }
    seen
}
