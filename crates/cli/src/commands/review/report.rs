//! The report of a review, for people and for programs.

use std::io::{self, Write};
use std::path::Path;

use msrgate_filter::Access;
use msrgate_policy::learn::RefusedBy;
use msrgate_policy::{Action, Cpu, Entry, Grant, Policy, one_line, registers, shown_name};
use serde::Serialize;

use super::rows::{Certainty, Row, Rows, State};
use crate::cli::ReviewArgs;
use crate::failure::Answer;
use crate::output::{self, SCHEMA, count};

#[derive(Serialize)]
pub(super) struct Report<'r> {
    schema: u32,
    policy: &'r str,
    /// True if nothing is open, and no part of the recordings is missing.
    ok: bool,
    open: usize,
    decided: usize,
    moot: usize,
    unclear: usize,
    accepted: usize,
    rows: Vec<Listed<'r>>,
    /// The parts of the recordings that are missing, as sentences.
    missing: &'r [String],
    /// Sentences about guests that the action `kill` ended. What these would have done after that is not in the
    /// recordings.
    ends: &'r [String],
}

#[derive(Serialize)]
struct Listed<'r> {
    index: String,
    name: Option<&'static str>,
    summary: Option<&'static str>,
    access: String,
    count: u64,
    /// The place of the first access, such as `events.jsonl:4`.
    first: Option<&'r str>,
    state: &'static str,
    /// The place of the entry that refuses the access, or has allowed it since `--accept`; null for the default.
    policy_file: Option<&'r str>,
    policy_line: Option<u32>,
    entry: Option<&'r str>,
    why: Option<&'r str>,
    /// True if the entry is `final`: `--accept` does not loosen it.
    r#final: bool,
    /// `sound`, `look` or `unsound`.
    advice: &'static str,
    reasons: &'r [String],
    /// True if the policy ends the guest at such an access, by the action `kill`.
    kills: bool,
    /// True if the policy surely refuses the accesses; false if its answer depends on a value that is not recorded.
    sure: bool,
    /// The entry, or the text in place of an entry or of its field, that would allow the accesses; null if none can, and
    /// if they are allowed since `--accept`.
    allow: Option<String>,
    /// The place of the entry or of the `[[when]]` to change; null for a new entry of `[msrs]`.
    allow_at: Option<String>,
}

pub(super) fn for_programs<'r>(
    rows: &'r Rows<'_>,
    (missing, ends): (&'r [String], &'r [String]),
    answer: Answer,
) -> Report<'r> {
    let policy = rows.policy();
    Report {
        schema: SCHEMA,
        policy: policy.source().name(),
        ok: answer == Answer::Yes,
        open: rows.count(State::Open),
        decided: rows.count(State::Decided),
        moot: rows.count(State::Moot),
        unclear: rows.count(State::Unclear),
        accepted: rows.count(State::Accepted),
        rows: rows.iter().map(|row| listed(policy, rows, row)).collect(),
        missing,
        ends,
    }
}

fn listed<'r>(policy: &'r Policy, rows: &Rows<'_>, row: &'r Row<'_>) -> Listed<'r> {
    let index = row.sighting.index;
    let entry = entry_of(row.refused_by);
    let grant = match row.state {
        State::Accepted => None,
        _ => rows.grant(index, row.sighting.access),
    };
    let (allow, allow_at) = match grant {
        Some(Grant::Add(entry)) => (Some(entry), None),
        Some(Grant::AddToWhen { entry: text, at } | Grant::Change { text, at }) => {
            (Some(text), Some(at.to_string()))
        }
        _ => (None, None),
    };
    Listed {
        index: index.to_string(),
        name: output::name(index),
        summary: registers::by_index(index).map(|register| register.summary),
        access: row.sighting.access.to_string(),
        count: row.count,
        first: row.sighting.first.at.as_deref(),
        state: row.state.word(),
        policy_file: entry.map(|entry| policy.text(entry.source()).name()),
        policy_line: entry.map(|entry| entry.place().line),
        entry: entry.map(Entry::key),
        why: entry.and_then(Entry::why),
        r#final: entry.is_some_and(Entry::is_final),
        advice: row.advice.verdict.word(),
        reasons: &row.advice.reasons,
        kills: rows.is_kill(index, row.sighting.access),
        sure: row.certainty == Certainty::Sure,
        allow,
        allow_at,
    }
}

const fn entry_of(refused_by: RefusedBy<'_>) -> Option<&Entry> {
    match refused_by {
        RefusedBy::Learnt(entry) | RefusedBy::LearntAsUnknown(entry) | RefusedBy::Author(entry) => {
            Some(entry)
        }
        _ => None,
    }
}

pub(super) fn for_people(
    out: &mut dyn Write,
    (args, cpu): (&ReviewArgs, Option<&Cpu>),
    rows: &Rows<'_>,
    (missing, ends): (&[String], &[String]),
) -> io::Result<()> {
    let policy = rows.policy();
    let open = rows.count(State::Open);
    let style = match open {
        0 => anstyle::AnsiColor::Green,
        _ => anstyle::AnsiColor::Red,
    };
    let style = style.on_default().bold();
    let refused = count(rows.iter().count(), "kind of access", "kinds of accesses");
    writeln!(
        out,
        "{}: of {refused} that it refuses, {style}{open} open{style:#}",
        shown_name(policy.source().name()),
    )?;
    let bold = anstyle::Style::new().bold();
    for state in State::ALL {
        let title = match state {
            State::Open => "open: nobody has decided; `default` or a learnt entry refuses it",
            State::Decided => {
                "decided: the author of the policy, or of an include, has decided; to allow what an entry refuses, name the MSR: --accept MSR"
            }
            State::Unclear => {
                "unclear: the guest got #GP, from KVM or from a filter; to allow it, name the MSR: --accept MSR"
            }
            State::Moot => {
                "moot: the guest got #GP without this policy, too: KVM does not know the MSR"
            }
            State::Accepted => "accepted: the policy allows it from now on",
        };
        if rows.count(state) > 0 {
            writeln!(out, "{bold}{title}{bold:#}")?;
        }
        for row in rows.iter().filter(|row| row.state == state) {
            print(out, policy, rows, row)?;
        }
    }
    for one in missing.iter().chain(ends) {
        writeln!(out, "{one}")?;
    }
    if open > 0 && args.accept.is_none() {
        let words = [&args.policy].into_iter().chain(&args.events);
        let words: Vec<_> = words
            .map(|one| super::super::learn::word(Path::as_os_str(one)))
            .collect();
        let cpu = cpu.map_or_else(String::new, |cpu| format!(" --cpu {cpu}"));
        writeln!(
            out,
            "to allow all that is open: msrgate review {}{cpu} --accept\n  --accept writes `read` and `write` of each entry in full, with a `why`; a long entry becomes a table: [msrs.NAME]",
            words.join(" ")
        )?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, policy: &Policy, rows: &Rows<'_>, row: &Row<'_>) -> io::Result<()> {
    let (index, access) = (row.sighting.index, row.sighting.access.to_string());
    let number = usize::try_from(row.count).unwrap_or(usize::MAX);
    let accesses = count(number, &access, &format!("{access}s"));
    let first = row.sighting.first.at.as_deref().unwrap_or_default();
    writeln!(
        out,
        "  {}: {accesses}, first at {first}",
        registers::titled(index)
    )?;
    if let Some(register) = registers::by_index(index).filter(|one| !one.summary.is_empty()) {
        writeln!(out, "      {}", register.summary)?;
    }
    let entry = entry_of(row.refused_by);
    let kills = if rows.is_kill(index, row.sighting.access) {
        ", by `kill`, which ends the guest"
    } else {
        ""
    };
    match entry {
        Some(entry) if row.state == State::Accepted => {
            let place = output::where_it_stands(policy, entry);
            let words = Access::ALL.map(|access| {
                let word = entry.action(access).map_or("inherit", Action::word);
                format!("{access} = \"{word}\"")
            });
            writeln!(out, "      allowed by {place}: {}", words.join(", "))?;
        }
        Some(entry) => {
            let place = output::where_it_stands(policy, entry);
            let firm = if entry.is_final() {
                ", which is final"
            } else {
                ""
            };
            let why = entry
                .why()
                .map_or_else(String::new, |why| format!(": {}", one_line(why)));
            writeln!(out, "      refused by {place}{firm}{kills}{why}")?;
        }
        None => writeln!(out, "      refused by `default`{kills}")?,
    }
    if row.certainty == Certainty::ByValue && row.state != State::Accepted {
        writeln!(
            out,
            "      may be refused: that depends on a value that is not recorded"
        )?;
    }
    if matches!(row.state, State::Open | State::Unclear | State::Decided) {
        let verdict = row.advice.verdict.title();
        for (number, reason) in row.advice.reasons.iter().enumerate() {
            match number {
                0 => writeln!(out, "      {verdict}: {}", one_line(reason))?,
                _ => writeln!(out, "      - {}", one_line(reason))?,
            }
        }
        let grant = rows.grant(index, row.sighting.access);
        match grant {
            Some(grant @ Grant::Add(_)) => writeln!(out, "      {grant} below [msrs]")?,
            Some(grant) => writeln!(out, "      {grant}")?,
            None => writeln!(
                out,
                "      no entry can allow it: only `default` decides about this MSR"
            )?,
        }
    }
    Ok(())
}
