//! The cost of an MSR exit that a gate answers, compared with an exit that a plain loop answers. The loop
//! always gives the same answer.

use kvm_ioctls::{VcpuExit, VcpuFd};
use msrgate_figures::{Batch, Figures};
use msrgate_filter::{Access, MsrIndex};
use msrgate_kvm::HostCaps;
use msrgate_kvm::bench::GuestVm;
use msrgate_kvm::gate::events::{EventOptions, Events};
use msrgate_kvm::gate::{Gate, GateOptions, Outcome, VcpuGate};
use msrgate_policy::Program;

use crate::{Failure, program};

/// An MSR whose accesses KVM handles without an exit.
const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
/// An MSR that KVM does not know.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

/// The value that a read of [`SPARE`] returns.
const ANSWER: u64 = 0x5ca1_ab1e;

/// The number of accesses in a script that the guest runs.
const ACCESSES: u32 = 2_000;

/// One side of the comparison: a VM under a filter, with the built-in guest and the code that answers its
/// exits.
struct Side {
    guest: GuestVm,
    script: Vec<(MsrIndex, Access)>,
    by: By,
}

/// The code that answers the guest's MSR exits.
enum By {
    /// A loop that always gives the same answer.
    Loop,
    /// A gate.
    Gate(Box<VcpuGate>, Events),
}

impl Side {
    /// Creates a VM, with a gate if `program` is not `None`, and checks one run of the script.
    ///
    /// # Errors
    /// Returns an error if the VM cannot be created, or if an access does not have the expected result.
    fn new(
        host: &HostCaps,
        program: Option<Program>,
        access: (MsrIndex, Access),
        value: u64,
    ) -> Result<Self, Failure> {
        let guest = GuestVm::new(host)?;
        let script = vec![access; ACCESSES as usize];
        let by = match program {
            Some(program) => {
                let events = EventOptions {
                    queue: 2 * ACCESSES as usize,
                    per_second: u32::MAX,
                    ..EventOptions::default()
                };
                let options = GateOptions::new().events(events);
                let gate = Gate::with_options(program, host, options)?;
                gate.install(&**guest.vm())?;
                let msrs = Box::new(gate.vcpu(0, guest.cpuid())?);
                let events = gate.events()?;
                By::Gate(msrs, events)
            }
            None => By::Loop,
        };
        let mut side = Self { guest, script, by };
        if let By::Gate(msrs, _) = &mut side.by {
            msrs.reset(side.guest.vcpu())?;
        }
        side.run()?;
        match side.guest.went_through(value) {
            through if through == side.script.len() => Ok(side),
            through => Err(format!("{through} of {ACCESSES} accesses to {access:?}").into()),
        }
    }

    /// Creates a VM under the filter of `program`, but without a gate: a loop answers the exits.
    fn bare(
        host: &HostCaps,
        program: &Program,
        access: (MsrIndex, Access),
    ) -> Result<Self, Failure> {
        let mut side = Self::new(host, Some(program.clone()), access, ANSWER)?;
        // The filter stays in the VM when the gate is dropped.
        side.by = By::Loop;
        side.run()?;
        Ok(side)
    }

    fn run(&mut self) -> Result<(), Failure> {
        self.guest.load(&self.script)?;
        let vcpu = self.guest.vcpu();
        match &mut self.by {
            By::Loop => answer_inline(vcpu),
            By::Gate(msrs, events) => {
                answer_by_gate(vcpu, msrs)?;
                events.drain(drop);
                Ok(())
            }
        }
    }
}

fn answer_inline(vcpu: &mut VcpuFd) -> Result<(), Failure> {
    loop {
        match vcpu.run()? {
            VcpuExit::X86Rdmsr(exit) if exit.index == SPARE.get() => {
                *exit.error = 0;
                *exit.data = ANSWER;
            }
            VcpuExit::X86Wrmsr(exit) if exit.index == SPARE.get() => *exit.error = 0,
            VcpuExit::IoOut(..) => return Ok(()),
            other => return Err(format!("the guest left with {other:?}").into()),
        }
    }
}

fn answer_by_gate(vcpu: &mut VcpuFd, msrs: &mut VcpuGate) -> Result<(), Failure> {
    loop {
        match vcpu.run()? {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => match msrs.answer(vcpu)? {
                Outcome::Resume => {}
                other => return Err(format!("the gate says {other:?}").into()),
            },
            VcpuExit::IoOut(..) => return Ok(()),
            other => return Err(format!("the guest left with {other:?}").into()),
        }
    }
}

/// Returns the program of a policy that answers accesses to [`SPARE`] itself and lets KVM handle accesses to
/// [`STAR`].
fn answering(log: &str) -> Result<Program, Failure> {
    program(&format!(
        "policy = 1\ndefault = 'deny'\nlog = '{log}'\n[msrs]\nIA32_STAR = {{ read = 'allow', write = 'allow', log = 'none' }}\n\
         0x10000 = {{ read = {{ value = {ANSWER} }}, write = 'ignore' }}\n"
    ))
}

pub(crate) fn figures(figures: &mut Figures, host: &HostCaps) -> Result<(), Failure> {
    for (name, access, log) in [
        ("gate/deflected-read", Access::Read, "none"),
        ("gate/deflected-write", Access::Write, "none"),
        ("gate/deflected-read-events", Access::Read, "all"),
        ("gate/deflected-write-events", Access::Write, "all"),
    ] {
        if !figures.wants(&format!("{name}/of-bare")) {
            continue;
        }
        let program = answering(log)?;
        let mut bare = Side::bare(host, &program, (SPARE, access))?;
        let mut gated = Side::new(host, Some(program), (SPARE, access), ANSWER)?;
        figures.cost(batch(name), || gated.run(), "bare", || bare.run())?;
    }
    let name = "gate/allowed-read";
    if figures.wants(&format!("{name}/of-unfiltered")) {
        let mut free = Side::new(host, None, (STAR, Access::Read), 0)?;
        let program = answering("none")?;
        let mut gated = Side::new(host, Some(program), (STAR, Access::Read), 0)?;
        figures.cost(batch(name), || gated.run(), "unfiltered", || free.run())?;
    }
    Ok(())
}

fn batch(name: &str) -> Batch<'_> {
    Batch {
        name,
        operations: ACCESSES,
    }
}
