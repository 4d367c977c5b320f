//! What a gate calls, for a VMM's seccomp rules. `crates/kvm/tests/seccomp.rs` holds it.

use super::Gate;

/// System calls, by name. See [`Gate::ioctls`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemCalls {
    /// `ioctl`s on a vCPU's file descriptor, by its own thread.
    pub vcpu_ioctls: Vec<&'static str>,
    /// Other calls of a vCPU's thread. It asks for the time, which the kernel is called for where the
    /// host's clock is no TSC.
    pub vcpu_others: Vec<&'static str>,
    /// `ioctl`s on the VM's file descriptor, by the threads that install, [add
    /// vCPUs](Gate::vcpu) and replace, and by the gate's own, `msrgate-publish`.
    pub vm_ioctls: Vec<&'static str>,
    /// Other calls of the threads that install and replace: one of them starts `msrgate-publish`.
    pub vm_others: Vec<&'static str>,
    /// Other calls of `msrgate-publish`. Seccomp rules that its starter has are its own, too. The thread
    /// that [writes events](super::events::Events::spawn) makes its sinks' calls beside these.
    pub own_others: Vec<&'static str>,
}

/// Locks, and memory: a program is taken over, and filters are made, with the heap. As glibc makes
/// these calls.
const HEAP: &[&str] = &[
    "futex", "brk", "mmap", "munmap", "mprotect", "madvise", "mremap",
];

/// What a thread does to begin and to end, as glibc and Rust have it.
const THREAD: &[&str] = &[
    "rseq",
    "set_robust_list",
    "rt_sigprocmask",
    "sigaltstack",
    "prctl",
    "gettid",
    "sched_getaffinity",
    "exit",
];

impl Gate {
    /// The `ioctl`s and other system calls that the gate makes, for a VMM's seccomp rules, under
    /// whatever program it may be [given](Self::replace) later: on the vCPUs' threads, on those that
    /// install, add vCPUs and replace, and on its own.
    #[must_use]
    pub fn ioctls(&self) -> SystemCalls {
        let mut vcpu = vec![
            "KVM_RUN",
            "KVM_GET_REGS",
            "KVM_SET_REGS",
            "KVM_GET_MP_STATE",
            "KVM_SET_MP_STATE",
            "KVM_GET_MSRS",
            "KVM_SET_MSRS",
            "KVM_GET_NESTED_STATE",
            "KVM_GET_CPUID2",
        ];
        if self.shared.options.memory.is_some() {
            vcpu.extend(["KVM_GET_SREGS", "KVM_TRANSLATE"]);
        }
        SystemCalls {
            vcpu_ioctls: vcpu,
            vcpu_others: [&["sched_yield", "clock_gettime"], HEAP].concat(),
            vm_ioctls: vec![
                "KVM_ENABLE_CAP",
                "KVM_X86_SET_MSR_FILTER",
                "KVM_CHECK_EXTENSION",
            ],
            vm_others: [
                &[
                    "fcntl",
                    "close",
                    "clone3",
                    "clone",
                    "rt_sigprocmask",
                    "getpid",
                ],
                HEAP,
            ]
            .concat(),
            own_others: [THREAD, HEAP].concat(),
        }
    }
}
