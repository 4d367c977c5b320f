//! Unsafe: the first Rust function of the boot processor, which entry.s calls. It prepares the guest and begins it.
#![expect(unsafe_code, reason = "entry.s calls this file by name")]

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;

use msrgate_program::{Cpu, Program};
use msrgate_svm::archive::files;
use msrgate_svm::boot::{self, Machine, acpi};
use msrgate_svm::guard::Guard;

use crate::console::{DEBUG, fail, say};
use crate::hardware::cpuid;
use crate::maps;
use crate::physical::Physical;
use crate::processors;
use crate::runtime::load_idt;
use crate::serve::{Counts, HYPERVISOR, Hypervisor, Processor, serve};
use crate::status::Status;

/// The first Rust function. `information` is the address of PVH's start information.
#[unsafe(no_mangle)]
extern "C" fn boot_processor_main(information: u64) -> ! {
    load_idt();
    match prepare(information) {
        Ok(processor) => serve(processor),
        Err(why) => fail(Status::NotStarted, format_args!("{why}")),
    }
}

fn prepare(information: u64) -> Result<Processor, String> {
    let text = |error: &dyn core::fmt::Display| error.to_string();
    if cpuid(0x8000_000a, 0).edx & 1 == 0 {
        return Err(
            "this processor has no nested paging; start QEMU with -cpu EPYC,+svm,+npt".into(),
        );
    }
    let mut memory = Physical;
    let machine = Machine::read(&memory, information).map_err(|error| text(&error))?;
    let archive = Physical::bytes(&machine.archive).ok_or("the archive is out of reach")?;
    let files = files(archive).map_err(|error| text(&error))?;
    let program = program("program", files.program)?;
    let replacement = files
        .replacement
        .map(|bytes| self::program("replacement", bytes));
    let (vendor, signature) = (cpuid(0, 0), cpuid(1, 0).eax);
    let cpu = Cpu::from_cpuid([vendor.ebx, vendor.edx, vendor.ecx], signature);
    let guard = Guard::new(program, &cpu).map_err(|error| text(&error))?;
    let power_port = machine
        .rsdp
        .and_then(|rsdp| acpi::power_port(&memory, rsdp));
    let ids = machine
        .rsdp
        .map(|rsdp| acpi::processors(&memory, rsdp))
        .unwrap_or_default();
    let begin = boot::load(&mut memory, &machine, &files).map_err(|error| text(&error))?;
    let power = power_port
        .into_iter()
        .flat_map(|port| [port, port.wrapping_add(1)]);
    maps::fill([DEBUG, 0x64, 0xcf9, 0xf4].into_iter().chain(power));
    *HYPERVISOR.lock() = Some(Hypervisor {
        guard,
        cpu,
        replacement: replacement.transpose()?,
        generation: 0,
        power_port,
        counts: Counts::default(),
    });
    processors::start(&ids)?;
    let count = ids.len().max(1);
    say(format_args!("start, processors: {count}"));
    Processor::new(0, &begin)
}

fn program(name: &str, bytes: &[u8]) -> Result<Arc<Program>, String> {
    Program::decode(bytes)
        .map(Arc::new)
        .map_err(|error| alloc::format!("the file \"{name}\" of the archive: {error}"))
}
