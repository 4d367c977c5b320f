//! Measures the cost of `msrgate exec` and of `msrgate learn`. A VMM repeats one operation many times, alternately
//! without msrgate and behind it.

mod bench;
mod learn;

use std::path::Path;

use msrgate_figures::{Figures, TimeUnit, Unit};

use bench::{Bench, PAIRS, Ran, Result, Way, median};

fn main() -> Result<()> {
    let mut figures = Figures::from_args()?;
    let wanted = [
        "exec/run",
        "exec/read",
        "exec/ioctl",
        "exec/start",
        "exec/memory",
        learn::ACCESS,
        learn::BOOT,
    ];
    if !wanted.iter().any(|name| figures.wants(name)) {
        return Ok(());
    }
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm");
        return Ok(());
    }
    let bench = Bench::new()?;
    let ratio = |alone: &Ran, guarded: &Ran| guarded.nanoseconds / alone.nanoseconds;
    if figures.wants("exec/run") {
        let io = ["io", "100000"];
        let value = bench.pairs(io, Way::Exec("allow-all"), io, ratio)?;
        figures.value("exec/run/of-plain", value, Unit::Times)?;
    }
    if figures.wants("exec/read") {
        let value = bench.pairs(
            ["deflected", "50000"],
            Way::Exec("answers.toml"),
            ["read", "50000"],
            ratio,
        )?;
        figures.value("exec/read/of-inline", value, Unit::Times)?;
    }
    if figures.wants("exec/ioctl") {
        let ioctl = ["ioctl", "1000000"];
        let more = |alone: &Ran, guarded: &Ran| guarded.nanoseconds - alone.nanoseconds;
        let value = bench.pairs(ioctl, Way::Exec("allow-all"), ioctl, more)?;
        figures.value("exec/ioctl/more", value, Unit::Time(TimeUnit::Nanoseconds))?;
    }
    if figures.wants("exec/memory") {
        let io = ["io", "1000"];
        let more = |alone: &Ran, guarded: &Ran| (guarded.kibibytes - alone.kibibytes) / 1024.0;
        let value = bench.pairs(io, Way::Exec("allow-all"), io, more)?;
        figures.value("exec/memory/more", value, Unit::Mebibytes)?;
    }
    if figures.wants("exec/start") {
        let more = || Ok(-start(&bench, Way::Plain)? + start(&bench, Way::Exec("linux-guest"))?);
        let values: Result<Vec<f64>> = (0..PAIRS).map(|_| more()).collect();
        figures.value(
            "exec/start/more",
            median(values?),
            Unit::Time(TimeUnit::Milliseconds),
        )?;
    }
    learn::figures(&bench, &mut figures)
}

/// Returns the time in milliseconds of a VMM from its start to its end. The VMM makes a VM with a vCPU, which runs to its
/// first exit: so the library has put the policy into the VM, and has bound the vCPU.
fn start(bench: &Bench, way: Way<'_>) -> Result<f64> {
    bench.milliseconds(bench.command(way, bench.vmm()).args(["io", "1"]))
}
