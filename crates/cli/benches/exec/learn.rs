//! The cost of `msrgate learn`.

use std::path::Path;
use std::process::Command;

use msrgate_figures::{Figures, Unit};

use crate::bench::{Bench, Result, Way, median};

/// The time for which a vCPU waits at a first access, in times of a call that sets a filter. Each first access needs a
/// filter that is open for it.
pub(crate) const ACCESS: &str = "learn/access/of-set";
/// The time from the start of QEMU to the end of its firmware, in times of that without msrgate.
pub(crate) const BOOT: &str = "learn/boot/of-plain";

const QEMU: &str = "qemu-system-x86_64";

/// The number of pairs of boots, each of which takes seconds.
const BOOTS: usize = 9;

/// A boot sector that ends QEMU at once: cli; mov al, 0x10; out 0xf4, al.
const SECTOR: [u8; 5] = [0xfa, 0xb0, 0x10, 0xe6, 0xf4];

pub(crate) fn figures(bench: &Bench, figures: &mut Figures) -> Result<()> {
    if figures.wants(ACCESS) {
        let ratio = |set: &crate::Ran, touch: &crate::Ran| touch.nanoseconds / set.nanoseconds;
        let value = bench.pairs(["set", "64"], Way::Learn, ["touch", "128"], ratio)?;
        figures.value(ACCESS, value, Unit::Times)?;
    }
    if figures.wants(BOOT) {
        if Command::new(QEMU).arg("-version").output().is_err() {
            eprintln!("SKIPPED: {BOOT}: there is no {QEMU}");
            return Ok(());
        }
        let mut sector = SECTOR.to_vec();
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        std::fs::write(bench.path("sector"), sector)?;
        let boot = |way| bench.milliseconds(machine(&mut bench.command(way, Path::new(QEMU))));
        let ratio = |_| {
            let plain = boot(Way::Plain)?;
            Ok(boot(Way::Learn)? / plain)
        };
        let values: Result<Vec<f64>> = (0..BOOTS).map(ratio).collect();
        figures.value(BOOT, median(values?), Unit::Times)?;
    }
    Ok(())
}

/// Adds the arguments of a machine that runs its firmware, and then the sector.
fn machine(command: &mut Command) -> &mut Command {
    command.args([
        "-accel",
        "kvm",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
    ]);
    command.args(["-m", "16", "-drive", "file=sector,format=raw"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
}
