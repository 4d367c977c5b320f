//! Unsafe: reads and writes `struct kvm_run`, which is a union shared with the kernel.
//!
//! A vCPU at an exit: the exit's fields, and the calls that an answer may need.
#![expect(
    unsafe_code,
    reason = "a union of the kernel's ABI, and a byte that other threads write"
)]

use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_EXIT_INTR, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, KVM_SYNC_X86_REGS, kvm_cpuid_entry2, kvm_regs, kvm_run,
    kvm_sync_regs,
};
use msrgate_filter::{Access, Errno, Exit, ExitReason, MsrIndex, ReasonMask, Reply, Revision};

use super::bound::Place;
use super::kick;
use crate::errno::CallErrno;
use crate::exit::RawReason;
use crate::sys::calls::{self, Level, Taken};

/// The mark of an exit that KVM has yet to complete: a bit of `kvm_run.flags` that no kernel sets. Each
/// `KVM_RUN` rewrites `flags`, and so removes the mark. This holds even for a `KVM_RUN` under
/// `immediate_exit`, which leaves the old exit reason in place, and for a `KVM_RUN` that fails before it has
/// completed an exit.
const WAITS: u16 = 1 << 15;

/// The mark of a vCPU that has not run since it was restored: another bit of `kvm_run.flags` that no kernel
/// sets.
const RESTORED: u16 = 1 << 14;

/// The operations on a vCPU that the gate may need to answer an exit; implemented for KVM's vCPUs and for
/// vCPUs of tests.
pub(super) trait Port {
    /// Returns the identity of the vCPU.
    fn place(&self) -> Place;

    /// Returns the CPUID that the kernel has for the vCPU; `None` if the implementation cannot ask for the
    /// CPUID.
    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno>;

    /// Returns the exit that waits for an answer; `None` if the last exit was not an MSR exit.
    ///
    /// # Errors
    /// The reason of the exit, if this crate does not know that reason.
    fn pending(&self) -> Result<Option<Exit>, RawReason>;

    /// Writes the reply, which the next `KVM_RUN` takes. The reply may be overwritten before that.
    fn reply(&mut self, reply: Reply);

    /// Changes the reason in the exit, before the exit is left to the VMM: the VMM then sees an exit that
    /// the kernel might have made for that reason. An implementation for tests, which has no VMM, does
    /// nothing.
    fn set_reason(&mut self, _: ExitReason) {}

    /// Marks the exit as answered, so that [`Self::pending`] does not return it again.
    fn settle(&mut self);

    /// Marks the exit as one that the kernel has yet to complete. An implementation that can tell this
    /// without a mark does nothing.
    fn mark(&mut self) {}

    /// Tells if the kernel still has to complete the exit: the vCPU has not run since [`Self::mark`].
    fn is_marked(&self) -> bool {
        true
    }

    /// Marks the vCPU as restored, until it runs.
    fn note_restored(&mut self);

    /// Tells if the vCPU has not run since [`Self::note_restored`].
    fn is_restored(&self) -> bool;

    /// Makes the guest execute the access again (S5.8).
    fn rewind(&mut self) -> Result<(), CallErrno>;

    /// Makes the kernel forget an MSR exit that it has not completed, whether answered or not. No register
    /// changes, and no exception stays pending.
    fn forget(&mut self) -> Result<(), CallErrno>;

    /// Makes the kernel take a reply that it has not taken yet, without entering the guest (S5.6).
    fn complete(&mut self) -> Result<(), CallErrno>;

    /// Returns the value of an MSR; `None` if KVM does not have it.
    fn register(&mut self, index: MsrIndex) -> Result<Option<u64>, CallErrno>;

    /// Sets an MSR by a host access.
    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Taken, CallErrno>;

    /// Translates a linear address into a guest-physical one; `None` if it is not mapped.
    fn physical(&mut self, linear: u64) -> Result<Option<u64>, CallErrno>;

    /// Tells if the vCPU runs the guest or a nested guest.
    fn level(&mut self) -> Result<Level, CallErrno>;

    /// Returns RIP, the address of the guest's RDMSR or WRMSR, if `kvm_run` has the vCPU's registers at this
    /// exit.
    fn rip(&self) -> Option<u64>;

    /// Asks KVM to put the vCPU's registers, RIP among them, into `kvm_run` at each exit.
    fn ask_for_registers(&mut self);
}

/// A vCPU of the real KVM.
pub(super) struct KvmPort<'v> {
    vcpu: RawFd,
    run: NonNull<kvm_run>,
    borrowed: PhantomData<&'v mut kvm_run>,
}

/// The result of a `KVM_RUN` that does not enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    Interrupted,
    /// `KVM_RUN` returned with the debug exit of a single step, because it completed the instruction.
    ByExit,
}

impl<'v> KvmPort<'v> {
    /// Makes the [`Port`] of the vCPU that has this file descriptor and this shared page.
    pub(super) fn new(vcpu: RawFd, run: &'v mut kvm_run) -> Self {
        Self {
            vcpu,
            run: NonNull::from(run),
            borrowed: PhantomData,
        }
    }

    fn run(&self) -> &kvm_run {
        // SAFETY: `new` got the page by a mutable reference that lives as long as `self`, so no other
        // code in this process uses the page, except `immediate_exit`, which is never read through this
        // reference. The kernel writes the page only inside KVM_RUN, during which no reference is held.
        unsafe { self.run.as_ref() }
    }

    fn run_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as in `run`, and `self` is borrowed mutably.
        unsafe { self.run.as_mut() }
    }

    /// Calls `KVM_RUN` so that it takes the reply and does not enter the guest.
    fn run_immediately(&self) -> Result<Returned, CallErrno> {
        // SAFETY: the page is mapped as long as `self` lives; no reference to the field is made.
        let flag = unsafe { &raw mut (*self.run.as_ptr()).immediate_exit };
        // SAFETY: the pointer is to a byte of the page. A VMM's threads and signal handlers may write the
        // byte too, each by one byte-sized access.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        let borrowed = kick::borrow(flag);
        let outcome = calls::run(&self.vcpu);
        borrowed.give_back(flag);
        match outcome {
            Err(errno) if calls::is_interrupted(errno) => Ok(Returned::Interrupted),
            Err(errno) => Err(errno),
            Ok(()) => Ok(Returned::ByExit),
        }
    }

    /// Returns the two fields of the shared page that are about interrupts: `if_flag` and
    /// `ready_for_interrupt_injection`.
    fn injection(&self) -> [u8; 2] {
        [self.run().if_flag, self.run().ready_for_interrupt_injection]
    }

    fn set_injection(&mut self, [if_flag, ready]: [u8; 2]) {
        let run = self.run_mut();
        (run.if_flag, run.ready_for_interrupt_injection) = (if_flag, ready);
    }

    /// Returns the registers in the shared page, if KVM's bit for these registers is set in the field of
    /// `kvm_run` that `field` returns.
    fn shared_registers(&mut self, field: impl Fn(&kvm_run) -> u64) -> Option<&mut kvm_regs> {
        if field(self.run()) & u64::from(KVM_SYNC_X86_REGS) == 0 {
            return None;
        }
        Some(&mut self.shared().regs)
    }

    /// Rewinds a vCPU whose registers KVM puts into the shared page. The function calls only `KVM_RUN`,
    /// since the seccomp rules of a VMM may allow its threads nothing else.
    fn rewind_by_shared_registers(&mut self) -> Result<(), CallErrno> {
        self.reply(Reply::FAULT);
        let injection = self.injection();
        // A fault completes no instruction, so that a debugger has no step to see. A fault changes no
        // register, either: the registers that `KVM_RUN` has left in the page are those from before the
        // access.
        if self.run_immediately()? == Returned::ByExit {
            return Err(CallErrno::Known(Errno::Einval));
        }
        self.run_mut().exit_reason = KVM_EXIT_INTR;
        // A KVM_RUN sets dirty registers before it looks at `immediate_exit`, and thereby drops the queued
        // fault. Make that KVM_RUN now: otherwise the VMM would see a vCPU with a queued #GP until the VMM's
        // own next KVM_RUN.
        self.run_mut().kvm_dirty_regs |= u64::from(KVM_SYNC_X86_REGS);
        if self.run_immediately()? == Returned::ByExit {
            return Err(CallErrno::Known(Errno::Einval));
        }
        self.set_injection(injection);
        Ok(())
    }

    /// Returns the part of the shared page that holds the vCPU's registers and events.
    fn shared(&mut self) -> &mut kvm_sync_regs {
        // SAFETY: on x86 this is the union's only member in use, and any bytes are a valid value. The
        // borrow ends with that of `self`.
        unsafe { &mut self.run_mut().s.regs }
    }
}

impl Port for KvmPort<'_> {
    #[inline]
    fn place(&self) -> Place {
        Place::new(self.run.addr().get(), self.vcpu)
    }

    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno> {
        calls::cpuid(&self.vcpu).map(Some)
    }

    fn pending(&self) -> Result<Option<Exit>, RawReason> {
        let access = match self.run().exit_reason {
            KVM_EXIT_X86_RDMSR => Access::Read,
            KVM_EXIT_X86_WRMSR => Access::Write,
            _ => return Ok(None),
        };
        // SAFETY: for these two exits the kernel has filled `msr`, which consists of integers.
        let msr = unsafe { self.run().__bindgen_anon_1.msr };
        let reason = RawReason::new(msr.reason);
        Ok(Some(Exit {
            index: MsrIndex::new(msr.index),
            access,
            data: msr.data,
            reason: reason.known().ok_or(reason)?,
        }))
    }

    fn reply(&mut self, reply: Reply) {
        let run = self.run_mut();
        run.__bindgen_anon_1.msr.error = reply.error;
        // For a #GP the kernel reads only `error` (S5.4). The guest's value stays in `data`, for a VMM
        // that answers the same exit again after an error.
        if reply.error == 0 {
            run.__bindgen_anon_1.msr.data = reply.data;
        }
    }

    fn set_reason(&mut self, reason: ExitReason) {
        let mask = ReasonMask::of(Revision::Mainline, &[reason]);
        self.run_mut().__bindgen_anon_1.msr.reason = u32::try_from(mask.bits()).unwrap_or(0);
    }

    fn mark(&mut self) {
        self.run_mut().flags |= WAITS;
    }

    fn is_marked(&self) -> bool {
        self.run().flags & WAITS != 0
    }

    fn note_restored(&mut self) {
        self.run_mut().flags |= RESTORED;
    }

    fn is_restored(&self) -> bool {
        self.run().flags & RESTORED != 0
    }

    fn settle(&mut self) {
        self.mark();
        // The kernel does not read `exit_reason`: it completes the exit by its own state.
        self.run_mut().exit_reason = KVM_EXIT_INTR;
    }

    fn rewind(&mut self) -> Result<(), CallErrno> {
        if self.run().kvm_valid_regs & u64::from(KVM_SYNC_X86_REGS) != 0 {
            return self.rewind_by_shared_registers();
        }
        // If the VMM has put registers into the shared page for the next KVM_RUN, those are the vCPU's
        // registers. The KVM_RUN below takes them, so the rewind has to set them again.
        let registers = match self.shared_registers(|run| run.kvm_dirty_regs) {
            Some(registers) => *registers,
            None => calls::registers(&self.vcpu)?,
        };
        let shared = *self.shared();
        self.reply(Reply::FAULT);
        let injection = self.injection();
        // A fault does not complete the instruction, so there is no step to report to a debugger.
        if self.run_immediately()? == Returned::ByExit {
            return Err(CallErrno::Known(Errno::Einval));
        }
        self.run_mut().exit_reason = KVM_EXIT_INTR;
        calls::set_registers(&self.vcpu, &registers)?;
        self.set_injection(injection);
        if self.run().kvm_valid_regs != 0 {
            // KVM_RUN has written the state of a vCPU with a queued #GP into the page. The rewind has
            // cancelled that #GP, so put the earlier state back.
            *self.shared() = shared;
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), CallErrno> {
        match self.run().exit_reason {
            // KVM_EXIT_INTR is the reason that `settle` leaves. The mark is no proof here. It may be gone
            // although KVM has not completed the exit: a KVM_RUN clears the mark, but completes no exit if
            // the vCPU waits for SIPI, or if KVM refuses the registers that it is given.
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR | KVM_EXIT_INTR => {}
            _ => return Ok(()),
        }
        // A VMM's reset makes every vCPU but the first wait for SIPI. For such a vCPU KVM_RUN completes
        // no exit.
        let state = calls::mp_state(&self.vcpu)?;
        if state != KVM_MP_STATE_UNINITIALIZED {
            return self.rewind();
        }
        calls::set_mp_state(&self.vcpu, KVM_MP_STATE_RUNNABLE)?;
        let rewound = self.rewind();
        calls::set_mp_state(&self.vcpu, state)?;
        rewound
    }

    fn complete(&mut self) -> Result<(), CallErrno> {
        if !self.is_marked() {
            // Any other kind of exit belongs to the VMM, which completes such an exit itself.
            return Ok(());
        }
        // If this `KVM_RUN` returns an exit, that exit reports the step to a debugger, and stays in the
        // page.
        self.run_immediately().map(drop)
    }

    fn register(&mut self, index: MsrIndex) -> Result<Option<u64>, CallErrno> {
        calls::register(&self.vcpu, index)
    }

    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Taken, CallErrno> {
        calls::set_register(&self.vcpu, index, value)
    }

    fn physical(&mut self, linear: u64) -> Result<Option<u64>, CallErrno> {
        calls::physical(&self.vcpu, linear)
    }

    fn level(&mut self) -> Result<Level, CallErrno> {
        calls::level(&self.vcpu)
    }

    fn rip(&self) -> Option<u64> {
        let run = self.run();
        if run.kvm_valid_regs & u64::from(KVM_SYNC_X86_REGS) == 0 {
            return None;
        }
        let registers = (&raw const run.s).cast::<kvm_regs>();
        // SAFETY: as in `shared_registers`; the copy is made at once.
        let registers = unsafe { ptr::read(registers) };
        Some(registers.rip)
    }

    fn ask_for_registers(&mut self) {
        self.run_mut().kvm_valid_regs |= u64::from(KVM_SYNC_X86_REGS);
    }
}

/// Returns two fields of the exception in the shared page: `injected` and `pending`.
#[cfg(test)]
#[cfg(not(loom))]
pub(super) fn shared_exception(run: &mut kvm_run) -> [u8; 2] {
    // SAFETY: on x86 this is the union's only member in use, and any bytes are a valid value.
    let events = unsafe { run.s.regs.events };
    [events.exception.injected, events.exception.pending]
}

/// Returns the byte at this address, for tests that kick a vCPU as another thread of a VMM does.
#[cfg(all(test, not(loom)))]
pub(super) fn shared_byte(address: usize) -> &'static AtomicU8 {
    // SAFETY: the tests pass `immediate_exit` of a vCPU that they keep until no thread uses the byte.
    unsafe { AtomicU8::from_ptr(address as *mut u8) }
}
