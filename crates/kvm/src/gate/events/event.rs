//! An event, and the encoding of an event in a queue.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use msrgate_filter::{Access, ExitReason, MsrIndex};
use msrgate_program::answer::Disposition;
use msrgate_program::{Digest, Origin, Program, shown_name};

use super::ring::{Entry, WORDS};
use crate::gate::id::VcpuId;

/// The choice whether events hold the values that guests write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// Events do not hold the value that the guest writes.
    #[default]
    Hidden,
    /// Events of writes hold the value that the guest writes.
    Shown,
}

/// The choice whether events hold RIP, the address of the guest's RDMSR or WRMSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rip {
    /// Events do not hold RIP.
    #[default]
    Hidden,
    /// Events hold RIP.
    Shown,
}

/// An access that the policy logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The time of the exit.
    pub time: SystemTime,
    /// The vCPU that made the access.
    pub vcpu: VcpuId,
    /// The MSR that was accessed.
    pub index: MsrIndex,
    /// The direction of the access: read or write.
    pub access: Access,
    /// The reason for which KVM made the exit.
    pub reason: ExitReason,
    /// The gate's disposition of the access.
    pub disposition: Disposition,
    /// The value that the guest writes, if events hold values ([`Values::Shown`]).
    pub value: Option<u64>,
    /// RIP, the address of the guest's RDMSR or WRMSR, if events hold it ([`Rip::Shown`]).
    pub rip: Option<u64>,
    /// The place in the policy that decided the access, such as a line of a policy file.
    pub origin: Origin,
    /// The policy file that contains the line of `origin`. `None` if `origin` is not a line, or if the
    /// program was replaced too long ago.
    pub file: Option<Box<str>>,
    /// The digest of the program that decided the access.
    pub digest: Digest,
    /// The number of events of this kind just before this one that the limit held back. If several kinds
    /// share one counter of the limit, this is the number of events of all these kinds. The total is in
    /// [`VcpuDrops`](super::VcpuDrops).
    pub held_back: u32,
}

/// The record of an access that a vCPU puts into its queue, to become an [`Event`].
#[derive(Clone, Copy)]
pub(in crate::gate) struct EventRecord {
    /// Nanoseconds since 1970.
    pub(in crate::gate) time: u64,
    pub(in crate::gate) index: MsrIndex,
    pub(in crate::gate) access: Access,
    pub(in crate::gate) reason: ExitReason,
    pub(in crate::gate) disposition: Disposition,
    pub(in crate::gate) value: Option<u64>,
    pub(in crate::gate) rip: Option<u64>,
    pub(in crate::gate) origin: Origin,
    pub(in crate::gate) held_back: u32,
    pub(in crate::gate) digest: Digest,
}

const HAS_VALUE: u64 = 1 << 60;
const HAS_RIP: u64 = 1 << 61;

impl EventRecord {
    #[inline]
    pub(super) fn encode(&self) -> Entry {
        let kind = u64::from(self.index.get())
            | (self.access as u64) << 32
            | (self.reason as u64) << 34
            | u64::from(self.disposition.number()) << 40
            | if self.value.is_some() { HAS_VALUE } else { 0 }
            | if self.rip.is_some() { HAS_RIP } else { 0 };
        let mut entry = [0; WORDS];
        entry[..6].copy_from_slice(&[
            self.time,
            kind,
            self.value.unwrap_or(0),
            self.rip.unwrap_or(0),
            self.origin.to_bits(),
            self.held_back.into(),
        ]);
        for (word, bytes) in entry[6..]
            .iter_mut()
            .zip(self.digest.bytes().chunks_exact(8))
        {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        entry
    }
}

impl Event {
    /// Decodes an entry of a queue. `programs` are the programs that may have decided the access that the
    /// entry records.
    pub(super) fn decode(entry: &Entry, vcpu: VcpuId, programs: &[Arc<Program>]) -> Option<Self> {
        let &[time, kind, value, rip, origin, held_back, ..] = entry;
        let [i0, i1, i2, i3, flags, disposition, ..] = kind.to_le_bytes();
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(8).zip(&entry[6..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let digest = Digest::from_bytes(digest);
        let origin = Origin::from_bits(origin);
        let program = programs.iter().find(|program| program.digest() == digest);
        let file = match (origin, program) {
            (Origin::Line(line), Some(program)) => program.file(line.file).map(Into::into),
            _ => None,
        };
        Some(Self {
            time: UNIX_EPOCH + Duration::from_nanos(time),
            vcpu,
            index: MsrIndex::new(u32::from_le_bytes([i0, i1, i2, i3])),
            access: *Access::ALL.get(usize::from(flags & 1))?,
            reason: *ExitReason::ALL.get(usize::from(flags >> 2 & 3))?,
            disposition: *Disposition::ALL.get(usize::from(disposition))?,
            value: (kind & HAS_VALUE != 0).then_some(value),
            rip: (kind & HAS_RIP != 0).then_some(rip),
            origin,
            file,
            digest,
            held_back: u32::try_from(held_back).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
impl Event {
    /// Makes an event for a test: vCPU 1 writes to an MSR, which the policy file `a.toml` denies.
    pub(super) fn example(index: u32) -> Self {
        Self {
            time: UNIX_EPOCH + Duration::from_millis(1500),
            vcpu: VcpuId::new(1),
            index: MsrIndex::new(index),
            access: Access::Write,
            reason: ExitReason::Filter,
            disposition: Disposition::Denied,
            value: Some(5),
            rip: None,
            origin: Origin::from_bits(7 << 32 | 2),
            file: Some("a.toml".into()),
            digest: Digest::from_bytes([0; 32]),
            held_back: 0,
        }
    }
}

/// Formats the event as one line of text, without the time:
/// `vCPU 0: write of MSR 0xc0000082: deny (filter), value 0x10, by web.toml:12`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vcpu,
            index,
            access,
            reason,
            disposition,
            held_back,
            ..
        } = self;
        write!(
            f,
            "vCPU {vcpu}: {access} of MSR {index}: {disposition} ({reason})"
        )?;
        if let Some(value) = self.value {
            write!(f, ", value {value:#x}")?;
        }
        if let Some(rip) = self.rip {
            write!(f, ", RIP {rip:#x}")?;
        }
        match (self.origin, &self.file) {
            (Origin::Line(at), Some(file)) => write!(f, ", by {}:{}", shown_name(file), at.number)?,
            (Origin::Line(at), None) => write!(f, ", by line {}", at.number)?,
            (Origin::Default, _) => f.write_str(", by the policy's default")?,
            (Origin::Kvm, _) => f.write_str(", by KVM")?,
        }
        if *held_back > 0 {
            write!(f, "; similar events held back before it: {held_back}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use msrgate_filter::MsrIndex;

    use super::*;

    /// Each field is decoded as it was encoded, even if the field has its largest value.
    #[test]
    fn encoded_event_decodes_unchanged() {
        let at = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        for disposition in Disposition::ALL {
            for reason in ExitReason::ALL {
                for access in Access::ALL {
                    let happened = EventRecord {
                        time: 1_700_000_000_123_456_789,
                        index: MsrIndex::MAX,
                        access,
                        reason,
                        disposition,
                        value: Some(u64::MAX),
                        rip: None,
                        origin: Origin::from_bits(u64::MAX),
                        held_back: u32::MAX,
                        digest: Digest::from_bytes([0xa5; 32]),
                    };
                    let vcpu = VcpuId::new(3);
                    let event = Event::decode(&happened.encode(), vcpu, &[]).unwrap();
                    let expected = Event {
                        time: at,
                        vcpu,
                        index: MsrIndex::MAX,
                        access,
                        reason,
                        disposition,
                        value: Some(u64::MAX),
                        rip: None,
                        origin: Origin::from_bits(u64::MAX),
                        file: None,
                        digest: Digest::from_bytes([0xa5; 32]),
                        held_back: u32::MAX,
                    };
                    assert_eq!(event, expected);
                }
            }
        }
    }
}
