//! The registers that a guest can change, found by trying.

use msrgate_filter::{Access, MsrIndex};

use super::{Backend, GuestOutcome, MeasureError, step};
use crate::exit::RawReasons;
use crate::sys::raw::RawFilter;

/// Returns those of `indices` whose value a guest can change by a write, in the given order.
///
/// The guest of `backend` tries all ones, zero, and the register's value with each of its bits inverted. At
/// last it writes the value back that the register had. A register counts as changed if a read after one of
/// these writes gives another value. A register that takes only values with several particular bits is not
/// found, and neither is one that cannot be read.
///
/// A write whose effect goes beyond storing its value has this effect, so leave such registers out.
///
/// # Errors
/// Returns an error if the guest could not be run, or if the filter or the mask could not be set.
pub fn changeable(
    backend: &mut dyn Backend,
    indices: &[MsrIndex],
) -> Result<Vec<MsrIndex>, MeasureError> {
    backend
        .set_reasons(RawReasons::NONE)
        .map_err(MeasureError::SetReasons)?;
    backend
        .set_filter(&RawFilter::default())
        .map_err(MeasureError::SetFilter)?;
    let reads: Vec<_> = indices
        .iter()
        .map(|&index| step(index, Access::Read, 0))
        .collect();
    let seen = backend.run(&reads)?;
    let mut changeable = Vec::new();
    for (&index, seen) in indices.iter().zip(&seen) {
        let GuestOutcome::Value(before) = seen.outcome else {
            continue;
        };
        let flips = (0..u64::BITS).map(|bit| before ^ 1 << bit);
        let values = [u64::MAX, 0].into_iter().chain(flips).chain([before]);
        let tries: Vec<_> = values
            .flat_map(|value| {
                [
                    step(index, Access::Write, value),
                    step(index, Access::Read, 0),
                ]
            })
            .collect();
        let seen = backend.run(&tries)?;
        let is_other = |outcome| matches!(outcome, GuestOutcome::Value(now) if now != before);
        if seen.iter().any(|one| is_other(one.outcome)) {
            changeable.push(index);
        }
    }
    Ok(changeable)
}

#[cfg(test)]
mod tests {
    use msrgate_filter::{Register, RegisterMap, Revision};

    use super::*;
    use crate::measure::{KvmBackend, ModelBackend};
    use crate::probe::HostCaps;

    fn all(indices: &[u32]) -> Vec<MsrIndex> {
        indices.iter().copied().map(MsrIndex::new).collect()
    }

    #[test]
    fn changeable_registers_of_model_are_those_with_writable_bits() {
        let registers = [
            (0x10, 7, u64::MAX),
            (0x11, 7, 0),
            (0x12, u64::MAX, 1 << 40),
            (0x13, 0, 0),
        ];
        let register = |(index, value, writable)| {
            let register = Register {
                writable,
                ..Register::new(value)
            };
            (MsrIndex::new(index), register)
        };
        let registers: RegisterMap = registers.map(register).into_iter().collect();
        let mut model = ModelBackend::new(Revision::Mainline, registers);
        let found = changeable(&mut model, &all(&[0x10, 0x11, 0x12, 0x13, 0x14]));
        assert_eq!(found.expect("the model runs"), all(&[0x10, 0x12]));
    }

    /// KVM refuses each write of `IA32_MTRRCAP`, `IA32_PLATFORM_ID` and `MSR_RAPL_POWER_UNIT`, and drops those
    /// of `MSR_AMD64_NB_CFG`. It keeps the values of the variable MTRRs, whose types must be known ones, and of the
    /// machine-check banks.
    #[test]
    fn changeable_registers_of_kvm_are_those_that_keep_a_guests_value() {
        let Some(host) = HostCaps::for_test() else {
            return;
        };
        let mut kvm = KvmBackend::with_machine_checks(&host).expect("a VM");
        let refused = [0xfe, 0x17, 0x606, 0xc001_001f];
        let kept = [0x200, 0x201, 0x20e, 0x20f, 0x400, 0x47e, 0xc000_0082];
        let both = [&refused[..], &kept].concat();
        for _ in 0..2 {
            let found = changeable(&mut kvm, &all(&both));
            assert_eq!(found.expect("a guest runs"), all(&kept));
        }
    }
}
