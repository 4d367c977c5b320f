//! One body for every backend: scripts through the public interface, and the bitmaps of user space.

use msrgate_filter::{Access, Errno, ExitReason, MsrIndex, Register, RegisterMap, Revision};
use msrgate_kvm::{
    Backend, CallErrno, Fault, GuestRegisters, KvmBackend, ModelBackend, Observed, Outcome,
    RawBitmap, RawFilter, RawRange, RawReasons, Reply, SeenExit, Site, Step,
};

use crate::host;

const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);

const GP: Outcome = Outcome::Fault(Fault {
    site: Site::AtInstruction,
    code: 0,
    registers: GuestRegisters::Untouched,
});

/// The model, and KVM where there is one, each in a VM just made.
fn backends() -> Vec<Box<dyn Backend>> {
    let registers = [STAR, LSTAR, CSTAR].map(|index| (index, Register::new(0)));
    let registers = RegisterMap::from_iter(registers);
    let mut backends: Vec<Box<dyn Backend>> =
        vec![Box::new(ModelBackend::new(Revision::Mainline, registers))];
    if let Some(host) = host() {
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

fn read(index: MsrIndex, reply: Reply) -> Step {
    Step {
        index,
        access: Access::Read,
        value: 0,
        reply,
    }
}

fn write(index: MsrIndex, value: u64, reply: Reply) -> Step {
    Step {
        index,
        access: Access::Write,
        value,
        reply,
    }
}

/// STAR alone is allowed.
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
fn s5_one_script_shows_values_exits_and_both_replies() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(7)).unwrap();
        backend.set_filter(&star_only()).unwrap();
        let script = [
            write(STAR, 0x1122_3344_5566_7788, Reply::Fault),
            read(STAR, Reply::Fault),
            read(CSTAR, Reply::Value(0xa1b2_c3d4_e5f6_0718)),
            write(CSTAR, 0x99, Reply::Value(0)),
            read(CSTAR, Reply::Fault),
            write(CSTAR, 0x99, Reply::Fault),
        ];
        let seen = backend.run(&script).unwrap();
        let outcomes = [
            Outcome::Written,
            Outcome::Value(0x1122_3344_5566_7788),
            Outcome::Value(0xa1b2_c3d4_e5f6_0718),
            Outcome::Written,
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
fn s5_2_without_a_mask_the_same_script_only_faults() {
    on_each(|backend| {
        backend.set_filter(&star_only()).unwrap();
        let script = [
            read(STAR, Reply::Value(1)),
            read(CSTAR, Reply::Value(1)),
            write(CSTAR, 1, Reply::Value(1)),
        ];
        let seen = backend.run(&script).unwrap();
        let outcomes = [Outcome::Value(0), GP, GP];
        let wanted = outcomes.map(|outcome| Observed {
            outcome,
            exit: None,
        });
        assert_eq!(seen, wanted);
    });
}

#[test]
fn s2_a_refused_call_says_which_error_it_was() {
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
fn one_vm_serves_many_filters_and_scripts() {
    on_each(|backend| {
        backend.set_reasons(RawReasons::new(4)).unwrap();
        for round in 0..8 {
            let allowed = round % 3;
            let mut filter = star_only();
            filter.ranges[0].bitmap = RawBitmap::Bytes(vec![1 << allowed, 0, 0, 0, 0, 0, 0, 0]);
            backend.set_filter(&filter).unwrap();
            let script: Vec<Step> = (0..3)
                .map(|offset| read(MsrIndex::new(STAR.get() + offset), Reply::Fault))
                .collect();
            let seen = backend.run(&script).unwrap();
            for (offset, observed) in (0..).zip(&seen) {
                assert_eq!(observed.exit.is_none(), offset == allowed, "{round}");
            }
        }
    });
}

/// No assertion on time; the figure is printed.
#[test]
fn accesses_a_second() {
    const COUNT: u32 = 40_000;
    on_each(|backend| {
        let script = vec![read(STAR, Reply::Fault); COUNT as usize];
        for (what, filter) in [("none", RawFilter::default()), ("one range", star_only())] {
            backend.set_filter(&filter).unwrap();
            let start = std::time::Instant::now();
            let seen = backend.run(&script).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            assert!(seen.iter().all(|seen| seen.outcome == Outcome::Value(0)));
            let rate = f64::from(COUNT) / seconds;
            let kind = backend.kind();
            eprintln!("{kind}, filter of {what}: {rate:.0} accesses/s");
        }
    });
}
