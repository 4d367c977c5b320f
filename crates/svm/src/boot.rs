//! The way from the boot loader to the guest's first instruction: the memory map, and the guest's kernel in
//! memory.

pub mod acpi;
mod linux;
mod multiboot;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::archive::Files;
use crate::memory::{Memory, OWN};
use crate::vmcb::Start;

/// A stretch of physical addresses, as firmware describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// The kind of the addresses: 1 is free memory, all other kinds are not (ACPI, address range types).
    pub kind: u32,
}

/// The kind of a region that is free memory.
pub const FREE: u32 = 1;
/// The kind of a region that nobody may use.
pub const RESERVED: u32 = 2;

/// The description of the machine that the boot loader gives (PVH's `hvm_start_info`, version 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The memory map, in which the hypervisor's own pages are reserved.
    pub regions: Vec<Region>,
    /// The place of the archive.
    pub archive: Range<u64>,
    /// The address of ACPI's RSDP, if there is one.
    pub rsdp: Option<u64>,
}

/// An error before the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The hypervisor was not started by PVH, or without a memory map.
    NoStartInfo,
    /// The boot loader gave no archive.
    NoArchive,
    /// There is too little free memory below 640 KiB for what the kernel finds there.
    NoLowMemory,
    /// The kernel does not fit into free memory.
    NoRoom,
    /// The file `kernel` is neither a bzImage nor a multiboot kernel.
    NoKernel,
    /// The bzImage cannot be started in 64-bit mode.
    No64BitEntry,
    /// The file `kernel` is shorter than its header says.
    CutOff,
    /// The command line is longer than the kernel takes, in bytes.
    LongCommandLine(usize),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStartInfo => {
                "the boot loader gave no PVH start information with a memory map; start the hypervisor with QEMU's -kernel"
            }
            Self::NoArchive => "there is no archive; give it with QEMU's -initrd",
            Self::NoLowMemory => "there is too little free memory below 640 KiB",
            Self::NoRoom => {
                "the kernel does not fit into free memory; give the machine more, for example with QEMU's -m 512"
            }
            Self::NoKernel => {
                "the file \"kernel\" of the archive is neither a bzImage nor a multiboot kernel (ELF, 32 bits)"
            }
            Self::No64BitEntry => {
                "the kernel cannot be started in 64-bit mode; Linux can since 3.8, if it is built for 64 bits"
            }
            Self::CutOff => "the file \"kernel\" of the archive is cut off",
            Self::LongCommandLine(longest) => {
                return write!(
                    f,
                    "the file \"cmdline\" of the archive is longer than {longest} bytes"
                );
            }
        })
    }
}

impl core::error::Error for BootError {}

/// The low memory in which the hypervisor leaves what a kernel finds at its start: the boot parameters, the
/// first page tables, the GDT, the command line and a stack.
const LOW: Range<u64> = 0x1_0000..0x1_c000;
const PARAMETERS: u64 = 0x1_0000;
const TABLES: u64 = 0x1_1000;
const GDT: u64 = 0x1_7000;
const COMMAND_LINE: u64 = 0x1_8000;
/// The longest command line: the room up to the stack, without the zero at the end.
const LONGEST_COMMAND_LINE: usize = 0xfff;
const STACK: u64 = LOW.end;

impl Machine {
    /// Reads the start information at `at`.
    ///
    /// # Errors
    /// [`BootError::NoStartInfo`] and [`BootError::NoArchive`].
    pub fn read(memory: &impl Memory, at: u64) -> Result<Self, BootError> {
        const MAGIC: u32 = 0x336e_c578;
        let u32_at = |offset| memory.u32(at + offset).ok_or(BootError::NoStartInfo);
        let u64_at = |address| memory.u64(address).ok_or(BootError::NoStartInfo);
        if u32_at(0)? != MAGIC || u32_at(4)? < 1 {
            return Err(BootError::NoStartInfo);
        }
        let (map, regions) = (u64_at(at + 40)?, u64::from(u32_at(48)?));
        let mut read = Vec::new();
        for entry in (0..regions).map(|number| map + number * 24) {
            let (start, len) = (u64_at(entry)?, u64_at(entry + 8)?);
            let kind = memory.u32(entry + 16).ok_or(BootError::NoStartInfo)?;
            let end = start.saturating_add(len);
            read.push(Region { start, end, kind });
        }
        if read.is_empty() {
            return Err(BootError::NoStartInfo);
        }
        if u32_at(12)? == 0 {
            return Err(BootError::NoArchive);
        }
        let module = u64_at(at + 16)?;
        let (start, len) = (u64_at(module)?, u64_at(module + 8)?);
        Ok(Self {
            regions: without(&read, &OWN),
            archive: start..start.saturating_add(len),
            rsdp: acpi::rsdp(memory, u64_at(at + 32)?),
        })
    }

    /// Returns true if all of `range` is free memory.
    fn is_free(&self, range: &Range<u64>) -> bool {
        self.regions.iter().any(|region| {
            region.kind == FREE && region.start <= range.start && range.end <= region.end
        })
    }
}

/// Returns the map with `hole` reserved where it was free memory.
fn without(regions: &[Region], hole: &Range<u64>) -> Vec<Region> {
    let mut cut = Vec::new();
    for &region in regions {
        if region.kind != FREE || hole.end <= region.start || region.end <= hole.start {
            cut.push(region);
            continue;
        }
        let (start, end) = (region.start.max(hole.start), region.end.min(hole.end));
        let pieces = [
            (region.start, start, FREE),
            (start, end, RESERVED),
            (end, region.end, FREE),
        ];
        let pieces = pieces.iter().filter(|(start, end, _)| start < end);
        cut.extend(pieces.map(|&(start, end, kind)| Region { start, end, kind }));
    }
    cut
}

/// Puts the guest's kernel into memory, and returns the state in which it begins.
///
/// # Errors
/// [`BootError`]: the kernel cannot be started. Memory may have been written to.
pub fn load(
    memory: &mut impl Memory,
    machine: &Machine,
    files: &Files<'_>,
) -> Result<Start, BootError> {
    if !machine.is_free(&LOW) {
        return Err(BootError::NoLowMemory);
    }
    if files.cmdline.len() > LONGEST_COMMAND_LINE {
        return Err(BootError::LongCommandLine(LONGEST_COMMAND_LINE));
    }
    zero(memory, LOW.start, LOW.end - LOW.start)?;
    put(memory, COMMAND_LINE, files.cmdline)?;
    if files.kernel.get(0x202..0x206) == Some(b"HdrS") {
        linux::load(memory, machine, files).map(Start::Long)
    } else {
        multiboot::load(memory, machine, files.kernel).map(Start::Protected)
    }
}

fn put(memory: &mut impl Memory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write(address, bytes).ok_or(BootError::NoRoom)
}

fn zero(memory: &mut impl Memory, address: u64, len: u64) -> Result<(), BootError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(4096);
        put(
            memory,
            address + done,
            &ZEROS[..usize::try_from(piece).unwrap_or(0)],
        )?;
        done += piece;
    }
    Ok(())
}

/// Puts a flat GDT into low memory: code at 0x10, data at 0x18.
fn put_gdt(memory: &mut impl Memory, code: u64) -> Result<(), BootError> {
    put(memory, GDT + 16, &code.to_le_bytes())?;
    put(memory, GDT + 24, &0x00cf_9300_0000_ffff_u64.to_le_bytes())
}

#[cfg(test)]
mod tests;
