//! Unsafe: ioctls of KVM on file descriptors that somebody else opened, and what few calls else a gate
//! makes of the kernel.
//!
//! Whichever crate's types the VMM has for its VM and its vCPUs: each ioctl takes a VM's or a vCPU's file
//! descriptor; on any other the kernel answers with an error.
#![expect(unsafe_code, reason = "calls that read and write structures of ours")]

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_CAP_NESTED_STATE, KVM_CAP_SYNC_REGS, KVM_MAX_CPUID_ENTRIES,
    KVM_STATE_NESTED_GUEST_MODE, KVM_SYNC_X86_REGS, KVMIO, kvm_cpuid_entry2, kvm_cpuid2,
    kvm_enable_cap, kvm_mp_state, kvm_msr_entry, kvm_msrs, kvm_nested_state, kvm_regs, kvm_sregs,
    kvm_translation,
};
use msrgate_filter::{Errno, MsrIndex};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::host::Requirement;

ioctl_io_nr!(KVM_GET_API_VERSION, KVMIO, 0x00);
ioctl_io_nr!(KVM_CREATE_VM, KVMIO, 0x01);
ioctl_iowr_nr!(KVM_GET_SUPPORTED_CPUID, KVMIO, 0x05, kvm_cpuid2);
ioctl_io_nr!(KVM_CHECK_EXTENSION, KVMIO, 0x03);
ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_ior_nr!(KVM_GET_REGS, KVMIO, 0x81, kvm_regs);
ioctl_iow_nr!(KVM_SET_REGS, KVMIO, 0x82, kvm_regs);
ioctl_ior_nr!(KVM_GET_SREGS, KVMIO, 0x83, kvm_sregs);
ioctl_iowr_nr!(KVM_TRANSLATE, KVMIO, 0x85, kvm_translation);
ioctl_iowr_nr!(KVM_GET_MSRS, KVMIO, 0x88, kvm_msrs);
ioctl_iow_nr!(KVM_SET_MSRS, KVMIO, 0x89, kvm_msrs);
ioctl_ior_nr!(KVM_GET_MP_STATE, KVMIO, 0x98, kvm_mp_state);
ioctl_iowr_nr!(KVM_GET_CPUID2, KVMIO, 0x91, kvm_cpuid2);
ioctl_iow_nr!(KVM_SET_MP_STATE, KVMIO, 0x99, kvm_mp_state);
ioctl_iow_nr!(KVM_ENABLE_CAP, KVMIO, 0xa3, kvm_enable_cap);
ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);

/// How the kernel took a value for a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The register holds it.
    Yes,
    /// It refused it: the guest's own write would be a #GP, too.
    No,
}

/// What a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The guest.
    Guest,
    /// A guest of the guest.
    Nested,
}

/// A duplicate of a file descriptor, to keep.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) of a number makes a new file descriptor or fails.
    let new = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Returns true if two file descriptors are of one file; `None` if this kernel does not say, as before 6.10.
pub(crate) fn is_one_file(one: &impl AsRawFd, other: &impl AsRawFd) -> Option<bool> {
    /// `F_DUPFD_QUERY` (Linux, `uapi/linux/fcntl.h`).
    const DUPFD_QUERY: libc::c_int = 1024 + 3;
    // SAFETY: fcntl(2) of two numbers, which changes nothing.
    match unsafe { libc::fcntl(one.as_raw_fd(), DUPFD_QUERY, other.as_raw_fd()) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Nanoseconds since 1970, 0 before that. `SystemTime` gives them, too, in three times the instructions:
/// each event asks.
pub(crate) fn now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes a timespec where it is told to. That fails for no clock that there
    // always is, and then `now` is what it was.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let [seconds, rest] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Asks `vm` for exits for these reasons (S1.9).
pub(crate) fn enable_reasons(vm: &impl AsRawFd, mask: RawReasons) -> Result<(), CallErrno> {
    enable(vm, Requirement::UserSpaceMsr, mask)
}

/// Enables a capability with `mask` as its first argument.
pub(crate) fn enable(
    vm: &impl AsRawFd,
    which: Requirement,
    mask: RawReasons,
) -> Result<(), CallErrno> {
    let request = kvm_enable_cap {
        cap: which.capability().get(),
        args: [mask.get(), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    // SAFETY: the kernel reads a kvm_enable_cap, which `request` is, and keeps nothing of it.
    checked(unsafe { ioctl_with_ref(vm, KVM_ENABLE_CAP(), &request) }).map(drop)
}

/// Whether this VM may have guests that run guests: where KVM has no state of them, it has none.
pub(crate) fn has_nested_state(vm: &impl AsRawFd) -> bool {
    check_extension(vm, KVM_CAP_NESTED_STATE.into()) > 0
}

/// Whether KVM puts general registers into `kvm_run` when asked.
pub(crate) fn has_shared_registers(vm: &impl AsRawFd) -> bool {
    let registers = check_extension(vm, KVM_CAP_SYNC_REGS.into());
    u32::try_from(registers).is_ok_and(|bits| bits & KVM_SYNC_X86_REGS != 0)
}

/// What KVM, or a VM, says of a capability; not above 0 if it has it not.
pub(crate) fn check_extension(kvm: &impl AsRawFd, capability: c_ulong) -> i32 {
    // SAFETY: the kernel reads the number alone.
    unsafe { ioctl_with_val(kvm, KVM_CHECK_EXTENSION(), capability) }
}

/// The version of the interface behind a device file; -1 if it is no KVM.
pub(crate) fn api_version(kvm: &impl AsRawFd) -> i32 {
    // SAFETY: it takes no argument.
    unsafe { ioctl(kvm, KVM_GET_API_VERSION()) }
}

/// A new VM.
pub(crate) fn create_vm(kvm: &impl AsRawFd) -> Result<OwnedFd, CallErrno> {
    loop {
        // SAFETY: the kernel reads a number, the VM's type.
        let vm = unsafe { ioctl_with_val(kvm, KVM_CREATE_VM(), 0) };
        match checked(vm) {
            // SAFETY: it was made just now, and nobody else knows it.
            Ok(_) => return Ok(unsafe { OwnedFd::from_raw_fd(vm) }),
            // It may be interrupted while it waits for other CPUs.
            Err(errno) if is_interrupted(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What KVM can offer a guest's CPUID.
pub(crate) fn supported_cpuid(kvm: &impl AsRawFd) -> Option<CpuId> {
    let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).ok()?;
    // SAFETY: the kernel writes as many entries as the count has room for, which `cpuid` holds, and
    // no larger count.
    checked(unsafe {
        ioctl_with_mut_ptr(
            kvm,
            KVM_GET_SUPPORTED_CPUID(),
            cpuid.as_mut_fam_struct_ptr(),
        )
    })
    .ok()?;
    Some(cpuid)
}

/// `KVM_RUN`. `Ok` is an exit to user space.
pub(crate) fn run(vcpu: &impl AsRawFd) -> Result<(), CallErrno> {
    // SAFETY: it takes no argument. What it writes, it writes into the vCPU's shared page.
    checked(unsafe { ioctl(vcpu, KVM_RUN()) }).map(drop)
}

/// The general registers.
pub(crate) fn registers(vcpu: &impl AsRawFd) -> Result<kvm_regs, CallErrno> {
    let mut registers = kvm_regs::default();
    // SAFETY: the kernel writes a kvm_regs, which `registers` is, all of integers.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_REGS(), &mut registers) })?;
    Ok(registers)
}

/// Sets them, which cancels an exception that is queued (S5.8).
pub(crate) fn set_registers(vcpu: &impl AsRawFd, registers: &kvm_regs) -> Result<(), CallErrno> {
    // SAFETY: the kernel reads a kvm_regs, which `registers` is.
    checked(unsafe { ioctl_with_ref(vcpu, KVM_SET_REGS(), registers) }).map(drop)
}

/// Whether the vCPU runs, or waits for INIT or SIPI: `KVM_MP_STATE_*`.
pub(crate) fn mp_state(vcpu: &impl AsRawFd) -> Result<u32, CallErrno> {
    let mut state = kvm_mp_state::default();
    // SAFETY: the kernel writes a kvm_mp_state, which `state` is, an integer.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_MP_STATE(), &mut state) })?;
    Ok(state.mp_state)
}

/// Sets it.
pub(crate) fn set_mp_state(vcpu: &impl AsRawFd, state: u32) -> Result<(), CallErrno> {
    let state = kvm_mp_state { mp_state: state };
    // SAFETY: the kernel reads a kvm_mp_state, which `state` is.
    checked(unsafe { ioctl_with_ref(vcpu, KVM_SET_MP_STATE(), &state) }).map(drop)
}

/// The CPUID that the vCPU was given, as KVM has it by now; empty before it is set.
pub(crate) fn cpuid(vcpu: &impl AsRawFd) -> Result<Vec<kvm_cpuid_entry2>, CallErrno> {
    let mut cpuid = Box::new(AllCpuid {
        count: u32::try_from(CPUID_ENTRIES).unwrap_or(u32::MAX),
        padding: 0,
        entries: [kvm_cpuid_entry2::default(); CPUID_ENTRIES],
    });
    // SAFETY: the kernel reads the count, writes at most so many entries, for which AllCpuid has room, and
    // how many those are.
    checked(unsafe {
        let cpuid = (&raw mut *cpuid).cast::<kvm_cpuid2>();
        ioctl_with_mut_ptr(vcpu, KVM_GET_CPUID2(), cpuid)
    })?;
    let count = usize::try_from(cpuid.count).unwrap_or(usize::MAX);
    Ok(cpuid.entries[..count.min(CPUID_ENTRIES)].to_vec())
}

/// What a register holds, by the host's access; `None` if the kernel does not say.
pub(crate) fn register(vcpu: &impl AsRawFd, index: MsrIndex) -> Result<Option<u64>, CallErrno> {
    let mut msrs = OneMsr::new(index, 0);
    // SAFETY: the kernel reads the count and as many entries as it says, which is one, and writes
    // that entry's value: `OneMsr` is a kvm_msrs with room for one.
    let count = checked(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_GET_MSRS(), (&raw mut msrs).cast::<kvm_msrs>())
    })?;
    Ok((count == 1).then_some(msrs.entry.data))
}

/// Sets a register by the host's access.
pub(crate) fn set_register(
    vcpu: &impl AsRawFd,
    index: MsrIndex,
    value: u64,
) -> Result<Taken, CallErrno> {
    let mut msrs = OneMsr::new(index, value);
    // SAFETY: as in `register`; the kernel only reads.
    let count = checked(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_SET_MSRS(), (&raw mut msrs).cast::<kvm_msrs>())
    })?;
    Ok(if count == 1 { Taken::Yes } else { Taken::No })
}

/// The guest-physical address behind a linear one, as the vCPU's tables are now; `None` if there is
/// none.
pub(crate) fn physical(vcpu: &impl AsRawFd, linear: u64) -> Result<Option<u64>, CallErrno> {
    if !is_canonical(vcpu, linear)? {
        return Ok(None);
    }
    let mut translation = kvm_translation {
        linear_address: linear,
        ..kvm_translation::default()
    };
    // SAFETY: the kernel reads and writes a kvm_translation, which `translation` is.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_TRANSLATE(), &mut translation) })?;
    Ok((translation.valid != 0).then_some(translation.physical_address))
}

/// Whether the CPU would take this address: KVM's translation looks at its low bits only.
fn is_canonical(vcpu: &impl AsRawFd, linear: u64) -> Result<bool, CallErrno> {
    /// Five levels of tables (SDM volume 3, 2.5).
    const CR4_LA57: u64 = 1 << 12;
    let mut system = kvm_sregs::default();
    // SAFETY: the kernel writes a kvm_sregs, which `system` is, all of integers.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS(), &mut system) })?;
    let unused = if system.cr4 & CR4_LA57 == 0 { 16 } else { 7 };
    let address = linear.cast_signed();
    Ok(address << unused >> unused == address)
}

/// Whether the vCPU runs a nested guest.
pub(crate) fn level(vcpu: &impl AsRawFd) -> Result<Level, CallErrno> {
    let mut state = NestedState {
        flags: 0,
        format: 0,
        size: u32::try_from(size_of::<NestedState>()).unwrap_or(u32::MAX),
        rest: [0; NESTED_BYTES],
    };
    // SAFETY: the kernel reads `size`, writes at most the header and what can follow it, for which
    // NestedState has room, and any bytes are one. A smaller `size` would not hold it back: kvm_amd
    // writes a whole VMCB behind the header before it answers E2BIG (seen with 6.1).
    checked(unsafe {
        let state = (&raw mut state).cast::<kvm_nested_state>();
        ioctl_with_mut_ptr(vcpu, KVM_GET_NESTED_STATE(), state)
    })?;
    Ok(
        if u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE == 0 {
            Level::Guest
        } else {
            Level::Nested
        },
    )
}

/// The most that a vCPU is given, by every kernel: kvm-bindings has the number of older ones.
const CPUID_ENTRIES: usize = 256;

/// `struct kvm_cpuid2` with all that can follow it.
#[repr(C)]
struct AllCpuid {
    count: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; CPUID_ENTRIES],
}

/// `struct kvm_msrs` with one entry.
#[repr(C)]
struct OneMsr {
    count: u32,
    padding: u32,
    entry: kvm_msr_entry,
}

impl OneMsr {
    fn new(index: MsrIndex, value: u64) -> Self {
        Self {
            count: 1,
            padding: 0,
            entry: kvm_msr_entry {
                index: index.get(),
                data: value,
                ..kvm_msr_entry::default()
            },
        }
    }
}

/// The header beyond its first eight bytes, and room for two VMCSs, or a VMCB.
const NESTED_BYTES: usize = 120 + 0x2000;

/// `struct kvm_nested_state` with all that can follow it, and its alignment.
#[repr(C, align(8))]
struct NestedState {
    flags: u16,
    format: u16,
    size: u32,
    rest: [u8; NESTED_BYTES],
}

fn checked(answer: i32) -> Result<u32, CallErrno> {
    u32::try_from(answer).map_err(|_| CallErrno::last())
}

/// Each `ioctl` of this file, with its number as the kernel's macros make it.
#[cfg(test)]
pub(crate) fn numbers() -> Vec<(&'static str, c_ulong)> {
    macro_rules! numbers {
        ($($name:ident)*) => { vec![$((stringify!($name), $name())),*] };
    }
    numbers!(
        KVM_GET_API_VERSION KVM_CREATE_VM KVM_GET_SUPPORTED_CPUID KVM_CHECK_EXTENSION KVM_RUN KVM_GET_REGS
        KVM_SET_REGS KVM_GET_SREGS KVM_TRANSLATE KVM_GET_MSRS KVM_SET_MSRS KVM_GET_MP_STATE KVM_GET_CPUID2
        KVM_SET_MP_STATE KVM_ENABLE_CAP KVM_GET_NESTED_STATE
    )
}

/// Whether an error is the one that `KVM_RUN` under `immediate_exit` ends with (S5.6).
pub(crate) fn is_interrupted(errno: CallErrno) -> bool {
    errno == CallErrno::Known(Errno::Eintr)
}
