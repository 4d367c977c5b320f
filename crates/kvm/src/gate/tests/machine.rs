//! A VM behind a gate, whose vCPUs run a guest: the built-in guest in a real KVM, or the guest of the model.

use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::VmFd;
use msrgate_filter::{MsrIndex, Reply};
use msrgate_policy::{NoIncludes, Program, Source, compile, parse};

use super::model::{self, ModelGuest, ModelVm};
use crate::gate::vm::{KvmVm, VmPort};
use crate::gate::{
    AnswerError, Gate, GateOptions, HandlerRequest, Outcome, StateError, VcpuGate, Violation,
};
use crate::measure::guest::{Apic, Guest, Op, Report, Stop, VcpuNumber};
use crate::probe::HostCaps;

pub(super) const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
/// The names of the handlers that the tests' VMM has.
pub(super) const HANDLERS: [&str; 3] = ["mine", "own", "x"];

/// Makes a gate of a VMM that has the handlers [`HANDLERS`].
pub(super) fn gate_with_handlers(program: Program, host: &HostCaps) -> Gate {
    Gate::with_options(program, host, GateOptions::new().handlers(HANDLERS)).unwrap()
}

pub(super) const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
pub(super) const FMASK: MsrIndex = MsrIndex::new(0xc000_0084);
pub(super) const KERNEL_GS_BASE: MsrIndex = MsrIndex::new(0xc000_0102);
pub(super) const NOWHERE: MsrIndex = MsrIndex::new(0x1234_5678);

/// Compiles a policy's text into a program.
pub(super) fn program(text: &str) -> Program {
    let policy = parse(&Source::new("test.toml", text), &mut NoIncludes).expect(text);
    compile(policy).expect(text).into_program()
}

/// Compiles a policy that has these settings at its top and these entries for MSRs.
pub(super) fn policy(settings: &str, entries: &str) -> Program {
    program(&format!("policy = 1\n{settings}\n[msrs]\n{entries}"))
}

/// The result of an access, as the guest saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saw {
    Value(u64),
    Written,
    Fault,
}

/// The event at which a guest stopped.
pub(super) enum Came {
    /// The guest made an MSR exit.
    ToAnMsr,
    /// The guest came to the end of its script.
    ToItsEnd,
}

/// A guest that runs scripts, on a vCPU that a gate answers for.
pub(super) trait TestGuest: Send {
    /// Loads a script of at most [`Guest::LONGEST`] accesses, and puts the guest at its start.
    fn load(&mut self, script: &[Op]);

    fn resume(&mut self) -> Came;

    /// Returns the result of an access that the guest has made.
    fn saw(&self, number: usize, op: Op) -> Saw;

    fn reset(&mut self, msrs: &mut VcpuGate) -> Result<(), AnswerError>;

    fn msr_set_by_host(&mut self, msrs: &mut VcpuGate, index: MsrIndex) -> Result<(), AnswerError>;

    fn answer(&mut self, msrs: &mut VcpuGate) -> Result<Outcome, AnswerError>;

    fn finish(
        &mut self,
        msrs: &mut VcpuGate,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError>;

    fn save(&mut self, msrs: &mut VcpuGate) -> Result<Vec<u8>, StateError>;

    fn restore(&mut self, msrs: &mut VcpuGate, saved: &[u8]) -> Result<(), StateError>;
}

impl TestGuest for Guest {
    fn load(&mut self, script: &[Op]) {
        Self::load(self, script).unwrap();
    }

    fn resume(&mut self) -> Came {
        match Self::resume(self).unwrap() {
            Stop::End => Came::ToItsEnd,
            Stop::Msr(_) => Came::ToAnMsr,
            other => panic!("the guest left with {other}"),
        }
    }

    fn saw(&self, number: usize, op: Op) -> Saw {
        match (self.report(number), op) {
            (Report::Fault { .. }, _) => Saw::Fault,
            (Report::Done(_), Op::Write(..)) => Saw::Written,
            (Report::Done(after), _) => Saw::Value(after.value()),
            (Report::NotReached, _) => panic!("step {number} was not reached"),
        }
    }

    fn reset(&mut self, msrs: &mut VcpuGate) -> Result<(), AnswerError> {
        msrs.reset(self.vcpu_mut())
    }

    fn msr_set_by_host(&mut self, msrs: &mut VcpuGate, index: MsrIndex) -> Result<(), AnswerError> {
        msrs.msr_set_by_host(self.vcpu_mut(), index)
    }

    fn answer(&mut self, msrs: &mut VcpuGate) -> Result<Outcome, AnswerError> {
        msrs.answer(self.vcpu_mut())
    }

    fn finish(
        &mut self,
        msrs: &mut VcpuGate,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        msrs.finish(self.vcpu_mut(), asked, reply)
    }

    fn save(&mut self, msrs: &mut VcpuGate) -> Result<Vec<u8>, StateError> {
        msrs.save(self.vcpu_mut())
    }

    fn restore(&mut self, msrs: &mut VcpuGate, saved: &[u8]) -> Result<(), StateError> {
        msrs.restore(self.vcpu_mut(), saved)
    }
}

/// A guest of a real KVM or of the model.
pub(super) type AnyGuest = Box<dyn TestGuest>;

impl TestGuest for AnyGuest {
    fn load(&mut self, script: &[Op]) {
        (**self).load(script);
    }

    fn resume(&mut self) -> Came {
        (**self).resume()
    }

    fn saw(&self, number: usize, op: Op) -> Saw {
        (**self).saw(number, op)
    }

    fn reset(&mut self, msrs: &mut VcpuGate) -> Result<(), AnswerError> {
        (**self).reset(msrs)
    }

    fn msr_set_by_host(&mut self, msrs: &mut VcpuGate, index: MsrIndex) -> Result<(), AnswerError> {
        (**self).msr_set_by_host(msrs, index)
    }

    fn answer(&mut self, msrs: &mut VcpuGate) -> Result<Outcome, AnswerError> {
        (**self).answer(msrs)
    }

    fn finish(
        &mut self,
        msrs: &mut VcpuGate,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        (**self).finish(msrs, asked, reply)
    }

    fn save(&mut self, msrs: &mut VcpuGate) -> Result<Vec<u8>, StateError> {
        (**self).save(msrs)
    }

    fn restore(&mut self, msrs: &mut VcpuGate, saved: &[u8]) -> Result<(), StateError> {
        (**self).restore(msrs, saved)
    }
}

/// A VM with some vCPUs, the VM's gate, and the vCPUs' `VcpuGate`s.
pub(super) struct Machine<G = Guest> {
    pub(super) gate: Arc<Gate>,
    pub(super) vcpus: Vec<Vcpu<G>>,
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
}

/// A vCPU and its `VcpuGate`.
pub(super) struct Vcpu<G = Guest> {
    pub(super) guest: G,
    pub(super) msrs: VcpuGate,
    /// The number of MSR exits that the vCPU has made.
    pub(super) exits: usize,
}

impl Machine {
    /// Makes a VM in a real KVM, with its vCPUs and its gate. Returns `None`, and prints a message, on a
    /// host without KVM.
    pub(super) fn new(program: Program, count: usize) -> Option<Self> {
        Self::with_options(program, count, GateOptions::new())
    }

    pub(super) fn with_options(
        program: Program,
        count: usize,
        options: GateOptions,
    ) -> Option<Self> {
        Self::in_kvm(program, count, options, |vm| {
            Box::new(KvmVm::new(vm).unwrap())
        })
    }

    /// Makes a VM in a real KVM, with its vCPUs and its gate. The caller makes the
    /// [`VmPort`](crate::gate::vm::VmPort) through which the gate reaches the VM.
    pub(super) fn in_kvm(
        program: Program,
        count: usize,
        options: GateOptions,
        port: impl FnOnce(&VmFd) -> Box<dyn VmPort>,
    ) -> Option<Self> {
        let host = HostCaps::for_test()?;
        let kvm = host.open().unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let first = Guest::new(&host, Apic::Absent).unwrap();
        let vm = Arc::clone(first.vm());
        let others = VcpuNumber::others().take(count - 1);
        let others = others.map(|number| Guest::in_vm(Arc::clone(&vm), number, &cpuid).unwrap());
        let guests = std::iter::once(first).chain(others).collect();
        let gate = Gate::with_options(program, &host, options.handlers(HANDLERS)).unwrap();
        gate.install_in(port(&vm)).unwrap();
        Some(Self::behind(gate, guests, cpuid.as_slice().to_vec()))
    }
}

impl Machine<ModelGuest> {
    /// Makes a VM of the model, with its vCPUs and its gate. Its guests have the CPUID `cpuid`.
    pub(super) fn of_model(
        program: Program,
        count: usize,
        options: GateOptions,
        cpuid: Vec<kvm_cpuid_entry2>,
    ) -> Self {
        let vm = ModelVm::new();
        let guests = (0..count).map(|_| ModelGuest::new(&vm.vm)).collect();
        Self::in_model(program, Box::new(vm), guests, options, cpuid)
    }

    /// Makes a gate for a given VM of the model, and the `VcpuGate`s of its guests.
    pub(super) fn in_model(
        program: Program,
        vm: Box<dyn VmPort>,
        guests: Vec<ModelGuest>,
        options: GateOptions,
        cpuid: Vec<kvm_cpuid_entry2>,
    ) -> Self {
        let options = options.handlers(HANDLERS);
        let gate = Gate::with_options(program, &HostCaps::on_paper(), options).unwrap();
        gate.install_in(vm).unwrap();
        Self::behind(gate, guests, cpuid)
    }
}

impl<G: TestGuest> Machine<G> {
    /// Returns the saved state of the first vCPU after it has pinned `STAR`.
    pub(super) fn first_saved(mut self) -> Vec<u8> {
        let vcpu = self.first();
        vcpu.run(&[Op::Write(STAR, 0x1000)]);
        vcpu.guest.save(&mut vcpu.msrs).unwrap()
    }

    fn behind(gate: Gate, guests: Vec<G>, cpuid: Vec<kvm_cpuid_entry2>) -> Self {
        let vcpu = |(mut guest, id): (G, u32)| {
            let mut msrs = gate.vcpu(id, &cpuid).unwrap();
            guest.reset(&mut msrs).unwrap();
            Vcpu {
                guest,
                msrs,
                exits: 0,
            }
        };
        let vcpus = guests.into_iter().zip(0..).map(vcpu).collect();
        Self {
            gate: Arc::new(gate),
            vcpus,
            cpuid,
        }
    }

    pub(super) fn first(&mut self) -> &mut Vcpu<G> {
        &mut self.vcpus[0]
    }
}

impl<G: TestGuest + 'static> Machine<G> {
    pub(super) fn any(self) -> Machine<AnyGuest> {
        let vcpu = |vcpu: Vcpu<G>| Vcpu {
            guest: Box::new(vcpu.guest) as AnyGuest,
            msrs: vcpu.msrs,
            exits: vcpu.exits,
        };
        Machine {
            gate: self.gate,
            vcpus: self.vcpus.into_iter().map(vcpu).collect(),
            cpuid: self.cpuid,
        }
    }
}

/// Runs a test body on the model and, if the host has one, on a real KVM.
pub(super) fn on_each(
    program: &Program,
    count: usize,
    options: &GateOptions,
    body: impl Fn(&mut Machine<AnyGuest>),
) {
    let model = Machine::of_model(program.clone(), count, options.clone(), model::cpuid());
    body(&mut model.any());
    if let Some(kvm) = Machine::with_options(program.clone(), count, options.clone()) {
        body(&mut kvm.any());
    }
}

impl<G: TestGuest> Vcpu<G> {
    /// Runs a script of accesses and returns their results. Every handler replies with 0x5a.
    pub(super) fn run(&mut self, script: &[Op]) -> Vec<Saw> {
        self.run_to_kill(script).expect("no violation")
    }

    /// Runs a script of accesses, up to the first one that the policy kills.
    pub(super) fn run_to_kill(&mut self, script: &[Op]) -> Result<Vec<Saw>, Violation> {
        let mut saw = Vec::new();
        for part in script.chunks(Guest::LONGEST) {
            self.guest.load(part);
            while let Some(outcome) = self.step() {
                match outcome {
                    Outcome::Resume => {}
                    Outcome::Handler(asked) => {
                        let reply = Reply::value(0x5a);
                        self.guest.finish(&mut self.msrs, asked, reply).unwrap();
                    }
                    Outcome::Kill(violation) => return Err(violation),
                }
            }
            saw.extend((0..part.len()).map(|number| self.saw(number, part[number])));
        }
        Ok(saw)
    }

    /// Runs the guest to its next MSR exit, and lets the gate answer that exit; `None` at the end of the
    /// script.
    pub(super) fn step(&mut self) -> Option<Outcome> {
        match self.guest.resume() {
            Came::ToItsEnd => None,
            Came::ToAnMsr => {
                self.exits += 1;
                Some(self.guest.answer(&mut self.msrs).unwrap())
            }
        }
    }

    /// Returns the result of one access of the last script.
    pub(super) fn saw(&self, number: usize, op: Op) -> Saw {
        self.guest.saw(number, op)
    }
}
