use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::limits::MAX_BYTES;
use crate::parse::{IncludeError, Includes, NoIncludes};
use crate::policy::Policy;
use crate::resolve::parse;

fn formatted(text: &str) -> String {
    match format(&Source::new("policy.toml", text)) {
        Ok(formatted) => formatted,
        Err(mistakes) => panic!("{mistakes:?}\n{text}"),
    }
}

const REFERENCE: &str = include_str!("../../../../docs/policy-reference.md");

/// An opener of included texts: the shipped policies, and the files that the reference shows.
struct Shipped;

impl Includes for Shipped {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let head = format!("toml,file={path}\n");
        let mut blocks = REFERENCE.split("\n```").skip(1).step_by(2);
        let text = match blocks.find_map(|block| block.strip_prefix(&*head)) {
            Some(text) => text.to_owned(),
            None => shipped(&format!("{path}.toml")),
        };
        Ok(Source::new(path, &text))
    }
}

fn shipped(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    fs::read_to_string(folder.join(file)).expect(file)
}

/// Returns the meaning of a policy, independent of the order of its entries and the spelling of
/// its keys.
fn said(text: &str) -> String {
    let resolved = match parse(&Source::new("policy.toml", text), &mut Shipped) {
        Ok(resolved) => resolved,
        Err(mistakes) => panic!("{mistakes:?}\n{text}"),
    };
    let policy = resolved.policy();
    let entries = |policy: &Policy| {
        let says = policy.entries().iter().map(|one| {
            let place = one.source() == policy.entries()[0].source();
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {place}",
                one.msrs, one.when, one.actions, one.why, one.log, one.replaces, one.firmness
            )
        });
        let mut says: Vec<_> = says.collect();
        says.sort();
        says.join("\n")
    };
    format!(
        "{:?}\n{:?}\n{}",
        policy.settings(),
        policy.whens(),
        entries(policy)
    )
}

/// Returns the comments of a text, sorted. The text must not have a `#` in a string.
fn comments(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(statement::comment);
    let mut comments: Vec<_> = lines.collect();
    comments.sort();
    comments
}

fn check(text: &str) -> String {
    let once = formatted(text);
    assert_eq!(said(&once), said(text), "{once}");
    assert_eq!(formatted(&once), once, "{text}");
    once
}

#[test]
fn format_makes_every_spelling_canonical() {
    let text = r#"
# A policy
# in two lines.

# Why it is so.
default = 'deny' # this stays beside it
policy=1
  accept = [ "tsc-deadline-fastpath", # the first
  # the second
  "state-not-migrated" ] # all


log   = "first"
name = 'it"s'
# below the settings

[msrs.IA32_EFER] # a table stays one
write = "allow"
# why it may be read
read = "allow"

[ msrs ]   # the entries
msr_k7_hwcr = { write = "allow", read = "allow" }
"0X200 ..= 0X20F" = {write = "deny", read = "allow"} # one
IA32_PLATFORM_ID = { write = "deny", read = { value = "0XFF" } } # another
# 0x10 = "rw"

# System calls.
lstar = { why = "this is a reason that is so long that with all that stands before it it does not fit", write = "inherit", read = "allow" }
cstar = "rw"
# Only this one.
star = { log = "none", final = true, read = "allow", write = { outside = "keep", mask = "0xFF" } }

IA32_PAT.read = "deny"
IA32_PAT.write = "deny"
IA32_BIOS_UPDT_TRIG = { device = "microcode" }
MSR_SMI_COUNT = { register = { mask = 0xFF, reset = 0 }, why = """
two
lines""" }

# Left over.

# The device.
[device]
microcode = { update = "accept", revision = 0x2B }

# A processor.
[[when]]
[when.msrs]
MSR_PPERF = "r"
[when.cpu]
model = [ 0x6A, "0x6C ..= 0x6F" ]
vendor = "GenuineIntel"
# Below all.

# The end.
"#;
    let once = check(text);
    assert_eq!(comments(&once), comments(text));
    insta::assert_snapshot!(once);
}

#[test]
fn format_splits_inline_tables_into_lines() {
    let text = "policy = 1\ndefault = \"deny\"\nunknown.read = \"deny\"\n# device\n\
        device.microcode = { revision = 1, update = \"deny\" }\n\
        # msrs\nmsrs = { 0x10 = \"r\", 0x11 = { read = \"allow\", write = \"allow\" } } # those\n\
        # when\nwhen = [ { cpu = { family = 6 }, msrs = { 0x12 = \"r\" } }, # first\n\
        { cpu = { family = 7 }, msrs = {} } ]\n";
    let once = check(text);
    assert_eq!(comments(&once), comments(text));
    insta::assert_snapshot!(once);
}

/// If a line of the maximum length would get longer, its comment moves to the line above, and its
/// string is split over several lines.
#[test]
fn format_keeps_lines_within_limit() {
    let fill = |line: &str| line.replace('~', &"x".repeat(crate::MAX_LINE + 1 - line.len()));
    let lines = [
        "policy=1#~",
        "default=\"deny\"",
        "name='~'",
        "accept=[\"x2apic\",#~",
        "]",
        "[msrs]#~",
        "0x10=\"r\"#~",
        "0x11={read=\"deny\",write=\"deny\",why='~'}",
        "0x12={read={handler='~'},write=\"deny\"}",
        "[msrs.0x13]#~",
        "read=\"deny\"#~",
        "write={handler='~'}",
        "why='~'",
    ];
    let text = lines.map(fill).join("\n");
    let once = check(&text);
    assert_eq!(comments(&once), comments(&text));
    assert!(once.lines().all(|line| line.len() <= crate::MAX_LINE));
}

#[test]
fn format_reports_canonical_form_beyond_limit() {
    // Each value gets a line of its own, with four blanks before it.
    let values = format!("{}\n", "\"vmload\", ".repeat(10)).repeat(1_000);
    let mut text = format!("policy = 1\ndefault = \"deny\"\naccept = [\n{values}]\n");
    let comment = format!("# {}\n", "c".repeat(4_000));
    text += &comment.repeat((MAX_BYTES - text.len()) / comment.len());
    assert!(text.len() < MAX_BYTES);
    let mistakes = format(&Source::new("policy.toml", &text)).unwrap_err();
    let message = mistakes.mistakes()[0].kind().to_string();
    let limit = format!("bytes; at most {MAX_BYTES} are allowed");
    assert!(
        message.starts_with("the canonical form would have "),
        "{message}"
    );
    assert!(message.ends_with(&limit), "{message}");
}

/// If the first entry of a paragraph becomes a table, the next entry begins the paragraph.
#[test]
fn format_keeps_paragraph_whose_first_entry_becomes_table() {
    let why = "x".repeat(110);
    let head = "policy  = 1\ndefault = \"deny\"\n\n[msrs]\n0x10 = \"r\"\n\n";
    let long = format!("0x11 = {{ read = \"allow\", write = \"deny\", why = \"{why}\" }}\n");
    let once = check(&format!("{head}{long}0x12 = \"r\"\n"));
    let table = format!("[msrs.0x11]\nread  = \"allow\"\nwrite = \"deny\"\nwhy   = \"{why}\"\n");
    assert_eq!(once, format!("{head}0x12 = \"r\"\n\n{table}"));
}

/// Two keys with the same canonical spelling stay as they are, because TOML refuses duplicate keys.
#[test]
fn format_leaves_two_keys_unchanged_whose_canonical_form_is_the_same() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\nia32_efer = \"r\"\n\
                \"IA32_EFER\" = \"r\"\n0xABC = \"r\"\n\" 0xabc\" = \"r\"\n\"0xABD\" = \"r\"\n";
    let once = check(text);
    assert!(
        once.contains("ia32_efer ") && once.contains("\" 0xabc\""),
        "{once}"
    );
    assert!(once.contains("0xabd "), "{once}");
}

#[test]
fn format_accepts_text_that_has_include_and_no_default() {
    let text = "policy = 1\ninclude = [\"nowhere.toml\"]\n\n[msrs]\n\
                0x10 = { read = \"allow\", write = \"allow\", override = true }\n\
                IA32_BIOS_UPDT_TRIG = { device = \"microcode\" }\n";
    assert!(parse(&Source::new("x", text), &mut NoIncludes).is_err());
    assert!(formatted(text).contains("include = [\"nowhere.toml\"]"));
}

#[test]
fn format_refuses_text_with_mistakes() {
    let message_of = |text: &str| {
        let mistakes = format(&Source::new("x", text)).expect_err(text);
        mistakes.to_string()
    };
    assert_eq!(
        message_of("policy = 1\n[msrs]\nIA32_EFFER = \"rw\""),
        "x has a mistake"
    );
    assert_eq!(message_of("policy = 1\n[msrs\n0x10 = 3"), "x has a mistake");
    let both = "policy = 1\n[msrs]\n\"0x10..=0x11\" = \"r\"\n\"0x11..=0x12\" = \"none\"";
    assert_eq!(message_of(both), "x has a mistake");
}

/// Shipped policies are in canonical form, so formatting does not change them. `scripts/check`
/// checks the same files with the command.
#[test]
fn format_keeps_meaning_of_shipped_policies() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let mut count = 0;
    for file in fs::read_dir(folder).expect("the policies") {
        let file = file.expect("a policy").file_name();
        let text = shipped(&file.to_string_lossy());
        assert_eq!(check(&text), text, "{}", file.display());
        count += 1;
    }
    assert!(count >= 8, "{count}");
}

/// The reference's examples keep their meaning and comments when formatted. Examples that depend on
/// other files are left out.
#[test]
fn format_keeps_meaning_of_reference_examples() {
    let mut count = 0;
    for block in REFERENCE.split("\n```").skip(1).step_by(2) {
        let Some(text) = block.strip_prefix("toml\n") else {
            continue;
        };
        let is_whole = text.lines().any(|line| line.starts_with("policy"));
        let head = if is_whole {
            ""
        } else {
            "policy  = 1\ndefault = \"deny\"\n"
        };
        let text = format!("{head}{text}");
        let once = formatted(&text);
        assert_eq!(formatted(&once), once);
        assert_eq!(comments(&once), comments(&text), "{once}");
        check(&text);
        count += 1;
    }
    assert!(count >= 12, "{count}");
}

/// Generates a random entry of `[msrs]`, written in one of four forms.
fn entry() -> impl Strategy<Value = String> {
    let one = prop_oneof![
        Just("\"allow\"".to_owned()),
        Just("'deny'".to_owned()),
        Just("\"kill\"".to_owned()),
        Just("\"inherit\"".to_owned()),
        Just("{ handler = 'x' }".to_owned()),
        Just("{ register = { mask = 0XFF, reset = '0X1' } }".to_owned()),
    ];
    let one = one.prop_map(|one| one.replace("0XFF", "0xFF"));
    let write = prop_oneof![Just("\"ignore\"".to_owned()), one.clone()];
    let why = prop_oneof![
        3 => Just(None),
        2 => "[a-z \"\\\\\n]{0,150}".prop_map(Some),
        1 => "\\PC{0,40}".prop_map(Some),
    ];
    let why = why.prop_map(|why| why.map(|why| layout::string(&why.replace('#', ""))));
    let key = (0_u32..0x200, 0_u32..3, any::<bool>()).prop_map(|(first, more, is_large)| {
        let key = match more {
            0 => format!("0x{first:x}"),
            more => format!("\"0x{first:x}..=0x{:x}\"", first + more),
        };
        if is_large {
            key.replace("0xa", "0xA")
        } else {
            key
        }
    });
    (key, one, write, why, 0..5).prop_map(|(key, read, write, why, form)| {
        let why_inline = why.iter().map(|why| format!(", why = {why}"));
        let why_inline: String = why_inline.collect();
        let why_line: String = why.iter().map(|why| format!("why={why}\n")).collect();
        match form {
            0 => format!("{key} = \"rw\""),
            1 => format!("{key}.read = {read}\n{key}.write = {write}"),
            2 => format!("[msrs.{key}]\n{why_line}# within\nwrite = {write}\nread = {read}"),
            _ => format!("{key} = {{ write = {write}, read = {read}{why_inline} }}"),
        }
    })
}

proptest! {
    #[test]
    fn format_keeps_meaning_and_comments_of_random_policies(
        entries in prop::collection::vec((0_usize..4, entry(), any::<bool>(), any::<bool>()), 0..14),
    ) {
        let mut text = "# head\npolicy = 1\nname='x' # name\ndefault = \"deny\"\n".to_owned();
        // TOML allows the head `[msrs]` only once, so entries that are tables stand below those
        // that are lines.
        let (tables, lines): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|one| one.1.starts_with('['));
        text.push_str("[msrs]\n");
        for (number, (above, entry, trails, blank)) in lines.into_iter().chain(tables).enumerate() {
            let before = text.len();
            text.push_str(["", "\n", "# above\n", "\n# a\n\n# b\n"][above]);
            let trail = if trails { format!(" # {number}") } else { String::new() };
            text.push_str(&format!("{entry}{trail}\n{}", if blank { "\n" } else { "" }));
            if parse(&Source::new("x", &text), &mut NoIncludes).is_err() {
                text.truncate(before);
            }
        }
        let once = check(&text);
        prop_assert_eq!(comments(&once), comments(&text), "{}", once);
    }
}
