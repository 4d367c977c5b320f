mod dumps;
mod ioctl;
mod logs;
mod reports;

use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision, Verdict,
};
use proptest::prelude::*;

use super::*;
use crate::source::Source;
use crate::{Compiled, NoIncludes, compile, parse};

/// Returns the policy's text, and the remarks, one a line.
fn shown(file: &str) -> String {
    shown_bytes(file.as_bytes())
}

fn shown_bytes(bytes: &[u8]) -> String {
    let imported = import(bytes, None).unwrap();
    let text = print(&imported, "FILE");
    parse(&Source::new("printed", &text), &mut NoIncludes)
        .unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"));
    let losses: Vec<_> = imported.losses.iter().map(ToString::to_string).collect();
    format!("{text}---\n{}", losses.join("\n"))
}

#[test]
fn import_of_kernel_log_denies_msrs_that_kvm_refused() {
    insta::assert_snapshot!(shown(
        "[    0.000000] Linux version 6.1.0\n\
        [  289.713857] kvm: kvm [3657]: ignored rdmsr: 0x1ad data 0x0\n\
        Nov 22 20:19:29 host kernel: kvm [21715]: vcpu1 unhandled rdmsr: 0x611\n\
        [592427.561224] kvm [21715]: vcpu0 unhandled rdmsr: 0x606\n\
        [592427.561225] kvm [21715]: vcpu0 unhandled rdmsr: 0x611\n\
        Nov 22 20:19:29 host kernel: kvm: 6176: cpu0 unhandled rdmsr: 0xc0010001\n\
        kvm: 23090: cpu0 unhandled wrmsr: 0x391 data 2000000f\n\
        [12.5] kvm_intel: kvm [18663]: vcpu0, guest rIP: 0x407de7 Unhandled WRMSR(0x1d9) = 0x1\n\
        [12.5] kvm_intel: kvm [18663]: vcpu0, guest rIP: 0x407de7 Unhandled RDMSR(0x1d9)\n\
        [12.6] kvm_get_msr_common: vcpu0, guest rIP: 0xfff81 unhandled rdmsr: 0x60d\r\n\
        [13.0] kvm: vcpu0 disabled perfctr wrmsr: 0x186 data 0x130079\n\
        [13.1] kvm [1234]: ignored wrmsr: 0x1ad data 0x1\n\
        [13.2] kvm [1234]: ignored wrmsr: 0x1ad data 0x1\n\
        [13.3] kvm [1234]: ignored rdmsr: 0x606 data 0x0\n\
        [14.0] kvm: vcpu0 unimplemented HWCR wrmsr: 0x8\n\
        [14.1] kvm [1234]: vcpu0 unhandled rdmsr: 0x80f\n\
        [15.0] usb 1-2: new device, wrmsr: 0x10\n"
    ));
}

#[test]
fn import_of_msr_safe_allowlist_gives_masks_to_forwardable_writes() {
    insta::assert_snapshot!(shown(
        "# MSR      # Write Mask           # Comment\n\
        0x00000010 0x0000000000000000 # \"SMSR_TIME_STAMP_COUNTER\"\n\
        0x0000010A 0x0000000000000000\n\
        0x186 0xffffffffffffffff # \"IA32_PERFEVTSEL0\"\n\
        0x187 0xffffffffffffffff # \"MSR_PERFEVTSEL1\"\n\
        \n\
        0x610 0x00ffffff00ffffff # \"MSR_PKG_POWER_LIMIT\"\n\
        0x12345 0x0 # of our own\n\
        0xc0000082 0x0000ffffffffffff # \"MSR_LSTAR\"\n\
        0x620\n\
        0x186 0x0\n"
    ));
}

#[test]
fn import_of_firecracker_template_names_registers_it_sets() {
    insta::assert_snapshot!(shown(
        r#"{
  "cpuid_modifiers": [{ "leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [] }],
  "msr_modifiers": [
    { "addr": "0x10a", "bitmap": "0b00000000000000000000000000000000000xxx0x0000x0x0xxx0000xxxxxxxxx" },
    { "addr": "0x8b", "bitmap": "0b1_01" }
  ]
}"#
    ));
}

/// A value that a guest cannot change is imported. A value of the time-stamp counter is not: the
/// counter would stand still.
#[test]
fn import_of_fingerprint_gives_values_of_read_only_registers() {
    insta::assert_snapshot!(shown(
        r#"{
  "firecracker_version": "1.13.0",
  "guest_cpu_config": {
    "kvm_capabilities": [],
    "cpuid_modifiers": [],
    "msr_modifiers": [
      { "addr": "0x10", "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000001" },
      { "addr": "0x10a", "bitmap": "0b0000000000000000000000000000000000001100000010100000110001001100" }
    ]
  }
}"#
    ));
}

#[test]
fn import_of_firecracker_list_allows_reads() {
    insta::assert_snapshot!(shown(
        "MSR_ADDR,VALUE\n0x10,0x5\n0x174,0x10\n0x175,0x0\r\n0x176,0x0\n0x802,0x0\n\
        0x400000000,0x0\n0xc0000080,0xd01\n0xc0000081,0x0\n0xc0000082,0x0\n0xc0000083,0x0\n\
        0xc0000084,0x0\n0x10,0x5\n0x11\n"
    ));
}

#[test]
fn import_of_program_keeps_settings_and_answers() {
    let policy = r#"
policy = 1
name = "whole"
mode = "audit"
default = "allow"
unknown = "ignore"
log = "first"
accept = ["state-not-migrated"]
[msrs]
IA32_LSTAR = { read = "allow", write = "pin", log = "all" }
IA32_PAT = { read = { handler = "a\"b" }, write = "kill" }
IA32_BIOS_UPDT_TRIG = { device = "microcode" }
[device.microcode]
revision = 7
update = "ignore"
[[when]]
cpu = { vendor = "GenuineIntel" }
[when.msrs]
IA32_XSS = "none"
"#;
    let policy = parse(&Source::new("whole.toml", policy), &mut NoIncludes).unwrap();
    let program = compile(policy).unwrap().into_program();
    insta::assert_snapshot!(shown_bytes(&program.encode()));
}

/// An entry names a group only if all registers of the group have the same content, and the number
/// of entries does not grow. A group within a wider range stays part of that range.
#[test]
fn import_names_group_only_if_complete() {
    let keys = |entries: &str| {
        let text = format!("policy = 1\ndefault = 'deny'\n[msrs]\n{entries}");
        let policy = parse(&Source::new("groups.toml", &text), &mut NoIncludes).unwrap();
        let program = compile(policy).unwrap().into_program();
        let imported = import(&program.encode(), None).unwrap();
        let text = print(&imported, "FILE");
        let again = parse(&Source::new("again.toml", &text), &mut NoIncludes).unwrap();
        let keys = again
            .policy()
            .entries()
            .iter()
            .map(|entry| entry.key().to_owned());
        keys.collect::<Vec<_>>()
    };
    assert_eq!(keys("'@syscall' = 'rw'"), ["@syscall"]);
    assert_eq!(
        keys("'@syscall' = 'rw'\nIA32_EFER = 'rw'"),
        ["@syscall", "IA32_EFER"]
    );
    assert_eq!(
        keys("'@syscall' = 'rw'\n'@segment' = 'r'"),
        ["@syscall", "@segment"]
    );
    assert_eq!(
        keys("'@syscall' = 'rw'\nIA32_LSTAR = 'r'"),
        [
            "IA32_SYSENTER_CS..=IA32_SYSENTER_EIP",
            "IA32_STAR",
            "IA32_LSTAR",
            "IA32_CSTAR..=IA32_FMASK"
        ]
    );
    assert_eq!(keys("'0x100..=0x7ff' = 'rw'"), ["0x100..=0x7ff"]);
}

#[test]
fn import_of_compiled_filter_gives_names_and_ranges() {
    insta::assert_snapshot!(shown(
        r#"{"schema":1,"default":"deny","ranges":[
            {"access":"r","base":"0x174","count":3,"bitmap":"07"},
            {"access":"rw","base":"0x12340","count":10,"bitmap":"0302000000000000"},
            {"access":"w","base":"0xc0000080","count":1,"bitmap":"01"},
            {"access":"r","base":"0x7f0","count":288,"bitmap":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"},
            {"access":"r","base":"0xfffffff0","count":16,"bitmap":"ffff"}
        ],"reasons":["filter","unknown"]}"#
    ));
}

#[test]
fn import_error_names_line_or_key_of_invalid_value() {
    let error = |file: &str| import(file.as_bytes(), None).unwrap_err().to_string();
    let compiled = |ranges: &str| {
        error(&format!(
            r#"{{"schema":1,"default":"deny","ranges":[{ranges}]}}"#
        ))
    };
    let range = |access: &str, base: &str, count: u32, bitmap: &str| {
        compiled(&format!(
            r#"{{"access":"{access}","base":"{base}","count":{count},"bitmap":"{bitmap}"}}"#
        ))
    };
    let range_c = "/* Made by msrgate compile --format c. */\n\
        #define MSRGATE_EXIT_REASONS 0x4\n\
        static unsigned char msrgate_bitmap_0[8] = {\n\t0x01, 0x00,\n};\n\
        \t*filter = (struct kvm_msr_filter){ .flags = 0x1 };\n\
        \tfilter->ranges[0].flags = 1;\n\
        \tfilter->ranges[0].nmsrs = 1;\n\
        \tfilter->ranges[0].base = 0x10;\n\
        #endif\n";
    assert!(import(range_c.as_bytes(), None).is_ok());
    let emitted = |old: &str, new: &str| error(&range_c.replace(old, new));
    let errors = [
        error(""),
        error("hello"),
        error("{}"),
        error("{"),
        error(r#"{"msr_modifiers":[{"addr":"0x10a"}]}"#),
        error(r#"{"msr_modifiers":[{"addr":"0x100000000","bitmap":"0b1"}]}"#),
        error(r#"{"msr_modifiers":[{"addr":"0x1","bitmap":"0b12"}]}"#),
        error(&format!(
            r#"{{"msr_modifiers":[{{"addr":"0x1","bitmap":"0b{}"}}]}}"#,
            "x".repeat(65)
        )),
        error(r#"{"msr_modifiers":[{"addr":"0x1","bitmap":"0b1"},{"addr":"1","bitmap":"0b1"}]}"#),
        error(r#"{"schema":2,"default":"deny","ranges":[]}"#),
        error(r#"{"schema":1,"default":"none","ranges":[]}"#),
        compiled(""),
        range("x", "0x0", 1, "01"),
        range("r", "16", 1, "01"),
        range("r", "0x100000000", 1, "01"),
        range("r", "0x0", 0, ""),
        range("r", "0x0", 0x3001, ""),
        range("r", "0x0", 9, "01"),
        range("r", "0x0", 1, "010000000000000000"),
        range("r", "0x0", 1, "0"),
        range("r", "0x0", 1, "0g"),
        error("/* Made by msrgate compile --format c. */\n#endif\n"),
        error("// Made by msrgate compile --format rust.\n"),
        emitted("#endif", "#endif\nint x;"),
        emitted("--format c.", "--format c for"),
        error("/* Made by msr"),
        emitted(".flags = 1", ".flags = 4"),
        emitted("nmsrs = 1", "nmsrs = 65"),
        emitted("0x01,", "0x100,"),
        emitted("ranges[0]", "ranges[16]"),
        emitted("REASONS 0x4", "REASONS 0x8"),
        error("\0"),
        error("MSRGATE\0"),
        import(&[0; 392], None).map_or_else(|error| error.to_string(), |_| "imported".to_owned()),
        import(&[0xff, 0, 0, 0], None).unwrap_err().to_string(),
        import(b"x", Some(Format::Program)).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

/// Text from a file cannot leave the comment that it is put in.
#[test]
fn import_keeps_hostile_text_within_comments() {
    let allowlist = b"0x12345 0x0 # x\r\"]\x1b[2J\x0b 0x1 = 'rw'\n";
    let imported = import(allowlist, None).unwrap();
    let text = print(&imported, "a\n0x1 = 'rw'\nb");
    let policy = parse(&Source::new("printed", &text), &mut NoIncludes).unwrap();
    assert_eq!(policy.policy().entries().len(), 1, "{text}");
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(!text.contains(['\r', '\x1b', '\x0b']), "{text}");
}

#[test]
fn import_with_given_format_skips_detection() {
    let log = b"kvm [1]: vcpu0 unhandled rdmsr: 0x611\n";
    assert_eq!(import(log, None).unwrap().format, Format::KernelLog);
    let forced = import(log, Some(Format::MsrSafe)).unwrap();
    assert_eq!((forced.entries.len(), forced.losses.len()), (0, 1));
    assert!(matches!(
        import(log, Some(Format::Compiled)),
        Err(ImportError::Bytes(_))
    ));
}

/// Returns a filter as `compile --format json` writes it.
fn json(filter: &Filter) -> String {
    let default = match filter.default_action() {
        DefaultAction::Allow => "allow",
        DefaultAction::Deny => "deny",
    };
    let range = |range: &Range| {
        let bytes = range
            .bitmap()
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes());
        format!(
            r#"{{"access":"{}","base":"{}","count":{},"bitmap":"{}"}}"#,
            range.accesses(),
            range.base(),
            range.bitmap().count(),
            bytes.map(|byte| format!("{byte:02x}")).collect::<String>(),
        )
    };
    let ranges: Vec<_> = filter.ranges().iter().map(range).collect();
    format!(
        r#"{{"schema":1,"default":"{default}","ranges":[{}],"reasons":["filter"]}}"#,
        ranges.join(",")
    )
}

/// Writes, imports, prints, parses and packs the filter.
fn round_trip(filter: &Filter) -> Compiled {
    let imported = import(json(filter).as_bytes(), None).unwrap();
    assert_eq!(imported.format, Format::Compiled);
    let text = print(&imported, "FILE");
    let policy = parse(&Source::new("printed", &text), &mut NoIncludes).unwrap();
    compile(policy).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Returns an access that two filters decide differently. The search covers every MSR that a range
/// of either filter contains, and the MSRs next to it. Elsewhere each filter decides by its
/// default.
fn difference(one: &Filter, other: &Filter) -> Option<(MsrIndex, Access)> {
    let ranges = one.ranges().iter().chain(other.ranges());
    let edges = [0, 0x7ff, 0x800, 0x8ff, 0x900, u32::MAX - 1, u32::MAX];
    let around = |range: &Range| {
        let base = range.base().get();
        base.saturating_sub(1)..=base.saturating_add(range.bitmap().count())
    };
    let indices = ranges.flat_map(around).chain(edges);
    let decide = |filter: &Filter, (index, access)| filter.decide(index, access).verdict;
    indices
        .flat_map(|index| Access::ALL.map(|access| (MsrIndex::new(index), access)))
        .find(|&point| decide(one, point) != decide(other, point))
}

fn range_of(accesses: Accesses, base: u32, count: u32, seed: u64) -> Range {
    // The seed decides if the allowed MSRs form long runs, short runs, or stand alone.
    let stride = u32::try_from(seed >> 32).unwrap() | 1;
    let bit = |offset: u32| (seed >> (offset.wrapping_mul(stride) >> 26)) & 1 == 1;
    Range::new(
        accesses,
        MsrIndex::new(base),
        Bitmap::from_fn(count, bit).unwrap(),
    )
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let accesses = prop_oneof![
        Just(Accesses::Read),
        Just(Accesses::Write),
        Just(Accesses::Both)
    ];
    let base = prop_oneof![
        0u32..0x1400,
        0xc000_0000u32..0xc000_0400,
        0xffff_ff00u32..=u32::MAX
    ];
    let range = (accesses, base, 1u32..0x300, any::<u64>())
        .prop_map(|(accesses, base, count, seed)| range_of(accesses, base, count, seed));
    let default_action = prop_oneof![Just(DefaultAction::Allow), Just(DefaultAction::Deny)];
    (default_action, proptest::collection::vec(range, 1..=16)).prop_map(
        |(default_action, ranges)| Filter::new(Revision::Mainline, default_action, ranges).unwrap(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn import_of_random_filter_gives_policy_that_decides_as_filter_does(filter in any_filter()) {
        let compiled = round_trip(&filter);
        prop_assert_eq!(difference(&filter, compiled.on(None).filter()), None);
        // A filter that msrgate packed itself must round-trip to an equal filter, too.
        let again = round_trip(compiled.on(None).filter());
        prop_assert_eq!(difference(compiled.on(None).filter(), again.on(None).filter()), None);
        // msrgate packs no bits that decide nothing.
        prop_assert!(without_effect::remarks(compiled.on(None).filter()).is_empty());
    }

    #[test]
    fn import_of_any_bytes_gives_policy_or_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for format in Format::ALL {
            if let Ok(imported) = import(&bytes, Some(format)) {
                let text = print(&imported, "FILE");
                prop_assert!(parse(&Source::new("printed", &text), &mut NoIncludes).is_ok(), "{}", text);
            }
        }
    }
}

/// The function `difference`, with which these tests compare filters, finds a difference of one
/// bit.
#[test]
fn import_test_comparison_finds_single_bit_difference() {
    let one = |allowed| {
        let bitmap = Bitmap::from_fn(3, |offset| offset != 1 || allowed).unwrap();
        let range = Range::new(Accesses::Write, MsrIndex::new(0x10), bitmap);
        Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range]).unwrap()
    };
    assert_eq!(
        difference(&one(true), &one(false)),
        Some((MsrIndex::new(0x11), Access::Write))
    );
    let index = MsrIndex::new(0x11);
    assert_eq!(
        one(true).decide(index, Access::Write).verdict,
        Verdict::Allow
    );
}

/// A policy whose filters differ by vendor.
const BY_VENDOR: &str = "policy = 1\ndefault = 'allow'\n[msrs]\nIA32_APERF = 'none'\n\
    [[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\nIA32_TSC = 'none'\n";

fn by_vendor() -> Compiled {
    compile(parse(&Source::new("by-vendor", BY_VENDOR), &mut NoIncludes).unwrap()).unwrap()
}

#[test]
fn import_of_filter_compiled_for_processor_keeps_name_of_processor() {
    let (compiled, amd) = (by_vendor(), "AuthenticAMD:25:0x1:0");
    let cpu = crate::parse_cpu(amd).unwrap().cpu().clone();
    let variant = compiled.on(Some(&cpu));
    let emitted = |cpu| {
        use crate::emit::{c, json, rust};
        [json, c, rust].map(|emit| emit(variant, cpu).into_bytes())
    };
    for bytes in emitted(Some(&cpu)) {
        let imported = import(&bytes, None).unwrap();
        assert_eq!(imported.format, Format::Compiled);
        assert_eq!(imported.scope, Scope::CompiledFor(amd.to_owned()));
        let text = print(&imported, "FILE");
        let head = text.lines().take_while(|line| line.starts_with('#'));
        assert!(head.collect::<String>().contains(amd), "{text}");
        let read = compiled_filter(&bytes).unwrap();
        assert_eq!(read.filter, *variant.filter());
        assert_eq!(read.made_for.as_deref(), Some(amd));
    }
    for bytes in emitted(None) {
        assert_eq!(import(&bytes, None).unwrap().scope, Scope::All);
        assert_eq!(compiled_filter(&bytes).unwrap().made_for, None);
    }
    // The name in a file may be any text.
    let hostile = br#"{"schema":1,"cpu":"x\ny = 1","default":"allow","ranges":[]}"#;
    let text = print(&import(hostile, None).unwrap(), "FILE");
    assert!(!text.contains("\ny = 1"), "{text}");
}

#[test]
fn import_of_program_with_several_variants_gives_policy_of_first_variant() {
    let program = by_vendor().into_program();
    let imported = import(&program.encode(), None).unwrap();
    let first = program.variants()[0].example();
    assert_eq!(imported.scope, Scope::Like(first.clone()));
    let text = print(&imported, "FILE");
    let sentence =
        format!("every access as the program does.\n# This holds on processors such as {first}.\n");
    assert!(text.contains(&sentence), "{text}");
    assert!(
        text.contains("# On other processors the program has other rules"),
        "{text}"
    );

    let same = "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_TSC = 'r'\n";
    let same = compile(parse(&Source::new("same", same), &mut NoIncludes).unwrap()).unwrap();
    let imported = import(&same.into_program().encode(), None).unwrap();
    assert_eq!(imported.scope, Scope::All);
}
