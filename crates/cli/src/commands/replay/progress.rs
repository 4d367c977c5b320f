//! A line on the terminal that shows the progress of a replay.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use msrgate_policy::trace::LineNumber;

/// The time between two updates of the progress line.
const EVERY: Duration = Duration::from_millis(200);

/// The number of trace lines after which the clock is read again, to see if the progress line needs an
/// update. It is a power of two.
const LINES: u64 = 1 << 10;

/// The progress line. The line is shown only if standard error is a terminal.
pub(super) struct Progress {
    is_terminal: bool,
    size: Option<u64>,
    last: Instant,
    is_shown: bool,
}

impl Progress {
    /// Returns a progress line for a trace. `size` is the trace's size in bytes, if it is known.
    pub(super) fn new(size: Option<u64>) -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            size,
            last: Instant::now(),
            is_shown: false,
        }
    }

    /// Updates the progress line after a line of the trace was read. `bytes` is the number of the trace's
    /// bytes up to the end of that line.
    pub(super) fn at(&mut self, line: LineNumber, bytes: u64) {
        if !self.is_terminal || !line.get().is_multiple_of(LINES) || self.last.elapsed() < EVERY {
            return;
        }
        self.last = Instant::now();
        self.is_shown = true;
        // If the progress cannot be shown, the replay goes on all the same.
        let _ = write!(io::stderr(), "\r{}\x1b[K", text(line, bytes, self.size));
    }

    /// Removes the progress line from the terminal.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(line: LineNumber, bytes: u64, size: Option<u64>) -> String {
    let mebibytes = bytes >> 20;
    match size {
        Some(size @ 1..) => {
            let percent = u128::from(bytes) * 100 / u128::from(size);
            format!("{line} lines, {mebibytes} MiB, {percent} %")
        }
        _ => format!("{line} lines, {mebibytes} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use msrgate_policy::trace::Lines;

    use super::*;

    #[test]
    fn progress_line_shows_percentage_only_if_size_of_trace_is_known() {
        let (line, _) = Lines::new(&b"\n"[..]).next_line().unwrap().unwrap();
        let half = text(line, 3 << 20, Some(6 << 20));
        assert_eq!(half, "1 lines, 3 MiB, 50 %");
        assert_eq!(text(line, 3 << 20, None), "1 lines, 3 MiB");
        assert_eq!(text(line, 0, Some(0)), "1 lines, 0 MiB");
    }
}
