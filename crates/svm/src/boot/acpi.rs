//! The tables of ACPI that the hypervisor reads: the processors, and the ports that end the machine.

use alloc::vec::Vec;

use crate::memory::Memory;

/// Returns the address of the RSDP: `given`, unless it is 0, or else the one in the firmware's memory.
pub(super) fn rsdp(memory: &impl Memory, given: u64) -> Option<u64> {
    const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
    if given != 0 {
        return Some(given);
    }
    let mut places = (0xe_0000..0x10_0000).step_by(16);
    places.find(|&at| memory.u64(at) == Some(SIGNATURE))
}

/// Returns the address and the length of the table with this signature.
fn table(memory: &impl Memory, rsdp: u64, signature: [u8; 4]) -> Option<(u64, u32)> {
    let root = u64::from(memory.u32(rsdp + 16)?);
    let len = u64::from(memory.u32(root + 4)?);
    let entries = (36..len.min(36 + 4 * 64)).step_by(4);
    let tables = entries.filter_map(|at| memory.u32(root + at).map(u64::from));
    let signature = u32::from_le_bytes(signature);
    tables
        .filter(|&at| memory.u32(at) == Some(signature))
        .find_map(|at| memory.u32(at + 4).map(|len| (at, len)))
}

/// Returns the APIC IDs of the processors that the MADT lists as usable.
#[must_use]
pub fn processors(memory: &impl Memory, rsdp: u64) -> Vec<u32> {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    let mut found = Vec::new();
    let Some((madt, len)) = table(memory, rsdp, *b"APIC") else {
        return found;
    };
    let mut at = madt + 44;
    let end = madt + u64::from(len);
    while at + 2 <= end
        && let (Some(kind), Some(entry_len)) = (memory.u8(at), memory.u8(at + 1))
    {
        let (id, flags) = match kind {
            LOCAL_APIC => (memory.u8(at + 3).map(u32::from), memory.u32(at + 4)),
            LOCAL_X2APIC => (memory.u32(at + 4), memory.u32(at + 8)),
            _ => (None, None),
        };
        if let (Some(id), Some(flags)) = (id, flags)
            && flags & 1 == 1
        {
            found.push(id);
        }
        at += u64::from(entry_len.max(2));
    }
    found
}

/// Returns the port `PM1a_CNT`, by which the guest switches the machine off.
#[must_use]
pub fn power_port(memory: &impl Memory, rsdp: u64) -> Option<u16> {
    let (fadt, _) = table(memory, rsdp, *b"FACP")?;
    let port = memory.u32(fadt + 64)?;
    u16::try_from(port).ok().filter(|&port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::Ram;

    const RSDP: u64 = 0xf_0010;

    fn machine(madt: &[u8]) -> Ram {
        let mut ram = Ram::of_mib(2);
        let mut put = |at: u64, bytes: &[u8]| ram.write(at, bytes).unwrap();
        put(RSDP, b"RSD PTR ");
        put(RSDP + 16, &0x1000u32.to_le_bytes());
        put(0x1004, &44u32.to_le_bytes());
        put(0x1000 + 36, &0x2000u32.to_le_bytes());
        put(0x1000 + 40, &0x3000u32.to_le_bytes());
        put(0x2000, b"FACP");
        put(0x2004, &116u32.to_le_bytes());
        put(0x2000 + 64, &0x604u32.to_le_bytes());
        put(0x3000, b"APIC");
        put(
            0x3004,
            &u32::try_from(44 + madt.len()).unwrap().to_le_bytes(),
        );
        put(0x3000 + 44, madt);
        ram
    }

    #[test]
    fn usable_processors_of_both_kinds_are_listed() {
        let mut madt = Vec::new();
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]); // ID 0, usable
        madt.extend([0, 8, 1, 5, 0, 0, 0, 0]); // ID 5, not usable
        madt.extend([1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // an I/O APIC
        madt.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // ID 0x100 of an x2APIC
        let ram = machine(&madt);
        assert_eq!(processors(&ram, RSDP), [0, 0x100]);
        assert_eq!(power_port(&ram, RSDP), Some(0x604));
    }

    #[test]
    fn entry_of_length_zero_does_not_loop_for_ever() {
        assert!(processors(&machine(&[0; 40]), RSDP).is_empty());
    }

    #[test]
    fn rsdp_is_found_in_firmwares_memory_if_boot_loader_gives_none() {
        let ram = machine(&[]);
        assert_eq!(rsdp(&ram, 0), Some(RSDP));
        assert_eq!(rsdp(&ram, 0x1234), Some(0x1234));
        assert_eq!(rsdp(&Ram::of_mib(2), 0), None);
    }
}
