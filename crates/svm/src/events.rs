//! The form of the hypervisor's output, JSON lines: an event has the keys of an event of the gate, with `ticks` in
//! place of a time, and a line of the hypervisor itself has the key `svm`.

use core::fmt;

use msrgate_filter::Access;

use crate::guard::Event;

/// The place where an event happened.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The number of the processor, counted from 0.
    pub processor: usize,
    /// The address of the guest's instruction.
    pub rip: u64,
    /// The time since the machine started, by the processor's time-stamp counter.
    pub ticks: u64,
}

/// Writes an event as a line.
///
/// # Errors
/// The error of `out`.
pub fn write_event(out: &mut impl fmt::Write, event: &Event, place: Place) -> fmt::Result {
    let Place {
        processor,
        rip,
        ticks,
    } = place;
    let Event { exit, disposition } = event;
    write!(
        out,
        "{{\"schema\":1,\"ticks\":{ticks},\"vcpu\":{processor},\"msr\":\"{}\",\"access\":\"{}\",\"reason\":\"{}\",\"action\":\"{disposition}\"",
        exit.index, exit.access, exit.reason
    )?;
    if exit.access == Access::Write {
        write!(out, ",\"value\":\"{:#x}\"", exit.data)?;
    }
    writeln!(out, ",\"rip\":\"{rip:#x}\"}}")
}

/// Text inside a JSON string.
pub struct Escaped<'t>(pub &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};

    use msrgate_filter::{Exit, ExitReason, MsrIndex};
    use msrgate_program::answer::Disposition;

    use super::*;

    #[test]
    fn refused_write_is_one_line_with_value_and_address() {
        let exit = Exit {
            index: MsrIndex::new(0xc000_0082),
            access: Access::Write,
            data: 0x1234,
            reason: ExitReason::Filter,
        };
        let event = Event {
            exit,
            disposition: Disposition::Denied,
        };
        let mut line = String::new();
        let place = Place {
            processor: 1,
            rip: 0xffff_8000_0000_0000,
            ticks: 7,
        };
        write_event(&mut line, &event, place).unwrap();
        assert_eq!(
            line,
            "{\"schema\":1,\"ticks\":7,\"vcpu\":1,\"msr\":\"0xc0000082\",\"access\":\"write\",\"reason\":\"filter\",\"action\":\"deny\",\"value\":\"0x1234\",\"rip\":\"0xffff800000000000\"}\n"
        );
    }

    #[test]
    fn quotes_and_control_characters_are_escaped() {
        assert_eq!(Escaped("a \"b\"\n").to_string(), "a \\\"b\\\"\\u000a");
    }
}
