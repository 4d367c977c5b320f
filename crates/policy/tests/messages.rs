//! Tests of every message that a user can meet: mistakes in a policy, and errors of later steps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use msrgate_filter::abi::{CallerWidth, RangeRequest, Request, Segment, UserAddress};
use msrgate_filter::{
    Access, Accesses, BitmapError, FilterError, MsrIndex, ReasonMask, Revision, SetCall, SetError,
};
use msrgate_policy::import::{Format, ImportError, import};
use msrgate_policy::learn::{LearnError, Notes, learn};
use msrgate_policy::{
    IncludeError, Includes, MistakeKind, NoIncludes, SelectorError, Source, is_seen, parse,
    parse_cpu, parse_msrs,
};

use msrgate_testing::messages::{HOSTILE, messages, messages_with_text};

/// The texts of included files, by name. Files of other names cannot be read.
struct Texts(BTreeMap<&'static str, &'static str>);

impl Includes for Texts {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let number: Option<u8> = path.parse().ok();
        let text = self.0.get(path).or(number.map(|_| &"policy = 1"));
        let text = text.ok_or_else(|| IncludeError::new("no such file"))?;
        Ok(Source::new(path, text))
    }
}

fn kinds(text: &str) -> Vec<MistakeKind> {
    let texts = [
        (
            "final.toml",
            "policy = 1\n[msrs]\nIA32_PAT = { read = 'deny', write = 'deny', final = true }",
        ),
        ("circle.toml", "policy = 1\ninclude = ['circle.toml']"),
        ("allow.toml", "policy = 1\ndefault = 'allow'"),
    ];
    let parsed = parse(&Source::new("policy.toml", text), &mut Texts(texts.into()));
    let mistakes = parsed.expect_err(text);
    let kinds = mistakes.mistakes().iter();
    kinds.map(|mistake| mistake.kind().clone()).collect()
}

#[test]
fn messages_of_policy_mistakes_are_as_recorded() {
    let head = "policy = 1\ndefault = 'deny'\n";
    let entries = |entries: &str| kinds(&format!("{head}[msrs]\n{entries}"));
    let include = |name: &str| kinds(&format!("{head}include = ['{name}']"));
    let many: String = (0..33)
        .map(|model| format!("[[when]]\ncpu = {{ model = {model} }}\n[when.msrs]\n"))
        .collect();
    let groups: String = (0..=500)
        .map(|zeroes| format!("'@mtrr{}' = 'r'\n", " ".repeat(zeroes)))
        .collect();
    let singles: String = (0..=250_000)
        .map(|index| format!("0x{index:x}='r'\n"))
        .collect();
    // The `[[when]]`s hold in 32 combinations.
    let on_all: String = (0..=(4 << 20) / 32)
        .map(|number| 0x1_0000 + number)
        .map(|index| format!("0x{index:x}='r'\n"))
        .chain((0..31).map(|model| format!("[[when]]\ncpu = {{ model = {model} }}\n[when.msrs]\n")))
        .collect();
    // The policy has 256 files besides its own.
    let files = || {
        let numbers: Vec<_> = (0..256).map(|number| format!("'{number}',\n")).collect();
        let text = format!("{head}include = [{}]", numbers.concat());
        kinds(&text)
    };
    let examples = [
        kinds("policy = 1\ndefault = "),
        kinds(&format!("{head}[msrs]\nIA32_PAT = 'r'\nIA32_PAT = 'w'")),
        kinds(&format!("{head}{}", " ".repeat(msrgate_policy::MAX_BYTES))),
        kinds(&format!("{head}# {}", "x".repeat(msrgate_policy::MAX_LINE))),
        kinds(&format!("{head}{many}")),
        kinds(&format!(
            "{head}x = [{}]",
            ",\n".repeat(msrgate_policy::MAX_TOKENS / 2)
        )),
        kinds(&format!(
            "{head}x = {}",
            "[\n".repeat(msrgate_policy::MAX_TABLES + 1)
        )),
        kinds(&format!("{head}include = [{}]", "'a.toml',\n".repeat(257))),
        files(),
        entries(&groups),
        entries(&singles),
        entries(&on_all),
        Vec::from([MistakeKind::CanonicalForm {
            what: "bytes",
            found: msrgate_policy::MAX_BYTES + 1,
            limit: msrgate_policy::MAX_BYTES,
        }]),
        kinds("[msrs]"),
        kinds("policy = 1\n[msrs]"),
        kinds(&format!("{head}[[when]]\n[device.microcode]\n")),
        entries("0x12345 = { register = {} }"),
        kinds(&format!("{head}[msr]")),
        kinds("policy = 1\nIA32_PAT = 'r'\n[msrs]\ndefault = 'deny'"),
        entries("read = { IA32_PAT = 'allow' }"),
        kinds(&format!("{head}[device.microcod]")),
        kinds(&format!("{head}name = 1")),
        kinds("policy = 1\ndefault = 'refuse'"),
        entries("IA32_PAT = { read = { value = '0x1ffffffffffffffff' }, write = 'deny' }"),
        kinds(&format!(
            "{head}[[when]]\ncpu = {{ vendor = 'Genuinintel', model = '9..=8', family = 0x1ff }}\n[when.msrs]\n"
        )),
        kinds(&format!(
            "{head}[[when]]\ncpu = {{ model = [] }}\n[when.msrs]\n"
        )),
        kinds(&format!("{head}name = 'a\u{202e}b'")),
        kinds("policy = 2\ndefault = 'deny'"),
        entries("IA32_EFFER = 'r'"),
        entries("'0x808' = 'r'\n'0x7ff..=0x900' = 'r'"),
        entries("'0xfffffff0..=0xffffffff' = 'r'"),
        entries("IA32_PAT = { read = 'allow' }"),
        entries("IA32_PAT = { read = 'allow', write = 'deny', device = 'microcode' }"),
        entries("IA32_PAT = { read = 'ignore', write = { value = 1 } }"),
        entries("IA32_BIOS_UPDT_TRIG = { device = 'microcode' }"),
        entries("IA32_PAT = { device = 'microcode' }"),
        entries("IA32_EFER = { read = 'allow', write = 'pin' }"),
        entries("IA32_EFER = { read = 'allow', write = 'deny', log = 'all' }"),
        kinds(&format!("{head}unknown = 'ignore'")),
        kinds(&format!("{head}accept = ['x2apci']")),
        entries("'0x10..=0x20' = 'r'\n'0x18..=0x28' = 'none'"),
        entries("IA32_EFER = 'r'\n0xc0000080 = 'w'"),
        kinds(&format!(
            "{head}include = ['final.toml']\n[msrs]\nIA32_PAT = {{ read = 'allow', write = 'deny', override = true }}"
        )),
        kinds(&format!("{head}include = ['final.toml']\nmode = 'audit'")),
        entries("IA32_PAT = { read = 'allow', write = 'deny', override = true }"),
        include("absent.toml"),
        include("circle.toml"),
        include("allow.toml"),
    ];
    let mut examples = examples.concat();
    // Consecutive mistakes with the same message count as one example.
    examples.dedup_by_key(|kind| kind.to_string());
    insta::assert_snapshot!(messages(
        include_str!("../src/mistake.rs"),
        "MistakeKind",
        &examples,
        MistakeKind::help
    ));
}

#[test]
fn messages_of_selector_errors_are_as_recorded() {
    let texts = [
        "IA32_EFFER",
        "QZXWVKJ",
        "@mtr",
        "MSR_LASTBRANCH_TOS",
        "0x1ffffffff",
        "16",
        "3221225602",
        "0b11",
        "IA32_MTRR_*",
        "IA32_LSTAR, IA32_STAR",
        "0x10..0x20",
        "0x10..",
        "0x20..=0x10",
    ];
    insta::assert_snapshot!(messages(
        include_str!("../src/selector.rs"),
        "SelectorError",
        &texts.map(|text| parse_msrs(text).unwrap_err()),
        |error: &SelectorError| Some(error.help())
    ));
}

#[test]
fn messages_of_import_errors_are_as_recorded() {
    let error_of = |bytes: &[u8], format| import(bytes, format).unwrap_err();
    let many: String = (0..=msrgate_policy::MAX_ENTRIES)
        .map(|number| format!("{:#x} 0x0\n", 0x1000 + 2 * number))
        .collect();
    let examples = [
        error_of(b"", None),
        error_of(b"{", None),
        error_of(br#"{"schema":2,"default":"deny","ranges":[]}"#, None),
        error_of(b"\0", None),
        error_of(b"", Some(Format::Program)),
        error_of(br#"{"schema":1,"default":"deny","ranges":[]}"#, None),
        error_of(many.as_bytes(), Some(Format::MsrSafe)),
        error_of(b"0x10 0x0\n", None),
        error_of(br#"{"vcpu_features":[]}"#, None),
    ];
    insta::assert_snapshot!(messages(
        include_str!("../src/import.rs"),
        "ImportError",
        &examples,
        |_: &ImportError| None
    ));
}

#[test]
fn messages_of_learn_errors_are_as_recorded() {
    let error_of = |text: &str| {
        let policy = Source::new("guest.toml", text);
        learn(&policy, &mut NoIncludes, &[], &Notes::default()).unwrap_err()
    };
    // Seventeen MSRs, of which no two fit one range of a filter.
    let scattered: String = (1..=17)
        .map(|number| format!("{:#x} = 'r'\n", number * 0x10_0000))
        .collect();
    let examples = [
        error_of("policy = 1\ndefault = 'deny'\n[msrs]\n0x10 = 'x'\n"),
        error_of(&format!(
            "policy = 1\ndefault = 'deny'\n[msrs]\n{scattered}"
        )),
    ];
    insta::assert_snapshot!(messages(
        include_str!("../src/learn.rs"),
        "LearnError",
        &examples,
        |_: &LearnError| None
    ));
}

#[test]
fn messages_of_cpu_errors_are_as_recorded() {
    let texts = [
        "Genuine Intel\u{1b}",
        "Intel:6:0x6a",
        "GenuineIntel:6:0x100",
        "GenuineIntel:6:x",
    ];
    let errors = texts.map(|text| parse_cpu(text).unwrap_err().to_string());
    insta::assert_snapshot!(errors.join("\n"));
}

/// Every error enum of the libraries is covered here, or in the test of messages of `msrgate-kvm`.
#[test]
fn messages_of_every_error_enum_are_tested() {
    fn enums(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                enums(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let names = text
                .lines()
                .filter_map(|line| line.strip_prefix("pub enum ")?.split(' ').next());
            found.extend(
                names
                    .filter(|name| name.ends_with("Error"))
                    .map(str::to_owned),
            );
        }
    }
    let held = [
        include_str!("messages.rs"),
        include_str!("../../kvm/tests/messages.rs"),
        include_str!("../../program/tests/messages.rs"),
        include_str!("../../program/tests/builder.rs"),
    ]
    .concat();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for one in ["filter", "program", "policy", "kvm"] {
        enums(&crates.join(one).join("src"), &mut found);
    }
    assert!(found.len() > 10, "{found:?}");
    found.retain(|name| !held.contains(&format!("\"{name}\"")));
    assert_eq!(found, [""; 0]);
}

/// Each error of the ioctl that sets a filter has a message, with the kernel's error number.
#[test]
fn messages_of_set_errors_are_as_recorded() {
    let bitmaps = [BitmapError::Empty, BitmapError::TooLong(0x3001)];
    let filters = [
        FilterError::TooManyRanges(17),
        FilterError::DenyWithoutRanges,
    ];
    let set = |width: CallerWidth, flags: u32, range: RangeRequest| {
        let mut request = Request {
            flags,
            ..Request::default()
        };
        request.ranges[0] = range;
        let bytes = request.encode(CallerWidth::Bits64).unwrap();
        let memory = Segment {
            start: UserAddress::NULL,
            bytes: &bytes,
        };
        let revision = match width {
            CallerWidth::Bits64 => Revision::Mainline,
            CallerWidth::Bits32 => Revision::V6,
        };
        let call = SetCall::read(revision, width, &memory, UserAddress::NULL);
        call.result().unwrap_err()
    };
    let range = |flags, nmsrs, bitmap| RangeRequest {
        flags,
        nmsrs,
        base: 0,
        bitmap: UserAddress::new(bitmap),
    };
    let unused = range(0, 0, 0);
    let wide = CallerWidth::Bits64;
    let nothing: &[Segment<'_>] = &[];
    let unreadable = SetCall::read(Revision::Mainline, wide, nothing, UserAddress::NULL);
    let sets = [
        set(CallerWidth::Bits32, 0, unused),
        unreadable.result().unwrap_err(),
        set(wide, 2, unused),
        set(wide, 1, unused),
        set(wide, 0, range(4, 1, 0)),
        set(wide, 0, range(0, 1, 0)),
        set(wide, 0, range(1, 0x3001, 0)),
        set(wide, 0, range(1, 1, 0x1000)),
    ];
    let ranges: Vec<_> = sets
        .iter()
        .filter_map(|error| match error {
            SetError::Range { why, .. } => Some(*why),
            _ => None,
        })
        .collect();
    let decode = Request::decode(&[0], wide).unwrap_err();
    let mut request = Request::default();
    request.ranges[0] = range(1, 1, 1 << 32);
    let encode = request.encode(CallerWidth::Bits32).unwrap_err();
    let mask = ReasonMask::from_bits(Revision::Mainline, 8).unwrap_err();
    let source = include_str!("../../filter/src/set.rs");
    let errno = |error: &SetError| Some(error.errno().to_string());
    let of_abi = include_str!("../../filter/src/abi.rs");
    insta::assert_snapshot!(
        [
            messages(
                include_str!("../../filter/src/bitmap.rs"),
                "BitmapError",
                &bitmaps,
                |_| None
            ),
            messages(
                include_str!("../../filter/src/filter.rs"),
                "FilterError",
                &filters,
                |_| None
            ),
            messages(source, "SetError", &sets, errno),
            messages(source, "RangeError", &ranges, |_| None),
            messages(of_abi, "DecodeError", &[decode], |_| None),
            messages(of_abi, "EncodeError", &[encode], |_| None),
            format!("{mask}\n"),
        ]
        .concat()
    );
}

/// Returns mistakes in values, with hostile text in each field.
fn values_with_hostile_text() -> Vec<MistakeKind> {
    let text = || HOSTILE.to_owned();
    vec![
        MistakeKind::Syntax {
            why: text(),
            help: text(),
        },
        MistakeKind::Hidden {
            character: text(),
            help: text(),
        },
        MistakeKind::DuplicateKey {
            key: text(),
            help: "",
            line: 1,
            first: None,
        },
        MistakeKind::UnknownKey {
            key: text(),
            help: text(),
        },
        MistakeKind::Misplaced {
            key: text(),
            place: "",
            help: text(),
        },
        MistakeKind::UnknownDevice {
            name: text(),
            help: text(),
        },
        MistakeKind::WrongType {
            key: text(),
            found: "",
            wanted: "",
            help: text(),
        },
        MistakeKind::UnknownWord {
            word: text(),
            key: text(),
            help: text(),
        },
        MistakeKind::BadNumber {
            text: text(),
            key: text(),
            bits: 1,
            help: text(),
        },
        MistakeKind::BadRange {
            text: text(),
            key: text(),
            help: text(),
        },
        MistakeKind::NoProcessor {
            number: 1,
            key: "",
            help: text(),
        },
        MistakeKind::NoVendor {
            name: text(),
            help: text(),
        },
        MistakeKind::UnknownVersion(text()),
    ]
}

/// Returns mistakes in entries and includes, with hostile text in each field.
fn entries_with_hostile_text() -> Vec<MistakeKind> {
    let text = || HOSTILE.to_owned();
    vec![
        MistakeKind::NamesX2apic {
            text: text(),
            help: text(),
        },
        MistakeKind::NamesTheLastMsr(text()),
        MistakeKind::MissingDirection {
            key: text(),
            access: Access::Read,
        },
        MistakeKind::SaidTwice {
            key: text(),
            one: text(),
            other: text(),
        },
        MistakeKind::DeviceNotSetUp {
            key: text(),
            device: text(),
        },
        MistakeKind::DeviceElsewhere {
            key: text(),
            device: text(),
            help: "",
        },
        MistakeKind::NotForwardable {
            word: "",
            msr: text(),
        },
        MistakeKind::NotLoggable {
            access: Access::Read,
            msr: text(),
        },
        MistakeKind::UnknownAccepted {
            name: text(),
            help: text(),
        },
        MistakeKind::Conflict {
            first: text(),
            second: text(),
            how: text(),
            accesses: Accesses::Both,
            help: text(),
        },
        MistakeKind::Loosened {
            key: text(),
            fixed: text(),
            index: MsrIndex::MIN,
            access: Access::Read,
            decides: Some(text()),
            help: text(),
        },
        MistakeKind::LiftedByAudit {
            fixed: text(),
            file: text(),
        },
        MistakeKind::OverridesNothing(text()),
        MistakeKind::Unreadable {
            path: text(),
            why: text(),
            help: Some(text()),
        },
        MistakeKind::Disagrees {
            key: "",
            file: text(),
        },
        MistakeKind::Cycle {
            path: text(),
            way: text(),
        },
    ]
}

/// Hostile text in any field is escaped in messages. The errors are public, so any program may put
/// any text into them.
#[test]
fn messages_of_mistakes_escape_hostile_text() {
    let kinds = [values_with_hostile_text(), entries_with_hostile_text()].concat();
    let texts = messages_with_text(include_str!("../src/mistake.rs"), "MistakeKind", &kinds);
    let helps = kinds.iter().filter_map(MistakeKind::help);
    for text in texts.into_iter().chain(helps) {
        assert!(is_seen(&text.replace('\t', " ")), "{text:?}");
    }
}

#[test]
fn messages_of_other_errors_escape_hostile_text() {
    let text = || HOSTILE.to_owned();
    let selectors = [
        SelectorError::UnknownName {
            name: text(),
            near: Vec::new(),
        },
        SelectorError::UnknownGroup(text()),
        SelectorError::AmbiguousName {
            name: text(),
            candidates: vec![text()],
        },
        SelectorError::Wildcard(text()),
        SelectorError::List(text()),
        SelectorError::BadIndex {
            text: text(),
            why: "",
            instead: vec![text()],
        },
        SelectorError::OpenRange {
            text: text(),
            instead: vec![text()],
        },
        SelectorError::BackwardRange {
            text: text(),
            instead: text(),
        },
    ];
    let imports = [
        ImportError::Json(text()),
        ImportError::Value {
            place: text(),
            why: text(),
        },
        ImportError::Bytes(text()),
    ];
    let of_selectors = include_str!("../src/selector.rs");
    let of_imports = include_str!("../src/import.rs");
    let mut texts = messages_with_text(of_selectors, "SelectorError", &selectors);
    texts.extend(selectors.iter().map(SelectorError::help));
    texts.extend(messages_with_text(of_imports, "ImportError", &imports));
    texts.push(IncludeError::new(HOSTILE).to_string());
    for processor in [
        HOSTILE,
        &format!("{HOSTILE}:6:1"),
        &format!("GenuineIntel:{HOSTILE}:1"),
    ] {
        texts.push(parse_cpu(processor).unwrap_err().to_string());
    }
    let log = format!("kvm: ignored rdmsr: 0x1c9 {HOSTILE}\n{HOSTILE}\n");
    let imported = import(log.as_bytes(), Some(Format::MsrSafe)).unwrap();
    texts.extend(imported.losses.iter().map(ToString::to_string));
    for text in texts {
        assert!(is_seen(&text) && !text.contains('\n'), "{text:?}");
    }
}
