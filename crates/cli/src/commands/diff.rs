//! `msrgate diff`.

use std::io::Write;

use msrgate_policy::{Change, Difference, Direction, SettingChange, differences, setting_changes};
use serde::Serialize;

use crate::cli::{DiffArgs, FailOn, Format};
use crate::failure::{Answer, Failure};
use crate::output::{self, SCHEMA};
use crate::side::{Content, Side};

#[derive(Serialize)]
struct Report {
    schema: u32,
    same: bool,
    old: Described,
    new: Described,
    settings: Vec<SettingRow>,
    differences: Vec<Group>,
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

/// What differs on some processors.
#[derive(Serialize)]
struct Group {
    /// One of them; null where nothing depends on it.
    cpu: Option<String>,
    changes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    first: String,
    last: String,
    /// The first one's.
    name: Option<&'static str>,
    access: String,
    was: String,
    was_by: String,
    is: String,
    is_by: String,
    direction: &'static str,
}

/// In the order in which a reviewer wants them.
const DIRECTIONS: [Direction; 4] = [
    Direction::Looser,
    Direction::Different,
    Direction::Stricter,
    Direction::Neutral,
];

pub(super) fn run(args: &DiffArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if args.old == "-" && args.new == "-" {
        return Err(Failure::Usage(
            "standard input cannot be both sides".to_owned(),
        ));
    }
    let (old, new) = (Side::load(&args.old)?, Side::load(&args.new)?);
    let settings = settings(&old, &new);
    let differences = differences(&old.program, &new.program, args.cpu.cpu.as_ref());
    match args.format.format {
        Format::Json => output::json(out, &report(&old, &new, &settings, &differences))?,
        Format::Text => print(out, &old, &new, &settings, &differences)?,
    }
    let of_settings = settings.iter().map(|change| change.direction);
    let of_rules = differences.iter().flat_map(|one| &one.changes);
    let mut directions = of_settings.chain(of_rules.map(|change| change.direction));
    let fails = match args.fail_on {
        FailOn::Any => directions.next().is_some(),
        FailOn::Looser => directions.any(Direction::may_loosen),
    };
    Ok(if fails { Answer::No } else { Answer::Yes })
}

/// What changes outside of the rules, where both sides have such a thing.
pub(super) fn settings(old: &Side, new: &Side) -> Vec<SettingChange> {
    if [old.content, new.content] == [Content::Policy; 2] {
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

fn report(
    old: &Side,
    new: &Side,
    settings: &[SettingChange],
    differences: &[Difference],
) -> Report {
    let described = |side: &Side| Described {
        file: side.name.clone(),
        digest: side.program.digest().to_string(),
    };
    let row = |change: &Change| Row {
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
    let settings = settings.iter().map(|change| SettingRow {
        key: change.key,
        was: change.was.clone(),
        is: change.is.clone(),
        direction: word(change.direction),
    });
    let groups = differences.iter().map(|difference| Group {
        cpu: difference.cpu.as_ref().map(ToString::to_string),
        changes: difference.changes.iter().map(row).collect(),
    });
    Report {
        schema: SCHEMA,
        same: settings.len() == 0 && differences.is_empty(),
        old: described(old),
        new: described(new),
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
    if settings.is_empty() && differences.is_empty() {
        writeln!(out, "{} and {} do the same", old.name, new.name)?;
        return Ok(());
    }
    let bold = anstyle::Style::new().bold();
    if !settings.is_empty() {
        writeln!(out, "{bold}settings{bold:#}")?;
    }
    for change in settings {
        let SettingChange { key, was, is, .. } = change;
        writeln!(out, "  {:<9}  {key}: {was} -> {is}", word(change.direction))?;
    }
    for difference in differences {
        if let Some(cpu) = &difference.cpu {
            writeln!(out, "{bold}on {cpu} and the like{bold:#}")?;
        }
        for direction in DIRECTIONS {
            let of = |change: &&Change| change.direction == direction;
            let mut changes = difference.changes.iter().filter(of).peekable();
            if changes.peek().is_some() {
                writeln!(out, "{bold}{}{bold:#}", title(direction))?;
            }
            for change in changes {
                writeln!(out, "  {}", line(old, new, change))?;
            }
        }
    }
    Ok(())
}

const fn title(direction: Direction) -> &'static str {
    match direction {
        Direction::Looser => "looser",
        Direction::Different => "different: neither looser nor stricter, and counted as looser",
        Direction::Stricter => "stricter",
        Direction::Neutral => "neither",
    }
}

/// One change: what, from what to what, and both lines.
pub(super) fn line(old: &Side, new: &Side, change: &Change) -> String {
    let msrs = match output::name(change.msrs.first()) {
        Some(name) if change.msrs.count() == 1 => format!("{} {name}", change.msrs),
        Some(name) => format!("{} from {name}", change.msrs),
        None => change.msrs.to_string(),
    };
    format!(
        "{:<5}  {msrs}: {} ({}) -> {} ({})",
        change.access.to_string(),
        change.was.0,
        old.place(change.was.1),
        change.is.0,
        new.place(change.is.1),
    )
}
