//! Reads any bytes as a trace. The lines that the reader returns do not depend on the size of its buffer,
//! and the reader counts each line once. The reader finds the same in each line as if the line were the
//! whole trace, unless the line is cut off or is a part of an event that is wrapped over two lines. An
//! access that was read is the same after it is printed and read again.
#![no_main]

use std::io::BufReader;

use libfuzzer_sys::fuzz_target;
use msrgate_policy::trace::{Line, Lines, parse_line};

fn lines(trace: &[u8], buffer: usize) -> Vec<Line> {
    let mut lines = Lines::new(BufReader::with_capacity(buffer, trace));
    let mut all = Vec::new();
    while let Ok(Some((number, line))) = lines.next_line() {
        all.push(line);
        assert_eq!(number.get(), all.len() as u64);
    }
    assert_eq!(lines.bytes(), trace.len() as u64);
    all
}

fuzz_target!(|trace: &[u8]| {
    let whole = lines(trace, trace.len() + 1);
    assert_eq!(whole, lines(trace, 7));
    let by_hand = trace.strip_suffix(b"\n").unwrap_or(trace);
    let by_hand = by_hand.split(|&byte| byte == b'\n').map(parse_line);
    if !trace.is_empty() {
        let by_hand: Vec<_> = by_hand.collect();
        assert_eq!(whole.len(), by_hand.len());
        let mut is_continued = false;
        for (read, alone) in whole.iter().zip(&by_hand) {
            let is_wrapped = matches!((read, alone), (Line::Access(_), Line::Unreadable));
            let is_second = is_continued && *read == Line::Nothing;
            assert!(
                read == alone || *read == Line::CutOff || is_wrapped || is_second,
                "{read:?} {alone:?}"
            );
            is_continued = is_wrapped;
        }
    }
    for line in whole {
        if let Line::Access(traced) = line
            && traced.value.is_some()
        {
            let printed = format!("task-1 [000] ..... 1.5: kvm_msr: {traced}");
            assert_eq!(parse_line(printed.as_bytes()), line);
        }
    }
});
