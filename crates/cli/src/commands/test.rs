//! `msrgate test`: tests a policy in a real guest.

mod report;

use std::io::Write;

use msrgate_filter::{Access, MsrIndex, Register, RegisterMap, Revision};
use msrgate_kvm::measure::{Backend, Case, KvmBackend, ModelBackend, WriteEffect, measure};
use msrgate_kvm::{HostCaps, HostError};
use msrgate_policy::{MsrSet, Policy, Variant, registers, test_points, write_effect};

use crate::cli::{BackendArg, Format, TestArgs};
use crate::failure::{Answer, Failure};
use crate::load;
use crate::processor::{self, Chosen};

/// The largest number of MSRs in one call of `msrgate test`. A test of more MSRs would take minutes.
const MOST: u64 = 0x4_0000;

/// The backend that the test's guest runs on, KVM or the model, and the meaning of the results for this
/// host.
struct Place {
    backend: Box<dyn Backend>,
    measures: Measures,
}

/// The meaning of a test's results for this host's kernel.
enum Measures {
    /// The results are about this host's kernel. The string is the kernel's release.
    Kernel(String),
    /// The results say nothing about this host's KVM, because the user asked for the model of KVM.
    Nothing,
    /// The results say nothing about this host's KVM, because it cannot be used, for this reason.
    NothingFor(HostError),
}

pub(super) fn run(args: &TestArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let compiled = load::compiled(&args.policy)?;
    let mut place = place(args.backend)?;
    let Chosen { variant, cpu } = processor::choose(&compiled, &args.cpu)?;
    let cases = cases(compiled.policy(), variant, &args.msrs)?;
    if args.format.format == Format::Text {
        report::heading(out, compiled.policy(), variant, &place.measures)?;
    }
    let measured = measure(place.backend.as_mut(), variant.filter(), &cases)
        .map_err(|error| Failure::Host(error.to_string()))?;
    match args.format.format {
        Format::Json => report::json(out, (place.backend.kind(), cpu.as_ref()), &measured)?,
        Format::Text => report::text(out, compiled.policy(), &measured)?,
    }
    let is_ok = measured.iter().all(msrgate_kvm::measure::Measured::is_ok);
    Ok(if is_ok { Answer::Yes } else { Answer::No })
}

/// Returns the accesses to try: reads and writes of the MSRs that the user asked for, or else of the MSRs
/// that show if a filter enforces the policy.
fn cases(policy: &Policy, variant: &Variant, msrs: &[MsrSet]) -> Result<Vec<Case>, Failure> {
    let asked: u64 = msrs.iter().map(MsrSet::count).sum();
    if asked > MOST {
        return Err(Failure::Usage(format!(
            "test takes at most {MOST} MSRs at once, but the arguments name {asked}; name a smaller range"
        )));
    }
    let mut indices: Vec<MsrIndex> = if msrs.is_empty() {
        test_points(policy, variant)
    } else {
        let ranges = msrs.iter().flat_map(MsrSet::ranges);
        let all = ranges.flat_map(|range| range.first().get()..=range.last().get());
        all.map(MsrIndex::new).collect()
    };
    indices.sort_unstable();
    indices.dedup();
    let both = |index| Access::ALL.map(|access| case(variant, index, access));
    Ok(indices.into_iter().flat_map(both).collect())
}

fn case(variant: &Variant, index: MsrIndex, access: Access) -> Case {
    Case {
        index,
        access,
        expected: variant.rules().at(index, access).action.verdict(),
        effect: match write_effect(index) {
            Some(_) => WriteEffect::ActsAtOnce,
            None => WriteEffect::StoresOnly,
        },
    }
}

fn place(backend: BackendArg) -> Result<Place, Failure> {
    let host = match backend {
        BackendArg::Model => return Ok(model(Measures::Nothing)),
        BackendArg::Kvm | BackendArg::Auto => HostCaps::probe(),
    };
    match host {
        Ok(host) => Ok(Place {
            backend: Box::new(
                KvmBackend::new(&host).map_err(|error| Failure::Host(error.to_string()))?,
            ),
            measures: Measures::Kernel(host.release().to_owned()),
        }),
        Err(error) if backend == BackendArg::Auto => Ok(model(Measures::NothingFor(error))),
        Err(error) => Err(Failure::Host(format!("{error}\n  {}", error.advice()))),
    }
}

/// Returns the model of KVM on a machine that has every named register. All registers have the value 0.
fn model(measures: Measures) -> Place {
    let registers = registers::all()
        .iter()
        .map(|register| (register.index, Register::new(0)));
    Place {
        backend: Box::new(ModelBackend::new(
            Revision::Mainline,
            registers.collect::<RegisterMap>(),
        )),
        measures,
    }
}
