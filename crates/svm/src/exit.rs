//! The reasons for which the guest leaves guest mode (APM volume 2, appendix C).

/// The reason of an exit that the hypervisor handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// A non-maskable interrupt, with which another processor asks this one to leave guest mode.
    Nmi,
    /// CPUID.
    Cpuid,
    /// IN or OUT at a port that the I/O permission map intercepts.
    Port,
    /// RDMSR or WRMSR that the MSR permission map intercepts.
    Msr,
    /// A triple fault.
    Shutdown,
    /// VMMCALL.
    Hypercall,
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT or INVLPGA.
    SvmInstruction,
    /// An access that nested paging does not allow.
    NestedPageFault,
    /// The state in the VMCB is illegal, so that VMRUN did not enter the guest. QEMU's emulator also uses
    /// this code, cut to 32 bits, for a MOV to a control register that is #GP on a processor.
    Invalid,
    /// Any other code, which the hypervisor asks for nowhere.
    Other(u64),
}

impl From<u64> for ExitCode {
    fn from(code: u64) -> Self {
        match code {
            0x61 => Self::Nmi,
            0x72 => Self::Cpuid,
            0x7a | 0x80 | 0x82..=0x86 => Self::SvmInstruction,
            0x7b => Self::Port,
            0x7c => Self::Msr,
            0x7f => Self::Shutdown,
            0x81 => Self::Hypercall,
            0x400 => Self::NestedPageFault,
            0xffff_ffff | u64::MAX => Self::Invalid,
            other => Self::Other(other),
        }
    }
}

/// An access of the guest to a port that is intercepted: the field `EXITINFO1` (APM volume 2, 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port's number.
    pub port: u16,
    /// The number of bytes: 1, 2 or 4.
    pub size: u8,
    /// The direction of the access.
    pub direction: Direction,
}

/// The direction of an access to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// IN: the guest reads the port.
    In,
    /// OUT: the guest writes to the port.
    Out,
}

impl PortAccess {
    /// Decodes `EXITINFO1` of an exit for IN or OUT. Returns `None` for INS and OUTS, which move strings.
    #[must_use]
    pub fn decode(info: u64) -> Option<Self> {
        if info & 4 != 0 {
            return None;
        }
        let [_, _, low, high, ..] = info.to_le_bytes();
        Some(Self {
            port: u16::from_le_bytes([low, high]),
            size: match info >> 4 & 7 {
                1 => 1,
                2 => 2,
                4 => 4,
                _ => return None,
            },
            direction: if info & 1 == 1 {
                Direction::In
            } else {
                Direction::Out
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_instruction_at_port_is_not_decoded() {
        let out = PortAccess::decode(0x0402_0020).unwrap();
        assert_eq!(
            out,
            PortAccess {
                port: 0x402,
                size: 2,
                direction: Direction::Out
            }
        );
        assert_eq!(PortAccess::decode(0x0402_0024), None);
        assert_eq!(PortAccess::decode(0x0402_0070), None);
    }
}
