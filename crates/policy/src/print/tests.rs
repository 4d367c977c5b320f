use std::collections::BTreeMap;
use std::fmt::Write as _;

use msrgate_program::DecidedBy;

use proptest::prelude::*;

use super::*;
use crate::compile::compile;
use crate::format::format;
use crate::layout::string;
use crate::parse::{IncludeError, Includes};
use crate::resolve::{ResolvedPolicy, parse};
use crate::source::Source;

/// The texts of included files, by the name that an `include` writes.
struct Files(BTreeMap<&'static str, &'static str>);

impl Includes for Files {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let text = self.0.get(path);
        text.map(|text| Source::new(path, text))
            .ok_or_else(|| IncludeError::new("no such file"))
    }
}

fn read(text: &str, files: &[(&'static str, &'static str)]) -> Option<ResolvedPolicy> {
    let mut files = Files(files.iter().copied().collect());
    parse(&Source::new("policy.toml", text), &mut files).ok()
}

/// Returns the full meaning of a policy on each processor, without places in the text.
fn meaning(resolved: &ResolvedPolicy) -> String {
    let policy = resolved.policy();
    let compiled = compile(resolved.clone()).expect("a policy that fits");
    let mut all = format!("{:?}\n{:?}\n", policy.settings(), policy.whens());
    for variant in compiled.variants() {
        let _ = writeln!(all, "{:?}", variant.holds());
        for access in Access::ALL {
            for segment in variant.rules().of(access) {
                let entry = match segment.by {
                    DecidedBy::Entry(id) => Some(policy.entry(id)),
                    _ => None,
                };
                let said = entry.map(|one| (one.key(), one.why(), one.log(), one.firmness));
                let _ = writeln!(all, "{} {:?} {said:?}", segment.msrs, segment.action);
            }
        }
    }
    all
}

fn check(resolved: &ResolvedPolicy) {
    let text = print(resolved.policy());
    let again = read(&text, &[]).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(meaning(&again), meaning(resolved), "{text}");
    assert_eq!(print(again.policy()), text);
    let formatted = format(&Source::new("policy.toml", &text)).expect("no mistakes");
    // Formatting the printed text changes at most the spelling of keys, so the number of lines
    // stays the same.
    assert_eq!(formatted.lines().count(), text.lines().count(), "{text}");
}

#[test]
fn printed_policy_with_every_part_of_language_is_parsed_as_same_policy() {
    let text = r#"
policy = 1
name = "a \"b\" \\ é \u0007"
default = "allow"
mode = "audit"
log = "first"
unknown = { read = { value = 7 }, write = "ignore", log = "none" }
accept = ["tsc-deadline-fastpath"]
[msrs]
"@mtrr" = { read = "allow", write = "deny", final = true }
IA32_MTRR_PHYSBASE0 = "none"
IA32_LSTAR = { read = "allow", write = "pin", why = "it's \"so\"" }
IA32_STAR = { read = "allow", write = { mask = "0xff", outside = "keep" }, log = "all" }
IA32_CSTAR = { read = "inherit", write = "sticky" }
IA32_BIOS_UPDT_TRIG = { device = "microcode" }
" 0x1000 ..= 0x1fff" = { read = { handler = "é\"" }, write = "kill" }
0x1002 = { register = { reset = "0xffffffffffffffff", mask = 0xff, outside = "keep" } }
IA32_PAT = "r"
[device.microcode]
revision = 7
update = "ignore"
[[when]]
cpu = { vendor = "GenuineIntel", family = 6, model = [0x6a, "0x6c..=0x6f"] }
[when.msrs]
IA32_PAT = { read = "allow", write = "allow", override = true }
[[when]]
cpu = {}
[when.msrs]
"#;
    check(&read(text, &[]).expect("a policy without mistakes"));
}

#[test]
fn print_writes_policy_and_its_includes_as_one_text() {
    let base = "policy = 1\n[msrs]\nIA32_PAT = \"r\"\nIA32_EFER = \"rw\"\n0x10 = \"r\"\n";
    let text = "policy = 1\ndefault = \"deny\"\ninclude = [\"base.toml\"]\n[msrs]\n0x10 = \"r\"\n\
                IA32_PAT = { read = \"allow\", write = \"allow\", override = true }\n";
    let policy = read(text, &[("base.toml", base)]).expect("a policy without mistakes");
    check(&policy);
    let printed = print(policy.policy());
    let entries = "[msrs]\nIA32_EFER = \"rw\"\n0x10      = \"r\"\nIA32_PAT  = \"rw\"\n";
    assert!(printed.ends_with(entries), "{printed}");
}

proptest! {
    #[test]
    fn printed_random_policy_is_parsed_as_same_policy(
        entries in prop::collection::vec((0_u32..0x40, 0_u32..0x20, 0_usize..9, 0_usize..9), 0..12),
        why in "(\\PC|\n|[a-z ]{0,300}|x{0,300}){0,30}",
    ) {
        const SAYS: [&str; 9] = ["\"allow\"", "\"deny\"", "\"kill\"", "\"inherit\"", "{ handler = 'x' }", "{ device = 'microcode' }", "\"ignore\"", "{ value = 3 }", "{ register = { reset = 1, mask = 2 } }"];
        let mut text = "policy = 1\ndefault = \"deny\"\n[msrs]\n".to_owned();
        // The string is cut to 900 characters, so that its line stays below the maximum length of a
        // line.
        let why = string(&why.chars().take(900).collect::<String>());
        for (first, count, read_says, write_says) in entries {
            let before = text.len();
            let _ = writeln!(text, "\"{first:#x}..={:#x}\" = {{ read = {}, write = {}, why = {why} }}", first + count, SAYS[read_says], SAYS[write_says]);
            if read(&text, &[]).is_none() {
                text.truncate(before);
            }
        }
        check(&read(&text, &[]).expect("a policy without mistakes"));
    }
}
