//! The gate: it enforces a compiled policy in a KVM VM.
//!
//! A [`Gate`] belongs to one VM. It installs the filter of a [`Program`], chooses the program's variant
//! by the CPUID of the first vCPU, and replaces the program while the VM runs. The thread of each vCPU
//! owns a [`VcpuGate`], which answers the vCPU's MSR exits: it passes the fields of the exit to the
//! [`Responder`], which decides, and carries out the response.
//!
//! ```no_run
//! # fn device(_: &msrgate_kvm::gate::HandlerRequest) -> msrgate_kvm::Reply { msrgate_kvm::Reply::DONE }
//! use kvm_ioctls::{Kvm, VcpuExit};
//! use msrgate_kvm::gate::{Gate, GateOptions, Outcome};
//! use msrgate_kvm::{HostCaps, Program};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = HostCaps::probe()?;
//! let vm = host.create_vm()?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! let cpuid = Kvm::new()?.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
//! vcpu.set_cpuid2(&cpuid)?;
//!
//! let program = Program::decode(&std::fs::read("sandbox.msrg")?)?;
//! let options = GateOptions::new().handlers(["mine"]);
//! let gate = Gate::with_options(program, &host, options)?;
//! gate.install(&vm)?;
//! let mut msrs = gate.vcpu(0, &cpuid)?;
//! msrs.reset(&mut vcpu)?;
//! loop {
//!     match vcpu.run() {
//!         Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => match msrs.answer(&mut vcpu)? {
//!             Outcome::Resume => {}
//!             Outcome::Handler(asked) => {
//!                 let reply = device(&asked);
//!                 msrs.finish(&mut vcpu, asked, reply)?;
//!             }
//!             Outcome::Kill(violation) => return Err(violation.into()),
//!         },
//!         other => return Err(format!("{other:?}").into()),
//!     }
//! }
//! # }
//! ```

mod beside;
mod bound;
mod chosen;
mod cpuid;
mod device;
mod device_set;
mod error;
pub mod events;
mod exit;
mod filters;
pub(crate) mod handle;
mod id;
mod kick;
mod kinds;
mod last_msr;
mod options;
mod outcome;
#[cfg(feature = "bench")]
pub(crate) mod paper;
mod pass_requests;
mod per_process;
mod port;
mod published;
mod publisher;
mod rewind_timer;
mod seen;
mod shared;
mod sync;
mod system_calls;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod thread;
mod vcpu;
mod vm;
mod watch;

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use msrgate_filter::{ExitReason, MsrIndex};
use msrgate_program::answer::Responder;
use msrgate_program::{Program, Update};

use crate::probe::{HostCaps, IgnoreMsrs};

pub use beside::Beside;
pub use cpuid::{CpuidEntry, CpuidLeaves};
pub use device::{
    BadState, Copied, Device, DeviceContext, GuestMemory, GuestPhysical, NotMapped, Written,
};
pub use error::{AnswerError, GateError, StateError, VcpuError};
pub use handle::{RawVcpu, VcpuHandle};
pub use id::VcpuId;
pub use options::GateOptions;
pub use outcome::{HandlerRequest, Outcome, Violation};
pub use publisher::Publication;
pub use seen::FirstAccess;
pub use system_calls::{Ioctl, SystemCalls};
pub use vcpu::VcpuGate;
pub use watch::{Told, Watcher};

use beside::CurrentBeside;
use chosen::{Alive, Chosen};
use cpuid::GuestCpuid;
use events::{Counted, Events, VcpuLogs};
use exit::{Answering, MayNest};
use pass_requests::PassRequests;
use published::Published;
use seen::Seen;
use shared::{Control, Past, Shared};
use thread::OwnThread;
use vm::{KvmVm, VmPort};

/// A gate: it enforces a compiled policy in one VM.
///
/// Any thread may use a gate. After a gate is dropped, the kernel keeps the filter, and an access that needs
/// another filter is an error, [`AnswerError::Gone`]: keep the gate as long as the VM.
///
/// A VMM makes these calls, in this order: [`Self::new`]; [`Self::install`] before any vCPU of the VM runs;
/// [`Self::vcpu`] for each vCPU, before that vCPU runs; then [`Self::replace`] at any time. KVM accepts
/// calls on a VM's file descriptors only from the process that made the VM, so a gate that was installed
/// before a fork(2) belongs to the parent. In the forked child each call of the gate on the VM fails, and
/// dropping the gate does nothing.
#[must_use = "a gate that is not installed filters nothing"]
pub struct Gate {
    shared: Arc<Shared>,
    publisher: Mutex<Option<OwnThread<()>>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("digest", &self.program().digest())
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// Makes a gate for one VM of this host. The gate changes nothing in a VM until [`Self::install`].
    ///
    /// # Errors
    /// - [`GateError::Reasons`], [`GateError::IgnoreMsrs`] or [`GateError::IgnoreMsrsNotSeen`]: this
    ///   host's KVM does not make, or may not make, an exit that the program needs.
    /// - [`GateError::NoMemory`]: the program's microcode device reads the guest's memory, which the gate
    ///   was not given.
    /// - [`GateError::NoHandler`]: the program names a `handler`; [`Self::with_options`] takes the
    ///   names of the VMM's handlers.
    /// - [`GateError::Responder`]: no responder can answer for the program, for instance because it has
    ///   too many emulated registers.
    /// - [`GateError::Pack`]: the accesses that the program logs or audits do not fit a filter.
    pub fn new(program: Program, host: &HostCaps) -> Result<Self, GateError> {
        Self::with_options(program, host, GateOptions::default())
    }

    /// Makes a gate as [`Self::new`] does, with options: the VM's memory, the VMM's handlers and devices,
    /// and the data that events hold.
    ///
    /// # Errors
    /// The errors of [`Self::new`], and [`GateError::Queue`] if the event queue is to be longer than
    /// [`events::EventOptions::LONGEST_QUEUE`].
    pub fn with_options(
        program: Program,
        host: &HostCaps,
        options: GateOptions,
    ) -> Result<Self, GateError> {
        options.events.check()?;
        let program = Arc::new(program);
        check(&program, host, &options)?;
        let example = program.variants()[0].example();
        let responder = Responder::new(Arc::clone(&program), example)?;
        let logs = Arc::new(VcpuLogs::default());
        logs.expect(&program);
        let publish_by = options.publish_by.clone();
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            current: Published::new(responder),
            control: Mutex::new(Control {
                chosen: None,
                vm: None,
                past: Past::None,
            }),
            tied: Mutex::default(),
            process: std::process::id(),
            logs,
            seen: Seen::new(),
            opened: PassRequests::handed_over(publish_by.map(|hand_over| {
                let weak = weak.clone();
                Box::new(move || hand_over(Publication::new(weak.clone()))) as Box<_>
            })),
            options,
            host: host.clone(),
            beside: CurrentBeside::default(),
        });
        Ok(Self {
            shared,
            publisher: Mutex::new(None),
        })
    }

    /// Sets the mask of exit reasons and then the filter in a VM (S7), before any vCPU of the VM runs.
    /// If the program has `[[when]]` sections, the filter refuses every access until the first
    /// [`Self::vcpu`] has chosen the variant. `vm` is the VM's file descriptor, which the gate
    /// duplicates.
    ///
    /// The gate cannot check this, since KVM has no call that tells if a vCPU has run already. A filter does
    /// not undo what the guest did before `install`.
    ///
    /// After `install` the filter and the mask of the VM belong to the gate, and the VMM must set neither. A
    /// VM has only one filter and one mask of exit reasons, and KVM has no call that reads them back. If the
    /// VMM itself answered MSR exits without a gate, such as those for MSRs that KVM does not know, the
    /// policy has to answer them now: by the setting `unknown`, or by a `handler` for each MSR. If the VMM
    /// sets a filter after `install`, the gate reports that, by [`AnswerError::OtherFilter`], only if the
    /// VMM's filter refuses an access that the program allows. If the VMM sets a mask after `install`, the
    /// gate cannot detect that: if the mask has fewer reasons, accesses that the gate would answer become a
    /// #GP.
    ///
    /// # Errors
    /// - [`GateError::Install`]: the kernel refuses the mask or the filter. A new VM then has no mask and no
    ///   filter, the gate is not installed, and `install` may be called again.
    /// - [`GateError::InstalledTwice`]: the gate is installed in a VM already.
    /// - [`GateError::OtherGate`]: another gate of this process is installed in the VM, or a [`VcpuGate`] of
    ///   that gate still exists. On Linux before 6.10 the gate cannot detect this.
    /// - [`GateError::NoSharedRegisters`]: events are to hold RIP, but this KVM cannot copy registers
    ///   into `kvm_run`.
    /// - [`GateError::Pack`]: no filter of KVM can express the gate's first filter.
    /// - [`GateError::Io`]: the process can get no more file descriptors or threads.
    pub fn install(&self, vm: &impl AsRawFd) -> Result<(), GateError> {
        if self.shared.lock().vm.is_some() {
            return Err(GateError::InstalledTwice);
        }
        self.install_in(Box::new(KvmVm::new(vm)?))
    }

    fn install_in(&self, mut vm: Box<dyn VmPort>) -> Result<(), GateError> {
        let mut control = self.shared.lock();
        if control.vm.is_some() {
            return Err(GateError::InstalledTwice);
        }
        self.shared.check_registers(&*vm)?;
        let responder = self.shared.current.get().thing;
        let (filter, reasons) = control.first_filter(&responder, &self.shared)?;
        self.start_publisher(&responder)?;
        vm.replace(&filter, reasons)?;
        control.vm = Some(vm);
        Ok(())
    }

    /// Adds a vCPU and returns the [`VcpuGate`] that answers its exits. Call this function after the
    /// gate is
    /// [installed](Self::install) and before the vCPU runs. `cpuid` is the CPUID that `KVM_SET_CPUID2`
    /// gets. The CPUID of the first vCPU chooses the variant of the program; the CPUIDs of all other vCPUs
    /// must describe the same processor. A vCPU that is added again, as in hot-plug, must have the same
    /// CPUID as before, and its old [`VcpuGate`] must have been dropped.
    ///
    /// # Errors
    /// After an error this call has neither chosen a variant nor changed the kernel's filter, and `vcpu` may
    /// be called again.
    ///
    /// - [`GateError::NotInstalled`]: the gate is not installed in a VM.
    /// - [`GateError::VcpuTwice`]: the vCPU still has its old [`VcpuGate`].
    /// - [`GateError::NoCpuid`], [`GateError::OtherCpu`] or [`GateError::CpuidChanged`]: the CPUID
    ///   lacks leaf 0 or 1, describes another processor than that of the first vCPU, or differs from the
    ///   CPUID that the same vCPU had before.
    /// - [`GateError::Responder`]: the program has no variant for this processor.
    /// - [`GateError::Pack`], [`GateError::Install`] or [`GateError::Io`]: the filter of the chosen
    ///   variant cannot be installed.
    pub fn vcpu(
        &self,
        id: impl Into<VcpuId>,
        cpuid: &(impl CpuidLeaves + ?Sized),
    ) -> Result<VcpuGate, GateError> {
        self.add_vcpu(id.into(), &GuestCpuid::new(&cpuid.leaves())?)
    }

    /// Adds a vCPU whose CPUID the caller does not know, or that has no CPUID. The program must have the
    /// same rules for all processors and must forward no access to KVM's registers: such a program does not
    /// depend on the CPUID. A VMM adds either all vCPUs of a VM by this function, or none of them.
    ///
    /// # Errors
    /// The errors of [`Self::vcpu`], and [`GateError::NoCpuid`] if the program differs by processor, or
    /// has an action such as `mask`, for which the gate needs the CPUID to know the vCPU's registers.
    pub fn vcpu_of_any_cpuid(&self, id: impl Into<VcpuId>) -> Result<VcpuGate, GateError> {
        let program = self.program();
        if depends_on_cpuid(&program) {
            return Err(GateError::NoCpuid);
        }
        self.add_vcpu(id.into(), &GuestCpuid::unknown())
    }

    fn add_vcpu(&self, id: VcpuId, cpuid: &GuestCpuid) -> Result<VcpuGate, GateError> {
        let mut control = self.shared.lock();
        let has_nested = control.vm()?.has_nested_state();
        let alive = Arc::new(Alive);
        self.choose(&mut control, id, cpuid, &alive)?;
        let may_nest = if has_nested && cpuid.has_virtualization() {
            MayNest::Perhaps
        } else {
            MayNest::Never
        };
        let program = self.shared.current.get();
        drop(control);
        let own = Answering::new(id, cpuid, alive, may_nest, &self.shared, &program.thing);
        Ok(VcpuGate::new(program, own))
    }

    /// Chooses the program's variant by the CPUID of the VM's first vCPU. For a later vCPU, checks that
    /// its CPUID describes the same processor as that of the first vCPU.
    fn choose(
        &self,
        control: &mut Control,
        id: VcpuId,
        cpuid: &GuestCpuid,
        alive: &Arc<Alive>,
    ) -> Result<(), GateError> {
        if let Some(chosen) = &mut control.chosen {
            return chosen.add(id, cpuid, alive);
        }
        let program = Arc::clone(self.shared.current.get().thing.program());
        let has_whens = program.variants().len() > 1;
        let responder = Arc::new(Responder::new(program, cpuid.cpu())?);
        if has_whens {
            let beside = self.shared.beside.get();
            let filter = filters::first_filter(&responder, &beside)?;
            let reasons = self.shared.reasons(&responder, &beside);
            let vm = control.vm()?;
            self.start_publisher(&responder)?;
            self.shared
                .try_out(responder, || vm.replace(&filter, reasons))?;
        }
        control.chosen = Some(Chosen::by(id, cpuid, alive));
        Ok(())
    }

    /// Replaces the program by another one while vCPUs run. Each access is handled entirely by the old
    /// program or entirely by the new one. Emulated registers, pins and devices that exist in both
    /// programs keep their state. When this call returns, the new program is in force for every vCPU.
    /// Some devices show a value, such as the microcode revision, in a register that KVM keeps: that
    /// register gets the new program's value at the next [`VcpuGate::reset`].
    ///
    /// # Errors
    /// - [`GateError::NotInstalled`]: the gate is not installed in a VM.
    /// - [`GateError::Install`]: the kernel refuses the filter or the mask.
    /// - [`GateError::Io`]: the process can get no more threads.
    /// - The errors that [`Self::new`] returns for the new program.
    ///
    /// After an error the old program is in force, with its filter and its mask. If the kernel has refused
    /// the filter, a vCPU may have answered exits by the new program before the refusal. Emulated registers,
    /// pins and devices that exist in both programs keep the changes that these exits made. Registers, pins
    /// and devices that only the old program has are as they were before the call, except that a
    /// [`VcpuGate::reset`] or a [`VcpuGate::msr_set_by_host`] during this call has had its effect on them.
    pub fn replace(&self, program: Program) -> Result<(), GateError> {
        let program = Arc::new(program);
        check(&program, &self.shared.host, &self.shared.options)?;
        let mut control = self.shared.lock();
        let example = program.variants()[0].example().clone();
        let is_unknown = control
            .chosen
            .as_ref()
            .is_some_and(|chosen| !chosen.is_known());
        if is_unknown && depends_on_cpuid(&program) {
            return Err(GateError::NoCpuid);
        }
        let cpu = control.chosen.as_ref().map(Chosen::cpu);
        let new = Responder::new(Arc::clone(&program), cpu.unwrap_or(&example))?;
        let new = Arc::new(new);
        let (filter, reasons) = control.first_filter(&new, &self.shared)?;
        let vm = control.vm()?;
        self.start_publisher(&new)?;
        // The logs keep a short list of programs. Add the old program to it last, as the newest: otherwise a
        // series of refused programs would push the old one out.
        self.shared.logs.expect(&program);
        self.shared.logs.expect(&self.program());
        self.shared.try_out(new, || vm.replace(&filter, reasons))?;
        control.past = Past::Other;
        Ok(())
    }

    /// Combines the program's filter and mask with those that the VMM itself sets. This function is for
    /// a library that gives a VMM a gate without the VMM's knowledge. After this call the gate lets an
    /// access through only if the policy and the VMM's filter both allow it.
    ///
    /// [`VcpuGate::answer`] returns [`AnswerError::Theirs`], with the exit as the kernel made it, in two
    /// cases: the policy allows an access that the VMM's filter denies, and the VMM's mask asks for the
    /// exit; or KVM itself refuses the access, and the VMM's mask asks for that reason. If the VMM's filter
    /// denies an access and the VMM's mask does not ask for the exit, the guest gets #GP. If the kernel's
    /// filter is open for first accesses that were logged, it stays open for those of them that the VMM's
    /// new filter allows.
    ///
    /// # Errors
    /// After an error the VMM's previous filter and mask stay in force.
    ///
    /// - [`GateError::Pack`]: both filters together take more ranges than a filter of KVM may have.
    /// - [`GateError::NotInstalled`]: the gate is not installed in a VM.
    /// - [`GateError::Install`]: the kernel refuses the filter or the mask.
    pub fn set_beside(&self, new: Beside) -> Result<(), GateError> {
        let mut control = self.shared.lock();
        let responder = self.shared.current.get().thing;
        let _making = self.shared.opened.making();
        let before = self.shared.beside.replace(Arc::new(new));
        let set = self.set_for_both(&mut control, &responder);
        if set.is_err() {
            self.shared.beside.replace(before);
        }
        set
    }

    fn set_for_both(&self, control: &mut Control, responder: &Responder) -> Result<(), GateError> {
        let (filter, reasons) = if control.is_chosen(responder.program()) {
            let (beside, opened) = (self.shared.beside.get(), self.shared.opened.all());
            let filter = filters::filter_opened_for(responder, &beside, &opened)?;
            (filter, self.shared.reasons(responder, &beside))
        } else {
            control.first_filter(responder, &self.shared)?
        };
        Ok(control.vm()?.replace(&filter, reasons)?)
    }

    /// The program that the gate enforces; before [`Self::install`], the program that it will enforce.
    #[must_use]
    pub fn program(&self) -> Arc<Program> {
        Arc::clone(self.shared.current.get().thing.program())
    }

    /// Returns the reader of the VM's events. A VMM may ask for the reader at any time. As long as there is
    /// no reader, the queue of each vCPU keeps the events for which it has room, and counts the events that
    /// are lost.
    ///
    /// # Errors
    /// [`GateError::EventsTaken`] if a reader exists already: two readers would each get only a part of
    /// the events. After the reader is dropped, this function returns a new one.
    pub fn events(&self) -> Result<Events, GateError> {
        Events::take(&self.shared.logs).ok_or(GateError::EventsTaken)
    }

    /// Returns the first accesses under the program in force: each MSR and direction that the guest has
    /// accessed, once, sorted by MSR. With `log = "first"` the list has all accesses that came to the gate,
    /// except those that ended the VM. With `mode = "audit"` the list has the accesses that the program
    /// would refuse. With other levels of `log` the list is empty.
    ///
    /// A policy can be written from this list after the guest has done its usual work. A first access
    /// becomes an event only once, so a lost event is not repeated. If the access is allowed, the guest's
    /// later accesses to the same MSR in the same direction bypass the gate. The first access stays in this
    /// list even if its event was lost.
    ///
    /// The list has 8,192 slots, and each kind of access can be in any of 64 of them. An access for
    /// which none of these slots is free is missing from the list, and becomes an event each time.
    /// Slots run out after some five thousand accesses spread over the MSR space, or earlier if the
    /// guest chooses MSRs that share slots. The list is emptied when [`Self::replace`] or the choice of
    /// a variant puts another program in force. If another thread is in a call of `replace`, this call waits
    /// until that call returns.
    #[must_use]
    pub fn first_accesses(&self) -> Vec<FirstAccess> {
        let _control = self.shared.lock();
        let program = self.shared.current.get().number;
        self.shared.seen.under(program)
    }

    /// Returns the number of accesses that came to the gate, by MSR, direction and disposition.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.shared.logs.counted()
    }

    /// Returns the MSRs of `listed` that a VMM has to save and restore for the guest under this
    /// program; `listed` is the list of `KVM_GET_MSR_INDEX_LIST`. Call this function while no vCPU
    /// runs: a call of [`Self::replace`] or [`VcpuGate::restore`] makes the returned list longer.
    ///
    /// A filter removes few MSRs from the list. Even if the guest may not write a register by WRMSR, the
    /// register may change: by an instruction such as SWAPGS, with time, or by the VMM itself (S10.5). The
    /// list leaves out the registers of KVM's own interface that the guest can neither read nor write, and
    /// never could. The list leaves out no register before [`Self::install`], before the first
    /// [`Self::vcpu`] has chosen a variant, after a [`Self::replace`], or after a
    /// [`VcpuGate::restore`]: KVM may then hold a setting that another program let the guest turn on.
    /// Use the whole of `listed` for a VM that ran before this gate was installed, and for a VM into
    /// which the VMM wrote a snapshot of another VM by `KVM_SET_MSRS`.
    ///
    /// The state that the gate itself holds is in [`VcpuGate::save`]. If `listed` lacks a register that
    /// the policy lets the guest write, `msrgate check --host` warns of it.
    #[must_use]
    pub fn migration_list(&self, listed: &[MsrIndex]) -> Vec<MsrIndex> {
        self.listed(listed, |responder, _, index| {
            responder.is_out_of_reach(index)
        })
    }

    /// Returns a shorter [`Self::migration_list`], for a VMM that gives the registers of the new VM the same
    /// values as it gave those of the old VM, before [`VcpuGate::restore`].
    ///
    /// This list also leaves out each register that still holds the VMM's value, whatever the guest did: the
    /// guest cannot write the register under this program, and neither an instruction nor time changes the
    /// register. Of only some registers the gate knows that nothing but a write changes them (S10.5).
    ///
    /// The list is no shorter than [`Self::migration_list`] in three cases: if the guest may run nested
    /// guests; under a program with a `handler` or a `device`, which may set any register; and if
    /// [`Self::migration_list`] itself leaves out no register.
    #[must_use]
    pub fn tight_migration_list(&self, listed: &[MsrIndex]) -> Vec<MsrIndex> {
        self.listed(listed, |responder, nests, index| {
            let has_devices =
                responder.handlers().next().is_some() || responder.devices().next().is_some();
            responder.is_out_of_reach(index)
                || !nests && !has_devices && responder.is_out_of_hand(index)
        })
    }

    /// Returns `listed` without the MSRs for which `is_left_out` returns true. The arguments of
    /// `is_left_out` are the responder in force, `true` if a guest may run nested guests, and the MSR.
    /// Returns all of `listed` if KVM may hold a value that a guest wrote under another program than
    /// the one in force.
    fn listed(
        &self,
        listed: &[MsrIndex],
        is_left_out: impl Fn(&Responder, bool, MsrIndex) -> bool,
    ) -> Vec<MsrIndex> {
        let control = self.shared.lock();
        let responder = self.shared.current.get().thing;
        let nests = control.chosen.as_ref().is_none_or(Chosen::nests);
        let is_all = control.may_hold_others_writes(responder.program());
        drop(control);
        let is_kept = |index: &&MsrIndex| is_all || !is_left_out(&responder, nests, **index);
        listed.iter().filter(is_kept).copied().collect()
    }

    /// Starts the publisher, which is the thread that opens the filter for first accesses, if the
    /// program needs this thread and the thread is not running. If a thread of the VMM's opens the filter,
    /// the gate has no publisher.
    fn start_publisher(&self, responder: &Responder) -> Result<(), GateError> {
        if self.shared.options.publish_by.is_some() || !responder.is_traced() {
            return Ok(());
        }
        let mut publisher = self
            .publisher
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if publisher.is_none() {
            *publisher = Some(publisher::spawn(&self.shared).map_err(GateError::Io)?);
        }
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let publisher = self
            .publisher
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if self.shared.process != std::process::id() {
            // This process is a forked child. It must not take the lock of `opened`, which another thread of
            // the parent may have held at the time of the fork.
            publisher.map(OwnThread::join);
            return;
        }
        self.shared.opened.end();
        if let Some(thread) = publisher {
            // If the publisher has panicked, it has already told the vCPUs that no filter is opened any
            // more.
            let _ = thread.join();
        }
    }
}

/// Returns true if the program acts differently on vCPUs with different CPUIDs: by its variants, or by the
/// registers that a vCPU has.
fn depends_on_cpuid(program: &Program) -> bool {
    let carries = |rule: msrgate_program::Rule<'_>| {
        rule.action.needs_forwarding() || matches!(rule.log, msrgate_program::Log::All)
    };
    let mut variants = program.variants().iter();
    program.variants().len() > 1
        || variants.any(|variant| variant.rules().all().any(|(_, rule)| carries(rule)))
}

/// Checks that the host and the options have everything that a program needs, before the gate has a VM.
fn check(program: &Arc<Program>, host: &HostCaps, options: &GateOptions) -> Result<(), GateError> {
    if let Some(name) = options.missing_handler(program) {
        return Err(GateError::NoHandler { name });
    }
    for variant in program.variants() {
        let responder = Responder::new(Arc::clone(program), variant.example())?;
        let missing = variant.reasons().bits() & !host.reasons().get();
        if missing != 0 {
            return Err(GateError::Reasons(crate::RawReasons::new(missing)));
        }
        let asks_unknown = variant
            .reasons()
            .contains(msrgate_filter::Revision::Mainline, ExitReason::Unknown);
        match host.ignore_msrs() {
            IgnoreMsrs::On if asks_unknown => return Err(GateError::IgnoreMsrs),
            IgnoreMsrs::NotSeen if asks_unknown => return Err(GateError::IgnoreMsrsNotSeen),
            _ => {}
        }
        let microcode = program.settings().microcode;
        let reads_memory = microcode.is_some_and(|device| device.update == Update::Accept);
        if reads_memory && responder.devices().next().is_some() && options.memory.is_none() {
            return Err(GateError::NoMemory);
        }
        filters::first_filter(&responder, &Beside::default())?;
    }
    Ok(())
}
