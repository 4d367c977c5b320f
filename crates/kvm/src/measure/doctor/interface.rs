//! The statements of chapter S1: the numbers, offsets and capabilities of KVM's interface.

use std::mem::offset_of;

use kvm_bindings::{kvm_msr_filter, kvm_msr_filter_range, kvm_run, kvm_run__bindgen_ty_1};
use msrgate_filter::abi::CallerWidth;
use msrgate_filter::{Access, DefaultAction, Errno, MsrIndex, Verdict};

use super::lab::{ALL_REASONS, EFER, Lab, NOWHERE, STAR, TSC};
use super::request::{BOTH, READ, allow_all, filter, range};
use super::{Finding, Statement};
use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::host::Requirement;
use crate::measure::guest::{GuestError, Op};
use crate::measure::observed::StepReply;
use crate::sys::calls::enable;
use crate::sys::raw::{RawFilter, send};

pub(super) const STATEMENTS: &[Statement] = &[
    Statement::new(
        "S1.1",
        "capability 188 says that user space can handle MSRs",
        |lab| {
            let enabled = Finding::compare("enabling it", &lab.reasons(ALL_REASONS), &Ok(()));
            Ok(answers(lab, Requirement::UserSpaceMsr, 188).and(enabled))
        },
    ),
    Statement::new(
        "S1.2",
        "capability 189 says that MSRs can be filtered",
        |lab| Ok(answers(lab, Requirement::MsrFilter, 189)),
    ),
    Statement::new(
        "S1.3",
        "a read exits with the exit number 29, a write with 30",
        exit_numbers,
    ),
    Statement::new(
        "S1.4",
        "the bits of the exit reasons are INVAL 1, UNKNOWN 2, FILTER 4",
        reason_bits,
    ),
    Statement::new(
        "S1.5",
        "an exit's error, reason, index and data are at 32, 40, 44 and 48 of kvm_run",
        run_layout,
    ),
    Statement::new(
        "S1.6",
        "64-bit processes set a filter with the call 0x4188aec6, of 392 bytes; they cannot use that of 32-bit processes",
        |lab| Ok(ioctl_number(lab)),
    ),
    Statement::new(
        "S1.6a",
        "32-bit processes set a filter with the call 0x4104aec6, of 260 bytes",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "msrgate runs as a 64-bit process",
            })
        },
    ),
    Statement::new(
        "S1.7",
        "the filter's sixteen ranges of 24 bytes start at offset 8 of the struct, with the bitmap pointer at 16 of each",
        struct_layout,
    ),
    Statement::new(
        "S1.8",
        "a filter has up to 16 ranges, a range up to 0x3000 MSRs",
        |lab| Ok(limits(lab)),
    ),
    Statement::new(
        "S1.9",
        "the mask of exit reasons may change at any time; an unknown bit in it gives EINVAL",
        mask_bits,
    ),
    Statement::new("S1.9a", "enabling capability 189 gives EINVAL", |lab| {
        let seen = enable(lab.guest.vm(), Requirement::MsrFilter, RawReasons::NONE);
        let wanted = Err(CallErrno::Known(Errno::Einval));
        Ok(Finding::compare("enabling capability 189", &seen, &wanted))
    }),
    Statement::new(
        "S1.10",
        "the capability numbers 184 and 185 of an early draft of the filter belong to other capabilities, and KVM has 184",
        |lab| Ok(impostors(lab)),
    ),
];

fn answers(lab: &Lab, needed: Requirement, number: u32) -> Finding {
    let answer = lab.guest.vm().check_extension_raw(number.into());
    let seen = (needed.capability().get(), answer);
    Finding::compare("the number and the VM's answer", &seen, &(number, 1))
}

fn exit_numbers(lab: &mut Lab) -> Result<Finding, GuestError> {
    let read = lab.stop_refused(Op::Read(STAR))?;
    let write = lab.stop_refused(Op::Write(STAR, 0))?;
    let seen = (read.number, read.access, write.number, write.access);
    let wanted = (29, Access::Read, 30, Access::Write);
    Ok(Finding::compare("the exits", &seen, &wanted))
}

fn reason_bits(lab: &mut Lab) -> Result<Finding, GuestError> {
    if let Some(hidden) = lab.hides_unknown() {
        return Ok(hidden);
    }
    lab.guard(&allow_all(), ALL_REASONS)?;
    let invalid = lab.stop_at(Op::Write(EFER, u64::MAX))?;
    let unknown = lab.stop_at(Op::Read(NOWHERE))?;
    let refused = lab.stop_refused(Op::Read(STAR))?;
    let seen = [invalid, unknown, refused].map(|exit| exit.reason.get());
    Ok(Finding::compare("the reasons", &seen, &[1, 2, 4]))
}

/// Checks that the kernel writes the fields of an MSR exit at the offsets in `struct kvm_run` that
/// kvm-bindings gives.
fn run_layout(lab: &mut Lab) -> Result<Finding, GuestError> {
    let start = offset_of!(kvm_run, __bindgen_anon_1);
    let offsets = [
        start + offset_of!(kvm_run__bindgen_ty_1, msr.error),
        start + offset_of!(kvm_run__bindgen_ty_1, msr.reason),
        start + offset_of!(kvm_run__bindgen_ty_1, msr.index),
        start + offset_of!(kvm_run__bindgen_ty_1, msr.data),
    ];
    let exit = lab.stop_refused(Op::Write(STAR, 0x1122_3344_5566_7788))?;
    let fields = (exit.error, exit.reason.get(), exit.index, exit.data);
    let wanted = (0, 4, STAR, 0x1122_3344_5566_7788);
    Ok(Finding::all([
        Finding::compare("the offsets", &offsets, &[32, 40, 44, 48]),
        Finding::compare("the values at these offsets", &fields, &wanted),
    ]))
}

fn ioctl_number(lab: &Lab) -> Finding {
    let vm = lab.guest.vm();
    Finding::all([
        Finding::compare("the size", &size_of::<kvm_msr_filter>(), &392),
        Finding::compare(
            "the call",
            &send(vm, CallerWidth::Bits64, &allow_all()),
            &Ok(()),
        ),
        Finding::compare(
            "the call of 32-bit callers",
            &send(vm, CallerWidth::Bits32, &allow_all()),
            &Err(CallErrno::Known(Errno::Enotty)),
        ),
    ])
}

/// Sets a filter with rules in its first and in its last range, and checks that the rules of both ranges
/// have an effect.
fn struct_layout(lab: &mut Lab) -> Result<Finding, GuestError> {
    let offsets = [
        offset_of!(kvm_msr_filter, ranges),
        size_of::<kvm_msr_filter_range>(),
        offset_of!(kvm_msr_filter_range, flags),
        offset_of!(kvm_msr_filter_range, nmsrs),
        offset_of!(kvm_msr_filter_range, base),
        offset_of!(kvm_msr_filter_range, bitmap),
    ];
    let mut request = filter(DefaultAction::Deny, [range(READ, TSC, 1, |_| true)]);
    request.ranges[15] = range(BOTH, STAR, 1, |_| true);
    let taken = lab.accepts("ranges 0 and 15", &request);
    let verdicts = lab.verdicts(&[
        (TSC, Access::Read, Verdict::Allow),
        (TSC, Access::Write, Verdict::Deny),
        (STAR, Access::Read, Verdict::Allow),
        (STAR, Access::Write, Verdict::Allow),
        (NOWHERE, Access::Read, Verdict::Deny),
    ])?;
    Ok(Finding::all([
        Finding::compare("the offsets", &offsets, &[8, 24, 0, 4, 8, 16]),
        taken,
        verdicts,
    ]))
}

fn limits(lab: &Lab) -> Finding {
    let full = |nmsrs| RawFilter {
        flags: 0,
        ranges: [(); 16].map(|()| range(BOTH, MsrIndex::MIN, nmsrs, |_| true)),
    };
    let largest = lab.accepts("sixteen ranges of 0x3000", &full(0x3000));
    let too_large = lab.refuses("a range of 0x3001", &full(0x3001), Errno::Einval);
    largest.and(too_large)
}

fn mask_bits(lab: &mut Lab) -> Result<Finding, GuestError> {
    for bit in 0..64 {
        let wanted = match bit {
            0..=2 => Ok(()),
            _ => Err(CallErrno::Known(Errno::Einval)),
        };
        let seen = lab.reasons(RawReasons::new(1 << bit));
        let found = Finding::compare(&format!("bit {bit}"), &seen, &wanted);
        if found != Finding::Holds {
            return Ok(found);
        }
    }
    // The mask may also change while an exit is pending: the kernel completes that exit in any case (S5.5).
    lab.stop_refused(Op::Read(STAR))?;
    let meanwhile = lab.reasons(RawReasons::NONE);
    lab.guest.answer(StepReply::Value(0).into());
    lab.finish()?;
    let again = lab.reason(Op::Read(STAR))?;
    Ok(Finding::all([
        Finding::compare("a change while an exit is pending", &meanwhile, &Ok(())),
        Finding::compare("the exit under mask 0", &again, &None),
    ]))
}

/// Checks that KVM says yes to capability 184. On mainline this is `KVM_CAP_LAST_CPU`, which every x86 KVM
/// has. Capability 185 is not checked. It is `KVM_CAP_SMALLER_MAXPHYADDR`, which `kvm_intel` and `kvm_amd`
/// offer only without nested paging, so KVM's answer can be 0.
fn impostors(lab: &Lab) -> Finding {
    let answer = lab.guest.vm().check_extension_raw(184);
    Finding::compare("KVM_CHECK_EXTENSION of 184", &answer, &1)
}
