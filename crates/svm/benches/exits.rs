//! Benchmark of the instructions that the hypervisor executes for an MSR access that exits.
//!
//! QEMU's emulator counts instructions (`-icount shift=0`), and the time-stamp counter follows that count. The
//! guest measures one RDMSR with it. A register that the processor reads without an exit gives the cost of
//! the measurement itself, which is subtracted. The figures do not depend on the machine or on its load.

use std::io;
use std::path::Path;

use msrgate_emulated::{Machine, Outcome, Step, is_qemu_there, kernel, outcomes};
use msrgate_figures::{Figures, Unit};
use msrgate_filter::{MsrIndex, Verdict};
use msrgate_program::{Program, ProgramBuilder};

/// A register whose reads the measured program answers with a value.
const ANSWERED: u32 = 0x8b;
/// EFER, which lies in the VMCB: its reads exit although the program allows them.
const ALLOWED: u32 = 0xc000_0080;
/// A register whose reads pass through.
const PASSED: u32 = 0xc000_0082;

fn main() -> io::Result<()> {
    let mut figures = Figures::from_args()?;
    let names = ["svm/exit/allowed", "svm/exit/value"];
    if !names.iter().any(|name| figures.wants(name)) {
        return Ok(());
    }
    if !is_qemu_there() {
        eprintln!("SKIPPED: svm/: there is no qemu-system-x86_64");
        return Ok(());
    }
    let program = ProgramBuilder::new(Verdict::Allow)
        .value(MsrIndex::new(ANSWERED), 7)
        .build()
        .map_err(io::Error::other)?;
    let [allowed, value] = instructions(&program)?;
    figures.value(names[0], allowed, Unit::Instructions)?;
    figures.value(names[1], value, Unit::Instructions)
}

/// Returns the instructions of an exit for [`ALLOWED`] and for [`ANSWERED`]. Each register is read twice, and
/// the second read counts: the emulator has then translated all code.
fn instructions(program: &Program) -> io::Result<[f64; 2]> {
    let read = [PASSED, ALLOWED, ANSWERED].map(Step::TimedRead);
    let steps = [read, read].concat();
    let hypervisor = Path::new(env!("CARGO_BIN_EXE_msrgate-svm"));
    let ran = Machine::new(hypervisor, program, &kernel(&steps))
        .options(&["-icount", "shift=0"])
        .run()?;
    match outcomes(&ran.serial).as_deref() {
        Some(
            [
                ..,
                Outcome::Done(passed),
                Outcome::Done(allowed),
                Outcome::Done(value),
            ],
        ) => Ok([allowed, value].map(|exits| more(*exits, *passed))),
        _ => Err(io::Error::other(format!("the guest failed: {}", ran.debug))),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "there are fewer than 2^53 instructions"
)]
fn more(exits: u64, passed: u64) -> f64 {
    exits.saturating_sub(passed) as f64
}
