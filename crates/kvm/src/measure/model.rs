//! The backend with `msrgate-filter`'s model of KVM, for machines without KVM and for comparisons with a
//! real one.

use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
use msrgate_filter::{Capability, Exit, Gprs, Instruction, Registers, Revision, RunExit, Vcpu, Vm};

use crate::errno::CallErrno;
use crate::exit::{RawReason, RawReasons};
use crate::measure::backend::{Backend, BackendKind};
use crate::measure::guest::{GuestError, Op, Operands, StepAt, compare, went_through};
use crate::measure::observed::{Fault, GuestOutcome, Observed, SeenExit, Site, Step, StepReply};
use crate::sys::raw::{RawBitmap, RawFilter};

/// A VM of the model of KVM, with one vCPU. `R` holds the registers that an access reaches if the
/// filter allows it.
#[derive(Debug)]
pub struct ModelBackend<R> {
    vm: Vm,
    vcpu: Vcpu<R>,
}

impl<R: Registers> ModelBackend<R> {
    /// Creates a VM that behaves as KVM of `revision` does.
    #[must_use]
    pub fn new(revision: Revision, registers: R) -> Self {
        let vm = Vm::new(revision);
        let vcpu = vm.create_vcpu(registers);
        Self { vm, vcpu }
    }

    fn step(&mut self, at: StepAt, op: Op, reply: StepReply) -> Result<Observed, GuestError> {
        let instruction = match op {
            Op::Write(..) => Instruction::Wrmsr,
            Op::Read(_) | Op::Time | Op::SwapGs => Instruction::Rdmsr,
        };
        let before = op.operands();
        self.vcpu.set_gprs(Gprs {
            rax: before.rax,
            rcx: before.rcx,
            rdx: before.rdx,
            rip: SITE,
        });
        let mut exit = None;
        loop {
            let outcome = match self.vcpu.run(instruction) {
                RunExit::Msr(found) if exit.is_none() => {
                    exit = Some(self.seen(op, &found));
                    self.vcpu.reply(reply.into());
                    continue;
                }
                RunExit::Retired => went_through(at, op, self.operands())?,
                RunExit::GeneralProtection { rip } => GuestOutcome::Fault(Fault {
                    site: where_is(rip),
                    code: 0,
                    registers: compare(op, self.operands()),
                }),
                RunExit::Msr(_) | RunExit::Debug | RunExit::Interrupted => {
                    return Err(GuestError::Twice { step: at });
                }
            };
            return Ok(Observed { outcome, exit });
        }
    }

    fn seen(&self, op: Op, exit: &Exit) -> SeenExit {
        SeenExit {
            reason: RawReason::of(self.vm.revision(), exit.reason),
            index: exit.index,
            access: exit.access,
            data: exit.data,
            site: where_is(self.vcpu.gprs().rip),
            registers: compare(op, self.operands()),
        }
    }

    fn operands(&self) -> Operands {
        let Gprs { rax, rcx, rdx, .. } = self.vcpu.gprs();
        Operands { rax, rcx, rdx }
    }
}

/// The address of the model's only instruction.
const SITE: u64 = 0x1000;

fn where_is(rip: u64) -> Site {
    match rip {
        SITE => Site::AtInstruction,
        _ => Site::Elsewhere(rip),
    }
}

impl<R: Registers> Backend for ModelBackend<R> {
    fn kind(&self) -> BackendKind {
        BackendKind::Model
    }

    fn set_reasons(&mut self, mask: RawReasons) -> Result<(), CallErrno> {
        let capability = Capability::user_space_msr(self.vm.revision());
        self.vm
            .enable_cap(capability, mask.get())
            .map_err(CallErrno::Known)
    }

    fn set_filter(&mut self, request: &RawFilter) -> Result<(), CallErrno> {
        let width = CallerWidth::Bits64;
        let (request, mut memory) = lay_out(request);
        // Every address of a bitmap fits into a pointer of 64 bits, so encoding does not fail.
        let argument = request.encode(width).unwrap_or_default();
        memory.push(Segment {
            start: ARGUMENT,
            bytes: &argument,
        });
        self.vm
            .set_msr_filter(width, memory.as_slice(), ARGUMENT)
            .map_err(|error| CallErrno::Known(error.errno()))
    }

    fn run(&mut self, script: &[Step]) -> Result<Vec<Observed>, GuestError> {
        let steps = script.iter().enumerate();
        steps
            .map(|(number, step)| {
                let (op, reply): (Op, StepReply) = step.into();
                self.step(StepAt::new(number, op.access()), op, reply)
            })
            .collect()
    }
}

/// The address of `struct kvm_msr_filter` in the memory of the model's caller. Address 0 stays unmapped.
const ARGUMENT: UserAddress = UserAddress::new(0x1000);

/// Places each bitmap far from all other bitmaps in the model's memory, so that the bytes after a bitmap
/// cannot be read.
fn lay_out(raw: &RawFilter) -> (Request, Vec<Segment<'_>>) {
    let mut memory = Vec::new();
    let mut places = (1_u64..).map(|place| UserAddress::new(place << 32));
    let request = raw.map_bitmaps(|bitmap| {
        let start = places.next().unwrap_or_default();
        if let RawBitmap::Bytes(bytes) = bitmap {
            memory.push(Segment { start, bytes });
        }
        start
    });
    (request, memory)
}
