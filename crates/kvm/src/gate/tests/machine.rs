//! A VM behind a gate, whose vCPUs run the built-in guest.

use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use msrgate_filter::{MsrIndex, Reply};
use msrgate_policy::{NoIncludes, Program, Source, compile, parse};

use crate::gate::{Gate, GateOptions, Outcome, VcpuGate, Violation};
use crate::guest::{Apic, Guest, Op, Report, Stop, VcpuNumber};
use crate::probe::HostCaps;

pub(super) const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
pub(super) const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
pub(super) const FMASK: MsrIndex = MsrIndex::new(0xc000_0084);
pub(super) const KERNEL_GS_BASE: MsrIndex = MsrIndex::new(0xc000_0102);
pub(super) const NOWHERE: MsrIndex = MsrIndex::new(0x1234_5678);

/// The program of a policy.
pub(super) fn program(text: &str) -> Program {
    let policy = parse(&Source::new("test.toml", text), &mut NoIncludes).expect(text);
    Program::of(&compile(policy).expect(text))
}

/// With these settings and entries.
pub(super) fn policy(settings: &str, entries: &str) -> Program {
    program(&format!("policy = 1\n{settings}\n[msrs]\n{entries}"))
}

/// What a guest saw of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saw {
    Value(u64),
    Written,
    Fault,
}

/// A VM with some vCPUs, and their parts of its gate.
pub(super) struct Machine {
    pub(super) gate: Arc<Gate>,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) cpuid: CpuId,
}

/// A vCPU and its part of the gate.
pub(super) struct Vcpu {
    pub(super) guest: Guest,
    pub(super) msrs: VcpuGate,
    /// Exits that came for MSRs.
    pub(super) exits: usize,
}

impl Machine {
    /// `None`, with a word about it, where this machine has no KVM.
    pub(super) fn new(program: Program, count: usize) -> Option<Self> {
        Self::with_options(program, count, GateOptions::new())
    }

    pub(super) fn with_options(
        program: Program,
        count: usize,
        options: GateOptions,
    ) -> Option<Self> {
        let host = HostCaps::for_test()?;
        let cpuid = host.open().unwrap();
        let cpuid = cpuid.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let first = Guest::new(&host, Apic::Absent).unwrap();
        let vm = Arc::clone(first.vm());
        let others = VcpuNumber::others().take(count - 1);
        let others = others.map(|number| Guest::in_vm(Arc::clone(&vm), number, &cpuid).unwrap());
        let guests: Vec<_> = std::iter::once(first).chain(others).collect();
        let gate = Gate::with_options(program, &host, options).unwrap();
        gate.install(&*vm).unwrap();
        let vcpu = |(mut guest, id): (Guest, u32)| {
            let mut msrs = gate.vcpu(id, &cpuid).unwrap();
            msrs.reset(guest.vcpu_mut()).unwrap();
            Vcpu {
                guest,
                msrs,
                exits: 0,
            }
        };
        let vcpus = guests.into_iter().zip(0..).map(vcpu).collect();
        Some(Self {
            gate: Arc::new(gate),
            vcpus,
            cpuid,
        })
    }

    pub(super) fn first(&mut self) -> &mut Vcpu {
        &mut self.vcpus[0]
    }
}

impl Vcpu {
    /// Runs accesses; whatever the policy calls a handler answers with 0x5a.
    pub(super) fn run(&mut self, script: &[Op]) -> Vec<Saw> {
        self.run_to_kill(script).expect("no violation")
    }

    /// The same, to the access that ends the call.
    pub(super) fn run_to_kill(&mut self, script: &[Op]) -> Result<Vec<Saw>, Violation> {
        let mut saw = Vec::new();
        for part in script.chunks(Guest::LONGEST) {
            self.guest.load(part).unwrap();
            while let Some(outcome) = self.step() {
                match outcome {
                    Outcome::Resume => {}
                    Outcome::Handler(asked) => {
                        let vcpu = self.guest.vcpu_mut();
                        self.msrs.finish(vcpu, asked, Reply::value(0x5a)).unwrap();
                    }
                    Outcome::Kill(violation) => return Err(violation),
                }
            }
            saw.extend((0..part.len()).map(|number| self.saw(number, part[number])));
        }
        Ok(saw)
    }

    /// Runs to the next exit for an MSR, and has the gate answer it; `None` at the end.
    pub(super) fn step(&mut self) -> Option<Outcome> {
        match self.guest.resume().unwrap() {
            Stop::End => None,
            Stop::Msr(_) => {
                self.exits += 1;
                Some(self.msrs.answer(self.guest.vcpu_mut()).unwrap())
            }
            other => panic!("the guest left with {other}"),
        }
    }

    /// What the guest saw of one step of what it ran last.
    pub(super) fn saw(&self, number: usize, op: Op) -> Saw {
        match (self.guest.report(number), op) {
            (Report::Fault { .. }, _) => Saw::Fault,
            (Report::Done(_), Op::Write(..)) => Saw::Written,
            (Report::Done(after), _) => Saw::Value(after.value()),
            (Report::NotReached, _) => panic!("step {number} was not reached"),
        }
    }
}
