//! The gate: a policy's answers in a real VM.
//!
//! A [`Gate`] belongs to a VM. It installs the filter of a [`Program`], chooses the program's variant
//! by the CPUID of the first vCPU, and replaces the program while the VM runs. Each vCPU's thread owns
//! a [`VcpuGate`], which answers the exits: it moves the exit's fields to the
//! [`Responder`], which decides, and carries out what that says.
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
mod options;
mod outcome;
#[cfg(feature = "bench")]
pub(crate) mod paper;
mod pass_requests;
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

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use msrgate_filter::{ExitReason, MsrIndex};
use msrgate_program::answer::Responder;
use msrgate_program::{Program, Update};

use crate::probe::{HostCaps, IgnoreMsrs};

pub use cpuid::{CpuidEntry, CpuidLeaves};
pub use device::{
    BadState, Copied, Device, DeviceContext, GuestMemory, GuestPhysical, NotMapped, Written,
};
pub use error::{AnswerError, GateError, StateError, VcpuError};
pub use handle::{RawVcpu, VcpuHandle};
pub use id::VcpuId;
pub use options::GateOptions;
pub use outcome::{HandlerRequest, Outcome, Violation};
pub use seen::FirstAccess;
pub use system_calls::{Ioctl, SystemCalls};
pub use vcpu::VcpuGate;

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

/// A policy in a VM.
///
/// It may be used from any thread. When it is dropped the kernel keeps the filter, and vCPUs that
/// still need another one get an error: keep it as long as the VM.
///
/// The calls, in order: [`Self::new`], [`Self::install`] into the VM before any of its vCPUs runs,
/// [`Self::vcpu`] for each vCPU before that one runs, and then [`Self::replace`] at any time. The VM's file
/// descriptors work in the process that made the VM alone, so a gate that was installed before a fork(2) is
/// the parent's: in the child each of its calls on the VM is an error, and to drop it there does nothing.
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
    /// A gate for one VM of this host. Nothing is done to any VM yet.
    ///
    /// # Errors
    /// The program needs what this host's KVM does not have, or more than a gate can hold; or it names a
    /// `handler`, for which [`Self::with_options`] takes the VMM's names.
    pub fn new(program: Program, host: &HostCaps) -> Result<Self, GateError> {
        Self::with_options(program, host, GateOptions::default())
    }

    /// The same with the VM's memory, the VMM's devices, and what events hold.
    ///
    /// # Errors
    /// As [`Self::new`], or a queue is to be longer than [`events::EventOptions::LONGEST_QUEUE`].
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
        let shared = Shared {
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
            opened: PassRequests::default(),
            options,
            host: host.clone(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            publisher: Mutex::new(None),
        })
    }

    /// Puts the filter into a VM, before any of its vCPUs runs: the mask first, then the filter (S7).
    /// A program with `[[when]]`s refuses everything until the first [`Self::vcpu`] has chosen its
    /// variant. `vm` is the VM's file descriptor, of which the gate keeps a duplicate.
    ///
    /// No call tells whether a vCPU has run already. What its guest did until now no filter undoes.
    ///
    /// From here on the VM's filter and its mask of reasons are the gate's, and a VMM sets neither
    /// (there is one of each, and no call to read them back): what it did with exits of its own, for MSRs
    /// that KVM does not know say, the policy does by `unknown`, or by a `handler` for each. A filter that a
    /// VMM sets all the same is found out where it refuses what the program allows, and a mask of its own
    /// nowhere: with fewer reasons, accesses that the gate would answer are a #GP.
    ///
    /// # Errors
    /// The kernel refuses it, the gate is in a VM already, or, on Linux 6.10 and later, another gate of this
    /// process is in the VM, as long as that one or one of its [`VcpuGate`]s is there. After a refusal of the
    /// kernel's a new VM has neither mask nor filter. The gate is in none, and this may be called again.
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
        let (filter, reasons) = control.first_filter(&responder)?;
        self.start_publisher(&responder)?;
        vm.replace(&filter, reasons)?;
        control.vm = Some(vm);
        Ok(())
    }

    /// A vCPU's part, once the gate is [installed](Self::install) and before the vCPU runs. The first one
    /// chooses the variant of the program by its CPUID, which is what `KVM_SET_CPUID2` is given; all
    /// others have to be of the same processor. A vCPU that is added again, as in hot-plug, has to have the
    /// CPUID it had, and its [`VcpuGate`] of before has to be dropped.
    ///
    /// # Errors
    /// The gate is in no VM; the vCPU still has its [`VcpuGate`] of before; the CPUID is another
    /// processor's, or has changed, or the program says nothing of it; or the filter that was chosen
    /// cannot be installed. Nothing has been chosen then, everything is still refused if the gate is
    /// in a VM, and this may be called again.
    pub fn vcpu(
        &self,
        id: impl Into<VcpuId>,
        cpuid: &(impl CpuidLeaves + ?Sized),
    ) -> Result<VcpuGate, GateError> {
        let (id, cpuid) = (id.into(), GuestCpuid::new(&cpuid.leaves())?);
        let mut control = self.shared.lock();
        let has_nested = control.vm()?.has_nested_state();
        let alive = Arc::new(Alive);
        self.choose(&mut control, id, &cpuid, &alive)?;
        let may_nest = if has_nested && cpuid.has_virtualization() {
            MayNest::Perhaps
        } else {
            MayNest::Never
        };
        let program = self.shared.current.get();
        drop(control);
        let own = Answering::new(id, &cpuid, alive, may_nest, &self.shared, &program.thing);
        Ok(VcpuGate::new(program, own))
    }

    /// Chooses, or checks that the choice was the same.
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
            let (filter, reasons) = filters::first_filter(&responder)?;
            let vm = control.vm()?;
            self.start_publisher(&responder)?;
            self.shared
                .try_out(responder, || vm.replace(&filter, reasons))?;
        }
        control.chosen = Some(Chosen::by(id, cpuid, alive));
        Ok(())
    }

    /// Puts another program in force while vCPUs run. For each access the old one or the new one
    /// holds, whole; registers, pins and devices that exist in both keep their state. When this
    /// returns, the new one holds. What a device shows in a register of KVM's, such as the microcode's
    /// revision, it shows from the next [`VcpuGate::reset`] on.
    ///
    /// # Errors
    /// The gate is in no VM, or as [`Self::new`] and [`Self::install`]. The old program is then in force, with
    /// its filter and its mask. Where the kernel has refused the filter, a vCPU may have answered by the new program
    /// meanwhile: registers, pins and devices that exist in both keep what came of that, and those of
    /// the old one alone are as they were, or as a [`VcpuGate::reset`] or
    /// [`VcpuGate::msr_set_by_host`] meanwhile would have left them.
    pub fn replace(&self, program: Program) -> Result<(), GateError> {
        let program = Arc::new(program);
        check(&program, &self.shared.host, &self.shared.options)?;
        let mut control = self.shared.lock();
        let example = program.variants()[0].example().clone();
        let cpu = control.chosen.as_ref().map(Chosen::cpu);
        let new = Responder::new(Arc::clone(&program), cpu.unwrap_or(&example))?;
        let new = Arc::new(new);
        let (filter, reasons) = control.first_filter(&new)?;
        let vm = control.vm()?;
        self.start_publisher(&new)?;
        // The old one last: of programs that are refused one after the other, none makes it forgotten.
        self.shared.logs.expect(&program);
        self.shared.logs.expect(&self.program());
        self.shared.try_out(new, || vm.replace(&filter, reasons))?;
        control.past = Past::Other;
        Ok(())
    }

    /// The program in force, or before [`Self::install`] the one that will be.
    #[must_use]
    pub fn program(&self) -> Arc<Program> {
        Arc::clone(self.shared.current.get().thing.program())
    }

    /// The reader of the VM's events. It may be asked for at any time: until then, each vCPU's queue keeps
    /// what fits, and counts the rest.
    ///
    /// # Errors
    /// There is a reader: two would each see a part of the events. When it is dropped, this may be called
    /// again.
    pub fn events(&self) -> Result<Events, GateError> {
        Events::take(&self.shared.logs).ok_or(GateError::EventsTaken)
    }

    /// The accesses that were to be told the first time and have come, under the program in force, in
    /// order: with `log = "first"` all that came to the gate, but for those that ended the VM; with
    /// `mode = "audit"` those that the program would refuse. With other levels of `log` there are none.
    ///
    /// It is what to learn a policy from, once the guest has done what it is to do: such an access
    /// becomes an event once, and passes by the gate from then on, so that an event which is lost comes no
    /// second time. What is here stays, whatever became of the event.
    ///
    /// There are 8,192 places, and 64 of them where an access may be. What finds none is missing here, and is
    /// an event each time that it comes: from some five thousand accesses on, all over the MSR space, or
    /// before if the guest picks its MSRs for that. Another program, by [`Self::replace`] or as the first
    /// vCPU chooses a variant, begins with none. This waits for a replacement that is under way.
    #[must_use]
    pub fn first_accesses(&self) -> Vec<FirstAccess> {
        let _control = self.shared.lock();
        let program = self.shared.current.get().number;
        self.shared.seen.under(program)
    }

    /// How often each access came here, and what was done.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.shared.logs.counted()
    }

    /// Of `listed`, which is `KVM_GET_MSR_INDEX_LIST`, the MSRs that a VMM has to save and restore for
    /// the guest under this program. A filter takes few off that list: registers that no guest may
    /// write are changed by other instructions, such as SWAPGS, by time, and by the VMM itself (S10.5).
    /// Left out are those of KVM's own interface that the guest can neither write nor read, and never
    /// could: none before [`Self::install`], before the first [`Self::vcpu`] has chosen a variant, after a [`Self::replace`], or
    /// after a [`VcpuGate::restore`], for KVM may hold what another program let the guest turn on. What
    /// the gate holds itself is in [`VcpuGate::save`]. Ask when the vCPUs stand still: a replacement or a restore makes
    /// the list longer. One for a VM that ran before this gate was installed, or into which the VMM itself wrote a
    /// snapshot of another by `KVM_SET_MSRS`, is `listed` whole. That a list lacks registers which the policy lets
    /// the guest write is what `msrgate check --host` warns of.
    #[must_use]
    pub fn migration_list(&self, listed: &[MsrIndex]) -> Vec<MsrIndex> {
        self.listed(listed, |responder, _, index| {
            responder.is_out_of_reach(index)
        })
    }

    /// As [`Self::migration_list`], for a VMM that sets a new VM's registers up as the old one's were: left
    /// out is also each register that holds what the VMM has set, whatever the guest did. The guest cannot
    /// write it under this program, and neither an instruction nor time changes it, which is known of some
    /// (S10.5). The VMM sets them before [`VcpuGate::restore`]. Where a guest may run guests, under a program with a
    /// `handler` or a `device`, which may set any register, and wherever [`Self::migration_list`] leaves out none, this leaves
    /// out no more than that.
    #[must_use]
    pub fn tight_migration_list(&self, listed: &[MsrIndex]) -> Vec<MsrIndex> {
        self.listed(listed, |responder, nests, index| {
            let has_devices =
                responder.handlers().next().is_some() || responder.devices().next().is_some();
            responder.is_out_of_reach(index)
                || !nests && !has_devices && responder.is_out_of_hand(index)
        })
    }

    /// Those of `listed` for which this is not true, of the program in force and of whether a guest may run
    /// guests. All of them where KVM may hold what a guest wrote under other rules.
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

    /// Starts the publisher, once, if a program needs one.
    fn start_publisher(&self, responder: &Responder) -> Result<(), GateError> {
        let mut publisher = self
            .publisher
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if publisher.is_none() && responder.is_traced() {
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
        if publisher.as_ref().is_some_and(|thread| !thread.is_here()) {
            // A forked child: the publisher may have held the lock of `opened` when it was forked.
            publisher.map(OwnThread::join);
            return;
        }
        self.shared.opened.end();
        if let Some(thread) = publisher {
            // Should it have panicked, vCPUs have been told by then that nothing is opened any more.
            let _ = thread.join();
        }
    }
}

/// What can be said of a program before there is a VM.
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
        filters::first_filter(&responder)?;
    }
    Ok(())
}
