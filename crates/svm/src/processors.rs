//! Unsafe: starts the other processors, which wait in the hypervisor until the guest starts them.
//!
//! The guest starts a processor by INIT and SIPI, which would reset it out of the hypervisor. The hypervisor
//! therefore traps writes to the APIC's page, and handles these two commands itself. All other writes reach the
//! APIC. A processor that the hypervisor did not get never runs a guest's instruction: the start of the machine fails.
#![expect(unsafe_code, reason = "entry.s has symbols and calls of this file")]

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use msrgate_svm::icr::{APIC, Command, ICR, ICR_HIGH, Kind};
use msrgate_svm::memory::Memory as _;
use msrgate_svm::vmcb::Start;

use crate::console::fail;
use crate::hardware::{MOST, cpuid, read_port};
use crate::physical::{Physical, read_device, write_device};
use crate::runtime::load_idt;
use crate::serve::{Processor, serve};
use crate::status::Status;

/// The page at which other processors begin. entry.s knows the address.
const TRAMPOLINE: u64 = 0x8000;

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// The number of processors that have begun, the first one included. entry.s counts it up.
#[unsafe(no_mangle)]
static processors_started: AtomicU32 = AtomicU32::new(1);

/// The state of one processor that others look at.
pub(crate) struct Shared {
    /// The ID of the processor's APIC.
    id: AtomicU32,
    /// 0, or [`SENT`] and the vector of the SIPI by which the guest has started the processor.
    startup: AtomicU32,
    /// True from before an entry into the guest until after the exit.
    in_guest: AtomicBool,
    /// The number of the last replacement of the program that the processor has taken.
    generation: AtomicU64,
    /// True if another processor has sent an NMI to make the guest exit.
    is_kicked: AtomicBool,
}

const SENT: u32 = 0x100;

static SHARED: [Shared; MOST] = [const {
    Shared {
        id: AtomicU32::new(0),
        startup: AtomicU32::new(0),
        in_guest: AtomicBool::new(false),
        generation: AtomicU64::new(0),
        is_kicked: AtomicBool::new(false),
    }
}; MOST];

fn started() -> impl Iterator<Item = (usize, &'static Shared)> {
    let count = processors_started.load(Ordering::Acquire) as usize;
    SHARED.iter().enumerate().take(count)
}

/// Waits for so many microseconds: a read of the port 0x80 takes about one.
fn wait(microseconds: u32) {
    for _ in 0..microseconds {
        read_port(0x80, 1);
    }
}

fn apic_id() -> u32 {
    cpuid(1, 0).ebx >> 24
}

/// Starts all processors but this one, and returns when they wait in the hypervisor. `ids` are the APIC IDs of
/// the machine's usable processors.
///
/// # Errors
/// The reason why the guest must not start, in words.
pub(crate) fn start(ids: &[u32]) -> Result<(), &'static str> {
    /// INIT for all processors but this one.
    const INIT: u32 = 0xc_4500;
    /// SIPI for all processors but this one, at the page of the trampoline.
    const STARTUP: u32 = 0xc_4608;
    SHARED[0].id.store(apic_id(), Ordering::Release);
    // A machine without a MADT has one processor.
    let expected = ids.len().max(1);
    if expected > MOST {
        return Err(
            "the machine has more than 8 processors; one that the hypervisor does not guard would be a hole",
        );
    }
    if expected == 1 {
        return Ok(());
    }
    let (from, end) = (&raw const trampoline, &raw const trampoline_end);
    // SAFETY: entry.s defines both symbols around the code, which is in the hypervisor's image.
    let code = unsafe { core::slice::from_raw_parts(from, end.addr() - from.addr()) };
    let mut memory = Physical;
    memory
        .write(TRAMPOLINE, code)
        .ok_or("there is no memory at 0x8000")?;
    write_device(APIC + ICR, INIT).ok_or("there is no APIC")?;
    wait(10_000);
    write_device(APIC + ICR, STARTUP).ok_or("there is no APIC")?;
    for _ in 0..2000 {
        if processors_started.load(Ordering::Acquire) as usize == expected {
            return Ok(());
        }
        wait(1000);
    }
    Err("not all processors start; one that the hypervisor does not guard would be a hole")
}

/// The first Rust function of another processor. Waits until the guest starts the processor.
#[unsafe(no_mangle)]
extern "C" fn other_processor_main(number: usize) -> ! {
    load_idt();
    let own = &SHARED[number];
    own.id.store(apic_id(), Ordering::Release);
    let startup = loop {
        match own.startup.load(Ordering::Acquire) {
            0 => core::hint::spin_loop(),
            startup => break startup,
        }
    };
    let [page, ..] = startup.to_le_bytes();
    match Processor::new(number, &Start::Real { page }) {
        Ok(processor) => serve(processor),
        Err(why) => fail(
            Status::NotStarted,
            format_args!("processor {number}: {why}"),
        ),
    }
}

/// Handles a write of the guest to the APIC of the processor `number`. Returns `None` if the write cannot
/// reach the APIC.
pub(crate) fn write_apic(number: usize, register: u64, value: u32) -> Option<()> {
    if register != ICR {
        return write_device(APIC + register, value);
    }
    let Some(command) = Command::decode(value, read_device(APIC + ICR_HIGH)?) else {
        return write_device(APIC + register, value);
    };
    let sender = SHARED[number].id.load(Ordering::Acquire);
    for (other, shared) in started() {
        if !command.to.has(shared.id.load(Ordering::Acquire), sender) {
            continue;
        }
        match command.kind {
            Kind::InitLevelDeassert => {}
            Kind::Startup(page) => {
                let sent = SENT | u32::from(page);
                let startup = &shared.startup;
                // A processor that runs ignores a SIPI.
                let _ = startup.compare_exchange(0, sent, Ordering::AcqRel, Ordering::Acquire);
            }
            Kind::Init if other != 0 && shared.startup.load(Ordering::Acquire) == 0 => {}
            Kind::Init => fail(
                Status::Init,
                format_args!(
                    "the guest resets processor {other}, which runs; the hypervisor does not support this"
                ),
            ),
        }
    }
    Some(())
}

/// Records that the processor is about to enter the guest with the program of this generation.
pub(crate) fn enters_guest(number: usize, generation: u64) {
    let own = &SHARED[number];
    own.generation.store(generation, Ordering::SeqCst);
    own.in_guest.store(true, Ordering::SeqCst);
}

/// Records that the guest has exited on the processor.
pub(crate) fn left_guest(number: usize) {
    SHARED[number].in_guest.store(false, Ordering::SeqCst);
}

/// Returns true if an NMI on the processor is the one by which another processor made its guest exit.
pub(crate) fn was_kicked(number: usize) -> bool {
    SHARED[number].is_kicked.swap(false, Ordering::SeqCst)
}

/// Makes the guest exit on each other processor that entered it with an older program than that of
/// `generation`, and waits until none is left. The caller must not hold the hypervisor's lock.
pub(crate) fn kick_others(number: usize, generation: u64) -> Option<()> {
    const NMI: u32 = 0x4400;
    for (other, shared) in started().filter(|(other, _)| *other != number) {
        let is_stale = || {
            shared.in_guest.load(Ordering::SeqCst)
                && shared.generation.load(Ordering::SeqCst) < generation
        };
        if !is_stale() {
            continue;
        }
        SHARED[other].is_kicked.store(true, Ordering::SeqCst);
        // The guest may be about to send a command of its own.
        let high = read_device(APIC + ICR_HIGH)?;
        write_device(APIC + ICR_HIGH, shared.id.load(Ordering::Acquire) << 24)?;
        write_device(APIC + ICR, NMI)?;
        write_device(APIC + ICR_HIGH, high)?;
        while is_stale() {
            core::hint::spin_loop();
        }
    }
    Some(())
}

/// Returns the address of a map that the processor reads.
pub(crate) fn address_of<T>(map: &T) -> u64 {
    ptr::from_ref(map).addr() as u64
}
