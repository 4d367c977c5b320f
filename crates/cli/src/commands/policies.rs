//! `msrgate policies`.

use std::io::Write;

use serde::Serialize;

use crate::cli::{Format, PoliciesArgs};
use crate::failure::{Answer, Failure};
use crate::load::{SHIPPED, shipped};
use crate::output::{self, SCHEMA};

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

pub(super) fn run(args: &PoliciesArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    if let Some(name) = &args.name {
        let Some(shipped) = shipped(name) else {
            let names: Vec<_> = SHIPPED.iter().map(|shipped| shipped.name).collect();
            return Err(Failure::Usage(format!(
                "no shipped policy is called `{name}`; there are {}",
                names.join(", ")
            )));
        };
        out.write_all(shipped.text.as_bytes())?;
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
