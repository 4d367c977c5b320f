//! A program prepared to answer the exits of VMs on one kind of processor.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use msrgate_filter::{Access, MsrIndex, Verdict};

use super::cells::{Cells, MAX_CELLS};
use crate::action::{Action, Device};
use crate::cpu::Cpu;
use crate::forward;
use crate::msrs::MsrRange;
use crate::origin::DecidedBy;
use crate::pack::Verdicts;
use crate::program::{Program, Variant};
use crate::rules::Rule;
use crate::settings::{Log, Mode};

/// A responder: one variant of a program, prepared to answer exits. The responder is immutable, and
/// all vCPUs of a VM share it.
#[derive(Clone, Debug)]
pub struct Responder {
    program: Arc<Program>,
    variant: usize,
    cells: Cells,
    pins: Box<[MsrIndex]>,
}

/// The reason why a program cannot answer exits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponderError {
    /// The program has no variant for this processor.
    NoVariant(Cpu),
    /// The program has at least this many emulated registers, which is more than [`MAX_CELLS`].
    TooManyRegisters(u64),
    /// An action forwards writes to this register, for which forwarding is not known to be sound.
    NotForwardable(MsrIndex),
    /// The program has rules that use this emulated device, but no settings for the device.
    NoDevice(Device),
}

impl fmt::Display for ResponderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVariant(cpu) => write!(
                f,
                "the program has no variant for the processor {cpu}; compile the policy again"
            ),
            Self::TooManyRegisters(count) => write!(
                f,
                "the program has {count} emulated registers, but a vCPU can have at most {MAX_CELLS}; use `register` for fewer MSRs"
            ),
            Self::NotForwardable(index) => write!(
                f,
                "an action for {index} lets the VMM write the register for the guest, which is not known to be safe for this register"
            ),
            Self::NoDevice(device) => write!(
                f,
                "the program uses the device {device} but does not set it up; add the device's settings, or compile the program from a policy"
            ),
        }
    }
}

impl core::error::Error for ResponderError {}

/// Returns true if, under this log level, accesses that the policy allows exit to user space before
/// KVM handles them.
pub(super) const fn is_seen_first(log: Log) -> bool {
    matches!(log, Log::First | Log::All)
}

impl Responder {
    /// Creates the responder of the variant of `program` for `cpu`.
    ///
    /// For a program that was compiled from a policy, [`ResponderError::TooManyRegisters`] is the
    /// only possible error.
    ///
    /// # Errors
    /// - [`ResponderError::NoVariant`]: the program has no variant for `cpu`.
    /// - [`ResponderError::NotForwardable`]: an action forwards writes to a register for which that
    ///   is not sound.
    /// - [`ResponderError::NoDevice`]: the program uses a device that it does not configure.
    /// - [`ResponderError::TooManyRegisters`]: the program has more emulated registers than
    ///   [`MAX_CELLS`].
    pub fn new(program: Arc<Program>, cpu: &Cpu) -> Result<Self, ResponderError> {
        let variant = program
            .place_of(cpu)
            .ok_or_else(|| ResponderError::NoVariant(cpu.clone()))?;
        let mut responder = Self {
            program,
            variant,
            cells: Cells::default(),
            pins: Box::default(),
        };
        if let Some(index) = responder.unforwardable() {
            return Err(ResponderError::NotForwardable(index));
        }
        if responder.program.settings().microcode.is_none()
            && let Some(device) = responder.devices().next()
        {
            return Err(ResponderError::NoDevice(device));
        }
        responder.cells =
            Cells::of(responder.variant().rules()).map_err(ResponderError::TooManyRegisters)?;
        responder.pins = responder.find_pins();
        Ok(responder)
    }

    /// Returns a register to which an action forwards writes although the forward list does not
    /// contain it.
    fn unforwardable(&self) -> Option<MsrIndex> {
        let forwarding = self.rules().filter(|rule| rule.action.needs_forwarding());
        forwarding
            .flat_map(|rule| rule.msrs.first().get()..=rule.msrs.last().get())
            .map(MsrIndex::new)
            .find(|&index| forward::row(index).is_none())
    }

    /// The program that the responder was made from.
    #[must_use]
    pub const fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The variant of the program with which the responder answers.
    #[must_use]
    pub fn variant(&self) -> &Variant {
        &self.program.variants()[self.variant]
    }

    /// The emulated devices that the variant's rules use, possibly with duplicates.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.rules().filter_map(|rule| match rule.action {
            Action::Device(device) => Some(*device),
            _ => None,
        })
    }

    /// The names of the VMM's handlers that the variant's rules use, possibly with duplicates.
    pub fn handlers(&self) -> impl Iterator<Item = &str> {
        self.rules().filter_map(|rule| match rule.action {
            Action::Handler(name) => Some(&**name),
            _ => None,
        })
    }

    /// Returns true if a migration may leave out KVM's value of this register: no access of the
    /// guest reaches the register, and nothing else depends on it or changes it.
    ///
    /// The function returns true only for registers that KVM invented. Every other register is treated
    /// as if instructions, time or the VMM changed it (S10.5).
    #[must_use]
    pub fn is_out_of_reach(&self, index: MsrIndex) -> bool {
        let is_made_up = MADE_UP.iter().any(|range| range.contains(&index.get()));
        let reaches_kvm = |access| self.reaches_kvm(index, access);
        is_made_up && !Access::ALL.into_iter().any(reaches_kvm)
    }

    /// Returns true if KVM's value of this register is the value that the VMM set, whatever the
    /// guest has done under this program: no write of the guest reaches the register, and only
    /// writes change it.
    ///
    /// The function returns true only for registers that are known to have this property. The
    /// result holds only for a guest that runs no nested guests, because nested entries and exits
    /// load registers too (S10.5).
    #[must_use]
    pub fn is_out_of_hand(&self, index: MsrIndex) -> bool {
        let is_only_written = WRITTEN_ONLY
            .iter()
            .any(|range| range.contains(&index.get()));
        is_only_written && !self.reaches_kvm(index, Access::Write)
    }

    /// Returns true if KVM handles an access of the guest, or the gate forwards it to KVM's
    /// register. In audit mode this includes accesses that the policy refuses.
    fn reaches_kvm(&self, index: MsrIndex, access: Access) -> bool {
        let rule = self.variant().rule(index, access);
        let is_answered = matches!(
            rule.action,
            Action::Deny | Action::Kill | Action::Value(_) | Action::Ignore | Action::Register(_)
        );
        !is_answered || self.opens(rule)
    }

    /// Returns true if accesses that KVM is to handle exit to user space first, to become events or
    /// because of audit mode. The gate then has to open the kernel's filter for one access after
    /// the other.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.rules().any(|rule| self.opens(rule))
    }

    /// Returns the verdicts for the kernel's filter after the gate has opened the filter for the
    /// accesses in `opened`, so that it allows them without an exit.
    #[must_use]
    pub fn verdicts(&self, opened: &[(MsrIndex, Access)]) -> Verdicts {
        let last = self.variant().rule(MsrIndex::MAX, Access::Read);
        self.verdicts_by(self.verdict(last), opened, |rule| {
            (self.verdict(rule), self.opens(rule))
        })
    }

    /// Returns the verdicts to use if those of [`Self::verdicts`] do not fit a filter. The filter
    /// then allows only the accesses in `opened`. Other accesses that the program allows exit to
    /// user space. If such an access is not logged, the response to its exit is
    /// [`Rewind`](super::Response::Rewind).
    #[must_use]
    pub fn fewest_verdicts(&self, opened: &[(MsrIndex, Access)]) -> Verdicts {
        self.verdicts_by(Verdict::Deny, opened, |rule| {
            let opens = self.opens(rule) || *rule.action == Action::Allow;
            (Verdict::Deny, opens)
        })
    }

    /// Returns the verdicts of a filter that allows the accesses in `opened`. For each rule, `of`
    /// returns the verdict, and true if the filter may be opened for single accesses.
    fn verdicts_by(
        &self,
        default: Verdict,
        opened: &[(MsrIndex, Access)],
        of: impl Fn(Rule<'_>) -> (Verdict, bool),
    ) -> Verdicts {
        Verdicts::new(default, |access| {
            let mut inside: Vec<_> = opened
                .iter()
                .filter(|(_, direction)| *direction == access)
                .map(|(index, _)| *index)
                .collect();
            inside.sort_unstable();
            inside.dedup();
            let mut stretches = Vec::new();
            for rule in self.variant().rules().of(access) {
                let (verdict, opens) = of(rule);
                let wanted = (rule.by != DecidedBy::Kvm).then_some(verdict);
                let first = inside.partition_point(|&index| index < rule.msrs.first());
                let last = inside.partition_point(|&index| index <= rule.msrs.last());
                let opened = if opens { &inside[first..last] } else { &[] };
                split(rule.msrs, opened, wanted, &mut stretches);
            }
            stretches.into_iter()
        })
    }

    pub(super) fn mode(&self) -> Mode {
        self.program.settings().mode
    }

    /// Returns true if the filter may be opened for single accesses of this rule, after each has
    /// exited once.
    pub(super) fn opens(&self, rule: Rule<'_>) -> bool {
        match rule.action {
            Action::Allow => is_seen_first(rule.log),
            Action::Deny | Action::Kill => self.mode() == Mode::Audit,
            // In audit mode the filter is also opened for accesses that cannot be forwarded: those
            // of a nested guest.
            action => self.mode() == Mode::Audit && action.needs_forwarding(),
        }
    }

    /// Returns the verdict of the kernel's filter on accesses of this rule, until the gate opens
    /// the filter for them.
    fn verdict(&self, rule: Rule<'_>) -> Verdict {
        match *rule.action {
            Action::Allow if !self.opens(rule) => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    fn rules(&self) -> impl Iterator<Item = Rule<'_>> {
        self.variant().rules().all().map(|(_, rule)| rule)
    }

    pub(super) fn pins(&self) -> &[MsrIndex] {
        &self.pins
    }

    pub(super) fn pin(&self, index: MsrIndex) -> Option<usize> {
        self.pins.iter().position(|&one| one == index)
    }

    /// Returns the position of an emulated register in a [`VcpuState`](super::VcpuState), and its
    /// reset value.
    pub(super) fn cell(&self, index: MsrIndex) -> Option<(usize, u64)> {
        self.cells.place(index)
    }

    pub(super) const fn cells(&self) -> &Cells {
        &self.cells
    }

    fn find_pins(&self) -> Box<[MsrIndex]> {
        let rules = self.rules().filter(|rule| *rule.action == Action::Pin);
        let indices = rules.flat_map(|rule| rule.msrs.first().get()..=rule.msrs.last().get());
        indices.map(MsrIndex::new).collect()
    }
}

/// Registers that no processor has, because they belong to KVM's own interface for guests (Linux,
/// `kvm_para.h`). Only a WRMSR changes these registers, and only a WRMSR starts their effects.
/// Hyper-V's registers are left out, because some of its hypercalls depend on them.
const MADE_UP: [RangeInclusive<u32>; 2] = [0x11..=0x12, 0x4b56_4d00..=0x4b56_4dff];

/// Registers that only a WRMSR or the VMM changes, in a guest that runs no nested guests (SDM
/// volume 4; APM volume 2, appendix A).
///
/// A register is left out if time, counting, a fault, a branch, XRSTORS, SWAPGS, RSM, INIT or a
/// write to another register changes it. Examples are `IA32_TSC_ADJUST`, which a write to the TSC
/// changes, and `IA32_SPEC_CTRL` and KVM's own registers, which an INIT clears.
const WRITTEN_ONLY: [RangeInclusive<u32>; 22] = [
    // IA32_FEATURE_CONTROL, MSR_PLATFORM_INFO.
    0x3a..=0x3a,
    0xce..=0xce,
    // IA32_ARCH_CAPABILITIES, IA32_TSX_CTRL, MSR_MISC_FEATURES_ENABLES.
    0x10a..=0x10a,
    0x122..=0x122,
    0x140..=0x140,
    // IA32_SYSENTER_CS, ESP, EIP.
    0x174..=0x176,
    // IA32_MCG_CAP, IA32_MCG_CTL.
    0x179..=0x179,
    0x17b..=0x17b,
    // IA32_MISC_ENABLE.
    0x1a0..=0x1a0,
    // The MTRRs, and IA32_PAT between them.
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x277..=0x277,
    0x2ff..=0x2ff,
    // IA32_PERF_CAPABILITIES, and the capabilities of VMX.
    0x345..=0x345,
    0x480..=0x491,
    // STAR, LSTAR, CSTAR, FMASK; IA32_TSC_AUX.
    0xc000_0081..=0xc000_0084,
    0xc000_0103..=0xc000_0103,
    // MSR_K7_HWCR, VM_HSAVE_PA, MSR_AMD64_DE_CFG.
    0xc001_0015..=0xc001_0015,
    0xc001_0117..=0xc001_0117,
    0xc001_1029..=0xc001_1029,
];

/// Adds `msrs` to `into` with the verdict `wanted`, except that the MSRs of `opened` are allowed.
/// The MSRs of `opened` must be sorted and lie in `msrs`.
fn split(
    msrs: MsrRange,
    opened: &[MsrIndex],
    wanted: Option<Verdict>,
    into: &mut Vec<(MsrRange, Option<Verdict>)>,
) {
    let mut next = u64::from(msrs.first().get());
    for index in opened {
        let at = u64::from(index.get());
        into.extend(MsrRange::below(next, at).map(|before| (before, wanted)));
        into.push((MsrRange::one(*index), Some(Verdict::Allow)));
        next = at + 1;
    }
    let end = u64::from(msrs.last().get()) + 1;
    into.extend(MsrRange::below(next, end).map(|after| (after, wanted)));
}
