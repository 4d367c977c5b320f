//! A watcher that sees each answer as it is given, on the vCPU's own thread.

use msrgate_filter::Exit;
use msrgate_program::Origin;
use msrgate_program::answer::Disposition;

use super::id::VcpuId;

/// An access, and what was done.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Told {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The access, and why it came to user space.
    pub exit: Exit,
    /// What was done.
    pub disposition: Disposition,
    /// What of the policy says so.
    pub origin: Origin,
}

/// A watcher of all answers of a gate: see [`GateOptions::watcher`](super::GateOptions::watcher).
pub trait Watcher: Send + Sync {
    /// Notes an answer that is about to be given. It is called on the vCPU's thread, which may be allowed no system
    /// call. An access that is executed again, because the kernel's filter is still to open for it, is told once.
    fn told(&self, told: &Told);
}
