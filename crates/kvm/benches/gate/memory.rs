//! What a gate holds, of the heap.

use allocation_counter::measure;
use msrgate_figures::{Figures, Unit};
use msrgate_kvm::bench::{cpuid, host_on_paper, policy};
use msrgate_kvm::gate::events::EventOptions;
use msrgate_kvm::gate::{Gate, GateOptions};
use msrgate_policy::Program;

use crate::{Failure, program};

/// What an event takes in a queue. The place that is kept for a kill's is there whatever is asked for.
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
    let mut vcpu = None;
    let seen = measure(|| vcpu = Some(gate.vcpu(0, &cpuid())));
    let beyond_queue = seen.bytes_current - EVENT;
    figures.value("gate/memory-vcpu", kibibytes(beyond_queue), Unit::Kibibytes)?;
    vcpu.ok_or("no vCPU was made")??;
    Ok(())
}

/// From a program's bytes, with queues of one event.
fn make(bytes: &[u8]) -> Result<Gate, Failure> {
    let events = EventOptions {
        queue: 1,
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    let program = Program::decode(bytes)?;
    Ok(Gate::with_options(program, &host_on_paper(), options)?)
}

fn kibibytes(bytes: i64) -> f64 {
    i32::try_from(bytes).map_or(f64::INFINITY, f64::from) / 1024.0
}
