//! The statements of chapters S3, S4 and S10: for which accesses the kernel asks the filter, and how the
//! filter decides.

use msrgate_filter::{Access, DefaultAction, MsrIndex, Verdict};

use super::lab::{ALL_REASONS, CSTAR, KERNEL_GS_BASE, LSTAR, Lab, NOWHERE, STAR, TSC};
use super::request::{BOTH, READ, WRITE, allow_all, deny_all, filter, range};
use super::{Finding, Statement};
use crate::exit::RawReasons;
use crate::measure::guest::{GuestError, Op, called};
use crate::measure::observed::{GuestOutcome, Observed, StepReply};
use crate::probe::IgnoreMsrs;
use crate::sys::raw::{RawBitmap, RawRange};

pub(super) const STATEMENTS: &[Statement] = &[
    Statement::new(
        "S3.1",
        "accesses to 0x800..=0x8ff (x2APIC) are never refused, whatever a filter says",
        x2apic,
    ),
    Statement::new(
        "S3.1a",
        "under the default action deny, a guest in x2APIC mode reads its APIC's registers",
        x2apic_value,
    ),
    Statement::new(
        "S3.2",
        "in a VM without a filter, no access exits with the reason FILTER",
        |lab| {
            Ok(Finding::all([
                lab.both(STAR, Verdict::Allow)?,
                lab.both(NOWHERE, Verdict::Allow)?,
                lab.both(MsrIndex::MAX, Verdict::Allow)?,
            ]))
        },
    ),
    Statement::new(
        "S3.3",
        "the first range that covers an access decides it",
        first_match,
    ),
    Statement::new(
        "S3.3a",
        "a range for the other direction does not decide an access: later ranges are tried",
        other_direction,
    ),
    Statement::new(
        "S3.3b",
        "a range for reads and writes has one bitmap for both",
        one_bitmap,
    ),
    Statement::new(
        "S3.4",
        "if no range covers an access, the default action decides it",
        defaults,
    ),
    Statement::new(
        "S3.5",
        "a range that reaches 2^32 matches no access; only the default action decides 0xffffffff",
        wrapping,
    ),
    Statement::new(
        "S3.6",
        "the bits of a bitmap past the last MSR of its range are never used",
        spare_bits,
    ),
    Statement::new(
        "S4a",
        "KVM_GET_MSRS and KVM_SET_MSRS are not filtered",
        host_access,
    ),
    Statement::new(
        "S4b",
        "RDTSC is not filtered, though the TSC is an MSR",
        time,
    ),
    Statement::new(
        "S4c",
        "the MSR lists of nested entries and exits are filtered",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "the built-in guest runs no guest of its own",
            })
        },
    ),
    Statement::new(
        "S4d",
        "above CPL 0 the CPU faults before any filter is asked",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "the built-in guest stays at CPL 0",
            })
        },
    ),
    Statement::new(
        "S4e",
        "WRMSRNS, and RDMSR and WRMSRNS with an immediate, are filtered as RDMSR and WRMSR are",
        |_| {
            Ok(Finding::CannotBeShown {
                why: "few CPUs have these instructions",
            })
        },
    ),
    Statement::new(
        "S10.1",
        "with kvm.ignore_msrs=1 a read of an unknown MSR returns 0 without an exit, unless the filter refuses it",
        ignored,
    ),
    Statement::new(
        "S10.3",
        "a range contains the MSRs from base up to, but not including, base + nmsrs",
        |lab| {
            let ends = filter(DefaultAction::Deny, [range(BOTH, STAR, 2, |_| true)]);
            Ok(Finding::all([
                lab.accepts("the call", &ends),
                lab.both(LSTAR, Verdict::Allow)?,
                lab.both(CSTAR, Verdict::Deny)?,
            ]))
        },
    ),
    Statement::new(
        "S10.5",
        "SWAPGS changes KERNEL_GS_BASE under the default action deny",
        swap,
    ),
];

fn x2apic(lab: &mut Lab) -> Result<Finding, GuestError> {
    let refuse = range(BOTH, MsrIndex::new(0x7ff), 0x102, |_| false);
    let inside = [0x800, 0x802, 0x83f, 0x8ff].map(MsrIndex::new);
    let outside = [0x7ff, 0x900].map(MsrIndex::new);
    let mut findings = Vec::new();
    for request in [deny_all(), filter(DefaultAction::Allow, [refuse])] {
        findings.push(lab.accepts("the call", &request));
        for index in inside {
            findings.push(lab.both(index, Verdict::Allow)?);
        }
        for index in outside {
            findings.push(lab.both(index, Verdict::Deny)?);
        }
    }
    Ok(Finding::all(findings))
}

/// Checks that the guest can read the x2APIC version register, 0x803. The value of the register is
/// never 0, and its bits 7:0 are 0x10 to 0x15 (SDM volume 3, 12.4.8).
fn x2apic_value(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut lab = lab.with_apic()?;
    lab.guard(&deny_all(), ALL_REASONS)?;
    let refuses = lab.both(STAR, Verdict::Deny)?;
    let seen = lab.try_access(Op::Read(MsrIndex::new(0x803)))?;
    Ok(refuses.and(match seen.outcome {
        GuestOutcome::Value(version) if (0x10..0x16).contains(&(version & 0xff)) => Finding::Holds,
        _ => Finding::Differs {
            seen: format!("the read of 0x803: {seen:?}"),
        },
    }))
}

fn first_match(lab: &mut Lab) -> Result<Finding, GuestError> {
    let allow = || range(BOTH, STAR, 3, |offset| offset != 1);
    let refuse = || range(BOTH, LSTAR, 2, |_| false);
    Ok(Finding::all([
        lab.accepts(
            "the call",
            &filter(DefaultAction::Deny, [allow(), refuse()]),
        ),
        lab.both(STAR, Verdict::Allow)?,
        lab.both(LSTAR, Verdict::Deny)?,
        lab.both(CSTAR, Verdict::Allow)?,
        lab.accepts(
            "the call",
            &filter(DefaultAction::Deny, [refuse(), allow()]),
        ),
        lab.both(STAR, Verdict::Allow)?,
        lab.both(CSTAR, Verdict::Deny)?,
    ]))
}

fn other_direction(lab: &mut Lab) -> Result<Finding, GuestError> {
    let writes = range(WRITE, STAR, 1, |_| false);
    let reads = range(READ, STAR, 1, |_| true);
    let all = range(BOTH, STAR, 1, |_| true);
    Ok(Finding::all([
        lab.accepts(
            "the call",
            &filter(DefaultAction::Deny, [writes, reads, all]),
        ),
        lab.verdicts(&[
            (STAR, Access::Read, Verdict::Allow),
            (STAR, Access::Write, Verdict::Deny),
        ])?,
    ]))
}

fn one_bitmap(lab: &mut Lab) -> Result<Finding, GuestError> {
    let ranges = [range(BOTH, STAR, 3, |offset| offset == 1)];
    Ok(Finding::all([
        lab.accepts("the call", &filter(DefaultAction::Allow, ranges)),
        lab.both(STAR, Verdict::Deny)?,
        lab.both(LSTAR, Verdict::Allow)?,
        lab.both(CSTAR, Verdict::Deny)?,
    ]))
}

fn defaults(lab: &mut Lab) -> Result<Finding, GuestError> {
    let ranges = |flags| [range(flags, STAR, 1, |_| flags == READ)];
    Ok(Finding::all([
        lab.accepts("deny", &filter(DefaultAction::Deny, ranges(READ))),
        lab.verdicts(&[
            (STAR, Access::Read, Verdict::Allow),
            (STAR, Access::Write, Verdict::Deny),
            (LSTAR, Access::Read, Verdict::Deny),
            (NOWHERE, Access::Write, Verdict::Deny),
        ])?,
        lab.accepts("allow", &filter(DefaultAction::Allow, ranges(WRITE))),
        lab.verdicts(&[
            (STAR, Access::Read, Verdict::Allow),
            (STAR, Access::Write, Verdict::Deny),
            (LSTAR, Access::Write, Verdict::Allow),
            (NOWHERE, Access::Read, Verdict::Allow),
        ])?,
    ]))
}

fn wrapping(lab: &mut Lab) -> Result<Finding, GuestError> {
    let base = MsrIndex::new(0xffff_ff00);
    let exact = |bit| range(BOTH, base, 0x100, move |_| bit);
    let beyond = |bit| range(BOTH, MsrIndex::MAX, 2, move |_| bit);
    let short = |bit| range(BOTH, base, 0xff, move |_| bit);
    let below = MsrIndex::new(u32::MAX - 1);
    let ranges = |bit| [exact(bit), beyond(bit)];
    let mut findings = Vec::new();
    for (default, bit, verdict) in [
        (DefaultAction::Deny, true, Verdict::Deny),
        (DefaultAction::Allow, false, Verdict::Allow),
    ] {
        findings.push(lab.accepts("the call", &filter(default, ranges(bit))));
        for index in [base, below, MsrIndex::MAX, MsrIndex::MIN] {
            findings.push(lab.both(index, verdict)?);
        }
    }
    findings.push(lab.accepts("the call", &filter(DefaultAction::Deny, [short(true)])));
    findings.push(lab.both(below, Verdict::Allow)?);
    findings.push(lab.both(MsrIndex::MAX, Verdict::Deny)?);
    Ok(Finding::all(findings))
}

fn spare_bits(lab: &mut Lab) -> Result<Finding, GuestError> {
    let ranges = [RawRange {
        flags: BOTH,
        nmsrs: 2,
        base: STAR.get(),
        bitmap: RawBitmap::Bytes(vec![0xff; 8]),
    }];
    Ok(Finding::all([
        lab.accepts("the call", &filter(DefaultAction::Deny, ranges)),
        lab.both(LSTAR, Verdict::Allow)?,
        lab.both(CSTAR, Verdict::Deny)?,
        lab.both(MsrIndex::new(STAR.get() + 63), Verdict::Deny)?,
    ]))
}

fn host_access(lab: &mut Lab) -> Result<Finding, GuestError> {
    const VALUE: u64 = 0x0023_0010_0000_0000;
    lab.guard(&deny_all(), ALL_REASONS)?;
    let seen = (lab.host_write(STAR, VALUE)?, lab.host_read(STAR)?);
    Ok(Finding::all([
        Finding::compare("the host's write and read", &seen, &(1, Some(VALUE))),
        lab.both(STAR, Verdict::Deny)?,
    ]))
}

fn time(lab: &mut Lab) -> Result<Finding, GuestError> {
    lab.guard(&deny_all(), ALL_REASONS)?;
    let first = lab.try_access(Op::Time)?;
    let second = lab.try_access(Op::Time)?;
    let passed = match (first.outcome, second.outcome) {
        (GuestOutcome::Value(first), GuestOutcome::Value(second)) if first < second => {
            Finding::Holds
        }
        _ => Finding::Differs {
            seen: format!("two RDTSC: {first:?} and {second:?}"),
        },
    };
    Ok(Finding::all([
        Finding::compare("exits", &(first.exit, second.exit), &(None, None)),
        passed,
        lab.both(TSC, Verdict::Deny)?,
    ]))
}

fn swap(lab: &mut Lab) -> Result<Finding, GuestError> {
    const KERNEL: u64 = 0x1234_5000;
    lab.guard(&deny_all(), ALL_REASONS)?;
    lab.host_write(KERNEL_GS_BASE, KERNEL)?;
    // The GS base is 0 when the script begins: the guest's system registers were set so.
    let seen = lab.try_access(Op::SwapGs)?;
    let system = lab.guest.vcpu().get_sregs();
    let gs = system.map_err(called("KVM_GET_SREGS"))?.gs.base;
    let after = (seen.exit, gs, lab.host_read(KERNEL_GS_BASE)?);
    Ok(Finding::all([
        Finding::compare(
            "exit, GS base, KERNEL_GS_BASE",
            &after,
            &(None, KERNEL, Some(0)),
        ),
        lab.both(KERNEL_GS_BASE, Verdict::Deny)?,
    ]))
}

fn ignored(lab: &mut Lab) -> Result<Finding, GuestError> {
    match lab.host.ignore_msrs() {
        IgnoreMsrs::On => {}
        IgnoreMsrs::Off => {
            return Ok(Finding::CannotBeShown {
                why: "this host has kvm.ignore_msrs=0",
            });
        }
        IgnoreMsrs::NotSeen => {
            return Ok(Finding::CannotBeShown {
                why: "this host's kvm.ignore_msrs cannot be read",
            });
        }
    }
    lab.guard(&allow_all(), ALL_REASONS)?;
    let seen = lab.try_access(Op::Read(NOWHERE))?;
    let wanted = Observed {
        outcome: GuestOutcome::Value(0),
        exit: None,
    };
    lab.guard(&deny_all(), RawReasons::new(4))?;
    let refused = lab
        .access(Op::Read(NOWHERE), StepReply::Value(1))?
        .exit
        .is_some();
    Ok(Finding::all([
        Finding::compare("a read of an unknown MSR", &seen, &wanted),
        Finding::compare(
            "an exit for a refused read of an unknown MSR",
            &refused,
            &true,
        ),
    ]))
}
