//! The digest of a policy's effect.

use alloc::format;
use alloc::string::String;
use core::fmt;

/// The SHA-256 of a policy's effect, independent of how the policy is written.
///
/// For each combination of `[[when]]` sections, the digest covers the action for each of 2^32 MSRs
/// in each direction and the accesses that become events. The digest also covers the policy's
/// `mode`, `unknown`, `log` and devices. The digest does not cover names, line numbers, comments,
/// the entries' reasons (`why`), or the ranges into which the filter is packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Creates the digest with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the digest, in the order of its digits.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 16 hexadecimal digits of the digest. Different policies have different
    /// first digits, unless somebody has made two policies with equal first digits on purpose.
    #[must_use]
    pub fn short(&self) -> String {
        self.0[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(hmac_sha256::Hash::hash(bytes))
    }
}

/// Writes the digest as 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
