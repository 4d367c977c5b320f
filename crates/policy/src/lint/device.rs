//! Warnings about devices that a guest cannot use.

use msrgate_filter::Access;
use msrgate_program::answer::{SIGN_ID, is_cleared_first};
use msrgate_program::{Action, DecidedBy, Device, one_line};

use super::warning::{Code, Warning, once};
use crate::compile::Compiled;
use crate::policy::Mode;
use crate::registers;

/// Returns a warning if the policy uses the emulated device `microcode`, but does not let the guest read the
/// revision that this device reports.
pub(super) fn revision_unread(compiled: &Compiled) -> Vec<Warning<'_>> {
    let policy = compiled.policy();
    let mut warnings = Vec::new();
    for variant in compiled.variants() {
        let at = |index, access| variant.rules().at(index, access);
        for register in registers::all() {
            let segment = at(register.index, Access::Write);
            let (Action::Device(Device::Microcode), DecidedBy::Entry(id)) =
                (segment.action, segment.by)
            else {
                continue;
            };
            let [read, write] = Access::ALL.map(|access| at(SIGN_ID, access).action);
            let (access, action) = match (read, write) {
                (Action::Allow | Action::Handler(_), write)
                    if write.refuses() && is_cleared_first(register.index) =>
                {
                    (Access::Write, write)
                }
                (Action::Allow | Action::Handler(_), _) => continue,
                (read, _) => (Access::Read, read),
            };
            let entry = policy.entry(id);
            let is_audited = policy.settings().mode == Mode::Audit && action.refuses();
            let cannot = if is_audited {
                "with `mode = \"enforce\"` the guest could not read"
            } else {
                "the guest cannot read"
            };
            let message = format!(
                "`{}` takes microcode updates, but {cannot} their revision: the action for {access}s of {} is {action}",
                one_line(entry.key()),
                registers::titled(SIGN_ID),
            );
            let help = "write `IA32_BIOS_SIGN_ID = \"rw\"`: a guest writes 0 to this register, executes CPUID, and then reads the revision";
            warnings.push(Warning::new(
                Code::RevisionUnread,
                Some(entry),
                message,
                help,
            ));
        }
    }
    once(warnings)
}
