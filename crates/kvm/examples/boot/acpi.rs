//! The least ACPI with which Linux finds its processors and can power off (ACPI 6.5, chapter 5).

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;

/// Where the tables are, the pointer to them first.
pub(crate) const RSDP: u32 = 0xe_0000;
const XSDT: u32 = 0xe_0100;
const FADT: u32 = 0xe_0200;
const MADT: u32 = 0xe_0400;
const DSDT: u32 = 0xe_0600;

// Ports of power management: four bytes of events, which never come, and two of control.
pub(crate) const PM_EVENTS: u16 = 0x600;
pub(crate) const PM_CONTROL: u16 = 0x604;
pub(crate) const PM_END: u16 = 0x605;
/// In the high byte of [`PM_CONTROL`]: go to sleep. Powering off is the only sleep there is.
pub(crate) const SLEEP: u8 = 1 << 5;

/// The bytes from [`RSDP`] on.
pub(crate) fn tables(cpus: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rsdp::new(OEM, XSDT.into()).to_aml_bytes(&mut bytes);
    for (address, table) in [
        (XSDT, xsdt()),
        (FADT, fadt()),
        (MADT, madt(cpus)),
        (DSDT, dsdt()),
    ] {
        bytes.resize((address - RSDP) as usize, 0);
        bytes.extend(table.as_slice());
    }
    bytes
}

const OEM: [u8; 6] = *b"MSRGAT";

fn table(signature: [u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(signature, length, revision, OEM, *b"BOOT    ", 1)
}

fn xsdt() -> Sdt {
    let mut table = table(*b"XSDT", 36, 1);
    table.append(u64::from(FADT));
    table.append(u64::from(MADT));
    table
}

fn fadt() -> Sdt {
    let mut table = table(*b"FACP", 244, 3);
    table.write_u32(40, DSDT);
    table.write_u16(46, 9); // interrupt of events
    table.write_u32(56, PM_EVENTS.into());
    table.write_u32(64, PM_CONTROL.into());
    table.write_u8(88, 4); // bytes of events
    table.write_u8(89, 2); // bytes of control
    table.write_u16(109, 1 << 2 | 1 << 5); // no VGA, no CMOS clock; no keyboard controller
    table.write_u32(112, 1 | 1 << 4 | 1 << 5); // WBINVD works, no power button, no sleep button
    table.write_u64(140, DSDT.into());
    table
}

/// Processors, and the I/O APIC with its pins in the order of interrupts.
fn madt(cpus: u8) -> Sdt {
    let mut table = table(*b"APIC", 44, 1);
    table.write_u32(36, 0xfee0_0000);
    table.write_u32(40, 1); // the old interrupt controllers are there too
    for number in 0..cpus {
        table.append_slice(&[0, 8, number, number, 1, 0, 0, 0]);
    }
    table.append_slice(&[1, 12, cpus, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    table
}

/// `Name (_S5, Package () { 5, 0, 0, 0 })`: powering off is sleep type 5.
fn dsdt() -> Sdt {
    let mut table = table(*b"DSDT", 36, 2);
    table.append_slice(b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0");
    table
}
