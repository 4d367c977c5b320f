//! The layout of the guest's memory, and the tables that a CPU needs in long mode.
//!
//! Linear addresses equal physical addresses. Each vCPU has 512 KiB of its own, starting at 1 MiB:
//!
//! | offset | content |
//! |---|---|
//! | 0x00000 | GDT at 0, IDT at 0x100, TSS at 0x800 |
//! | 0x01000 | PML4, then PDPT and PD: 4 MiB in two large pages |
//! | 0x04000 | [code](super::code) |
//! | 0x05000 | stack |
//! | 0x10000 | the [slots](super::slot) |
//! | 0x50000 | the end of the part that is backed by memory |

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::code;
use super::slot;
use crate::sys::memory::PAGE;

/// The number of slots in a vCPU's memory, including the slot that ends the script.
pub(super) const SLOTS: usize = (BYTES - SLOT_AREA) / (slot::WORDS * 8);

/// The size of a vCPU's memory in bytes.
const BYTES: usize = 0x5_0000;
/// The size of a vCPU's memory in pages.
pub(super) const PAGES: usize = BYTES / PAGE;

const FIRST: u64 = 0x10_0000;
const STRIDE: u64 = 0x8_0000;

const IDT: usize = 0x100;
const TSS: usize = 0x800;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE: usize = 0x4000;
const STACK_TOP: usize = 0x6000;
const SLOT_AREA: usize = 0x1_0000;

const GP_VECTOR: u16 = 13;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x18;

const PAGE_PRESENT_WRITABLE: u64 = 0x3;
const PAGE_LARGE: u64 = 0x80;
const LARGE_PAGE: u64 = 0x20_0000;

const CR0_PE_MP_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 5 | 1 << 16 | 1 << 31;
const CR0_ET: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const EFER_SCE_LME_LMA: u64 = 1 | 1 << 8 | 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

/// The number of a vCPU in its VM. The guest's mapping of 4 MiB has room for the memory of six vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VcpuNumber(u8);

impl VcpuNumber {
    /// The first vCPU, which every VM has.
    pub(crate) const FIRST: Self = Self(0);

    /// Returns the numbers of the five vCPUs after the first one.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn others() -> impl Iterator<Item = Self> {
        (1..6).map(Self)
    }

    pub(crate) const fn get(self) -> u8 {
        self.0
    }

    /// The address at which this vCPU's memory begins.
    pub(super) const fn base(self) -> u64 {
        FIRST + self.0 as u64 * STRIDE
    }

    /// Returns the guest's address for this offset in the vCPU's memory.
    const fn at(self, offset: usize) -> u64 {
        self.base() + offset as u64
    }

    /// The guest's address of the vCPU's machine code.
    pub(super) const fn code(self) -> u64 {
        self.at(CODE)
    }

    /// The vCPU's general registers at the start of a script.
    pub(super) fn registers(self) -> kvm_regs {
        kvm_regs {
            rip: self.code() + code::START,
            rsi: self.at(SLOT_AREA),
            rsp: self.at(STACK_TOP),
            rflags: RFLAGS_FIXED,
            ..kvm_regs::default()
        }
    }

    /// The vCPU's system registers in long mode at CPL 0, derived from those of a CPU after reset.
    pub(super) fn system_registers(self, reset: &kvm_sregs) -> kvm_sregs {
        let data = segment(DATA_SELECTOR, 0x3);
        kvm_sregs {
            cs: kvm_segment {
                l: 1,
                db: 0,
                ..segment(CODE_SELECTOR, 0xb)
            },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: kvm_segment {
                base: self.at(TSS),
                limit: 0x67,
                selector: TSS_SELECTOR,
                type_: 0xb,
                present: 1,
                ..kvm_segment::default()
            },
            gdt: kvm_dtable {
                base: self.base(),
                limit: 5 * 8 - 1,
                ..kvm_dtable::default()
            },
            idt: kvm_dtable {
                base: self.at(IDT),
                limit: (GP_VECTOR + 1) * 16 - 1,
                ..kvm_dtable::default()
            },
            cr0: CR0_PE_MP_NE_WP_PG | CR0_ET,
            cr3: self.at(PML4),
            cr4: CR4_PAE,
            efer: EFER_SCE_LME_LMA,
            ..*reset
        }
    }

    /// Writes the tables and the code into the vCPU's memory, which consists of `words`.
    pub(super) fn load(self, words: &[AtomicU64]) {
        let put = |offset: usize, value: u64| words[offset / 8].store(value, Ordering::Relaxed);
        put(CODE_SELECTOR.into(), 0x00af_9b00_0000_ffff);
        put(DATA_SELECTOR.into(), 0x00cf_9300_0000_ffff);
        let tss = self.at(TSS);
        put(TSS_SELECTOR.into(), 0x0000_8b00_0000_0067 | tss << 16);

        // A gate of the IDT: a present interrupt gate at CPL 0. The address of the #GP handler is split
        // into three fields.
        let handler = self.code() + code::FAULT;
        let selector = u64::from(CODE_SELECTOR) << 16;
        let gate = handler & 0xffff | selector | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        let gate_at = IDT + usize::from(GP_VECTOR) * 16;
        put(gate_at, gate);
        put(gate_at + 8, handler >> 32);

        put(PML4, self.at(PDPT) | PAGE_PRESENT_WRITABLE);
        put(PDPT, self.at(PD) | PAGE_PRESENT_WRITABLE);
        for (entry, page) in (PD..).step_by(8).zip([0, LARGE_PAGE]) {
            put(entry, page | PAGE_PRESENT_WRITABLE | PAGE_LARGE);
        }

        for (offset, chunk) in (CODE..).step_by(8).zip(code::CODE.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            put(offset, u64::from_le_bytes(bytes));
        }
    }
}

/// Returns the words of slot number `number`, from all words of a vCPU's memory.
pub(super) fn slot(words: &[AtomicU64], number: usize) -> &[AtomicU64] {
    &words[SLOT_AREA / 8 + number * slot::WORDS..][..slot::WORDS]
}

/// Returns a flat segment for CPL 0.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
