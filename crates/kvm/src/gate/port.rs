//! Unsafe: reads and writes `struct kvm_run`, which is a union shared with the kernel.
//!
//! One vCPU at an exit: its fields, and the calls that an answer may need.
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
use msrgate_filter::{Access, Errno, Exit, MsrIndex, Reply};

use super::bound::Place;
use super::kick;
use crate::errno::CallErrno;
use crate::exit::RawReason;
use crate::sys::calls::{self, Level, Taken};

/// A bit of `kvm_run.flags` that no kernel gives. Each `KVM_RUN` writes that field anew, also one
/// under `immediate_exit`, after which the reason of the exit is the old one still, and one that fails
/// before it has completed anything.
const WAITS: u16 = 1 << 15;

/// Another one, of a vCPU that has not run since it was restored.
const RESTORED: u16 = 1 << 14;

/// What an answer may do to a vCPU.
pub(super) trait Port {
    /// Which vCPU it is.
    fn place(&self) -> Place;

    /// The CPUID that the kernel has for it; `None` where nobody keeps one.
    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno>;

    /// The exit that waits for an answer; `None` if the last one was for something else.
    ///
    /// # Errors
    /// It has a reason that is none.
    fn pending(&self) -> Result<Option<Exit>, RawReason>;

    /// Writes the answer, which the next `KVM_RUN` takes. It may be written again before that.
    fn reply(&mut self, reply: Reply);

    /// Marks the exit as answered, so that it is not taken for another one.
    fn settle(&mut self);

    /// Notes that the kernel has yet to complete the exit. Where that shows anyway, there is nothing to
    /// note.
    fn mark(&mut self) {}

    /// Whether it still has, so that nobody has run the vCPU since.
    fn is_marked(&self) -> bool {
        true
    }

    /// Notes that the vCPU has a state that was restored, until it runs.
    fn note_restored(&mut self);

    /// Tells if it has not run since.
    fn is_restored(&self) -> bool;

    /// Has the guest execute the access again (S5.8).
    fn rewind(&mut self) -> Result<(), CallErrno>;

    /// Has the kernel forget an exit for an MSR that it has not completed, answered or not: no
    /// register changes, and no exception is left.
    fn forget(&mut self) -> Result<(), CallErrno>;

    /// Has the kernel take the answer now, if it has not yet, and not enter the guest (S5.6).
    fn complete(&mut self) -> Result<(), CallErrno>;

    /// What a register holds.
    fn register(&mut self, index: MsrIndex) -> Result<Option<u64>, CallErrno>;

    /// Sets it.
    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Taken, CallErrno>;

    /// Where a linear address is.
    fn physical(&mut self, linear: u64) -> Result<Option<u64>, CallErrno>;

    /// What the vCPU runs.
    fn level(&mut self) -> Result<Level, CallErrno>;

    /// The address of the instruction, if the vCPU's registers are in `kvm_run` at each exit.
    fn rip(&self) -> Option<u64>;

    /// Has them put there, and RIP with them.
    fn ask_for_registers(&mut self);
}

/// A vCPU of a real KVM.
pub(super) struct KvmPort<'v> {
    vcpu: RawFd,
    run: NonNull<kvm_run>,
    borrowed: PhantomData<&'v mut kvm_run>,
}

/// How a `KVM_RUN` that enters no guest came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    Interrupted,
    /// With the step of a debugger, which the completed instruction was.
    ByExit,
}

impl<'v> KvmPort<'v> {
    /// The vCPU behind this file descriptor, with its own shared page.
    pub(super) fn new(vcpu: RawFd, run: &'v mut kvm_run) -> Self {
        Self {
            vcpu,
            run: NonNull::from(run),
            borrowed: PhantomData,
        }
    }

    fn run(&self) -> &kvm_run {
        // SAFETY: `new` got the page by a mutable reference that lives as long as `self`, so nobody
        // else in this process uses it meanwhile, but for `immediate_exit`, which is never read
        // through this reference; the kernel writes it only inside KVM_RUN, when none is held.
        unsafe { self.run.as_ref() }
    }

    fn run_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as in `run`, and `self` is borrowed mutably.
        unsafe { self.run.as_mut() }
    }

    /// `KVM_RUN` that takes the answer and does not enter the guest.
    fn run_immediately(&self) -> Result<Returned, CallErrno> {
        // SAFETY: the page is mapped as long as `self` lives; no reference to the field is made.
        let flag = unsafe { &raw mut (*self.run.as_ptr()).immediate_exit };
        // SAFETY: a byte of the page; of whoever else writes it, a VMM's threads and signal
        // handlers, each does so by one byte-sized access.
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

    /// What the page says of interrupts: the flag, and whether one may be injected.
    fn injection(&self) -> [u8; 2] {
        [self.run().if_flag, self.run().ready_for_interrupt_injection]
    }

    fn set_injection(&mut self, [if_flag, ready]: [u8; 2]) {
        let run = self.run_mut();
        (run.if_flag, run.ready_for_interrupt_injection) = (if_flag, ready);
    }

    /// Where the shared page has the registers, if it does.
    fn shared_registers(&mut self, field: impl Fn(&kvm_run) -> u64) -> Option<&mut kvm_regs> {
        if field(self.run()) & u64::from(KVM_SYNC_X86_REGS) == 0 {
            return None;
        }
        Some(&mut self.shared().regs)
    }

    /// What of a vCPU the shared page has room for.
    fn shared(&mut self) -> &mut kvm_sync_regs {
        // SAFETY: on x86 this is the union's member, and all bytes are one. The borrow ends with
        // that of `self`.
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
        // SAFETY: for these two exits the kernel has filled `msr`, all of integers.
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
        // Of a #GP the kernel looks at nothing else (S5.4). What the guest writes stays there for whom
        // the same exit is answered once more: a VMM that tries again after an error.
        if reply.error == 0 {
            run.__bindgen_anon_1.msr.data = reply.data;
        }
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
        // The kernel does not look at it: what completes the exit is its own.
        self.run_mut().exit_reason = KVM_EXIT_INTR;
    }

    fn rewind(&mut self) -> Result<(), CallErrno> {
        // What a VMM has put there for the next KVM_RUN would be taken by ours, and then undone.
        let registers = match self.shared_registers(|run| run.kvm_dirty_regs) {
            Some(registers) => *registers,
            None => calls::registers(&self.vcpu)?,
        };
        let shared = *self.shared();
        self.reply(Reply::FAULT);
        let injection = self.injection();
        // A fault completes no instruction, so that there is no step for a debugger to be told of.
        if self.run_immediately()? == Returned::ByExit {
            return Err(CallErrno::Known(Errno::Einval));
        }
        self.run_mut().exit_reason = KVM_EXIT_INTR;
        calls::set_registers(&self.vcpu, &registers)?;
        self.set_injection(injection);
        if self.run().kvm_valid_regs != 0 {
            // What KVM_RUN left there is of a vCPU with #GP queued, which it is no more.
            *self.shared() = shared;
        }
        if let Some(shared) = self.shared_registers(|run| run.kvm_valid_regs) {
            *shared = registers;
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), CallErrno> {
        match self.run().exit_reason {
            // The last is what `settle` leaves. Without the mark too: a KVM_RUN of a vCPU that waits for
            // SIPI, or of one that is given registers which it does not take, completes nothing.
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR | KVM_EXIT_INTR => {}
            _ => return Ok(()),
        }
        // Of a vCPU that waits for SIPI, which a VMM's reset makes of all but the first, KVM_RUN
        // completes nothing.
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
            // An exit for something else is the VMM's, and is not to be completed behind its back.
            return Ok(());
        }
        // If it ends by an exit, that tells a debugger of the step, and stays in the page.
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

/// The exception that the shared page shows as queued or injected.
#[cfg(test)]
#[cfg(not(loom))]
pub(super) fn shared_exception(run: &mut kvm_run) -> [u8; 2] {
    // SAFETY: on x86 this is the union's member, and all bytes are one.
    let events = unsafe { run.s.regs.events };
    [events.exception.injected, events.exception.pending]
}

/// The byte at this address, for tests that kick a vCPU as another thread of a VMM does.
#[cfg(all(test, not(loom)))]
pub(super) fn shared_byte(address: usize) -> &'static AtomicU8 {
    // SAFETY: the tests pass `immediate_exit` of a vCPU that they keep until all who use it are done.
    unsafe { AtomicU8::from_ptr(address as *mut u8) }
}
