//! A multiboot 1 kernel in a 32-bit ELF file (the Multiboot Specification, version 0.6.96). The programs of
//! kvm-unit-tests and the hypervisor's own test guest are such kernels.

use super::{
    BootError, COMMAND_LINE, FREE, GDT, LOW, Machine, PARAMETERS, STACK, put, put_gdt, zero,
};
use crate::memory::Memory;
use crate::vmcb::Registers;

/// The 32-bit code segment of the first GDT.
const CODE: u64 = 0x00cf_9b00_0000_ffff;
/// The number in EAX by which the kernel knows its loader.
const LOADER: u64 = 0x2bad_b002;

/// Puts the kernel into memory, and returns the registers with which it begins.
pub(super) fn load(
    memory: &mut impl Memory,
    machine: &Machine,
    kernel: &[u8],
) -> Result<Registers, BootError> {
    const MAGIC: [u8; 4] = 0x1bad_b002_u32.to_le_bytes();
    const ELF_32_BITS: &[u8] = b"\x7fELF\x01";
    let has_header = kernel.chunks_exact(4).take(2048).any(|word| word == MAGIC);
    if !kernel.starts_with(ELF_32_BITS) || !has_header {
        return Err(BootError::NoKernel);
    }
    let u32_at = |at: usize| {
        let bytes = kernel.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let [size, count] = [0x2a, 0x2c].map(|at| u32_at(at).map(|both| both as usize & 0xffff));
    let table = u32_at(0x1c).ok_or(BootError::CutOff)? as usize;
    let (size, count) = size.zip(count).ok_or(BootError::CutOff)?;
    for header in (0..count).map(|number| table + number * size) {
        let fields = [0, 4, 12, 16, 20].map(|offset| u32_at(header + offset));
        let [Some(kind), Some(offset), Some(to), Some(filled), Some(len)] = fields else {
            return Err(BootError::CutOff);
        };
        if kind == 1 && len != 0 {
            let (offset, filled) = (offset as usize, filled as usize);
            let bytes = kernel
                .get(offset..offset + filled)
                .ok_or(BootError::CutOff)?;
            put_segment(memory, machine, u64::from(to), bytes, u64::from(len))?;
        }
    }
    let entry = u64::from(u32_at(0x18).ok_or(BootError::CutOff)?);
    put_information(memory, machine, entry)?;
    put_gdt(memory, CODE)?;
    Ok(Registers {
        rip: entry,
        rsp: STACK,
        rax: LOADER,
        rbx: PARAMETERS,
        gdt: GDT,
        ..Registers::default()
    })
}

fn put_segment(
    memory: &mut impl Memory,
    machine: &Machine,
    to: u64,
    bytes: &[u8],
    len: u64,
) -> Result<(), BootError> {
    let range = to..to + len;
    let archive = &machine.archive;
    let is_apart = range.end <= archive.start || archive.end <= range.start;
    if !machine.is_free(&range) || range.start < LOW.end || !is_apart || bytes.len() as u64 > len {
        return Err(BootError::NoRoom);
    }
    put(memory, to, bytes)?;
    zero(memory, to + bytes.len() as u64, len - bytes.len() as u64)
}

/// Puts multiboot's structure into low memory: sizes of memory, the command line, the memory map.
fn put_information(
    memory: &mut impl Memory,
    machine: &Machine,
    entry: u64,
) -> Result<(), BootError> {
    /// The structure has the sizes of memory, a command line and a memory map.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 6;
    const MAP: u64 = PARAMETERS + 0x100;
    let end_of_region = |of: u64| {
        let mut free = machine.regions.iter().filter(|region| region.kind == FREE);
        free.find(|region| region.start <= of && of < region.end)
            .map_or(0, |region| region.end)
    };
    // Upper memory begins at 1 MiB and ends at the first hole. That hole is the hypervisor, so the size is
    // that of the region in which the kernel lies: kernels that trust the size begin after their own end.
    let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX).to_le_bytes();
    let len = u32::try_from(machine.regions.len() * 24).unwrap_or(0);
    put(memory, PARAMETERS, &FLAGS.to_le_bytes())?;
    put(memory, PARAMETERS + 4, &kib(end_of_region(0)))?;
    put(
        memory,
        PARAMETERS + 8,
        &kib(end_of_region(entry).saturating_sub(1 << 20)),
    )?;
    put(memory, PARAMETERS + 16, &COMMAND_LINE.to_le_bytes()[..4])?;
    put(memory, PARAMETERS + 44, &len.to_le_bytes())?;
    put(memory, PARAMETERS + 48, &MAP.to_le_bytes()[..4])?;
    for (number, region) in (0..).zip(&machine.regions) {
        let at = MAP + number * 24;
        put(memory, at, &20u32.to_le_bytes())?;
        put(memory, at + 4, &region.start.to_le_bytes())?;
        put(memory, at + 12, &(region.end - region.start).to_le_bytes())?;
        put(memory, at + 20, &region.kind.to_le_bytes())?;
    }
    Ok(())
}
