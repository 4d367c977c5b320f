//! Unsafe: gives the guest's memory to KVM.
//!
//! A small VMM, to see a stock Linux run behind a policy: a bzImage and an initramfs, one to four
//! vCPUs, the kernel's interrupt controllers and timer, a serial port. What a VMM has to do about
//! MSRs stands between `the gate` and `end of the gate`.
//!
//! ```console
//! $ msrgate compile linux-guest > linux-guest.msrg
//! $ cargo run --release -p msrgate-kvm --example boot -- vmlinuz initrd --policy linux-guest.msrg
//! ```
//!
//! The guest ends it by a byte written to port 0xf4, which is then the status. Other ends: 64, it
//! asked for a reset more often than `--reboots` permits; 65, the same by a triple fault; 66, it did
//! what this VMM knows nothing of; 1, the VMM failed.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]

use std::io::{Cursor, Stdout, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_config, kvm_pit_state2, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader, load_cmdline};
use msrgate_filter::ReasonMask;
use msrgate_kvm::Installed;
use msrgate_policy::Program;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

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
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    cpus: u8,
    /// The kernel's command line; `reboot=k` is how it can ask for a reset.
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    cmdline: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=2048))]
    memory: u32,
    /// How many times the guest may reset itself and boot anew in the same VM.
    #[arg(long, default_value_t = 0)]
    reboots: u32,
}

// Where things are in the guest's memory (Documentation/arch/x86/boot.rst; the MP table is looked
// for in the last KiB of base memory, MP specification 4).
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
const MP_TABLE: GuestAddress = GuestAddress(0x9_fc00);
const HIGH: GuestAddress = GuestAddress(0x10_0000);

const COM1: u16 = 0x3f8;
const COM1_END: u16 = 0x3ff;
const COM1_IRQ: u32 = 4;
const KEYBOARD: u16 = 0x64;
const STATUS: u16 = 0xf4;

/// How the guest ended.
enum End {
    Status(u8),
    Reset,
    TripleFault,
    Unknown(String),
    Failed(anyhow::Error),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(End::Status(status)) => status.into(),
        Ok(End::Reset) => 64.into(),
        Ok(End::TripleFault) => 65.into(),
        Ok(End::Unknown(exit)) => {
            eprintln!("boot: the guest ended by {exit}");
            66.into()
        }
        Ok(End::Failed(error)) | Err(error) => {
            eprintln!("boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<End> {
    register_signal_handler(SIGRTMIN(), wake).context("cannot set a signal handler")?;
    let (machine, mut cpus) = Machine::new(args)?;
    let mut reboots = 0;
    loop {
        machine.reset()?;
        for cpu in &mut cpus {
            cpu.reset()?;
        }
        let entry = machine.load()?;
        cpus[0].start_at(entry)?;
        let end;
        (end, cpus) = run_all(&machine, cpus)?;
        match end {
            End::Reset | End::TripleFault if reboots < args.reboots => reboots += 1,
            end => return Ok(end),
        }
        eprintln!("boot: reboot {reboots} of {}", args.reboots);
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
            if let Some(end) = cpu.run(&machine) {
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
        thread.join().map_err(|_| anyhow!("a vCPU's thread panicked"))
    };
    Ok((end, threads.into_iter().map(join).collect::<Result<_>>()?))
}

/// What vCPUs share.
struct Machine {
    vm: VmFd,
    // After `vm`: unmapped only when the VM is gone.
    memory: GuestMemoryMmap,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    cmdline: Cmdline,
    cpus: u8,
    chips: [kvm_irqchip; 3],
    timer: kvm_pit_state2,
    serial: Mutex<Serial<Interrupt, NoEvents, Stdout>>,
    stop: AtomicBool,
    _filter: Option<Installed>,
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
        // Three pages below the firmware, for VMX.
        vm.set_tss_address(0xfffb_d000)
            .context("KVM_SET_TSS_ADDR")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        vm.create_pit2(kvm_pit_config {
            flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        })
        .context("KVM_CREATE_PIT2")?;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).context("eventfd")?;
        vm.register_irqfd(&interrupt, COM1_IRQ)
            .context("KVM_IRQFD")?;
        let memory = add_memory(&vm, u64::from(args.memory) << 20)?;
        let filter = args.policy.as_ref().map(read).transpose()?;
        let filter = filter.map(|bytes| guard(&vm, &bytes)).transpose()?;
        let cpus: Result<Vec<_>> = (0..args.cpus)
            .map(|number| Cpu::new(&kvm, &vm, number))
            .collect();
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP")?;
            Ok::<_, anyhow::Error>(chip)
        };
        let machine = Self {
            chips: [chip(0)?, chip(1)?, chip(2)?],
            timer: vm.get_pit2().context("KVM_GET_PIT2")?,
            vm,
            memory,
            kernel: read(&args.kernel)?,
            initrd: read(&args.initrd)?,
            cmdline: Cmdline::try_from(&args.cmdline, 2048)?,
            cpus: args.cpus,
            serial: Mutex::new(Serial::new(Interrupt(interrupt), stdout())),
            stop: AtomicBool::new(false),
            _filter: filter,
        };
        Ok((Arc::new(machine), cpus?))
    }

    /// The interrupt controllers and the timer as they were made.
    fn reset(&self) -> Result<()> {
        for chip in &self.chips {
            self.vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
        }
        self.vm.set_pit2(&self.timer).context("KVM_SET_PIT2")
    }

    /// Kernel, initramfs and what they are told, into memory; a boot before may have changed it all.
    fn load(&self) -> Result<GuestAddress> {
        self.memory.write_slice(&[0; 0xa_0000], GuestAddress(0))?;
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
        self.memory.write_slice(&mp_table(self.cpus)?, MP_TABLE)?;

        let mut params = boot_params {
            hdr: loaded.setup_header.context("the kernel has no header")?,
            ..boot_params::default()
        };
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0)?;
        params.hdr.ramdisk_image = u32::try_from(initrd)?;
        params.hdr.ramdisk_size = u32::try_from(self.initrd.len())?;
        let ram = |from: GuestAddress, to: u64| boot_e820_entry {
            addr: from.0,
            size: to - from.0,
            r#type: 1,
        };
        params.e820_table[0] = ram(GuestAddress(0), MP_TABLE.0);
        params.e820_table[1] = ram(HIGH, end);
        params.e820_entries = 2;
        self.memory.write_obj(params, ZERO_PAGE)?;
        Ok(loaded.kernel_load)
    }

    fn port_out(&self, port: u16, data: &[u8]) -> Option<End> {
        match (port, data) {
            (COM1..=COM1_END, &[byte]) => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                let offset = (port - COM1).to_le_bytes()[0];
                let error = serial.write(offset, byte).err()?;
                Some(End::Failed(anyhow!("cannot write to stdout: {error:?}")))
            }
            (KEYBOARD, [0xfe]) => Some(End::Reset),
            (STATUS, &[status]) => Some(End::Status(status)),
            _ => None,
        }
    }

    fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            COM1..=COM1_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                serial.read((port - COM1).to_le_bytes()[0])
            }
            // Takes commands, has no end of data: Linux finds no controller, and may ask for a reset.
            KEYBOARD => 1,
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
    // SAFETY: the region is a mapping of vm-memory's that nothing else lives in; from here it is
    // only reached through vm-memory, which takes it that a guest writes there; no vCPU runs after
    // `Machine`, which drops it after the VM.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    Ok(memory)
}

// ---- the gate ----

/// Until there is one: the policy's filter alone. What it does not plainly allow is a #GP.
fn guard(vm: &VmFd, program: &[u8]) -> Result<Installed> {
    let program = Program::decode(program)?;
    let [variant] = program.variants() else {
        bail!("a policy with a `[[when]]` needs a gate");
    };
    Ok(msrgate_kvm::install(
        vm,
        variant.filter(),
        ReasonMask::NONE,
    )?)
}

// ---- end of the gate ----

/// A vCPU, and what it is like after power-on.
struct Cpu {
    fd: VcpuFd,
    regs: kvm_regs,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    state: kvm_mp_state,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    msrs: Vec<Msrs>,
}

impl Cpu {
    fn new(kvm: &Kvm, vm: &VmFd, number: u8) -> Result<Self> {
        let fd = vm.create_vcpu(number.into()).context("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(&cpuid(kvm, number)?)
            .context("KVM_SET_CPUID2")?;
        let list = kvm.get_msr_index_list()?;
        // One at a time: a list ends at the first that this vCPU lacks, or may not be given.
        let value = |&index: &u32| {
            let entry = kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            };
            let mut one = Msrs::from_entries(&[entry]).ok()?;
            let there = fd.get_msrs(&mut one) == Ok(1) && fd.set_msrs(&one) == Ok(1);
            there.then_some(one)
        };
        Ok(Self {
            regs: fd.get_regs()?,
            sregs: fd.get_sregs()?,
            lapic: fd.get_lapic()?,
            state: fd.get_mp_state()?,
            events: fd.get_vcpu_events()?,
            debug: fd.get_debug_regs()?,
            msrs: list.as_slice().iter().filter_map(value).collect(),
            fd,
        })
    }

    /// As after power-on. The APIC before its timer's deadline, which is an MSR.
    fn reset(&mut self) -> Result<()> {
        self.fd.set_mp_state(self.state)?;
        self.fd.set_regs(&self.regs)?;
        self.fd.set_sregs(&self.sregs)?;
        self.fd.set_lapic(&self.lapic)?;
        self.fd.set_debug_regs(&self.debug)?;
        for msr in &self.msrs {
            let refused = || format!("cannot reset MSR {:#x}", msr.as_slice()[0].index);
            ensure!(self.fd.set_msrs(msr)? == 1, refused());
        }
        // the gate's part of a reset goes here
        Ok(self.fd.set_vcpu_events(&self.events)?)
    }

    /// Linux's 32-bit entry: protected mode, flat segments, no paging.
    fn start_at(&self, entry: GuestAddress) -> Result<()> {
        let mut sregs = self.sregs;
        let flat = |selector, type_| kvm_segment {
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        sregs.cs = flat(0x10, 0xb);
        let data = flat(0x18, 3);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 = 0x11;
        self.fd.set_sregs(&sregs)?;
        Ok(self.fd.set_regs(&kvm_regs {
            rip: entry.0,
            rsi: ZERO_PAGE.0,
            rflags: 2,
            ..kvm_regs::default()
        })?)
    }

    /// Runs until the guest ends here, or on another vCPU: `None`.
    fn run(&mut self, machine: &Machine) -> Option<End> {
        while !machine.stop.load(Ordering::SeqCst) {
            let end = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => machine.port_out(port, data),
                Ok(VcpuExit::IoIn(port, data)) => {
                    machine.port_in(port, data);
                    None
                }
                Ok(VcpuExit::MmioRead(_, data)) => {
                    data.fill(0xff);
                    None
                }
                Ok(VcpuExit::MmioWrite(..)) => None,
                // the gate answers VcpuExit::X86Rdmsr and X86Wrmsr here
                Ok(VcpuExit::Shutdown) => Some(End::TripleFault),
                Ok(exit) => Some(End::Unknown(format!("{exit:?}"))),
                // EAGAIN: a processor that waits for its start was woken.
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => None,
                Err(error) => Some(End::Failed(anyhow!("KVM_RUN: {error}"))),
            };
            if end.is_some() {
                return end;
            }
        }
        None
    }
}

/// What the host has, with this vCPU's APIC number; no PMU and no nested virtualization, which the
/// shipped policies refuse.
fn cpuid(kvm: &Kvm, number: u8) -> Result<CpuId> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let number = u32::from(number);
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0x00ff_ffff | number << 24;
                // VMX out, a hypervisor in.
                leaf.ecx = leaf.ecx & !(1 << 5) | 1 << 31;
            }
            0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0xb | 0x1f => leaf.edx = number,
            // SVM and the two extensions of AMD's counters.
            0x8000_0001 => leaf.ecx &= !(1 << 2 | 1 << 23 | 1 << 24),
            0x8000_001e => leaf.eax = number,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// Processors, an ISA bus, the I/O APIC with its pins in order (MP specification 1.4, chapter 4).
fn mp_table(cpus: u8) -> Result<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for number in 0..cpus {
        let boot = if number == 0 { 2 } else { 0 };
        let mut entry = vec![0, number, 0x14, 1 | boot, 0, 6, 0, 0, 1, 2, 0, 0];
        entry.resize(20, 0);
        entries.push(entry);
    }
    entries.push(b"\x01\0ISA   ".to_vec());
    entries.push(vec![2, cpus, 0x11, 1, 0, 0, 0xc0, 0xfe]);
    entries.extend((0..16).map(|irq| vec![3, 0, 0, 0, 0, irq, cpus, irq]));
    // LINT0 takes what the old controller sends, LINT1 is NMI.
    entries.push(vec![4, 3, 0, 0, 0, 0, 0xff, 0]);
    entries.push(vec![4, 1, 0, 0, 0, 0, 0xff, 1]);
    let body = entries.concat();

    let mut table = b"PCMP".to_vec();
    table.extend(u16::try_from(44 + body.len())?.to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"MSRGATE BOOT        ");
    table.extend([0; 6]);
    table.extend(u16::try_from(entries.len())?.to_le_bytes());
    table.extend(0xfee0_0000_u32.to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[7] = checksum(&table);

    let mut pointer = b"_MP_".to_vec();
    pointer.extend((u32::try_from(MP_TABLE.0)? + 16).to_le_bytes());
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    Ok([pointer, table].concat())
}

/// The byte that makes the sum 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}
