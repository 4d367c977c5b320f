//! Makes a policy from any bytes, and packs it into a filter. The policy's entries are stretches of MSRs in
//! ascending order, each with the accesses that it allows. If the policy fits into a filter, the filter
//! decides as the entries say. The filter is also unchanged if it is encoded and decoded as part of a
//! program, or in the output format that the first byte selects.
#![no_main]

use std::fmt::Write as _;

use libfuzzer_sys::fuzz_target;
use msrgate_filter::{Access, MAX_RANGES, MsrIndex, Verdict};
use msrgate_policy::import::compiled_filter;
use msrgate_policy::{CompileError, NoIncludes, PackError, Program, Source, compile, emit, parse};

const WORDS: [(&str, [Verdict; 2]); 4] = [
    ("none", [Verdict::Deny, Verdict::Deny]),
    ("r", [Verdict::Allow, Verdict::Deny]),
    ("w", [Verdict::Deny, Verdict::Allow]),
    ("rw", [Verdict::Allow, Verdict::Allow]),
];

/// Returns the number of MSRs in a stretch: few, about as many as a bitmap holds, or very many.
fn length(byte: u8) -> u32 {
    let low = u32::from(byte & 0x3f);
    match byte >> 6 {
        0 | 1 => low,
        2 => 0x2fe0 + low,
        _ => low << 24,
    }
}

/// Returns stretches of MSRs that do not overlap. Each stretch is given as its first MSR, its last MSR, and
/// the index of its accesses in `WORDS`. No stretch has an x2APIC register or the MSR 0xffffffff.
fn stretches(bytes: &[u8]) -> Vec<(u32, u32, usize)> {
    let mut stretches = Vec::new();
    let mut next = 0_u32;
    for triple in bytes.chunks_exact(3).take(200) {
        let word = usize::from(triple[2] & 3);
        let Some(first) = next.checked_add(length(triple[0])) else {
            break;
        };
        let Some(last) = first.checked_add(length(triple[1])) else {
            break;
        };
        let Some(after) = last.checked_add(1).filter(|_| last < u32::MAX) else {
            break;
        };
        next = after;
        if last < 0x800 || first > 0x8ff {
            stretches.push((first, last, word));
        }
    }
    stretches
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&head, bytes)) = bytes.split_first() else {
        return;
    };
    let (default, otherwise) = match head & 1 {
        0 => ("deny", Verdict::Deny),
        _ => ("allow", Verdict::Allow),
    };
    let stretches = stretches(bytes);
    let mut text = format!("policy = 1\ndefault = \"{default}\"\n[msrs]\n");
    for &(first, last, word) in &stretches {
        let _ = writeln!(text, "\"{first:#x}..={last:#x}\" = \"{}\"", WORDS[word].0);
    }
    let policy = parse(&Source::new("fuzz.toml", &text), &mut NoIncludes).expect("stretches apart");
    let compiled = match compile(policy).map_err(|not| not.error) {
        Ok(compiled) => compiled,
        Err(CompileError::Pack(PackError::TooManyRanges(windows))) => {
            assert!(windows.len() > MAX_RANGES);
            return;
        }
        Err(error) => panic!("{error}\n{text}"),
    };
    let filter = compiled.variants()[0].filter();
    for access in Access::ALL {
        let decide = |index| filter.decide(MsrIndex::new(index), access).verdict;
        assert_eq!(decide(u32::MAX), otherwise);
        for &(first, last, word) in &stretches {
            for index in [first, first + (last - first) / 2, last] {
                assert_eq!(
                    decide(index),
                    WORDS[word].1[access as usize],
                    "{index:#x} {text}"
                );
            }
        }
    }
    // The round trips take longer than everything above, so only a part of the inputs asks for them.
    if head >> 6 != 0 {
        return;
    }
    let program = compiled.program().clone();
    assert_eq!(Program::decode(&program.encode()).as_ref(), Ok(&program));
    let variant = &program.variants()[0];
    let form = match head >> 4 {
        0 => emit::json(variant, None).into_bytes(),
        1 => emit::c(variant, None).into_bytes(),
        2 => emit::rust(variant, None).into_bytes(),
        _ => emit::abi(variant).expect("a pointer of 64 bits holds any offset"),
    };
    let again = compiled_filter(&form).expect("what was written");
    assert_eq!(&again.filter, filter, "{text}");
});
