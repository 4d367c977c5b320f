//! Tests of the behaviour that every backend must have, through the public interface: each test runs on the
//! model and on a real KVM. `msrgate doctor` tests the numbered statements on a host.

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Errno, ExitReason, Filter, MsrIndex, Range, Register,
    RegisterMap, Revision,
};
use msrgate_kvm::measure::{
    Backend, Case, Fault, GuestOutcome, GuestRegisters, KvmBackend, ModelBackend, Observed, Pass,
    Seen, SeenExit, Site, Step, StepReply, WriteEffect, measure,
};
use msrgate_kvm::sys::{RawBitmap, RawFilter, RawRange};
use msrgate_kvm::{CallErrno, RawReasons};

const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);

const GP: GuestOutcome = GuestOutcome::Fault(Fault {
    site: Site::AtInstruction,
    code: 0,
    registers: GuestRegisters::Untouched,
});

/// Returns the model, and a real KVM if this machine has one, each with a new VM.
fn backends() -> Vec<Box<dyn Backend>> {
    let registers = [STAR, LSTAR, CSTAR].map(|index| (index, Register::new(0)));
    let registers = RegisterMap::from_iter(registers);
    let mut backends: Vec<Box<dyn Backend>> =
        vec![Box::new(ModelBackend::new(Revision::Mainline, registers))];
    if let Some(host) = msrgate_testing::host::host() {
        backends.push(Box::new(KvmBackend::new(&host).expect("a VM")));
    }
    backends
}

fn on_each(body: impl Fn(&mut dyn Backend)) {
    for mut backend in backends() {
        eprintln!("on {}", backend.kind());
        body(&mut *backend);
    }
}

fn read(index: MsrIndex, reply: StepReply) -> Step {
    Step {
        index,
        access: Access::Read,
        value: 0,
        reply,
    }
}

fn write(index: MsrIndex, value: u64, reply: StepReply) -> Step {
    Step {
        index,
        access: Access::Write,
        value,
        reply,
    }
}

/// Returns a filter with default deny that allows STAR alone.
fn star_only() -> RawFilter {
    let mut filter = RawFilter {
        flags: 1,
        ..RawFilter::default()
    };
    filter.ranges[0] = RawRange {
        flags: 3,
        nmsrs: 3,
        base: STAR.get(),
        bitmap: RawBitmap::Bytes(vec![1, 0, 0, 0, 0, 0, 0, 0]),
    };
    filter
}

fn exit(step: Step, reason: ExitReason) -> SeenExit {
    SeenExit {
        reason: reason.into(),
        index: step.index,
        access: step.access,
        data: step.value,
        site: Site::AtInstruction,
        registers: GuestRegisters::Untouched,
    }
}

#[test]
fn s5_run_of_script_returns_its_values_exits_and_replies() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(7)).unwrap();
        backend.set_filter(&star_only()).unwrap();
        let script = [
            write(STAR, 0x1122_3344_5566_7788, StepReply::Fault),
            read(STAR, StepReply::Fault),
            read(CSTAR, StepReply::Value(0xa1b2_c3d4_e5f6_0718)),
            write(CSTAR, 0x99, StepReply::Value(0)),
            read(CSTAR, StepReply::Fault),
            write(CSTAR, 0x99, StepReply::Fault),
        ];
        let seen = backend.run(&script).unwrap();
        let outcomes = [
            GuestOutcome::Written,
            GuestOutcome::Value(0x1122_3344_5566_7788),
            GuestOutcome::Value(0xa1b2_c3d4_e5f6_0718),
            GuestOutcome::Written,
            GP,
            GP,
        ];
        for (number, (&step, outcome)) in script.iter().zip(outcomes).enumerate() {
            let exit = match number {
                0 | 1 => None,
                _ => Some(exit(step, ExitReason::Filter)),
            };
            assert_eq!(seen[number], Observed { outcome, exit }, "step {number}");
        }
    });
}

#[test]
fn s5_2_denied_access_without_reason_mask_is_fault_and_never_exits() {
    on_each(|backend| {
        backend.set_filter(&star_only()).unwrap();
        let script = [
            read(STAR, StepReply::Value(1)),
            read(CSTAR, StepReply::Value(1)),
            write(CSTAR, 1, StepReply::Value(1)),
        ];
        let seen = backend.run(&script).unwrap();
        let outcomes = [GuestOutcome::Value(0), GP, GP];
        let wanted = outcomes.map(|outcome| Observed {
            outcome,
            exit: None,
        });
        assert_eq!(seen, wanted);
    });
}

#[test]
fn s2_malformed_filter_or_mask_is_refused_with_errno_of_kernel() {
    on_each(|backend| {
        let mut filter = star_only();
        filter.ranges[0].bitmap = RawBitmap::Bytes(vec![1; 7]);
        let short = backend.set_filter(&filter);
        assert_eq!(short, Err(CallErrno::Known(Errno::Efault)));
        filter.ranges[0].flags = 0;
        let flagless = backend.set_filter(&filter);
        assert_eq!(flagless, Err(CallErrno::Known(Errno::Einval)));
        let mask = backend.set_reasons(RawReasons::new(8));
        assert_eq!(mask, Err(CallErrno::Known(Errno::Einval)));
    });
}

#[test]
fn backend_runs_several_filters_and_scripts_in_one_vm() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(4)).unwrap();
        for round in 0..8 {
            let allowed = round % 3;
            let mut filter = star_only();
            filter.ranges[0].bitmap = RawBitmap::Bytes(vec![1 << allowed, 0, 0, 0, 0, 0, 0, 0]);
            backend.set_filter(&filter).unwrap();
            let script: Vec<Step> = (0..3)
                .map(|offset| read(MsrIndex::new(STAR.get() + offset), StepReply::Fault))
                .collect();
            let seen = backend.run(&script).unwrap();
            for (offset, observed) in (0..).zip(&seen) {
                assert_eq!(observed.exit.is_none(), offset == allowed, "{round}");
            }
        }
    });
}

#[test]
fn s2_7_refused_filter_or_mask_leaves_old_filter_and_mask_in_force() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(4)).unwrap();
        backend.set_filter(&star_only()).unwrap();
        let mut open = star_only();
        open.flags = 0;
        open.ranges[0].bitmap = RawBitmap::Unreadable;
        backend.set_filter(&open).unwrap_err();
        backend.set_reasons(RawReasons::new(8)).unwrap_err();
        let seen = backend.run(&[read(CSTAR, StepReply::Fault)]).unwrap();
        let wanted = exit(read(CSTAR, StepReply::Fault), ExitReason::Filter);
        assert_eq!(seen[0].exit, Some(wanted));
    });
}

#[test]
fn s3_4_access_outside_all_ranges_gets_default_action() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(7)).unwrap();
        for (flags, reason) in [(0, ExitReason::Unknown), (1, ExitReason::Filter)] {
            let filter = RawFilter {
                flags,
                ..star_only()
            };
            backend.set_filter(&filter).unwrap();
            let nowhere = read(MsrIndex::new(0x1234_5678), StepReply::Fault);
            let seen = backend.run(&[nowhere]).unwrap();
            let wanted = Observed {
                outcome: GP,
                exit: Some(exit(nowhere, reason)),
            };
            assert_eq!(seen, [wanted]);
        }
    });
}

/// In the pass with exits each denied access exits; in the pass without exits each denied access is a #GP.
#[test]
fn s5_2_measure_finds_no_deviation_with_and_without_exits() {
    let bitmap = Bitmap::from_fn(3, |offset| offset == 0).unwrap();
    let range = Range::new(Accesses::Both, STAR, bitmap);
    let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range]).unwrap();
    let cases: Vec<Case> = [STAR, LSTAR, CSTAR]
        .into_iter()
        .flat_map(|index| Access::ALL.map(|access| (index, access)))
        .map(|(index, access)| Case {
            index,
            access,
            expected: filter.decide(index, access).verdict,
            effect: WriteEffect::StoresOnly,
        })
        .collect();
    on_each(|backend| {
        let measured = measure(backend, &filter, &cases).unwrap();
        assert_eq!(measured.len(), 2 * cases.len());
        for row in measured {
            assert!(row.is_ok(), "{row:?}");
            let refused = match row.pass {
                Pass::Exits => Seen::Exit(Some(ExitReason::Filter)),
                Pass::Faults => Seen::Fault,
            };
            let wanted = match (row.case.index, row.case.access) {
                (STAR, Access::Read) => Seen::Value(0),
                (STAR, Access::Write) => Seen::Written,
                _ => refused,
            };
            assert_eq!(row.seen, wanted, "{row:?}");
        }
    });
}
