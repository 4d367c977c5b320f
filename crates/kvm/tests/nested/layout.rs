//! The layout of the VM's memory, and its content before a guest runs.
//!
//! Linear addresses of the guest equal physical ones. The same holds for the nested guest, but nested
//! paging maps its second large page to the same memory as its first. So an address in that page is valid
//! only for the nested guest, not for its hypervisor.
//!
//! | address | content |
//! |---|---|
//! | 0x01000 | GDT, IDT at 0x100, TSS at 0x800 |
//! | 0x02000 | PML4, PDPT and PD of both guests: 6 MiB in three large pages |
//! | 0x05000 | PML4, PDPT and PD of nested paging: 4 MiB, both halves mapped to the first 2 MiB |
//! | 0x08000 | the guest's [code](super::code); its stack ends at 0xa000 |
//! | 0x0b000 | the nested guest's code |
//! | 0x0c000 | the nested guest's [VMCB](super::vmcb) |
//! | 0x0d000 | the save area of VMRUN, then the guest's own area for VMSAVE |
//! | 0x18000 | a microcode update |

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::code;
use crate::vmcb::{self, Start};

/// The size of the memory in bytes; it starts at address 0.
pub(crate) const BYTES: usize = 0x2_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x1100;
const TSS: u64 = 0x1800;
const TABLES: u64 = 0x2000;
const NESTED_TABLES: u64 = 0x5000;
pub(crate) const GUEST: u64 = 0x8000;
const STACK_TOP: u64 = 0xa000;
pub(crate) const NESTED: u64 = 0xb000;
pub(crate) const VMCB: u64 = 0xc000;
pub(crate) const VMRUN_AREA: u64 = 0xd000;
const OWN_STATE: u64 = 0xe000;
/// The address of a microcode update for the guest, and the linear address of the same update for the
/// nested guest.
pub(crate) const UPDATE: u64 = 0x1_8000;
pub(crate) const NESTED_UPDATE: u64 = UPDATE + LARGE_PAGE;
/// An address that the nested guest's own page tables map, but that nested paging does not map.
pub(crate) const NESTED_NOWHERE: u64 = 2 * LARGE_PAGE;

/// The flags of a page table's entries: present, writable and, because nested paging requires it, user.
const TABLE: u64 = 0x7;
const LARGE: u64 = 0x80 | TABLE;
const LARGE_PAGE: u64 = 0x20_0000;

const GP_VECTOR: u16 = 13;
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x18;

const CR0_PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
pub(crate) const EFER_SCE_LME_LMA: u64 = 1 | 1 << 8 | 1 << 10;
pub(crate) const EFER_SVME: u64 = 1 << 12;
const RFLAGS_FIXED: u64 = 1 << 1;

/// Writes the page tables, the other tables of the CPU, and the code to the VM's memory.
pub(crate) fn load(memory: &GuestMemoryMmap) {
    let put = |at: u64, value: u64| {
        let written = memory.write_obj(value, GuestAddress(at));
        written.expect("memory");
    };
    put(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff);
    put(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff);
    put(
        GDT + u64::from(TSS_SELECTOR),
        0x0000_8b00_0000_0067 | TSS << 16,
    );
    // A present interrupt gate at CPL 0; its target is in the first 64 KiB.
    let gate = (GUEST + code::FAULT) | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
    put(IDT + u64::from(GP_VECTOR) * 16, gate);
    for (tables, pages) in [
        (TABLES, &[0, LARGE_PAGE, 2 * LARGE_PAGE][..]),
        (NESTED_TABLES, &[0, 0]),
    ] {
        let (pdpt, directory) = (tables + 0x1000, tables + 0x2000);
        put(tables, pdpt | TABLE);
        put(pdpt, directory | TABLE);
        for (entry, page) in (directory..).step_by(8).zip(pages) {
            put(entry, page | LARGE);
        }
    }
    for (code, at) in [(&code::GUEST[..], GUEST), (&code::NESTED, NESTED)] {
        let written = memory.write_slice(code, GuestAddress(at));
        written.expect("memory");
    }
}

/// Returns the VMCB of a nested guest that begins at this RIP with this RAX.
pub(crate) fn nested(rip: u64, rax: u64) -> [u8; vmcb::BYTES] {
    vmcb::vmcb(&Start {
        rip,
        rax,
        rsp: STACK_TOP,
        efer: EFER_SCE_LME_LMA | EFER_SVME,
        cr0: CR0_PE_MP_ET_NE_WP_PG,
        cr3: TABLES,
        cr4: CR4_PAE,
        nested_cr3: NESTED_TABLES,
    })
}

/// Returns the guest's general registers at the start of a step.
pub(crate) fn registers(rip: u64) -> kvm_regs {
    kvm_regs {
        rip,
        rbx: VMCB,
        rdi: OWN_STATE,
        rsp: STACK_TOP,
        rflags: RFLAGS_FIXED,
        ..kvm_regs::default()
    }
}

/// Returns the guest's system registers in long mode at CPL 0, derived from those of a new vCPU.
pub(crate) fn system_registers(made: &kvm_sregs) -> kvm_sregs {
    let data = segment(DATA_SELECTOR, 0x3);
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..kvm_dtable::default()
    };
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
            base: TSS,
            limit: 0x67,
            selector: TSS_SELECTOR,
            type_: 0xb,
            present: 1,
            ..kvm_segment::default()
        },
        gdt: table(GDT, 5 * 8 - 1),
        idt: table(IDT, (GP_VECTOR + 1) * 16 - 1),
        cr0: CR0_PE_MP_ET_NE_WP_PG,
        cr3: TABLES,
        cr4: CR4_PAE,
        efer: EFER_SCE_LME_LMA,
        ..*made
    }
}

/// Returns a flat segment of CPL 0.
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
