use miette::{GraphicalReportHandler, GraphicalTheme};
use msrgate_program::Action;

use super::*;
use crate::limits::{MAX_BYTES, MAX_ENTRIES};
use crate::resolve::{parse, says};

mod finals;
mod includes;
mod language;
mod newcomers;

/// Returns the report of a text's mistakes, as a user reads it.
fn report(text: &str) -> String {
    let mistakes = parse(&Source::new("policy.toml", text), &mut NoIncludes)
        .expect_err("a policy with mistakes");
    let mut report = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_links(false)
        .with_width(100)
        .render_report(&mut report, mistakes.as_ref())
        .unwrap();
    report
}

fn sound(text: &str) -> Policy {
    let resolved = parse(&Source::new("policy.toml", text), &mut NoIncludes);
    resolved.expect("a policy without mistakes").into_parts().0
}

#[test]
fn parse_keeps_order_of_entries() {
    let policy = sound(
        "policy = 1\nname = \"x\"\ndefault = \"deny\"\n[msrs]\nIA32_PAT = \"rw\"\n\
         \"0x200..=0x20f\" = \"r\"\nIA32_LSTAR = { read = \"allow\", write = \"inherit\", why = \"w\" }\n\
         [msrs.IA32_EFER]\nread = \"deny\"\nwrite = \"allow\"\n",
    );
    assert_eq!(
        (policy.name(), policy.default_action()),
        (Some("x"), &Action::Deny)
    );
    let entries: Vec<_> = policy
        .entries()
        .iter()
        .map(|entry| {
            let msrs = entry.msrs().to_string();
            format!(
                "{}, line {}: {msrs}: {}",
                entry.key(),
                entry.place().line,
                says(entry)
            )
        })
        .collect();
    assert_eq!(
        entries,
        [
            r#"IA32_PAT, line 5: 0x277: read = "allow", write = "allow""#,
            r#"0x200..=0x20f, line 6: 0x200..=0x20f: read = "allow", write = "deny""#,
            r#"IA32_LSTAR, line 7: 0xc0000082: read = "allow", write = "inherit""#,
            r#"IA32_EFER, line 8: 0xc0000080: read = "deny", write = "allow""#,
        ]
    );
    assert_eq!(policy.entries()[2].why(), Some("w"));
}

#[test]
fn parse_accepts_policy_without_entries() {
    assert!(
        sound("policy = 1\ndefault = \"allow\"")
            .entries()
            .is_empty()
    );
    assert!(
        sound("default = \"allow\"\npolicy = 1\nmsrs = {}")
            .entries()
            .is_empty()
    );
}

/// A report has all mistakes of a file at once.
#[test]
fn parse_reports_every_mistake_of_a_file() {
    insta::assert_snapshot!(report(
        "policy = 1\nname = 7\ndefalt = \"deny\"\ndefault = \"refuse\"\n\n[msrs]\n\
         IA32_EFFER = \"rw\"\nIA32_PAT = \"rx\"\n16 = \"r\"\n\"0x20..0x30\" = \"r\"\n\
         \"0x30..=0x20\" = \"r\"\n0x1ffffffff = \"r\"\n\"0x808\" = \"r\"\n\"0x700..=0xfff\" = \"r\"\n\
         IA32_LSTAR = { read = \"allow\" }\nIA32_STAR = { read = \"allow\", write = \"maybe\", because = \"x\" }\n\
         IA32_CSTAR = 3\nIA32_FMASK = { read = true, write = [\"deny\"] }\n"
    ));
}

#[test]
fn parse_names_missing_key_with_advice() {
    insta::assert_snapshot!(report("[msrs]\n"));
}

#[test]
fn parse_reports_every_place_that_is_not_toml() {
    insta::assert_snapshot!(report(
        "policy = 1\ndefault = deny\n[msrs\nIA32_PAT = \"rw\nIA32_PAT = \"rw\"\nIA32_PAT = \"r\"\n"
    ));
}

/// A duplicate key is reported with its first occurrence in the same table; keys of the same name
/// in other tables do not count.
#[test]
fn parse_reports_duplicate_key_with_first_occurrence() {
    insta::assert_snapshot!(report(
        "policy = 1\ndefault = \"deny\"\ndefault = \"deny\"\n[msrs]\n0x10 = \"r\"\n\"0x11\" = \"r\"\n\
         '0x11' = \"w\"\n0x12 = { read = \"deny\", read = \"deny\", write = \"deny\" }\n\
         [[when]]\ncpu = {}\n[when.msrs]\n0x10 = \"r\"\n[[when]]\ncpu = {}\n[when.msrs]\n\
         0x10 = \"r\"\n0x10 = \"r\"\n[msrs.0x10]\nread = \"deny\"\nwrite = \"deny\"\n"
    ));
}

#[test]
fn parse_reports_conflicting_entries_together() {
    insta::assert_snapshot!(report(
        "policy = 1\ndefault = \"deny\"\n[msrs]\n\"0x10..=0x20\" = \"r\"\n\"0x18..=0x28\" = \"none\"\n\
         IA32_EFER = \"rw\"\nMSR_EFER = { read = \"inherit\", write = \"deny\" }\n"
    ));
}

/// The third entry contradicts the second one, which has the same MSRs. The conflict is found,
/// although the first entry ends at the same MSR, too.
#[test]
fn parse_finds_conflict_with_equal_entry_behind_wider_one() {
    let text = "policy = 1\ndefault = \"deny\"\n[msrs]\n\
                \"0x0..=0x10\" = \"none\"\n\"0x5..=0x10\" = \"none\"\n\"0x05..=0x10\" = \"rw\"\n";
    assert!(parse(&Source::new("policy.toml", text), &mut NoIncludes).is_err());
}

#[test]
fn parse_refuses_entry_that_gives_last_msr_another_action_than_default() {
    insta::assert_snapshot!(report(
        "policy = 1\ndefault = \"deny\"\n[msrs]\n\"0xfffffff0..=0xffffffff\" = \"r\"\n"
    ));
    sound("policy = 1\ndefault = \"deny\"\n[msrs]\n\"0xfffffff0..=0xffffffff\" = \"none\"\n");
}

#[test]
fn parse_shows_fifty_mistakes_and_counts_all() {
    let entries: String = (0..60)
        .map(|number| format!("NO_{number} = \"r\"\n"))
        .collect();
    let text = format!("policy = 1\ndefault = \"deny\"\n[msrs]\n{entries}");
    let mistakes = parse(&Source::new("policy.toml", &text), &mut NoIncludes).unwrap_err();
    assert_eq!((mistakes.total(), mistakes.mistakes().len()), (60, 50));
    assert_eq!(mistakes.to_string(), "policy.toml has 60 mistakes");
}

/// A text that is too long, or has too many entries, is refused with a message that states the
/// limit.
#[test]
fn parse_error_states_exceeded_limit() {
    let kind = |text: &str| {
        let mistakes = parse(&Source::new("policy.toml", text), &mut NoIncludes).unwrap_err();
        mistakes.mistakes()[0].kind().clone()
    };
    let (bytes, limit) = (MAX_BYTES + 1, MAX_BYTES);
    let head = "policy = 1\n";
    let long = format!("{head}{}", " ".repeat(bytes - head.len()));
    assert_eq!(kind(&long), MistakeKind::TooLong { bytes, limit });
    let (line, bytes, limit) = (2, MAX_LINE + 2, MAX_LINE);
    let long = format!("{head}# {}", "x".repeat(MAX_LINE));
    assert_eq!(kind(&long), MistakeKind::LongLine { line, bytes, limit });
    let (what, found, limit) = ("entries", MAX_ENTRIES + 1, MAX_ENTRIES);
    let many: String = (0..found)
        .map(|number| format!("0x{number:x}=\"r\"\n"))
        .collect();
    let text = format!("policy = 1\ndefault = \"deny\"\n[msrs]\n{many}");
    assert_eq!(kind(&text), MistakeKind::TooMany { what, found, limit });
}

/// A few lines can name many processors, so the processors are counted before they are enumerated.
#[test]
fn parse_limits_number_of_variants() {
    let numbers = |count: u32| (0..count).map(|number| format!("{},\n", 2 * number));
    let list = |count| numbers(count).collect::<String>();
    let text = |families| {
        let [families, models, steppings] = [families, 128, 8].map(list);
        format!(
            "policy = 1\ndefault = 'deny'\n[[when]]\ncpu.family = [{families}]\n\
             cpu.model = [{models}]\ncpu.stepping = [{steppings}]\n[when.msrs]\n0x10 = 'r'\n"
        )
    };
    sound(&text(120));
    let mistakes = parse(&Source::new("policy.toml", &text(130)), &mut NoIncludes);
    // The number of kinds of processors is the product of three numbers: 260 families, 256 models
    // and 16 steppings. Each of the 130 named families counts twice, because the next higher family
    // is another kind. No vendor is named.
    let (what, limit) = (
        "kinds of processors that its `[[when]]`s tell apart",
        1 << 20,
    );
    let found = 260 * 256 * 16;
    let kind = mistakes.unwrap_err().mistakes()[0].kind().clone();
    assert_eq!(kind, MistakeKind::TooMany { what, found, limit });
}

/// A hidden character is refused everywhere: with it, a reviewer would read another policy than
/// msrgate does.
#[test]
fn parse_refuses_hidden_character_anywhere() {
    for c in [
        '\u{9b}',
        '\u{ad}',
        '\u{200b}',
        '\u{202e}',
        '\u{2028}',
        '\u{feff}',
        '\u{fe01}',
        '\u{fe0f}',
        '\u{1160}',
        '\u{2800}',
        '\u{e000}',
        '\u{fdd0}',
        '\u{13430}',
        '\u{16fe4}',
        '\u{e0041}',
    ] {
        for text in [
            format!("# a{c}b\npolicy = 1\ndefault = 'deny'\n"),
            format!("policy = 1\ndefault = 'deny'\nname = '{c}'\n"),
            format!("policy = 1\ndefault = 'deny'\n[msrs]\n\"0x10{c}\" = 'r'\n"),
            format!("policy = 1\ndefault = 'deny'\n[msrs]\n0x10 = 'r' # {c}\n"),
        ] {
            let source = Source::new("policy.toml", &text);
            let mistakes = parse(&source, &mut NoIncludes).expect_err(&text);
            let kinds = mistakes.mistakes().iter().map(Mistake::kind);
            let found: Vec<_> = kinds
                .filter(|one| matches!(one, MistakeKind::Hidden { .. }))
                .collect();
            let [MistakeKind::Hidden { character, .. }] = found[..] else {
                panic!("{text:?}: {found:?}");
            };
            assert_eq!(*character, format!("U+{:04X}", u32::from(c)));
            assert!(crate::format(&source).is_err(), "{text:?}");
        }
    }
}

#[test]
fn parse_refuses_letter_with_five_combining_marks() {
    let text = |marks| {
        format!(
            "# e{}\npolicy = 1\ndefault = 'deny'\n",
            "\u{301}".repeat(marks)
        )
    };
    sound(&text(4));
    let source = Source::new("policy.toml", &text(5));
    let mistakes = parse(&source, &mut NoIncludes).expect_err("five");
    let [mistake] = mistakes.mistakes() else {
        panic!("{mistakes:?}");
    };
    let help = "delete it, or write `\\u0301` in a string in double quotes (a letter may have at most four such marks)";
    assert_eq!(mistake.kind().help().as_deref(), Some(help));
}

#[test]
fn parse_accepts_escaped_hidden_character_and_leading_byte_order_mark() {
    let text = "\u{feff}policy = 1\ndefault = 'deny'\nname = \"a\\u202e\\U000e0041\"\n";
    assert_eq!(sound(text).name(), Some("a\u{202e}\u{e0041}"));
    let formatted = crate::format(&Source::new("policy.toml", text)).unwrap();
    assert_eq!(
        formatted,
        "policy  = 1\nname    = \"a\\u202e\\U000e0041\"\ndefault = \"deny\"\n"
    );
}

mod any_text {
    use proptest::prelude::*;

    use super::*;

    /// Generates lines that are almost a policy.
    fn line() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            Just("policy".to_owned()),
            Just("default".to_owned()),
            Just("IA32_EFER".to_owned()),
            "0x[0-9a-f]{1,9}",
            "\"0x[0-9a-f]{1,8}(\\.\\.=?0x[0-9a-f]{1,8})?\"",
            "[a-zA-Z_.\"']{0,8}",
        ];
        let value = prop_oneof![
            Just("1".to_owned()),
            Just("\"deny\"".to_owned()),
            Just("\"rw\"".to_owned()),
            Just("{ read = \"allow\", write = \"inherit\" }".to_owned()),
            "[\\[\\]{}\"'=,a-z0-9. ]{0,12}",
        ];
        prop_oneof![
            4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
            1 => Just("[msrs]".to_owned()),
            1 => "\\PC{0,20}",
        ]
    }

    proptest! {
        #[test]
        fn parse_of_any_text_gives_policy_or_error(lines in prop::collection::vec(line(), 0..20)) {
            let text = lines.join("\n");
            if let Err(mistakes) = parse(&Source::new("policy.toml", &text), &mut NoIncludes) {
                prop_assert!(mistakes.total() > 0);
                report(&text);
            }
        }
    }
}
