//! Emulated MSRs: the trait for a VMM's own devices, which answer accesses to MSRs, and the built-in
//! microcode device.

use std::fmt;
use std::sync::Arc;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::answer::{MicrocodeHeader, SIGN_ID, revision_value, update_header_at};
use msrgate_program::{Cpu, Microcode, Update};

use super::id::VcpuId;
use super::port::Port;
use crate::errno::CallErrno;
use crate::sys::calls::Taken;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPhysical(u64);

impl GuestPhysical {
    /// Makes the guest-physical address `address`.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The error of [`GuestMemory::read`]: the guest has no memory at a part of the address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped;

impl fmt::Display for NotMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest has no memory at this address")
    }
}

impl std::error::Error for NotMapped {}

/// The VM's memory, as the VMM maps it.
pub trait GuestMemory: Send + Sync {
    /// Copies the guest's memory from the address `from` into `into`. Other vCPUs may write that memory
    /// at the same time.
    ///
    /// # Errors
    /// [`NotMapped`] if the guest has no memory at a part of the range. After an error a part of `into` may
    /// have been written.
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> Result<(), NotMapped>;
}

/// One or more registers that a VMM emulates, with state of its own for each vCPU.
///
/// A VMM adds a device under a name by [`GateOptions::device`](super::GateOptions::device). The gate asks
/// the device at each access for which the policy names the `handler` of that name.
pub trait Device: Send {
    /// Reads the MSR `index`. If the result is `None`, the guest gets #GP.
    ///
    /// # Errors
    /// The error number of the system call that failed. The guest gets #GP, and the VMM gets the error.
    fn read(
        &mut self,
        index: MsrIndex,
        context: &mut dyn DeviceContext,
    ) -> Result<Option<u64>, CallErrno>;

    /// Writes `value` to the MSR `index`.
    ///
    /// # Errors
    /// The errors are those of [`Self::read`].
    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        context: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno>;

    /// Resets the device. The gate calls this function when the vCPU is reset, and when the vCPU is restored
    /// from a state that does not have this device. The vCPU does not run before this function returns.
    ///
    /// # Errors
    /// The errno of a call that failed.
    fn reset(&mut self, context: &mut dyn DeviceContext) -> Result<(), CallErrno>;

    /// Returns the device's state, for a snapshot.
    fn save(&self) -> Vec<u8>;

    /// Restores a state that [`Self::save`] returned.
    ///
    /// # Errors
    /// [`BadState`] if the bytes are not a state of this device, which is then unchanged.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState>;
}

/// The result of a write to an MSR that a device emulates, or to one of KVM's MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The write is done.
    Done,
    /// The guest gets #GP.
    Fault,
}

/// The error of [`Device::restore`]: the bytes are not a state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

impl fmt::Display for BadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes are not a saved state of this device")
    }
}

impl std::error::Error for BadState {}

/// The operations that a device may do on the vCPU whose access it answers.
pub trait DeviceContext {
    /// Copies guest memory at the linear address `from` into `into`. The vCPU's page tables translate
    /// the address, once for each page, and each byte is read once.
    ///
    /// # Errors
    /// The error number of the ioctl that failed to translate the address.
    fn read_linear(&mut self, from: u64, into: &mut [u8]) -> Result<Copied, CallErrno>;

    /// Sets a register of KVM's by a host access, `KVM_SET_MSRS`.
    ///
    /// # Errors
    /// The error number of the ioctl that failed. If KVM refuses the value, the result is
    /// [`Written::Fault`], not an error.
    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Written, CallErrno>;
}

/// The result of a copy of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// All bytes were copied.
    Whole,
    /// Part of the address range has no memory behind it.
    NotMapped,
}

/// A function of the VMM's that makes a device for a vCPU.
pub(super) type MakeDevice = Arc<dyn Fn(VcpuId) -> Box<dyn Device> + Send + Sync>;

/// The [`DeviceContext`] that the gate passes to a device: access to the vCPU and to the VM's memory.
pub(super) struct Through<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) memory: Option<&'a dyn GuestMemory>,
}

/// The size of a page in bytes. A linear address is translated once for each page.
const PAGE: u64 = 0x1000;

impl<P: Port> DeviceContext for Through<'_, P> {
    fn read_linear(&mut self, from: u64, into: &mut [u8]) -> Result<Copied, CallErrno> {
        let Some(memory) = self.memory else {
            return Ok(Copied::NotMapped);
        };
        let mut at = from;
        let mut rest = into;
        while !rest.is_empty() {
            let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(usize::MAX);
            let (part, others) = rest.split_at_mut(in_page.min(rest.len()));
            let Some(physical) = self.port.physical(at)? else {
                return Ok(Copied::NotMapped);
            };
            if memory.read(GuestPhysical(physical), part).is_err() {
                return Ok(Copied::NotMapped);
            }
            at = at.wrapping_add(part.len() as u64);
            rest = others;
        }
        Ok(Copied::Whole)
    }

    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Written, CallErrno> {
        Ok(match self.port.set_register(index, value)? {
            Taken::Yes => Written::Done,
            Taken::No => Written::Fault,
        })
    }
}

/// The emulated microcode loader of one vCPU.
///
/// Of the guest's accesses, the device gets only the writes to the MSR that triggers an update. The guest
/// reads the microcode revision from KVM's register. So the guest's own write of 0 to `IA32_BIOS_SIGN_ID`,
/// and CPUID, have the same effect as without a gate.
pub(super) struct MicrocodeDevice {
    settings: Microcode,
    cpu: Cpu,
    signature: u32,
    revision: u32,
}

/// The name of the microcode device in policies and snapshots.
pub(super) const MICROCODE: &str = "microcode";

impl MicrocodeDevice {
    /// Makes the device with the microcode revision that the policy gives. `signature` is EAX of CPUID leaf
    /// 1.
    pub(super) const fn new(settings: Microcode, cpu: Cpu, signature: u32) -> Self {
        let revision = settings.revision;
        Self {
            settings,
            cpu,
            signature,
            revision,
        }
    }

    /// Changes the device's settings to those of another policy. The microcode revision that the guest sees
    /// changes only at the next reset.
    pub(super) const fn under(&mut self, settings: Microcode) {
        self.settings = settings;
    }

    /// Writes the microcode revision into the register of KVM's from which the guest reads it.
    pub(super) fn show(&self, context: &mut dyn DeviceContext) -> Result<Written, CallErrno> {
        context.set_register(SIGN_ID, revision_value(&self.cpu, self.revision))
    }

    fn load(
        &mut self,
        trigger: MsrIndex,
        value: u64,
        context: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno> {
        let (at, length) = update_header_at(trigger, value);
        let mut header = [0; 64];
        let Some(header) = header.get_mut(..length) else {
            return Ok(Written::Fault);
        };
        if context.read_linear(at, header)? == Copied::NotMapped {
            // A CPU would raise #PF, but user space cannot inject one here, so the guest gets #GP. Either
            // exception loads no microcode.
            return Ok(Written::Fault);
        }
        let Some(header) = MicrocodeHeader::accepted(trigger, header, self.signature) else {
            return Ok(Written::Done);
        };
        self.revision = header.revision();
        self.show(context)
    }
}

impl Device for MicrocodeDevice {
    fn read(&mut self, _: MsrIndex, _: &mut dyn DeviceContext) -> Result<Option<u64>, CallErrno> {
        // The MSR that triggers an update is write-only (SDM volume 4).
        Ok(None)
    }

    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        context: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno> {
        match self.settings.update {
            Update::Deny => Ok(Written::Fault),
            Update::Ignore => Ok(Written::Done),
            Update::Accept => self.load(index, value, context),
        }
    }

    fn reset(&mut self, context: &mut dyn DeviceContext) -> Result<(), CallErrno> {
        // On hardware a loaded update survives INIT, and is lost with power. A VMM's reset can stand for
        // either event; this device treats it as a loss of power.
        self.revision = self.settings.revision;
        self.show(context).map(drop)
    }

    fn save(&self) -> Vec<u8> {
        self.revision.to_le_bytes().into()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.revision = u32::from_le_bytes(bytes.try_into().map_err(|_| BadState)?);
        Ok(())
    }
}

/// Passes an exit to a device and returns the device's reply.
pub(super) fn ask(
    device: &mut dyn Device,
    exit: &msrgate_filter::Exit,
    context: &mut dyn DeviceContext,
) -> Result<msrgate_filter::Reply, CallErrno> {
    use msrgate_filter::Reply;
    match exit.access {
        Access::Read => Ok(match device.read(exit.index, context)? {
            Some(value) => Reply::value(value),
            None => Reply::FAULT,
        }),
        Access::Write => Ok(match device.write(exit.index, exit.data, context)? {
            Written::Done => Reply::DONE,
            Written::Fault => Reply::FAULT,
        }),
    }
}
