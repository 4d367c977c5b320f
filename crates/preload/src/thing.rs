//! The VMs and vCPUs that the VMM has made. Each VM has a gate, and each vCPU has its part of that gate.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use msrgate_filter::abi::{CallerWidth, UserAddress, UserMemory as _};
use msrgate_filter::{MsrIndex, ReasonMask, Revision, SetCall};
use msrgate_kvm::gate::{Beside, CpuidEntry, Gate, GateError, GateOptions, Publication, VcpuGate};
use msrgate_kvm::{HostCaps, IgnoreMsrs, RawReasons};
use msrgate_program::{Log, Mode, Program};
use msrgate_state::Page;

use crate::own_fds;
use crate::process::Process;
use crate::record::Recorder;
use crate::shared::SharedPage;
use crate::sys::{self, OwnMemory, Returned};

/// A VM or a vCPU behind a descriptor.
#[derive(Clone)]
pub(crate) enum Thing {
    Vm(Arc<Vm>),
    Vcpu(Arc<Vcpu>),
}

impl Thing {
    /// Returns the VM, or `None` if this is a vCPU.
    pub(crate) fn vm(&self) -> Option<&Arc<Vm>> {
        match self {
            Self::Vm(vm) => Some(vm),
            Self::Vcpu(_) => None,
        }
    }

    /// Returns the descriptor of this VM or vCPU that the library has made for itself.
    pub(crate) fn own(&self) -> RawFd {
        match self {
            Self::Vm(vm) => vm.own.as_raw_fd(),
            Self::Vcpu(vcpu) => vcpu.own(),
        }
    }

    /// Returns the vCPU, or `None` if this is a VM.
    #[inline]
    pub(crate) fn vcpu(&self) -> Option<&Arc<Vcpu>> {
        match self {
            Self::Vcpu(vcpu) => Some(vcpu),
            Self::Vm(_) => None,
        }
    }
}

/// The reason why the library cannot guard a VM or a vCPU.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The error of the VMM's request.
    pub(crate) errno: i32,
    /// The reason, as a sentence.
    pub(crate) why: String,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self {
            errno: libc::EPERM,
            why,
        }
    }
}

/// Duplicates a descriptor of the VMM's, so that the library still has a descriptor after the VMM has closed
/// its own.
fn duplicate(fd: RawFd) -> Result<OwnedFd, Refusal> {
    own_fds::duplicate(fd).map_err(|error| match error.raw_os_error() {
        Some(errno @ libc::EMFILE) => Refusal {
            errno,
            why: "no descriptor is left for the library, which needs one for each VM and vCPU: raise the limit of descriptors (ulimit -n)".to_owned(),
        },
        _ => Refusal::from(format!("its descriptor cannot be duplicated: {error}")),
    })
}

/// A VM with its gate. The table's entries for the VM and for its vCPUs keep this value alive.
pub(crate) struct Vm {
    gate: Gate,
    /// The filter and mask that the VMM itself has asked for. Only the helper thread changes them.
    beside: Mutex<Beside>,
    /// True if the gate may rewind an access: the gate then needs the vCPU's registers in the vCPU's
    /// `kvm_run` page.
    rewinds: AtomicBool,
    pub(crate) has_registers: bool,
    has_one_variant: bool,
    /// The library's own descriptor of the VM, by which the library recognises it.
    own: OwnedFd,
}

/// A vCPU with its part of the VM's gate.
pub(crate) struct Vcpu {
    id: u32,
    /// The vCPU's part of the gate; `None` until the vCPU is bound. The field stands before `page`, so that
    /// it is dropped first.
    gate: Mutex<Option<VcpuGate>>,
    pub(crate) page: SharedPage,
    pub(crate) vm: Arc<Vm>,
    /// The CPUID that the VMM last set for this vCPU.
    cpuid: Mutex<Option<Vec<CpuidEntry>>>,
    is_bound: AtomicBool,
}

/// A descriptor number that implements `AsRawFd`.
struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Vm {
    /// Installs the run's policy in a VM that the VMM has just made. The helper thread calls this.
    ///
    /// # Errors
    /// The sentence that says why not.
    pub(crate) fn new(
        fd: RawFd,
        page: Page<'static>,
        process: &'static Process,
    ) -> Result<Self, Refusal> {
        let program = Program::decode(&page.program())
            .map_err(|error| format!("the run's program cannot be read: {error}"))?;
        let ignore_msrs = match page.ignore_msrs() {
            0 => IgnoreMsrs::Off,
            1 => IgnoreMsrs::On,
            _ => IgnoreMsrs::NotSeen,
        };
        let host = HostCaps::known(RawReasons::new(page.reasons()), ignore_msrs);
        let recorder = Recorder::of_new_vm(page, process.pid);
        let (rewinds, has_registers) = (program_rewinds(&program), program_has_registers(&program));
        let has_one_variant = program.variants().len() == 1;
        // One thread does it for all VMs: it makes the same call for a new VM, and waits for nothing else.
        let publish = |publication: Publication| process.helper.leave(move || publication.set());
        let watched = ReasonMask::from_bits(Revision::Mainline, page.watched())
            .map_err(|_| "the run asks for exit reasons that no KVM has".to_owned())?;
        let options = GateOptions::new()
            .watcher(Arc::new(recorder))
            .watched_reasons(watched)
            .publish_by(publish);
        let gate =
            Gate::with_options(program, &host, options).map_err(|error| error.to_string())?;
        gate.install(&Number(fd))
            .map_err(|error| error.to_string())?;
        let own = duplicate(fd)?;
        page.count_guarded_vm();
        Ok(Self {
            gate,
            beside: Mutex::default(),
            rewinds: AtomicBool::new(rewinds),
            has_registers,
            has_one_variant,
            own,
        })
    }

    /// Returns true if the gate may rewind an access of this VM's guest.
    #[inline]
    pub(crate) fn rewinds(&self) -> bool {
        self.rewinds.load(Ordering::Relaxed)
    }

    /// Returns true if the program has several variants, one of which the vCPU's CPUID selects.
    pub(crate) fn needs_cpuid(&self) -> bool {
        !self.has_one_variant
    }

    /// Carries out the VMM's own `KVM_X86_SET_MSR_FILTER`. The helper thread calls this.
    pub(crate) fn set_their_filter(&self, argument: u64) -> Returned {
        let at = UserAddress::new(argument);
        let call = SetCall::read(Revision::Mainline, CallerWidth::Bits64, &OwnMemory, at);
        if let Err(error) = call.result() {
            return Returned::error(error.errno().number());
        }
        let filter = call.published().last().cloned();
        self.set_beside(|beside| beside.filter = filter)
    }

    /// Sets the mask of exit reasons that the VMM itself has asked for. The helper thread calls this.
    pub(crate) fn set_their_mask(&self, bits: u64) -> Returned {
        match ReasonMask::from_bits(Revision::Mainline, bits) {
            Ok(reasons) => self.set_beside(|beside| beside.reasons = reasons),
            Err(_) => Returned::error(libc::EINVAL),
        }
    }

    fn set_beside(&self, change: impl FnOnce(&mut Beside)) -> Returned {
        let mut held = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = held.clone();
        change(&mut new);
        // This comes before the filter changes: an access that exits meanwhile may wait for the new filter.
        self.rewinds.store(true, Ordering::Relaxed);
        match self.gate.set_beside(new.clone()) {
            Ok(()) => {
                *held = new;
                Returned::DONE
            }
            Err(GateError::Pack(_)) => {
                sys::say(
                    "the VMM's own MSR filter and the policy take more than KVM's 16 ranges together: name fewer clusters of MSRs in the policy",
                );
                Returned::error(libc::ENOMEM)
            }
            Err(error) => {
                sys::say(&format!("the VMM's own MSR filter cannot be set: {error}"));
                Returned::error(libc::ENOMEM)
            }
        }
    }
}

impl Vcpu {
    /// Makes the record of a vCPU that the VMM has made. The helper thread calls this.
    ///
    /// # Errors
    /// A sentence that says why the descriptor cannot be duplicated or the vCPU's page cannot be mapped.
    pub(crate) fn new(fd: RawFd, id: u32, vm: Arc<Vm>) -> Result<Self, Refusal> {
        Ok(Self {
            id,
            gate: Mutex::new(None),
            page: SharedPage::map(duplicate(fd)?)?,
            vm,
            cpuid: Mutex::new(None),
            is_bound: AtomicBool::new(false),
        })
    }

    /// Returns the descriptor of this vCPU that the library has made for itself.
    pub(crate) fn own(&self) -> RawFd {
        self.page.own()
    }

    /// Returns true once the gate answers this vCPU's exits.
    #[inline]
    pub(crate) fn is_bound(&self) -> bool {
        self.is_bound.load(Ordering::Relaxed)
    }

    /// Notes the CPUID that the VMM has set for this vCPU.
    pub(crate) fn note_cpuid(&self, leaves: Vec<CpuidEntry>) {
        let mut held = self.cpuid.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(leaves);
    }

    /// Binds the vCPU to the VM's gate. From then on the gate answers the vCPU's exits. The helper thread
    /// calls this before the vCPU's first `KVM_RUN`.
    ///
    /// # Errors
    /// The sentence that says why not.
    pub(crate) fn bind(&self) -> Result<(), String> {
        let gate = if self.vm.has_one_variant {
            self.vm.gate.vcpu_of_any_cpuid(self.id)
        } else {
            self.vm.gate.vcpu(self.id, &self.leaves()?)
        };
        let mut gate = gate.map_err(|error| error.to_string())?;
        self.page
            .with_vcpu(|vcpu| gate.reset_to_run(vcpu))
            .map_err(|error| error.to_string())?;
        *self.gate() = Some(gate);
        self.is_bound.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn leaves(&self) -> Result<Vec<CpuidEntry>, String> {
        let held = self.cpuid.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(leaves) => Ok(leaves.clone()),
            None => Err(format!(
                "the policy differs by processor, and the VMM has given vCPU {} no CPUID",
                self.id
            )),
        }
    }

    /// Locks the vCPU's part of the gate, and returns it: `None` until the vCPU is bound.
    #[inline]
    pub(crate) fn gate(&self) -> MutexGuard<'_, Option<VcpuGate>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the gate that the VMM has written these MSRs by `KVM_SET_MSRS`.
    pub(crate) fn msr_set_by_host(&self, written: impl Iterator<Item = MsrIndex>) {
        if !self.vm.has_registers {
            return;
        }
        if let Some(gate) = &mut *self.gate() {
            for index in written {
                // Of a vCPU that is not bound yet there is nothing to load anew.
                let _ = self
                    .page
                    .with_vcpu(|vcpu| gate.msr_set_by_host(vcpu, index));
            }
        }
    }
}

/// Reads `cap`, `flags` and `args[0]` of the argument of `KVM_ENABLE_CAP`. Returns `None` if the process has
/// no memory at the address `argument`.
pub(crate) fn capability(argument: u64) -> Option<(u32, u32, u64)> {
    let mut bytes = [0; 16];
    OwnMemory
        .read(UserAddress::new(argument), &mut bytes)
        .ok()?;
    let (words, _) = bytes.as_chunks();
    let [first, second] = words.first_chunk()?.map(u64::from_le_bytes);
    let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
    Some((low(first), low(first >> 32), second))
}

fn program_rewinds(program: &Program) -> bool {
    program.settings().mode == Mode::Audit
        || program.variants().iter().any(|variant| {
            let mut rules = variant.rules().all();
            rules.any(|(_, rule)| matches!(rule.log, Log::First | Log::All))
        })
}

fn program_has_registers(program: &Program) -> bool {
    let variants = program.variants().iter();
    variants
        .flat_map(|variant| variant.rules().all())
        .any(|(_, rule)| rule.action.keeps_state())
}
