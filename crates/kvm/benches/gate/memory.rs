//! The heap memory of a gate.

use allocation_counter::measure;
use msrgate_figures::{Figures, Unit};
use msrgate_kvm::bench;
use msrgate_kvm::gate::events::EventOptions;
use msrgate_kvm::gate::{Gate, GateOptions};
use msrgate_policy::Program;
use msrgate_testing::paper::{cpuid, policy};

use crate::{Failure, program};

/// The size of one event in a queue, in bytes. A queue has one slot more than its length, kept for the
/// event of a kill; that slot counts as memory of the vCPU.
const EVENT: i64 = 80;

pub(crate) fn figures(figures: &mut Figures) -> Result<(), Failure> {
    let bytes = program(&policy())?.encode();
    let mut gate = Err("nothing was made".into());
    let vm = measure(|| gate = make(&bytes));
    let gate = gate?;
    figures.value(
        "gate/memory-vm",
        kibibytes(vm.bytes_current),
        Unit::Kibibytes,
    )?;
    figures.value("gate/memory-vcpu", of_vcpu(&gate)?, Unit::Kibibytes)?;
    let most = make(&program(MOST_REGISTERS)?.encode())?;
    figures
        .value("gate/memory-vcpu-most", of_vcpu(&most)?, Unit::Kibibytes)
        .map_err(Into::into)
}

/// A policy with the largest number of emulated registers that a vCPU may have.
const MOST_REGISTERS: &str = "policy = 1\ndefault = 'deny'\n[msrs]\n\
    '0x10000..=0x103ff' = { register = { reset = 0, mask = '0xff' } }\n";

/// Returns the memory that one vCPU of this gate takes, in KiB. The vCPU's queue is one event long, and the
/// slot of that event is not included.
fn of_vcpu(gate: &Gate) -> Result<f64, Failure> {
    let mut vcpu = None;
    let seen = measure(|| vcpu = Some(gate.vcpu(0, &cpuid())));
    drop(vcpu.ok_or("no vCPU was made")??);
    Ok(kibibytes(seen.bytes_current - EVENT))
}

/// Creates a gate from a program's bytes, with queues of one event.
fn make(bytes: &[u8]) -> Result<Gate, Failure> {
    let events = EventOptions {
        queue: 1,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let program = Program::decode(bytes)?;
    Ok(bench::gate(program, options)?)
}

fn kibibytes(bytes: i64) -> f64 {
    i32::try_from(bytes).map_or(f64::INFINITY, f64::from) / 1024.0
}
