//! The watcher of a gate: the gate passes each of its answers to the watcher, on the vCPU's own thread.

use msrgate_filter::Exit;
use msrgate_program::answer::Disposition;
use msrgate_program::{Log, Origin};

use super::id::VcpuId;

/// An access, and the gate's disposition of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Told {
    /// The vCPU that made the access.
    pub vcpu: VcpuId,
    /// The access, with the exit's reason.
    pub exit: Exit,
    /// The gate's disposition of the access.
    pub disposition: Disposition,
    /// The part of the policy that decided the access.
    pub origin: Origin,
    /// The log level that the policy has for the access. The gate tells its watcher of accesses at any level.
    pub log: Log,
}

/// A watcher of all answers of a gate: see [`GateOptions::watcher`](super::GateOptions::watcher).
pub trait Watcher: Send + Sync {
    /// Notes an answer that the gate is about to give. The gate calls this function on the vCPU's thread, to
    /// which a VMM's seccomp rules may forbid every system call. The gate calls it once for each access,
    /// even if the guest executes the access several times until the kernel's filter is open for it.
    fn told(&self, told: &Told);
}
