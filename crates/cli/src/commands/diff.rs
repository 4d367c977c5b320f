//! `msrgate diff`: compares two policies, programs or filters.

use std::io::Write;

use msrgate_filter::Access;
use msrgate_policy::{
    Change, Difference, Direction, LogChange, MsrRange, Origin, SettingChange, differences,
    one_line, registers, setting_changes, shown_name,
};
use serde::{Serialize, Serializer};

use crate::cli::{DiffArgs, FailOn, Format};
use crate::failure::{Answer, Failure};
use crate::load::is_standard_input;
use crate::output::{self, SCHEMA};
use crate::processor;
use crate::side::{Content, Side};

#[derive(Serialize)]
struct Report<'r> {
    schema: u32,
    same: bool,
    /// The processor on which the two inputs were compared: the user asked for it, or a filter names it.
    /// Null if the inputs were compared on all processors.
    cpu: Option<String>,
    old: Described,
    new: Described,
    /// True if the settings and the logging of both inputs were compared, too. A compiled filter has
    /// neither.
    settings_compared: bool,
    settings: Vec<SettingRow>,
    differences: Vec<Group<'r>>,
}

#[derive(Serialize)]
struct Described {
    file: String,
    digest: String,
}

#[derive(Serialize)]
struct SettingRow {
    key: &'static str,
    was: String,
    is: String,
    direction: &'static str,
}

/// The differences between two policies that are the same on each processor of a group of processors.
#[derive(Serialize)]
struct Group<'r> {
    /// One processor of the group; null if no difference between the policies depends on the processor.
    cpu: Option<String>,
    changes: Rows<'r, Change>,
    /// The changes of the logging: accesses that only one of the two policies logs.
    logs: Rows<'r, LogChange>,
}

/// A list of changes, each of which is turned into a row of JSON only when it is written. A list of a
/// million finished rows would take more memory than their text.
struct Rows<'r, T> {
    of: &'r [T],
    row: Box<dyn Fn(&T) -> Row + 'r>,
}

impl<T> Serialize for Rows<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.of.iter().map(&self.row))
    }
}

#[derive(Serialize)]
struct Row {
    first: String,
    last: String,
    /// The name of the first MSR of the row, if that MSR has a name.
    name: Option<&'static str>,
    access: String,
    was: String,
    was_by: String,
    is: String,
    is_by: String,
    direction: &'static str,
}

/// The kinds of changes, looser or tighter and so on, in the order of the output. Looser changes come first,
/// because they matter most to a person who reviews the new policy.
const DIRECTIONS: [Direction; 4] = [
    Direction::Looser,
    Direction::Different,
    Direction::Stricter,
    Direction::Neutral,
];

pub(super) fn run(args: &DiffArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if [&args.old, &args.new]
        .into_iter()
        .all(|side| is_standard_input(side))
    {
        return Err(Failure::Usage(
            "standard input cannot be both OLD and NEW; name a file for one of them".to_owned(),
        ));
    }
    let (old, new) = (Side::load(&args.old)?, Side::load(&args.new)?);
    let settings = settings(&old, &new);
    let cpu = processor::compared_on(&args.cpu, [&old, &new])?;
    let mut differences = differences(&old.program, &new.program, cpu.as_ref()).map_err(|why| {
        let names = [&old, &new].map(|side| shown_name(&side.name));
        Failure::Usage(format!(
            "{} and {} cannot be compared on all processors: {why}\n  compare them on one processor: --cpu VENDOR:FAMILY:MODEL[:STEPPING]",
            names[0], names[1]
        ))
    })?;
    if !has_settings(&old, &new) {
        for difference in &mut differences {
            difference.logs.clear();
        }
        differences.retain(|one| !one.changes.is_empty());
    }
    match args.format.format {
        Format::Json => {
            let report = Report {
                cpu: cpu.as_ref().map(ToString::to_string),
                ..report(&old, &new, &settings, &differences)
            };
            output::json(out, &report)?;
        }
        Format::Text => print(out, &old, &new, &settings, &differences)?,
    }
    let of_settings = settings.iter().map(|change| change.direction);
    let of_rules = differences.iter().flat_map(|one| &one.changes);
    let of_logs = differences.iter().flat_map(|one| &one.logs);
    let mut directions = of_settings
        .chain(of_rules.map(|change| change.direction))
        .chain(of_logs.map(|_| Direction::Neutral));
    let fails = match args.fail_on {
        FailOn::Any => directions.next().is_some(),
        FailOn::Looser => directions.any(Direction::may_loosen),
    };
    Ok(if fails { Answer::No } else { Answer::Yes })
}

/// Returns true if both inputs have settings: policies and programs have them, filters do not.
fn has_settings(old: &Side, new: &Side) -> bool {
    [old.content, new.content] == [Content::Policy; 2]
}

/// Returns the settings that differ between two inputs, or an empty list if an input is a filter.
pub(super) fn settings(old: &Side, new: &Side) -> Vec<SettingChange> {
    if has_settings(old, new) {
        setting_changes(old.program.settings(), new.program.settings())
    } else {
        Vec::new()
    }
}

const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Looser => "looser",
        Direction::Different => "different",
        Direction::Stricter => "stricter",
        Direction::Neutral => "neutral",
    }
}

fn report<'r>(
    old: &'r Side,
    new: &'r Side,
    settings: &[SettingChange],
    differences: &'r [Difference],
) -> Report<'r> {
    let described = |side: &Side| Described {
        file: side.name.clone(),
        digest: side.program.digest().to_string(),
    };
    let changed = move |change: &Change| Row {
        first: change.msrs.first().to_string(),
        last: change.msrs.last().to_string(),
        name: output::name(change.msrs.first()),
        access: change.access.to_string(),
        was: change.was.0.to_string(),
        was_by: old.place(change.was.1),
        is: change.is.0.to_string(),
        is_by: new.place(change.is.1),
        direction: word(change.direction),
    };
    let logged = move |change: &LogChange| Row {
        first: change.msrs.first().to_string(),
        last: change.msrs.last().to_string(),
        name: output::name(change.msrs.first()),
        access: change.access.to_string(),
        was: change.was.0.word().to_owned(),
        was_by: old.place(change.was.1),
        is: change.is.0.word().to_owned(),
        is_by: new.place(change.is.1),
        direction: word(Direction::Neutral),
    };
    let settings = settings.iter().map(|change| SettingRow {
        key: change.key,
        was: change.was.clone(),
        is: change.is.clone(),
        direction: word(change.direction),
    });
    let groups = differences.iter().map(|difference| Group {
        cpu: difference.cpu.as_ref().map(ToString::to_string),
        changes: Rows {
            of: &difference.changes,
            row: Box::new(changed),
        },
        logs: Rows {
            of: &difference.logs,
            row: Box::new(logged),
        },
    });
    Report {
        schema: SCHEMA,
        same: settings.len() == 0 && differences.is_empty(),
        cpu: None,
        old: described(old),
        new: described(new),
        settings_compared: has_settings(old, new),
        settings: settings.collect(),
        differences: groups.collect(),
    }
}

fn print(
    out: &mut dyn Write,
    old: &Side,
    new: &Side,
    settings: &[SettingChange],
    differences: &[Difference],
) -> Result<(), Failure> {
    let filters = [old, new].into_iter();
    for filter in filters.filter(|side| side.content == Content::Filter) {
        writeln!(
            out,
            "{} is a filter, so diff compares only the decisions of the kernel, and no settings or logs",
            shown_name(&filter.name)
        )?;
    }
    if settings.is_empty() && differences.is_empty() {
        let [old, new] = [old, new].map(|side| shown_name(&side.name));
        writeln!(out, "no differences between {old} and {new}")?;
        return Ok(());
    }
    let bold = anstyle::Style::new().bold();
    if !settings.is_empty() {
        writeln!(out, "{bold}settings{bold:#}")?;
    }
    for change in settings {
        let SettingChange { key, was, is, .. } = change;
        let [was, is] = [was, is].map(|text| one_line(text));
        writeln!(out, "  {:<9}  {key}: {was} -> {is}", word(change.direction))?;
    }
    for difference in differences {
        if let Some(cpu) = &difference.cpu {
            writeln!(out, "{bold}on processors like {cpu}{bold:#}")?;
        }
        for direction in DIRECTIONS {
            let of = |change: &&Change| change.direction == direction;
            let mut changes = difference.changes.iter().filter(of).peekable();
            if changes.peek().is_some() {
                writeln!(out, "{bold}{}{bold:#}", title(direction))?;
            }
            for change in changes {
                writeln!(out, "  {}", one_line(&line(old, new, change)))?;
            }
        }
        if !difference.logs.is_empty() {
            writeln!(out, "{bold}logged differently{bold:#}")?;
        }
        for change in &difference.logs {
            let (was, is) = (change.was.0.word(), change.is.0.word());
            let places = (change.was.1, change.is.1);
            let line = row(old, new, (change.msrs, change.access), (was, is), places);
            writeln!(out, "  {}", one_line(&line))?;
        }
    }
    Ok(())
}

const fn title(direction: Direction) -> &'static str {
    match direction {
        Direction::Looser => "looser",
        Direction::Different => {
            "neither looser nor stricter (--fail-on looser counts these changes, too)"
        }
        Direction::Stricter => "stricter",
        Direction::Neutral => "neutral",
    }
}

/// Returns the output line for a change: the MSRs, the old and the new action, and the places in the
/// policies from which both actions come.
pub(super) fn line(old: &Side, new: &Side, change: &Change) -> String {
    let (was, is) = (change.was.0.to_string(), change.is.0.to_string());
    let places = (change.was.1, change.is.1);
    row(old, new, (change.msrs, change.access), (&was, &is), places)
}

fn row(
    old: &Side,
    new: &Side,
    (msrs, access): (MsrRange, Access),
    (was, is): (&str, &str),
    (was_by, is_by): (Origin, Origin),
) -> String {
    let msrs = registers::titled_range(msrs);
    let (was_by, is_by) = (old.shown_place(was_by), new.shown_place(is_by));
    format!(
        "{:<5}  {msrs}: {was} ({was_by}) -> {is} ({is_by})",
        access.to_string()
    )
}
