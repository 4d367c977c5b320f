//! The system calls that a gate and a probe of the host make, for a VMM's seccomp rules.
//! `crates/kvm/tests/seccomp.rs` checks that the list is complete.

/// An `ioctl` of KVM: its name in `linux/kvm.h`, and its number on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// The name of the request, such as `KVM_RUN`.
    pub name: &'static str,
    /// The number of the request, which is the second argument of ioctl(2).
    pub number: u32,
}

/// The system calls that this crate makes for a VMM, by thread. [`Self::ALL`] is valid for every
/// program that a gate has or may get by [`Gate::replace`](super::Gate::replace), and is available
/// before there is a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemCalls {
    /// The `ioctl`s of [`HostCaps::probe`](crate::HostCaps::probe), on `/dev/kvm` and on a VM of its
    /// own.
    pub probe_ioctls: &'static [Ioctl],
    /// The system calls of [`HostCaps::probe`](crate::HostCaps::probe) that are not `ioctl`s of KVM.
    pub probe_others: &'static [&'static str],
    /// The `ioctl`s of a vCPU's thread on the vCPU's file descriptor.
    pub vcpu_ioctls: &'static [Ioctl],
    /// Further `ioctl`s on a vCPU's file descriptor if the gate has the VM's memory
    /// ([`GateOptions::memory`](super::GateOptions::memory)).
    pub vcpu_memory_ioctls: &'static [Ioctl],
    /// The system calls of a vCPU's thread that are not `ioctl`s of KVM. The thread reads the clock, which
    /// calls the kernel if the host's clock source is not the TSC. The thread also closes the gate's
    /// duplicate of the VM's file descriptor if it drops its [`VcpuGate`](super::VcpuGate) after the gate is
    /// gone.
    pub vcpu_others: &'static [&'static str],
    /// The `ioctl`s on the VM's file descriptor. The threads that install the gate, [add
    /// vCPUs](super::Gate::vcpu) or replace the program make these calls, and so does the gate's own thread,
    /// `msrgate-publish`.
    pub vm_ioctls: &'static [Ioctl],
    /// The system calls, besides `ioctl`s of KVM, of the threads that install the gate, replace its program
    /// or drop the gate. One of these threads starts `msrgate-publish`, and ends it if it runs in the same
    /// process. If a thread of the VMM's sets filters in place of `msrgate-publish`
    /// ([`GateOptions::publish_by`](super::GateOptions::publish_by)), that thread makes these calls, too.
    pub vm_others: &'static [&'static str],
    /// The system calls of `msrgate-publish` that are not `ioctl`s of KVM. This thread inherits the seccomp
    /// rules of the thread that starts it. The thread that [writes events](super::events::Events::spawn)
    /// makes these calls, and those of its sinks.
    pub own_others: &'static [&'static str],
}

const fn ioctl(name: &'static str, number: u32) -> Ioctl {
    Ioctl { name, number }
}

const CHECK_EXTENSION: Ioctl = ioctl("KVM_CHECK_EXTENSION", 0xae03);
const ENABLE_CAP: Ioctl = ioctl("KVM_ENABLE_CAP", 0x4068_aea3);
const SET_MSR_FILTER: Ioctl = ioctl("KVM_X86_SET_MSR_FILTER", 0x4188_aec6);

impl SystemCalls {
    /// All system calls that a gate and probing may make. The calls for memory, locks and threads are those
    /// that glibc and Rust's std make.
    pub const ALL: Self = Self {
        probe_ioctls: &[
            ioctl("KVM_GET_API_VERSION", 0xae00),
            ioctl("KVM_CREATE_VM", 0xae01),
            CHECK_EXTENSION,
            ioctl("KVM_GET_SUPPORTED_CPUID", 0xc008_ae05),
            ENABLE_CAP,
            SET_MSR_FILTER,
        ],
        probe_others: &[
            "openat",
            "close",
            "read",
            "lseek",
            "fstat",
            "newfstatat",
            "statx",
            "getdents64",
            "fcntl",
            "futex",
            "brk",
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mremap",
        ],
        vcpu_ioctls: &[
            ioctl("KVM_RUN", 0xae80),
            ioctl("KVM_GET_REGS", 0x8090_ae81),
            ioctl("KVM_SET_REGS", 0x4090_ae82),
            ioctl("KVM_GET_MP_STATE", 0x8004_ae98),
            ioctl("KVM_SET_MP_STATE", 0x4004_ae99),
            ioctl("KVM_GET_MSRS", 0xc008_ae88),
            ioctl("KVM_SET_MSRS", 0x4008_ae89),
            ioctl("KVM_GET_NESTED_STATE", 0xc080_aebe),
            ioctl("KVM_GET_CPUID2", 0xc008_ae91),
        ],
        vcpu_memory_ioctls: &[
            ioctl("KVM_GET_SREGS", 0x8138_ae83),
            ioctl("KVM_TRANSLATE", 0xc018_ae85),
        ],
        vcpu_others: &[
            "sched_yield",
            "clock_gettime",
            // A `VcpuGate` that is dropped checks that it is still in the process that made it.
            "getpid",
            "close",
            // Rust's std asks whether a file descriptor is open before it closes it, in debug builds.
            "fcntl",
            "futex",
            "brk",
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mremap",
        ],
        vm_ioctls: &[ENABLE_CAP, SET_MSR_FILTER, CHECK_EXTENSION],
        vm_others: &[
            "fcntl",
            "close",
            "clone3",
            "clone",
            "rt_sigprocmask",
            "getpid",
            "futex",
            "brk",
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mremap",
        ],
        own_others: &[
            "rseq",
            "set_robust_list",
            "rt_sigprocmask",
            "sigaltstack",
            "prctl",
            "gettid",
            "sched_getaffinity",
            "exit",
            "futex",
            "brk",
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mremap",
        ],
    };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use msrgate_filter::abi::CallerWidth;

    use super::*;
    use crate::sys::calls;

    #[test]
    fn listed_ioctl_numbers_are_those_that_this_crate_passes_to_kernel() {
        let mut made: BTreeMap<_, _> = calls::numbers().into_iter().collect();
        let filter = CallerWidth::Bits64.ioctl_number();
        made.insert("KVM_X86_SET_MSR_FILTER", filter.into());
        let SystemCalls {
            probe_ioctls,
            vcpu_ioctls,
            vcpu_memory_ioctls,
            vm_ioctls,
            ..
        } = SystemCalls::ALL;
        let listed = [probe_ioctls, vcpu_ioctls, vcpu_memory_ioctls, vm_ioctls].concat();
        let listed = listed.iter().map(|call| (call.name, call.number.into()));
        assert_eq!(listed.collect::<BTreeMap<_, _>>(), made);
    }
}
