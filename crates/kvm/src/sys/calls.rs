//! Unsafe: KVM ioctls on file descriptors that other code opened, and the few other system calls of a
//! gate.
//!
//! Each ioctl takes the file descriptor of a VM or a vCPU, so the VMM may use any crate's types for them.
//! On any other file descriptor the kernel returns an error.
#![expect(unsafe_code, reason = "calls that read and write structures of ours")]

use std::ffi::c_ulong;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_CAP_NESTED_STATE, KVM_CAP_SYNC_REGS, KVM_MAX_CPUID_ENTRIES,
    KVM_STATE_NESTED_GUEST_MODE, KVM_SYNC_X86_REGS, KVMIO, kvm_cpuid_entry2, kvm_cpuid2,
    kvm_enable_cap, kvm_mp_state, kvm_msr_entry, kvm_msrs, kvm_nested_state, kvm_regs, kvm_sregs,
    kvm_translation,
};
use msrgate_filter::{Errno, MsrIndex};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::host::Requirement;
pub(crate) use crate::sys::ioctl::duplicate;
use crate::sys::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val,
};

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

/// The kernel's reaction to a value written to a register with `KVM_SET_MSRS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The kernel accepted the value: the register holds it.
    Yes,
    /// The kernel refused the value. A guest that writes this value gets #GP, too.
    No,
}

/// The guest that a vCPU is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The VM's own guest.
    Guest,
    /// A nested guest, whose hypervisor is the VM's guest.
    Nested,
}

/// Returns true if both file descriptors refer to the same open file description; `None` if the kernel
/// cannot tell, as before Linux 6.10.
pub(crate) fn is_one_file(one: &impl AsRawFd, other: &impl AsRawFd) -> Option<bool> {
    /// `F_DUPFD_QUERY`, the command of fcntl(2) that asks if two descriptors are one open file
    /// (`linux/fcntl.h`).
    const DUPFD_QUERY: libc::c_int = 1024 + 3;
    // SAFETY: fcntl(2) takes numbers here, and this command changes nothing.
    match unsafe { libc::fcntl(one.as_raw_fd(), DUPFD_QUERY, other.as_raw_fd()) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Returns nanoseconds since 1970, or 0 if the clock is set before that. The gate calls this for each event;
/// `SystemTime` would take three times as many instructions.
pub(crate) fn now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes a timespec to the pointer. CLOCK_REALTIME always exists; if the call
    // failed, `now` would keep its initial value.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let [seconds, rest] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Sets the mask of exit reasons of `vm`: an access that fails for one of these reasons exits to user
/// space (S1.9).
pub(crate) fn enable_reasons(vm: &impl AsRawFd, mask: RawReasons) -> Result<(), CallErrno> {
    enable(vm, Requirement::UserSpaceMsr, mask)
}

/// Enables a capability of a VM with `KVM_ENABLE_CAP`; the argument `args[0]` is `mask`.
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
    // SAFETY: the kernel reads one kvm_enable_cap from `request`, and keeps no pointer to it.
    checked(unsafe { ioctl_with_ref(vm, KVM_ENABLE_CAP(), &request) }).map(drop)
}

/// Returns true if the guest of this VM may run nested guests: KVM then saves nested state for the VM
/// (`KVM_CAP_NESTED_STATE`).
pub(crate) fn has_nested_state(vm: &impl AsRawFd) -> bool {
    check_extension(vm, KVM_CAP_NESTED_STATE.into()) > 0
}

/// Returns true if KVM can copy the general registers into `kvm_run` (`KVM_CAP_SYNC_REGS`).
pub(crate) fn has_shared_registers(vm: &impl AsRawFd) -> bool {
    let registers = check_extension(vm, KVM_CAP_SYNC_REGS.into());
    u32::try_from(registers).is_ok_and(|bits| bits & KVM_SYNC_X86_REGS != 0)
}

/// Calls `KVM_CHECK_EXTENSION`. The result is positive if KVM has the capability, and otherwise 0 or
/// negative.
pub(crate) fn check_extension(kvm: &impl AsRawFd, capability: c_ulong) -> i32 {
    // SAFETY: the argument is a number, not a pointer.
    unsafe { ioctl_with_val(kvm, KVM_CHECK_EXTENSION(), capability) }
}

/// Calls `KVM_GET_API_VERSION`. The result is -1 if the file is not KVM's device.
pub(crate) fn api_version(kvm: &impl AsRawFd) -> i32 {
    // SAFETY: the call takes no argument.
    unsafe { ioctl(kvm, KVM_GET_API_VERSION()) }
}

/// Creates a VM with `KVM_CREATE_VM`.
pub(crate) fn create_vm(kvm: &impl AsRawFd) -> Result<OwnedFd, CallErrno> {
    loop {
        // SAFETY: the argument is a number, the VM's type.
        let vm = unsafe { ioctl_with_val(kvm, KVM_CREATE_VM(), 0) };
        match checked(vm) {
            // SAFETY: the kernel returned a new file descriptor, which no other code knows.
            Ok(_) => return Ok(unsafe { OwnedFd::from_raw_fd(vm) }),
            // A signal can interrupt the call while the kernel waits for other CPUs.
            Err(errno) if is_interrupted(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns the CPUID leaves that KVM can offer to guests (`KVM_GET_SUPPORTED_CPUID`); `None` if the call
/// fails.
pub(crate) fn supported_cpuid(kvm: &impl AsRawFd) -> Option<CpuId> {
    let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).ok()?;
    // SAFETY: the kernel writes at most as many entries as the count says, and `cpuid` has room for that
    // count.
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

/// Calls `KVM_RUN`. `Ok` means that the vCPU exited to user space.
pub(crate) fn run(vcpu: &impl AsRawFd) -> Result<(), CallErrno> {
    // SAFETY: the call takes no argument; the kernel writes only to the vCPU's own shared page.
    checked(unsafe { ioctl(vcpu, KVM_RUN()) }).map(drop)
}

/// Reads the vCPU's general registers (`KVM_GET_REGS`).
pub(crate) fn registers(vcpu: &impl AsRawFd) -> Result<kvm_regs, CallErrno> {
    let mut registers = kvm_regs::default();
    // SAFETY: the kernel writes one kvm_regs to `registers`; all its fields are integers.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_REGS(), &mut registers) })?;
    Ok(registers)
}

/// Sets the vCPU's general registers (`KVM_SET_REGS`), which also cancels a queued exception (S5.8).
pub(crate) fn set_registers(vcpu: &impl AsRawFd, registers: &kvm_regs) -> Result<(), CallErrno> {
    // SAFETY: the kernel reads one kvm_regs from `registers`.
    checked(unsafe { ioctl_with_ref(vcpu, KVM_SET_REGS(), registers) }).map(drop)
}

/// Reads the vCPU's multiprocessing state, `KVM_MP_STATE_*`: running, halted, or waiting for INIT or SIPI.
pub(crate) fn mp_state(vcpu: &impl AsRawFd) -> Result<u32, CallErrno> {
    let mut state = kvm_mp_state::default();
    // SAFETY: the kernel writes one kvm_mp_state to `state`; its field is an integer.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_MP_STATE(), &mut state) })?;
    Ok(state.mp_state)
}

/// Sets the vCPU's multiprocessing state, `KVM_MP_STATE_*`.
pub(crate) fn set_mp_state(vcpu: &impl AsRawFd, state: u32) -> Result<(), CallErrno> {
    let state = kvm_mp_state { mp_state: state };
    // SAFETY: the kernel reads one kvm_mp_state from `state`.
    checked(unsafe { ioctl_with_ref(vcpu, KVM_SET_MP_STATE(), &state) }).map(drop)
}

/// Reads the vCPU's CPUID as KVM has it now (`KVM_GET_CPUID2`); empty before the VMM sets it.
pub(crate) fn cpuid(vcpu: &impl AsRawFd) -> Result<Vec<kvm_cpuid_entry2>, CallErrno> {
    let mut cpuid = Box::new(AllCpuid {
        count: u32::try_from(CPUID_ENTRIES).unwrap_or(u32::MAX),
        padding: 0,
        entries: [kvm_cpuid_entry2::default(); CPUID_ENTRIES],
    });
    // SAFETY: the kernel reads the count, writes at most that many entries, for which AllCpuid has room,
    // and writes the number of entries to the count.
    checked(unsafe {
        let cpuid = (&raw mut *cpuid).cast::<kvm_cpuid2>();
        ioctl_with_mut_ptr(vcpu, KVM_GET_CPUID2(), cpuid)
    })?;
    let count = usize::try_from(cpuid.count).unwrap_or(usize::MAX);
    Ok(cpuid.entries[..count.min(CPUID_ENTRIES)].to_vec())
}

/// Reads an MSR of the vCPU with `KVM_GET_MSRS`; returns `None` if the kernel refuses.
pub(crate) fn register(vcpu: &impl AsRawFd, index: MsrIndex) -> Result<Option<u64>, CallErrno> {
    let mut msrs = OneMsr::new(index, 0);
    // SAFETY: the kernel reads the count, which is one, reads that many entries, and writes their values.
    // `OneMsr` has the layout of a kvm_msrs with room for one entry.
    let count = checked(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_GET_MSRS(), (&raw mut msrs).cast::<kvm_msrs>())
    })?;
    Ok((count == 1).then_some(msrs.entry.data))
}

/// Sets an MSR of the vCPU with `KVM_SET_MSRS`.
pub(crate) fn set_register(
    vcpu: &impl AsRawFd,
    index: MsrIndex,
    value: u64,
) -> Result<Taken, CallErrno> {
    let mut msrs = OneMsr::new(index, value);
    // SAFETY: the same holds as in `register`, except that the kernel only reads.
    let count = checked(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_SET_MSRS(), (&raw mut msrs).cast::<kvm_msrs>())
    })?;
    Ok(if count == 1 { Taken::Yes } else { Taken::No })
}

/// Translates a linear address by the vCPU's current page tables; `None` if the address is not mapped.
pub(crate) fn physical(vcpu: &impl AsRawFd, linear: u64) -> Result<Option<u64>, CallErrno> {
    if !is_canonical(vcpu, linear)? {
        return Ok(None);
    }
    let mut translation = kvm_translation {
        linear_address: linear,
        ..kvm_translation::default()
    };
    // SAFETY: the kernel reads and writes one kvm_translation, `translation`; all its fields are integers.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_TRANSLATE(), &mut translation) })?;
    Ok((translation.valid != 0).then_some(translation.physical_address))
}

/// Returns true if this linear address is canonical, so that the CPU would accept it. `KVM_TRANSLATE`
/// ignores the upper bits of an address, so this function checks them.
fn is_canonical(vcpu: &impl AsRawFd, linear: u64) -> Result<bool, CallErrno> {
    /// The bit of CR4 for page tables of five levels (SDM volume 3, 2.5).
    const CR4_LA57: u64 = 1 << 12;
    let mut system = kvm_sregs::default();
    // SAFETY: the kernel writes one kvm_sregs to `system`; all its fields are integers.
    checked(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS(), &mut system) })?;
    let unused = if system.cr4 & CR4_LA57 == 0 { 16 } else { 7 };
    let address = linear.cast_signed();
    Ok(address << unused >> unused == address)
}

/// Returns the guest that the vCPU is running: the VM's own guest or a nested guest
/// (`KVM_GET_NESTED_STATE`).
pub(crate) fn level(vcpu: &impl AsRawFd) -> Result<Level, CallErrno> {
    let mut state = NestedState {
        flags: 0,
        format: 0,
        size: u32::try_from(size_of::<NestedState>()).unwrap_or(u32::MAX),
        rest: [0; NESTED_BYTES],
    };
    // SAFETY: the kernel reads `size` and writes at most the header and the data that can follow it, for
    // which NestedState has room; any bytes are a valid NestedState. A smaller buffer would be unsound
    // even with a smaller `size`: kvm_amd writes a whole VMCB behind the header before it returns E2BIG
    // (seen with 6.1).
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

/// The largest number of CPUID leaves that a kernel gives a vCPU. The constant in kvm-bindings is that
/// of older kernels, which is smaller.
const CPUID_ENTRIES: usize = 256;

/// `struct kvm_cpuid2` with room for the largest number of entries that a kernel gives.
#[repr(C)]
struct AllCpuid {
    count: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; CPUID_ENTRIES],
}

/// `struct kvm_msrs` with room for one entry.
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

/// The number of bytes in `struct kvm_nested_state` after its first eight: the rest of the header, and two
/// VMCSs or one VMCB.
const NESTED_BYTES: usize = 120 + 0x2000;

/// `struct kvm_nested_state` with its alignment and with room for all data that can follow it.
#[repr(C, align(8))]
struct NestedState {
    flags: u16,
    format: u16,
    size: u32,
    rest: [u8; NESTED_BYTES],
}

pub(crate) fn checked(answer: i32) -> Result<u32, CallErrno> {
    u32::try_from(answer).map_err(|_| CallErrno::last())
}

/// Returns the name and the request number of each ioctl that this file makes. The numbers are computed
/// as the kernel's macros do.
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

/// Returns true for EINTR, the error with which `KVM_RUN` under `immediate_exit` ends (S5.6).
pub(crate) fn is_interrupted(errno: CallErrno) -> bool {
    errno == CallErrno::Known(Errno::Eintr)
}
