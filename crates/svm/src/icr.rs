//! The APIC's interrupt command register, by which one processor starts and resets others (APM volume 2,
//! 16.5).
//!
//! A processor that the hypervisor does not run would be unguarded, so the hypervisor handles INIT and SIPI
//! itself and lets all other commands through.

/// The offset of the register's lower half in the APIC's page.
pub const ICR: u64 = 0x300;
/// The offset of the register's upper half, which has the destination.
pub const ICR_HIGH: u64 = 0x310;

/// The physical address of the APIC's page.
pub const APIC: u64 = 0xfee0_0000;

/// A command that starts or resets processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The effect of the command.
    pub kind: Kind,
    /// The processors that the command is for.
    pub to: Destination,
}

/// The effect of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// INIT: the processor waits for a SIPI.
    Init,
    /// The end of an INIT, which processors with an integrated APIC ignore.
    InitLevelDeassert,
    /// SIPI: the processor starts in real mode at the page with this number.
    Startup(u8),
}

/// The processors that a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor whose APIC has this ID.
    Id(u32),
    /// The processor that sends the command.
    Sender,
    /// All processors.
    All,
    /// All processors but the one that sends the command.
    Others,
}

impl Command {
    /// Decodes a write to the register, `low` to its lower half and `high` the content of its upper half.
    /// Returns `None` for commands that neither start nor reset a processor.
    ///
    /// A logical destination is taken for a physical one: no system starts processors by it.
    #[must_use]
    pub fn decode(low: u32, high: u32) -> Option<Self> {
        let [vector, ..] = low.to_le_bytes();
        let kind = match (low >> 8 & 7, low >> 14 & 1) {
            (5, 1) => Kind::Init,
            (5, _) => Kind::InitLevelDeassert,
            (6, _) => Kind::Startup(vector),
            _ => return None,
        };
        let to = match (low >> 18 & 3, high >> 24) {
            (0, 0xff) | (2, _) => Destination::All,
            (0, id) => Destination::Id(id),
            (1, _) => Destination::Sender,
            _ => Destination::Others,
        };
        Some(Self { kind, to })
    }
}

impl Destination {
    /// Returns true if the processor whose APIC has the ID `id` is among the destinations of a command that
    /// the processor with the ID `sender` sends.
    #[must_use]
    pub const fn has(self, id: u32, sender: u32) -> bool {
        match self {
            Self::Id(one) => one == id,
            Self::Sender => id == sender,
            Self::All => true,
            Self::Others => id != sender,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_and_startup_are_decoded_with_their_destinations() {
        let decode = |low, high| Command::decode(low, high).map(|one| (one.kind, one.to));
        assert_eq!(decode(0xc4500, 0), Some((Kind::Init, Destination::Others)));
        assert_eq!(
            decode(0x8500, 1 << 24),
            Some((Kind::InitLevelDeassert, Destination::Id(1)))
        );
        assert_eq!(
            decode(0x4699, 3 << 24),
            Some((Kind::Startup(0x99), Destination::Id(3)))
        );
        assert_eq!(
            decode(0x4608, 0xff << 24),
            Some((Kind::Startup(8), Destination::All))
        );
        assert_eq!(
            decode(0x8_4608, 0),
            Some((Kind::Startup(8), Destination::All))
        );
        assert_eq!(decode(0x4_4500, 0), Some((Kind::Init, Destination::Sender)));
    }

    #[test]
    fn interrupt_and_nmi_are_not_decoded() {
        assert_eq!(Command::decode(0x40fd, 0), None);
        assert_eq!(Command::decode(0x400, 0), None);
    }

    #[test]
    fn destination_others_leaves_out_sender() {
        assert!(!Destination::Others.has(2, 2));
        assert!(Destination::Others.has(1, 2));
        assert!(Destination::Sender.has(2, 2));
    }
}
