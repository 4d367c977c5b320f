//! Compiles a policy into a program, and checks that the program's filters decide as the policy
//! does.

use std::fmt;

use msrgate_program::{CompileError, Cpu, Program, ProgramSettings, Variant};

use crate::policy::Policy;
use crate::resolve::ResolvedPolicy;
use crate::source::Source;

/// A policy together with the program that enforces it.
#[derive(Clone, Debug)]
pub struct Compiled {
    policy: Policy,
    program: Program,
}

impl Compiled {
    /// The policy from which the program was compiled.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The program, which can be installed in a VM or written to a file. The
    /// [`EntryId`](msrgate_program::EntryId)s of its rules refer to entries of [`Self::policy`].
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the program and drops the policy.
    #[must_use]
    pub fn into_program(self) -> Program {
        self.program
    }

    /// The variants of the program: one for each combination of `[[when]]` sections that hold
    /// together on some processor. A program has at least one variant. If there is a processor on
    /// which no `[[when]]` holds, the variant for that processor comes first.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        self.program.variants()
    }

    /// Returns the variant for the processor `cpu`. If `cpu` is `None`, or if no variant is for
    /// this processor, returns the first variant.
    #[must_use]
    pub fn on(&self, cpu: Option<&Cpu>) -> &Variant {
        let variant = cpu.and_then(|cpu| self.program.on(cpu));
        variant.unwrap_or(&self.variants()[0])
    }
}

/// A policy that could not be compiled, and the reason.
#[derive(Clone, Debug)]
pub struct NotCompiled {
    /// The policy that could not be compiled.
    pub policy: Box<Policy>,
    /// The reason for which the policy could not be compiled.
    pub error: CompileError,
}

impl fmt::Display for NotCompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for NotCompiled {}

/// Packs a policy into filters, one for each variant, and compares each filter with the policy: for
/// reads and for writes of each of the 2^32 MSRs.
///
/// # Errors
/// Returns [`NotCompiled`] if the policy does not fit into a filter, or if a filter and the policy
/// differ.
pub fn compile(resolved: ResolvedPolicy) -> Result<Compiled, NotCompiled> {
    let (policy, variants) = resolved.into_parts();
    let said = policy.settings();
    let settings = ProgramSettings {
        name: said.name.clone(),
        mode: said.mode,
        log: said.log,
        unknown: said.unknown.clone(),
        accept: said.gaps().map(Box::from).collect(),
        microcode: said.microcode,
    };
    let files = policy.sources().iter().map(Source::name);
    let whens = policy.whens().iter().map(|when| when.cpus().clone());
    let default = policy.default_action().verdict();
    match Program::new(settings, files, whens.collect(), default, variants) {
        Ok(program) => Ok(Compiled { policy, program }),
        Err(error) => Err(NotCompiled {
            policy: Box::new(policy),
            error,
        }),
    }
}

#[cfg(test)]
mod tests;
