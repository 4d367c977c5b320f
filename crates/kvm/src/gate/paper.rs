//! Unsafe: reads `struct kvm_run`, which is a union.
//!
//! A simulated vCPU, for benches and tests: its shared page is real, and in place of the kernel it has a
//! stand-in that accepts every call and does nothing. The MSR exits that benches measure on such a vCPU are
//! in `crates/testing`.
#![expect(unsafe_code, reason = "a union of the kernel's ABI")]

use std::fmt;

use kvm_bindings::{KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_cpuid_entry2, kvm_run};
use msrgate_filter::{Access, Exit, Filter, MsrIndex, ReasonMask, Reply};
use msrgate_program::Program;

use super::bound::Place;
use super::port::{KvmPort, Port};
use super::vm::VmPort;
use super::{Gate, GateError, GateOptions, HandlerRequest, Outcome, VcpuGate};
use crate::errno::CallErrno;
use crate::exit::RawReason;
use crate::gate::AnswerError;
use crate::install::InstallError;
use crate::probe::HostCaps;
use crate::sys::calls::{Level, Taken};

/// An invalid file descriptor: every call to the real kernel on this file descriptor fails.
const NOWHERE: i32 = -1;

/// A simulated vCPU: its shared page is real, but no kernel is behind it.
pub struct PaperVcpu {
    page: Box<kvm_run>,
}

impl fmt::Debug for PaperVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PaperVcpu").finish_non_exhaustive()
    }
}

impl PaperVcpu {
    /// Makes a simulated vCPU that has not run.
    #[must_use]
    pub fn new() -> Self {
        Self {
            page: Box::default(),
        }
    }

    /// Writes into the shared page what `KVM_RUN` leaves there for `exit`.
    pub fn leave(&mut self, exit: &Exit) {
        self.page.exit_reason = match exit.access {
            Access::Read => KVM_EXIT_X86_RDMSR,
            Access::Write => KVM_EXIT_X86_WRMSR,
        };
        let msr = &mut self.page.__bindgen_anon_1;
        msr.msr.error = 0;
        msr.msr.index = exit.index.get();
        msr.msr.reason = RawReason::from(exit.reason).get();
        msr.msr.data = exit.data;
    }

    /// The reply in the shared page, which the next `KVM_RUN` would take.
    #[must_use]
    pub fn reply(&self) -> Reply {
        // SAFETY: every member of the union that may have been written last consists of integers.
        let msr = unsafe { self.page.__bindgen_anon_1.msr };
        Reply {
            error: msr.error,
            data: msr.data,
        }
    }

    /// Resets the vCPU, by [`VcpuGate::reset`].
    ///
    /// # Errors
    /// The errors are those of [`VcpuGate::reset`].
    pub fn reset(&mut self, gate: &mut VcpuGate) -> Result<(), AnswerError> {
        gate.reset_at(&mut self.port())
    }

    /// Tells the gate that the VMM has written an MSR, by [`VcpuGate::msr_set_by_host`].
    ///
    /// # Errors
    /// The errors are those of [`VcpuGate::msr_set_by_host`].
    pub fn msr_set_by_host(
        &mut self,
        gate: &mut VcpuGate,
        index: MsrIndex,
    ) -> Result<(), AnswerError> {
        gate.msr_set_by_host_at(&self.port(), index)
    }

    /// Answers the vCPU's exit, by [`VcpuGate::answer`].
    ///
    /// # Errors
    /// The errors are those of [`VcpuGate::answer`].
    pub fn answer(&mut self, gate: &mut VcpuGate) -> Result<Outcome, AnswerError> {
        gate.answer_at(&mut self.port())
    }

    /// Gives the handler's reply to the exit, by [`VcpuGate::finish`].
    ///
    /// # Errors
    /// The errors are those of [`VcpuGate::finish`].
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    pub fn finish(
        &mut self,
        gate: &mut VcpuGate,
        asked: HandlerRequest,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        gate.finish_at(&mut self.port(), &asked, reply)
    }

    fn port(&mut self) -> Paper<'_> {
        Paper(KvmPort::new(NOWHERE, &mut self.page))
    }
}

impl Default for PaperVcpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The [`Port`] of a simulated vCPU, by which a gate reaches it: it uses the vCPU's real shared page, and
/// its calls do nothing.
struct Paper<'v>(KvmPort<'v>);

impl Port for Paper<'_> {
    #[inline]
    fn place(&self) -> Place {
        self.0.place()
    }

    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno> {
        Ok(None)
    }

    fn pending(&self) -> Result<Option<Exit>, RawReason> {
        self.0.pending()
    }

    fn reply(&mut self, reply: Reply) {
        self.0.reply(reply);
    }

    fn settle(&mut self) {
        self.0.settle();
    }

    fn note_restored(&mut self) {
        self.0.note_restored();
    }

    fn is_restored(&self) -> bool {
        self.0.is_restored()
    }

    fn rewind(&mut self) -> Result<(), CallErrno> {
        self.0.reply(Reply::FAULT);
        Ok(())
    }

    fn complete(&mut self) -> Result<(), CallErrno> {
        Ok(())
    }

    fn forget(&mut self) -> Result<(), CallErrno> {
        Ok(())
    }

    fn register(&mut self, _: MsrIndex) -> Result<Option<u64>, CallErrno> {
        Ok(Some(0))
    }

    fn set_register(&mut self, _: MsrIndex, _: u64) -> Result<Taken, CallErrno> {
        Ok(Taken::Yes)
    }

    fn physical(&mut self, _: u64) -> Result<Option<u64>, CallErrno> {
        Ok(None)
    }

    fn level(&mut self) -> Result<Level, CallErrno> {
        Ok(Level::Guest)
    }

    fn rip(&self) -> Option<u64> {
        self.0.rip()
    }

    fn ask_for_registers(&mut self) {
        self.0.ask_for_registers();
    }
}

/// Makes a gate in a simulated VM, which has no kernel behind it and accepts every filter. No publisher
/// thread runs.
///
/// # Errors
/// The errors are those of [`Gate::with_options`].
pub fn gate(program: Program, options: GateOptions) -> Result<Gate, GateError> {
    let options = options.handlers(["own"]);
    let gate = Gate::with_options(program, &HostCaps::on_paper(), options)?;
    gate.shared.lock().vm = Some(Box::new(PaperVm));
    Ok(gate)
}

struct PaperVm;

impl VmPort for PaperVm {
    fn replace(&mut self, _: &Filter, _: ReasonMask) -> Result<(), InstallError> {
        Ok(())
    }

    fn has_nested_state(&self) -> bool {
        true
    }

    fn has_shared_registers(&self) -> bool {
        true
    }
}
