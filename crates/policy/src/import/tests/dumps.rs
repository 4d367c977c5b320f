//! Tests of dumps of the ioctl's bytes. The folder `tests/dumps` has a dump of each form, as the tools print it.

use std::fs;
use std::path::Path;

use msrgate_filter::abi::{CallerWidth, Segment, UserAddress};
use msrgate_filter::{Filter, Revision, SetCall};

use super::super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dumps");

/// The structs of which there are dumps, by the name of their folder.
const STRUCTS: [(&str, CallerWidth); 2] = [
    ("long", CallerWidth::Bits64),
    ("short", CallerWidth::Bits32),
];

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(Path::new(FOLDER).join(format!("{name}.abi"))).expect("a struct")
}

/// Returns the filter that the kernel's model sets for the process from whose memory a struct comes.
fn filter_of(name: &str, width: CallerWidth) -> Filter {
    let memory = Segment {
        start: UserAddress::NULL,
        bytes: &bytes_of(name),
    };
    let call = SetCall::read(Revision::Mainline, width, &memory, UserAddress::NULL);
    let filter = call.published().last().expect("a filter");
    assert_eq!(filter.ranges().len(), 4);
    filter.clone()
}

/// Returns the dumps of a struct, with the command lines that printed them.
fn dumps_of(name: &str) -> Vec<(String, String)> {
    let files = fs::read_dir(Path::new(FOLDER).join(name)).expect("dumps");
    let mut dumps: Vec<_> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let command = path.file_stem().expect("a name").to_string_lossy();
            (
                command.replace('_', " "),
                fs::read_to_string(&path).expect("text"),
            )
        })
        .collect();
    dumps.sort();
    assert_eq!(dumps.len(), 51);
    dumps
}

fn dump(struct_name: &str, command: &str) -> String {
    let mut dumps = dumps_of(struct_name).into_iter();
    let found = dumps.find(|(one, _)| one == command);
    found.expect(command).1
}

fn refusal(dump: &str) -> String {
    import(dump.as_bytes(), None).expect_err(dump).to_string()
}

#[test]
fn import_of_every_form_of_dump_gives_policy_of_the_dumped_bytes() {
    for (name, width) in STRUCTS {
        let filter = filter_of(name, width);
        let policy = print(&import(&bytes_of(name), None).expect("a struct"), "FILE");
        for (command, dump) in dumps_of(name) {
            let indented = dump.replace('\n', "\n    ");
            let marked = format!("\u{feff}{dump}");
            for dump in [
                &dump,
                &dump.replace('\n', "\r\n"),
                &format!("\n    {indented}"),
                &marked,
            ] {
                assert!(is_compiled_filter(dump.as_bytes()), "{name}, {command}");
                let read = compiled_filter(dump.as_bytes());
                let read = read.unwrap_or_else(|why| panic!("{name}, {command}: {why}\n{dump}"));
                assert_eq!(read.filter, filter, "{name}, {command}");
                let imported = import(dump.as_bytes(), None).expect("an import");
                assert_eq!(imported.format, Format::Compiled, "{name}, {command}");
                assert_eq!(print(&imported, "FILE"), policy, "{name}, {command}");
            }
        }
    }
}

/// A part of a dump is refused, unless it has all bytes of the filter.
#[test]
fn import_refuses_dump_cut_anywhere() {
    for (name, width) in STRUCTS {
        let filter = filter_of(name, width);
        for (command, dump) in dumps_of(name) {
            // Testing every byte of all dumps would take a minute. The end of a dump may have only characters, or
            // zeros that the struct does not have.
            let end = dump.len() - 40;
            for length in (0..end).step_by(97).chain(end..dump.len()) {
                match compiled_filter(&dump.as_bytes()[..length]) {
                    Ok(read) if length >= end => {
                        assert_eq!(read.filter, filter, "{command}: {}", &dump[..length]);
                    }
                    Ok(_) => panic!("{command}: {}", &dump[..length]),
                    Err(_) => {}
                }
            }
        }
    }
}

/// A dump in which a line is missing, is there twice, or comes from a dump of another form, is refused. Beside a line
/// `*`, which stands for any number of lines, no reader could notice it.
#[test]
fn import_refuses_dump_with_missing_repeated_or_foreign_line() {
    let foreign = dump("long", "od -t x2");
    let foreign = foreign.lines().nth(1).expect("a line");
    let filter = filter_of("long", CallerWidth::Bits64);
    for (command, dump) in dumps_of("long") {
        let lines: Vec<&str> = dump.lines().collect();
        for number in (0..lines.len()).step_by(1 + lines.len() / 15) {
            let (before, after) = lines.split_at(number);
            if before.last() == Some(&"*") || after[..2.min(after.len())].contains(&"*") {
                continue;
            }
            for changed in [
                [before, &after[1..]].concat(),
                [before, &after[..1], after].concat(),
                [before, &[foreign], after].concat(),
            ] {
                if let Ok(read) = compiled_filter(changed.join("\n").as_bytes()) {
                    assert_eq!(read.filter, filter, "{command}, line {number}");
                }
            }
        }
    }
}

#[test]
fn import_names_line_of_dump_that_does_not_follow() {
    let dump = dump("long", "hexdump -C");
    let lines: Vec<_> = dump.lines().collect();
    let without_third = [&lines[..2], &lines[3..]].concat().join("\n");
    let twice = [&lines[..3], &lines[2..]].concat().join("\n");
    let note = [&lines[..3], &["a note"], &lines[3..]].concat().join("\n");
    let far = dump.replace("00000210  ", "ffffff90  ");
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
            "line 4 of the dump is not an offset and hexadecimal or octal numbers of one size; make the dump with `hexdump -C FILE`",
        ),
        (far, "line 18 of the dump has an offset that no filter has"),
    ] {
        assert_eq!(refusal(&dump), says);
    }
}

/// The forms of dumps that cannot be read get the command line of a form that can.
#[test]
fn import_of_dump_that_cannot_be_read_names_command_line() {
    let form = "is not an offset and hexadecimal or octal numbers of one size; make the dump with `hexdump -C FILE`";
    for (command, dump, number, says) in [
        (
            "od -c",
            "0000000 001  \\0  \\0  \\0  \\0  \\0  \\0  \\0 001  \\0  \\0  \\0 021  \\0  \\0  \\0\n",
            1,
            form,
        ),
        (
            "od -a",
            "0000000 soh nul nul nul nul nul nul nul soh nul nul nul dc1 nul nul nul\n",
            1,
            form,
        ),
        (
            "od -t u1",
            "0000000   1   0   0   0   0   0   0   0   1   0   0   0  17   0   0   0\n",
            1,
            form,
        ),
        (
            "od -t d4",
            "0000000           1           0           1          17\n",
            1,
            form,
        ),
        (
            "od -t x1 -t c",
            "0000000  01  00  00  00  00  00  00  00  01  00  00  00  11  00  00  00\n        001  \\0  \\0  \\0  \\0  \\0  \\0  \\0 001  \\0  \\0  \\0 021  \\0  \\0  \\0\n",
            2,
            form,
        ),
        (
            "xxd -i FILE",
            "unsigned char p_abi[] = {\n  0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,\n",
            1,
            form,
        ),
        (
            "od -A n -t x1",
            " 01 00 00 00 00 00 00 00 01 00 00 00 11 00 00 00\n 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n*\n",
            3,
            "says that lines repeat, and not how many, because the dump has no offsets; make the dump with `hexdump -C FILE`",
        ),
        (
            "xxd -s 8",
            "00000008: 0100 0000 1100 0000 1000 0000 0000 0000  ................\n",
            1,
            "does not have the offset 0; dump the file from its first byte on",
        ),
    ] {
        let says = format!("line {number} of the dump {says}");
        assert_eq!(refusal(dump), says, "{command}");
    }
}

/// A dump that says that it has more bytes than any filter is refused before the bytes are made.
#[test]
fn import_refuses_dump_of_more_bytes_than_any_filter() {
    let line = "0000000 00 00 00 00 00 00 00 00\n*\n";
    for end in ["7777777777777777", "0200010"] {
        let dump = format!("{line}{end}\n");
        let says = "line 3 of the dump has an offset that no filter has";
        assert_eq!(refusal(&dump), says);
    }
    let long = "00".repeat(0x1_0001);
    let says = "line 1 of the dump has more bytes than a filter has";
    assert_eq!(refusal(&long), says);
}
