use proptest::prelude::*;

use super::*;
use crate::parse::IncludeError;
use crate::{Enforcement, Extent, Includes, Source, Wrong, compile, enforcement, parse};

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

/// Each puncture: the wider entry, the narrower one and its text, where, and the line that closes it.
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
            one.remedy.line
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
fn included_entry_within_a_wide_refusal_is_a_puncture() {
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
    // Who repeats it knows of it.
    let repeated = format!("{text}'IA32_MPERF..=IA32_APERF' = 'r'\n");
    assert_eq!(found(&repeated, &guest), [""; 0]);
    let around = format!("{text}'0xe7..=0xe8' = {{ read = 'allow', write = 'inherit' }}\n");
    assert_eq!(found(&around, &guest), [""; 0]);
}

/// A wide answer is punctured by what lets the guest do more, or something else.
#[test]
fn each_direction_is_compared_with_what_the_wider_entry_does() {
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
    // What the wider entry leaves to others is not punctured.
    let inherits = format!("{HEAD}'0x600..=0x6df' = {{ read = 'inherit', write = 'ignore' }}\n");
    let reads = self::guest("0x611 = 'r'\n");
    assert_eq!(found(&inherits, &reads), [""; 0]);
    // A wide `register` as well; what no VMM can carry out there is refused instead.
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
fn texts_that_do_not_know_of_each_other_puncture_each_other() {
    let refuses = (
        "refuses.toml",
        "policy = 1\n[msrs]\n'0x600..=0x6df' = 'none'\n",
    );
    let allows = ("allows.toml", "policy = 1\n[msrs]\n0x611 = 'r'\n");
    let line = "0x611 = { read = \"deny\", write = \"deny\", override = true }";
    let by = format!("0x600..=0x6df by 0x611 of allows.toml, read 0x611, write -: {line}");
    // Siblings.
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
    // An include of an include.
    let between = ("between.toml", "policy = 1\ninclude = ['allows.toml']\n");
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['between.toml']\n[msrs]\n'0x600..=0x6df' = 'none'\n";
    assert_eq!(found(text, &[between, allows]), [&*by]);
    assert_eq!(
        found(&format!("{text}{line}\n"), &[between, allows]),
        [""; 0]
    );
    // One of the middle, into which what it includes makes a hole.
    let between = (
        "between.toml",
        "policy = 1\ninclude = ['allows.toml']\n[msrs]\n'0x600..=0x6df' = 'none'\n",
    );
    let text = "policy = 1\ndefault = 'deny'\ninclude = ['between.toml']\n[msrs]\n";
    assert_eq!(found(text, &[between, allows]), [&*by]);
    // An exception of the text itself, or of one that includes it, is meant.
    let own = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x600..=0x6df' = 'none'\n0x611 = 'r'\n";
    assert_eq!(found(own, &[]), [""; 0]);
    let including =
        "policy = 1\ndefault = 'deny'\ninclude = ['refuses.toml']\n[msrs]\n0x611 = 'r'\n";
    assert_eq!(found(including, &[refuses]), [""; 0]);
    let wider = format!("{both}'0x610..=0x61f' = 'r'\n");
    assert_eq!(found(&wider, &[refuses, allows]), [""; 0], "it covers both");
}

#[test]
fn whens_on_either_side_are_punctures_on_their_processors() {
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
        "write `{line}` below `[when.msrs]` of a `[[when]]` of policy.toml with `cpu = {{ vendor = [\"GenuineIntel\"] }}`"
    );
    assert_eq!(remedy(&text, &general), place);
    assert_eq!(remedy(&format!("{HEAD}{wide}"), &of_when), place);
    // No processor has both.
    let other = general_amd();
    assert_eq!(found(&text, &other), [""; 0]);
}

fn general_amd() -> [(&'static str, &'static str); 1] {
    guest("[[when]]\ncpu = { vendor = 'AuthenticAMD' }\n[when.msrs]\n0x611 = 'r'\n")
}

/// If the policy has an entry of these MSRs that inherits, the line to change is that entry's.
#[test]
fn remedy_takes_the_place_of_an_own_entry_of_the_same_msrs() {
    let guest = guest("0x611 = 'r'\n");
    let text = format!(
        "{HEAD}'0x600..=0x6df' = 'none'\n0x611 = {{ read = 'inherit', write = 'deny', why = 'x' }}\n"
    );
    let punctures = punctures(&compiled(&text, &guest));
    assert_eq!(
        punctures[0].remedy.to_string(),
        "in policy.toml write `0x611 = { read = \"deny\", write = \"deny\", override = true }` in place of line 6"
    );
}

/// Two wider entries of two texts: the line closes both holes.
#[test]
fn remedy_is_as_strict_as_the_strictest_wider_entry() {
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

/// An override replaces all included entries of its MSRs: they share one line.
#[test]
fn remedies_of_entries_of_the_same_msrs_are_one_line() {
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

/// The pasted line does not bring back what an included override took away.
#[test]
fn remedy_leaves_out_what_an_included_override_replaced() {
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
fn punctured_entry_is_partly_enforced() {
    let guest = guest("0x611 = 'r'\n0x619 = 'w'\n0x61a = 'w'\n");
    let compiled = compiled(&format!("{HEAD}'0x600..=0x6df' = 'none'\n"), &guest);
    let wide = enforcement(&compiled).into_iter().find(|one| {
        one.entry
            .is_some_and(|id| compiled.policy().entry(id).key() == "0x600..=0x6df")
    });
    let Some(Enforcement { extent, holes, .. }) = wide else {
        panic!("it decides something");
    };
    let holes: Vec<_> = holes
        .iter()
        .map(|hole| {
            let msrs = hole.msrs.map_or("all".to_owned(), |msrs| msrs.to_string());
            format!("{} {msrs} {}", hole.access, hole.cause.name())
        })
        .collect();
    assert_eq!(extent, Extent::Partly);
    assert_eq!(
        holes,
        [
            "read 0x611 punctured",
            "write 0x619 punctured",
            "write 0x61a punctured"
        ]
    );
}

const WORDS: [&str; 5] = ["allow", "deny", "kill", "inherit", "inherit"];

fn entries() -> impl Strategy<Value = String> {
    let says = || prop::sample::select(WORDS.to_vec());
    let entry = (0_u32..12, 0_u32..6, says(), says());
    prop::collection::vec(entry, 0..5).prop_map(|entries| {
        let line = |(first, count, read, write): (u32, u32, &str, &str)| {
            let last = first + count;
            format!("'{first:#x}..={last:#x}' = {{ read = '{read}', write = '{write}' }}\n")
        };
        entries.into_iter().map(line).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_global_rejects: 20_000, ..ProptestConfig::default() })]

    /// Where a line is pasted, nothing is looser than the wide entry any more. A line may be punctured
    /// itself, by an exception to an entry whose place it takes: in a few steps there is no puncture.
    /// Where a line disagrees with an entry that the included one agreed with, that is a mistake.
    #[test]
    fn remedies_close_every_puncture(own in entries(), one in entries(), other in entries()) {
        let texts = [("one.toml", one), ("other.toml", other)]
            .map(|(name, entries)| (name, format!("policy = 1\n[msrs]\n{entries}")));
        let files = texts.each_ref().map(|(name, text)| (*name, &**text));
        let head = "policy = 1\ndefault = 'deny'\ninclude = ['one.toml', 'other.toml']\n[msrs]\n";
        let mut text = format!("{head}{own}");
        let policy = parse(&Source::new("policy.toml", &text), &mut Texts(&files));
        prop_assume!(policy.is_ok());
        for _ in 0..8 {
            let before = compiled(&text, &files);
            let holes = punctures(&before);
            // A line that is there already is changed, not added.
            prop_assume!(holes.iter().all(|hole| hole.remedy.to_string().starts_with("write")));
            let lines: BTreeSet<_> = holes.iter().map(|hole| &hole.remedy.line).collect();
            text.extend(lines.into_iter().map(|line| format!("{line}\n")));
            let parsed = parse(&Source::new("policy.toml", &text), &mut Texts(&files));
            if let Err(mistakes) = parsed {
                // What overlaps the included entry in part and agreed with it has to be replaced, too.
                let are_conflicts = mistakes.mistakes().iter().all(|one| matches!(one.wrong(), Wrong::Conflict { .. }));
                prop_assert!(are_conflicts, "{text}\n{files:?}\n{mistakes:?}");
                return Ok(());
            }
            let after = compiled(&text, &files);
            for hole in holes {
                let wide = before.policy().entry(hole.wide);
                for (access, msrs) in Access::ALL.into_iter().zip(&hole.msrs) {
                    let ranges = msrs.iter().flat_map(MsrSet::ranges);
                    for index in ranges.flat_map(|range| [range.first(), range.last()]) {
                        let is = after.variants()[0].rules().at(index, access).action;
                        let was = wide.action(access).expect("it is punctured there");
                        prop_assert_eq!(is.compared_with(was), Comparison::NoLooser, "{}", text);
                    }
                }
            }
        }
        let left = punctures(&compiled(&text, &files));
        prop_assert!(left.is_empty(), "{text}\n{files:?}\n{left:?}");
    }
}

/// Each of many narrow entries lies within a wide one of each of many texts.
#[test]
fn punctures_of_many_texts_are_as_many_as_entries_and_not_as_pairs() {
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
    // One more than the limit: the first of an entry that had none.
    assert_eq!(found.len(), MAX_PUNCTURES + 1);
    let key = |id| compiled.policy().entry(id).key();
    let mut pairs = found.iter().map(|one| (key(one.wide), key(one.narrow)));
    assert!(pairs.any(|pair| pair == ("0x40000..=0x40001", "0x40000")));
    // Each is said to be punctured, however many are left out.
    let partly = enforcement(&compiled).into_iter();
    let partly = partly.filter(|one| one.extent == Extent::Partly && one.entry.is_some());
    assert_eq!(partly.count(), WIDE + 1);
}
