//! `msrgate review`: lists what a policy refuses of recorded accesses, and allows it on request.

mod advice;
mod report;
mod rows;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use msrgate_filter::MsrIndex;
use msrgate_policy::learn::{Fate, KeptBy, LearnError, Sighting, accept};
use msrgate_policy::{Compiled, Cpu, MsrSet, one_line, registers};

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
    // The policy as `--accept` has written it.
    let after = OnceCell::new();
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
        Some(named) => {
            let change = Change {
                args,
                input: &input,
                named,
                cpu: chosen.cpu.as_ref(),
            };
            change.accept_rows(&compiled, &mut rows, &after)?
        }
        None => Accepted::All,
    };
    let answer = match (rows.undecided(), missing.is_empty()) {
        _ if accepted == Accepted::Part => Answer::No,
        (0, true) => Answer::Yes,
        (0, false) => Answer::Incomplete,
        _ => Answer::No,
    };
    match args.format.format {
        Format::Json => output::json(out, &report::for_programs(&rows, (&missing, &ends), answer))?,
        Format::Text => {
            // Without --cpu, the policy is the same for all processors, or this host's is chosen again.
            let cpu = chosen.cpu.as_ref().filter(|_| args.cpu.cpu.is_some());
            report::for_people(out, (args, cpu), &rows, (&missing, &ends))?;
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

/// The change of the policy that `--accept` asks for.
struct Change<'a> {
    args: &'a ReviewArgs,
    /// The policy before the change.
    input: &'a Input,
    /// The MSRs that the user names; empty for all that is open.
    named: &'a [MsrSet],
    /// The processor that was chosen for the review.
    cpu: Option<&'a Cpu>,
}

impl Change<'_> {
    /// Allows rows in the policy's file: all that are open, or those of the named MSRs. If the file changes, the
    /// new policy is put into `after`, and the rows are those of the new policy.
    fn accept_rows<'c>(
        &self,
        compiled: &'c Compiled,
        rows: &mut Rows<'c>,
        after: &'c OnceCell<Compiled>,
    ) -> Result<Accepted, Failure> {
        let wanted = self.wanted(rows)?;
        if wanted.is_empty() {
            return Ok(Accepted::All);
        }
        let indices: BTreeSet<_> = match self.named {
            [] => BTreeSet::new(),
            _ => wanted.iter().map(|one| one.index).collect(),
        };
        let source = self.input.source()?;
        let mut files = Files::from(&source, &self.input.place);
        let learnt = accept(&source, &mut files, &wanted, &indices).map_err(not_accepted)?;
        if !learnt.added.is_empty()
            && let Place::File {
                opened: Some(opened),
                ..
            } = &self.input.place
        {
            whole::replace(&self.args.policy, opened, learnt.text.as_bytes())?;
        }
        for (index, access) in &learnt.added {
            if let Some(why) = rows.accept(*index, *access) {
                say(&format!(
                    "the entry that now allows a {access} of {} has its author's why, which may not fit any more: {}",
                    registers::titled(*index),
                    one_line(why)
                ));
            }
        }
        if !learnt.added.is_empty() {
            let new = self.input.compiled_with_text(&learnt.text)?;
            let new = after.get_or_init(|| new);
            rows.rebase(new, new.on(self.cpu));
        }
        for kept in &learnt.kept {
            let change = match rows.grant(kept.index, kept.access) {
                Some(grant) if matches!(kept.by, KeptBy::ByHand { .. }) => format!("; {grant}"),
                _ => String::new(),
            };
            say(&format!("not accepted: {}{change}", kept_in_words(kept)));
        }
        say(&format!(
            "{} now allows {}",
            msrgate_policy::shown_name(compiled.policy().source().name()),
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

    /// Returns the accesses that are to be allowed.
    fn wanted(&self, rows: &Rows<'_>) -> Result<Vec<Sighting>, Failure> {
        let is_named = |index: MsrIndex| self.named.iter().any(|set| set.contains(index));
        for set in self.named {
            if !rows.iter().any(|row| set.contains(row.sighting.index)) {
                return Err(Failure::Usage(format!(
                    "--accept {set}: the policy refuses no recorded access of it"
                )));
            }
        }
        let is_wanted = |row: &&rows::Row<'_>| match self.named {
            [] => row.state == State::Open,
            _ => is_named(row.sighting.index),
        };
        let wanted = rows.iter().filter(is_wanted);
        Ok(wanted.map(|row| to_allow(&row.sighting)).collect())
    }
}

fn not_accepted(error: LearnError) -> Failure {
    match error {
        LearnError::Mistakes(mistakes) => Failure::Mistakes(mistakes),
        error => Failure::Refused(error.to_string()),
    }
}

/// Returns a sighting that lets the access be allowed, although the guest got #GP for it.
fn to_allow(seen: &Sighting) -> Sighting {
    let mut seen = seen.clone();
    if matches!(seen.fate, Fate::Faulted | Fate::Unknown) {
        seen.fate = Fate::Untried;
    }
    seen
}
