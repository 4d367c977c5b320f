//! The VMCB, in which VMRUN finds the guest's state and leaves it at an exit (APM volume 2, appendix B).

use core::marker::PhantomData;

/// The bit of EFER without which VMRUN does not run; the guest never sees it.
pub const SVME: u64 = 1 << 12;
/// The bit of EFER with which the guest asks for long mode.
pub const LME: u64 = 1 << 8;
/// The bit of EFER that says that long mode is active.
pub const LMA: u64 = 1 << 10;

/// The 4 KiB of a VMCB.
#[repr(C, align(4096))]
pub struct Vmcb([u8; 4096]);

/// A field of a VMCB: its offset and its type.
#[derive(Clone, Copy)]
pub struct Field<T>(usize, PhantomData<T>);

impl<T> Field<T> {
    const fn at(offset: usize) -> Self {
        Self(offset, PhantomData)
    }
}

/// An integer that a VMCB holds.
pub trait Word: Copy {
    /// Reads the integer from the beginning of `bytes`.
    fn get(bytes: &[u8]) -> Self;
    /// Writes the integer to the beginning of `bytes`.
    fn put(self, bytes: &mut [u8]);
}

macro_rules! words {
    ($($word:ty),*) => {$(
        impl Word for $word {
            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(&bytes[..size_of::<Self>()]);
                Self::from_le_bytes(own)
            }

            fn put(self, bytes: &mut [u8]) {
                bytes[..size_of::<Self>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
words!(u8, u16, u32, u64);

/// The fields that the hypervisor uses, by the names that the APM gives them.
#[expect(missing_docs, reason = "the names are the APM's")]
pub mod field {
    use super::Field;

    pub const INTERCEPTS: Field<u32> = Field::at(0x0c);
    pub const SVM_INTERCEPTS: Field<u32> = Field::at(0x10);
    pub const IOPM_BASE: Field<u64> = Field::at(0x40);
    pub const MSRPM_BASE: Field<u64> = Field::at(0x48);
    pub const ASID: Field<u32> = Field::at(0x58);
    pub const TLB_CONTROL: Field<u8> = Field::at(0x5c);
    pub const INTERRUPT_SHADOW: Field<u64> = Field::at(0x68);
    pub const EXIT_CODE: Field<u64> = Field::at(0x70);
    pub const EXIT_INFO_1: Field<u64> = Field::at(0x78);
    pub const EXIT_INFO_2: Field<u64> = Field::at(0x80);
    pub const EXIT_INT_INFO: Field<u64> = Field::at(0x88);
    pub const NESTED_PAGING: Field<u64> = Field::at(0x90);
    pub const EVENT_INJECTION: Field<u64> = Field::at(0xa8);
    pub const NESTED_CR3: Field<u64> = Field::at(0xb0);
    pub const CLEAN: Field<u32> = Field::at(0xc0);
    pub const NEXT_RIP: Field<u64> = Field::at(0xc8);
    pub const CS: Field<u16> = Field::at(0x410);
    pub const CS_ATTRIBUTES: Field<u16> = Field::at(0x412);
    pub const CS_BASE: Field<u64> = Field::at(0x418);
    pub const CPL: Field<u8> = Field::at(0x4cb);
    pub const EFER: Field<u64> = Field::at(0x4d0);
    pub const CR4: Field<u64> = Field::at(0x548);
    pub const CR3: Field<u64> = Field::at(0x550);
    pub const CR0: Field<u64> = Field::at(0x558);
    pub const DR7: Field<u64> = Field::at(0x560);
    pub const DR6: Field<u64> = Field::at(0x568);
    pub const RFLAGS: Field<u64> = Field::at(0x570);
    pub const RIP: Field<u64> = Field::at(0x578);
    pub const RSP: Field<u64> = Field::at(0x5d8);
    pub const RAX: Field<u64> = Field::at(0x5f8);
    pub const CR2: Field<u64> = Field::at(0x640);
    pub const PAT: Field<u64> = Field::at(0x668);
}

/// The offsets of ES, CS, SS and DS in the VMCB. Each has a selector, attributes, a limit and a base.
const SEGMENTS: [usize; 4] = [0x400, 0x410, 0x420, 0x430];
const CODE: usize = 0x410;
const GDTR: usize = 0x460;
const IDTR: usize = 0x480;

/// The intercepts of the hypervisor (APM volume 2, 15.9): NMI, INIT, CPUID, INVLPGA, ports by the map, MSRs
/// by the map, and shutdown.
const INTERCEPTS: u32 = 1 << 1 | 1 << 3 | 1 << 18 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 31;
/// VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI and SKINIT.
const SVM_INTERCEPTS: u32 = 0x7f;

/// An exception or an NMI that the next VMRUN delivers at the guest's instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// #DB, after a single step.
    Debug,
    /// A non-maskable interrupt.
    Nmi,
    /// #UD.
    UndefinedOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// The addresses of the maps that all processors share.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// The physical address of the I/O permission map.
    pub ports: u64,
    /// The physical address of this processor's MSR permission map.
    pub msrs: u64,
    /// The physical address of the nested page table's root.
    pub nested: u64,
}

/// The state in which a processor begins to execute the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// 64-bit code with paging on: Linux's 64-bit boot protocol.
    Long(Registers),
    /// 32-bit protected mode with paging off: the multiboot protocol.
    Protected(Registers),
    /// 16-bit real mode at the page of this number, as after a SIPI.
    Real {
        /// The vector of the SIPI.
        page: u8,
    },
}

/// The registers at the guest's first instruction. All that are not listed are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The address of the first instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// RAX; multiboot's magic number.
    pub rax: u64,
    /// RBX; the address of multiboot's structure.
    pub rbx: u64,
    /// RSI; the address of Linux's boot parameters.
    pub rsi: u64,
    /// The address of the page table's root, in long mode.
    pub cr3: u64,
    /// The address of a GDT with code at 0x10 and data at 0x18.
    pub gdt: u64,
}

impl Vmcb {
    /// Creates a VMCB of zeros, with which VMRUN would fail.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self([0; 4096])
    }

    /// Reads a field.
    #[must_use]
    pub fn get<T: Word>(&self, field: Field<T>) -> T {
        T::get(&self.0[field.0..])
    }

    /// Writes a field.
    pub fn put<T: Word>(&mut self, field: Field<T>, value: T) {
        value.put(&mut self.0[field.0..]);
    }

    /// Sets the guest's first state, and all that the hypervisor asks of the processor.
    pub fn start(&mut self, start: &Start, maps: Maps, pat: u64) {
        self.0.fill(0);
        self.put(field::INTERCEPTS, INTERCEPTS);
        self.put(field::SVM_INTERCEPTS, SVM_INTERCEPTS);
        self.put(field::IOPM_BASE, maps.ports);
        self.put(field::MSRPM_BASE, maps.msrs);
        self.put(field::ASID, 1);
        self.put(field::NESTED_PAGING, 1);
        self.put(field::NESTED_CR3, maps.nested);
        self.put(field::PAT, pat);
        self.put(field::DR7, 0x400);
        self.put(field::DR6, 0xffff_0ff0);
        self.put(field::RFLAGS, 2);
        match start {
            Start::Long(registers) => {
                self.flat(0xa9b, registers);
                self.put(field::EFER, SVME | LMA | LME);
                self.put(field::CR0, 0x8000_0011);
                self.put(field::CR4, 0x20);
            }
            Start::Protected(registers) => {
                self.flat(0xc9b, registers);
                self.put(field::EFER, SVME);
                self.put(field::CR0, 0x11);
            }
            Start::Real { page } => self.real(*page),
        }
    }

    /// Sets flat segments, whose code segment has these attributes, and the registers.
    fn flat(&mut self, code: u16, registers: &Registers) {
        for at in SEGMENTS {
            let (selector, attributes) = if at == CODE {
                (0x10, code)
            } else {
                (0x18, 0xc93)
            };
            self.segment(at, selector, attributes, u32::MAX);
        }
        self.segment(GDTR, 0, 0, 31);
        self.put(Field::at(GDTR + 8), registers.gdt);
        self.put(field::CR3, registers.cr3);
        self.put(field::RIP, registers.rip);
        self.put(field::RSP, registers.rsp);
        self.put(field::RAX, registers.rax);
    }

    /// Sets the state after a SIPI (APM volume 2, 14.1.3 and 15.27.8).
    fn real(&mut self, page: u8) {
        for at in SEGMENTS {
            let attributes: u16 = if at == CODE { 0x9b } else { 0x93 };
            self.segment(at, 0, attributes, 0xffff);
        }
        self.segment(GDTR, 0, 0, 0xffff);
        self.segment(IDTR, 0, 0, 0xffff);
        self.put(field::CS, u16::from(page) << 8);
        self.put(field::CS_BASE, u64::from(page) << 12);
        self.put(field::EFER, SVME);
        self.put(field::CR0, 0x6000_0010);
    }

    fn segment(&mut self, at: usize, selector: u16, attributes: u16, limit: u32) {
        self.put(Field::at(at), selector);
        self.put(Field::at(at + 2), attributes);
        self.put(Field::at(at + 4), limit);
    }

    /// Returns true if the guest executes 64-bit code.
    #[must_use]
    pub fn is_long_code(&self) -> bool {
        self.get(field::EFER) & LMA != 0 && self.get(field::CS_ATTRIBUTES) & 0x200 != 0
    }

    /// Has the next VMRUN deliver an exception at the guest's instruction (APM volume 2, 15.20). In real
    /// mode no exception has an error code.
    pub fn inject(&mut self, exception: Exception) {
        const VALID: u64 = 1 << 31;
        const NMI: u64 = 2 << 8 | 2;
        const EXCEPTION: u64 = 3 << 8;
        const HAS_ERROR_CODE: u64 = 1 << 11;
        let event = match exception {
            Exception::Nmi => NMI,
            Exception::Debug => EXCEPTION | 0x1,
            Exception::UndefinedOpcode => EXCEPTION | 0x6,
            Exception::GeneralProtection if self.get(field::CR0) & 1 == 0 => EXCEPTION | 0xd,
            Exception::GeneralProtection => EXCEPTION | 0xd | HAS_ERROR_CODE,
        };
        self.put(field::EVENT_INJECTION, VALID | event);
    }

    /// Has the next VMRUN deliver again the event that the exit interrupted (APM volume 2, 15.7.2).
    pub fn redeliver_interrupted_event(&mut self) {
        let interrupted = self.get(field::EXIT_INT_INFO);
        if interrupted >> 31 & 1 == 1 {
            self.put(field::EVENT_INJECTION, interrupted);
        }
    }

    /// Moves the guest past the instruction that exited, to `rip`. The instruction ends an interrupt shadow.
    /// If the guest single-steps, it gets #DB after the instruction.
    pub fn advance(&mut self, rip: u64) {
        let rip = if self.is_long_code() {
            rip
        } else {
            rip & 0xffff_ffff
        };
        self.put(field::RIP, rip);
        self.put(
            field::INTERRUPT_SHADOW,
            self.get(field::INTERRUPT_SHADOW) & !1,
        );
        if self.get(field::RFLAGS) >> 8 & 1 == 1 {
            self.put(field::DR6, self.get(field::DR6) | 1 << 14);
            self.inject(Exception::Debug);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(start: &Start) -> Vmcb {
        let mut vmcb = Vmcb::zeroed();
        let maps = Maps {
            ports: 0x1000,
            msrs: 0x2000,
            nested: 0x3000,
        };
        vmcb.start(start, maps, 6);
        vmcb
    }

    #[test]
    fn every_start_has_svm_on_and_intercepts_msrs_and_svm_instructions() {
        let registers = Registers::default();
        for start in [
            Start::Long(registers),
            Start::Protected(registers),
            Start::Real { page: 8 },
        ] {
            let vmcb = started(&start);
            assert_ne!(vmcb.get(field::EFER) & SVME, 0, "{start:?}");
            assert_ne!(vmcb.get(field::INTERCEPTS) & 1 << 28, 0, "{start:?}");
            assert_eq!(vmcb.get(field::SVM_INTERCEPTS), 0x7f, "{start:?}");
            assert_eq!(vmcb.get(field::NESTED_PAGING), 1, "{start:?}");
            assert_ne!(vmcb.get(field::ASID), 0, "{start:?}");
        }
    }

    #[test]
    fn start_in_real_mode_has_code_segment_at_page_of_sipi() {
        let vmcb = started(&Start::Real { page: 0x9a });
        assert_eq!(vmcb.get(field::CS), 0x9a00);
        assert_eq!(vmcb.get(field::CS_BASE), 0x9_a000);
        assert_eq!(vmcb.get(field::RIP), 0);
    }

    #[test]
    fn injected_general_protection_has_error_code_except_in_real_mode() {
        let mut long = started(&Start::Long(Registers::default()));
        long.inject(Exception::GeneralProtection);
        assert_eq!(long.get(field::EVENT_INJECTION), 0x8000_0b0d);
        let mut real = started(&Start::Real { page: 1 });
        real.inject(Exception::GeneralProtection);
        assert_eq!(real.get(field::EVENT_INJECTION), 0x8000_030d);
    }

    #[test]
    fn single_stepped_instruction_ends_with_debug_exception() {
        let mut vmcb = started(&Start::Long(Registers::default()));
        vmcb.put(field::INTERRUPT_SHADOW, 1);
        vmcb.advance(0x10_0002);
        assert_eq!(
            (vmcb.get(field::RIP), vmcb.get(field::EVENT_INJECTION)),
            (0x10_0002, 0)
        );
        assert_eq!(vmcb.get(field::INTERRUPT_SHADOW), 0);
        vmcb.put(field::RFLAGS, 0x102);
        vmcb.advance(0x10_0004);
        assert_eq!(vmcb.get(field::EVENT_INJECTION), 0x8000_0301);
        assert_ne!(vmcb.get(field::DR6) & 1 << 14, 0);
    }
}
