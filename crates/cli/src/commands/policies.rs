//! `msrgate policies`: lists the shipped policies, or prints one.

use std::io::Write;

use msrgate_policy::one_line;
use serde::Serialize;

use crate::cli::{Format, PoliciesArgs};
use crate::failure::{Answer, Failure};
use crate::output::{self, SCHEMA};
use crate::shipped::{SHIPPED, Shipped, shipped};

#[derive(Serialize)]
struct Listing {
    schema: u32,
    policies: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
}

/// One shipped policy with its whole text, in JSON.
#[derive(Serialize)]
struct Whole {
    schema: u32,
    name: &'static str,
    summary: &'static str,
    text: &'static str,
}

impl Whole {
    fn of(shipped: Shipped) -> Self {
        Self {
            schema: SCHEMA,
            name: shipped.name,
            summary: shipped.summary(),
            text: shipped.text,
        }
    }
}

pub(super) fn run(args: &PoliciesArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if let Some(name) = &args.name {
        let Some(shipped) = shipped(name) else {
            let names: Vec<_> = SHIPPED.iter().map(|shipped| shipped.name).collect();
            return Err(Failure::Usage(format!(
                "no shipped policy is called `{}`; the shipped policies are {}",
                one_line(name),
                names.join(", ")
            )));
        };
        match args.format.format {
            Format::Json => output::json(out, &Whole::of(shipped))?,
            Format::Text => out.write_all(shipped.text.as_bytes())?,
        }
        return Ok(Answer::Yes);
    }
    let listed = SHIPPED.iter().map(|shipped| Listed {
        name: shipped.name,
        summary: shipped.summary(),
    });
    match args.format.format {
        Format::Json => output::json(
            out,
            &Listing {
                schema: SCHEMA,
                policies: listed.collect(),
            },
        )?,
        Format::Text => {
            for one in listed {
                writeln!(out, "{:<18}  {}", one.name, one.summary)?;
            }
        }
    }
    Ok(Answer::Yes)
}
