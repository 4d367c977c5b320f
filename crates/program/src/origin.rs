//! The origin of a decision: an entry of a policy, its default, or KVM.

/// The number of an entry in the policy that rules were made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u32);

impl EntryId {
    /// Creates the number of an entry, counted from 0. A number above [`Self::MAX`] becomes
    /// [`Self::MAX`].
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self(u32::try_from(number).unwrap_or(u32::MAX).min(Self::MAX.0))
    }

    /// The number of the entry.
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    /// The highest number that an entry can have. No policy has nearly so many entries.
    pub const MAX: Self = Self(u32::MAX - 2);
}

/// The entry of a policy, the policy's default action, or the rule of KVM that decides an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecidedBy {
    /// The policy's entry with this number decides the access.
    Entry(EntryId),
    /// The policy's default action decides the access.
    Default,
    /// KVM decides the access: the MSR is an x2APIC register, which KVM never filters (S3.1).
    Kvm,
}

/// A [`DecidedBy`] in 32 bits: 0 is KVM, 1 the default, n + 2 the entry n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedBy(u32);

impl PackedBy {
    pub(crate) const fn of(by: DecidedBy) -> Self {
        Self(match by {
            DecidedBy::Kvm => 0,
            DecidedBy::Default => 1,
            DecidedBy::Entry(entry) => entry.0 + 2,
        })
    }

    pub(crate) const fn get(self) -> DecidedBy {
        match self.0 {
            0 => DecidedBy::Kvm,
            1 => DecidedBy::Default,
            entry => DecidedBy::Entry(EntryId(entry - 2)),
        }
    }
}

/// The place in a policy that decides an access, in the form that messages and events show: a line,
/// the default, or KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An entry of the policy, given by its line in a policy text.
    Line(Line),
    /// The policy's default action.
    Default,
    /// KVM: the MSR is an x2APIC register, which KVM never filters (S3.1).
    Kvm,
}

impl Origin {
    /// Encodes the origin as one number, for the queue of events.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        match self {
            Self::Kvm => 0,
            Self::Default => 1,
            Self::Line(Line { file, number }) => {
                u64::from(number) << 32 | u64::from(file.0.saturating_add(2))
            }
        }
    }

    /// Returns the origin that [`Self::to_bits`] encoded.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let [f0, f1, f2, f3, n0, n1, n2, n3] = bits.to_le_bytes();
        match u32::from_le_bytes([f0, f1, f2, f3]) {
            0 => Self::Kvm,
            1 => Self::Default,
            file => Self::Line(Line {
                file: FileId(file - 2),
                number: u32::from_le_bytes([n0, n1, n2, n3]),
            }),
        }
    }
}

/// A line of one of the policy texts that a program was compiled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// The text that contains the line.
    pub file: FileId,
    /// The line number, counted from 1.
    pub number: u32,
}

/// The number of a policy text that a program was compiled from. [`Program::file`](crate::Program::file)
/// returns the name of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u32);

impl FileId {
    /// Creates the number of a policy text, counted from 0.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number of the policy text.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}
