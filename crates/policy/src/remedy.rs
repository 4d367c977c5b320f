//! The entry that a policy needs so that an entry of an include no longer loosens something.

use std::collections::HashMap;
use std::fmt;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, Comparison, CpuSet, MsrSet, forward, one_line};

use crate::layout::{self, Value};
use crate::policy::{Entry, OWN, Policy};
use crate::print;
use crate::source::quoted;

/// An entry to be pasted into the policy, in the place of an included one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The entry, as a line of the policy's text.
    pub(crate) line: String,
    /// The `cpu` of the `[[when]]` in which it has to stand.
    cpu: Option<String>,
    /// The policy's name.
    file: String,
    /// The line of the policy that has an entry of these MSRs already.
    instead: Option<u32>,
}

/// The entries of a policy by their MSRs: an `override` replaces all included ones of the same MSRs.
pub(crate) struct Remedies<'p> {
    policy: &'p Policy,
    by_msrs: HashMap<&'p MsrSet, Vec<&'p Entry>>,
}

impl<'p> Remedies<'p> {
    pub(crate) fn new(policy: &'p Policy) -> Self {
        let mut by_msrs = HashMap::<_, Vec<_>>::new();
        for entry in policy.entries() {
            by_msrs.entry(entry.msrs()).or_default().push(entry);
        }
        Self { policy, by_msrs }
    }

    /// The processors of an entry's `[[when]]`.
    fn cpus(&self, entry: &Entry) -> Option<&'p CpuSet> {
        let when = entry.when?;
        Some(self.policy.whens[when.number()].cpus())
    }

    /// The entry that takes the place of `loose`, and of all other included ones of its MSRs and
    /// processors. In each direction it is no looser than what `limits` has there, and else says what
    /// they say. `fixed` is what `loose` loosens.
    pub(crate) fn against(
        &self,
        loose: &Entry,
        fixed: &Entry,
        limits: [Option<&Action>; 2],
    ) -> Remedy {
        let says = |access: Access| {
            let said = self.said(loose, access);
            let limit = limits[access as usize].map(|limit| possible(loose, limit));
            let is_kept = |said: &&Action| {
                limit.is_none_or(|limit| said.compared_with(limit) == Comparison::NoLooser)
            };
            print::action(said.filter(is_kept).or(limit))
        };
        let fields = [
            ("read", says(Access::Read)),
            ("write", says(Access::Write)),
            ("override", Value::Bare("true".to_owned())),
        ];
        let fields = fields.map(|(key, value)| (key.to_owned(), value));
        let body = Value::Table(fields.into()).line().unwrap_or_default();
        // An entry of a `[[when]]` is replaced in one of the same processors only.
        let place = self.cpus(loose).or(self.cpus(fixed));
        let mut own = self.of_msrs(loose).filter(|one| one.source() == OWN);
        let there = own.find(|one| self.cpus(one) == place);
        Remedy {
            line: one_line(&format!("{} = {body}", layout::key(&loose.key))),
            cpu: place.and_then(|cpus| print::cpus(cpus).line()),
            file: quoted(self.policy.source().name()),
            instead: there.map(|one| one.place.line),
        }
    }

    /// The entries of the MSRs of `one`.
    fn of_msrs(&self, one: &Entry) -> impl Iterator<Item = &'p Entry> {
        self.by_msrs.get(one.msrs()).into_iter().flatten().copied()
    }

    /// What `loose` and the other included entries that its override replaces say.
    fn said<'e>(&'e self, loose: &'e Entry, access: Access) -> Option<&'e Action> {
        // What `loose` overrides says nothing any more.
        let below = &self.policy.below[loose.source().number()];
        let is_beside = |one: &&Entry| {
            let source = one.source();
            source != OWN && !below.contains(source) && self.cpus(one) == self.cpus(loose)
        };
        let mut beside = self.of_msrs(loose).filter(is_beside);
        let said = loose.action(access);
        said.or_else(|| beside.find_map(|one| one.action(access)))
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
