//! The statements of chapter S5: the effects of a denied access on the guest and on user space.

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_regs};
use msrgate_filter::{ExitReason, Instruction, MsrIndex};

use super::lab::{ALL_REASONS, EFER, Lab, NOWHERE, STAR};
use super::request::{allow_all, deny_all};
use super::{Finding, Statement};
use crate::exit::{RawReason, RawReasons};
use crate::measure::guest::{GuestError, Op, Report, Stop, called};
use crate::measure::observed::{
    Fault, GuestOutcome, GuestRegisters, Observed, SeenExit, Site, StepReply,
};

pub(super) const STATEMENTS: &[Statement] = &[
    Statement::new(
        "S5.1",
        "an access that the filter refuses exits with FILTER, even if KVM would refuse it too",
        |lab| {
            lab.guard(&deny_all(), ALL_REASONS)?;
            reasons(lab, Some(ExitReason::Filter), Some(ExitReason::Filter))
        },
    ),
    Statement::new(
        "S5.1a",
        "an allowed access exits with UNKNOWN for an unknown MSR, and with INVAL for an illegal value",
        |lab| {
            if let Some(hidden) = lab.hides_unknown() {
                return Ok(hidden);
            }
            lab.guard(&allow_all(), ALL_REASONS)?;
            reasons(lab, Some(ExitReason::Unknown), Some(ExitReason::Invalid))
        },
    ),
    Statement::new(
        "S5.2",
        "if the mask lacks the reason of a failed access, the guest gets #GP, and no exit with another reason",
        no_fallback,
    ),
    Statement::new(
        "S5.3",
        "an exit has ECX as index, EDX:EAX of a write (else 0) as data, and error 0; RIP and registers keep their values",
        exit_fields,
    ),
    Statement::new(
        "S5.4",
        "a reply with error 0 completes a read: RAX and RDX get the halves of data, and RIP is past the instruction",
        read_completes,
    ),
    Statement::new(
        "S5.4a",
        "a reply with error 0 completes a write, and KVM does not write the register",
        write_completes,
    ),
    Statement::new(
        "S5.4b",
        "a reply with another error gives #GP(0) at the instruction, with registers unchanged",
        error_faults,
    ),
    Statement::new(
        "S5.4c",
        "single-step stops the guest right after an access that a reply completes",
        single_step,
    ),
    Statement::new(
        "S5.5",
        "KVM reads back only the fields error and data of an exit",
        read_back,
    ),
    Statement::new(
        "S5.5a",
        "a filter or mask that is set while an exit is pending does not change its completion",
        set_meanwhile,
    ),
    Statement::new(
        "S5.5b",
        "registers set while an exit is pending keep their values, except RAX and RDX of a read",
        registers_meanwhile,
    ),
    Statement::new(
        "S5.6",
        "KVM_RUN with immediate_exit completes a pending exit and returns EINTR",
        immediate_exit,
    ),
    Statement::new(
        "S5.7",
        "an access refused without an exit gives #GP(0) at the instruction, with registers unchanged",
        plain_fault,
    ),
    Statement::new(
        "S5.8",
        "a rewound access is executed again, under the filter that is then set",
        rewind,
    ),
];

const DATA: u64 = 0xfedc_ba98_7654_3210;

const GP: GuestOutcome = GuestOutcome::Fault(Fault {
    site: Site::AtInstruction,
    code: 0,
    registers: GuestRegisters::Untouched,
});

/// Makes three accesses that KVM itself refuses, and checks the reasons of their exits: a read and a write
/// of an MSR that KVM does not know, and a write of a value that the MSR does not accept.
fn reasons(
    lab: &mut Lab,
    unknown: Option<ExitReason>,
    illegal: Option<ExitReason>,
) -> Result<Finding, GuestError> {
    let mut found = Vec::new();
    for (op, wanted) in [
        (Op::Read(NOWHERE), unknown),
        (Op::Write(NOWHERE, 0), unknown),
        (Op::Write(EFER, u64::MAX), illegal),
    ] {
        let seen = lab.try_access(op)?;
        let reason = seen.exit.map(|exit| exit.reason);
        let what = format!("{op:?}");
        found.push(Finding::compare(&what, &reason, &wanted.map(Into::into)));
        found.push(Finding::compare(&what, &seen.outcome, &GP));
    }
    Ok(Finding::all(found))
}

fn no_fallback(lab: &mut Lab) -> Result<Finding, GuestError> {
    if let Some(hidden) = lab.hides_unknown() {
        return Ok(hidden);
    }
    let bits = |without: ExitReason| {
        let bit = u64::from(RawReason::from(without).get());
        RawReasons::new(ALL_REASONS.get() & !bit)
    };
    lab.guard(&deny_all(), bits(ExitReason::Filter))?;
    let refused = reasons(lab, None, None)?;
    lab.guard(&allow_all(), bits(ExitReason::Unknown))?;
    let unknown = reasons(lab, None, Some(ExitReason::Invalid))?;
    lab.guard(&allow_all(), bits(ExitReason::Invalid))?;
    let invalid = reasons(lab, Some(ExitReason::Unknown), None)?;
    Ok(Finding::all([refused, unknown, invalid]))
}

fn exit_fields(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut found = Vec::new();
    for (op, data) in [
        (Op::Read(STAR), 0),
        (Op::Write(STAR, DATA), DATA),
        (Op::Read(MsrIndex::MAX), 0),
    ] {
        let raw = lab.stop_refused(op)?;
        let (index, access) = (raw.index, raw.access);
        let seen = lab.guest.seen(op, &raw)?;
        let wanted = SeenExit {
            reason: ExitReason::Filter.into(),
            index: op.access().map_or(index, |(index, _)| index),
            access: op.access().map_or(access, |(_, access)| access),
            data,
            site: Site::AtInstruction,
            registers: GuestRegisters::Untouched,
        };
        found.push(Finding::compare("the exit", &seen, &wanted));
        found.push(Finding::compare(
            "the field error of the exit",
            &raw.error,
            &0,
        ));
    }
    Ok(Finding::all(found))
}

fn read_completes(lab: &mut Lab) -> Result<Finding, GuestError> {
    let op = Op::Read(STAR);
    lab.stop_refused(op)?;
    lab.guest.answer(StepReply::Value(DATA).into());
    lab.finish()?;
    let mut after = op.operands();
    after.rax = DATA & 0xffff_ffff;
    after.rdx = DATA >> 32;
    let seen = lab.guest.report(0);
    Ok(Finding::compare("the guest", &seen, &Report::Done(after)))
}

fn write_completes(lab: &mut Lab) -> Result<Finding, GuestError> {
    let op = Op::Write(STAR, DATA);
    lab.stop_refused(op)?;
    lab.guest.answer(StepReply::Value(0).into());
    lab.finish()?;
    let after = Report::Done(op.operands());
    Ok(Finding::all([
        Finding::compare("the guest", &lab.guest.report(0), &after),
        Finding::compare("the register", &lab.host_read(STAR)?, &Some(0)),
    ]))
}

fn error_faults(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut found = Vec::new();
    for error in [1, 2, 0x80, 0xff] {
        for op in [Op::Read(STAR), Op::Write(STAR, DATA)] {
            lab.stop_refused(op)?;
            lab.guest
                .answer(msrgate_filter::Reply { error, data: DATA });
            lab.finish()?;
            let what = format!("{op:?} with error {error}");
            found.push(Finding::compare(
                &what,
                &lab.guest.report(0),
                &fault_of(lab, op),
            ));
        }
    }
    Ok(Finding::all(found))
}

/// Returns the report that the guest has to write if `op` raises #GP(0) at its own instruction.
fn fault_of(lab: &Lab, op: Op) -> Report {
    Report::Fault {
        operands: op.operands(),
        code: 0,
        rip: lab.guest.site(op),
    }
}

fn single_step(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut found = Vec::new();
    for op in [Op::Read(STAR), Op::Write(STAR, DATA)] {
        lab.stop_refused(op)?;
        debug(lab, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)?;
        lab.guest.answer(StepReply::Value(DATA).into());
        let seen = lab.guest.resume()?;
        let rip = lab.guest.site(op) + Instruction::LENGTH;
        found.push(Finding::compare("the stop", &seen, &Stop::Debug { rip }));
        debug(lab, 0)?;
        if seen != Stop::End {
            lab.finish()?;
        }
    }
    Ok(Finding::all(found))
}

fn debug(lab: &Lab, control: u32) -> Result<(), GuestError> {
    let request = kvm_guest_debug {
        control,
        ..kvm_guest_debug::default()
    };
    lab.guest
        .vcpu()
        .set_guest_debug(&request)
        .map_err(called("KVM_SET_GUEST_DEBUG"))
}

/// Overwrites the index and the reason of an exit, and the data of an exit for a write. The kernel must
/// ignore these fields.
fn read_back(lab: &mut Lab) -> Result<Finding, GuestError> {
    lab.stop_refused(Op::Read(STAR))?;
    lab.guest.answer(StepReply::Value(DATA).into());
    lab.guest.scribble(RawReason::new(0), EFER);
    lab.finish()?;
    let read = lab.guest.report(0);
    let op = Op::Write(STAR, 0x1111);
    lab.stop_refused(op)?;
    lab.guest.answer(StepReply::Value(0x2222).into());
    lab.guest.scribble(RawReason::new(2), EFER);
    lab.finish()?;
    let written = lab.guest.report(0);
    let value = match read {
        Report::Done(after) => Some(after.value()),
        _ => None,
    };
    Ok(Finding::all([
        Finding::compare("the read", &value, &Some(DATA)),
        Finding::compare("the write", &written, &Report::Done(op.operands())),
        Finding::compare("the register", &lab.host_read(STAR)?, &Some(0)),
    ]))
}

fn set_meanwhile(lab: &mut Lab) -> Result<Finding, GuestError> {
    lab.stop_refused(Op::Read(STAR))?;
    lab.open()?;
    lab.guest.answer(StepReply::Value(DATA).into());
    lab.finish()?;
    let completed = match lab.guest.report(0) {
        Report::Done(after) => Some(after.value()),
        _ => None,
    };
    let op = Op::Write(STAR, DATA);
    lab.stop_refused(op)?;
    lab.open()?;
    lab.guest.answer(StepReply::Fault.into());
    lab.finish()?;
    let faulted = lab.guest.report(0);
    Ok(Finding::all([
        Finding::compare("the read", &completed, &Some(DATA)),
        Finding::compare("the write", &faulted, &fault_of(lab, op)),
        Finding::compare("the register", &lab.host_read(STAR)?, &Some(0)),
    ]))
}

fn registers_meanwhile(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut found = Vec::new();
    for (op, error) in [
        (Op::Read(STAR), 0),
        (Op::Read(STAR), 1),
        (Op::Write(STAR, DATA), 0),
    ] {
        lab.stop_refused(op)?;
        let set = kvm_regs {
            rax: 0x1111,
            rcx: 0x2222,
            rdx: 0x3333,
            rbx: 0x4444,
            ..lab.guest.registers()?
        };
        lab.guest.set_registers(&set)?;
        lab.guest
            .answer(msrgate_filter::Reply { error, data: DATA });
        lab.finish()?;
        let (rax, rdx) = match (op, error) {
            (Op::Read(_), 0) => (DATA & 0xffff_ffff, DATA >> 32),
            _ => (set.rax, set.rdx),
        };
        let wanted = Some((rax, set.rcx, rdx));
        let seen = match lab.guest.report(0) {
            Report::Done(after) if error == 0 => Some((after.rax, after.rcx, after.rdx)),
            Report::Fault { operands, .. } if error != 0 => {
                Some((operands.rax, operands.rcx, operands.rdx))
            }
            _ => None,
        };
        let what = format!("RAX, RCX, RDX after {op:?} with error {error}");
        found.push(Finding::compare(&what, &seen, &wanted));
        let rbx = lab.guest.registers()?.rbx;
        found.push(Finding::compare("RBX", &rbx, &set.rbx));
    }
    Ok(Finding::all(found))
}

fn immediate_exit(lab: &mut Lab) -> Result<Finding, GuestError> {
    let op = Op::Read(STAR);
    lab.stop_refused(op)?;
    lab.guest.answer(StepReply::Value(DATA).into());
    // `complete` returns an error unless KVM_RUN returns EINTR.
    lab.guest.complete()?;
    let after = lab.guest.registers()?;
    let seen = (after.rip, after.rax, after.rdx);
    let past = lab.guest.site(op) + Instruction::LENGTH;
    lab.finish()?;
    Ok(Finding::compare(
        "RIP, RAX, RDX",
        &seen,
        &(past, DATA & 0xffff_ffff, DATA >> 32),
    ))
}

fn plain_fault(lab: &mut Lab) -> Result<Finding, GuestError> {
    lab.guard(&deny_all(), RawReasons::NONE)?;
    let wanted = Observed {
        outcome: GP,
        exit: None,
    };
    let read = lab.try_access(Op::Read(STAR))?;
    let write = lab.try_access(Op::Write(STAR, DATA))?;
    Ok(Finding::all([
        Finding::compare("the read", &read, &wanted),
        Finding::compare("the write", &write, &wanted),
        Finding::compare("the register", &lab.host_read(STAR)?, &Some(0)),
    ]))
}

/// Rewinds the guest to the same access twice: first under the filter that denied the access, then under a
/// filter that allows it.
fn rewind(lab: &mut Lab) -> Result<Finding, GuestError> {
    let op = Op::Write(STAR, DATA);
    let first = lab.stop_refused(op)?;
    take_back(lab)?;
    let second = match lab.guest.resume()? {
        Stop::Msr(exit) => exit,
        stop => return Err(lab.left(&stop)),
    };
    let seen = lab.guest.seen(op, &second)?;
    take_back(lab)?;
    lab.open()?;
    lab.finish()?;
    let after = Report::Done(op.operands());
    Ok(Finding::all([
        Finding::compare("the exit after the rewind", &second, &first),
        Finding::compare(
            "RIP at the exit after the rewind",
            &seen.site,
            &Site::AtInstruction,
        ),
        Finding::compare(
            "registers at the exit after the rewind",
            &seen.registers,
            &GuestRegisters::Untouched,
        ),
        Finding::compare(
            "the access under the second filter",
            &lab.guest.report(0),
            &after,
        ),
        Finding::compare("the register", &lab.host_read(STAR)?, &Some(DATA)),
    ]))
}

/// Rewinds the guest to the access of the pending exit: the reply `error` queues a #GP, and writing the
/// registers cancels that #GP.
fn take_back(lab: &mut Lab) -> Result<(), GuestError> {
    let registers = lab.guest.registers()?;
    lab.guest.answer(StepReply::Fault.into());
    lab.guest.complete()?;
    lab.guest.set_registers(&registers)
}
