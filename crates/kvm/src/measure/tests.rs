use msrgate_filter::{Accesses, Bitmap, DefaultAction, Range, Revision};

use super::*;
use crate::exit::RawReason;
use crate::measure::backend::BackendKind;
use crate::measure::observed::Fault;

const ALLOWED: MsrIndex = MsrIndex::new(0x10);
const REFUSED: MsrIndex = MsrIndex::new(0x20);
const UNKNOWN: MsrIndex = MsrIndex::new(0x30);

/// Returns a filter with the default action deny. The filter allows two MSRs; KVM does not know one of them.
fn filter() -> Filter {
    let allowed = [ALLOWED, UNKNOWN];
    let bit = |offset| allowed.contains(&MsrIndex::new(0x10 + offset));
    let range = Range::new(Accesses::Both, ALLOWED, Bitmap::from_fn(0x21, bit).unwrap());
    Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range]).unwrap()
}

/// A backend that behaves as statements S3 and S5 say, except that the closure `lie` changes what a
/// test observes of each access.
struct Liar<F> {
    filter: Option<Filter>,
    mask: RawReasons,
    lie: F,
}

impl<F: FnMut(&Step, RawReasons, &mut Observed)> Backend for Liar<F> {
    fn kind(&self) -> BackendKind {
        BackendKind::Model
    }

    fn set_reasons(&mut self, mask: RawReasons) -> Result<(), CallErrno> {
        self.mask = mask;
        Ok(())
    }

    fn set_filter(&mut self, request: &RawFilter) -> Result<(), CallErrno> {
        self.filter = (*request != RawFilter::default()).then(filter);
        Ok(())
    }

    fn run(&mut self, script: &[Step]) -> Result<Vec<Observed>, GuestError> {
        let mut run = |step: &Step| {
            let mut observed = self.honest(step);
            // Without a filter this is the baseline pass. The results of that pass are not changed.
            if self.filter.is_some() {
                (self.lie)(step, self.mask, &mut observed);
            }
            observed
        };
        Ok(script.iter().map(&mut run).collect())
    }
}

impl<F> Liar<F> {
    fn honest(&self, step: &Step) -> Observed {
        let decision = self
            .filter
            .as_ref()
            .map(|filter| filter.decide(step.index, step.access));
        let refused = decision.is_some_and(|decision| decision.verdict == Verdict::Deny);
        let reason = match step.index {
            _ if refused => Some(ExitReason::Filter),
            UNKNOWN => Some(ExitReason::Unknown),
            _ => None,
        };
        let Some(reason) = reason else {
            return Observed {
                outcome: match step.access {
                    Access::Read => GuestOutcome::Value(7),
                    Access::Write => GuestOutcome::Written,
                },
                exit: None,
            };
        };
        Observed {
            outcome: GuestOutcome::Fault(Fault {
                site: Site::AtInstruction,
                code: 0,
                registers: GuestRegisters::Untouched,
            }),
            exit: (self.mask == every_reason()).then_some(SeenExit {
                reason: RawReason::from(reason),
                index: step.index,
                access: step.access,
                data: if step.access == Access::Write {
                    step.value
                } else {
                    0
                },
                site: Site::AtInstruction,
                registers: GuestRegisters::Untouched,
            }),
        }
    }
}

fn cases(effect: WriteEffect) -> Vec<Case> {
    let filter = filter();
    let case = |index, access| Case {
        index,
        access,
        expected: filter.decide(index, access).verdict,
        effect,
    };
    [ALLOWED, REFUSED, UNKNOWN]
        .into_iter()
        .flat_map(|index| Access::ALL.map(|access| case(index, access)))
        .collect()
}

/// Returns the numbers of the statements that `measure` reports as broken if `lie` changes the observations.
fn broken(lie: impl FnMut(&Step, RawReasons, &mut Observed)) -> Vec<&'static str> {
    let mut liar = Liar {
        filter: None,
        mask: RawReasons::NONE,
        lie,
    };
    let measured = measure(&mut liar, &filter(), &cases(WriteEffect::StoresOnly)).unwrap();
    let mut statements: Vec<_> = measured
        .iter()
        .flat_map(|row| row.deviations.iter().map(|deviation| deviation.statement))
        .collect();
    statements.sort_unstable();
    statements.dedup();
    statements
}

#[test]
fn measure_of_conforming_kvm_reports_no_deviation() {
    let mut liar = Liar {
        filter: None,
        mask: RawReasons::NONE,
        lie: |_: &Step, _, _: &mut Observed| {},
    };
    let measured = measure(&mut liar, &filter(), &cases(WriteEffect::StoresOnly)).unwrap();
    assert!(measured.iter().all(Measured::is_ok), "{measured:?}");
    let seen: Vec<_> = measured.iter().map(|row| row.seen).collect();
    let unknown = Seen::Exit(Some(ExitReason::Unknown));
    let filtered = Seen::Exit(Some(ExitReason::Filter));
    let unreadable = Seen::NotTried(NotTried::Unreadable);
    assert_eq!(
        seen[..6],
        [
            Seen::Value(7),
            Seen::Written,
            filtered,
            filtered,
            unknown,
            unreadable
        ]
    );
    assert_eq!(
        seen[6..],
        [
            Seen::Value(7),
            Seen::Written,
            Seen::Fault,
            Seen::Fault,
            Seen::Fault,
            unreadable
        ]
    );
    assert_eq!(measured[10].own_fault, Some(ExitReason::Unknown));
}

#[test]
fn measure_does_not_try_allowed_write_that_has_effect_at_once() {
    let mut liar = Liar {
        filter: None,
        mask: RawReasons::NONE,
        lie: |step: &Step, _, _: &mut Observed| {
            assert!((step.index, step.access) != (ALLOWED, Access::Write));
        },
    };
    let measured = measure(&mut liar, &filter(), &cases(WriteEffect::ActsAtOnce)).unwrap();
    assert_eq!(measured[1].seen, Seen::NotTried(NotTried::ActsAtOnce));
    assert_eq!(measured[3].seen, Seen::Exit(Some(ExitReason::Filter)));
}

#[test]
fn measure_reports_broken_statement_s3_3_if_denied_access_passes() {
    let passes = |step: &Step, _, seen: &mut Observed| {
        if step.index == REFUSED && step.access == Access::Read {
            *seen = Observed {
                outcome: GuestOutcome::Value(1),
                exit: None,
            };
        }
    };
    assert_eq!(broken(passes), ["S3.3"]);
}

#[test]
fn measure_reports_broken_statement_s3_3_if_allowed_access_is_refused() {
    let refuses = |step: &Step, mask: RawReasons, seen: &mut Observed| {
        if (step.index, mask) == (ALLOWED, every_reason()) {
            let honest = Liar {
                filter: Some(filter()),
                mask,
                lie: (),
            };
            *seen = honest.honest(&Step {
                index: REFUSED,
                ..*step
            });
            if let Some(exit) = &mut seen.exit {
                exit.index = step.index;
            }
        }
    };
    assert_eq!(broken(refuses), ["S3.3", "S5.2"]);
}

/// The number of a statement, and a change of an observation that `measure` must report as breaking that
/// statement.
type Lie<'l> = (&'static str, &'l dyn Fn(&mut Observed));

fn exit(seen: &mut Observed, change: impl Fn(&mut SeenExit)) {
    if let Some(exit) = &mut seen.exit {
        change(exit);
    }
}

fn fault(seen: &mut Observed, change: impl Fn(&mut Fault)) {
    if let GuestOutcome::Fault(fault) = &mut seen.outcome {
        change(fault);
    }
}

/// `measure` reports the statement that is broken if any single field of what it observes of a denied
/// access is changed.
#[test]
fn measure_checks_every_field_of_exits_and_faults() {
    let changed = GuestRegisters::Changed {
        rax: 0,
        rcx: 0,
        rdx: 1,
    };
    let lies: [Lie<'_>; 11] = [
        ("S5.2", &|seen| {
            exit(seen, |exit| exit.reason = RawReason::new(6));
        }),
        ("S5.1", &|seen| {
            exit(seen, |exit| {
                exit.reason = RawReason::from(ExitReason::Unknown);
            });
        }),
        ("S5.3", &|seen| exit(seen, |exit| exit.index = ALLOWED)),
        ("S5.3", &|seen| exit(seen, |exit| exit.data ^= 1)),
        ("S5.3", &|seen| {
            exit(seen, |exit| exit.site = Site::Elsewhere(2));
        }),
        ("S5.3", &|seen| exit(seen, |exit| exit.registers = changed)),
        ("S5.2", &|seen| seen.exit = None),
        ("S5.4", &|seen| {
            if seen.exit.is_some() {
                seen.outcome = GuestOutcome::Written;
            }
        }),
        ("S5.4", &|seen| {
            fault(seen, |fault| fault.registers = changed);
        }),
        ("S5.7", &|seen| {
            fault(seen, |fault| fault.site = Site::Elsewhere(2));
        }),
        ("S5.7", &|seen| fault(seen, |fault| fault.code = 1)),
    ];
    for (number, (statement, lie)) in lies.iter().enumerate() {
        let found = broken(|step, _, seen| {
            if step.index == REFUSED {
                lie(seen);
            }
        });
        assert_eq!(found, [*statement], "lie {number}");
    }
}

#[test]
fn measure_reports_broken_statement_s5_2_if_exit_reason_is_not_in_mask() {
    let exits = |step: &Step, _, seen: &mut Observed| {
        let honest = Liar {
            filter: Some(filter()),
            mask: every_reason(),
            lie: (),
        };
        *seen = honest.honest(step);
    };
    assert_eq!(broken(exits), ["S5.2"]);
}
