//! `msrgate compile`: compiles a policy into a program for msrgate's gate, or into a KVM filter as JSON,
//! Rust, C or bytes.

use std::io::{self, IsTerminal as _, Write};

use msrgate_policy::emit::{self, Loss};
use msrgate_policy::{Cpu, Program, Variant};

use crate::cli::{CompileArgs, Output};
use crate::failure::{Answer, Failure};
use crate::files::Inode;
use crate::load::{Input, is_standard_input};
use crate::named;
use crate::processor;
use crate::results::Results;
use crate::whole::{self, Content};

pub(super) fn run(args: &CompileArgs, out: &mut Results) -> Result<Answer, Failure> {
    if args.format == Output::Program && args.cpu.cpu.is_some() {
        return Err(Failure::Usage(
            "a program is for every processor; leave out --cpu, or choose another --format"
                .to_owned(),
        ));
    }
    let input = Input::read(&args.policy)?;
    let (compiled, included) = input.compiled_with_files(None)?;
    let program = compiled.into_program();
    let bytes = match args.format {
        Output::Program => program.encode(),
        format => {
            let asked = args.cpu.asked([&program])?;
            let variant = variant(&program, asked.as_ref(), args)?;
            keeps_all(&program, variant, args)?;
            // If all processors have the same filter, the file must not name one of them.
            let chosen_for = asked.filter(|_| program.variants().len() > 1);
            filter(variant, chosen_for.as_ref(), format)?
        }
    };
    // `-` is standard output, as it is standard input for POLICY.
    match args.output.as_ref().filter(|path| !is_standard_input(path)) {
        Some(path) => {
            let there = Inode::behind(path);
            let read = match there {
                Some(_) if there == input.inode => Some("the policy itself"),
                Some(there) if included.contains(&there) => Some("a file that the policy includes"),
                _ => None,
            };
            if let Some(read) = read {
                return Err(Failure::Usage(format!(
                    "{} is {read}, and compile does not overwrite it; name another file with -o",
                    named::shown(path)
                )));
            }
            let content = if args.format.is_text() {
                Content::Text
            } else {
                Content::Binary
            };
            whole::write(path, &bytes, content)?;
        }
        None if args.format.is_text() => out.write_all(&bytes)?,
        None if io::stdout().is_terminal() => {
            return Err(Failure::Usage(
                "the output is binary, and standard output is a terminal; name a file with -o"
                    .to_owned(),
            ));
        }
        // `Results::bytes` writes the bytes unchanged; as text, their hidden characters would be replaced.
        None => out.bytes(&bytes),
    }
    Ok(Answer::Yes)
}

/// Returns the program's variant for the processor `asked`, or the only variant that the program has. The
/// function ignores this host's processor, because the output file may be for another machine.
fn variant<'p>(
    program: &'p Program,
    asked: Option<&Cpu>,
    args: &CompileArgs,
) -> Result<&'p Variant, Failure> {
    match (program.variants(), asked) {
        (_, Some(cpu)) => {
            processor::say_asked(&args.cpu, cpu);
            program.on(cpu).ok_or_else(|| {
                Failure::Refused(format!(
                    "{}: no variant of the policy holds on {cpu}",
                    named::shown(&args.policy)
                ))
            })
        }
        ([only], None) => Ok(only),
        (several, None) => {
            // The filter for all vendors that the policy does not name is often the loosest, so it comes
            // last.
            let (other, named): (Vec<_>, Vec<_>) = several
                .iter()
                .map(Variant::example)
                .partition(|cpu| *cpu.vendor == *Cpu::OTHER_VENDOR);
            let named = named.iter().map(|cpu| match cpu.to_string() {
                cpu if cpu.contains(' ') => format!("\n  --cpu '{cpu}'"),
                cpu => format!("\n  --cpu {cpu}"),
            });
            let other = other.iter().map(|cpu| {
                format!("\n  --cpu '{cpu}'  # for all vendors that the policy does not name")
            });
            Err(Failure::Usage(format!(
                "{} compiles to {} filters for different processors, but this format holds only one; choose its processor:\n  --cpu host{}",
                named::shown(&args.policy),
                several.len(),
                named.chain(other).collect::<String>()
            )))
        }
    }
}

/// Checks that a filter alone can do all that the policy says, or says what `--filter-only` leaves out.
///
/// # Errors
/// A filter cannot do all that the policy says, and the user has not asked for `--filter-only`.
fn keeps_all(program: &Program, variant: &Variant, args: &CompileArgs) -> Result<(), Failure> {
    let losses = emit::losses(program, variant);
    if losses.is_empty() {
        return Ok(());
    }
    let words: Vec<_> = losses.iter().map(ToString::to_string).collect();
    let words = words.join(" and ");
    if args.filter_only {
        let instead = if losses == [Loss::Log] {
            ""
        } else {
            ": the guest gets #GP instead"
        };
        processor::note(&format!("the filter leaves out {words}{instead}"));
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "{}: a filter cannot express {words}; compile a program, or leave these parts out with --filter-only",
        named::shown(&args.policy),
    )))
}

fn filter(variant: &Variant, chosen_for: Option<&Cpu>, format: Output) -> Result<Vec<u8>, Failure> {
    Ok(match format {
        Output::Json => emit::json(variant, chosen_for).into_bytes(),
        Output::Rust => emit::rust(variant, chosen_for).into_bytes(),
        Output::C => emit::c(variant, chosen_for).into_bytes(),
        Output::Abi | Output::Program => {
            emit::abi(variant).map_err(|error| Failure::Refused(error.to_string()))?
        }
    })
}
