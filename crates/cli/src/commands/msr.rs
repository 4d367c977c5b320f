//! `msrgate msr`.

use std::io::Write;

use msrgate_policy::registers::{self, Register};
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
                registers: found.iter().map(|register| listed(register)).collect(),
            },
        )?,
        Format::Text => {
            for register in &found {
                print(out, register)?;
            }
        }
    }
    if found.is_empty() {
        output::say(
            &"no register matches; a name, part of a name, an index such as 0x8b, or a word of its description would\n",
        );
        return Ok(Answer::No);
    }
    Ok(Answer::Yes)
}

fn listed(register: &Register) -> Listed {
    Listed {
        index: register.index.to_string(),
        name: register.name,
        aliases: register.aliases,
        vendor: register.vendor.to_string(),
        summary: register.summary,
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
    Ok(())
}
