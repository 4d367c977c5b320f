//! Final entries: no entry or setting of a policy, or of its other includes, can loosen a final
//! entry.

use super::language::{actions, compiled, read};
use std::collections::BTreeSet;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Comparison, DecidedBy, Rules};
use proptest::prelude::*;

use super::*;
use crate::policy::Replaces;
use crate::resolve::ResolvedPolicy;

type File = (&'static str, &'static str);

/// Returns the first lines of the messages about a policy, each with its advice.
fn refused(text: &str, files: &[File]) -> Vec<[String; 2]> {
    let mut texts = Texts(files);
    let source = Source::new("policy.toml", text);
    let mistakes = parse(&source, &mut texts).expect_err(text);
    let all = mistakes.mistakes().iter();
    let said = |mistake: &Mistake| {
        let kind = mistake.kind();
        [kind.to_string(), kind.help().unwrap_or_default()]
    };
    all.map(said).collect()
}

fn messages(text: &str, files: &[File]) -> Vec<String> {
    let all = refused(text, files).into_iter();
    all.map(|[message, _]| message).collect()
}

struct Texts<'t>(&'t [(&'t str, &'t str)]);

impl Includes for Texts<'_> {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let text = self.0.iter().find(|(name, _)| *name == path);
        let (name, text) = text.ok_or_else(|| IncludeError::new("no such file"))?;
        Ok(Source::new(name, text))
    }
}

const ORG: File = (
    "org.toml",
    "policy = 1\n[msrs]\n0x611 = { read = 'deny', write = 'deny', final = true }\n",
);

fn over_org(default: &str, rest: &str) -> String {
    format!("policy = 1\ndefault = '{default}'\ninclude = ['org.toml']\n{rest}")
}

const NOW_ALLOWED: [&str; 2] = [
    "`0x611` leaves reads of 0x611 to `default = \"allow\"`, which is looser than the final entry `0x611`",
    "`0x611` leaves writes of 0x611 to `default = \"allow\"`, which is looser than the final entry `0x611`",
];

#[test]
fn final_entry_refuses_override_that_inherits_looser_default() {
    let with = |read: &str, write: &str| {
        let entry = format!("0x611 = {{ read = '{read}', write = '{write}', override = true }}\n");
        over_org("allow", &format!("[msrs]\n{entry}"))
    };
    assert_eq!(messages(&with("inherit", "inherit"), &[ORG]), NOW_ALLOWED);
    assert_eq!(messages(&with("deny", "inherit"), &[ORG]), NOW_ALLOWED[1..]);
    assert_eq!(messages(&with("inherit", "kill"), &[ORG]), NOW_ALLOWED[..1]);
    assert!(read(&with("deny", "kill"), &[ORG]).is_ok());
    let denied = with("inherit", "inherit").replace("'allow'", "'deny'");
    assert!(
        read(&denied, &[ORG]).is_ok(),
        "the default is as strict as the final entry"
    );
}

#[test]
fn final_entry_refuses_override_in_when_that_inherits_looser_default() {
    let entry = "[when.msrs]\n0x611 = { read = 'inherit', write = 'inherit', override = true }\n";
    let when = |cpu: &str| format!("[[when]]\ncpu = {{ vendor = '{cpu}' }}\n{entry}");
    let text = over_org("allow", &when("GenuineIntel"));
    assert_eq!(messages(&text, &[ORG]), NOW_ALLOWED);
    // The final entry may hold for some processors only.
    let org = ORG.1.replace(
        "[msrs]",
        "[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]",
    );
    let org = [("org.toml", &*org.leak())];
    assert_eq!(messages(&text, &org), NOW_ALLOWED);
    let own = over_org("allow", "").replace(
        "include = ['org.toml']\n",
        &(ORG.1.replace("policy = 1\n", "") + &when("AuthenticAMD")),
    );
    assert_eq!(messages(&own, &[]), NOW_ALLOWED, "{own}");
}

#[test]
fn final_entry_refuses_override_that_inherits_looser_wider_entry() {
    let over = "0x611 = { read = 'inherit', write = 'inherit', override = true }\n";
    let text = over_org("deny", &format!("[msrs]\n'0x600..=0x61f' = 'r'\n{over}"));
    assert_eq!(
        messages(&text, &[ORG]),
        [
            "`0x611` leaves reads of 0x611 to `0x600..=0x61f`, which is looser than the final entry `0x611`"
        ]
    );
    // The wider entry belongs to another include.
    let wide = ("wide.toml", "policy = 1\n[msrs]\n'0x600..=0x61f' = 'r'\n");
    let text = over_org("deny", &format!("[msrs]\n{over}"));
    let text = text.replace("['org", "['wide.toml', 'org");
    assert_eq!(messages(&text, &[ORG, wide]).len(), 1);
    let strict = (
        "wide.toml",
        "policy = 1\n[msrs]\n'0x600..=0x61f' = 'none'\n",
    );
    let text = text.replace("'deny'", "'allow'");
    assert!(
        read(&text, &[ORG, strict]).is_ok(),
        "the wide entry is as strict as the final entry"
    );
}

#[test]
fn final_entry_refuses_override_of_range_only_at_msrs_where_override_is_looser() {
    let org = (
        "org.toml",
        "policy = 1\n[msrs]\n'0x600..=0x6df' = { read = 'deny', write = 'deny', final = true }\n0x611 = { read = 'kill', write = 'deny' }\n",
    );
    let over = |key: &str| {
        let entry = "{ read = 'inherit', write = 'deny', override = true }";
        over_org("allow", &format!("[msrs]\n'{key}' = {entry}\n"))
    };
    assert_eq!(
        messages(&over("0x600..=0x6df"), &[org]),
        [
            "`0x600..=0x6df` leaves reads of 0x600 to `default = \"allow\"`, which is looser than the final entry `0x600..=0x6df`"
        ]
    );
    // An override inside the range of the final entry may inherit, because the final entry then
    // decides.
    let within = compiled(&over("0x611"), &[org]);
    assert_eq!(actions(&within, None, 0x611), [Action::Deny, Action::Deny]);
    let group = (
        "org.toml",
        "policy = 1\n[msrs]\n'@tsc' = { read = 'allow', write = 'deny', final = true }\n",
    );
    let text = over("@tsc").replace("'deny', over", "'inherit', over");
    let found = messages(&text, &[group]);
    assert!(
        found.len() == 1 && found[0].starts_with("`@tsc` leaves writes of 0x10 to "),
        "{found:?}"
    );
}

/// If a final override replaces a final entry, a further override must not be looser than either
/// final entry.
#[test]
fn override_that_is_final_does_not_end_limit_of_final_entry_that_it_replaces() {
    let mid = |says: &str| {
        let text = format!(
            "policy = 1\ninclude = ['org.toml']\n[msrs]\n0x611 = {{ {says}, override = true, final = true }}\n"
        );
        ("mid.toml", &*text.leak())
    };
    let text = |says: &str| {
        format!(
            "policy = 1\ndefault = 'allow'\ninclude = ['mid.toml']\n[msrs]\n0x611 = {{ {says}, override = true }}\n"
        )
    };
    let strict = mid("read = 'kill', write = 'kill'");
    let found = messages(&text("read = 'inherit', write = 'deny'"), &[ORG, strict]);
    // The message names the stricter of the two final entries.
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("leaves reads"), "{found:?}");
    assert!(found[1].contains("looser for writes"), "{found:?}");
    assert!(read(&text("read = 'kill', write = 'kill'"), &[ORG, strict]).is_ok());
    // The include in the middle inherits the write, so the final entry of the first include no
    // longer decides it.
    let open = "policy = 1\ndefault = 'allow'\ninclude = ['mid.toml']\n";
    assert_eq!(
        messages(open, &[ORG, mid("read = 'deny', write = 'inherit'")]),
        NOW_ALLOWED[1..]
    );
}

#[test]
fn policy_must_not_loosen_final_entry_of_either_of_two_includes() {
    let other = (
        "other.toml",
        "policy = 1\n[msrs]\n'0x610..=0x61f' = { read = 'kill', write = 'allow', final = true }\n",
    );
    let text = |entries: &str| {
        over_org("deny", &format!("[msrs]\n{entries}")).replace("['org", "['other.toml', 'org")
    };
    // A final entry of one include loosens a final entry of the other.
    assert_eq!(
        messages(&text(""), &[ORG, other]),
        ["`0x611` is looser for reads of 0x611 than the final entry `0x610..=0x61f`"]
    );
    let mended = text("0x611 = { read = 'kill', write = 'deny', override = true }\n");
    assert!(read(&mended, &[ORG, other]).is_ok());
    let swapped = text("0x611 = { read = 'kill', write = 'inherit', override = true }\n");
    assert_eq!(
        messages(&swapped, &[ORG, other]),
        [
            "`0x611` leaves writes of 0x611 to `0x610..=0x61f`, which is looser than the final entry `0x611`"
        ]
    );
}

/// A final entry with `inherit` keeps the decision that its own file makes together with that
/// file's includes.
#[test]
fn final_entry_that_inherits_keeps_decision_of_its_file() {
    let org = |head: &str, wide: &str| {
        let text = format!(
            "policy = 1\n{head}[msrs]\n{wide}0x611 = {{ read = 'inherit', write = 'deny', final = true }}\n"
        );
        ("org.toml", &*text.leak())
    };
    let wide = "'0x600..=0x6df' = 'none'\n";
    let opened = "'0x600..=0x6df' = { read = 'allow', write = 'deny', override = true }\n";
    let silent = "'0x600..=0x6df' = { read = 'inherit', write = 'deny', override = true }\n";
    let text = |default: &str, entries: &str| over_org(default, &format!("[msrs]\n{entries}"));
    assert_eq!(
        messages(&text("deny", opened), &[org("", wide)]),
        ["`0x600..=0x6df` is looser for reads of 0x611 than the final entry `0x611`"]
    );
    assert_eq!(
        messages(&text("allow", silent), &[org("", wide)]),
        [
            "`0x600..=0x6df` leaves reads of 0x611 to `default = \"allow\"`, which is looser than the final entry `0x611`"
        ]
    );
    // If the file states a `default`, the `default` decides the read, and a looser read is refused.
    // If the file states no `default`, it decides nothing about the read, and a looser read is
    // accepted.
    let reads = "0x611 = { read = 'allow', write = 'deny', override = true }\n";
    assert_eq!(
        messages(&text("deny", reads), &[org("default = 'deny'\n", "")]),
        ["`0x611` is looser for reads of 0x611 than the final entry `0x611`"]
    );
    assert!(read(&text("deny", reads), &[org("", "")]).is_ok());
    assert!(read(&text("allow", ""), &[org("", "")]).is_ok());
    // A narrower entry of the same file counts for the decision that the final entry keeps.
    let within = format!("{wide}'0x610..=0x61f' = 'r'\n");
    let within = org("", &*within.leak());
    assert!(read(&text("deny", reads), &[within]).is_ok());
    // An include of the file counts for that decision, too.
    let below = (
        "below.toml",
        "policy = 1\n[msrs]\n'0x600..=0x6df' = 'none'\n",
    );
    let including = org("include = ['below.toml']\n", "");
    assert_eq!(
        messages(&text("deny", opened), &[including, below]),
        ["`0x600..=0x6df` is looser for reads of 0x611 than the final entry `0x611`"]
    );
}

#[test]
fn final_entry_of_include_refuses_audit_mode() {
    let text = over_org("allow", "mode = 'audit'\n");
    assert_eq!(
        refused(&text, &[ORG]),
        [[
            "`mode = \"audit\"` lets through what the final entry `0x611` of org.toml refuses",
            "delete `mode`, or write `mode = \"audit\"` in org.toml, too: only the file of a final entry can put that entry in audit mode",
        ]]
    );
    let audited = ORG
        .1
        .replace("policy = 1\n", "policy = 1\nmode = 'audit'\n");
    let audited = ("org.toml", &*audited.leak());
    assert!(
        read(&text, &[audited]).is_ok(),
        "the file of the final entry is in audit mode"
    );
    // An include between the policy and the entry's file, or beside that file, cannot loosen the
    // entry either.
    for (including, includes) in [
        (
            "policy = 1\nmode = 'audit'\ninclude = ['org.toml']\n",
            "['mid.toml']",
        ),
        ("policy = 1\nmode = 'audit'\n", "['mid.toml', 'org.toml']"),
    ] {
        let text = format!("policy = 1\ndefault = 'allow'\nmode = 'audit'\ninclude = {includes}\n");
        let found = messages(&text, &[ORG, ("mid.toml", including)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("of org.toml refuses"), "{found:?}");
    }
    // The final entry may also be in a `[[when]]`, inherit its refusal, or refuse some values only.
    let head = "policy = 1\n";
    for org in [
        "[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n0x611 = { read = 'deny', write = 'deny', final = true }\n",
        "[msrs]\n'0x600..=0x6df' = 'none'\n0x611 = { read = 'inherit', write = 'allow', final = true }\n",
        "[msrs]\nIA32_LSTAR = { read = 'allow', write = 'pin', final = true }\n",
        "[msrs]\n0x611 = { register = { reset = 0, mask = 1 }, final = true }\n",
    ] {
        let org = ("org.toml", &*format!("{head}{org}").leak());
        assert_eq!(messages(&text, &[org]).len(), 1, "{}", org.1);
    }
    // An answer is not a refusal, so audit mode does not lift an answer. The final entries of the
    // policy itself do not forbid its audit mode.
    let answers = "[msrs]\n0x611 = { read = { value = 0 }, write = 'ignore', final = true }\n";
    let answers = ("org.toml", &*format!("{head}{answers}").leak());
    assert!(read(&text, &[answers]).is_ok());
    let own = text.replace("include = ['org.toml']\n", "") + &ORG.1.replace(head, "");
    assert!(read(&own, &[]).is_ok());
}

/// If audit mode lifts many final entries of several files, there is one message for each file.
#[test]
fn final_entries_lifted_by_audit_give_one_mistake_per_file() {
    let org = |from: u32| {
        let entry =
            |index| format!("{index:#x} = {{ read = 'deny', write = 'kill', final = true }}\n");
        let entries: String = (from..from + 20).map(entry).collect();
        &*format!("policy = 1\n[msrs]\n{entries}").leak()
    };
    let files = [("a.toml", org(0x610)), ("b.toml", org(0x650))];
    let text = "policy = 1\ndefault = 'allow'\nmode = 'audit'\ninclude = ['a.toml', 'b.toml']\n[[when]]\ncpu = { model = 1 }\n[when.msrs]\n";
    assert_eq!(
        messages(text, &files),
        [
            "`mode = \"audit\"` lets through what the final entry `0x610` of a.toml refuses",
            "`mode = \"audit\"` lets through what the final entry `0x650` of b.toml refuses",
        ]
    );
}

/// A policy's author cannot edit an include. The advice is therefore an entry for the policy, and
/// that entry works.
#[test]
fn final_entry_advice_for_included_entry_is_working_override() {
    let guest = (
        "guest.toml",
        "policy = 1\n[msrs]\n'IA32_MPERF..=IA32_APERF' = { read = 'allow', write = 'deny' }\nIA32_THERM_STATUS = 'rw'\n[[when]]\ncpu = { vendor = 'GenuineIntel', model = [0x6a, 0x6c] }\n[when.msrs]\n'MSR_PPERF' = 'r'\n",
    );
    let text = |entries: &str, when: &str| {
        format!(
            "policy = 1\ndefault = 'deny'\ninclude = ['guest.toml']\n[msrs]\n'@power' = {{ read = 'deny', write = 'kill', final = true }}\n{entries}{when}"
        )
    };
    let after = "; this replaces the included entry";
    let range =
        "\"IA32_MPERF..=IA32_APERF\" = { read = \"deny\", write = \"kill\", override = true }";
    let status = "IA32_THERM_STATUS = { read = \"deny\", write = \"kill\", override = true }";
    let pperf = "MSR_PPERF = { read = \"deny\", write = \"kill\", override = true }";
    let cpu = "cpu = { vendor = [\"GenuineIntel\"], model = [0x6a, 0x6c] }";
    let help: BTreeSet<_> = refused(&text("", ""), &[guest])
        .into_iter()
        .map(|[_, help]| help)
        .collect();
    let expected = [
        format!("write `{range}` below `[msrs]` of policy.toml{after}"),
        format!("write `{status}` below `[msrs]` of policy.toml{after}"),
        format!(
            "write `{pperf}` in policy.toml, below `[when.msrs]` of a `[[when]]` with `{cpu}`{after}"
        ),
    ];
    assert_eq!(help, BTreeSet::from(expected));
    let mended = text(
        &format!("{range}\n{status}\n"),
        &format!("[[when]]\n{cpu}\n[when.msrs]\n{pperf}\n"),
    );
    let mended = compiled(&mended, &[guest]);
    for index in [0xe7, 0xe8, 0x19c] {
        assert_eq!(
            actions(&mended, None, index),
            [Action::Deny, Action::Kill],
            "{index:#x}"
        );
    }
}

/// If an included override loosens a final entry in one direction, the advised entry keeps the
/// override's action in the other direction.
#[test]
fn final_entry_advice_for_included_override_keeps_its_other_direction() {
    let mid = (
        "mid.toml",
        "policy = 1\ninclude = ['org.toml']\n[msrs]\n0x611 = { read = 'kill', write = 'inherit', override = true }\n",
    );
    let text = "policy = 1\ndefault = 'allow'\ninclude = ['mid.toml']\n[msrs]\n";
    let line = "0x611 = { read = \"kill\", write = \"deny\", override = true }";
    let found = refused(text, &[ORG, mid]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0][1].starts_with(&format!("write `{line}` below ")),
        "{found:?}"
    );
    assert!(read(&format!("{text}{line}\n"), &[ORG, mid]).is_ok());
}

/// If the looser entry is the policy's own, its author can delete or change it, and the advice says
/// so.
#[test]
fn final_entry_advice_for_own_entry_is_to_delete_or_tighten() {
    let text = over_org(
        "deny",
        "[msrs]\n0x611 = { read = 'allow', write = 'deny', override = true }\n",
    );
    assert_eq!(
        refused(&text, &[ORG])[0][1],
        "delete the entry, or give it the actions of the final entry"
    );
}

/// An override must not give another answer than the final entry that it replaces. A mask within
/// the final entry's mask is allowed.
#[test]
fn final_entry_accepts_mask_within_its_mask() {
    let org = |says: &str| {
        let text = format!(
            "policy = 1\n[msrs]\nIA32_LSTAR = {{ read = 'allow', write = {says}, final = true }}\n"
        );
        ("org.toml", &*text.leak())
    };
    let text = |says: &str| {
        over_org(
            "allow",
            &format!(
                "[msrs]\nIA32_LSTAR = {{ read = 'allow', write = {says}, override = true }}\n"
            ),
        )
    };
    let org = org("{ mask = 0xff }");
    assert!(read(&text("{ mask = 0x0f }"), &[org]).is_ok());
    for other in [
        "{ mask = 0x1ff }",
        "{ mask = 0x0f, outside = 'keep' }",
        "'pin'",
        "'inherit'",
    ] {
        assert_eq!(messages(&text(other), &[org]).len(), 1, "{other}");
    }
}

/// A policy must set up a device as the file of the final entry for this device does.
#[test]
fn final_device_entry_refuses_other_device_settings() {
    let org = (
        "org.toml",
        "policy = 1\n[device.microcode]\nrevision = 1\nupdate = 'deny'\n[msrs]\nIA32_BIOS_UPDT_TRIG = { device = 'microcode', final = true }\n",
    );
    let device = |update: &str| {
        over_org(
            "deny",
            &format!("[device.microcode]\nrevision = 1\nupdate = '{update}'\n"),
        )
    };
    assert!(read(&device("deny"), &[org]).is_ok());
    assert_eq!(
        messages(&device("accept"), &[org]),
        ["org.toml and the policy that includes it have different values of `device.microcode`"]
    );
}

/// Neither `log` nor `accept` lets a guest do more, so a policy may change both for the MSRs of a
/// final entry.
#[test]
fn final_entry_accepts_other_log_and_accept() {
    let org = (
        "org.toml",
        "policy = 1\n[msrs]\n0x6e0 = { read = 'deny', write = 'deny', log = 'denied', final = true }\n",
    );
    let text = over_org(
        "allow",
        "accept = ['tsc-deadline-fastpath']\nlog = 'none'\n[msrs]\n0x6e0 = { read = 'deny', write = 'deny', log = 'none', override = true }\n",
    );
    assert!(read(&text, &[org]).is_ok());
}

/// A random entry: its MSRs, its actions, and a flag for `final`.
#[derive(Clone, Debug)]
struct Drawn {
    key: String,
    says: [&'static str; 2],
    is_final: bool,
}

const SAYS: [&str; 5] = ["allow", "deny", "kill", "inherit", "inherit"];

fn drawn() -> impl Strategy<Value = Drawn> {
    let says = || prop::sample::select(SAYS.to_vec());
    (0_u32..8, 0_u32..6, says(), says(), any::<bool>()).prop_map(
        |(first, count, read, write, is_final)| Drawn {
            key: format!("{first:#x}..={:#x}", first + count),
            says: [read, write],
            is_final,
        },
    )
}

impl Drawn {
    fn line(&self, replaces: Replaces) -> String {
        let Self {
            key,
            says: [read, write],
            is_final,
        } = self;
        let word = if replaces == Replaces::Included {
            ", override = true"
        } else {
            ""
        };
        let fixed = if *is_final { ", final = true" } else { "" };
        format!("'{key}' = {{ read = '{read}', write = '{write}'{word}{fixed} }}\n")
    }
}

fn parsed(text: &str, base: &str) -> Result<ResolvedPolicy, Box<Mistakes>> {
    let files = [("base.toml", base)];
    parse(&Source::new("policy.toml", text), &mut Texts(&files))
}

/// Returns the rules of a policy, one for each variant.
fn tables(resolved: &ResolvedPolicy) -> Vec<Rules> {
    let (_, all) = resolved.clone().into_parts();
    all.into_iter().map(|variant| variant.rules).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_global_rejects: 20_000, ..ProptestConfig::default() })]

    /// A policy is refused exactly if it would loosen a final entry. To find that out, the test
    /// removes every `final`, and compares each access with the action of the final entry or, if
    /// that entry inherits, with the decision of the entry's file alone.
    #[test]
    fn policy_is_refused_exactly_if_it_loosens_final_entry(
        base in prop::collection::vec(drawn(), 1..5),
        own in prop::collection::vec((drawn(), prop::option::of(any::<prop::sample::Index>())), 0..4),
        default in prop::sample::select(vec!["allow", "deny"]),
        has_default in any::<bool>(),
        in_when in any::<bool>(),
    ) {
        let stated = if has_default { format!("default = '{default}'\n") } else { String::new() };
        let lines: String = base.iter().map(|one| one.line(Replaces::Nothing)).collect();
        let base_text = format!("policy = 1\n{stated}[msrs]\n{lines}");
        let lines: String = own.iter().map(|(one, over)| match over {
            Some(index) => {
                let key = index.get(&base).key.clone();
                Drawn { key, ..one.clone() }.line(Replaces::Included)
            }
            None => one.line(Replaces::Nothing),
        }).collect();
        let section = if in_when {
            "[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n"
        } else {
            "[msrs]\n"
        };
        let head = format!("policy = 1\ndefault = '{default}'\ninclude = ['base.toml']\n");
        let text = format!("{head}{section}{lines}");
        let bare = |text: &str| text.replace(", final = true", "");
        let alone = base_text.replacen("policy = 1\n", &format!("policy = 1\ndefault = '{default}'\n"), 1);
        let alone = bare(if has_default { &base_text } else { &alone });
        let alone = parsed(&alone, "");
        let without = parsed(&bare(&text), &bare(&base_text));
        prop_assume!(alone.is_ok() && without.is_ok());
        let (Ok(alone), Ok(without)) = (alone, without) else { return Ok(()) };
        let alone = tables(&alone).remove(0);
        let all = tables(&without);
        let is_looser = |table: &Rules, index: u32, access: Access, limit: &Action| {
            let index = MsrIndex::new(index);
            table.at(index, access).action.compared_with(limit) != Comparison::NoLooser
        };
        let mut is_loosened = false;
        // The entries of the base file come first, then those of the policy itself.
        let finals = base.iter().map(|one| one.is_final).chain(own.iter().map(|(one, _)| one.is_final));
        for (entry, is_final) in without.policy().entries().iter().zip(finals) {
            let tables = if entry.when().is_some() { &all[all.len() - 1..] } else { &all[..] };
            let is_base = entry.source() != SourceId::new(0);
            for (access, index) in Access::ALL.into_iter().flat_map(|one| (0..16).map(move |index| (one, index))) {
                if !is_final || !entry.msrs().contains(MsrIndex::new(index)) {
                    continue;
                }
                let inherited = alone.at(MsrIndex::new(index), access);
                let says_so = has_default || inherited.by != DecidedBy::Default;
                let limit = match entry.action(access) {
                    Some(limit) => limit,
                    None if is_base && says_so => inherited.action,
                    None => continue,
                };
                is_loosened |= tables.iter().any(|table| is_looser(table, index, access, limit));
            }
        }
        let with = parsed(&text, &base_text);
        prop_assert_eq!(with.is_err(), is_loosened, "{}\n{}", base_text, text);
        if let Err(mistakes) = with {
            for mistake in mistakes.mistakes() {
                let is_loosening = matches!(mistake.kind(), MistakeKind::Loosened { .. });
                prop_assert!(is_loosening, "{}", mistake.kind());
            }
        }
    }
}
