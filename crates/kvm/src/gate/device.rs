//! Emulated registers: a trait for a VMM's own, and the microcode device.

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
    /// This address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Memory that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped;

impl fmt::Display for NotMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory of the guest is there")
    }
}

impl std::error::Error for NotMapped {}

/// The VM's memory, as its VMM knows it.
pub trait GuestMemory: Send + Sync {
    /// Copies bytes of the guest's memory, which other vCPUs may write meanwhile.
    ///
    /// # Errors
    /// Part of it is no memory. `into` may have been written in part.
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> Result<(), NotMapped>;
}

/// A register, or several, that a VMM emulates: one for each vCPU.
///
/// A gate asks the device that was given to it under the name of a policy's `handler`.
pub trait Device: Send {
    /// A read; `None` is a #GP.
    ///
    /// # Errors
    /// A call failed; the guest gets #GP, and the VMM the error.
    fn read(
        &mut self,
        index: MsrIndex,
        context: &mut dyn DeviceContext,
    ) -> Result<Option<u64>, CallErrno>;

    /// A write of `value`.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn write(
        &mut self,
        index: MsrIndex,
        value: u64,
        context: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno>;

    /// The vCPU is reset; it has not run since.
    ///
    /// # Errors
    /// A call failed.
    fn reset(&mut self, context: &mut dyn DeviceContext) -> Result<(), CallErrno>;

    /// Its state, for a snapshot.
    fn save(&self) -> Vec<u8>;

    /// Takes a state over that [`Self::save`] gave.
    ///
    /// # Errors
    /// The bytes are none; the device is then as it was.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState>;
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// The guest gets #GP.
    Fault,
}

/// Bytes that are no state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

impl fmt::Display for BadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("these bytes are no state of this device")
    }
}

impl std::error::Error for BadState {}

/// What a device may do to the vCPU whose access it answers.
pub trait DeviceContext {
    /// Copies bytes at a linear address of the guest, through the vCPU's own translation, once.
    ///
    /// # Errors
    /// The calls that translate failed.
    fn read_linear(&mut self, from: u64, into: &mut [u8]) -> Result<Copied, CallErrno>;

    /// Sets a register by the host's access.
    ///
    /// # Errors
    /// The call failed. That KVM refuses the value is [`Written::Fault`].
    fn set_register(&mut self, index: MsrIndex, value: u64) -> Result<Written, CallErrno>;
}

/// Whether bytes of the guest could be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// They were.
    Whole,
    /// Part of the address range has no memory behind it.
    NotMapped,
}

/// Makes a device for a vCPU.
pub(super) type MakeDevice = Arc<dyn Fn(VcpuId) -> Box<dyn Device> + Send + Sync>;

/// A vCPU and the VM's memory.
pub(super) struct Through<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) memory: Option<&'a dyn GuestMemory>,
}

/// Bytes of a page; a linear address is translated once for each.
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
/// Only writes of the trigger come here: the guest reads the revision from the register itself, so
/// that its own write of 0 to `IA32_BIOS_SIGN_ID`, and CPUID, stay what they are.
pub(super) struct MicrocodeDevice {
    settings: Microcode,
    cpu: Cpu,
    signature: u32,
    revision: u32,
}

/// The name that policies and snapshots have for it.
pub(super) const MICROCODE: &str = "microcode";

impl MicrocodeDevice {
    /// At the revision that the policy says; `signature` is EAX of CPUID leaf 1.
    pub(super) const fn new(settings: Microcode, cpu: Cpu, signature: u32) -> Self {
        let revision = settings.revision;
        Self {
            settings,
            cpu,
            signature,
            revision,
        }
    }

    /// The same under another policy, whose revision holds from the next reset on: until then the
    /// guest keeps what it has.
    pub(super) const fn under(&mut self, settings: Microcode) {
        self.settings = settings;
    }

    /// Has the guest read this revision.
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
            // A CPU would raise #PF, which user space cannot ask for here; nothing is loaded
            // either way.
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
        // The trigger is write-only (SDM volume 4).
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
        // A loaded update survives INIT on hardware, and goes with power: a VMM's reset is both.
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

/// Asks a device.
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
