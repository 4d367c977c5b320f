//! `msrgate learn --from`: learns from recordings, without a run.

use std::io::Write;

use msrgate_policy::learn::{EMPTY, Notes};
use msrgate_policy::{NoIncludes, Source, compile, parse};

use super::super::exec::say;
use super::super::recordings::{check_standard_input, read};
use super::output::{self, is_standard, put};
use super::{Old, tell_learnt, word};
use crate::cli::LearnArgs;
use crate::failure::{Answer, Failure};
use crate::output::count;

pub(super) fn run(args: &LearnArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    check_standard_input(args.from.iter().chain(&args.merge))?;
    let old = Old::read(args)?;
    // The lines are counted as a replay counts them. The policy of that replay does not matter.
    let empty = parse(&Source::new("empty", EMPTY), &mut NoIncludes).map_err(Failure::Mistakes)?;
    let empty = compile(empty).map_err(|error| Failure::Refused(error.to_string()))?;
    let (mut seen, mut notes) = (Vec::new(), Notes::default());
    for file in &args.from {
        let read = read(file, empty.policy(), &empty.variants()[0])?;
        let name = &read.name;
        seen.extend(read.recording.sightings(name));
        let more = read.recording.notes(name, read.replay.totals());
        notes.missing.extend(more.missing);
        notes.unseen.extend(more.unseen);
        if let Some(last) = read.stopped {
            notes.missing.push(format!(
                "NOT ALL of the guest's accesses are in here. Ctrl-C ended the reading of {name} after line {last}."
            ));
        }
    }
    let learnt = old.with(&seen, &notes).map_err(|failure| match failure {
        Failure::Refused(why) => Failure::Input {
            what: output::name(args),
            why: format!("was not written: {why}"),
        },
        failure => failure,
    })?;
    if is_standard(args) {
        out.write_all(learnt.text.as_bytes())?;
    } else {
        put(args, &old, &learnt)?;
    }
    let recordings = count(args.from.len(), "recording", "recordings");
    tell_learnt(
        args,
        &learnt,
        &recordings,
        &format!("the last one from {recordings}"),
    );
    for note in notes.missing.iter().chain(&notes.unseen) {
        say(note);
    }
    let is_all = notes.missing.is_empty() && learnt.kept.is_empty();
    let answer = if is_all { Answer::Yes } else { Answer::No };
    if is_standard(args) {
        return Ok(answer);
    }
    let file = word(args.output.as_os_str());
    say(&format!(
        "next:\n  msrgate check {file}\n  msrgate exec --audit {file} -- VMM ARGS…"
    ));
    Ok(answer)
}
