//! The entry that a policy needs so that an entry of an include no longer loosens something.

use std::fmt;

use msrgate_filter::{Access, MsrIndex};

use crate::action::Action;
use crate::forward::forward;
use crate::layout::{self, Value};
use crate::policy::{Entry, Policy, SourceId};
use crate::print;
use crate::source::{one_line, quoted};

/// An entry to be pasted into the policy, in the place of an included one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The entry, as a line of the policy's text.
    line: String,
    /// The `cpu` of the `[[when]]` in which it has to stand.
    cpu: Option<String>,
    /// The policy's name.
    file: String,
    /// The line of the policy that has an entry of these MSRs already.
    instead: Option<u32>,
}

impl Remedy {
    /// The entry that overrides `loose`. In each direction it says what `limits` has there, and
    /// else what `loose` says. `fixed` is what `loose` loosens.
    pub(crate) fn new(
        policy: &Policy,
        loose: &Entry,
        fixed: &Entry,
        limits: [Option<&Action>; 2],
    ) -> Self {
        let says = |access: Access| {
            let limit = limits[access as usize].map(|limit| possible(loose, limit));
            print::action(limit.or_else(|| loose.action(access)))
        };
        let fields = [
            ("read", says(Access::Read)),
            ("write", says(Access::Write)),
            ("override", Value::Bare("true".to_owned())),
        ];
        let fields = fields.map(|(key, value)| (key.to_owned(), value));
        let body = Value::Table(fields.into()).line().unwrap_or_default();
        // An entry of a `[[when]]` is replaced in one of the same processors only.
        let when = loose.when.or(fixed.when);
        let cpus = when.map(|when| policy.whens[when.number()].cpus());
        let own = policy.entries.iter().find(|own| {
            let own_cpus = own.when.map(|when| policy.whens[when.number()].cpus());
            own.source() == SourceId::new(0) && own.msrs == loose.msrs && own_cpus == cpus
        });
        Self {
            line: one_line(&format!("{} = {body}", layout::key(&loose.key))),
            cpu: cpus.and_then(|cpus| print::cpus(cpus).line()),
            file: quoted(policy.source().name()),
            instead: own.map(|own| own.place.line),
        }
    }

    /// The entry, as a line of a policy's text.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }
}

/// The limit, or a refusal where the limit is an action that is not known to be sound.
fn possible<'a>(loose: &Entry, limit: &'a Action) -> &'a Action {
    let mut msrs = loose.msrs.ranges().iter();
    let is_forwarded = msrs.all(|range| {
        let mut indices = range.first().get()..=range.last().get();
        indices.all(|index| forward(MsrIndex::new(index)).is_some())
    });
    if limit.needs_forwarding() && !is_forwarded {
        &Action::Deny
    } else {
        limit
    }
}

/// "write `…` below `[msrs]` of policy.toml".
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            cpu,
            file,
            instead,
        } = self;
        match (instead, cpu) {
            (Some(number), _) => write!(f, "in {file} write `{line}` in place of line {number}"),
            (None, None) => write!(f, "write `{line}` below `[msrs]` of {file}"),
            (None, Some(cpu)) => write!(
                f,
                "write `{line}` below `[when.msrs]` of a `[[when]]` of {file} with `cpu = {cpu}`"
            ),
        }
    }
}
