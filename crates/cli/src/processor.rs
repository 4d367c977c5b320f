//! The choice of the processor for which a command answers, if a policy differs by processor.

use msrgate_kvm::CpuSignature;
use msrgate_policy::{Compiled, Cpu, Program, Variant, emit, one_line, parse_cpu, shown_name};

use crate::cli::{CpuArg, Which};
use crate::failure::Failure;
use crate::output;
use crate::side::Side;

/// The variant of a compiled policy for one processor.
pub(crate) struct Chosen<'c> {
    pub(crate) variant: &'c Variant,
    /// The processor that was chosen; `None` if the policy is the same for all processors and the user asked
    /// for none.
    pub(crate) cpu: Option<Cpu>,
}

impl CpuArg {
    /// Returns the processor that `--cpu` asks for, or `None` without `--cpu`. If `programs` are the same
    /// for all steppings of a model, `--cpu` needs no stepping.
    ///
    /// # Errors
    /// The processor of this host is asked for and cannot be read. Or `--cpu` has no stepping, and the
    /// programs differ by stepping.
    pub(crate) fn asked<'p>(
        &self,
        programs: impl IntoIterator<Item = &'p Program>,
    ) -> Result<Option<Cpu>, Failure> {
        match &self.cpu {
            None => Ok(None),
            Some(Which::Named(named)) => match named.on(programs) {
                Ok(cpu) => Ok(Some(cpu.clone())),
                Err(error) => Err(Failure::Usage(error.to_string())),
            },
            Some(Which::Host) => match of_host() {
                Ok(cpu) => Ok(Some(cpu)),
                Err(why) => Err(Failure::Host(format!(
                    "msrgate cannot read the processor of this host: {why}\n  name one: --cpu VENDOR:FAMILY:MODEL[:STEPPING]"
                ))),
            },
        }
    }
}

/// Returns the processor that guests of this host get, or the reason why it cannot be read.
fn of_host() -> Result<Cpu, String> {
    match CpuSignature::of_host() {
        Ok(Some(cpu)) => Ok(Cpu::from_cpuid(cpu.vendor, cpu.signature)),
        Ok(None) => Err("KVM does not report it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Chooses the variant of the policy for the processor that the arguments ask for. If they ask for no
/// processor and the policy differs by processor, the function chooses this host's processor, or the first
/// processor of the policy if the host's processor cannot be read. Prints the choice to standard error.
pub(crate) fn choose<'c>(compiled: &'c Compiled, arg: &CpuArg) -> Result<Chosen<'c>, Failure> {
    if let Some(cpu) = arg.asked([compiled.program()])? {
        say_asked(arg, &cpu);
        return Ok(Chosen {
            variant: compiled.on(Some(&cpu)),
            cpu: Some(cpu),
        });
    }
    let first = compiled.on(None);
    if compiled.policy().whens().is_empty() {
        return Ok(Chosen {
            variant: first,
            cpu: None,
        });
    }
    let differs = "the policy differs on other processors; choose one with --cpu";
    let cpu = match of_host() {
        Ok(cpu) => {
            note(&format!(
                "the results are for {cpu}, the processor of this host; {differs}"
            ));
            cpu
        }
        Err(why) => {
            let cpu = first.example().clone();
            note(&format!(
                "the results are for processors like {cpu}, because msrgate cannot read the processor of this host ({why}); {differs}"
            ));
            cpu
        }
    };
    Ok(Chosen {
        variant: compiled.on(Some(&cpu)),
        cpu: Some(cpu),
    })
}

/// Returns the processor on which the two sides of a comparison are compared, or `None` if they are compared
/// on all processors. If `--cpu` asks for a processor, the function returns that processor. Without `--cpu`,
/// if one side is a filter and the other side differs by processor, the function returns the processor that
/// the filter was compiled for. Prints the choice to standard error.
///
/// # Errors
/// A filter was compiled for another processor than the arguments ask for, or for one that `--cpu` does not
/// accept.
pub(crate) fn compared_on(arg: &CpuArg, sides: [&Side; 2]) -> Result<Option<Cpu>, Failure> {
    let asked = arg.asked(sides.map(|side| &side.program))?;
    let mut filters = sides
        .into_iter()
        .filter_map(|side| Some((side, side.made_for.as_ref()?)));
    if let Some(cpu) = asked {
        for (filter, named) in filters {
            if *named != emit::cpu_name(&cpu) {
                return Err(Failure::Usage(format!(
                    "{} was compiled for {}, and --cpu asks for {cpu}; leave out --cpu, or compile a filter for that processor",
                    shown_name(&filter.name),
                    one_line(named)
                )));
            }
        }
        say_asked(arg, &cpu);
        return Ok(Some(cpu));
    }
    let tells_apart = sides.iter().any(|side| side.program.variants().len() > 1);
    let Some((filter, named)) = filters.find(|_| tells_apart) else {
        return Ok(None);
    };
    let name = shown_name(&filter.name);
    let cpu = parse_cpu(named).map(|cpu| cpu.cpu().clone());
    // The file has `?` in place of characters of the vendor's name that are neither letters, digits nor
    // blanks, so the vendor is not known.
    let cpu = cpu.ok().filter(|cpu| !cpu.vendor.contains('?'));
    let cpu = cpu.ok_or_else(|| {
        Failure::Usage(format!(
            "{name} was compiled for {}, which is not a complete processor; name the processor with --cpu",
            one_line(named)
        ))
    })?;
    note(&format!(
        "the results are for {cpu}, the processor that {name} was compiled for"
    ));
    Ok(Some(cpu))
}

/// Prints to standard error that the results are for the processor `cpu`, which `--cpu` names.
pub(crate) fn say_asked(arg: &CpuArg, cpu: &Cpu) {
    note(&match arg.cpu {
        Some(Which::Host) => format!("the results are for {cpu}, the processor of this host"),
        _ => format!("the results are for {cpu}"),
    });
}

/// Prints a note to standard error.
pub(crate) fn note(text: &str) {
    output::say(&format_args!("note: {text}\n"));
}
