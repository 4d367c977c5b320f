//! The state that a gate, its vCPUs and its publisher share.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msrgate_filter::{ExitReason, Filter, ReasonMask, Revision};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, Program};

use super::beside::{Beside, CurrentBeside};
use super::bound::Place;
use super::chosen::Chosen;
use super::error::{GateError, VcpuError};
use super::events::{Rip, VcpuLogs};
use super::filters;
use super::id::VcpuId;
use super::options::GateOptions;
use super::pass_requests::PassRequests;
use super::published::Published;
use super::seen::Seen;
use super::vm::VmPort;
use crate::probe::HostCaps;

/// The state of a gate that all threads share.
pub(super) struct Shared {
    /// The responder of the program in force.
    pub(super) current: Published<Responder>,
    pub(super) control: Mutex<Control>,
    /// The vCPUs for which a `VcpuGate` answers, by the addresses of their shared pages.
    pub(super) tied: Mutex<BTreeMap<usize, VcpuId>>,
    /// The id of the process that made the gate.
    pub(super) process: u32,
    pub(super) logs: Arc<VcpuLogs>,
    pub(super) seen: Seen,
    pub(super) opened: PassRequests,
    pub(super) options: GateOptions,
    pub(super) host: HostCaps,
    /// The VMM's own filter and mask of exit reasons.
    pub(super) beside: CurrentBeside,
}

/// The state that threads change only while they set filters. A lock protects this state, and a vCPU that
/// runs never waits for that lock.
pub(super) struct Control {
    pub(super) chosen: Option<Chosen>,
    pub(super) vm: Option<Box<dyn VmPort>>,
    pub(super) past: Past,
}

/// The possibility that KVM holds values that the guest wrote under another program than the one in force.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    None,
    /// KVM may hold such values: the program has been replaced, or a vCPU came from another host.
    Other,
}

impl Control {
    /// Tells if the gate has already chosen the variant of the program for this VM.
    pub(super) fn is_chosen(&self, program: &Program) -> bool {
        self.chosen.is_some() || program.variants().len() == 1
    }

    /// Returns the filter that is set when a program comes into force, and the mask of exit reasons for it.
    /// Before the variant is chosen, that filter refuses every access.
    pub(super) fn first_filter(
        &self,
        responder: &Responder,
        shared: &Shared,
    ) -> Result<(Filter, ReasonMask), CompileError> {
        if self.is_chosen(responder.program()) {
            let beside = shared.beside.get();
            let filter = filters::first_filter(responder, &beside)?;
            Ok((filter, shared.reasons(responder, &beside)))
        } else {
            Ok((filters::deny_all()?, ReasonMask::NONE))
        }
    }

    /// Tells if KVM may hold a value that a guest wrote under another program than this one.
    pub(super) fn may_hold_others_writes(&self, program: &Program) -> bool {
        self.past == Past::Other || self.vm.is_none() || !self.is_chosen(program)
    }

    /// Returns the VM; an error if the gate is not installed.
    pub(super) fn vm(&mut self) -> Result<&mut dyn VmPort, GateError> {
        match &mut self.vm {
            Some(vm) => Ok(&mut **vm),
            None => Err(GateError::NotInstalled),
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the mask of exit reasons that the program and the VMM's own mask need together. If the gate
    /// has a watcher, the mask includes `KVM_MSR_EXIT_REASON_FILTER`, so that each denied access comes to
    /// the gate.
    pub(super) fn reasons(&self, responder: &Responder, beside: &Beside) -> ReasonMask {
        let own = responder.variant().reasons();
        let watched = match self.options.watcher {
            Some(_) => ReasonMask::of(Revision::Mainline, &[ExitReason::Filter]),
            None => ReasonMask::NONE,
        };
        let own = own.bits() | watched.bits();
        let own = ReasonMask::from_bits(Revision::Mainline, own).unwrap_or(watched);
        beside.reasons_with(own)
    }

    /// Ties a vCPU to the `VcpuGate` of this number.
    ///
    /// # Errors
    /// [`VcpuError::TiedTwice`] if another `VcpuGate` answers for the vCPU: each of the two `VcpuGate`s
    /// would know only some of the vCPU's pins.
    pub(super) fn tie(&self, id: VcpuId, place: Place) -> Result<(), VcpuError> {
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        match tied.entry(place.page()) {
            Entry::Vacant(free) => {
                free.insert(id);
                Ok(())
            }
            Entry::Occupied(taken) => Err(VcpuError::TiedTwice {
                vcpu: id,
                other: *taken.get(),
            }),
        }
    }

    /// Unties a vCPU from its `VcpuGate`, which is being dropped.
    pub(super) fn untie(&self, place: Place) {
        // In a forked child the list of tied vCPUs belongs to the parent. Besides, another thread of the
        // parent may have held the lock of the list at the fork, so that the lock stays locked.
        if self.process != std::process::id() {
            return;
        }
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        tied.remove(&place.page());
    }

    /// Puts a program in force, and then sets its filter by calling `set`. If `set` fails, the previous
    /// program is in force again.
    pub(super) fn try_out<E>(
        &self,
        new: Arc<Responder>,
        set: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // The program is in force before its filter is set. Meanwhile an access that only the new program
        // allows waits for the new filter, and no access is let through that the program in force refuses
        // (S7).
        let trial = self.current.try_out(new);
        let opened = self.opened.try_out(trial.number());
        set()?;
        opened.keep();
        self.seen.begin(trial.keep());
        Ok(())
    }

    /// Checks that KVM shares registers by `kvm_run`, if events are to hold RIP.
    pub(super) fn check_registers(&self, vm: &dyn VmPort) -> Result<(), GateError> {
        let wanted = self.options.events.rip == Rip::Shown;
        if wanted && !vm.has_shared_registers() {
            return Err(GateError::NoSharedRegisters);
        }
        Ok(())
    }
}
