//! What tells two policies apart by what they do.

use alloc::format;
use alloc::string::String;
use core::fmt;

/// A SHA-256 of what a policy does, however it is written.
///
/// It covers, for each way in which the `[[when]]`s hold, what happens to each of 2^32 MSRs in each
/// direction and which accesses become events, and the policy's `mode`, `unknown`, `log` and devices.
/// Names, lines, comments, reasons and the packing have no part in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in the order of its digits.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first 16 digits, which tell policies apart that nobody made to collide.
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

/// 64 digits.
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
