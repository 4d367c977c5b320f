//! What `diff` and `check --within` compare: a policy, or what one was compiled to.

use std::path::Path;

use msrgate_policy::import::{compiled_filter, is_compiled_filter};
use msrgate_policy::{Origin, Program, shown_name};

use crate::failure::Failure;
use crate::load::Input;

/// A program, whatever it was read from.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) content: Content,
    /// The processor that a filter names as the one it was compiled for.
    pub(crate) made_for: Option<String>,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Rules, settings, and lines.
    Policy,
    /// Only what the kernel decides.
    Filter,
}

impl Side {
    /// Reads a policy, a program, or what else `compile` wrote: what it is, its content says.
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

    /// What says so, for programs: `policy.toml:7`, or why there is no line.
    pub(crate) fn place(&self, origin: Origin) -> String {
        self.place_by(origin, str::to_owned)
    }

    /// [`Self::place`] for people.
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
