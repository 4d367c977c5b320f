mod remedies;

use super::*;
use crate::parse::IncludeError;
use crate::policy::OWN;
use crate::{
    Cause, Enforcement, Extent, Includes, MistakeKind, Source, compile, enforcement, parse,
};

struct Texts<'t>(&'t [(&'t str, &'t str)]);

impl Includes for Texts<'_> {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let text = self.0.iter().find(|(name, _)| *name == path);
        let (name, text) = text.ok_or_else(|| IncludeError::new("no such file"))?;
        Ok(Source::new(name, text))
    }
}

fn compiled(text: &str, files: &[(&str, &str)]) -> Compiled {
    let policy = parse(&Source::new("policy.toml", text), &mut Texts(files));
    compile(policy.unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"))).expect("it fits")
}

/// Returns each puncture: the wider entry, the narrower one and its text, the MSRs, and the line of
/// the policy that closes the puncture.
fn found(text: &str, files: &[(&str, &str)]) -> Vec<String> {
    let compiled = compiled(text, files);
    let policy = compiled.policy();
    let shown = |one: Puncture| {
        let (wide, narrow) = (policy.entry(one.wide), policy.entry(one.narrow));
        let msrs = |msrs: &Option<MsrSet>| msrs.as_ref().map_or("-".to_owned(), MsrSet::to_string);
        let [read, write] = one.msrs.each_ref().map(msrs);
        let file = policy.text(narrow.source()).name();
        let (wide, narrow) = (wide.key(), narrow.key());
        format!(
            "{wide} by {narrow} of {file}, read {read}, write {write}: {}",
            one.remedy.lines().collect::<Vec<_>>().join("; ")
        )
    };
    punctures(&compiled).into_iter().map(shown).collect()
}

const HEAD: &str = "policy = 1\ndefault = 'deny'\ninclude = ['guest.toml']\n[msrs]\n";

fn guest(entries: &str) -> [(&'static str, &'static str); 1] {
    [(
        "guest.toml",
        format!("policy = 1\n[msrs]\n{entries}").leak(),
    )]
}

#[test]
fn puncture_is_included_entry_that_loosens_part_of_wide_refusal() {
    let guest = guest("'IA32_MPERF..=IA32_APERF' = 'r'\nIA32_PAT = 'rw'\n0x611 = 'none'\n");
    let text = format!("{HEAD}'@power' = 'none'\n");
    let line =
        "\"IA32_MPERF..=IA32_APERF\" = { read = \"deny\", write = \"deny\", override = true }";
    assert_eq!(
        found(&text, &guest),
        [format!(
            "@power by IA32_MPERF..=IA32_APERF of guest.toml, read 0xe7..=0xe8, write -: {line}"
        )]
    );
    assert_eq!(found(&format!("{text}{line}\n"), &guest), [""; 0]);
    // If the policy's text repeats the included entry, its author knows of that entry, so there is
    // no puncture.
    let repeated = format!("{text}'IA32_MPERF..=IA32_APERF' = 'r'\n");
    assert_eq!(found(&repeated, &guest), [""; 0]);
    let around = format!("{text}'0xe7..=0xe8' = {{ read = 'allow', write = 'inherit' }}\n");
    assert_eq!(found(&around, &guest), [""; 0]);
}

/// A wide entry that answers accesses is punctured by an entry that lets the guest do more, or
/// something else.
#[test]
fn puncture_of_wide_entry_is_found_for_reads_and_for_writes() {
    let wide = "'0x600..=0x6df' = { read = { value = 0 }, write = 'ignore' }\n";
    let wide = format!("{HEAD}{wide}");
    for (narrow, read, write) in [
        ("read = 'allow', write = 'deny'", "0x611", "-"),
        ("read = 'kill', write = 'allow'", "-", "0x611"),
        ("read = { value = 1 }, write = 'ignore'", "0x611", "-"),
        ("read = { value = 0 }, write = 'inherit'", "-", "-"),
        ("register = { reset = 0, mask = 1 }", "0x611", "0x611"),
    ] {
        let guest = guest(&format!("0x611 = {{ {narrow} }}\n"));
        let all = found(&wide, &guest);
        if (read, write) == ("-", "-") {
            assert_eq!(all, [""; 0], "{narrow}");
            continue;
        }
        let start = format!("0x600..=0x6df by 0x611 of guest.toml, read {read}, write {write}: ");
        assert!(
            all.len() == 1 && all[0].starts_with(&start),
            "{narrow}: {all:?}"
        );
    }
    let guest = guest("0x611 = { read = 'kill', write = 'allow' }\n");
    let all = found(&wide, &guest);
    let line = "0x611 = { read = \"kill\", write = \"ignore\", override = true }";
    assert!(all[0].ends_with(line), "{all:?}");
    // A direction that the wider entry inherits is not punctured.
    let inherits = format!("{HEAD}'0x600..=0x6df' = {{ read = 'inherit', write = 'ignore' }}\n");
    let reads = self::guest("0x611 = 'r'\n");
    assert_eq!(found(&inherits, &reads), [""; 0]);
    // A wide `register` is punctured, too, and the remedy repeats it.
    let register =
        format!("{HEAD}'0xc0000080..=0xc000008f' = {{ register = {{ reset = 0, mask = 1 }} }}\n");
    let reads = self::guest("IA32_STAR = 'r'\n");
    assert_eq!(
        found(&register, &reads),
        [
            "0xc0000080..=0xc000008f by IA32_STAR of guest.toml, read 0xc0000081, write -: IA32_STAR = { read = { register = { reset = \"0x0\", mask = \"0x1\" } }, write = \"deny\", override = true }"
        ]
    );
}

#[test]
fn entry_loosened_in_part_by_entry_of_unrelated_file_is_found() {
    let refuses = (
        "refuses.toml",
        "policy = 1\n[msrs]\n'0x600..=0x6df' = 'none'\n",
    );
    let allows = ("allows.toml", "policy = 1\n[msrs]\n0x611 = 'r'\n");
    let line = "0x611 = { read = \"deny\", write = \"deny\", override = true }";
    let by = format!("0x600..=0x6df by 0x611 of allows.toml, read 0x611, write -: {line}");
    // The policy includes both files.
    let both = "policy = 1\ndefault = 'deny'\ninclude = ['refuses.toml', 'allows.toml']\n[msrs]\n";
    assert_eq!(found(both, &[refuses, allows]), [&*by]);
    assert_eq!(
        found(&format!("{both}{line}\n"), &[refuses, allows]),
        [""; 0]
    );
    assert_eq!(
        found(&format!("{both}0x611 = 'r'\n"), &[refuses, allows]),
        [""; 0]
    );
    // The entry that loosens the wider entry is in an include of an include.
    let between = ("between.toml", "policy = 1\ninclude = ['allows.toml']\n");
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['between.toml']\n[msrs]\n'0x600..=0x6df' = 'none'\n";
    assert_eq!(found(text, &[between, allows]), [&*by]);
    assert_eq!(
        found(&format!("{text}{line}\n"), &[between, allows]),
        [""; 0]
    );
    // The included text in the middle has a wide entry, and an include of this text punctures that
    // entry.
    let between = (
        "between.toml",
        "policy = 1\ninclude = ['allows.toml']\n[msrs]\n'0x600..=0x6df' = 'none'\n",
    );
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['between.toml']\n[msrs]\n";
    assert_eq!(found(text, &[between, allows]), [&*by]);
    // A looser entry in the same text, or in a text that includes this text, is an intended
    // exception.
    let own = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x600..=0x6df' = 'none'\n0x611 = 'r'\n";
    assert_eq!(found(own, &[]), [""; 0]);
    let including =
        "policy = 1\ndefault = 'deny'\ninclude = ['refuses.toml']\n[msrs]\n0x611 = 'r'\n";
    assert_eq!(found(including, &[refuses]), [""; 0]);
    let wider = format!("{both}'0x610..=0x61f' = 'r'\n");
    assert_eq!(found(&wider, &[refuses, allows]), [""; 0], "it covers both");
}

#[test]
fn entry_loosened_in_part_by_entry_of_when_section_is_found_on_its_processors() {
    let when = |entries: &str| {
        format!("[[when]]\ncpu = {{ vendor = 'GenuineIntel' }}\n[when.msrs]\n{entries}")
    };
    let wide = "'0x600..=0x6df' = 'none'\n";
    let line = "0x611 = { read = \"deny\", write = \"deny\", override = true }";
    let by = format!("0x600..=0x6df by 0x611 of guest.toml, read 0x611, write -: {line}");
    let of_when = guest(&when("0x611 = 'r'\n"));
    let text = format!("{HEAD}{wide}");
    assert_eq!(found(&text, &of_when), [&*by]);
    assert_eq!(found(&format!("{text}{}", when(line)), &of_when), [""; 0]);
    let general = guest("0x611 = 'r'\n");
    let text = format!("{HEAD}{}", when(wide));
    assert_eq!(found(&text, &general), [&*by]);
    assert_eq!(found(&format!("{text}{line}\n"), &general), [""; 0]);
    let remedy = |text: &str, files: &[(&str, &str)]| {
        punctures(&compiled(text, files))[0].remedy.to_string()
    };
    let place = format!(
        "write `{line}` in policy.toml, below `[when.msrs]` of a `[[when]]` with `cpu = {{ vendor = [\"GenuineIntel\"] }}`"
    );
    assert_eq!(remedy(&text, &general), place);
    assert_eq!(remedy(&format!("{HEAD}{wide}"), &of_when), place);
    // No processor is both of Intel and of AMD.
    let other = general_amd();
    assert_eq!(found(&text, &other), [""; 0]);
}

fn general_amd() -> [(&'static str, &'static str); 1] {
    guest("[[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\n0x611 = 'r'\n")
}

/// If the policy itself has an entry for these MSRs, the remedy names the line to replace.
#[test]
fn remedy_for_puncture_replaces_own_entry_of_same_msrs() {
    let guest = guest("0x611 = 'r'\n");
    let text = format!(
        "{HEAD}'0x600..=0x6df' = 'none'\n0x611 = {{ read = 'inherit', write = 'deny', why = 'x' }}\n"
    );
    let punctures = punctures(&compiled(&text, &guest));
    assert_eq!(
        punctures[0].remedy.to_string(),
        "write `0x611 = { read = \"deny\", write = \"deny\", override = true }` in place of line 6 of policy.toml"
    );
}

/// An include has an entry for all processors and another in a `[[when]]`, for the same MSR. The
/// remedy has both lines, whether or not the wider entry is final.
#[test]
fn remedy_for_entry_repeated_in_whens_has_line_for_each() {
    let when = |cpu: &str, entry: &str| format!("[[when]]\ncpu = {cpu}\n[when.msrs]\n{entry}\n");
    let family = "{ family = [0x6] }";
    let guest = guest(&format!("0x611 = 'r'\n{}", when(family, "0x611 = 'r'")));
    let line = "0x611 = { read = \"deny\", write = \"deny\", override = true }";
    let text = format!("{HEAD}'0x610..=0x611' = 'none'\n");
    let by = format!("0x610..=0x611 by 0x611 of guest.toml, read 0x611, write -: {line}; {line}");
    assert_eq!(found(&text, &guest), [&*by]);
    let place = format!(
        "write `{line}` below `[msrs]` of policy.toml; and write `{line}` in policy.toml, below `[when.msrs]` of a `[[when]]` with `cpu = {family}`"
    );
    let remedy = punctures(&compiled(&text, &guest))[0].remedy.to_string();
    assert_eq!(remedy, place);
    let closed = format!("{text}{line}\n{}", when(family, line));
    assert_eq!(found(&closed, &guest), [""; 0]);
    let is_final = "'0x610..=0x611' = { read = 'deny', write = 'deny', final = true }\n";
    let broken = format!("{HEAD}{is_final}");
    let mistakes =
        parse(&Source::new("policy.toml", &broken), &mut Texts(&guest)).expect_err("loosened");
    let advice = mistakes.mistakes().iter().map(|one| match one.kind() {
        MistakeKind::Loosened { help, .. } => help.clone(),
        other => panic!("{other}"),
    });
    let expected = format!("{place}; this replaces the included entry");
    assert_eq!(advice.collect::<BTreeSet<_>>(), BTreeSet::from([expected]));
    let closed = format!("{broken}{line}\n{}", when(family, line));
    assert_eq!(found(&closed, &guest), [""; 0]);
    // The policy's own exception for some processors stays, and no line of the remedy contradicts
    // it.
    let amd = "{ vendor = [\"AuthenticAMD\"] }";
    let guest = self::guest(&when(amd, "0x611 = 'r'"));
    let text = format!(
        "{HEAD}'0x600..=0x6df' = 'none'\n{}",
        when(family, "0x611 = 'r'")
    );
    let line = "0x611 = { read = \"inherit\", write = \"deny\", override = true }";
    let by = format!("0x600..=0x6df by 0x611 of guest.toml, read 0x611, write -: {line}");
    assert_eq!(found(&text, &guest), [by]);
    assert_eq!(
        found(&format!("{text}{}", when(amd, line)), &guest),
        [""; 0]
    );
}

/// If another entry overlaps the included entry in part, the remedy inherits, because a new action
/// would contradict that other entry.
#[test]
fn remedy_for_partly_overlapping_entry_inherits() {
    let guest = guest("'0x610..=0x612' = 'r'\n'0x612..=0x614' = 'r'\n");
    let text = format!("{HEAD}'0x600..=0x6df' = 'none'\n");
    let lines = ["0x610..=0x612", "0x612..=0x614"].map(|key| {
        format!("\"{key}\" = {{ read = \"inherit\", write = \"deny\", override = true }}\n")
    });
    let all = found(&text, &guest);
    assert_eq!(all.len(), 2, "{all:?}");
    for (one, line) in all.iter().zip(&lines) {
        assert!(one.ends_with(line.trim_end()), "{one}");
        assert_eq!(found(&format!("{text}{line}"), &guest).len(), 1);
    }
    assert_eq!(found(&format!("{text}{}", lines.concat()), &guest), [""; 0]);
}

/// If two texts have a wider entry each, the remedy is at least as strict as either entry, and
/// closes both punctures.
#[test]
fn remedy_is_as_strict_as_strictest_wider_entry() {
    let files = [
        (
            "guest.toml",
            "policy = 1\ninclude = ['allows.toml']\n[msrs]\n'0x610..=0x61f' = { read = 'deny', write = 'deny' }\n",
        ),
        ("allows.toml", "policy = 1\n[msrs]\n0x611 = 'rw'\n"),
    ];
    let text = format!("{HEAD}'0x600..=0x6df' = {{ read = 'kill', write = 'inherit' }}\n");
    let line = "0x611 = { read = \"kill\", write = \"deny\", override = true }";
    let all = found(&text, &files);
    assert_eq!(all.len(), 3, "{all:?}");
    let of_guest: Vec<_> = all.iter().filter(|one| one.contains("by 0x611")).collect();
    assert!(of_guest.iter().all(|one| one.ends_with(line)), "{all:?}");
}

/// An override replaces all included entries of its MSRs, so the remedies for these entries share
/// one line.
#[test]
fn remedies_for_same_msrs_share_one_line() {
    let files = [
        (
            "one.toml",
            "policy = 1\n[msrs]\n0x611 = { read = 'allow', write = 'inherit' }\n",
        ),
        (
            "other.toml",
            "policy = 1\n[msrs]\n0x611 = { read = 'allow', write = 'kill' }\n",
        ),
    ];
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['one.toml', 'other.toml']\n[msrs]\n'0x600..=0x6df' = 'none'\n";
    let line = "0x611 = { read = \"deny\", write = \"kill\", override = true }";
    let all = found(text, &files);
    assert!(
        !all.is_empty() && all.iter().all(|one| one.ends_with(line)),
        "{all:?}"
    );
    assert_eq!(found(&format!("{text}{line}\n"), &files), [""; 0]);
}

/// The line of a remedy does not restore an entry that an included override replaced.
#[test]
fn remedy_omits_entry_replaced_by_included_override() {
    let files = [
        (
            "guest.toml",
            "policy = 1\ninclude = ['below.toml']\n[msrs]\n0x611 = { read = 'inherit', write = 'allow', override = true }\n",
        ),
        ("below.toml", "policy = 1\n[msrs]\n0x611 = 'r'\n"),
    ];
    let text = format!("{HEAD}'0x600..=0x6df' = 'none'\n");
    let line = "0x611 = { read = \"inherit\", write = \"deny\", override = true }";
    let by = format!("0x600..=0x6df by 0x611 of guest.toml, read -, write 0x611: {line}");
    assert_eq!(found(&text, &files), [by]);
    assert_eq!(found(&format!("{text}{line}\n"), &files), [""; 0]);
}

#[test]
fn enforcement_of_entry_that_included_entry_loosens_in_part_is_partial() {
    let guest = guest("0x611 = 'r'\n0x619 = 'w'\n0x61a = 'w'\n");
    let compiled = compiled(&format!("{HEAD}'0x600..=0x6df' = 'none'\n"), &guest);
    let wide = enforcement(&compiled).into_iter().find(|one| {
        one.entry
            .is_some_and(|id| compiled.policy().entry(id).key() == "0x600..=0x6df")
    });
    let Some(Enforcement {
        extent, bypasses, ..
    }) = wide
    else {
        panic!("it decides something");
    };
    let bypasses: Vec<_> = bypasses
        .iter()
        .map(|bypass| {
            let msrs = bypass
                .msrs
                .map_or("all".to_owned(), |msrs| msrs.to_string());
            format!("{} {msrs} {}", bypass.access, bypass.cause.name())
        })
        .collect();
    assert_eq!(extent, Extent::Partly);
    assert_eq!(
        bypasses,
        [
            "read 0x611 punctured",
            "write 0x619 punctured",
            "write 0x61a punctured"
        ]
    );
}

/// Returns each entry of the policy's own text: its key, its extent, and the entries that puncture
/// it.
fn own_extents(text: &str, files: &[(&str, &str)]) -> Vec<String> {
    let compiled = compiled(text, files);
    let policy = compiled.policy();
    let all = enforcement(&compiled);
    let own = all.iter().filter_map(|one| {
        let entry = policy.entry(one.entry?);
        let by = one.bypasses.iter().filter_map(|bypass| match bypass.cause {
            Cause::Puncture(id) => Some(policy.entry(id).key()),
            _ => None,
        });
        let by: BTreeSet<_> = by.collect();
        let by: Vec<_> = by.into_iter().collect();
        let is_own = entry.source() == OWN;
        is_own.then(|| format!("{} {} {}", entry.key(), one.extent, by.join(" ")))
    });
    own.collect()
}

/// If included entries loosen an entry as a whole, the entry still states what its author wants to
/// refuse, so no warning advises to delete the entry.
#[test]
fn enforcement_lists_entry_that_included_entries_loosen_as_a_whole_as_not_enforced() {
    let whole = guest("0x610 = 'rw'\n0x611 = 'rw'\n");
    let text = format!("{HEAD}'0x610..=0x611' = 'none'\n");
    assert_eq!(
        own_extents(&text, &whole),
        ["0x610..=0x611 not 0x610 0x611"]
    );
    let codes = |text: &str, files: &[(&str, &str)]| -> Vec<&str> {
        let compiled = compiled(text, files);
        let warnings = crate::lint::of_policy(&compiled);
        let codes = warnings.iter().map(|one| one.code.word());
        codes.filter(|code| *code != "gap").collect()
    };
    assert_eq!(codes(&text, &whole), ["punctured", "punctured"]);
    // Writes are still refused, by another entry.
    let reads = guest("0x610 = 'r'\n0x611 = 'r'\n");
    assert_eq!(
        own_extents(&text, &reads),
        ["0x610..=0x611 partly 0x610 0x611"]
    );
    // The wider entry is a mask, and the included entries have other actions.
    let masks = guest("IA32_STAR = { read = 'allow', write = 'pin' }\nIA32_LSTAR = 'rw'\n");
    let text = format!(
        "{HEAD}'IA32_STAR..=IA32_LSTAR' = {{ read = 'allow', write = {{ mask = 0xff }} }}\n"
    );
    assert_eq!(
        own_extents(&text, &masks),
        ["IA32_STAR..=IA32_LSTAR not IA32_LSTAR IA32_STAR"]
    );
    // An override that inherits both directions still has an effect, so no warning says otherwise.
    let crossing = guest("'0x610..=0x612' = 'rw'\n'0x612..=0x614' = 'rw'\n");
    let line = "'0x610..=0x612' = { read = 'inherit', write = 'inherit', override = true }\n";
    let text = format!("{HEAD}'0x600..=0x6df' = 'none'\n{line}");
    assert_eq!(codes(&text, &crossing), ["punctured"]);
}

/// If an include has a copy of the policy's entry and loosens the copy, the policy's entry is
/// partly enforced. The copy may be in an include of an include, or in a `[[when]]`.
#[test]
fn enforcement_of_entry_whose_included_copy_is_loosened_is_partial() {
    let wide = "'0x600..=0x6df' = 'none'\n";
    let evil = guest(&format!("{wide}0x611 = 'r'\n"));
    let text = format!("{HEAD}{wide}");
    let partly = "0x600..=0x6df partly 0x611";
    assert_eq!(own_extents(&text, &evil), [partly]);
    let between = ("guest.toml", "policy = 1\ninclude = ['evil.toml']\n");
    let below = ("evil.toml", evil[0].1);
    assert_eq!(own_extents(&text, &[between, below]), [partly]);
    let when = "[[when]]\ncpu = { family = 6 }\n[when.msrs]\n";
    let of_when = guest(&format!("{when}{wide}0x611 = 'r'\n"));
    assert_eq!(own_extents(&text, &of_when), [partly]);
    assert_eq!(
        own_extents(&format!("{HEAD}{when}{wide}"), &of_when),
        [partly]
    );
    assert_eq!(own_extents(&format!("{HEAD}{when}{wide}"), &evil), [partly]);
    let line = "0x611 = { read = 'deny', write = 'deny', override = true }\n";
    // The include's copy decides, and the policy's own entry agrees with it.
    assert_eq!(
        own_extents(&format!("{text}{line}"), &evil),
        ["0x611 enforced "]
    );
}

/// Warnings about the policy's own entries come first, however often includes puncture each other's
/// entries.
#[test]
fn puncture_warnings_on_own_entries_come_first() {
    let many: String = (0x4000_0000..0x4000_0014_u32)
        .map(|index| format!("{index:#x} = 'r'\n"))
        .collect();
    let open = format!("policy = 1\n[msrs]\n{many}MSR_PKG_ENERGY_STATUS = 'r'\n0x619 = 'r'\n");
    let files = [
        (
            "cover.toml",
            "policy = 1\n[msrs]\n'0x40000000..=0x400000ff' = 'none'\n",
        ),
        ("open.toml", &*open),
    ];
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['cover.toml', 'open.toml']\n[msrs]\n'0x610..=0x617' = 'none'\n'0x618..=0x61f' = 'none'\n0x40000114 = 'r'\n";
    let compiled = compiled(text, &files);
    let warnings = crate::lint::of_policy(&compiled);
    for (code, own) in [
        ("punctured", &["0x610..=0x617", "0x618..=0x61f"][..]),
        ("nameless", &["0x40000114"]),
    ] {
        let entries = warnings.iter().filter(|one| one.code.word() == code);
        let keys: Vec<_> = entries.filter_map(|one| Some(one.entry?.key())).collect();
        assert_eq!(&keys[..own.len()], own, "{code}");
        assert!(keys.len() > 10, "{code}");
    }
    // The first puncture of a wider entry comes before its further punctures.
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['open.toml']\n[msrs]\n'0x40000000..=0x400000ff' = 'none'\n'0x610..=0x617' = 'none'\n";
    let compiled = self::compiled(text, &files);
    let warnings = crate::lint::of_policy(&compiled);
    let entries = warnings.iter().filter(|one| one.code.word() == "punctured");
    let keys: Vec<_> = entries
        .filter_map(|one| Some(one.entry?.key()))
        .take(3)
        .collect();
    assert_eq!(
        keys,
        [
            "0x40000000..=0x400000ff",
            "0x610..=0x617",
            "0x40000000..=0x400000ff"
        ]
    );
}

/// If many narrow entries lie within the wide entries of many texts, and there are more punctures
/// than the limit, only the first puncture of each further wide entry is kept.
#[test]
fn number_of_punctures_of_many_files_is_limited() {
    const WIDE: usize = 200;
    let names: Vec<_> = (0..WIDE).map(|text| format!("{text}.toml")).collect();
    let wide = |text: usize| {
        let last = if text == 0 {
            "'0x40000..=0x40001' = 'none'\n"
        } else {
            ""
        };
        format!(
            "policy = 1\n[msrs]\n'{:#x}..=0x20fff' = 'none'\n{last}",
            0x20000 - text
        )
    };
    let narrow = (0..100).map(|number| format!("{:#x} = 'r'\n", 0x20000 + 2 * number));
    let narrow = format!(
        "policy = 1\n[msrs]\n{}0x40000 = 'r'\n",
        narrow.collect::<String>()
    );
    let texts: Vec<_> = (0..WIDE).map(wide).collect();
    let texts = names
        .iter()
        .zip(&texts)
        .map(|(name, text)| (&**name, &**text));
    let texts: Vec<_> = texts.chain([("narrow.toml", &*narrow)]).collect();
    let included = texts.iter().map(|(name, _)| format!("'{name}',\n"));
    let included: String = included.collect();
    let text = format!("policy = 1\ndefault = 'deny'\ninclude = [\n{included}]\n");
    let compiled = compiled(&text, &texts);
    let found = punctures(&compiled);
    // The number is the limit, plus one: the first puncture of a further wide entry.
    assert_eq!(found.len(), MAX_PUNCTURES + 1);
    let key = |id| compiled.policy().entry(id).key();
    let mut pairs = found.iter().map(|one| (key(one.wide), key(one.narrow)));
    assert!(pairs.any(|pair| pair == ("0x40000..=0x40001", "0x40000")));
    // Each entry is reported as punctured, even if some of its punctures are left out.
    let partly = enforcement(&compiled).into_iter();
    let partly = partly.filter(|one| one.extent == Extent::Partly && one.entry.is_some());
    assert_eq!(partly.count(), WIDE + 1);
}

/// If texts with similar entries for many MSRs exceed the limit of ranges, every punctured entry is
/// still listed, but with fewer ranges.
#[test]
fn puncture_ranges_are_limited_but_every_entry_is_listed() {
    const WIDE: usize = 7;
    let names: Vec<_> = (0..WIDE).map(|text| format!("{text}.toml")).collect();
    let wide = |text: usize| {
        let (first, last) = (0x1_0000 - text, 0x2_0000 + text);
        format!("policy = 1\n[msrs]\n'{first:#x}..={last:#x}' = 'none'\n")
    };
    let texts: Vec<_> = (0..WIDE).map(wide).collect();
    // Another entry punctures this narrow entry at every second MSR.
    let narrow = "policy = 1\n[msrs]\n'0x10001..=0x1ffff' = 'rw'\n";
    let narrowest = (0..20_000).map(|number| format!("{:#x} = 'none'\n", 0x1_0001 + 2 * number));
    let narrowest = format!("policy = 1\n[msrs]\n{}", narrowest.collect::<String>());
    let files = names.iter().zip(&texts);
    let files = files.map(|(name, text)| (&**name, &**text));
    let files: Vec<_> = files
        .chain([("narrow.toml", narrow), ("narrowest.toml", &*narrowest)])
        .collect();
    let included = files.iter().map(|(name, _)| format!("'{name}',\n"));
    let included: String = included.collect();
    let text = format!("policy = 1\ndefault = 'deny'\ninclude = [\n{included}]\n");
    let compiled = compiled(&text, &files);
    let found = punctures(&compiled);
    let stretches = found.iter().flat_map(|one| one.msrs.iter().flatten());
    let stretches: usize = stretches.map(|msrs| msrs.ranges().len()).sum();
    assert!(stretches >= MAX_STRETCHES, "{stretches}");
    assert!(stretches <= MAX_STRETCHES + 2 * found.len(), "{stretches}");
    let partly = enforcement(&compiled).into_iter();
    let partly = partly.filter(|one| one.extent == Extent::Partly && one.entry.is_some());
    assert_eq!(partly.count(), WIDE);
}

/// A narrow entry punctures a wider entry in a `[[when]]`. The puncture is found, although the walk
/// for other processors has compared the same MSRs before.
#[test]
fn puncture_in_when_is_found_at_msrs_that_earlier_walk_compared() {
    let other = "policy = 1\n[[when]]\ncpu = { model = 1 }\n[when.msrs]\n'0x0..=0x2f' = 'none'\n";
    let files = [
        ("guest.toml", "policy = 1\n[msrs]\n0x10 = 'r'\n"),
        ("other.toml", other),
    ];
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['guest.toml', 'other.toml']\n[msrs]\n'0x10..=0x1f' = 'none'\n";
    let compiled = compiled(text, &files);
    let policy = compiled.policy();
    let mut found: Vec<_> = punctures(&compiled)
        .iter()
        .map(|one| {
            let [wide, narrow] = [one.wide, one.narrow].map(|id| policy.entry(id).key());
            let read = one.msrs[Access::Read as usize].as_ref();
            format!("{wide} by {narrow}, read {}", read.expect("a puncture"))
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "0x0..=0x2f by 0x10, read 0x10",
            "0x10..=0x1f by 0x10, read 0x10"
        ]
    );
}
