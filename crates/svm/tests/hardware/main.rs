//! Tests of the hypervisor on QEMU's emulator, which executes SVM's instructions. Without QEMU they are skipped, unless
//! `MSRGATE_REQUIRE` has `lab`.

mod model;
mod msrs;
mod refusals;

use std::env;
use std::path::Path;

use msrgate_emulated::{END, Ended, Machine, Outcome, Ran, Step, is_qemu_there, kernel, outcomes};
use msrgate_program::Program;

/// The hypervisor's image.
fn hypervisor() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_msrgate-svm"))
}

/// Returns true if there is a QEMU.
fn has_qemu() -> bool {
    let is_there = is_qemu_there();
    let required = env::var("MSRGATE_REQUIRE").unwrap_or_default();
    assert!(
        is_there || !required.split(',').any(|one| one == "lab"),
        "MSRGATE_REQUIRE has lab, but there is no qemu-system-x86_64"
    );
    if !is_there {
        eprintln!("SKIPPED: there is no qemu-system-x86_64");
    }
    is_there
}

/// A machine whose guest executes these steps under `program`.
fn machine(program: &Program, steps: &[Step]) -> Machine {
    Machine::new(hypervisor(), program, &kernel(steps))
}

/// Runs a machine whose guest executes all its steps.
fn completed(machine: &Machine) -> (Vec<Outcome>, Ran) {
    let ran = machine.run().unwrap();
    let said = String::from_utf8_lossy(&ran.serial);
    assert_eq!(ran.ended, Ended::Code(END), "{}{said}", ran.debug);
    (outcomes(&ran.serial).expect("the guest sends results"), ran)
}

/// Runs these steps under `program`.
fn steps(program: &Program, steps: &[Step]) -> (Vec<Outcome>, Ran) {
    let (outcomes, ran) = completed(&machine(program, steps));
    assert_eq!(outcomes.len(), steps.len(), "{}", ran.debug);
    (outcomes, ran)
}
