//! Tests of programs as files.

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, ReasonMask, Revision, Verdict,
};
use proptest::prelude::*;

use msrgate_policy::{IncludeError, Includes, NoIncludes, Source, compile, parse};
use msrgate_program::*;

/// A policy with most settings, several actions, and a `[[when]]` section.
const EVERYTHING: &str = r#"
policy  = 1
name    = "everything"
default = "allow"
unknown = { read = { value = "0x7" }, write = "ignore", log = "all" }
log     = "first"
accept  = ["tsc-deadline-fastpath"]

[msrs]
"0x100..=0x1ff" = "none"
0x101 = { read = { handler = "smi" }, write = "kill" }
IA32_SYSENTER_CS = { read = "allow", write = "deny", log = "none" }
0x110 = { read = { value = "0xffffffffffffffff" }, write = "ignore" }

[msrs.0x120]
register = { reset = "0x5", mask = "0xff" }

[[when]]
cpu = { vendor = "GenuineIntel", family = 6, model = ["0x6a", 0x6c] }
[when.msrs]
0x130 = "r"
"#;

fn program(text: &str) -> Program {
    let source = Source::new("folder/policy.toml", text);
    let policy = parse(&source, &mut NoIncludes).expect(text);
    compile(policy).expect(text).into_program()
}

fn small(entries: &str) -> Program {
    program(&format!("policy = 1\ndefault = 'deny'\n{entries}"))
}

#[test]
fn program_decode_returns_the_encoded_program() {
    let everything = program(EVERYTHING);
    let bytes = everything.encode();
    assert_eq!(Program::decode(&bytes), Ok(everything.clone()));
    assert!(Program::is_program(&bytes));
    let [general, xeon] = everything.variants() else {
        panic!("two variants");
    };
    let index = MsrIndex::new(0x130);
    assert_eq!(general.rule(index, Access::Read).action.word(), "deny");
    assert_eq!(xeon.rule(index, Access::Read).action.word(), "allow");
    assert_eq!(
        everything.on(xeon.example()).map(Variant::holds),
        Some(xeon.holds())
    );
    let rule = general.rule(MsrIndex::new(0x101), Access::Write);
    let Origin::Line(line) = general.rules().origin(rule.by) else {
        panic!("a line");
    };
    assert_eq!(everything.file(line.file), Some("policy.toml"));
    assert_eq!(line.number, 11);
    assert_eq!(general.reasons().bits(), 0b110);
}

#[test]
fn program_reasons_contain_only_exit_reasons_that_its_rules_need() {
    let bits = |text: &str| small(text).variants()[0].reasons().bits();
    assert_eq!(bits("log = 'none'"), 0);
    assert_eq!(bits("log = 'none'\n[msrs]\n0x10 = 'rw'"), 0);
    assert_eq!(bits(""), 0b100);
    assert_eq!(bits("log = 'none'\nmode = 'audit'"), 0b100);
    assert_eq!(
        bits("log = 'none'\n[msrs]\n0x10 = { read = { value = '0x1' }, write = 'deny' }"),
        0b100
    );
    let unknown = program("policy = 1\ndefault = 'allow'\nlog = 'none'\nunknown = 'ignore'");
    assert_eq!(unknown.variants()[0].reasons().bits(), 0b010);
}

#[test]
fn program_digest_is_equal_for_policies_that_say_the_same_in_other_words() {
    let digest = |text: &str| small(text).digest();
    let one = digest("[msrs]\n'0x10..=0x12' = 'r'\n0x12 = 'rw'\n0x20 = 'w'");
    let other = digest(
        "name = 'other'\n[msrs]\n# a comment\n0x20 = 'w'\n0x10 = 'r'\n0x12 = { read = 'allow', write = 'allow', why = 'so' }\n0x11 = 'r'",
    );
    assert_eq!(one, other);
    assert_ne!(one, digest("[msrs]\n'0x10..=0x12' = 'r'\n0x12 = 'rw'"));
    assert_ne!(digest(""), digest("log = 'none'"));
    assert_ne!(digest(""), digest("mode = 'audit'"));
    // Two policies with the same filter and different answers.
    let value = |value: &str| {
        format!("[msrs]\n0x10 = {{ read = {{ value = '{value}' }}, write = 'deny' }}")
    };
    assert_ne!(digest(&value("1")), digest(&value("2")));
    assert_eq!(one.to_string().len(), 64);
    assert!(one.to_string().starts_with(&one.short()));
}

#[test]
fn program_digest_ignores_order_of_when_sections() {
    let when = |models: &str, msr: &str| {
        format!(
            "[[when]]\ncpu = {{ vendor = 'GenuineIntel', model = {models} }}\n[when.msrs]\n{msr} = 'r'\n"
        )
    };
    let one = small(&(when("[1, 2, 3]", "0x10") + &when("7", "0x20")));
    let other = small(&(when("7", "0x20") + &when("[2, 3, 1]", "0x10")));
    assert_eq!(one.digest(), other.digest());
    assert_ne!(one.digest(), small(&when("7", "0x20")).digest());
    // The `[[when]]` section gives an MSR the action that the MSR has without the section.
    let nothing = small(&format!("[msrs]\n0x10 = 'r'\n{}", when("7", "0x10")));
    assert_eq!(nothing.digest(), small("[msrs]\n0x10 = 'r'").digest());
}

#[test]
fn program_decode_refuses_truncated_or_trailing_bytes() {
    let mut bytes = program(EVERYTHING).encode();
    for length in 0..bytes.len() {
        assert!(Program::decode(&bytes[..length]).is_err(), "{length}");
    }
    let at = bytes.len();
    bytes.push(0);
    assert_eq!(Program::decode(&bytes), Err(ProgramError::Trailing { at }));
}

/// If one byte of an encoded program is changed, `decode` fails, or the decoded program still has the same
/// digest. The digest covers the rules and the settings, and `decode` compares the filter and the exit
/// reasons with the rules. Most other bytes only tell where decisions come from.
#[test]
fn program_decode_refuses_changed_byte_that_would_change_behaviour() {
    let before = program(EVERYTHING);
    let reasons = |program: &Program| -> Vec<_> {
        let variants = program.variants().iter();
        variants.map(Variant::reasons).collect()
    };
    let bytes = before.encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let Ok(after) = Program::decode(&changed) else {
            continue;
        };
        assert_eq!(after.encode(), changed);
        assert_eq!(after.digest(), before.digest(), "byte {at}");
        assert_eq!(reasons(&after), reasons(&before), "byte {at}");
    }
}

#[test]
fn program_decode_refuses_invalid_values() {
    let bytes = small("[msrs]\n0x10 = 'rw'").encode();
    let decode = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        Program::decode(&changed).unwrap_err().to_string()
    };
    let errors = [
        decode(0, b'x'),
        decode(8, 2),
        decode(10, bytes[10] ^ 1),
        decode(42, 2),
        decode(50, 9),
        Program::decode(&bytes[..60]).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

/// A reader of included files that returns an empty policy for every path.
struct EmptyPolicies;

impl Includes for EmptyPolicies {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        Ok(Source::new(path, "policy = 1\n"))
    }
}

/// If two files of a program have the same name, `decode` refuses the program, because a line is
/// identified by the name of its file.
#[test]
fn program_decode_refuses_two_files_of_one_name() {
    let text = "policy = 1\ndefault = \"deny\"\ninclude = [\"i.toml\", \"j.toml\"]\n";
    let parsed = parse(&Source::new("p.toml", text), &mut EmptyPolicies).unwrap();
    let mut bytes = compile(parsed).unwrap().into_program().encode();
    assert!(Program::decode(&bytes).is_ok());
    let name = b"j.toml";
    let at = bytes.windows(name.len()).position(|bytes| bytes == name);
    bytes[at.unwrap()] = b'i';
    let refused = Program::decode(&bytes).unwrap_err();
    assert_eq!(refused, ProgramError::SameName("i.toml".into()));
    assert!(refused.to_string().contains("`i.toml`"), "{refused}");
}

/// If a length is larger than the number of remaining bytes, `decode` fails without allocating
/// memory for that length.
#[test]
fn program_decode_does_not_allocate_for_missing_bytes() {
    let mut bytes = small("").encode();
    let name = 42;
    bytes[name] = 1;
    bytes[name + 1..name + 5].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        Program::decode(&bytes),
        Err(ProgramError::Ends { .. })
    ));
}

#[test]
fn program_of_filter_has_rules_that_match_the_filter() {
    let bitmap = Bitmap::from_fn(9, |offset| offset % 3 == 0).unwrap();
    let ranges = vec![
        Range::new(Accesses::Read, MsrIndex::new(0x7fc), bitmap.clone()),
        Range::new(Accesses::Both, MsrIndex::new(0x10), bitmap.clone()),
        // This range matches no access (S3.5).
        Range::new(Accesses::Both, MsrIndex::new(u32::MAX - 3), bitmap),
    ];
    let filter = Filter::new(Revision::Mainline, DefaultAction::Allow, ranges).unwrap();
    let program = Program::of_filter(filter);
    let [variant] = program.variants() else {
        panic!("one variant");
    };
    assert_eq!(variant.reasons(), ReasonMask::NONE);
    assert_eq!(
        variant
            .rules()
            .verdicts(Verdict::Deny)
            .first_difference(variant.filter()),
        None
    );
    assert_eq!(variant.rules().count(Access::Write), 9);
    assert_eq!(Program::decode(&program.encode()), Ok(program));
}

/// `Program::decode` reads a program file of format version 1, `fixtures/program-v1.msrg`, and finds in it
/// the program that `fixtures/program-v1.toml` compiles to.
#[test]
fn program_file_of_format_version_1_is_still_decoded() {
    let bytes = include_bytes!("fixtures/program-v1.msrg");
    let source = Source::new("program-v1.toml", include_str!("fixtures/program-v1.toml"));
    let compiled = compile(parse(&source, &mut NoIncludes).unwrap()).unwrap();
    let today = compiled.program().clone();
    assert_eq!(Program::decode(bytes), Ok(today.clone()));
    assert!(today.encode() == bytes, "today's encoding is another");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn program_decode_of_any_bytes_returns_program_or_error(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        is_headed in any::<bool>(),
    ) {
        if is_headed {
            let head = small("").encode();
            bytes.splice(..0, head[..42].iter().copied());
        }
        if let Ok(program) = Program::decode(&bytes) {
            prop_assert_eq!(program.encode(), bytes);
        }
    }
}
