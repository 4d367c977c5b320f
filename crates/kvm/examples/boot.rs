//! Unsafe: gives the guest's memory to KVM.
//!
//! A small VMM, to see a stock Linux run behind a policy: a bzImage and an initramfs, one to four
//! vCPUs, KVM's interrupt controllers and timer, a serial port. What a VMM has to do about MSRs is
//! marked: `The gate`.
//!
//! ```console
//! $ msrgate compile linux-guest > linux-guest.msrg
//! $ cargo run --release -p msrgate-kvm --example boot -- vmlinuz initrd --policy linux-guest.msrg
//! ```
//!
//! Exit status: 0, the guest powered off; 3, it asked for a reset more often than `--reboots` permits;
//! 4, the same by a triple fault; 5, it did what this VMM knows nothing of; 6, it did what the policy
//! says `kill` to; 1, the VMM failed.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]

#[path = "boot/acpi.rs"]
mod acpi;
#[path = "boot/cpu.rs"]
mod cpu;

use std::io::{Cursor, Stdout, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader, load_cmdline};
use msrgate_kvm::HostCaps;
use msrgate_kvm::gate::events::{EventThread, JsonLines};
use msrgate_kvm::gate::{Gate, GateOptions, GuestPhysical, NotMapped, Violation};
use msrgate_policy::Program;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::cpu::Cpu;

/// Boots Linux in a small VM, behind an MSR policy.
#[derive(Parser)]
struct Args {
    /// A bzImage.
    kernel: PathBuf,
    /// An initramfs.
    initrd: PathBuf,
    /// A compiled policy, as `msrgate compile` writes it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Append what the policy wants told, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "policy")]
    events: Option<PathBuf>,
    /// How many vCPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    cpus: u8,
    /// The kernel's command line; with `reboot=k` it can ask for a reset.
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    cmdline: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=2048))]
    memory: u64,
    /// How many times the guest may reset itself and boot anew in the same VM.
    #[arg(long, default_value_t = 0)]
    reboots: u32,
}

// Where things are in the guest's memory (Linux, Documentation/arch/x86/boot.rst).
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
const LOW_END: usize = 0xa_0000;
const HIGH: GuestAddress = GuestAddress(0x10_0000);

// Ports.
const COM1: u16 = 0x3f8;
const COM1_END: u16 = COM1 + 7;
const COM1_IRQ: u32 = 4;
const KEYBOARD: u16 = 0x64;

/// How the guest ended.
enum End {
    PowerOff,
    Reset,
    TripleFault,
    Killed(Violation),
    Unknown(String),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(End::PowerOff) => ExitCode::SUCCESS,
        Ok(End::Reset) => 3.into(),
        Ok(End::TripleFault) => 4.into(),
        Ok(End::Killed(violation)) => {
            eprintln!("boot: {violation}");
            6.into()
        }
        Ok(End::Unknown(exit)) => {
            eprintln!("boot: the guest ended by {exit}");
            5.into()
        }
        Err(error) => {
            eprintln!("boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<End> {
    register_signal_handler(SIGRTMIN(), wake)?;
    let (machine, mut cpus) = Machine::new(args)?;
    let mut reboots_left = args.reboots;
    loop {
        machine.reset()?;
        cpus.iter_mut().try_for_each(Cpu::reset)?;
        cpus[0].start_at(machine.load()?)?;
        let end;
        (end, cpus) = run_all(&machine, cpus)?;
        match end {
            End::Reset | End::TripleFault if reboots_left > 0 => reboots_left -= 1,
            end => return Ok(end),
        }
        eprintln!("boot: once more");
    }
}

/// Does nothing: that it comes is what gets a thread out of `KVM_RUN`.
extern "C" fn wake(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Each vCPU on a thread of its own, until the guest ends on one of them.
fn run_all(machine: &Arc<Machine>, cpus: Vec<Cpu>) -> Result<(End, Vec<Cpu>)> {
    machine.stop.store(false, Ordering::SeqCst);
    let (sender, ends) = mpsc::channel();
    let start = |mut cpu: Cpu| {
        let (machine, sender) = (Arc::clone(machine), sender.clone());
        thread::spawn(move || {
            if let Some(end) = cpu.run(&machine).transpose() {
                // More than one may end; the first is taken.
                let _ = sender.send(end);
            }
            cpu
        })
    };
    let threads: Vec<_> = cpus.into_iter().map(start).collect();
    drop(sender);
    let end = ends.recv().context("the vCPUs' threads are gone")?;
    machine.stop.store(true, Ordering::SeqCst);
    let join = |thread: thread::JoinHandle<Cpu>| {
        // Again and again: the first may come between its look at `stop` and KVM_RUN.
        while !thread.is_finished() {
            let _ = thread.kill(SIGRTMIN());
            thread::sleep(Duration::from_millis(1));
        }
        let panicked = |_| anyhow!("a vCPU's thread panicked");
        thread.join().map_err(panicked)
    };
    let cpus: Result<_> = threads.into_iter().map(join).collect();
    Ok((end?, cpus?))
}

/// What vCPUs share. Dropped in this order: the VM goes before its memory.
struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    cmdline: Cmdline,
    acpi: Vec<u8>,
    chips: [kvm_irqchip; 3],
    timer: kvm_pit_state2,
    serial: Mutex<Serial<Interrupt, NoEvents, Stdout>>,
    stop: AtomicBool,
    /// The gate, and the thread that writes its events.
    _gate: Option<(Gate, Option<EventThread>)>,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Machine {
    fn new(args: &Args) -> Result<(Arc<Self>, Vec<Cpu>)> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| path.display().to_string());
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        // Three pages that VMX wants, where nothing else is.
        vm.set_tss_address(0xfffb_d000)
            .context("KVM_SET_TSS_ADDR")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(timer).context("KVM_CREATE_PIT2")?;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK)?;
        vm.register_irqfd(&interrupt, COM1_IRQ)
            .context("KVM_IRQFD")?;
        let memory = add_memory(&vm, args.memory << 20)?;
        let program = args.policy.as_ref().map(read).transpose()?;
        let gate = program.map(|program| guard(&vm, &memory, &program, args));
        let gate = gate.transpose()?;
        let of_vm = gate.as_ref().map(|(gate, _)| gate);
        let cpus = (0..args.cpus).map(|number| Cpu::new(&kvm, &vm, of_vm, number));
        let cpus = cpus.collect::<Result<_>>().context("cannot make a vCPU")?;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        let machine = Self {
            chips: [chip(0)?, chip(1)?, chip(2)?],
            timer: vm.get_pit2()?,
            vm,
            memory,
            kernel: read(&args.kernel)?,
            initrd: read(&args.initrd)?,
            cmdline: Cmdline::try_from(&args.cmdline, 2048)?,
            acpi: acpi::tables(args.cpus),
            serial: Mutex::new(Serial::new(Interrupt(interrupt), stdout())),
            stop: AtomicBool::new(false),
            _gate: gate,
        };
        Ok((Arc::new(machine), cpus))
    }

    /// The interrupt controllers and the timer as they were made.
    fn reset(&self) -> Result<()> {
        self.chips
            .iter()
            .try_for_each(|chip| self.vm.set_irqchip(chip))?;
        Ok(self.vm.set_pit2(&self.timer)?)
    }

    /// Kernel, initramfs and what they are told, into memory, which a boot before may have changed.
    fn load(&self) -> Result<GuestAddress> {
        self.memory
            .write_slice(&vec![0; LOW_END], GuestAddress(0))?;
        let kernel = &mut Cursor::new(&self.kernel);
        let loaded = BzImage::load(&self.memory, Some(HIGH), kernel, Some(HIGH))?;
        let end = self.memory.last_addr().0 + 1;
        let initrd = end
            .checked_sub(self.initrd.len().next_multiple_of(0x1000) as u64)
            .filter(|&start| start > loaded.kernel_end)
            .context("too little memory for the initramfs")?;
        self.memory
            .write_slice(&self.initrd, GuestAddress(initrd))?;
        load_cmdline(&self.memory, CMDLINE, &self.cmdline)?;
        self.memory
            .write_slice(&self.acpi, GuestAddress(acpi::RSDP.into()))?;

        let mut params = boot_params {
            hdr: loaded.setup_header.context("the kernel has no header")?,
            acpi_rsdp_addr: acpi::RSDP.into(),
            e820_entries: 2,
            ..boot_params::default()
        };
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0)?;
        params.hdr.ramdisk_image = u32::try_from(initrd)?;
        params.hdr.ramdisk_size = u32::try_from(self.initrd.len())?;
        for (entry, (addr, end)) in [(0, LOW_END as u64), (HIGH.0, end)].into_iter().enumerate() {
            let size = end - addr;
            params.e820_table[entry] = boot_e820_entry {
                addr,
                size,
                r#type: 1,
            };
        }
        self.memory.write_obj(params, ZERO_PAGE)?;
        Ok(loaded.kernel_load)
    }

    fn port_out(&self, port: u16, data: &[u8]) -> Result<Option<End>> {
        match (port, data) {
            (COM1..=COM1_END, &[byte]) => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                let written = serial.write(port.to_le_bytes()[0] - COM1.to_le_bytes()[0], byte);
                written.map_err(|error| anyhow!("cannot write to stdout: {error:?}"))?;
            }
            (KEYBOARD, [0xfe]) => return Ok(Some(End::Reset)),
            (acpi::PM_CONTROL, &[_, high]) if high & acpi::SLEEP != 0 => {
                return Ok(Some(End::PowerOff));
            }
            _ => {}
        }
        Ok(None)
    }

    fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            COM1..=COM1_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                serial.read(port.to_le_bytes()[0] - COM1.to_le_bytes()[0])
            }
            KEYBOARD | acpi::PM_EVENTS..=acpi::PM_END => 0,
            _ => 0xff,
        });
    }
}

fn add_memory(vm: &VmFd, bytes: u64) -> Result<GuestMemoryMmap> {
    let range = (GuestAddress(0), usize::try_from(bytes)?);
    let memory = GuestMemoryMmap::from_ranges(&[range]).context("no memory for the guest")?;
    let region = kvm_userspace_memory_region {
        memory_size: bytes,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..kvm_userspace_memory_region::default()
    };
    // SAFETY: the region is a mapping of vm-memory's own, which takes it that a guest writes there,
    // and is reached through it alone; `Machine` keeps it until the VM is gone, and each vCPU that
    // runs keeps the `Machine`.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    Ok(memory)
}

/// The gate: put into the VM before its vCPUs are made.
fn guard(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    program: &[u8],
    args: &Args,
) -> Result<(Gate, Option<EventThread>)> {
    let options = GateOptions::new().memory(Arc::new(Ram(memory.clone())));
    let gate = Gate::with_options(Program::decode(program)?, &HostCaps::probe()?, options)?;
    gate.install(vm)?;
    let sink = |path: &PathBuf| {
        let lines = JsonLines::append(path, 1 << 20, "")?;
        gate.events().spawn(vec![Box::new(lines)])
    };
    let events = args.events.as_ref().map(sink).transpose()?;
    Ok((gate, events))
}

/// The gate: what it reads of the guest's memory, which is the header of a microcode update.
struct Ram(GuestMemoryMmap);

impl msrgate_kvm::gate::GuestMemory for Ram {
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> std::result::Result<(), NotMapped> {
        let read = self.0.read_slice(into, GuestAddress(from.get()));
        read.map_err(|_| NotMapped)
    }
}
