//! The result that a guest gets for an access, in words.

use msrgate_filter::Access;
use msrgate_program::{Action, Device, Emulated, Mask, Outside};

use super::Explanation;
use crate::policy::{Microcode, Mode, UnknownAction, Update};

/// Returns the result of an access for the guest.
pub(super) fn gets(explanation: &Explanation<'_>) -> String {
    let settings = explanation.settings;
    let answer = of_action(explanation);
    match settings.mode {
        Mode::Audit if explanation.is_let_through() => {
            let answer = of_kvm(explanation);
            format!("as if the policy allowed it: {answer}; audit mode only records the refusal")
        }
        Mode::Audit if !explanation.action.refuses() && explanation.may_refuse() => {
            format!("{answer}; where that is #GP, audit mode lets the write through and records it")
        }
        _ => answer,
    }
}

fn of_action(explanation: &Explanation<'_>) -> String {
    let access = explanation.access;
    match &explanation.action {
        Action::Allow => of_kvm(explanation),
        Action::Deny => "#GP".to_owned(),
        Action::Kill => "the end of the VM, or of the call that the guest is serving".to_owned(),
        Action::Handler(name) => {
            let answers = match access {
                Access::Read => "answers",
                Access::Write => "does with the value",
            };
            format!("what the VMM's handler {name:?} {answers}")
        }
        Action::Device(Device::Microcode) => device(access, explanation.settings.microcode),
        Action::Register(register) => emulated(access, *register),
        Action::Value(value) => format!("the value {value:#x}"),
        Action::Ignore => "success, but the write has no effect".to_owned(),
        Action::Mask(mask) => masked(*mask, "the real register"),
        Action::Pin => {
            "success for the first write after a reset and for later writes of the same value; #GP for any other value"
                .to_owned()
        }
        Action::Sticky(u64::MAX) => {
            "success, but bits that are set in the real register stay set".to_owned()
        }
        Action::Sticky(bits) => {
            format!("success, but those of the bits {bits:#x} that are set in the real register stay set")
        }
    }
}

/// Returns the result of an access that reaches KVM.
fn of_kvm(explanation: &Explanation<'_>) -> String {
    let does = match explanation.access {
        Access::Read => "KVM's value",
        Access::Write => "what KVM does with the value",
    };
    let unknown = match explanation.unknown() {
        None => return does.to_owned(),
        Some(UnknownAction::Value(value)) => format!("the value {value:#x}"),
        Some(UnknownAction::Ignore) => "success without effect".to_owned(),
        Some(UnknownAction::Deny) => "#GP".to_owned(),
    };
    format!("{does}; {unknown} if KVM does not know the register")
}

fn device(access: Access, microcode: Option<Microcode>) -> String {
    match (access, microcode.map(|device| device.update)) {
        (Access::Read, _) => {
            "#GP by the device \"microcode\": the register is write-only".to_owned()
        }
        (Access::Write, None) => "the answer of the device \"microcode\"".to_owned(),
        (Access::Write, Some(Update::Accept)) => {
            "the device \"microcode\" takes the update: if its header is valid, the guest then reads its revision"
                .to_owned()
        }
        (Access::Write, Some(Update::Ignore)) => {
            "success, but the device \"microcode\" loads nothing".to_owned()
        }
        (Access::Write, Some(Update::Deny)) => "#GP by the device \"microcode\"".to_owned(),
    }
}

fn emulated(access: Access, register: Emulated) -> String {
    match access {
        Access::Read => format!(
            "the value of this vCPU's register in user space, which is {:#x} after a reset",
            register.reset
        ),
        Access::Write => masked(register.mask, "this vCPU's register in user space"),
    }
}

/// Returns the result of a write to a register of which the guest may change only some bits.
fn masked(mask: Mask, of: &str) -> String {
    match (mask.bits, mask.outside) {
        (u64::MAX, _) => format!("success: {of} takes all bits"),
        (bits, Outside::Keep) => {
            format!("success: {of} takes the bits {bits:#x} and keeps the others")
        }
        (bits, Outside::Deny) => format!(
            "success: {of} takes the bits {bits:#x}; #GP for a write that would change another bit"
        ),
    }
}
