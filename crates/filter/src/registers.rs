//! The registers of a vCPU, which a guest's access reaches if the filter allows it.

use alloc::collections::BTreeMap;
use core::fmt;

use crate::msr::MsrIndex;

/// The origin of an access. Only a guest's accesses are filtered (S4). A register may accept values
/// from the host that it does not accept from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The guest accesses the register, by an instruction or by an MSR list for a nested guest.
    Guest,
    /// The VMM accesses the register, by `KVM_GET_MSRS` or `KVM_SET_MSRS`.
    Host,
}

/// A fault: the reason why the register itself, and not the filter, refuses an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterFault {
    /// KVM does not know the register.
    Unknown,
    /// KVM knows the register, but the register does not accept the written value, or this guest does
    /// not have the register.
    Invalid,
}

impl fmt::Display for RegisterFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "KVM does not know the MSR",
            Self::Invalid => "the MSR does not accept the access",
        })
    }
}

impl core::error::Error for RegisterFault {}

/// The registers of one vCPU: a hypervisor's own, or a [`RegisterMap`].
///
/// The methods do not ask the filter. If the filter applies to an access, the caller asks the
/// filter before it calls a method. An access that faults must have no effect.
pub trait Registers {
    /// Reads the register `index`.
    ///
    /// # Errors
    /// - [`RegisterFault::Unknown`]: the register does not exist.
    /// - [`RegisterFault::Invalid`]: `origin` cannot read the register.
    fn read(&mut self, index: MsrIndex, origin: Origin) -> Result<u64, RegisterFault>;

    /// Writes `value` to the register `index`.
    ///
    /// # Errors
    /// - [`RegisterFault::Unknown`]: the register does not exist.
    /// - [`RegisterFault::Invalid`]: the register does not accept `value` from `origin`.
    fn write(&mut self, index: MsrIndex, value: u64, origin: Origin) -> Result<(), RegisterFault>;
}

/// One register of a [`RegisterMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The value that the register has now.
    pub value: u64,
    /// The bits of the register that a guest may change. A guest's write that changes another bit fails
    /// with [`RegisterFault::Invalid`]. The host may write any value.
    pub writable: u64,
}

impl Register {
    /// Creates a register that has `value` at first and accepts a write of any value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self {
            value,
            writable: u64::MAX,
        }
    }
}

/// Registers that only store the values written to them: enough for tests, and for a machine that
/// is only a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterMap(BTreeMap<MsrIndex, Register>);

impl FromIterator<(MsrIndex, Register)> for RegisterMap {
    fn from_iter<T: IntoIterator<Item = (MsrIndex, Register)>>(registers: T) -> Self {
        Self(registers.into_iter().collect())
    }
}

impl RegisterMap {
    fn find(&mut self, index: MsrIndex) -> Result<&mut Register, RegisterFault> {
        self.0.get_mut(&index).ok_or(RegisterFault::Unknown)
    }
}

impl Registers for RegisterMap {
    fn read(&mut self, index: MsrIndex, _: Origin) -> Result<u64, RegisterFault> {
        self.find(index).map(|register| register.value)
    }

    fn write(&mut self, index: MsrIndex, value: u64, origin: Origin) -> Result<(), RegisterFault> {
        let register = self.find(index)?;
        let changed = register.value ^ value;
        if origin == Origin::Guest && changed & !register.writable != 0 {
            return Err(RegisterFault::Invalid);
        }
        register.value = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_write_changes_only_writable_bits() {
        let index = MsrIndex::new(0x10);
        let register = Register {
            value: 0xf0,
            writable: 0x0f,
        };
        let mut map = RegisterMap::from_iter([(index, register)]);
        assert_eq!(map.write(index, 0xf5, Origin::Guest), Ok(()));
        assert_eq!(
            map.write(index, 0x05, Origin::Guest),
            Err(RegisterFault::Invalid)
        );
        assert_eq!(map.read(index, Origin::Guest), Ok(0xf5));
        assert_eq!(map.write(index, 0x05, Origin::Host), Ok(()));
        assert_eq!(map.read(index, Origin::Guest), Ok(0x05));
    }

    #[test]
    fn access_to_missing_register_fails_as_unknown_for_guest_and_host() {
        let index = MsrIndex::new(0x11);
        let mut map = RegisterMap::default();
        for origin in [Origin::Guest, Origin::Host] {
            assert_eq!(map.read(index, origin), Err(RegisterFault::Unknown));
            assert_eq!(map.write(index, 0, origin), Err(RegisterFault::Unknown));
        }
    }
}
