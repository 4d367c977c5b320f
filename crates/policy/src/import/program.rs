//! Imports a compiled policy as a [`Program`]: its rules, answers and settings, without the source
//! lines.

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{DecidedBy, Log, MsrRange, Program, Rule, Variant};

use super::ImportError;
use super::draft::{Draft, Scope};
use super::drafts::Drafts;
use crate::policy::Settings;

pub(super) fn read(bytes: &[u8]) -> Result<Drafts, ImportError> {
    let program = Program::decode(bytes).map_err(|error| ImportError::Bytes(error.to_string()))?;
    let said = program.settings();
    let variant = &program.variants()[0];
    // MSR 0xffffffff always has the action of the policy's `default` (S3.5).
    let default = variant.rule(MsrIndex::MAX, Access::Read).action.clone();
    let mut drafts = Drafts::under(Settings {
        name: said.name.clone(),
        mode: said.mode,
        default: default.clone(),
        unknown: said.unknown.clone(),
        log: said.log,
        accept: said.accept.clone(),
        microcode: said.microcode,
    });
    if program.variants().len() > 1 {
        drafts.holds(Scope::Like(variant.example().clone()));
    }
    for other in &program.variants()[1..] {
        let what = format!(
            "the rules for processors such as {}: the policy has only the rules for {}",
            other.example(),
            variant.example()
        );
        drafts.lose(None, what);
    }
    for (msrs, [read, write]) in runs(variant) {
        let logs = [read.log, write.log];
        let log = if logs[0] == logs[1] {
            logs[0]
        } else {
            // Both directions get the level that logs more, but not `all`, which may be valid in
            // one direction only.
            let log = logs[0].max(logs[1]).min(Log::First);
            let what = format!(
                "{msrs}: reads and writes have different values of `log`, but an entry has only one"
            );
            drafts.lose(None, what);
            log
        };
        let actions = [read, write].map(|rule| rule.action.clone());
        if actions.iter().all(|action| *action == default) && log == said.log {
            continue;
        }
        let mut draft = Draft::new(msrs, actions.map(Some));
        draft.log = (log != said.log).then_some(log);
        drafts.say(&draft);
    }
    Ok(drafts)
}

/// Returns ranges of MSRs, each with the rules that hold for reads and for writes of the whole
/// range. x2APIC registers are left out.
fn runs(variant: &Variant) -> impl Iterator<Item = (MsrRange, [Rule<'_>; 2])> {
    let rules = variant.rules();
    let both = rules.zip(Access::Read, rules, Access::Write);
    both.filter(|(read, _)| read.by != DecidedBy::Kvm)
        .map(|(read, write)| (read.msrs, [read, write]))
}
