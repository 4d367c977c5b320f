//! The statements of chapters S6 and S7 and statement S10.4: hardware bitmaps, concurrency and lifetimes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvm_bindings::kvm_msi;
use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, ExitReason, Filter, MsrIndex, Range, ReasonMask,
    Revision, Verdict,
};

use super::lab::{ALL_REASONS, CSTAR, LSTAR, Lab, STAR, failed};
use super::request::{allow_only, deny_all};
use super::{Finding, Statement};
use crate::errno::RawErrno;
use crate::exit::RawReasons;
use crate::install::install;
use crate::measure::guest::{GuestError, Op, called};
use crate::measure::observed::{GuestOutcome, Observed, StepReply};

pub(super) const STATEMENTS: &[Statement] = &[
    Statement::new(
        "S6",
        "a bit of the hardware's MSR bitmap is clear only if KVM passes the MSR through and the filter allows it",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "the hardware's bitmaps are inside the kernel, and a refused access looks the same with and without them",
            })
        },
    ),
    Statement::new(
        "S7a",
        "while one filter replaces another, accesses that both decide alike keep their result",
        steady,
    ),
    Statement::new(
        "S7b",
        "if the mask of exit reasons has FILTER before, during and after a change of the filter, no refused access gets #GP",
        mask_around_filter,
    ),
    Statement::new(
        "S7c",
        "if the mask of exit reasons lacks FILTER, a refused access gets #GP",
        |lab| {
            lab.guard(&deny_all(), RawReasons::NONE)?;
            let before = lab.reason(Op::Read(STAR))?;
            lab.guard(&deny_all(), ALL_REASONS)?;
            let with = lab.reason(Op::Read(STAR))?;
            lab.reasons(RawReasons::NONE)
                .map_err(failed("KVM_ENABLE_CAP"))?;
            let after = lab.reason(Op::Read(STAR))?;
            let wanted = (None, Some(ExitReason::Filter.into()), None);
            Ok(Finding::compare(
                "the exits",
                &(before, with, after),
                &wanted,
            ))
        },
    ),
    Statement::new(
        "S7d",
        "when a VM ends, the kernel frees its filter only after all its vCPUs",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "the end of a VM happens inside the kernel",
            })
        },
    ),
    Statement::new(
        "S10.4",
        "an INIT of a vCPU changes neither the VM's filter nor its mask of exit reasons",
        init,
    ),
];

/// The number of times that both filters are set while the guest runs.
const ROUNDS: usize = 12;

/// The MSRs that the guest reads in turn.
const READS: [MsrIndex; 3] = [STAR, LSTAR, CSTAR];

/// Sets two filters in turn while the guest runs, the second one last. Both allow STAR, the second one also
/// allows LSTAR, and both deny CSTAR.
fn steady(lab: &mut Lab) -> Result<Finding, GuestError> {
    let filters = [allow_only([STAR]), allow_only([STAR, LSTAR])];
    lab.guard(&filters[0], ALL_REASONS)?;
    let vm = Arc::clone(lab.guest.vm());
    let replace = move || {
        (0..ROUNDS)
            .flat_map(|_| &filters)
            .try_for_each(|filter| crate::sys::raw::set_filter_raw(&vm, filter))
            .map_err(failed("KVM_X86_SET_MSR_FILTER"))
    };
    while_running(lab, replace)
}

fn mask_around_filter(lab: &mut Lab) -> Result<Finding, GuestError> {
    let (first, second) = (only(&[STAR])?, only(&[STAR, LSTAR])?);
    let filter_only = ReasonMask::of(Revision::Mainline, &[ExitReason::Filter]);
    let all = ReasonMask::of(Revision::Mainline, &ExitReason::ALL);
    let vm = Arc::clone(lab.guest.vm());
    let mut installed = install(&vm, &first, filter_only)?;
    let replace = || {
        for _ in 0..ROUNDS {
            installed.replace(&first, filter_only)?;
            installed.replace(&second, all)?;
        }
        Ok(())
    };
    let found = while_running(lab, replace)?;
    installed.remove()?;
    let gone = lab.try_access(Op::Read(CSTAR))?;
    let value = Observed {
        outcome: GuestOutcome::Value(0),
        exit: None,
    };
    Ok(found.and(Finding::compare(
        "after the filter was removed",
        &gone,
        &value,
    )))
}

/// Returns a filter with default deny that allows those of the MSRs STAR, LSTAR and CSTAR that are in
/// `allowed`.
fn only(allowed: &[MsrIndex]) -> Result<Filter, GuestError> {
    let bit = |offset| allowed.contains(&MsrIndex::new(STAR.get() + offset));
    let cannot = RawErrno::new(libc::EINVAL).into();
    let bitmap = Bitmap::from_fn(3, bit).map_err(|_| failed("a bitmap of 3 MSRs")(cannot))?;
    let ranges = vec![Range::new(Accesses::Both, STAR, bitmap)];
    Filter::new(Revision::Mainline, DefaultAction::Deny, ranges)
        .map_err(|_| failed("a filter of one range")(cannot))
}

/// Lets the guest run reads while the first filter is set, until `replace` has returned on another thread, and
/// then once more, when the second filter has to be set.
fn while_running(
    lab: &mut Lab,
    replace: impl FnOnce() -> Result<(), GuestError> + Send,
) -> Result<Finding, GuestError> {
    let is_done = AtomicBool::new(false);
    let first = lab.reason(Op::Read(LSTAR))?;
    let refused = Some(ExitReason::Filter.into());
    let first = Finding::compare("LSTAR under the first filter", &first, &refused);
    let script: Vec<(Op, StepReply)> = READS
        .iter()
        .cycle()
        .take(READS.len() * 64)
        .map(|&index| (Op::Read(index), StepReply::Fault))
        .collect();
    thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let result = replace();
            is_done.store(true, Ordering::Release);
            result
        });
        let mut found = first;
        loop {
            let is_last = is_done.load(Ordering::Acquire);
            let observed = lab.guest.run(&script)?;
            found = found.and(check(&observed));
            if is_last {
                let second = observed[1].exit.map(|exit| exit.reason);
                let what = "LSTAR under the second filter";
                found = found.and(Finding::compare(what, &second, &None));
                break;
            }
        }
        match replacing.join() {
            Ok(result) => result.map(|()| found),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Checks that each read of STAR returns a value, that each read of CSTAR exits, and that each read of LSTAR
/// does one of the two. A #GP without an exit is wrong for all of them.
fn check(observed: &[Observed]) -> Finding {
    let outcomes = observed.chunks_exact(READS.len()).map(|reads| {
        let exits = [0, 1, 2].map(|read| reads[read].exit.map(|exit| exit.reason));
        let refused = Some(ExitReason::Filter.into());
        let is_whole = |read: usize| match reads[read].outcome {
            GuestOutcome::Value(0) => exits[read].is_none(),
            _ => exits[read] == refused,
        };
        let is_right = exits[0].is_none() && exits[2] == refused && (0..3).all(is_whole);
        if is_right {
            Finding::Holds
        } else {
            Finding::Differs {
                seen: format!("reads of STAR, LSTAR and CSTAR: {reads:?}"),
            }
        }
    });
    Finding::all(outcomes)
}

/// Sends INIT to the vCPU by an interrupt message, and then reads the vCPU's state, so that KVM processes
/// the INIT.
fn init(lab: &mut Lab) -> Result<Finding, GuestError> {
    /// The address and the data of the message: an asserted INIT to the APIC with ID 0 (SDM volume 3,
    /// 12.11).
    const MESSAGE: (u32, u32) = (0xfee0_0000, 1 << 14 | 5 << 8);
    const RESET_VECTOR: u64 = 0xfff0;
    let mut lab = lab.with_apic()?;
    lab.guard(&allow_only([STAR]), ALL_REASONS)?;
    let expected = [
        (STAR, Access::Read, Verdict::Allow),
        (CSTAR, Access::Read, Verdict::Deny),
    ];
    let before = lab.refusals(&expected)?;
    let message = kvm_msi {
        address_lo: MESSAGE.0,
        data: MESSAGE.1,
        ..kvm_msi::default()
    };
    let vm = lab.guest.vm();
    vm.signal_msi(message).map_err(called("KVM_SIGNAL_MSI"))?;
    let vcpu = lab.guest.vcpu();
    vcpu.get_mp_state().map_err(called("KVM_GET_MP_STATE"))?;
    if lab.guest.registers()?.rip != RESET_VECTOR {
        return Ok(Finding::CannotBeShown {
            why: "the vCPU did not take the INIT that was sent to it",
        });
    }
    lab.guest.spoil();
    Ok(before.and(lab.refusals(&expected)?))
}
