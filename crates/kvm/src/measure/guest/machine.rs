//! Unsafe: gives memory to KVM, and reads the union in `struct kvm_run`.
//!
//! A VM with one vCPU in long mode. The host loads a script, runs the guest to its next exit, answers that
//! exit, and resumes the guest.
#![expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION, and a union of the kernel's ABI"
)]

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use msrgate_filter::{Access, Errno, MsrIndex};

use super::layout::{self, VcpuNumber};
use super::slot::{self, Op, Report};
use super::watchdog::Watchdog;
use super::{GuestError, StepAt, code};
use crate::errno::CallErrno;
use crate::exit::RawReason;
use crate::probe::HostCaps;
use crate::sys::memory::{Memory, PAGE};

/// The default time for which a script may run.
const PATIENCE: Duration = Duration::from_secs(60);

/// The interrupt controller that the VM has in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apic {
    /// No interrupt controller: accesses to x2APIC registers reach no register.
    Absent,
    /// The vCPU has an interrupt controller in x2APIC mode.
    X2apic,
}

/// The event that stopped the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The script reached its end.
    End,
    /// An access exited to user space and waits for a reply.
    Msr(RawExit),
    /// A debug exit of KVM, with the guest at this RIP.
    Debug { rip: u64 },
    /// An exit of another kind than [`End`](Self::End), [`Msr`](Self::Msr) and [`Debug`](Self::Debug),
    /// as text.
    Other(String),
}

/// An exit as `struct kvm_run` shows it (S1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawExit {
    /// The field `exit_reason` of `struct kvm_run`.
    pub(crate) number: u32,
    pub(crate) access: Access,
    pub(crate) error: u8,
    pub(crate) reason: RawReason,
    pub(crate) index: MsrIndex,
    pub(crate) data: u64,
}

/// The state of the vCPU's system registers and memory, before a script is loaded.
enum Health {
    Sound,
    /// The vCPU shut down or stopped at an unknown place, so its system registers may hold any value.
    Spoiled,
}

/// The built-in guest in its VM.
pub(crate) struct Guest {
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    memory: Memory,
    number: VcpuNumber,
    reset: kvm_sregs,
    health: Health,
    patience: Duration,
    script: Vec<Op>,
}

impl Guest {
    /// Creates a VM with the guest in it.
    ///
    /// # Errors
    /// Returns an error if the device cannot be opened any more, or if a system call fails.
    pub(crate) fn new(host: &HostCaps, apic: Apic) -> Result<Self, GuestError> {
        let kvm = host.open()?;
        let vm = host.create_vm()?;
        if apic == Apic::X2apic {
            vm.create_irq_chip().map_err(called("KVM_CREATE_IRQCHIP"))?;
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(called("KVM_GET_SUPPORTED_CPUID"))?;
        let mut guest = Self::in_vm(Arc::new(vm), VcpuNumber::FIRST, &cpuid)?;
        if apic == Apic::X2apic {
            guest.reset.apic_base |= APIC_BASE_ENABLED_X2APIC;
        }
        Ok(guest)
    }

    /// Creates a vCPU in `vm` with a guest of its own.
    ///
    /// # Errors
    /// Returns an error if a system call fails.
    pub(crate) fn in_vm(
        vm: Arc<VmFd>,
        number: VcpuNumber,
        cpuid: &CpuId,
    ) -> Result<Self, GuestError> {
        let memory = Memory::new(layout::PAGES).map_err(call("mmap"))?;
        add_memory(&vm, number, &memory)?;
        let vcpu = vm
            .create_vcpu(number.get().into())
            .map_err(called("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(cpuid).map_err(called("KVM_SET_CPUID2"))?;
        let reset = vcpu.get_sregs().map_err(called("KVM_GET_SREGS"))?;
        number.load(memory.words());
        Ok(Self {
            vcpu,
            vm,
            memory,
            number,
            reset,
            health: Health::Spoiled,
            patience: PATIENCE,
            script: Vec::new(),
        })
    }

    /// Loads a script and puts the guest at its start. If the vCPU has a pending exit, KVM completes that
    /// exit first, and its result is lost. A script of more than [`Self::LONGEST`] steps is cut at that
    /// length.
    ///
    /// # Errors
    /// Returns an error if a system call fails.
    pub(crate) fn load(&mut self, script: &[Op]) -> Result<(), GuestError> {
        let script = &script[..script.len().min(Self::LONGEST)];
        self.script = script.to_vec();
        let words = self.memory.words();
        for (number, &op) in script.iter().enumerate() {
            slot::fill(layout::slot(words, number), self.number.code(), op);
        }
        slot::fill_end(layout::slot(words, script.len()), self.number.code());
        self.complete()?;
        if let Health::Spoiled = self.health {
            self.number.load(self.memory.words());
            self.set_up()?;
            self.health = Health::Sound;
        }
        self.set_registers(&self.number.registers())
    }

    /// The largest number of steps of a script.
    pub(crate) const LONGEST: usize = layout::SLOTS - 1;

    /// Runs the guest to its next stop: the script's end, or an exit to user space.
    ///
    /// # Errors
    /// Returns an error if a system call fails, or if the guest runs for longer than a script may.
    pub(crate) fn resume(&mut self) -> Result<Stop, GuestError> {
        let watchdog = self.watch()?;
        self.resume_under(&watchdog)
    }

    /// Starts a timer that ends when a script has run for as long as it may. All calls of
    /// [`Self::resume_under`] on this thread with this timer share that time.
    ///
    /// # Errors
    /// Returns an error if the kernel has no timer left.
    pub(super) fn watch(&self) -> Result<Watchdog, GuestError> {
        Watchdog::start(self.patience).map_err(call("timer_create"))
    }

    /// Runs the guest to its next stop: the script's end, or an exit to user space.
    ///
    /// # Errors
    /// Returns an error if a system call fails, or if the time of `watchdog` is over.
    pub(super) fn resume_under(&mut self, watchdog: &Watchdog) -> Result<Stop, GuestError> {
        loop {
            match self.vcpu.run() {
                Ok(exit) => {
                    let stop = classify(&exit);
                    return Ok(self.in_full(stop));
                }
                Err(error) if error.errno() != libc::EINTR => {
                    self.health = Health::Spoiled;
                    return Err(called("KVM_RUN")(error));
                }
                Err(_) if watchdog.has_barked() => {
                    self.health = Health::Spoiled;
                    return Err(GuestError::Endless {
                        step: self.step(),
                        patience: self.patience,
                    });
                }
                Err(_) => {}
            }
        }
    }

    /// Lets the kernel complete the vCPU's pending exit without entering the guest (S5.6).
    ///
    /// # Errors
    /// Returns an error if `KVM_RUN` succeeds, or fails with another error than EINTR.
    pub(crate) fn complete(&mut self) -> Result<(), GuestError> {
        self.vcpu.set_kvm_immediate_exit(1);
        let seen = self.vcpu.run().map(|exit| classify(&exit));
        self.vcpu.set_kvm_immediate_exit(0);
        match seen.map_err(CallErrno::from) {
            Err(CallErrno::Known(Errno::Eintr)) => Ok(()),
            Err(errno) => Err(call("KVM_RUN")(errno)),
            Ok(_) => Err(GuestError::NotImmediate { step: self.step() }),
        }
    }

    /// Writes the reply to a pending exit into `struct kvm_run`.
    pub(crate) fn answer(&mut self, answer: msrgate_filter::Reply) {
        let run = self.vcpu.get_kvm_run();
        run.__bindgen_anon_1.msr.error = answer.error;
        run.__bindgen_anon_1.msr.data = answer.data;
    }

    /// Overwrites those fields of a pending exit that KVM must ignore afterwards (S5.5).
    pub(crate) fn scribble(&mut self, reason: RawReason, index: MsrIndex) {
        let run = self.vcpu.get_kvm_run();
        run.__bindgen_anon_1.msr.reason = reason.get();
        run.__bindgen_anon_1.msr.index = index.get();
    }

    /// The VM in which the guest runs.
    pub(crate) const fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The VM's vCPU.
    pub(crate) const fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// The VM's vCPU, mutable so that the caller can run it.
    #[cfg(feature = "bench")]
    pub(crate) const fn vcpu_mut(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Reads the vCPU's general registers.
    ///
    /// # Errors
    /// Returns an error if the ioctl fails.
    pub(crate) fn registers(&self) -> Result<kvm_regs, GuestError> {
        self.vcpu.get_regs().map_err(called("KVM_GET_REGS"))
    }

    /// Sets the vCPU's general registers.
    ///
    /// # Errors
    /// Returns an error if the ioctl fails.
    pub(crate) fn set_registers(&self, registers: &kvm_regs) -> Result<(), GuestError> {
        self.vcpu
            .set_regs(registers)
            .map_err(called("KVM_SET_REGS"))
    }

    /// Returns the guest's report of step `number` of its script.
    pub(crate) fn report(&self, number: usize) -> Report {
        slot::report(layout::slot(self.memory.words(), number))
    }

    /// The guest's address of the instruction that executes `op`.
    pub(crate) const fn site(&self, op: Op) -> u64 {
        self.number.code() + op.entry()
    }

    /// Returns the step of the script that the guest is at: the first step without a report.
    pub(crate) fn step(&self) -> StepAt {
        let number = (0..self.script.len())
            .find(|&number| self.report(number) == Report::NotReached)
            .unwrap_or(self.script.len());
        let access = self.script.get(number).and_then(|op| op.access());
        StepAt::new(number, access)
    }

    /// Marks the vCPU's system registers as changed, so that the next call of [`Self::load`] sets them
    /// again.
    pub(crate) const fn spoil(&mut self) {
        self.health = Health::Spoiled;
    }

    /// Sets how long a script may run.
    pub(crate) const fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn set_up(&self) -> Result<(), GuestError> {
        let registers = self.number.system_registers(&self.reset);
        self.vcpu
            .set_sregs(&registers)
            .map_err(called("KVM_SET_SREGS"))
    }

    /// Completes `stop` with the fields that kvm-ioctls does not pass on: the number of the exit, and its
    /// reason with unknown bits.
    fn in_full(&mut self, stop: Stop) -> Stop {
        let Stop::Msr(exit) = stop else { return stop };
        let run = self.vcpu.get_kvm_run();
        // SAFETY: kvm-ioctls found KVM_EXIT_X86_RDMSR or _WRMSR in `exit_reason`, and for these the kernel
        // fills `msr`. All fields of `msr` are integers.
        let reason = unsafe { run.__bindgen_anon_1.msr.reason };
        Stop::Msr(RawExit {
            number: run.exit_reason,
            reason: RawReason::new(reason),
            ..exit
        })
    }
}

/// The bits 10 and 11 of `IA32_APIC_BASE`: the APIC is enabled and in x2APIC mode (SDM volume 3, 12.12.1).
const APIC_BASE_ENABLED_X2APIC: u64 = 1 << 10 | 1 << 11;

fn classify(exit: &VcpuExit<'_>) -> Stop {
    let msr = |access, error, index, data| {
        Stop::Msr(RawExit {
            number: 0,
            access,
            error,
            reason: RawReason::new(0),
            index: MsrIndex::new(index),
            data,
        })
    };
    match exit {
        VcpuExit::X86Rdmsr(exit) => msr(Access::Read, *exit.error, exit.index, *exit.data),
        VcpuExit::X86Wrmsr(exit) => msr(Access::Write, *exit.error, exit.index, exit.data),
        VcpuExit::IoOut(port, _) if *port == u16::from(code::END_PORT) => Stop::End,
        VcpuExit::Debug(debug) => Stop::Debug { rip: debug.pc },
        other => Stop::Other(format!("{other:?}")),
    }
}

fn add_memory(vm: &VmFd, number: VcpuNumber, memory: &Memory) -> Result<(), GuestError> {
    let region = kvm_userspace_memory_region {
        slot: number.get().into(),
        flags: 0,
        guest_phys_addr: number.base(),
        memory_size: (layout::PAGES * PAGE) as u64,
        userspace_addr: memory.address() as u64,
    };
    // SAFETY: the region is a mapping of our own that holds nothing else, and this process accesses it
    // only as atomics. The guest that may write to it runs only inside KVM_RUN of a vCPU that is dropped
    // together with the mapping. Regions of different vCPUs do not overlap.
    unsafe { vm.set_user_memory_region(region) }.map_err(called("KVM_SET_USER_MEMORY_REGION"))
}

/// Returns a function that converts the error number of the system call `name` to an error.
fn call(name: &'static str) -> impl Fn(CallErrno) -> GuestError {
    move |errno| GuestError::Call { name, errno }
}

/// Returns a function that converts the `kvm-ioctls` error of the system call `name` to an error.
pub(crate) fn called(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> GuestError {
    move |error| call(name)(error.into())
}

#[cfg(test)]
mod tests;
