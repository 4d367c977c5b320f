//! The time that a vCPU waits at its first access to an MSR, for which the gate has to open the kernel's
//! filter.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use msrgate_figures::{Figures, TimeUnit, Unit};
use msrgate_filter::{Access, MsrIndex};
use msrgate_kvm::HostCaps;
use msrgate_kvm::bench::GuestVm;
use msrgate_kvm::gate::{Gate, Outcome, VcpuGate};
use msrgate_kvm::sys::{raw_filter, set_filter_raw};
use msrgate_policy::Program;

use crate::{Failure, program};

/// The number of rounds. Each has a new VM, so all its accesses are first accesses again.
const ROUNDS: usize = 12;

/// The MSRs that the guest reads in a round. KVM knows each of them, and one filter has room for all of
/// them.
const TOUCHED: [u32; 8] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

/// The number of calls of `KVM_X86_SET_MSR_FILTER` in a round.
const SETS: u32 = 16;

fn traced() -> Result<Program, Failure> {
    program("policy = 1\ndefault = 'allow'\nlog = 'first'\n[msrs]\n")
}

pub(crate) fn figures(figures: &mut Figures, host: &HostCaps) -> Result<(), Failure> {
    if !figures.wants("gate/first-touch/of-set-call") {
        return Ok(());
    }
    let (mut alone, mut at_once, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(wait(host, Pace::Apart)?);
        at_once.push(wait(host, Pace::AtOnce)?);
        calls.push(set_call(host)?);
    }
    let call = median(calls);
    figures.value("gate/set-call-under-load", microseconds(call), MICROSECONDS)?;
    for (name, waits) in [
        ("gate/first-touch", alone),
        ("gate/first-touch-at-once", at_once),
    ] {
        let wait = median(waits);
        figures.value(name, microseconds(wait), MICROSECONDS)?;
        let ratio = wait.as_secs_f64() / call.as_secs_f64();
        figures.value(&format!("{name}/of-set-call"), ratio, Unit::Times)?;
    }
    Ok(())
}

const MICROSECONDS: Unit = Unit::Time(TimeUnit::Microseconds);

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The time that passes between two accesses of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// The kernel has finished with the filter for one access before the next access comes.
    Apart,
    /// There is no pause: each access comes while the kernel is still setting the filter for the access
    /// before.
    AtOnce,
}

/// The time that the kernel gets to finish its work on a filter.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns the time of a first access, minus the time of the same access when it is repeated.
fn wait(host: &HostCaps, pace: Pace) -> Result<Duration, Failure> {
    let mut guest = GuestVm::new(host)?;
    let gate = Gate::new(traced()?, host)?;
    gate.install(&**guest.vm())?;
    let mut msrs = gate.vcpu(0, guest.cpuid())?;
    msrs.reset(guest.vcpu())?;
    let script = TOUCHED.map(|index| (MsrIndex::new(index), Access::Read));
    let length = match pace {
        Pace::Apart => 1,
        Pace::AtOnce => script.len(),
    };
    let mut sum = Duration::ZERO;
    for part in script.chunks(length) {
        thread::sleep(PAUSE);
        let first = pass(&mut guest, &mut msrs, part)?;
        thread::sleep(PAUSE);
        sum += first.saturating_sub(pass(&mut guest, &mut msrs, part)?);
    }
    Ok(sum / u32::try_from(script.len())?)
}

/// Returns the time that a guest takes for the accesses of a script.
fn pass(
    guest: &mut GuestVm,
    msrs: &mut VcpuGate,
    accesses: &[(MsrIndex, Access)],
) -> Result<Duration, Failure> {
    guest.load(accesses)?;
    let vcpu = guest.vcpu();
    let start = Instant::now();
    loop {
        match vcpu.run()? {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => match msrs.answer(vcpu)? {
                Outcome::Resume => {}
                other => return Err(format!("the gate says {other:?}").into()),
            },
            VcpuExit::IoOut(..) => return Ok(start.elapsed()),
            other => return Err(format!("the guest left with {other:?}").into()),
        }
    }
}

/// Returns the average time of one `KVM_X86_SET_MSR_FILTER`, when [`SETS`] such calls follow each other
/// while the VM's guest makes accesses without a pause.
fn set_call(host: &HostCaps) -> Result<Duration, Failure> {
    let mut guest = GuestVm::new(host)?;
    let vm = std::sync::Arc::clone(guest.vm());
    let filter =
        program("policy = 1\ndefault = 'deny'\nlog = 'none'\n[msrs]\n'@syscall' = 'rw'\n")?;
    let filter = raw_filter(filter.variants()[0].filter());
    let is_over = AtomicBool::new(false);
    let script = vec![(MsrIndex::new(TOUCHED[3]), Access::Read); 1_000];
    thread::scope(|scope| {
        let busy = scope.spawn(|| -> Result<(), String> {
            while !is_over.load(Ordering::Relaxed) {
                guest.load(&script).map_err(|error| error.to_string())?;
                match guest.vcpu().run().map_err(|error| error.to_string())? {
                    VcpuExit::IoOut(..) => {}
                    other => return Err(format!("the guest left with {other:?}")),
                }
            }
            Ok(())
        });
        let start = Instant::now();
        let mut outcome = Ok(());
        for _ in 0..SETS {
            outcome = outcome.and(set_filter_raw(&*vm, &filter));
        }
        let elapsed = start.elapsed();
        is_over.store(true, Ordering::Relaxed);
        match busy.join() {
            Ok(ran) => ran?,
            Err(_) => return Err("the vCPU's thread panicked".into()),
        }
        outcome?;
        Ok(elapsed / SETS)
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
