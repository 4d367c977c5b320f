//! A check for actions of a policy that `exec` cannot carry out, because they need a VMM with a gate of its
//! own.

use msrgate_policy::{Action, DecidedBy, Log, Origin, Program, Rule, Variant, one_line, registers};

use crate::failure::Failure;

/// Checks that the compiled policy has no action that only a VMM with a gate of its own can carry out.
///
/// # Errors
/// The compiled policy has such an action. The error names the action, its place in the policy, and an
/// alternative.
pub(super) fn check(program: &Program, policy: &str) -> Result<(), Failure> {
    for variant in program.variants() {
        for (access, rule) in variant.rules().all() {
            if let Some((what, instead)) = unsupported(rule) {
                return Err(Failure::Refused(format!(
                    "{}: `{what}` on {access}s of {} needs a VMM that links msrgate-kvm; under exec, {instead}",
                    place(program, variant, rule.by, policy),
                    described(rule),
                )));
            }
        }
    }
    Ok(())
}

/// Returns the policy's word that `exec` does not support in a rule, and an alternative to it. Returns
/// `None` if `exec` supports the rule.
fn unsupported(rule: Rule<'_>) -> Option<(&'static str, &'static str)> {
    match rule.action {
        Action::Mask(_) | Action::Sticky(_) | Action::Pin => Some((
            rule.action.word(),
            "its threads may be allowed no call that reads or sets a register: write `allow` or `deny`",
        )),
        Action::Handler(_) => Some((
            "handler",
            "the VMM has no code that the policy could name: write `value`, `ignore`, `register` or `deny`",
        )),
        Action::Device(_) => Some((
            "device",
            "the guest's memory is out of reach: write `value`, `ignore` or `deny`",
        )),
        Action::Allow if rule.log == Log::All => Some((
            "log = \"all\"",
            "each access would have to be carried to its register: write `log = \"first\"`",
        )),
        _ if rule.log == Log::All => Some((
            "log = \"all\"",
            "the vCPU's registers are not asked for at each exit: write `log = \"denied\"`, which has each refusal",
        )),
        _ => None,
    }
}

fn described(rule: Rule<'_>) -> String {
    let name = registers::by_index(rule.msrs.first()).map(|register| register.name);
    match name {
        Some(name) if rule.msrs.count() == 1 => format!("{} {name}", rule.msrs),
        _ => rule.msrs.to_string(),
    }
}

/// Returns the place in the policy from which a decision comes, such as `guest.toml:12`, or the policy's
/// name if its default decides.
pub(super) fn place(program: &Program, variant: &Variant, by: DecidedBy, policy: &str) -> String {
    origin(program, variant.rules().origin(by), policy)
}

/// Returns the place in the policy that an origin names, in the form of [`place`].
pub(super) fn origin(program: &Program, origin: Origin, policy: &str) -> String {
    match origin {
        Origin::Line(line) => {
            let file = program
                .file(line.file)
                .map_or_else(|| policy.to_owned(), one_line);
            format!("{file}:{}", line.number)
        }
        Origin::Default => format!("the default of {policy}"),
        Origin::Kvm => "KVM".to_owned(),
    }
}
