//! Unsafe: gives the guest's memory to KVM.
//!
//! A small VMM that boots a stock Linux behind a policy: a bzImage and an initramfs, one to four vCPUs,
//! KVM's interrupt controllers and timer, and a serial port. Comments that begin with `The gate` mark what
//! a VMM has to do about MSRs.
//!
//! ```console
//! $ msrgate compile linux-guest > linux-guest.msrg
//! $ cargo run --release -p msrgate-kvm --example boot -- vmlinuz initrd --policy linux-guest.msrg
//! ```
//!
//! The VMM ends when the guest has reset itself once more than `--reboots` permits. An access that the
//! policy kills is an error, and so is an exit that this VMM does not know.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]

use std::fs::{self, File};
use std::io::{self, Stdout, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT};
use acpi_tables::{Aml, madt::ProcessorLocalApic, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_bindings::{
    kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::{BzImage, KernelLoader, bootparam::boot_params, load_cmdline};
use msrgate_kvm::HostCaps;
use msrgate_kvm::Reply;
use msrgate_kvm::gate::events::{EventThread, JsonLines, LogFile};
use msrgate_kvm::gate::{Gate, GateOptions, Outcome, VcpuGate};
use msrgate_policy::Program;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_superio::{Serial, Trigger, serial::NoEvents};
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
    /// The file to which the policy's events are appended, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "policy")]
    events: Option<PathBuf>,
    /// The number of vCPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    cpus: u8,
    /// The kernel's command line; with `reboot=k` it can ask for a reset.
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    cmdline: String,
    /// The number of times that the guest may reset itself and boot again in the same VM.
    #[arg(long, default_value_t = 0)]
    reboots: u32,
}

// The layout of the guest's memory (Linux, Documentation/arch/x86/boot.rst). The ACPI tables are where a
// PC has its firmware.
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
const ACPI: GuestAddress = GuestAddress(0xe_0000);
const END: u64 = 256 << 20;

fn main() -> Result<()> {
    let args = Args::parse();
    register_signal_handler(SIGRTMIN(), wake)?;
    let kvm = Kvm::new().context("/dev/kvm")?;
    let machine = Arc::new(Machine::new(&kvm)?);
    let gate = args.policy.as_ref().map(|policy| guard(&machine, policy));
    let gate = gate.transpose()?;
    let events = gate.as_ref().zip(args.events.as_ref());
    let _events = events.map(|(gate, path)| log(gate, path)).transpose()?;
    let cpus = (0..args.cpus).map(|number| Cpu::new(&kvm, &machine.vm, gate.as_ref(), number));
    let mut cpus = cpus.collect::<Result<Vec<_>>>()?;
    for boot in 0..=args.reboots {
        cpus.iter_mut().try_for_each(Cpu::reset)?;
        cpus[0].start_at(machine.load(&args)?)?;
        cpus = run(&machine, cpus)?;
        eprintln!("boot: reset {}", boot + 1);
    }
    Ok(())
}

/// The gate: installs it in the VM before the vCPUs are created.
fn guard(machine: &Machine, policy: &Path) -> Result<Gate> {
    let program = Program::decode(&fs::read(policy)?)?;
    let options = GateOptions::new().handlers(program.handlers());
    let gate = Gate::with_options(program, &HostCaps::probe()?, options)?;
    gate.install(&machine.vm)?;
    Ok(gate)
}

/// The gate: writes its events to a file, on a thread that ends when the returned value is dropped.
fn log(gate: &Gate, path: &Path) -> Result<EventThread> {
    let lines = JsonLines::new(LogFile::append(path)?, "");
    Ok(gate.events()?.spawn(vec![Box::new(lines)])?)
}

/// Runs each vCPU on a thread of its own, until the guest asks one of them for a reset.
fn run(machine: &Arc<Machine>, cpus: Vec<Cpu>) -> Result<Vec<Cpu>> {
    machine.stop.store(false, Ordering::SeqCst);
    let start = |mut cpu: Cpu| {
        let machine = Arc::clone(machine);
        thread::spawn(move || cpu.run(&machine).map(|()| cpu))
    };
    let threads: Vec<_> = cpus.into_iter().map(start).collect();
    let moment = Duration::from_millis(5);
    while !threads.iter().any(JoinHandle::is_finished) {
        thread::sleep(moment);
    }
    machine.stop.store(true, Ordering::SeqCst);
    let join = |thread: JoinHandle<_>| {
        // The signal is sent repeatedly: one may arrive between the check of `stop` and KVM_RUN.
        while !thread.is_finished() {
            let _ = thread.kill(SIGRTMIN());
            thread::sleep(moment);
        }
        let joined = thread.join();
        joined.map_err(|_| anyhow!("a vCPU's thread panicked"))?
    };
    threads.into_iter().map(join).collect()
}

/// Does nothing: the arrival of the signal alone makes a thread return from `KVM_RUN`.
extern "C" fn wake(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The parts that all vCPUs share. Rust drops the fields in their order, so the VM before its memory.
struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
    com1: Mutex<Serial<Interrupt, NoEvents, Stdout>>,
    /// True if the vCPUs' threads have to return.
    stop: AtomicBool,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Machine {
    fn new(kvm: &Kvm) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        // VMX needs three pages of the guest's address space; nothing else is there.
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(timer).context("KVM_CREATE_PIT2")?;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK)?;
        vm.register_irqfd(&interrupt, 4).context("KVM_IRQFD")?;

        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(END)?)])?;
        let region = kvm_userspace_memory_region {
            memory_size: END,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: the region is a mapping of vm-memory's own, which expects that a guest writes there, and
        // this process accesses it only through vm-memory. `Machine` keeps the mapping until the VM is
        // gone, and each vCPU that runs keeps the `Machine`.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        Ok(Self {
            vm,
            memory,
            com1: Mutex::new(Serial::new(Interrupt(interrupt), stdout())),
            stop: AtomicBool::new(false),
        })
    }

    /// Loads the kernel, the initramfs and the boot parameters into memory; returns the kernel's entry
    /// point.
    fn load(&self, args: &Args) -> Result<GuestAddress> {
        let mut kernel = File::open(&args.kernel).context("cannot open the kernel")?;
        let loaded = BzImage::load(&self.memory, None, &mut kernel, None)?;
        let initrd = fs::read(&args.initrd).context("cannot read the initramfs")?;
        let initrd_at = END
            .checked_sub(initrd.len().next_multiple_of(0x1000) as u64)
            .filter(|&start| start > loaded.kernel_end)
            .context("too little memory for the initramfs")?;
        self.memory.write_slice(&initrd, GuestAddress(initrd_at))?;
        let cmdline = Cmdline::try_from(&args.cmdline, 2048)?;
        load_cmdline(&self.memory, CMDLINE, &cmdline)?;

        let mut params = boot_params {
            hdr: loaded.setup_header.context("the kernel has no header")?,
            acpi_rsdp_addr: load_acpi(&self.memory, args.cpus)?,
            e820_entries: 2,
            ..boot_params::default()
        };
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0)?;
        params.hdr.ramdisk_image = u32::try_from(initrd_at)?;
        params.hdr.ramdisk_size = u32::try_from(initrd.len())?;
        let map = [(0, 0xa_0000), (0x10_0000, END)];
        for (entry, (addr, end)) in params.e820_table.iter_mut().zip(map) {
            (entry.addr, entry.size, entry.r#type) = (addr, end - addr, 1);
        }
        self.memory.write_obj(params, ZERO_PAGE)?;
        Ok(loaded.kernel_load)
    }
}

/// A vCPU, and the state that it had when it was created.
struct Cpu {
    fd: VcpuFd,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
    state: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<Msrs>,
    gate: Option<VcpuGate>,
}

impl Cpu {
    fn new(kvm: &Kvm, vm: &VmFd, gate: Option<&Gate>, number: u8) -> Result<Self> {
        let fd = vm.create_vcpu(number.into())?;
        let cpuid = cpuid(kvm, number.into())?;
        fd.set_cpuid2(&cpuid)?;
        // The gate: creates the `VcpuGate`, its part for this vCPU, from the vCPU's CPUID.
        let gate = gate.map(|gate| gate.vcpu(u32::from(number), &cpuid));
        // Read and set one MSR at a time: a call with several MSRs stops at the first one that this vCPU
        // lacks or that may not be set.
        let value = |&index: &u32| {
            let entry = kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            };
            let mut one = Msrs::from_entries(&[entry]).ok()?;
            let there = fd.get_msrs(&mut one) == Ok(1) && fd.set_msrs(&one) == Ok(1);
            there.then_some(one)
        };
        let list = kvm.get_msr_index_list()?;
        Ok(Self {
            sregs: fd.get_sregs()?,
            lapic: fd.get_lapic()?,
            state: fd.get_mp_state()?,
            events: fd.get_vcpu_events()?,
            msrs: list.as_slice().iter().filter_map(value).collect(),
            gate: gate.transpose()?,
            fd,
        })
    }

    /// Resets the vCPU to the state that it was created with; Linux itself reinitialises the interrupt
    /// controllers and the timer. The APIC is set before its timer's deadline, which is an MSR.
    fn reset(&mut self) -> Result<()> {
        self.fd.set_sregs(&self.sregs)?;
        self.fd.set_lapic(&self.lapic)?;
        for msr in &self.msrs {
            let done = self.fd.set_msrs(msr)?;
            ensure!(done == 1, "cannot reset MSR {:#x}", msr.as_slice()[0].index);
        }
        // The gate: resets pins and emulated registers.
        if let Some(gate) = &mut self.gate {
            gate.reset(&mut self.fd)?;
        }
        self.fd.set_mp_state(self.state)?;
        Ok(self.fd.set_vcpu_events(&self.events)?)
    }

    /// Places the vCPU at Linux's 32-bit entry point: protected mode, flat segments, no paging.
    fn start_at(&self, entry: GuestAddress) -> Result<()> {
        let mut sregs = self.sregs;
        sregs.cr0 = 0x11;
        let flat = |segment: &mut kvm_segment, selector, type_| {
            (segment.base, segment.limit) = (0, u32::MAX);
            (segment.selector, segment.type_) = (selector, type_);
            (segment.db, segment.g) = (1, 1);
        };
        flat(&mut sregs.cs, 0x10, 0xb);
        for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            flat(data, 0x18, 3);
        }
        self.fd.set_sregs(&sregs)?;
        Ok(self.fd.set_regs(&kvm_regs {
            rip: entry.0,
            rsi: ZERO_PAGE.0,
            rflags: 2,
            ..kvm_regs::default()
        })?)
    }

    /// Runs the vCPU until the guest asks this or another vCPU for a reset.
    fn run(&mut self, machine: &Machine) -> Result<()> {
        let com1 = || machine.com1.lock().unwrap_or_else(PoisonError::into_inner);
        while !machine.stop.load(Ordering::SeqCst) {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port @ 0x3f8..=0x3ff, &[byte])) => {
                    let written = com1().write(u8::try_from(port & 7)?, byte);
                    written.context("cannot write to stdout")?;
                }
                Ok(VcpuExit::IoIn(port @ 0x3f8..=0x3ff, data)) => {
                    data.fill(com1().read(u8::try_from(port & 7)?));
                }
                // The command with which a keyboard controller resets the machine.
                Ok(VcpuExit::IoOut(0x64, [0xfe])) => return Ok(()),
                // A read of a port or an address without a device returns 0.
                Ok(VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data)) => data.fill(0),
                Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
                // The gate: answers an exit for an MSR.
                Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => {
                    let gate = self.gate.as_mut().context("an MSR exit without a gate")?;
                    match gate.answer(&mut self.fd)? {
                        Outcome::Resume => {}
                        // This VMM has no handler for any MSR.
                        Outcome::Handler(asked) => {
                            gate.finish(&mut self.fd, asked, Reply::FAULT)?;
                        }
                        Outcome::Kill(violation) => return Err(violation.into()),
                    }
                }
                Ok(exit) => bail!("the guest ended by {exit:?}"),
                // EAGAIN: a vCPU that waits to be started was woken.
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                Err(error) => return Err(error).context("KVM_RUN"),
            }
        }
        Ok(())
    }
}

/// Writes the smallest set of ACPI tables with which Linux finds its processors, each table after those
/// that it points to. Returns the address of the last table (ACPI 6.5, chapter 5).
fn load_acpi(memory: &GuestMemoryMmap, cpus: u8) -> Result<u64> {
    let (oem, name) = (*b"MSRGAT", *b"BOOT    ");
    let mut next = ACPI;
    let mut put = |table: &dyn Aml| {
        let (mut bytes, at) = (Vec::new(), next);
        table.to_aml_bytes(&mut bytes);
        next = at.unchecked_add(0x200);
        memory.write_slice(&bytes, at).map(|()| at.0)
    };

    let dsdt = put(&Sdt::new(*b"DSDT", 36, 2, oem, name, 1))?;
    let fadt = FADTBuilder::new(oem, name, 1).dsdt_64(dsdt);
    // The flags say that these two buttons do not exist.
    let mut fadt = fadt.flag(Flags::PwrButton).flag(Flags::SlpButton);
    // The guest has no VGA and no CMOS clock (bits 2 and 5 say so), and no keyboard controller (bit 1 is
    // clear).
    fadt.iapc_boot_arch = (1 << 2 | 1 << 5).into();
    // The I/O ports of the two ACPI event registers, whose events never happen, and of the ACPI control
    // register.
    (fadt.pm1a_evt_blk, fadt.pm1_evt_len) = (0x600.into(), 4);
    (fadt.pm1a_cnt_blk, fadt.pm1_cnt_len) = (0x604.into(), 2);
    fadt.sci_int = 9.into();

    let mut madt = MADT::new(oem, name, 1, LocalInterruptController::Address(0xfee0_0000));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, 0xfec0_0000, 0));

    let mut xsdt = XSDT::new(oem, name, 1);
    xsdt.add_entry(put(&fadt.finalize())?);
    xsdt.add_entry(put(&madt)?);
    let xsdt = put(&xsdt)?;
    Ok(put(&Rsdp::new(oem, xsdt))?)
}

/// Returns the host's CPUID with this vCPU's APIC ID, and without the PMU and nested virtualization, whose
/// MSRs the shipped policies deny.
fn cpuid(kvm: &Kvm, number: u32) -> Result<CpuId> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0x00ff_ffff | number << 24;
                // Clears VMX and sets the hypervisor bit.
                leaf.ecx = leaf.ecx & !(1 << 5) | 1 << 31;
            }
            0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0xb | 0x1f => leaf.edx = number,
            // Clears SVM and AMD's two counter extensions.
            0x8000_0001 => leaf.ecx &= !(1 << 2 | 1 << 23 | 1 << 24),
            0x8000_001e => leaf.eax = number,
            _ => {}
        }
    }
    Ok(cpuid)
}
