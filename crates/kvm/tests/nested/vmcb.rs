//! The VMCB: with it a hypervisor describes its guest to the processor, and reads why the guest exited.
//! Its layout is from the APM, volume 2, appendix B.

/// The size of the VMCB in bytes. KVM and processors read only its first part.
pub(crate) const BYTES: usize = 0x1000;

/// The offset of the state save area.
const SAVE: usize = 0x400;

/// Fields of the control area that the processor fills at a nested guest's exit.
pub(crate) const EXIT_CODE: usize = 0x70;
pub(crate) const EXIT_INFO_1: usize = 0x78;

// Fields of the control area that the hypervisor fills.
const INTERCEPT_EXCEPTIONS: usize = 0x08;
const INTERCEPTS: usize = 0x0c;
const MORE_INTERCEPTS: usize = 0x10;
const ASID: usize = 0x58;
const NESTED_PAGING: usize = 0x90;
const NESTED_CR3: usize = 0xb0;

// Fields of the state save area.
const ES: usize = SAVE;
const CS: usize = SAVE + 0x10;
const SS: usize = SAVE + 0x20;
const DS: usize = SAVE + 0x30;
const FS: usize = SAVE + 0x40;
const GS: usize = SAVE + 0x50;
const TR: usize = SAVE + 0x90;
const EFER: usize = SAVE + 0xd0;
const CR4: usize = SAVE + 0x148;
const CR3: usize = SAVE + 0x150;
const CR0: usize = SAVE + 0x158;
const DR7: usize = SAVE + 0x160;
const DR6: usize = SAVE + 0x168;
const RFLAGS: usize = SAVE + 0x170;
pub(crate) const RIP: usize = SAVE + 0x178;
const RSP: usize = SAVE + 0x1d8;
pub(crate) const RAX: usize = SAVE + 0x1f8;
pub(crate) const STAR: usize = SAVE + 0x200;
pub(crate) const LSTAR: usize = SAVE + 0x208;
pub(crate) const CSTAR: usize = SAVE + 0x210;
pub(crate) const FMASK: usize = SAVE + 0x218;
const PAT: usize = SAVE + 0x268;

/// Exit codes, by which the processor reports why a guest exited (appendix C).
pub(crate) const EXIT_GP: u64 = 0x4d;
pub(crate) const EXIT_VMMCALL: u64 = 0x81;

/// The intercepts that this hypervisor sets. It does not set `MSR_PROT` (bit 28 of the first word), so it
/// does not intercept the nested guest's RDMSR and WRMSR.
const GP: u32 = 1 << 13;
const HLT: u32 = 1 << 24;
const SHUTDOWN: u32 = 1 << 31;
const VMRUN: u32 = 1 << 0;
const VMMCALL: u32 = 1 << 1;

/// Segment attributes: those of a descriptor, without the four unused bits between them.
const CODE_64: u16 = 0xa9b;
const DATA: u16 = 0xc93;
const BUSY_TSS: u16 = 0x08b;

/// The value of PAT at reset.
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

/// The registers with which a nested guest begins.
pub(crate) struct Start {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) rax: u64,
    pub(crate) efer: u64,
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    /// The page tables that map the nested guest's physical addresses to its hypervisor's.
    pub(crate) nested_cr3: u64,
}

/// Returns a VMCB for a guest in long mode at CPL 0.
pub(crate) fn vmcb(start: &Start) -> [u8; BYTES] {
    let mut vmcb = [0; BYTES];
    for (at, value) in [
        (INTERCEPT_EXCEPTIONS, GP),
        (INTERCEPTS, HLT | SHUTDOWN),
        (MORE_INTERCEPTS, VMRUN | VMMCALL),
        (ASID, 1),
        (NESTED_PAGING, 1),
    ] {
        vmcb[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [
        (NESTED_CR3, start.nested_cr3),
        (EFER, start.efer),
        (CR4, start.cr4),
        (CR3, start.cr3),
        (CR0, start.cr0),
        (DR7, 0x400),
        (DR6, 0xffff_0ff0),
        (RFLAGS, 2),
        (RIP, start.rip),
        (RSP, start.rsp),
        (RAX, start.rax),
        (PAT, PAT_AT_RESET),
    ] {
        vmcb[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    for (at, selector, attributes) in [
        (CS, 0x08_u16, CODE_64),
        (SS, 0x10, DATA),
        (DS, 0x10, DATA),
        (ES, 0x10, DATA),
        (FS, 0x10, DATA),
        (GS, 0x10, DATA),
        (TR, 0x18, BUSY_TSS),
    ] {
        vmcb[at..at + 2].copy_from_slice(&selector.to_le_bytes());
        vmcb[at + 2..at + 4].copy_from_slice(&attributes.to_le_bytes());
        vmcb[at + 4..at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    }
    vmcb
}
