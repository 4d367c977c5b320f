//! The two sides of a comparison by `diff` or `check --within`. A side is a policy, or an output of
//! `compile`.

use std::path::Path;

use msrgate_policy::import::{compiled_filter, is_compiled_filter};
use msrgate_policy::{Origin, Program, shown_name};

use crate::failure::Failure;
use crate::load::Input;

/// One side of a comparison: a program that was read from a policy or from an output of `compile`.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) content: Content,
    /// The processor for which the filter was compiled, if the filter's file names a processor.
    pub(crate) made_for: Option<String>,
}

/// The kind of input from which one side of a comparison was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A policy or a program: it has rules, settings, and the line of the policy for each rule.
    Policy,
    /// A filter: it has only the kernel's decisions about accesses.
    Filter,
}

impl Side {
    /// Reads a policy, a program, or another output of `compile`. The function recognises each by its
    /// content.
    pub(crate) fn load(argument: &Path) -> Result<Self, Failure> {
        let input = Input::read(argument)?;
        let (name, bytes) = (&input.name, &input.bytes);
        let trouble = |why: String| Failure::Input {
            what: name.clone(),
            why,
        };
        let (program, content, made_for) = if Program::is_program(bytes) {
            let program = Program::decode(bytes).map_err(|error| trouble(error.to_string()))?;
            (program, Content::Policy, None)
        } else if is_compiled_filter(bytes) {
            let compiled = compiled_filter(bytes).map_err(|error| trouble(error.to_string()))?;
            let program = Program::of_filter(compiled.filter);
            (program, Content::Filter, compiled.made_for)
        } else {
            (input.compiled()?.into_program(), Content::Policy, None)
        };
        Ok(Self {
            name: input.name,
            program,
            content,
            made_for,
        })
    }

    /// Returns, for JSON, the place in the policy from which an action comes: for example `policy.toml:7`,
    /// or the reason why there is no such line.
    pub(crate) fn place(&self, origin: Origin) -> String {
        self.place_by(origin, str::to_owned)
    }

    /// Returns the place in the policy from which an action comes, for text that people read.
    pub(crate) fn shown_place(&self, origin: Origin) -> String {
        self.place_by(origin, shown_name)
    }

    fn place_by(&self, origin: Origin, name: impl Fn(&str) -> String) -> String {
        let own = || name(&self.name);
        match origin {
            Origin::Line(line) => {
                let file = self.program.file(line.file).map_or_else(own, &name);
                format!("{file}:{}", line.number)
            }
            Origin::Default if self.content == Content::Filter => format!("{}'s filter", own()),
            Origin::Default => format!("{}'s default", own()),
            Origin::Kvm => "KVM".to_owned(),
        }
    }
}
