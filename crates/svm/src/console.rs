//! The hypervisor's output: JSON lines on QEMU's debug console (isa-debugcon). The serial port belongs to the guest; the
//! hypervisor writes there only the error that ends the machine, since a user may have no debug console.

use core::fmt::{self, Write as _};

use msrgate_svm::events::Escaped;
use spin::Mutex;

use crate::hardware::{end_machine, read_port, write_port};
use crate::status::Status;

/// The port of QEMU's isa-debugcon, which the I/O permission map closes to the guest.
pub(crate) const DEBUG: u16 = 0xe9;
const SERIAL: u16 = 0x3f8;

/// The debug console.
struct Debug;

impl fmt::Write for Debug {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            write_port(DEBUG, 1, byte.into());
        }
        Ok(())
    }
}

/// The first serial port.
struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const MAY_SEND: u32 = 0x20;
        for byte in text.bytes() {
            // A machine without the port reads ones, so the loop ends there too.
            while read_port(SERIAL + 5, 1) & MAY_SEND == 0 {}
            if byte == b'\n' {
                write_port(SERIAL, 1, b'\r'.into());
            }
            write_port(SERIAL, 1, byte.into());
        }
        Ok(())
    }
}

/// The lock by which lines of several processors do not mix.
static LINE: Mutex<()> = Mutex::new(());

/// Writes one line to the debug console: `write` writes it, with its end.
pub(crate) fn line(write: impl FnOnce(&mut dyn fmt::Write) -> fmt::Result) {
    let _one_at_a_time = LINE.lock();
    // `Debug` never fails.
    let _ = write(&mut Debug);
}

/// Says `text` as a line of the hypervisor itself.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    line(|out| {
        let text = alloc::format!("{text}");
        writeln!(out, "{{\"schema\":1,\"svm\":\"{}\"}}", Escaped(&text))
    });
}

/// Says why the machine ends, on both consoles, and ends it. Nothing is allocated.
pub(crate) fn fail(status: Status, why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(Serial, "msrgate-svm: {why}");
    let _ = writeln!(Debug, "msrgate-svm: {why}");
    end_machine(status as u8)
}
