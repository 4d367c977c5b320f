//! Tests of the language beyond allowing and denying.

use std::collections::BTreeMap;

use msrgate_filter::{Access, MsrIndex, Verdict};

use super::*;
use crate::compile::{Compiled, compile};
use crate::{
    Emulated, Log, Mask, Microcode, Mode, Outside, ResolvedPolicy, Unknown, UnknownAction, Update,
    explain,
};

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n";

/// The texts of included files, by the name that an `include` writes.
struct Files(BTreeMap<&'static str, &'static str>);

impl Includes for Files {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let text = self
            .0
            .get(path)
            .ok_or_else(|| IncludeError::new("no such file"))?;
        Ok(Source::new(path, text))
    }
}

pub(super) fn read(
    text: &str,
    files: &[(&'static str, &'static str)],
) -> Result<ResolvedPolicy, String> {
    let mut files = Files(files.iter().copied().collect());
    parse(&Source::new("policy.toml", text), &mut files).map_err(|mistakes| {
        let mut report = String::new();
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .with_links(false)
            .with_width(100)
            .render_report(&mut report, mistakes.as_ref())
            .unwrap();
        report
    })
}

pub(super) fn compiled(text: &str, files: &[(&'static str, &'static str)]) -> Compiled {
    compile(read(text, files).unwrap_or_else(|report| panic!("{report}"))).unwrap()
}

pub(super) fn actions(compiled: &Compiled, cpu: Option<&str>, index: u32) -> [Action; 2] {
    let cpu = cpu.map(|cpu| crate::parse_cpu(cpu).unwrap().cpu().clone());
    let variant = compiled.on(cpu.as_ref());
    let index = MsrIndex::new(index);
    Access::ALL.map(|access| explain(compiled.policy(), variant, index, access).action)
}

#[test]
fn parse_reads_every_spelling_of_every_action() {
    let compiled = compiled(
        r#"
policy = 1
default = "deny"
[msrs]
IA32_PLATFORM_ID    = { read = { value = "0x4000000000000" }, write = "deny" }
IA32_LSTAR          = { read = "allow", write = "pin" }
IA32_STAR           = { read = "allow", write = { mask = "0xff", outside = "keep" } }
IA32_CSTAR          = { read = "allow", write = "sticky" }
IA32_FMASK          = { read = "allow", write = { sticky = 1 } }
IA32_BIOS_UPDT_TRIG = { device = "microcode" }
MSR_SMI_COUNT       = { read = { handler = "smi" }, write = "kill" }
0x1000              = { read = { value = 7 }, write = "ignore" }
0x1001              = { read = "kill", write = { handler = "x" } }
0x1002              = { register = { reset = "0xffffffffffffffff", mask = 0xff, outside = "keep" } }
[msrs.MSR_PKG_POWER_LIMIT]
register = { reset = "0", mask = "0xffffffff" }
why      = "guests expect it to be there"
[device.microcode]
revision = "0x2b000000"
update   = "accept"
"#,
        &[],
    );
    let of = |index| actions(&compiled, None, index);
    let mask = |bits, outside| Mask { bits, outside };
    assert_eq!(of(0x17), [Action::Value(0x4_0000_0000_0000), Action::Deny]);
    assert_eq!(of(0xc000_0082), [Action::Allow, Action::Pin]);
    assert_eq!(
        of(0xc000_0081),
        [Action::Allow, Action::Mask(mask(0xff, Outside::Keep))]
    );
    assert_eq!(of(0xc000_0083), [Action::Allow, Action::Sticky(u64::MAX)]);
    assert_eq!(of(0xc000_0084), [Action::Allow, Action::Sticky(1)]);
    assert_eq!(of(0x34), [Action::Handler("smi".into()), Action::Kill]);
    assert_eq!(of(0x1000), [Action::Value(7), Action::Ignore]);
    assert_eq!(of(0x1001), [Action::Kill, Action::Handler("x".into())]);
    let register = |reset, mask| {
        [
            Action::Register(Emulated { reset, mask }),
            Action::Register(Emulated { reset, mask }),
        ]
    };
    assert_eq!(of(0x1002), register(u64::MAX, mask(0xff, Outside::Keep)));
    assert_eq!(of(0x610), register(0, mask(0xffff_ffff, Outside::Deny)));
    let settings = compiled.policy().settings();
    let microcode = Microcode {
        revision: 0x2b00_0000,
        update: Update::Accept,
    };
    assert_eq!(settings.microcode, Some(microcode));
}

#[test]
fn parse_reads_settings_and_their_defaults() {
    let silent = read(HEAD, &[]).unwrap();
    assert_eq!(
        (
            silent.policy().settings().mode,
            silent.policy().settings().log
        ),
        (Mode::Enforce, Log::Denied)
    );
    assert_eq!(silent.policy().settings().unknown, Unknown::default());
    let policy = read(
        "policy = 1\ndefault = \"allow\"\nmode = \"audit\"\nlog = \"first\"\naccept = [\"tsc-deadline-fastpath\"]\n\
         unknown = { read = \"0x10\", write = \"ignore\", log = \"none\" }\n",
        &[],
    );
    let policy = policy.unwrap();
    let settings = policy.policy().settings();
    assert_eq!((settings.mode, settings.log), (Mode::Audit, Log::First));
    assert_eq!(*settings.accept, ["tsc-deadline-fastpath".into()]);
    let unknown = Unknown {
        read: UnknownAction::Value(0x10),
        write: UnknownAction::Ignore,
        log: Some(Log::None),
    };
    assert_eq!(settings.unknown, unknown);
}

/// An entry within a group wins over the group. An entry that overlaps the group in part and
/// disagrees is an error.
#[test]
fn parse_lets_entry_win_over_group_that_contains_it() {
    let text = format!(
        "{HEAD}[msrs]\n\"@mtrr\" = \"r\"\nIA32_MTRR_PHYSBASE0 = \"rw\"\n\"0x0..=0x7ff\" = \"none\"\n"
    );
    let compiled = compiled(&text, &[]);
    assert_eq!(
        actions(&compiled, None, 0x200),
        [Action::Allow, Action::Allow]
    );
    assert_eq!(
        actions(&compiled, None, 0x2ff),
        [Action::Allow, Action::Deny]
    );
    assert_eq!(
        actions(&compiled, None, 0x300),
        [Action::Deny, Action::Deny]
    );
    let text =
        format!("{HEAD}[msrs]\n\"@mtrr\" = \"r\"\n\"0x1f0..=0x200\" = \"rw\"\n\"@nope\" = \"r\"\n");
    insta::assert_snapshot!(read(&text, &[]).unwrap_err());
}

#[test]
fn included_entry_is_replaced_only_by_override() {
    let base = (
        "base.toml",
        "policy = 1\n[msrs]\nIA32_PAT = \"r\"\nIA32_EFER = \"rw\"\n\"0x10..=0x1f\" = \"r\"\n",
    );
    let text = |entries: &str| {
        format!("policy = 1\ndefault = \"deny\"\ninclude = [\"base.toml\"]\n[msrs]\n{entries}")
    };
    let with_override = text(
        "IA32_PAT = { read = \"allow\", write = \"allow\", override = true }\n0x12 = \"rw\"\n",
    );
    let compiled = compiled(&with_override, &[base]);
    assert_eq!(
        actions(&compiled, None, 0x277),
        [Action::Allow, Action::Allow]
    );
    assert_eq!(
        actions(&compiled, None, 0x12),
        [Action::Allow, Action::Allow]
    );
    assert_eq!(
        actions(&compiled, None, 0x13),
        [Action::Allow, Action::Deny]
    );
    let without = text(
        "IA32_PAT = \"rw\"\nIA32_STAR = { read = \"deny\", write = \"allow\", override = true }\n",
    );
    insta::assert_snapshot!(read(&without, &[base]).unwrap_err());
}

#[test]
fn parse_reports_mistakes_of_includes() {
    let files = [
        (
            "a.toml",
            "policy = 1\ninclude = [\"b.toml\"]\ndefault = \"allow\"\n",
        ),
        (
            "b.toml",
            "policy = 1\ninclude = [\"a.toml\"]\nmode = \"audit\"\n[msrs]\nIA32_NOPE = \"r\"\n",
        ),
    ];
    let text = format!("{HEAD}include = [\"a.toml\", \"absent.toml\", 7]\n");
    insta::assert_snapshot!(read(&text, &files).unwrap_err());
}

#[test]
fn text_included_twice_is_read_once() {
    let files = [
        ("a.toml", "policy = 1\ninclude = [\"c.toml\"]\n"),
        ("b.toml", "policy = 1\ninclude = [\"c.toml\"]\n"),
        ("c.toml", "policy = 1\n[msrs]\nIA32_PAT = \"r\"\n"),
    ];
    let policy = read(
        &format!("{HEAD}include = [\"a.toml\", \"b.toml\"]\n"),
        &files,
    )
    .unwrap();
    assert_eq!(
        (
            policy.policy().entries().len(),
            policy.policy().sources().len()
        ),
        (1, 4)
    );
}

#[test]
fn parse_refuses_to_loosen_final_entry() {
    let base = (
        "base.toml",
        "policy = 1\n[msrs]\n\"0x600..=0x6df\" = { read = \"allow\", write = \"deny\", final = true }\n",
    );
    let text = |entries: &str| format!("{HEAD}include = [\"base.toml\"]\n[msrs]\n{entries}");
    let stricter = text("0x610 = \"none\"\n0x611 = { read = { value = 0 }, write = \"kill\" }\n");
    assert!(read(&stricter, &[base]).is_ok());
    let looser = text(
        "0x610 = \"rw\"\n\"0x600..=0x6df\" = { read = \"deny\", write = \"ignore\", override = true }\n",
    );
    insta::assert_snapshot!(read(&looser, &[base]).unwrap_err());
}

#[test]
fn when_section_holds_only_on_its_processors() {
    let text = r#"
policy = 1
default = "deny"
[msrs]
IA32_PAT = "r"
[[when]]
cpu = { vendor = "GenuineIntel", family = 6, model = [0x6a, "0x6c..=0x6f"] }
[when.msrs]
MSR_PPERF = "r"
IA32_PAT = { read = "allow", write = "allow", override = true }
[[when]]
cpu = { vendor = ["AuthenticAMD", "HygonGenuine"] }
[when.msrs]
MSR_K7_HWCR = "rw"
"#;
    let compiled = compiled(text, &[]);
    assert_eq!(compiled.variants().len(), 3);
    let (allow, deny) = (Action::Allow, Action::Deny);
    let read_only = [allow.clone(), deny.clone()];
    let both = [allow.clone(), allow];
    let neither = [deny.clone(), deny];
    assert_eq!(actions(&compiled, None, 0x277), read_only);
    assert_eq!(actions(&compiled, Some("GenuineIntel:6:0x6d"), 0x277), both);
    assert_eq!(
        actions(&compiled, Some("GenuineIntel:6:0x6d"), 0x64e),
        read_only
    );
    assert_eq!(
        actions(&compiled, Some("GenuineIntel:6:0x70"), 0x64e),
        neither
    );
    assert_eq!(
        actions(&compiled, Some("HygonGenuine:24:1"), 0xc001_0015),
        both
    );
    assert_eq!(
        actions(&compiled, Some("GenuineIntel:6:0x6d"), 0xc001_0015),
        neither
    );
}

/// An override in a `[[when]]` replaces the included entry in a `[[when]]` for the same processors.
#[test]
fn override_in_when_section_replaces_entry_for_same_processors() {
    let when = |vendor: &str, says: &str| {
        format!("[[when]]\ncpu = {{ vendor = \"{vendor}\" }}\n[when.msrs]\n0x610 = {{ {says} }}\n")
    };
    let denied = "read = \"deny\", write = \"deny\"";
    let over = "read = \"allow\", write = \"deny\", override = true";
    let text = |vendor| {
        let include = "policy = 1\ndefault = \"deny\"\ninclude = [\"base.toml\"]\n";
        format!("{include}{}", when(vendor, over))
    };
    let base = format!("policy = 1\n{}", when("GenuineIntel", denied));
    let files = |base: &str| [("base.toml", &*base.to_owned().leak())];

    let compiled = compiled(&text("GenuineIntel"), &files(&base));
    assert_eq!(
        actions(&compiled, Some("GenuineIntel:6:1"), 0x610),
        [Action::Allow, Action::Deny]
    );
    // No included `[[when]]` is for these processors, so the override has nothing to replace.
    let other = read(&text("AuthenticAMD"), &files(&base)).unwrap_err();
    assert!(other.contains("overrides nothing"), "{other}");
    let fixed = base.replace(denied, &format!("{denied}, final = true"));
    let fixed = read(&text("GenuineIntel"), &files(&fixed)).unwrap_err();
    assert!(fixed.contains("looser for reads"), "{fixed}");
}

#[test]
fn parse_refuses_overlapping_whens_that_disagree() {
    let text = |model: &str| {
        format!(
            "{HEAD}[[when]]\ncpu = {{ vendor = \"GenuineIntel\", model = \"0x60..=0x6f\" }}\n[when.msrs]\nIA32_PAT = \"r\"\n\
         [[when]]\ncpu = {{ model = {model} }}\n[when.msrs]\nIA32_PAT = \"rw\"\n"
        )
    };
    assert!(read(&text("0x70"), &[]).is_ok());
    insta::assert_snapshot!(read(&text("0x6f"), &[]).unwrap_err());
}

/// If one part of a `cpu` is not understood, the mistakes of its other parts and of other tables
/// are still reported. The entries of a `[[when]]` with such a `cpu` never conflict with other
/// entries.
#[test]
fn parse_reports_all_mistakes_of_whens() {
    insta::assert_snapshot!(
        read(
            r#"policy = 1
default = "allow"
unknown = { read = "x", write = "y", log = "z" }
[[when]]
cpu = { vendor = ["Intel", 7], family = [6, "0x10..=0x8"], model = "x", stepping = -1, foo = 1 }
[when.msrs]
IA32_PAT = "r"
[[when]]
[when.msrs]
IA32_PAT = "w"
[[when]]
cpu = { vendor = "AuthenticAMD" }
[when.msrs]
IA32_PAT = "none"
"#,
            &[]
        )
        .unwrap_err()
    );
}

/// Models are refused if they are too large for all families that the `cpu` names.
#[test]
fn parse_refuses_model_impossible_for_all_families() {
    let read = |cpu: &str| {
        let text = format!(
            "policy = 1\ndefault = 'allow'\n[[when]]\ncpu = {{ {cpu} }}\n[when.msrs]\nIA32_LSTAR = 'none'\n"
        );
        read(&text, &[])
    };
    for cpu in [
        "family = 5, model = 0x6a",
        "model = [0x6a, '0x10..=0x11'], family = [4, 5]",
    ] {
        let mistakes = read(cpu).unwrap_err();
        assert!(
            mistakes.contains("no processor has the model"),
            "{mistakes}"
        );
    }
    for cpu in [
        "family = [5, 6], model = 0x6a",
        "family = 5, model = [0xf, 0x6a]",
        "model = 0x6a",
    ] {
        read(cpu).unwrap();
    }
}

/// An empty list is refused, because its `[[when]]` would hold on no processor: `default = "allow"`
/// would then decide every access.
#[test]
fn parse_refuses_empty_list_in_cpu() {
    for key in ["vendor", "family", "model", "stepping"] {
        let text = format!(
            "policy = 1\ndefault = 'allow'\n[[when]]\ncpu = {{ {key} = [] }}\n[when.msrs]\nIA32_LSTAR = 'none'\n"
        );
        let mistakes = read(&text, &[]).unwrap_err();
        assert!(
            mistakes.contains(&format!("`{key}` is an empty list")),
            "{mistakes}"
        );
    }
}

/// A text with many mistakes about actions and settings gets a message for each.
#[test]
fn parse_reports_mistakes_of_actions_and_settings() {
    insta::assert_snapshot!(
        read(
            r#"policy = 1
default = "deny"
mode = "permissive"
log = 3
unknown = "ignore"
accept = ["tsc-deadline-fast-path", 7]
include = "base.toml"

[msrs]
IA32_LSTAR = { read = "pin", write = { value = 1 } }
IA32_STAR = { read = "allow", write = { mask = "0x1ffffffffffffffff" } }
IA32_CSTAR = { read = "allow", write = { outside = "keep" } }
IA32_FMASK = { read = "allow", write = { mask = 1, sticky = 2 } }
IA32_EFER = { read = "allow", write = "pin" }
IA32_PAT = { device = "microcode", read = "allow" }
0x1000 = { register = { reset = 1 } }
0x1001 = { read = { value = -1 }, write = "deny", log = "all" }
0x1002 = { read = "allow", write = "deny", log = "all" }

[device.microcode]
revision = "0x1ffffffff"

[device.rtc]

[[when]]
cpu = { vendor = 7, cores = 2 }

[[when]]
cpu = { family = "6..=5" }
[when.msrs]
IA32_TSC_AUX = "r"
"#,
            &[],
        )
        .unwrap_err()
    );
}

/// The last MSR is one that only `default` decides. The filter denies what the gate answers by ending the guest.
#[test]
fn default_kill_ends_guest_at_each_access_that_no_entry_decides() {
    let compiled = compiled(
        "policy = 1\ndefault = 'kill'\n[msrs]\n0x277 = 'r'\n0x10 = { read = 'inherit', write = 'deny' }",
        &[],
    );
    for (index, wanted) in [
        (0x277, [Action::Allow, Action::Deny]),
        (0x10, [Action::Kill, Action::Deny]),
        (0x11, [Action::Kill, Action::Kill]),
        (0x808, [Action::Allow, Action::Allow]),
        (u32::MAX, [Action::Kill, Action::Kill]),
    ] {
        assert_eq!(actions(&compiled, None, index), wanted, "{index:#x}");
    }
    let variant = &compiled.variants()[0];
    for index in [0x11, u32::MAX].map(MsrIndex::new) {
        let explained = explain(compiled.policy(), variant, index, Access::Read);
        assert_eq!(explained.decision.verdict, Verdict::Deny);
        assert!(explained.needs_gate(), "{index}");
    }
    let printed = crate::print(compiled.policy());
    assert!(printed.contains("default = \"kill\""), "{printed}");
    assert_eq!(
        self::compiled(&printed, &[]).program().digest(),
        compiled.program().digest()
    );
}

#[test]
fn default_of_other_answer_is_refused() {
    for word in ["ignore", "pin", "sticky", "inherit"] {
        let text = format!("policy = 1\ndefault = '{word}'");
        let mistakes = read(&text, &[]).unwrap_err();
        let wanted = format!("`default` cannot be \"{word}\"");
        assert!(mistakes.contains(&wanted), "{mistakes}");
    }
}

#[test]
fn unknown_without_default_allow_is_refused() {
    for (default, is_refused) in [("allow", false), ("deny", true), ("kill", true)] {
        let text = format!("policy = 1\ndefault = '{default}'\nunknown = 'ignore'");
        match read(&text, &[]) {
            Ok(_) => assert!(!is_refused, "{default}"),
            Err(mistakes) => {
                let wanted = format!("no effect under `default = \"{default}\"`");
                assert!(is_refused && mistakes.contains(&wanted), "{mistakes}");
            }
        }
    }
}
