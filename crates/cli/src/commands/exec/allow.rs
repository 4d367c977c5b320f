//! The line that would allow what a policy refused.

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::{Action, Cpu, Program, registers};

use super::supported::letter;

/// An entry for the policy by which the access is allowed, where the other direction stays as it is.
pub(super) fn line(program: &Program, index: MsrIndex, access: Access) -> Option<String> {
    let variant = match program.variants() {
        [only] => only,
        several => program.on(&Cpu::any()).or_else(|| several.first())?,
    };
    let other = match access {
        Access::Read => Access::Write,
        Access::Write => Access::Read,
    };
    let key = registers::by_index(index).map_or_else(
        || format!("\"{index}\""),
        |register| register.name.to_owned(),
    );
    let rights = match variant.rule(index, other).action {
        Action::Allow => "rw",
        Action::Deny => letter(access),
        // It has an entry with an answer, which is to be changed and not added.
        _ => return None,
    };
    Some(format!("{key} = \"{rights}\""))
}
