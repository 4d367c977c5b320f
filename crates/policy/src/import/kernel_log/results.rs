//! The outcome of the access that a message of the kernel's log is about: one table, by wording,
//! register and value.
//!
//! The wording of a message shows the generation of the kernel: KVM got one wording for all writes
//! that it does not implement, `Unhandled WRMSR(0x…) = 0x…`, in Linux 6.3 (distributions have it
//! in older kernels, too). Each row has its source in the kernel.

use std::ops::RangeInclusive;

use msrgate_filter::Access;

use super::message::{Message, Wording};

/// The result of an access for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// The guest got #GP, and gets it for every access of this register.
    Fault,
    /// The guest got #GP for the value that it wrote. Other values of the register may pass.
    FaultOfValue,
    /// KVM does not know the register, and answered for `ignore_msrs=1` (S10.1): the guest read 0, or
    /// its write had no effect.
    Answered,
    /// KVM knows the register, and the guest's write succeeded without effect.
    Dropped,
    /// KVM knows the register, and the guest's write succeeded. KVM cleared bits of the written
    /// value; the message does not tell if bits are left that had an effect.
    Cut,
    /// The message does not tell whether the guest got #GP.
    Unknown,
}

impl Got {
    /// The number of variants of [`Got`].
    pub(super) const COUNT: usize = 6;
}

/// A row of the table of results: accesses that match the other fields have the result `got`.
struct Row {
    wording: Wording,
    /// The direction of the accesses. `None`: both directions.
    access: Option<Access>,
    msrs: RangeInclusive<u32>,
    /// The bits that may be set in the written value.
    bits: u64,
    got: Got,
    /// The origin of the row: the kernels that print the message, a file of their source, and the
    /// reason for the result.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the origin of the row, for readers")
    )]
    source: &'static str,
}

const ALL: RangeInclusive<u32> = 0..=u32::MAX;
const ANY: u64 = u64::MAX;
/// The bit LBR of the register `IA32_DEBUGCTL`.
const LBR: u64 = 0b01;
/// The bit BTF of the register `IA32_DEBUGCTL`.
const BTF: u64 = 0b10;

const fn row(
    wording: Wording,
    access: Option<Access>,
    msrs: RangeInclusive<u32>,
    bits: u64,
    got: Got,
    source: &'static str,
) -> Row {
    Row {
        wording,
        access,
        msrs,
        bits,
        got,
        source,
    }
}

/// The table of results. The first row that matches an access decides; if no row matches, the
/// result is [`Got::Unknown`].
#[rustfmt::skip]
static ROWS: [Row; 27] = {
    use Got::{Answered, Cut, Dropped, Fault, FaultOfValue};
    use Wording::{Call, Guest, HyperV, Ignored, NoEffect, Perfctr, Refused, Unimplemented};
    const WRITE: Option<Access> = Some(Access::Write);
    [
        row(Refused, None, ALL, ANY, Fault, "2.6.27 and later, x86.c: the register has no case in KVM's switches, and ignore_msrs is off"),
        row(Ignored, WRITE, 0x11e..=0x11e, ANY, Dropped, "3.0 to 6.2, x86.c, kvm_set_msr_common: BBL_CR_CTL3 ends in break, whatever ignore_msrs says"),
        row(Ignored, None, ALL, ANY, Answered, "2.6.27 and later, x86.c: the register has no case in KVM's switches, and ignore_msrs is on"),
        row(Perfctr, WRITE, 0xc1..=0xc2, ANY, Dropped, "2.6.27 to 6.2, x86.c, kvm_set_msr_common: P6_PERFCTR ends in break where the guest has no PMU"),
        row(Perfctr, WRITE, 0x186..=0x187, ANY, Dropped, "2.6.27 to 6.2, x86.c, kvm_set_msr_common: P6_EVNTSEL ends in break where the guest has no PMU"),
        row(Perfctr, WRITE, 0xc001_0000..=0xc001_0007, ANY, Dropped, "2.6.27 to 6.2, x86.c, and svm.c before 2.6.31: K7_EVNTSEL and K7_PERFCTR end in break where the guest has no PMU"),
        row(Call, WRITE, 0xc1..=0xc2, ANY, Dropped, "6.3 and later, x86.c, kvm_set_msr_common: as before 6.3; 0xc1 measured on 6.1: the guest goes on, and no exit is made"),
        row(Call, WRITE, 0x186..=0x187, ANY, Dropped, "6.3 and later, x86.c, kvm_set_msr_common: as before 6.3; 0x186 measured on 6.1: the guest goes on, and no exit is made"),
        row(Call, WRITE, 0xc001_0000..=0xc001_0007, ANY, Dropped, "6.3 and later, x86.c, kvm_set_msr_common: as before 6.3"),
        row(Call, WRITE, 0x11e..=0x11e, ANY, Dropped, "6.3 and later, x86.c, kvm_set_msr_common: BBL_CR_CTL3 ends in break"),
        row(Call, WRITE, 0xc001_0115..=0xc001_0115, ANY, Dropped, "6.3 and later, svm.c, svm_set_msr: VM_IGNNE ends in break"),
        row(Call, WRITE, 0x1d9..=0x1d9, LBR, Dropped, "6.3 and later, vmx.c takes LBR out of DEBUGCTL; svm.c has this message for LBR only without LBR virtualization, and then drops the write"),
        row(Call, WRITE, 0x1d9..=0x1d9, BTF, Dropped, "6.3 and later, vmx.c and svm.c take BTF out of DEBUGCTL, or drop the write"),
        row(Call, WRITE, 0x1d9..=0x1d9, LBR | BTF, Cut, "6.3 and later, vmx.c takes LBR and BTF out of DEBUGCTL; svm.c takes out only BTF with LBR virtualization, so that LBR has its effect; a value with other bits may be refused after the message"),
        row(Call, WRITE, 0xc001_0015..=0xc001_0015, ANY, FaultOfValue, "6.3 and later, x86.c, kvm_set_msr_common: HWCR refuses the bits that it does not know; 0, 0x100 and 0x1000000 measured to pass on 6.1"),
        row(Call, WRITE, 0xc001_0058..=0xc001_0058, ANY, FaultOfValue, "6.3 and later, x86.c, kvm_set_msr_common: MMIO_CONF_BASE refuses all values but 0; 0 measured to pass on 6.1"),
        row(Call, None, 0x4000_0000..=0x4000_01ff, ANY, Fault, "6.3 and later, hyperv.c: the default case of its four switches returns 1"),
        row(HyperV, None, ALL, ANY, Fault, "2.6.34 to 6.2, x86.c, later hyperv.c: the default case of its switches returns 1"),
        row(Unimplemented, WRITE, 0xc001_0115..=0xc001_0115, ANY, Dropped, "2.6.30 to 6.2, svm.c, svm_set_msr: VM_IGNNE ends in break"),
        row(Unimplemented, WRITE, 0xc001_0114..=0xc001_0114, ANY, Dropped, "2.6.30 to 2.6.32, svm.c, svm_set_msr: VM_CR ends in break"),
        row(Unimplemented, WRITE, 0xc001_0015..=0xc001_0015, ANY, FaultOfValue, "2.6.27 to 6.2, x86.c, kvm_set_msr_common: HWCR refuses the bits that it does not know"),
        row(Unimplemented, WRITE, 0xc001_0058..=0xc001_0058, ANY, FaultOfValue, "2.6.32 to 6.2, x86.c, kvm_set_msr_common: MMIO_CONF_BASE refuses all values but 0"),
        row(NoEffect, WRITE, 0x1d9..=0x1d9, LBR | BTF, Dropped, "2.6.27 to 6.2, x86.c, vmx.c and svm.c: LBR and BTF are taken out of DEBUGCTL; since 5.18 a value with other bits may be refused after the message"),
        row(NoEffect, WRITE, 0x17a..=0x17b, ANY, Dropped, "2.6.27 to 2.6.29, x86.c: MCG_STATUS and MCG_CTL end in break"),
        row(NoEffect, WRITE, 0x401..=0x401, ANY, Dropped, "2.6.27 to 2.6.29, x86.c: MC0_STATUS ends in break"),
        row(Guest, Some(Access::Read), ALL, ANY, Fault, "4.7 and later, arch/x86/mm/extable.c of the guest: its RDMSR got #GP, and the guest went on"),
        row(Guest, WRITE, ALL, ANY, FaultOfValue, "4.7 and later, arch/x86/mm/extable.c of the guest: its WRMSR of this value got #GP, and the guest went on; KVM may take other values"),
    ]
};

/// Returns the result of the access that a message is about.
pub(super) fn got(message: &Message) -> Got {
    // The kernel always prints the value, so a text without it is no message of the kernel as a
    // whole, and shows nothing about the kernel's version.
    let is_write_of_call = message.wording == Wording::Call && message.access == Access::Write;
    if is_write_of_call && message.value.is_none() {
        return Got::Unknown;
    }
    let matches = |row: &&Row| {
        row.wording == message.wording
            && row.access.is_none_or(|access| access == message.access)
            && row.msrs.contains(&message.index.get())
            && (row.bits == ANY || message.value.is_some_and(|value| value & !row.bits == 0))
    };
    let row = ROWS.iter().find(matches);
    row.map_or(Got::Unknown, |row| row.got)
}

/// The registers that KVM handles for every guest and in every version, so that no message can call
/// them unknown. Where `access` is not `None`, KVM handles that direction only. A number that a log
/// or a person has cut often names one of them: `0x12` of `0x122`.
#[rustfmt::skip]
static KNOWN: [(RangeInclusive<u32>, Option<Access>, &str); 9] = [
    (0x0..=0x1, Some(Access::Read), "answers reads of this register"), // x86.c, kvm_get_msr_common: P5_MC_ADDR, P5_MC_TYPE
    (0x10..=0x10, None, "has this register"), // vmx.c and svm.c, later x86.c: TSC
    (0x11..=0x12, None, "has this register"), // x86.c: the clock of KVM
    (0x17..=0x17, Some(Access::Read), "answers reads of this register"), // x86.c: PLATFORM_ID
    (0x1b..=0x1b, None, "has this register"), // x86.c: APICBASE
    (0x8b..=0x8b, Some(Access::Read), "answers reads of this register"), // x86.c: UCODE_REV
    (0x174..=0x176, None, "has this register"), // vmx.c and svm.c: SYSENTER
    (0x277..=0x277, None, "has this register"), // x86.c, later mtrr.c: PAT
    (0xc000_0080..=0xc000_0080, None, "has this register"), // x86.c: EFER
];

/// Returns the reason for which KVM cannot have printed a message about an unknown register, if
/// KVM knows the register. A guest's kernel prints messages about any register.
pub(super) fn known(message: &Message) -> Option<&'static str> {
    let matches = |(msrs, access, _): &&(RangeInclusive<u32>, Option<Access>, _)| {
        msrs.contains(&message.index.get()) && access.is_none_or(|one| one == message.access)
    };
    let row = KNOWN.iter().find(matches)?;
    (message.wording != Wording::Guest).then_some(row.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row names a source file of the kernel, and no earlier row matches all accesses that a
    /// row matches.
    #[test]
    fn rows_of_results_have_sources_and_no_row_is_hidden_by_an_earlier_row() {
        for (place, row) in ROWS.iter().enumerate() {
            assert!(row.source.contains(".c"), "{}", row.source);
            let hides = |earlier: &&Row| {
                earlier.wording == row.wording
                    && (earlier.access.is_none() || earlier.access == row.access)
                    && earlier.msrs.contains(row.msrs.start())
                    && earlier.msrs.contains(row.msrs.end())
                    && earlier.bits == ANY
            };
            let earlier = ROWS[..place].iter().find(hides);
            assert!(earlier.is_none(), "row {place}: {}", row.source);
        }
    }
}
