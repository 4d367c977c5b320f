//! The devices of one vCPU: the emulated devices of the policy, and the VMM's own devices.

use std::collections::BTreeMap;

use msrgate_program::answer::{Responder, RestoreError, Saved, SavedDevice};
use msrgate_program::{Cpu, Device as PolicyDevice};

use super::cpuid::GuestCpuid;
use super::device::{BadState, Device, MICROCODE, MakeDevice, MicrocodeDevice};
use super::id::VcpuId;

/// The devices of one vCPU: the emulated devices of the policy, and the VMM's own devices.
pub(super) struct DeviceSet {
    pub(super) microcode: Option<MicrocodeDevice>,
    /// The VMM's devices, by the name of the handler that each answers for.
    pub(super) own: BTreeMap<Box<str>, Box<dyn Device>>,
    cpu: Cpu,
    signature: u32,
}

impl DeviceSet {
    /// Makes the VMM's devices for this vCPU. The devices have not been reset.
    pub(super) fn new(
        id: VcpuId,
        own: &BTreeMap<Box<str>, MakeDevice>,
        cpuid: &GuestCpuid,
    ) -> Self {
        let own = own.iter();
        Self {
            microcode: None,
            own: own.map(|(name, make)| (name.clone(), make(id))).collect(),
            cpu: cpuid.cpu().clone(),
            signature: cpuid.signature(),
        }
    }

    /// Changes the devices to those of the responder's program. Returns the microcode device if that program
    /// does not use it.
    pub(super) fn follow(&mut self, responder: &Responder) -> Option<MicrocodeDevice> {
        let settings = responder.program().settings().microcode;
        let is_used = responder
            .devices()
            .any(|one| one == PolicyDevice::Microcode);
        match (settings.filter(|_| is_used), &mut self.microcode) {
            (Some(settings), Some(device)) => {
                device.under(settings);
                None
            }
            (Some(settings), none) => {
                *none = Some(MicrocodeDevice::new(
                    settings,
                    self.cpu.clone(),
                    self.signature,
                ));
                None
            }
            (None, some) => some.take(),
        }
    }

    /// Changes the devices back to those of the previous program. `microcode` is the result of
    /// [`Self::follow`]: the microcode device that was set aside because the program in between does not
    /// use it.
    pub(super) fn back(&mut self, microcode: Option<MicrocodeDevice>, responder: &Responder) {
        self.microcode = self.microcode.take().or(microcode);
        self.follow(responder);
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut dyn Device> {
        let microcode = self.microcode.iter_mut().map(|one| one as &mut dyn Device);
        let own = self
            .own
            .values_mut()
            .map(|one| &mut **one as &mut dyn Device);
        microcode.chain(own)
    }

    /// Returns the vCPU's devices for which `saved` holds no state.
    pub(super) fn not_in(&mut self, saved: &Saved) -> impl Iterator<Item = &mut dyn Device> {
        let is_named = |name: &str| saved.devices.iter().any(|(saved, _)| **saved == *name);
        let has_microcode = is_named(MICROCODE);
        let microcode = self.microcode.iter_mut().filter(move |_| !has_microcode);
        let microcode = microcode.map(|one| one as &mut dyn Device);
        let own = self
            .own
            .iter_mut()
            .filter(move |(name, _)| !is_named(&format!("handler:{name}")));
        microcode.chain(own.map(|(_, one)| &mut **one as &mut dyn Device))
    }

    pub(super) fn save(&self) -> Vec<SavedDevice> {
        let microcode = self.microcode.iter();
        let microcode = microcode.map(|device| (MICROCODE.into(), device.save().into()));
        let own = self.own.iter();
        microcode
            .chain(
                own.map(|(name, device)| (format!("handler:{name}").into(), device.save().into())),
            )
            .collect()
    }

    /// Restores all devices of a saved state. If one of them fails, the devices that were restored before it
    /// get their old state back.
    pub(super) fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let before = self.save();
        for (name, bytes) in &saved.devices {
            if self.restore_one(name, bytes).is_err() {
                for (name, bytes) in &before {
                    // These bytes come from the same device, so it accepts them.
                    let _ = self.restore_one(name, bytes);
                }
                return Err(RestoreError::Device(name.clone()));
            }
        }
        Ok(())
    }

    fn restore_one(&mut self, name: &str, bytes: &[u8]) -> Result<(), BadState> {
        let device: Option<&mut dyn Device> = match name.strip_prefix("handler:") {
            Some(handler) => self
                .own
                .get_mut(handler)
                .map(|one| &mut **one as &mut dyn Device),
            None if name == MICROCODE => self.microcode.as_mut().map(|one| one as &mut dyn Device),
            None => None,
        };
        device.ok_or(BadState)?.restore(bytes)
    }
}
