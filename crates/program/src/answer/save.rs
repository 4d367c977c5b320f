//! The state of a vCPU's answers as bytes, for a snapshot or a migration.
//!
//! Version 1: `msrgvcpu`, the version as two bytes, then three lists, each after its length:
//! registers (index, value), pins (index, value), devices (name, bytes). Numbers are little-endian,
//! lengths and indices of four bytes, values of eight; indices ascend. Registers and pins go by the
//! MSR, not by the program, so that a snapshot may be restored under a program that has grown.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use msrgate_filter::MsrIndex;

use super::{Responder, VcpuState};
use crate::shown::quoted;

const MAGIC: [u8; 8] = *b"msrgvcpu";
const VERSION: u16 = 1;

/// A device's name, and bytes that are its own business.
pub type SavedDevice = (Box<str>, Box<[u8]>);

/// What of a vCPU no KVM holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Emulated registers.
    pub registers: Vec<(MsrIndex, u64)>,
    /// Registers that are pinned, and the value.
    pub pins: Vec<(MsrIndex, u64)>,
    /// Devices.
    pub devices: Vec<SavedDevice>,
}

/// Why a saved state cannot be restored. Nothing has been restored then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// These bytes are no saved state.
    NotSaved,
    /// They are of a version that is not known here.
    Version(u16),
    /// They end too early, go on after their end, or are out of order.
    Broken,
    /// A register that the program does not have.
    NoRegister(MsrIndex),
    /// A pin that the program does not have.
    NoPin(MsrIndex),
    /// A device that the program does not have, or one that does not take its bytes.
    Device(Box<str>),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSaved => f.write_str("this is no saved state of a vCPU"),
            Self::Version(version) => write!(
                f,
                "the saved state is of version {version}; this msrgate knows version {VERSION}"
            ),
            Self::Broken => f.write_str("the saved state is cut short or damaged"),
            Self::NoRegister(index) => write!(
                f,
                "the saved state has a register at {index}, and the program does not emulate it"
            ),
            Self::NoPin(index) => {
                write!(f, "the saved state pins {index}, and the program does not")
            }
            Self::Device(name) => write!(
                f,
                "the saved state has a device `{}`, and it cannot be restored here",
                quoted(name)
            ),
        }
    }
}

impl core::error::Error for RestoreError {}

impl Saved {
    /// The bytes.
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

    /// What is in these bytes.
    ///
    /// # Errors
    /// They are no saved state of a known version, whole and without anything after it.
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
    // A program has no more registers, pins and devices than 32 bits count.
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

    /// A length, of things of which each takes at least a byte.
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
    /// The emulated registers and the pins. The devices are not known here.
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

    /// Takes over registers and pins; those that were not saved are as at reset.
    ///
    /// # Errors
    /// The program has no such register or pin. The state is then as it was.
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
