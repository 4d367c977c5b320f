//! The line of a policy that would allow a refused access.

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::{Action, Cpu, Program, registers};

use super::supported::letter;

/// Returns an entry for the policy that allows the access and does not change the other direction. Returns
/// `None` if the other direction has an answer: its entry is to be changed, and no entry to be added.
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
        // The MSR has an entry with an answer, which the user has to change.
        _ => return None,
    };
    Some(format!("{key} = \"{rights}\""))
}
