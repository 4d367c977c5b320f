//! Recorded accesses of a guest, and the decisions that a policy would have made about them.
//!
//! [`Lines`] reads a trace of any length, line by line. A trace is text of the kernel's event
//! `kvm:kvm_msr` as tracefs, `perf script`, `perf trace` and `trace-cmd report` print it, or JSON
//! lines of msrgate's own. Each line is parsed by itself, so the forms may be mixed; only an event
//! that a mail has wrapped is parsed with its next line. [`Replay`] counts a policy's decisions
//! about the accesses, and [`Tasks`] the tasks that made them.
//!
//! ```
//! use msrgate_policy::trace::{Line, parse_line};
//!
//! let line = parse_line(b" CPU 0/KVM 1234 [001] 123.456: kvm:kvm_msr: msr_read c0000080 = 0xd01");
//! let Line::Access(access) = line else { panic!() };
//! assert_eq!(access.to_string(), "msr_read c0000080 = 0xd01");
//! ```

mod decision;
mod fields;
mod graph;
mod json;
mod lines;
mod mail;
mod replay;
mod task;
mod tasks;
mod text;

use std::fmt;

use msrgate_filter::{Access, MsrIndex};

pub use lines::{LineNumber, Lines, MAX_LINE_BYTES};
pub use replay::{Fate, MAX_ROWS, Replay, Row, Totals};
pub use task::Task;
pub use tasks::Tasks;

/// One access by a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The MSR that the guest accessed.
    pub index: MsrIndex,
    /// The direction of the access: a read or a write.
    pub access: Access,
    /// The value that was read or written, if the trace has it.
    pub value: Option<u64>,
    /// The outcome of the access for the guest.
    pub outcome: Outcome,
    /// The result of the access, as far as a gate's event tells more of it than `outcome`. `None`: the line is
    /// no event of a gate.
    pub told: Option<Told>,
}

/// The result of an access under KVM, as a gate's event tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Told {
    /// The policy let KVM handle the access, or answered it.
    Passed,
    /// The policy refused the access, or would have refused it without audit mode. Nothing shows how KVM
    /// would treat the access.
    Refused,
    /// The policy refused the access, and ended the guest by it. Nothing shows how KVM would treat the access, or
    /// what the guest would have done after it.
    Ended,
    /// KVM knows the MSR, and refused the access.
    Invalid,
    /// KVM does not know the MSR.
    Unknown,
}

/// The outcome of a recorded access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The access succeeded: the guest went on.
    Done,
    /// The guest got #GP, from KVM or from a filter. A trace does not tell from which of the two.
    Faulted,
}

/// Writes the access as the kernel prints the fields of its event.
impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.unwrap_or_default();
        write!(f, "msr_{} {:x} = {value:#x}", self.access, self.index.get())?;
        match self.outcome {
            Outcome::Done => Ok(()),
            Outcome::Faulted => f.write_str(" (#GP)"),
        }
    }
}

/// The content of one line of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Line {
    /// An access of a guest, with its MSR.
    Access(Traced),
    /// An access that went to user space: an event `kvm_userspace_exit` of reason 29 or 30 (S1.3).
    /// The kernel records these events without the MSR.
    Deflected(Access),
    /// An event that is not an access.
    Other,
    /// An event that is not an access, and shows that a vCPU runs a nested guest, such as
    /// `kvm_nested_vmenter`.
    Nested,
    /// A note that this many VMs, at least 1, have come behind the policy of a run of `msrgate exec`, which records
    /// what the policy refuses to them.
    Guarded(u64),
    /// A note that this many events are missing from the trace here. If the number is unknown, it
    /// is 1.
    Lost(u64),
    /// The heading of a trace, which counts the events that follow and the events that were
    /// overwritten in the tracer's buffer before the buffer was read. Some kernels report the
    /// overwritten events as [lost](Self::Lost), too.
    Heading {
        /// The number of events that follow.
        kept: u64,
        /// The number of events that were overwritten.
        overwritten: u64,
    },
    /// A line without content: a blank line, a comment.
    Nothing,
    /// A line that cannot be read: garbled, cut off, or too long.
    Unreadable,
    /// The last line, without a line feed. The end of the line may be missing, for example digits
    /// of a number.
    CutOff,
}

/// Parses a line of a trace, without its line feed. The text need not be UTF-8.
#[must_use]
pub fn parse_line(line: &[u8]) -> Line {
    let line = line.trim_ascii();
    match line.first() {
        // A text has no byte that is 0. Such a byte means that a part of the trace was lost, on its
        // way to a disk or to this command.
        _ if memchr::memchr(0, line).is_some() => Line::Unreadable,
        None => Line::Nothing,
        Some(b'{') => json::parse(line),
        Some(_) => text::parse(line),
    }
}

#[cfg(test)]
mod tests;
