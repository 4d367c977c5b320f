//! The number of instructions and of allocations that a gate needs to answer one exit.

use std::hint::black_box;
use std::sync::Arc;

use allocation_counter::measure;
use msrgate_figures::{Counted, Figures, Unit};
use msrgate_kvm::bench::{self, PaperVcpu};
use msrgate_kvm::gate::events::EventOptions;
use msrgate_kvm::gate::{Gate, GateOptions, VcpuGate};
use msrgate_policy::Cpu;
use msrgate_policy::answer::{Responder, VcpuState};
use msrgate_testing::paper::{Case, answer, cases, policy, prepare, vcpu};

use crate::{Failure, program};

/// The part of a benchmark case whose instructions are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The preparation of the vCPU, and the gate's answer after it.
    Whole,
    /// The preparation of the vCPU alone.
    Before,
    /// The decision of the responder alone.
    Respond,
}

impl Part {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Whole, "whole"),
        (Self::Before, "before"),
        (Self::Respond, "respond"),
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Before => "before",
            Self::Respond => "respond",
        }
    }

    const fn within(self) -> &'static [&'static str] {
        match self {
            Self::Whole | Self::Before => &WITHIN,
            Self::Respond => &["*Responder*respond*"],
        }
    }
}

/// Name patterns, for callgrind, of the functions whose instructions count: those that turn an exit's fields
/// into the reply. The functions that stand in for the kernel match no pattern.
const WITHIN: [&str; 2] = ["*VcpuGate*answer_at*", "*VcpuGate*finish_at*"];

/// Creates a gate without a real VM. Its queue has room for all events, and its limit lets all events pass.
/// In the case `kill` the limit is 0 events per second: a policy cannot switch off the event of a kill, and
/// the count is to be without that event.
fn gate(case: &Case) -> Result<Gate, Failure> {
    let events = EventOptions {
        queue: 1 << 15,
        per_second: if case.name == "kill" { 0 } else { u32::MAX },
        ..EventOptions::default()
    };
    let options = GateOptions::new().events(events);
    Ok(bench::gate(program(&policy())?, options)?)
}

/// Runs one part of one case `asked.runs` times, in a process whose instructions callgrind counts.
/// `asked.name` is the name of the case, a space, and the word for the part.
pub(crate) fn run(asked: &Counted) -> Result<(), Failure> {
    let (name, part) = asked.name.split_once(' ').ok_or("no part")?;
    let case = cases().into_iter().find(|case| case.name == name);
    let case = case.ok_or("no such case")?;
    let part = Part::ALL.into_iter().find(|(_, word)| *word == part);
    let (part, _) = part.ok_or("no such part")?;
    let gate = gate(&case)?;
    let (mut msrs, mut vcpu) = vcpu(&gate)?;
    // The first access of a kind reserves a slot of the counters, which is not part of an answer's cost.
    once(&mut msrs, &mut vcpu, &case)?;
    match part {
        Part::Whole => {
            for _ in 0..asked.runs {
                once(&mut msrs, &mut vcpu, &case)?;
            }
        }
        Part::Before => {
            for _ in 0..asked.runs {
                prepare(&mut msrs, &mut vcpu, black_box(&case));
            }
        }
        Part::Respond => respond(&case, asked.runs)?,
    }
    Ok(())
}

fn once(msrs: &mut VcpuGate, vcpu: &mut PaperVcpu, case: &Case) -> Result<(), Failure> {
    prepare(msrs, vcpu, black_box(case));
    black_box(answer(msrs, vcpu, black_box(case))?);
    Ok(())
}

fn respond(case: &Case, runs: u64) -> Result<(), Failure> {
    let program = Arc::new(program(&policy())?);
    let cpu = Cpu::from_cpuid([0x756e_6547, 0x4965_6e69, 0x6c65_746e], 0x606a6);
    let responder = Responder::new(program, &cpu)?;
    let mut state = VcpuState::new(&responder, |_| true);
    for _ in 0..runs {
        black_box(responder.respond(black_box(&mut state), black_box(&case.exit)));
    }
    Ok(())
}

pub(crate) fn figures(figures: &mut Figures) -> Result<(), Failure> {
    for case in cases() {
        let name = format!("gate/answer/{}", case.name);
        if !figures.wants(&name) {
            continue;
        }
        let count = |part: Part| {
            Counted::instructions(&format!("{} {}", case.name, part.word()), part.within())
        };
        let Some(decision) = count(Part::Respond)? else {
            eprintln!("SKIPPED: {name}: there is no valgrind. Install the package valgrind.");
            continue;
        };
        figures.value(&format!("{name}/decision"), decision, Unit::Instructions)?;
        // The gate makes system calls to let a first access through, so for that case only the responder's
        // decision is counted.
        if case.name != "first-touch"
            && let (Some(whole), Some(before)) = (count(Part::Whole)?, count(Part::Before)?)
        {
            let count = whole - before;
            if count < 1.0 {
                return Err(
                    format!("{name}: {WITHIN:?} were not seen, so nothing was counted").into(),
                );
            }
            figures.value(&name, count, Unit::Instructions)?;
            let heap = allocations(&case)?;
            figures.value(&format!("{name}/heap"), heap, Unit::Allocations)?;
        }
    }
    Ok(())
}

/// Counts the allocations of a thousand answers to the exit of one case.
fn allocations(case: &Case) -> Result<f64, Failure> {
    let gate = gate(case)?;
    let (mut msrs, mut vcpu) = vcpu(&gate)?;
    let mut sum = 0;
    for _ in 0..1_000 {
        prepare(&mut msrs, &mut vcpu, case);
        let mut outcome = Ok(());
        let seen = measure(|| outcome = answer(&mut msrs, &mut vcpu, case).map(drop));
        outcome?;
        sum += seen.count_total;
    }
    Ok(u32::try_from(sum).map_or(f64::INFINITY, f64::from))
}
