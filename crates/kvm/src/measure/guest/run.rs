//! The run of a whole script: the host answers each step's exit and collects each step's outcome.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::one_line;

use super::machine::{Guest, RawExit, Stop};
use super::slot::{Op, Operands, Report};
use crate::errno::CallErrno;
use crate::host::HostError;
use crate::install::InstallError;
use crate::measure::observed::{
    Fault, GuestOutcome, GuestRegisters, Observed, SeenExit, Site, Step, StepReply,
};

/// The position of a step in its script, and the access that the step makes, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepAt {
    number: usize,
    access: Option<(MsrIndex, Access)>,
}

impl StepAt {
    /// Describes the step with this number, counted from 0, and this access, which is `None` after the
    /// last step.
    #[must_use]
    pub const fn new(number: usize, access: Option<(MsrIndex, Access)>) -> Self {
        Self { number, access }
    }

    /// The position of the step in the script, counted from 0.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// The MSR and the direction of the access that the step makes; `None` after the last step.
    #[must_use]
    pub const fn access(&self) -> Option<(MsrIndex, Access)> {
        self.access
    }
}

/// Prints, for example, `step 3, the read of 0x8b`.
impl fmt::Display for StepAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}", self.number)?;
        match self.access {
            Some((index, access)) => write!(f, ", the {access} of {index}"),
            None => Ok(()),
        }
    }
}

/// The reason why the built-in guest could not run a script to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestError {
    /// The host's KVM is no longer usable.
    Host(HostError),
    /// The filter could not be installed in the guest's VM.
    Install(InstallError),
    /// A system call failed that has to succeed.
    Call {
        /// The name of the system call.
        name: &'static str,
        /// The error number with which the system call failed.
        errno: CallErrno,
    },
    /// The guest exited in a way that no MSR access can cause.
    Left {
        /// The step at which the guest exited.
        step: StepAt,
        /// A description of the exit.
        exit: String,
    },
    /// The guest exited to user space twice in one step.
    Twice {
        /// The step in which the guest exited twice.
        step: StepAt,
    },
    /// An access completed, but left values in the registers that no RDMSR or WRMSR leaves there (S5.4).
    Registers {
        /// The step of the script that made the access.
        step: StepAt,
        /// The value of RAX after the access.
        rax: u64,
        /// The value of RCX after the access.
        rcx: u64,
        /// The value of RDX after the access.
        rdx: u64,
    },
    /// The guest did not reach the end of the script in time.
    Endless {
        /// The step that the guest was at.
        step: StepAt,
        /// The time that the guest had for the script.
        patience: Duration,
    },
    /// The guest reached the end of the script, but one step has no report.
    Skipped {
        /// The step without a report.
        step: StepAt,
    },
    /// `KVM_RUN` did not return EINTR, although `immediate_exit` was set (S5.6).
    NotImmediate {
        /// The step that the guest was at.
        step: StepAt,
    },
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(error) => error.fmt(f),
            Self::Install(error) => error.fmt(f),
            Self::Call { name, errno } => write!(f, "{name}: {errno}"),
            Self::Left { step, exit } => {
                write!(
                    f,
                    "the guest stopped unexpectedly at {step}, with {}",
                    one_line(exit)
                )
            }
            Self::Twice { step } => write!(f, "the guest exited twice at {step}"),
            Self::Registers {
                step,
                rax,
                rcx,
                rdx,
            } => write!(
                f,
                "the guest's registers are wrong after {step}: RAX {rax:#x}, RCX {rcx:#x}, RDX {rdx:#x}"
            ),
            Self::Endless { step, patience } => {
                write!(f, "the guest did not get past {step} within {patience:?}")
            }
            Self::Skipped { step } => write!(f, "the guest ended before {step}"),
            Self::NotImmediate { step } => write!(
                f,
                "KVM_RUN under immediate_exit did not return EINTR at {step}"
            ),
        }
    }
}

impl Error for GuestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Host(error) => error.source(),
            Self::Install(error) => error.source(),
            _ => None,
        }
    }
}

impl From<HostError> for GuestError {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl From<InstallError> for GuestError {
    fn from(error: InstallError) -> Self {
        Self::Install(error)
    }
}

impl Guest {
    /// Runs a script of any length, in parts of [`Self::LONGEST`] steps.
    ///
    /// # Errors
    /// Returns an error if the guest does something that no MSR access can cause, or if a system call fails.
    /// The message counts steps from the start of their part.
    pub(crate) fn run(&mut self, script: &[(Op, StepReply)]) -> Result<Vec<Observed>, GuestError> {
        let mut observed = Vec::with_capacity(script.len());
        for part in script.chunks(Self::LONGEST) {
            self.run_part(part, &mut observed)?;
        }
        Ok(observed)
    }

    fn run_part(
        &mut self,
        part: &[(Op, StepReply)],
        into: &mut Vec<Observed>,
    ) -> Result<(), GuestError> {
        let ops: Vec<Op> = part.iter().map(|&(op, _)| op).collect();
        self.load(&ops)?;
        let watchdog = self.watch()?;
        let mut exits: Vec<Option<SeenExit>> = vec![None; part.len()];
        let mut at = 0;
        loop {
            let stop = self.resume_under(&watchdog)?;
            while at < part.len() && self.report(at) != Report::NotReached {
                at += 1;
            }
            match (stop, part.get(at)) {
                (Stop::End, _) => break,
                (Stop::Msr(raw), Some(&(op, reply))) => {
                    if exits[at].is_some() {
                        self.spoil();
                        return Err(GuestError::Twice { step: self.step() });
                    }
                    exits[at] = Some(self.seen(op, &raw)?);
                    self.answer(reply.into());
                }
                (stop, _) => {
                    self.spoil();
                    return Err(GuestError::Left {
                        step: self.step(),
                        exit: stop.to_string(),
                    });
                }
            }
        }
        for (number, (&op, exit)) in ops.iter().zip(exits).enumerate() {
            let outcome = self.outcome(number, op)?;
            into.push(Observed { outcome, exit });
        }
        Ok(())
    }

    /// Describes an MSR exit, with the guest's registers at the exit (S5.3).
    pub(crate) fn seen(&self, op: Op, raw: &RawExit) -> Result<SeenExit, GuestError> {
        let registers = self.registers()?;
        let operands = Operands {
            rax: registers.rax,
            rcx: registers.rcx,
            rdx: registers.rdx,
        };
        Ok(SeenExit {
            reason: raw.reason,
            index: raw.index,
            access: raw.access,
            data: raw.data,
            site: self.where_is(op, registers.rip),
            registers: compare(op, operands),
        })
    }

    fn outcome(&self, number: usize, op: Op) -> Result<GuestOutcome, GuestError> {
        match (self.report(number), op) {
            (Report::NotReached, _) => Err(GuestError::Skipped {
                step: StepAt::new(number, op.access()),
            }),
            (Report::Done(after), _) => went_through(StepAt::new(number, op.access()), op, after),
            (
                Report::Fault {
                    operands,
                    code,
                    rip,
                },
                _,
            ) => Ok(GuestOutcome::Fault(Fault {
                site: self.where_is(op, rip),
                code,
                registers: compare(op, operands),
            })),
        }
    }

    fn where_is(&self, op: Op, rip: u64) -> Site {
        if rip == self.site(op) {
            Site::AtInstruction
        } else {
            Site::Elsewhere(rip)
        }
    }
}

/// Returns the outcome of an `op` that raised no #GP. `after` has the values of the registers after `op`.
///
/// # Errors
/// Returns [`GuestError::Registers`] if the registers cannot have these values after `op`.
pub(crate) fn went_through(
    step: StepAt,
    op: Op,
    after: Operands,
) -> Result<GuestOutcome, GuestError> {
    let Operands { rax, rcx, rdx } = after;
    match op {
        _ if !op.leaves(after) => Err(GuestError::Registers {
            step,
            rax,
            rcx,
            rdx,
        }),
        Op::Write(..) => Ok(GuestOutcome::Written),
        Op::Read(_) | Op::Time | Op::SwapGs => Ok(GuestOutcome::Value(after.value())),
    }
}

/// Compares the registers after `op` with the registers that `op` began with.
pub(crate) fn compare(op: Op, seen: Operands) -> GuestRegisters {
    if seen == op.operands() {
        GuestRegisters::Untouched
    } else {
        GuestRegisters::Changed {
            rax: seen.rax,
            rcx: seen.rcx,
            rdx: seen.rdx,
        }
    }
}

impl From<&Step> for (Op, StepReply) {
    fn from(step: &Step) -> Self {
        let op = match step.access {
            Access::Read => Op::Read(step.index),
            Access::Write => Op::Write(step.index, step.value),
        };
        (op, step.reply)
    }
}

impl From<StepReply> for msrgate_filter::Reply {
    fn from(reply: StepReply) -> Self {
        match reply {
            StepReply::Fault => Self::FAULT,
            StepReply::Value(data) => Self::value(data),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("its end"),
            Self::Msr(exit) => write!(f, "an exit for the {} of {}", exit.access, exit.index),
            Self::Debug { rip } => write!(f, "a debug exit at {rip:#x}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}
