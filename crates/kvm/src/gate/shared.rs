//! What the gate, its vCPUs and its publisher have in common.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msrgate_filter::{Filter, ReasonMask};
use msrgate_program::answer::Responder;
use msrgate_program::{CompileError, Program};

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

/// A gate of a VM, as all its threads have it.
pub(super) struct Shared {
    /// The program in force, ready to answer.
    pub(super) current: Published<Responder>,
    pub(super) control: Mutex<Control>,
    /// The vCPUs that have a part of the gate, by the addresses of their pages.
    pub(super) tied: Mutex<BTreeMap<usize, VcpuId>>,
    /// The process that made the gate.
    pub(super) process: u32,
    pub(super) logs: Arc<VcpuLogs>,
    pub(super) seen: Seen,
    pub(super) opened: PassRequests,
    pub(super) options: GateOptions,
    pub(super) host: HostCaps,
}

/// What only those change who set filters. No vCPU that runs waits for it.
pub(super) struct Control {
    pub(super) chosen: Option<Chosen>,
    pub(super) vm: Option<Box<dyn VmPort>>,
    pub(super) past: Past,
}

/// Whether KVM may hold what the guest did under other rules than those in force.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    None,
    /// The program has been replaced, or a vCPU came from another host.
    Other,
}

impl Control {
    /// Whether it is known which of the program's variants holds.
    pub(super) fn is_chosen(&self, program: &Program) -> bool {
        self.chosen.is_some() || program.variants().len() == 1
    }

    /// What a program's filter is at first, and its mask: before the choice everything is refused.
    pub(super) fn first_filter(
        &self,
        responder: &Responder,
    ) -> Result<(Filter, ReasonMask), CompileError> {
        if self.is_chosen(responder.program()) {
            filters::first_filter(responder)
        } else {
            Ok((filters::deny_all()?, ReasonMask::NONE))
        }
    }

    /// Tells if KVM may hold what a guest wrote under other rules than this program's.
    pub(super) fn may_hold_others_writes(&self, program: &Program) -> bool {
        self.past == Past::Other || self.vm.is_none() || !self.is_chosen(program)
    }

    /// The VM, which there is only once the gate is installed.
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

    /// Ties a vCPU to the part of this number.
    ///
    /// # Errors
    /// The vCPU has another part: each would have half of its pins.
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

    /// Unties it: its part is dropped.
    pub(super) fn untie(&self, place: Place) {
        // In a forked child another thread may hold the lock for ever, and the parent's list is its own.
        if self.process != std::process::id() {
            return;
        }
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        tied.remove(&place.page());
    }

    /// Puts a program in force, and its filter by `set`; if that fails, the one before is back.
    pub(super) fn try_out<E>(
        &self,
        new: Arc<Responder>,
        set: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        // The program before the filter: an access that only the new one allows waits for the
        // filter, and none is let through that the program in force refuses (S7).
        let trial = self.current.try_out(new);
        let opened = self.opened.try_out(trial.number());
        set()?;
        opened.keep();
        self.seen.begin(trial.keep());
        Ok(())
    }

    /// Whether KVM puts registers into `kvm_run`, if events are to have them.
    pub(super) fn check_registers(&self, vm: &dyn VmPort) -> Result<(), GateError> {
        let wanted = self.options.events.rip == Rip::Shown;
        if wanted && !vm.has_shared_registers() {
            return Err(GateError::NoSharedRegisters);
        }
        Ok(())
    }
}
