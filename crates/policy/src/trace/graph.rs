//! Lines of the tracer `function_graph`, which prints events as comments between functions.
//!
//! ` 1)   0.321 us    |  }`: the processor and the time, a bar, and a function that begins or ends.

use memchr::memchr;

/// Returns true if a line shows a function, or a processor's change to another task, and not an
/// event.
pub(super) fn is_function(line: &[u8]) -> bool {
    if line.iter().all(|byte| *byte == b'-') && line.len() > 8 {
        return true;
    }
    let has_processor =
        line.first().is_some_and(u8::is_ascii_digit) && memchr(b')', line).is_some();
    let Some(bar) = memchr(b'|', line) else {
        // `0)  bash-12  =>  qemu-34`
        return has_processor && line.windows(4).any(|part| part == b" => ");
    };
    let (before, behind) = (line[..bar].trim_ascii(), line[bar + 1..].trim_ascii());
    let is_column = before.is_empty() || has_processor || before.ends_with(b"us");
    let ends: [&[u8]; 4] = [b"{", b"}", b";", b"*/"];
    is_column && ends.iter().any(|end| behind.ends_with(end))
}
