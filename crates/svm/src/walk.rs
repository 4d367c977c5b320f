//! The guest's own page tables: from a linear address to a physical one (APM volume 2, chapter 5).
//!
//! The hypervisor looks at the guest's instruction to find its length. It checks no access rights: the
//! processor has just executed the instruction.

use crate::memory::{Memory, is_guests};
use crate::vmcb::{LMA, Vmcb, field};

/// The bits of a table's entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The bit of an entry that says that it is present.
const PRESENT: u64 = 1;
/// The bit of an entry that makes it a large page.
const LARGE: u64 = 1 << 7;

/// The guest's way of paging.
#[derive(Clone, Copy)]
enum Paging {
    /// Linear addresses are physical.
    Off,
    /// Two levels of tables with entries of 32 bits.
    TwoLevels { has_large_pages: bool },
    /// Tables with entries of 64 bits.
    Levels { levels: u32, root: u64 },
}

impl Paging {
    fn of(vmcb: &Vmcb) -> Self {
        let (cr3, cr4) = (vmcb.get(field::CR3), vmcb.get(field::CR4));
        let is_long = vmcb.get(field::EFER) & LMA != 0;
        if vmcb.get(field::CR0) >> 31 & 1 == 0 {
            Self::Off
        } else if cr4 >> 5 & 1 == 0 {
            Self::TwoLevels {
                has_large_pages: cr4 >> 4 & 1 == 1,
            }
        } else if !is_long {
            Self::Levels {
                levels: 3,
                root: cr3 & 0xffff_ffe0,
            }
        } else {
            let levels = if cr4 >> 12 & 1 == 1 { 5 } else { 4 };
            Self::Levels {
                levels,
                root: cr3 & ADDRESS,
            }
        }
    }
}

/// Returns the physical address of the guest's linear address `linear`, or `None` if the guest's tables have
/// none, or one that is not the guest's.
#[must_use]
pub fn physical(memory: &impl Memory, vmcb: &Vmcb, linear: u64) -> Option<u64> {
    let address = match Paging::of(vmcb) {
        Paging::Off => linear & 0xffff_ffff,
        Paging::TwoLevels { has_large_pages } => {
            two_levels(memory, vmcb.get(field::CR3), linear, has_large_pages)?
        }
        Paging::Levels { levels, root } => walk(memory, root, levels, linear)?,
    };
    is_guests(address, 1).then_some(address)
}

fn two_levels(memory: &impl Memory, cr3: u64, linear: u64, has_large_pages: bool) -> Option<u64> {
    let entry = |table: u64, shift: u32| {
        let at = table & 0xffff_f000 | (linear >> shift & 0x3ff) << 2;
        memory
            .u32(at)
            .map(u64::from)
            .filter(|entry| entry & PRESENT != 0)
    };
    let directory = entry(cr3, 22)?;
    if directory & LARGE != 0 && has_large_pages {
        let above_4_gib = (directory >> 13 & 0xff) << 32;
        return Some(directory & 0xffc0_0000 | above_4_gib | linear & 0x3f_ffff);
    }
    let page = entry(directory, 12)?;
    Some(page & 0xffff_f000 | linear & 0xfff)
}

fn walk(memory: &impl Memory, root: u64, levels: u32, linear: u64) -> Option<u64> {
    let mut table = root;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = memory.u64(table | (linear >> shift & 0x1ff) << 3)?;
        if entry & PRESENT == 0 {
            return None;
        }
        // Pages are 4 KiB at level 0, and may be 2 MiB at level 1 and, in long mode, 1 GiB at level 2.
        let may_be_large = level == 1 || level == 2 && levels > 3;
        if level == 0 || may_be_large && entry & LARGE != 0 {
            let inside = (1 << shift) - 1;
            return Some(entry & ADDRESS & !inside | linear & inside);
        }
        table = entry & ADDRESS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::Ram;

    /// A guest in long mode with tables at 0x1000 (level 4), 0x2000, 0x3000 and 0x4000 (level 1).
    fn long() -> (Ram, Vmcb) {
        let mut ram = Ram::of_mib(8);
        for (at, entry) in [
            (0x1000, 0x2003u64),
            (0x2000, 0x3003),
            (0x2008, 0x4000_0083),
            (0x3000, 0x4003),
            (0x3008, 0x40_0083),
            (0x4008, 0x7003),
            (0x4010, 0x20_0003),
        ] {
            ram.write(at, &entry.to_le_bytes()).unwrap();
        }
        let mut vmcb = Vmcb::zeroed();
        vmcb.put(field::CR0, 0x8000_0001);
        vmcb.put(field::CR4, 0x20);
        vmcb.put(field::CR3, 0x1000);
        vmcb.put(field::EFER, LMA);
        (ram, vmcb)
    }

    #[test]
    fn pages_of_all_three_sizes_are_found_in_long_mode() {
        let (ram, vmcb) = long();
        assert_eq!(physical(&ram, &vmcb, 0x1234), Some(0x7234));
        assert_eq!(physical(&ram, &vmcb, 0x21_2345), Some(0x41_2345));
        assert_eq!(physical(&ram, &vmcb, 0x4012_3456), Some(0x4012_3456));
    }

    #[test]
    fn missing_page_and_page_of_hypervisor_have_no_address() {
        let (ram, vmcb) = long();
        assert_eq!(physical(&ram, &vmcb, 0), None);
        assert_eq!(physical(&ram, &vmcb, 0x2010), None);
        assert_eq!(physical(&ram, &vmcb, 1 << 39), None);
    }

    #[test]
    fn tables_inside_hypervisor_have_no_address() {
        let (ram, mut vmcb) = long();
        vmcb.put(field::CR3, 0x20_0000);
        assert_eq!(physical(&ram, &vmcb, 0x1234), None);
    }

    #[test]
    fn large_page_of_two_level_paging_needs_its_bit_in_cr4() {
        let mut ram = Ram::of_mib(8);
        ram.write(0x1000, &0x40_0083u32.to_le_bytes()).unwrap();
        ram.write(0x40_0004, &0x50_0003u32.to_le_bytes()).unwrap();
        let mut vmcb = Vmcb::zeroed();
        vmcb.put(field::CR0, 0x8000_0001);
        vmcb.put(field::CR3, 0x1000);
        vmcb.put(field::CR4, 0x10);
        assert_eq!(physical(&ram, &vmcb, 0x1234), Some(0x40_1234));
        vmcb.put(field::CR4, 0);
        assert_eq!(physical(&ram, &vmcb, 0x1234), Some(0x50_0234));
    }

    #[test]
    fn address_without_paging_is_cut_to_32_bits() {
        let vmcb = Vmcb::zeroed();
        assert_eq!(
            physical(&Ram::of_mib(0), &vmcb, 0x1_0000_1234),
            Some(0x1234)
        );
    }
}
