//! The model's registers behind the filter, learnt from this host's KVM in a VM without a filter.
//!
//! The comparison is about filters, not about registers. So the model is told what each register does on
//! this host: its value, or KVM's own reason to refuse an access. The model uses this knowledge only if the
//! filter lets the access pass.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::rc::Rc;

use msrgate_filter::{Access, ExitReason, MsrIndex, Origin, RegisterFault, Registers, X2APIC};
use msrgate_kvm::measure::{
    Backend, GuestError, GuestOutcome, KvmBackend, Observed, Step, StepReply,
};
use msrgate_kvm::{HostCaps, RawReasons};

const PAT: MsrIndex = MsrIndex::new(0x277);
const EFER: MsrIndex = MsrIndex::new(0xc000_0080);
const TSC: MsrIndex = MsrIndex::new(0x10);
/// An MSR that no CPU has: a guest's access to it makes an exit to user space.
const NOBODYS: MsrIndex = MsrIndex::new(0x1234_5678);

/// Returns true if QEMU's SVM accepts this write and changes the written value later.
fn is_made_canonical((index, value): (MsrIndex, u64)) -> bool {
    const KERNEL_GS_BASE: MsrIndex = MsrIndex::new(0xc000_0102);
    let value = value.cast_signed();
    index == KERNEL_GS_BASE && value << 16 >> 16 != value
}

/// MSRs that only hold what is written to them; a write to them has no other effect on this guest.
pub(crate) const HARMLESS: [MsrIndex; 10] = [
    MsrIndex::new(0x174), // SYSENTER_CS
    MsrIndex::new(0x175), // SYSENTER_ESP
    MsrIndex::new(0x176), // SYSENTER_EIP
    PAT,
    MsrIndex::new(0xc000_0081), // STAR
    MsrIndex::new(0xc000_0082), // LSTAR
    MsrIndex::new(0xc000_0083), // CSTAR
    MsrIndex::new(0xc000_0084), // FMASK
    MsrIndex::new(0xc000_0102), // KERNEL_GS_BASE
    MsrIndex::new(0xc000_0103), // TSC_AUX
];

/// The ranges of MSR indices in which public sources list registers, with some room around them. At all
/// other indices no CPU has a register, so a write there has no effect.
const INHABITED: [RangeInclusive<u32>; 5] = [
    0..=0x2fff,
    0x4000_0000..=0x4000_ffff,
    0x4b56_4d00..=0x4b56_4fff,
    0x8000_0000..=0x808f_ffff,
    0xc000_0000..=0xc00f_ffff,
];

/// The only MSRs whose values may differ between KVM and the model.
pub(crate) const EXCEPTIONS: [Exception; 1] = [Exception {
    index: TSC,
    why: "it counts: the two are not read at the same time",
}];

/// An MSR of which a read may return different values in KVM and in the model.
pub(crate) struct Exception {
    pub(crate) index: MsrIndex,
    pub(crate) why: &'static str,
}

impl Exception {
    /// Clears the value that KVM returned for a read of this MSR. A value that user space gave is kept.
    fn apply(&self, index: MsrIndex, observed: Observed) -> Observed {
        match observed {
            Observed {
                outcome: GuestOutcome::Value(_),
                exit: None,
            } if index == self.index => Observed {
                outcome: GuestOutcome::Value(0),
                exit: None,
            },
            other => other,
        }
    }
}

/// Returns the part of `observed` that must be equal on KVM and on the model.
pub(crate) fn comparable(index: MsrIndex, observed: Observed) -> Observed {
    EXCEPTIONS.iter().fold(observed, |observed, exception| {
        exception.apply(index, observed)
    })
}

/// Returns true if a write of `value` to this MSR has no side effects, in case the filter lets the write
/// pass.
pub(crate) fn may_be_written(index: MsrIndex, value: u64) -> bool {
    let nobody_has_it = !INHABITED.iter().any(|place| place.contains(&index.get()));
    // The VM has no APIC, and no CPU accepts a write of all ones to EFER.
    let is_refused = X2APIC.contains(&index) || (index, value) == (EFER, u64::MAX);
    HARMLESS.contains(&index) || nobody_has_it || is_refused
}

/// Returns a value that a write may have instead of `wanted`: for PAT a value that every CPU accepts, for
/// EFER all ones, for other MSRs `wanted` itself.
pub(crate) fn value_for(index: MsrIndex, wanted: u64) -> u64 {
    const TYPES: [u8; 6] = [0, 1, 4, 5, 6, 7];
    match index {
        PAT => u64::from_le_bytes(
            wanted
                .to_le_bytes()
                .map(|byte| TYPES[usize::from(byte) % TYPES.len()]),
        ),
        EFER => u64::MAX,
        _ => wanted,
    }
}

/// The effect that an access has in a VM without a filter, as learnt from KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// The value that a read of the MSR returns, after the write if the access is a write.
    Value(u64),
    /// KVM refuses the access, for this reason.
    Fault(RegisterFault),
    /// The CPU refuses the access without asking KVM, because the register is passed through; or the CPU
    /// accepts a value that it changes later. QEMU's software SVM does so with a `KERNEL_GS_BASE` that is
    /// not canonical: it accepts the value, which a real CPU refuses, and makes the value canonical at
    /// the next VM entry.
    Hardware,
}

/// All effects that have been learnt so far, and the VM in which they are learnt.
pub(crate) struct Baseline {
    kernel: KvmBackend,
    reads: BTreeMap<MsrIndex, Learnt>,
    writes: BTreeMap<(MsrIndex, u64), Learnt>,
    stray: Option<(MsrIndex, Access)>,
}

impl Baseline {
    /// Creates a baseline that knows only the values of those registers that the test will write.
    pub(crate) fn new(host: &HostCaps) -> Result<Self, GuestError> {
        let mut kernel = KvmBackend::new(host)?;
        kernel
            .set_reasons(RawReasons::new(7))
            .expect("every KVM that has this capability takes the three reasons");
        let mut baseline = Self {
            kernel,
            reads: BTreeMap::new(),
            writes: BTreeMap::new(),
            stray: None,
        };
        baseline.learn_reads(&HARMLESS)?;
        Ok(baseline)
    }

    /// Learns the effects that the steps of this script would have without a filter.
    pub(crate) fn learn(&mut self, script: &[Step]) -> Result<(), GuestError> {
        let indices: Vec<_> = script.iter().map(|step| step.index).collect();
        self.learn_reads(&indices)?;
        let writes = script.iter().filter(|step| step.access == Access::Write);
        let writes: BTreeSet<_> = writes
            .map(|step| (step.index, step.value))
            .filter(|&(index, value)| may_be_written(index, value))
            .filter(|write| !self.writes.contains_key(write))
            .collect();
        let steps: Vec<_> = writes
            .iter()
            .flat_map(|&(index, value)| {
                let read = read(index);
                [write(index, value), read, self::read(NOBODYS), read]
            })
            .collect();
        let observed = self.kernel.run(&steps)?;
        for (&write, seen) in writes.iter().zip(observed.chunks(4)) {
            let learnt = match (learnt(&seen[0]), learnt(&seen[1]), learnt(&seen[3])) {
                (Learnt::Value(_), at_once, after_an_exit)
                    if at_once != after_an_exit && is_made_canonical(write) =>
                {
                    Learnt::Hardware
                }
                (Learnt::Value(_), value, _) => value,
                (fault, ..) => fault,
            };
            self.writes.insert(write, learnt);
        }
        Ok(())
    }

    fn learn_reads(&mut self, indices: &[MsrIndex]) -> Result<(), GuestError> {
        let new: BTreeSet<_> = indices
            .iter()
            .copied()
            .filter(|index| !self.reads.contains_key(index))
            .collect();
        let script: Vec<_> = new.iter().copied().map(read).collect();
        let first = self.kernel.run(&script)?;
        self.reads
            .extend(new.iter().copied().zip(first.iter().map(learnt)));
        let with_value = new.into_iter().zip(first);
        let with_value: Vec<_> = with_value
            .filter(|(_, seen)| matches!(seen.outcome, GuestOutcome::Value(_)))
            .collect();
        let script: Vec<_> = with_value.iter().map(|&(index, _)| read(index)).collect();
        for (&(index, first), second) in with_value.iter().zip(self.kernel.run(&script)?) {
            assert_eq!(
                comparable(index, first),
                comparable(index, second),
                "{index} changes by itself on this host: it needs a line in EXCEPTIONS"
            );
        }
        Ok(())
    }

    /// Returns an access that the model has let pass since the last call, although the filter denies it. For
    /// such an access the baseline has not learnt the effect.
    pub(crate) fn take_stray(&mut self) -> Option<(MsrIndex, Access)> {
        self.stray.take()
    }

    /// Returns the effect of an access in a VM without a filter, if that effect was learnt.
    pub(crate) fn find(&self, index: MsrIndex, access: Access, value: u64) -> Option<Learnt> {
        match access {
            Access::Read => self.reads.get(&index).copied(),
            Access::Write => self.writes.get(&(index, value)).copied(),
        }
    }
}

fn read(index: MsrIndex) -> Step {
    Step {
        index,
        access: Access::Read,
        value: 0,
        reply: StepReply::Fault,
    }
}

fn write(index: MsrIndex, value: u64) -> Step {
    Step {
        access: Access::Write,
        value,
        ..read(index)
    }
}

fn learnt(observed: &Observed) -> Learnt {
    let reason = observed.exit.map(|exit| exit.reason.known());
    match (observed.outcome, reason) {
        (GuestOutcome::Value(value), None) => Learnt::Value(value),
        (GuestOutcome::Written, None) => Learnt::Value(0),
        (GuestOutcome::Fault(_), None) => Learnt::Hardware,
        (_, Some(Some(ExitReason::Unknown))) => Learnt::Fault(RegisterFault::Unknown),
        (_, Some(Some(ExitReason::Invalid))) => Learnt::Fault(RegisterFault::Invalid),
        (_, Some(_)) => unreachable!("a VM without a filter: {observed:?}"),
    }
}

/// The model's registers: they have the learnt values until they are written.
pub(crate) struct LearntRegisters {
    baseline: Rc<RefCell<Baseline>>,
    written: BTreeMap<MsrIndex, u64>,
}

impl LearntRegisters {
    /// Creates the registers of a new VM.
    pub(crate) fn new(baseline: &Rc<RefCell<Baseline>>) -> Self {
        Self {
            baseline: Rc::clone(baseline),
            written: BTreeMap::new(),
        }
    }

    fn find(&self, index: MsrIndex, access: Access, value: u64) -> Result<u64, RegisterFault> {
        let mut baseline = self.baseline.borrow_mut();
        match baseline.find(index, access, value) {
            Some(Learnt::Value(value)) => Ok(value),
            Some(Learnt::Fault(fault)) => Err(fault),
            Some(Learnt::Hardware) | None => {
                baseline.stray = Some((index, access));
                Err(RegisterFault::Invalid)
            }
        }
    }
}

impl Registers for LearntRegisters {
    fn read(&mut self, index: MsrIndex, _: Origin) -> Result<u64, RegisterFault> {
        match self.written.get(&index) {
            Some(&value) => Ok(value),
            None => self.find(index, Access::Read, 0),
        }
    }

    fn write(&mut self, index: MsrIndex, value: u64, _: Origin) -> Result<(), RegisterFault> {
        let after = self.find(index, Access::Write, value)?;
        self.written.insert(index, after);
        Ok(())
    }
}
