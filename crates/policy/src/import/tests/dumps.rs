//! Tests of dumps of the ioctl's bytes, as the tools print them for the filter of [`POLICY`].

use msrgate_filter::Filter;

use super::super::*;
use crate::source::Source;
use crate::{NoIncludes, compile, emit, parse};

const POLICY: &str = "policy = 1\ndefault = 'allow'\n[msrs]\n0x277 = 'none'\n0xc0000080 = 'r'\n";

/// `hexdump -C`.
const HEXDUMP_C: &str = "\
00000000  00 00 00 00 00 00 00 00  02 00 00 00 01 00 00 00  |................|\n\
00000010  80 00 00 c0 00 00 00 00  88 01 00 00 00 00 00 00  |................|\n\
00000020  03 00 00 00 01 00 00 00  77 02 00 00 00 00 00 00  |........w.......|\n\
00000030  90 01 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n\
00000040  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n\
*\n\
00000190  00 00 00 00 00 00 00 00                           |........|\n\
00000198\n\
";

/// `hexdump`.
const HEXDUMP: &str = "\
0000000 0000 0000 0000 0000 0002 0000 0001 0000\n\
0000010 0080 c000 0000 0000 0188 0000 0000 0000\n\
0000020 0003 0000 0001 0000 0277 0000 0000 0000\n\
0000030 0190 0000 0000 0000 0000 0000 0000 0000\n\
0000040 0000 0000 0000 0000 0000 0000 0000 0000\n\
*\n\
0000190 0000 0000 0000 0000\n\
0000198\n\
";

/// `od -t x1`.
const OD_T_X1: &str = "\
0000000 00 00 00 00 00 00 00 00 02 00 00 00 01 00 00 00\n\
0000020 80 00 00 c0 00 00 00 00 88 01 00 00 00 00 00 00\n\
0000040 03 00 00 00 01 00 00 00 77 02 00 00 00 00 00 00\n\
0000060 90 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
0000100 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
*\n\
0000620 00 00 00 00 00 00 00 00\n\
0000630\n\
";

/// `od -A x -t x1`.
const OD_A_X_T_X1: &str = "\
000000 00 00 00 00 00 00 00 00 02 00 00 00 01 00 00 00\n\
000010 80 00 00 c0 00 00 00 00 88 01 00 00 00 00 00 00\n\
000020 03 00 00 00 01 00 00 00 77 02 00 00 00 00 00 00\n\
000030 90 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
000040 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
*\n\
000190 00 00 00 00 00 00 00 00\n\
000198\n\
";

/// `od -x`.
const OD_X: &str = "\
0000000 0000 0000 0000 0000 0002 0000 0001 0000\n\
0000020 0080 c000 0000 0000 0188 0000 0000 0000\n\
0000040 0003 0000 0001 0000 0277 0000 0000 0000\n\
0000060 0190 0000 0000 0000 0000 0000 0000 0000\n\
0000100 0000 0000 0000 0000 0000 0000 0000 0000\n\
*\n\
0000620 0000 0000 0000 0000\n\
0000630\n\
";

/// Returns the dump of `xxd`, which repeats no line.
fn xxd(bytes: &[u8]) -> String {
    let row = |(number, row): (usize, &[u8])| {
        let pairs = row.chunks(2).map(|pair| {
            let digits: String = pair.iter().map(|byte| format!("{byte:02x}")).collect();
            digits + " "
        });
        let pairs: String = pairs.collect();
        let seen = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let text: String = row.iter().map(seen).collect();
        format!("{:08x}: {pairs:<40} {text}\n", 16 * number)
    };
    bytes.chunks(16).enumerate().map(row).collect()
}

/// Returns the filter, and all dumps of it.
fn dumps() -> (Filter, Vec<String>) {
    let policy = parse(&Source::new("policy.toml", POLICY), &mut NoIncludes).expect("a policy");
    let compiled = compile(policy).expect("a filter");
    let variant = &compiled.variants()[0];
    let bytes = emit::abi(variant).expect("bytes");
    let dumps = [HEXDUMP_C, HEXDUMP, OD_T_X1, OD_A_X_T_X1, OD_X].map(str::to_owned);
    let dumps = dumps.into_iter().chain([xxd(&bytes)]).collect();
    (variant.filter().clone(), dumps)
}

#[test]
fn import_reads_dump_of_each_tool() {
    let (filter, dumps) = dumps();
    for dump in dumps {
        let read = compiled_filter(dump.as_bytes()).unwrap_or_else(|why| panic!("{why}: {dump}"));
        assert_eq!(read.filter, filter, "{dump}");
        let imported = import(dump.as_bytes(), None).expect("an import");
        assert_eq!(imported.format, Format::Compiled);
    }
}

/// A part of a dump is refused, unless it has all bytes of the filter.
#[test]
fn import_refuses_cut_dump() {
    let (_, dumps) = dumps();
    for dump in dumps {
        let whole = import(dump.as_bytes(), None);
        let mut refused = 0;
        for length in 0..dump.len() {
            let cut = import(&dump.as_bytes()[..length], None);
            assert!(cut == whole || cut.is_err(), "{}", &dump[..length]);
            refused += usize::from(cut.is_err());
        }
        assert!(refused > dump.len() / 2, "{dump}");
    }
}

#[test]
fn import_names_line_of_dump_that_does_not_follow() {
    let lines: Vec<_> = HEXDUMP_C.lines().collect();
    let without_third = [&lines[..2], &lines[3..]].concat().join("\n");
    let twice = [&lines[..3], &lines[2..]].concat().join("\n");
    let note = [&lines[..3], &["a note"], &lines[3..]].concat().join("\n");
    let far = HEXDUMP_C.replace("00000190  ", "ffffff90  ");
    for (dump, says) in [
        (
            without_third,
            "line 3 of the dump does not follow the line before: bytes are missing, or are there twice",
        ),
        (
            twice,
            "line 4 of the dump does not follow the line before: bytes are missing, or are there twice",
        ),
        (
            note,
            "line 4 of the dump is not an offset and hexadecimal bytes",
        ),
        (far, "line 7 of the dump has an offset that no filter has"),
    ] {
        let error = import(dump.as_bytes(), None).expect_err(&dump);
        assert_eq!(error.to_string(), says);
    }
}
