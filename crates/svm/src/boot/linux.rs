//! A bzImage, by Linux's 64-bit boot protocol (the kernel's document "The Linux/x86 Boot Protocol").

use super::{BootError, COMMAND_LINE, GDT, Machine, PARAMETERS, STACK, TABLES, put, put_gdt};
use crate::archive::Files;
use crate::memory::Memory;
use crate::vmcb::Registers;

/// The 64-bit code segment of the first GDT.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// The number of regions that the boot parameters have room for.
const MOST_REGIONS: usize = 128;

/// The fields of the kernel's header that the hypervisor reads.
struct Header<'k> {
    kernel: &'k [u8],
    /// The position of the protected-mode code in the file.
    code: usize,
    /// The address at which the kernel wants to run.
    preferred: u64,
    /// The number of bytes that the kernel needs from there on.
    needed: u64,
}

impl<'k> Header<'k> {
    fn read(kernel: &'k [u8]) -> Result<Self, BootError> {
        const HAS_64_BIT_ENTRY: u8 = 1;
        /// The first version of the protocol with `xloadflags`.
        const VERSION: u16 = 0x20c;
        let bytes = |at: usize, len| kernel.get(at..at + len).ok_or(BootError::CutOff);
        let u8_at = |at| bytes(at, 1).map(|one| one[0]);
        let version = u16::from_le_bytes([u8_at(0x206)?, u8_at(0x207)?]);
        if version < VERSION || u8_at(0x236)? & HAS_64_BIT_ENTRY == 0 {
            return Err(BootError::No64BitEntry);
        }
        let sectors = match u8_at(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let integer = |at, len| {
            let little = bytes(at, len)?.iter().rev();
            Ok(little.fold(0, |value, &byte| value << 8 | u64::from(byte)))
        };
        Ok(Self {
            kernel,
            code: (sectors + 1) * 512,
            preferred: integer(0x258, 8)?,
            needed: integer(0x260, 4)?,
        })
    }

    /// The part of the file that the boot parameters repeat.
    fn setup(&self) -> Result<&[u8], BootError> {
        let end = 0x202 + usize::from(self.kernel[0x201]);
        self.kernel.get(0x1f1..end).ok_or(BootError::CutOff)
    }
}

/// Puts the kernel into memory, and returns the registers with which it begins.
pub(super) fn load(
    memory: &mut impl Memory,
    machine: &Machine,
    files: &Files<'_>,
) -> Result<Registers, BootError> {
    let header = Header::read(files.kernel)?;
    let end = header.preferred.checked_add(header.needed);
    let room = header.preferred..end.ok_or(BootError::NoRoom)?;
    let is_apart = room.end <= machine.archive.start || machine.archive.end <= room.start;
    if !machine.is_free(&room) || !is_apart {
        return Err(BootError::NoRoom);
    }
    let code = files.kernel.get(header.code..).ok_or(BootError::CutOff)?;
    if code.len() as u64 > header.needed {
        return Err(BootError::NoRoom);
    }
    put(memory, room.start, code)?;
    put_parameters(memory, machine, &header)?;
    put_initramfs(memory, machine, files.initramfs)?;
    put_tables(memory)?;
    put_gdt(memory, CODE)?;
    Ok(Registers {
        rip: room.start + 0x200,
        rsp: STACK,
        rsi: PARAMETERS,
        cr3: TABLES,
        gdt: GDT,
        ..Registers::default()
    })
}

fn put_parameters(
    memory: &mut impl Memory,
    machine: &Machine,
    header: &Header<'_>,
) -> Result<(), BootError> {
    const UNKNOWN_LOADER: u8 = 0xff;
    let mut put = |offset: u64, bytes: &[u8]| put(memory, PARAMETERS + offset, bytes);
    put(0x1f1, header.setup()?)?;
    put(0x210, &[UNKNOWN_LOADER])?;
    put(0x228, &COMMAND_LINE.to_le_bytes()[..4])?;
    put(0x70, &machine.rsdp.unwrap_or(0).to_le_bytes())?;
    let regions = &machine.regions[..machine.regions.len().min(MOST_REGIONS)];
    put(0x1e8, &[u8::try_from(regions.len()).unwrap_or(u8::MAX)])?;
    for (number, region) in (0..).zip(regions) {
        let at = 0x2d0 + number * 20;
        put(at, &region.start.to_le_bytes())?;
        put(at + 8, &(region.end - region.start).to_le_bytes())?;
        put(at + 16, &region.kind.to_le_bytes())?;
    }
    Ok(())
}

/// Moves the initramfs to the beginning of a page, where the kernel wants it. Files of the archive begin at
/// any multiple of four bytes, and the page before is the archive's, or free.
fn put_initramfs(
    memory: &mut impl Memory,
    machine: &Machine,
    initramfs: &[u8],
) -> Result<(), BootError> {
    if initramfs.is_empty() {
        return Ok(());
    }
    let at = machine.archive.start & !0xfff;
    put(memory, at, initramfs)?;
    let [a, b, c, d, high @ ..] = at.to_le_bytes();
    put(memory, PARAMETERS + 0x218, &[a, b, c, d])?;
    put(memory, PARAMETERS + 0xc0, &high)?;
    let [a, b, c, d, high @ ..] = (initramfs.len() as u64).to_le_bytes();
    put(memory, PARAMETERS + 0x21c, &[a, b, c, d])?;
    put(memory, PARAMETERS + 0xc4, &high)
}

/// Puts page tables into low memory which map the first 4 GiB one to one, by pages of 2 MiB.
fn put_tables(memory: &mut impl Memory) -> Result<(), BootError> {
    let mut entry = |at: u64, entry: u64| put(memory, at, &entry.to_le_bytes());
    entry(TABLES, TABLES + 0x1003)?;
    for number in 0..4 {
        entry(
            TABLES + 0x1000 + number * 8,
            TABLES + 0x2003 + number * 0x1000,
        )?;
    }
    for number in 0..4 * 512 {
        entry(TABLES + 0x2000 + number * 8, number << 21 | 0x83)?;
    }
    Ok(())
}
