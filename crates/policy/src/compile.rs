//! From a policy to a program whose filters are shown to be equal to it.

use std::fmt;

use msrgate_program::{CompileError, Cpu, Program, ProgramSettings, Variant};

use crate::policy::Policy;
use crate::resolve::ResolvedPolicy;
use crate::source::Source;

/// A policy with the program that does as it says.
#[derive(Clone, Debug)]
pub struct Compiled {
    policy: Policy,
    program: Program,
}

impl Compiled {
    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What a kernel, a gate or a file gets. The [`EntryId`](msrgate_program::EntryId)s of its rules are
    /// the policy's.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// The program alone.
    #[must_use]
    pub fn into_program(self) -> Program {
        self.program
    }

    /// One for each way in which the `[[when]]`s hold on some processor; at least one. That in
    /// which none does, if there is such a processor, is the first.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        self.program.variants()
    }

    /// What holds on this processor; without one, the first variant.
    #[must_use]
    pub fn on(&self, cpu: Option<&Cpu>) -> &Variant {
        let variant = cpu.and_then(|cpu| self.program.on(cpu));
        variant.unwrap_or(&self.variants()[0])
    }
}

/// A policy that became no program, and why.
#[derive(Clone, Debug)]
pub struct NotCompiled {
    /// The policy.
    pub policy: Box<Policy>,
    /// Why.
    pub error: CompileError,
}

impl fmt::Display for NotCompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for NotCompiled {}

/// Packs a policy, and compares the result with it over all 2^32 MSRs in both directions.
///
/// # Errors
/// The policy does not fit a filter, or the comparison failed.
pub fn compile(resolved: ResolvedPolicy) -> Result<Compiled, NotCompiled> {
    let (policy, variants) = resolved.into_parts();
    let said = policy.settings();
    let settings = ProgramSettings {
        name: said.name.clone(),
        mode: said.mode,
        log: said.log,
        unknown: said.unknown.clone(),
        accept: said.accept.clone(),
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
