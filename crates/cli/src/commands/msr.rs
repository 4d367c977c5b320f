//! `msrgate msr`: looks up registers and decodes their values.

use std::io::Write;

use msrgate_policy::registers::{self, Field, Register};
use serde::Serialize;

use crate::cli::{Format, MsrArgs};
use crate::failure::{Answer, Failure};
use crate::output::{self, SCHEMA};

#[derive(Serialize)]
struct Found {
    schema: u32,
    registers: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    index: String,
    name: &'static str,
    aliases: &'static [&'static str],
    vendor: String,
    summary: &'static str,
    /// The extent to which a filter controls the register: enforced, partly, not.
    reach: String,
    gaps: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoded: Option<DecodedValue>,
}

/// A value of a register, taken apart by the register's fields.
#[derive(Serialize)]
struct DecodedValue {
    value: String,
    fields: Vec<DecodedField>,
    /// The bits of the value that are set and that no field covers.
    undescribed: String,
}

#[derive(Serialize)]
struct DecodedField {
    name: &'static str,
    bits: String,
    value: String,
    summary: &'static str,
}

pub(super) fn run(args: &MsrArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let mut found: Vec<_> = args
        .words
        .iter()
        .flat_map(|word| registers::search(word))
        .collect();
    found.sort_by_key(|register| register.index);
    found.dedup_by_key(|register| register.index);
    match args.format.format {
        Format::Json => output::json(
            out,
            &Found {
                schema: SCHEMA,
                registers: found
                    .iter()
                    .map(|register| listed(register, args.decode))
                    .collect(),
            },
        )?,
        Format::Text => {
            for register in &found {
                print(out, register)?;
                if let Some(value) = args.decode {
                    print_decoded(out, register, value)?;
                }
            }
        }
    }
    if found.is_empty() {
        output::say(
            &"no known register matches; write a name, a part of a name, an index such as 0x8b, or a word of the description\n",
        );
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

fn listed(register: &Register, value: Option<u64>) -> Listed {
    Listed {
        index: register.index.to_string(),
        name: register.name,
        aliases: register.aliases,
        vendor: register.vendor.to_string(),
        summary: register.summary,
        reach: register.reach().to_string(),
        gaps: register.reach().gaps().iter().map(|gap| gap.name).collect(),
        decoded: value.map(|value| decoded(register, value)),
    }
}

fn print(out: &mut dyn Write, register: &Register) -> Result<(), Failure> {
    let bold = anstyle::Style::new().bold();
    let dim = anstyle::Style::new().dimmed();
    writeln!(
        out,
        "{bold}{:<10} {}{bold:#}  {dim}{}{dim:#}",
        register.index.to_string(),
        register.name,
        register.vendor
    )?;
    if !register.summary.is_empty() {
        writeln!(out, "           {}", register.summary)?;
    }
    if !register.aliases.is_empty() {
        writeln!(
            out,
            "           {dim}also {}{dim:#}",
            register.aliases.join(", ")
        )?;
    }
    for gap in register.reach().gaps() {
        writeln!(
            out,
            "           {dim}can bypass the filter: {}{dim:#}",
            gap.why
        )?;
    }
    Ok(())
}

/// Returns the bits of a field, such as `12` or `39:32`.
fn bits(field: &Field) -> String {
    if field.low == field.high {
        field.low.to_string()
    } else {
        format!("{}:{}", field.high, field.low)
    }
}

fn decoded(register: &Register, value: u64) -> DecodedValue {
    let decoded = register.decode(value);
    let fields = decoded.fields().map(|(field, held)| DecodedField {
        name: field.name,
        bits: bits(field),
        value: format!("{held:#x}"),
        summary: field.summary,
    });
    DecodedValue {
        value: format!("{value:#x}"),
        fields: fields.collect(),
        undescribed: format!("{:#x}", decoded.undescribed()),
    }
}

fn print_decoded(out: &mut dyn Write, register: &Register, value: u64) -> Result<(), Failure> {
    let decoded = register.decode(value);
    writeln!(out, "           {value:#x} is")?;
    for (field, held) in decoded.fields().filter(|&(_, held)| held != 0) {
        let bits = bits(field);
        writeln!(
            out,
            "             {bits:>5}  {} = {held:#x}  {}",
            field.name, field.summary
        )?;
    }
    match (decoded.undescribed(), register.fields().is_empty()) {
        (_, true) => writeln!(
            out,
            "             msrgate does not know the fields of this register"
        )?,
        (0, false) => {}
        (rest, false) => writeln!(
            out,
            "             {rest:#x}  bits that msrgate does not know"
        )?,
    }
    Ok(())
}
