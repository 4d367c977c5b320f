//! The encoding of the state on which the gate's answers to a vCPU depend, for a snapshot or a
//! migration.
//!
//! Version 1 consists of the text `msrgvcpu`, the version in two bytes, and three lists, each with
//! its length in front: registers (index, value), pins (index, value) and devices (name, bytes). A
//! name and the bytes of a device also have their length in front. Numbers are little-endian.
//! Lengths and indices take four bytes, values take eight. The indices of a list ascend. Registers
//! and pins are identified by their MSR and not by the program, so that a snapshot can be restored
//! under a program that has more registers and pins.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::MsrIndex;

use super::{Responder, VcpuState};
use crate::shown::quoted;

const MAGIC: [u8; 8] = *b"msrgvcpu";
const VERSION: u16 = 1;

/// The name of a device, and its state in the device's own format.
pub type SavedDevice = (Box<str>, Box<[u8]>);

/// The part of a vCPU's state that a snapshot or migration needs and that KVM does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The vCPU's emulated registers and their values.
    pub registers: Vec<(MsrIndex, u64)>,
    /// The registers that a write of the vCPU has pinned, and the pinned values.
    pub pins: Vec<(MsrIndex, u64)>,
    /// The emulated devices of the vCPU, each with its name and its state.
    pub devices: Vec<SavedDevice>,
}

/// The reason why a saved state cannot be restored. After such an error nothing has been restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes do not begin as the saved state of a vCPU does.
    NotSaved,
    /// The saved state has this version of the format, which this crate does not know.
    Version(u16),
    /// The saved state ends too early, has bytes after its end, or lists MSRs or devices out of order.
    Broken,
    /// The saved state has an emulated register at this MSR, but the program emulates no register
    /// there.
    NoRegister(MsrIndex),
    /// The saved state pins this register, but the program has no rule that pins it.
    NoPin(MsrIndex),
    /// The saved state has this emulated device, but the program does not use the device, or the device
    /// rejects the saved bytes.
    Device(Box<str>),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSaved => f.write_str("the bytes are not a saved vCPU state"),
            Self::Version(version) => write!(
                f,
                "the saved state has version {version}, but this msrgate knows only version {VERSION}"
            ),
            Self::Broken => f.write_str("the saved state is cut off or damaged"),
            Self::NoRegister(index) => write!(
                f,
                "the saved state has an emulated register at {index}, but the program does not; restore it with the program that saved it"
            ),
            Self::NoPin(index) => {
                write!(
                    f,
                    "the saved state pins {index}, but the program does not; restore it with the program that saved it"
                )
            }
            Self::Device(name) => write!(
                f,
                "the saved state has the device `{}`, but the program or the VMM cannot restore this device",
                quoted(name)
            ),
        }
    }
}

impl core::error::Error for RestoreError {}

impl Saved {
    /// Encodes the saved state as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = MAGIC.to_vec();
        to.extend(VERSION.to_le_bytes());
        for list in [&self.registers, &self.pins] {
            to.extend(length(list.len()));
            for (index, value) in list {
                to.extend(index.get().to_le_bytes());
                to.extend(value.to_le_bytes());
            }
        }
        to.extend(length(self.devices.len()));
        for (name, bytes) in &self.devices {
            to.extend(length(name.len()));
            to.extend(name.as_bytes());
            to.extend(length(bytes.len()));
            to.extend(&**bytes);
        }
        to
    }

    /// Decodes a saved state from bytes.
    ///
    /// # Errors
    /// - [`RestoreError::NotSaved`]: the bytes do not begin as a saved state does.
    /// - [`RestoreError::Version`]: the saved state has an unknown version of the format.
    /// - [`RestoreError::Broken`]: the bytes are incomplete, out of order, or continue after the
    ///   end.
    pub fn decode(bytes: &[u8]) -> Result<Self, RestoreError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(RestoreError::NotSaved)?;
        let mut from = Reader(rest);
        let version = u16::from_le_bytes(from.array()?);
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let saved = Self {
            registers: from.values()?,
            pins: from.values()?,
            devices: from.devices()?,
        };
        match from.0 {
            [] => Ok(saved),
            _ => Err(RestoreError::Broken),
        }
    }
}

fn length(length: usize) -> [u8; 4] {
    // A program has fewer registers, pins and devices than 32 bits can count.
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn bytes(&mut self, count: usize) -> Result<&'b [u8], RestoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(RestoreError::Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| RestoreError::Broken)
    }

    /// Reads the length of a list whose elements take at least one byte each. Returns an error if
    /// fewer bytes are left than the list has elements.
    fn length(&mut self) -> Result<usize, RestoreError> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > self.0.len() {
            return Err(RestoreError::Broken);
        }
        Ok(length)
    }

    fn values(&mut self) -> Result<Vec<(MsrIndex, u64)>, RestoreError> {
        let mut values: Vec<(MsrIndex, u64)> = Vec::new();
        for _ in 0..self.length()? {
            let index = MsrIndex::new(u32::from_le_bytes(self.array()?));
            if values.last().is_some_and(|&(before, _)| before >= index) {
                return Err(RestoreError::Broken);
            }
            values.push((index, u64::from_le_bytes(self.array()?)));
        }
        Ok(values)
    }

    fn devices(&mut self) -> Result<Vec<SavedDevice>, RestoreError> {
        let mut devices = Vec::new();
        for _ in 0..self.length()? {
            let length = self.length()?;
            let name = self.bytes(length)?;
            let name = core::str::from_utf8(name).map_err(|_| RestoreError::Broken)?;
            let length = self.length()?;
            devices.push((name.into(), self.bytes(length)?.into()));
        }
        Ok(devices)
    }
}

impl VcpuState {
    /// Returns the values of the vCPU's emulated registers and its pins, for a snapshot or a
    /// migration. The caller adds the state of the emulated devices.
    #[must_use]
    pub fn save(&self, responder: &Responder) -> Saved {
        let registers = responder.cells().indices().zip(self.cells.iter().copied());
        let mut pins: Vec<_> = responder
            .pins()
            .iter()
            .zip(&self.pins)
            .filter_map(|(&index, pin)| Some((index, (*pin)?)))
            .collect();
        pins.sort_unstable();
        Saved {
            registers: registers.collect(),
            pins,
            devices: Vec::new(),
        }
    }

    /// Restores the vCPU's emulated registers and pins from `saved`. An emulated register that `saved`
    /// does not have gets its reset value, and a register whose pin `saved` does not have is not
    /// pinned.
    ///
    /// # Errors
    /// - [`RestoreError::NoRegister`]: the program does not emulate one of the saved registers.
    /// - [`RestoreError::NoPin`]: the program has no rule that pins one of the saved pins' registers.
    ///
    /// After an error the vCPU's state is unchanged.
    pub fn restore(&mut self, responder: &Responder, saved: &Saved) -> Result<(), RestoreError> {
        let mut state = self.clone();
        state.reset(responder);
        for &(index, value) in &saved.registers {
            let cell = responder.cell(index).map(|(at, _)| at);
            let cell = cell.and_then(|at| state.cells.get_mut(at));
            *cell.ok_or(RestoreError::NoRegister(index))? = value;
        }
        for &(index, value) in &saved.pins {
            let pin = responder.pin(index).and_then(|at| state.pins.get_mut(at));
            *pin.ok_or(RestoreError::NoPin(index))? = Some(value);
        }
        *self = state;
        Ok(())
    }
}
