//! Unsafe: passes requests to the kernel with arguments that the VMM gave.
//!
//! The KVM requests that the library handles. Every other request goes to the kernel unchanged.
#![expect(
    unsafe_code,
    reason = "an ioctl's argument is whatever its request says"
)]

use std::ffi::{c_ulong, c_void};
use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_bindings::{
    kvm_cpuid, kvm_cpuid_entry, kvm_cpuid_entry2, kvm_cpuid2, kvm_msr_entry, kvm_msrs,
};
use msrgate_filter::{Capability, MsrIndex, Revision};
use msrgate_kvm::gate::{CpuidEntry, CpuidLeaves as _};

use crate::helper::NO_HELPER;
use crate::process::{self, Process};
use crate::run::{self, First, Ran};
use crate::state::{self, Run};
use crate::sys::{self, Returned};
use crate::table::{FDS, Held};
use crate::thing::{Refusal, Thing, Vcpu, Vm, capability};

/// Request numbers (`linux/kvm.h`). The kernel looks at their low 32 bits only.
pub(crate) const KVM_RUN: u32 = 0xae80;
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_SET_CPUID: u32 = 0x4008_ae8a;
const KVM_SET_CPUID2: u32 = 0x4008_ae90;
const KVM_SET_MSRS: u32 = 0x4008_ae89;
const KVM_ENABLE_CAP: u32 = 0x4068_aea3;
const KVM_X86_SET_MSR_FILTER: u32 = 0x4188_aec6;
/// The number of the request `KVM_X86_SET_MSR_FILTER` with the structure size of 32-bit programs.
const KVM_X86_SET_MSR_FILTER_OF_32: u32 = 0x4104_aec6;
/// A request number of KVM's form that no KVM request has.
const UNKNOWN: u32 = 0x4188_aeff;
const KVM_MEMORY_ENCRYPT_OP: u32 = 0xc008_aeba;

/// The numbers of KVM requests for which the library must know which VM or vCPU the descriptor is of.
const LOOKED_UP: [u32; 7] = [
    KVM_CREATE_VCPU,
    KVM_SET_CPUID,
    KVM_SET_CPUID2,
    KVM_SET_MSRS,
    KVM_ENABLE_CAP,
    KVM_X86_SET_MSR_FILTER,
    KVM_MEMORY_ENCRYPT_OP,
];

/// An ioctl(2) request with the arguments that the VMM gave.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) fd: RawFd,
    pub(crate) asked: c_ulong,
    pub(crate) argument: *mut c_void,
}

impl Request {
    /// Returns the low 32 bits of the request number, which are all that the kernel looks at.
    #[expect(clippy::cast_possible_truncation, reason = "as the kernel does")]
    #[inline]
    pub(crate) const fn number(self) -> u32 {
        self.asked as u32
    }

    /// Passes the request to the kernel unchanged, without the run's cookie.
    #[inline]
    pub(crate) fn pass(self) -> Returned {
        // SAFETY: the VMM called ioctl(2) with these arguments, and is responsible for them.
        unsafe { sys::ioctl(self.fd, self.asked, self.argument) }
    }

    /// Passes the request to the kernel with the run's cookie, without which the run's seccomp filter
    /// refuses the request.
    #[inline]
    fn pass_guarded(self) -> Returned {
        // SAFETY: the VMM called ioctl(2) with these arguments, and is responsible for them.
        unsafe { sys::guarded_ioctl(self.fd, self.asked, self.argument) }
    }

    /// Passes a request number that KVM does not know to the kernel instead, on the same descriptor. The
    /// kernel's error is the same as for an MSR filter on a descriptor that is not a VM's, and as for the
    /// 32-bit form of the request in a 64-bit program. The VMM cannot set a filter in this way that bypasses
    /// the gate.
    fn pass_unknown(self) -> Returned {
        let asked = c_ulong::from(UNKNOWN);
        Self { asked, ..self }.pass()
    }

    fn address(self) -> u64 {
        self.argument.expose_provenance() as u64
    }
}

/// Handles a `KVM_RUN` request of the VMM.
#[inline]
pub(crate) fn run(request: Request) -> Returned {
    let Some(process) = process::known() else {
        return request.pass_guarded();
    };
    let ran = match process
        .table
        .get(request.fd)
        .as_deref()
        .and_then(Thing::vcpu)
    {
        Some(vcpu) => run::run(process, vcpu, First::Enter, || request.pass_guarded()),
        None => return run_unknown(process, request, First::Enter),
    };
    match ran {
        Ran::Returned(returned) => returned,
        Ran::Other => run_unknown(process, request, First::Exit),
    }
}

/// Handles `KVM_RUN` on a descriptor that the VMM got without a KVM request, for example by dup2(2).
#[cold]
fn run_unknown(process: &'static Process, request: Request, mut first: First) -> Returned {
    loop {
        identify(process, request.fd);
        let ran = match process
            .table
            .get(request.fd)
            .as_deref()
            .and_then(Thing::vcpu)
        {
            Some(vcpu) => run::run(process, vcpu, first, || request.pass_guarded()),
            None if first == First::Exit => end_without_gate(process),
            None => match request.pass_guarded() {
                Returned::DONE => end_without_gate(process),
                // This is no vCPU, or one of another process.
                failed => return failed,
            },
        };
        match ran {
            Ran::Returned(returned) => return returned,
            Ran::Other => first = First::Exit,
        }
    }
}

/// Ends the process, because a vCPU has run that is not in the library's table and so has no gate.
#[cold]
fn end_without_gate(process: &'static Process) -> ! {
    run::end(
        process,
        "a vCPU has run that has no gate, and the VMM is ended: it may have put a file of its own on a descriptor of msrgate's",
    )
}

/// Handles every KVM request except `KVM_RUN`.
pub(crate) fn other(request: Request) -> Returned {
    let page = match state::run() {
        Run::Page(page) => *page,
        Run::Bad(why) if request.number() == KVM_CREATE_VM => return refuse(libc::EPERM, why),
        Run::None | Run::Bad(_) => return request.pass(),
    };
    let process = match process::here() {
        Ok(process) => process,
        Err(why) if request.number() == KVM_CREATE_VM => return refuse(libc::EAGAIN, &why),
        Err(_) => return request.pass(),
    };
    let number = request.number();
    if LOOKED_UP.contains(&number) && depends_on_identity(process, request) {
        identify(process, request.fd);
    }
    match number {
        KVM_CREATE_VM => add(process, request.pass_guarded(), move |fd| {
            Ok(Thing::Vm(Arc::new(Vm::new(fd, page, process)?)))
        }),
        KVM_CREATE_VCPU => {
            let Some(held) = vm(process, request.fd) else {
                return request.pass();
            };
            #[expect(clippy::cast_possible_truncation, reason = "KVM looks at the low half")]
            let id = request.address() as u32;
            add(process, request.pass(), move |fd| {
                let vm = held.vm().ok_or("the descriptor is no VM's".to_owned())?;
                Ok(Thing::Vcpu(Arc::new(Vcpu::new(fd, id, Arc::clone(vm))?)))
            })
        }
        KVM_SET_CPUID => set_cpuid::<kvm_cpuid_entry>(process, request),
        KVM_SET_CPUID2 => set_cpuid::<kvm_cpuid_entry2>(process, request),
        KVM_SET_MSRS => set_msrs(process, request),
        KVM_ENABLE_CAP => enable_capability(process, request),
        KVM_X86_SET_MSR_FILTER => match vm(process, request.fd) {
            Some(held) => {
                let at = request.address();
                asked(process, held, move |vm| vm.set_their_filter(at))
            }
            None => request.pass_unknown(),
        },
        KVM_X86_SET_MSR_FILTER_OF_32 => request.pass_unknown(),
        KVM_MEMORY_ENCRYPT_OP if vm(process, request.fd).is_some() => refuse(
            libc::EPERM,
            "VMs with encrypted registers cannot be guarded: the policy's answers could not be given; run it without SEV",
        ),
        _ => request.pass(),
    }
}

/// Finds out which VM or vCPU a descriptor is of, and corrects the table. The VMM may have given the number
/// to another file, for example by dup2(2), and the library does not see such calls.
#[cold]
fn identify(process: &'static Process, fd: RawFd) {
    process.helper.ask(move || process.table.identify(fd));
}

/// Returns true if the library would handle the request in another way if the descriptor's VM or vCPU were
/// not the one that the table has. All VMs of a run have one program.
fn depends_on_identity(process: &Process, request: Request) -> bool {
    let Some(held) = process.table.get(request.fd) else {
        return true;
    };
    match (request.number(), held.vcpu()) {
        (KVM_SET_MSRS, Some(vcpu)) => vcpu.vm.has_registers,
        (KVM_SET_CPUID | KVM_SET_CPUID2, Some(vcpu)) => vcpu.vm.needs_cpuid(),
        _ => true,
    }
}

/// Returns the VM behind a descriptor, counted as in use. The caller gets no `Arc` of the VM: if another
/// thread closes the descriptor meanwhile, the helper thread drops the VM, not the VMM's thread.
fn vm(process: &'static Process, fd: RawFd) -> Option<Held<'static>> {
    process.table.get(fd).filter(|held| held.vm().is_some())
}

/// Runs `act` on the helper thread, and returns the result of `act`, or `EIO` if the helper thread has
/// ended.
fn asked(
    process: &'static Process,
    held: Held<'static>,
    act: impl FnOnce(&Vm) -> Returned + Send + 'static,
) -> Returned {
    let refused = Returned::error(libc::EBADF);
    let answer = process
        .helper
        .ask(move || held.vm().map_or(refused, |vm| act(vm)));
    answer.unwrap_or_else(|| refuse(libc::EIO, NO_HELPER))
}

/// Prints the reason why a request is refused, and returns `errno` as the request's result. The helper
/// thread prints the reason, if the process has a helper thread.
fn refuse(errno: i32, why: &str) -> Returned {
    let said = why.to_owned();
    let is_said = process::known().and_then(|process| process.helper.ask(move || sys::say(&said)));
    if is_said.is_none() {
        sys::say(why);
    }
    Returned::error(errno)
}

/// Puts the VM or vCPU that the kernel has just made into the table, in place of an older entry for the same
/// descriptor number.
fn add(
    process: &'static Process,
    returned: Returned,
    make: impl FnOnce(RawFd) -> Result<Thing, Refusal> + Send + 'static,
) -> Returned {
    let Ok(fd) = returned.get() else {
        return returned;
    };
    if usize::try_from(fd).is_ok_and(|fd| fd >= FDS) {
        sys::close(fd);
        return refuse(
            libc::EMFILE,
            "descriptors of VMs and vCPUs have to be below 65536: close some files, or lower RLIMIT_NOFILE",
        );
    }
    let added = process.helper.ask(move || {
        process.table.take_stale();
        process.table.put(fd, make(fd)?);
        Ok::<_, Refusal>(())
    });
    let refusal = match added {
        Some(Ok(())) => return returned,
        Some(Err(refusal)) => refusal,
        None => Refusal::from(NO_HELPER.to_owned()),
    };
    sys::close(fd);
    let sentence = format!("the VM or vCPU cannot be guarded: {}", refusal.why);
    refuse(refusal.errno, &sentence)
}

/// A CPUID entry in the argument of `KVM_SET_CPUID` or `KVM_SET_CPUID2`. Both arguments have a header of the
/// same form, which begins with the number of entries.
trait Entry: Sized {
    fn leaves(entries: &[Self]) -> Vec<CpuidEntry>;
}

impl Entry for kvm_cpuid_entry2 {
    fn leaves(entries: &[Self]) -> Vec<CpuidEntry> {
        entries.leaves()
    }
}

impl Entry for kvm_cpuid_entry {
    fn leaves(entries: &[Self]) -> Vec<CpuidEntry> {
        let with_subleaf = |entry: &Self| kvm_cpuid_entry2 {
            function: entry.function,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..kvm_cpuid_entry2::default()
        };
        let entries: Vec<_> = entries.iter().map(with_subleaf).collect();
        entries.leaves()
    }
}

fn set_cpuid<E: Entry>(process: &Process, request: Request) -> Returned {
    const HEADER: usize = size_of::<kvm_cpuid2>();
    const { assert!(HEADER == size_of::<kvm_cpuid>()) };
    let returned = request.pass();
    let held = process.table.get(request.fd);
    let vcpu = held.as_deref().and_then(Thing::vcpu);
    let vcpu = vcpu.filter(|vcpu| !vcpu.is_bound());
    if let (Returned::DONE, Some(vcpu)) = (returned, vcpu) {
        // SAFETY: the kernel has just read a header there. It begins with the number of entries behind it.
        let count = unsafe { request.argument.cast::<u32>().read_unaligned() };
        // SAFETY: the kernel has just read `count` entries behind the header. Entries consist of integers.
        let entries: Vec<E> = unsafe { behind(request, HEADER, count) };
        vcpu.note_cpuid(E::leaves(&entries));
    }
    returned
}

fn set_msrs(process: &Process, request: Request) -> Returned {
    let returned = request.pass();
    let held = process.table.get(request.fd);
    let vcpu = held.as_deref().and_then(Thing::vcpu);
    if let (Ok(count), Some(vcpu)) = (returned.get(), vcpu) {
        let count = u32::try_from(count).unwrap_or(0);
        // SAFETY: the kernel has just read a kvm_msrs there, with at least `count` entries; kvm_msr_entry
        // consists of integers.
        let entries: Vec<kvm_msr_entry> = unsafe { behind(request, size_of::<kvm_msrs>(), count) };
        vcpu.msr_set_by_host(entries.iter().map(|entry| MsrIndex::new(entry.index)));
    }
    returned
}

/// Returns the entries that follow the header in the structure that a request's argument points to.
///
/// # Safety
/// The kernel has just read `count` entries from that structure, and `T` consists of integers.
unsafe fn behind<T>(request: Request, header: usize, count: u32) -> Vec<T> {
    let first = request.argument.wrapping_byte_add(header).cast::<T>();
    let places = (0..usize::try_from(count).unwrap_or(0)).map(|at| first.wrapping_add(at));
    // SAFETY: the caller says that the entries are there. The read is unaligned, as the VMM may not have
    // aligned them.
    places
        .map(|place| unsafe { place.read_unaligned() })
        .collect()
}

fn enable_capability(process: &'static Process, request: Request) -> Returned {
    let Some(held) = vm(process, request.fd) else {
        return request.pass();
    };
    let at = request.address();
    let asked_for = process.helper.ask(move || capability(at)).flatten();
    let wanted = Capability::user_space_msr(Revision::Mainline).get();
    match asked_for {
        Some((capability, 0, mask)) if capability == wanted => {
            asked(process, held, move |vm| vm.set_their_mask(mask))
        }
        // The kernel answers a request for another capability, or one that is malformed.
        _ => request.pass(),
    }
}
