//! `check --within`: checks that a policy is no looser than another, for every processor and access.

use std::io::Write;
use std::path::Path;

use msrgate_policy::{
    Change, Compiled, Difference, SettingChange, differences, one_line, shown_name,
};
use serde::Serialize;

use crate::commands::diff;
use crate::failure::Failure;
use crate::load::is_standard_input;
use crate::processor;
use crate::side::{Content, Side};

/// The number of violations that are shown. A violation is a difference by which the policy may be looser
/// than the policy of `--within`.
const SHOWN: usize = 10;

/// The comparison of `policy` with `org`, the policy that the option `--within` names. `policy` must not be
/// looser than `org`.
pub(super) struct Within {
    policy: Side,
    org: Side,
    settings: Vec<SettingChange>,
    /// The differences that may make the policy looser.
    differences: Vec<Difference>,
}

#[derive(Serialize)]
pub(super) struct WithinReport {
    org: String,
    holds: bool,
    /// The first violations as text: differences by which the policy may be looser.
    violations: Vec<String>,
    /// The number of violations. Those of neighbouring MSRs count as one.
    count: usize,
}

impl Within {
    pub(super) fn of(name: &Path, compiled: &Compiled, org: &Path) -> Result<Self, Failure> {
        if is_standard_input(name) && is_standard_input(org) {
            return Err(Failure::Usage(
                "standard input cannot be both POLICY and ORG; name a file for one of them"
                    .to_owned(),
            ));
        }
        let policy = Side {
            name: compiled.policy().source().name().to_owned(),
            program: compiled.program().clone(),
            content: Content::Policy,
            made_for: None,
        };
        let org = Side::load(org)?;
        if let Some(cpu) = &org.made_for {
            processor::note(&format!(
                "{} was compiled for {}; its policy may be stricter on other processors",
                shown_name(&org.name),
                one_line(cpu)
            ));
        }
        let mut settings = diff::settings(&org, &policy);
        settings.retain(|change| change.direction.may_loosen());
        let mut differences =
            differences(&org.program, &policy.program, None).map_err(|why| {
                let (org, policy) = (shown_name(&org.name), shown_name(&policy.name));
                Failure::Usage(format!(
                    "{policy} cannot be compared with {org} on all processors: {why}\n  write fewer `[[when]]`s, or compare on each processor that matters:\n  msrgate diff {org} {policy} --fail-on looser --cpu VENDOR:FAMILY:MODEL[:STEPPING]"
                ))
            })?;
        for difference in &mut differences {
            let changes = &mut difference.changes;
            changes.retain(|change| change.direction.may_loosen());
        }
        // A difference without changes is only about logging, which gives a guest no more rights.
        differences.retain(|one| !one.changes.is_empty());
        Ok(Self {
            policy,
            org,
            settings,
            differences,
        })
    }

    pub(super) fn holds(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        let changes = self.differences.iter().map(|one| one.changes.len());
        self.settings.len() + changes.sum::<usize>()
    }

    fn violations(&self) -> impl Iterator<Item = String> {
        let setting = |change: &SettingChange| {
            let SettingChange { key, was, is, .. } = change;
            format!("{key}: {was} -> {is}")
        };
        let of = |difference: &Difference| {
            let cpu = difference.cpu.as_ref();
            let cpu = cpu.map_or_else(String::new, |cpu| format!("  [on processors like {cpu}]"));
            let line = |change: &Change| diff::line(&self.org, &self.policy, change) + &cpu;
            difference.changes.iter().map(line).collect::<Vec<_>>()
        };
        let settings = self.settings.iter().map(setting);
        settings
            .chain(self.differences.iter().flat_map(of))
            .take(SHOWN)
    }

    pub(super) fn report(&self) -> WithinReport {
        WithinReport {
            org: self.org.name.clone(),
            holds: self.holds(),
            violations: self.violations().collect(),
            count: self.count(),
        }
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let org = shown_name(&self.org.name);
        if self.holds() {
            writeln!(
                out,
                "within {org}: no access of any of the 2^32 MSRs is looser, on any processor"
            )?;
            return Ok(());
        }
        let red = anstyle::AnsiColor::Red.on_default().bold();
        writeln!(out, "{red}not within{red:#} {org}; looser are:")?;
        for violation in self.violations() {
            writeln!(out, "  {}", one_line(&violation))?;
        }
        match self.count().saturating_sub(SHOWN) {
            0 => {}
            more => writeln!(out, "  and {more} more differences")?,
        }
        Ok(())
    }
}
