use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::learn::{EMPTY, First};
use crate::parse::NoIncludes;

fn seen(index: u32, access: Access) -> Sighting {
    Sighting::new(MsrIndex::new(index), access, Fate::Done)
}

fn at(milliseconds: u64) -> First {
    First::by_vcpu(0, Duration::from_millis(milliseconds))
}

fn from(text: &str, seen: &[Sighting]) -> Learnt {
    let source = Source::new("guest.toml", text);
    learn(&source, &mut NoIncludes, seen, &Notes::default()).unwrap()
}

fn compiled(text: &str) -> Compiled {
    let source = Source::new("guest.toml", text);
    compile(parse(&source, &mut NoIncludes).unwrap()).unwrap()
}

fn actions(text: &str, index: u32) -> [Action; 2] {
    actions_of(&compiled(text), index)
}

fn actions_of(compiled: &Compiled, index: u32) -> [Action; 2] {
    let rule = |access| compiled.on(None).rule(MsrIndex::new(index), access);
    Access::ALL.map(|access| rule(access).action.clone())
}

#[test]
fn learnt_policy_allows_accesses_of_run_and_names_vcpu_and_time_of_first_access() {
    let learnt = from(
        EMPTY,
        &[
            seen(0xc000_0080, Access::Read).with_first(at(2107)),
            seen(0xc000_0080, Access::Write).with_first(at(2108).writing(0xd01)),
            seen(0xc000_0082, Access::Write).with_first(at(2200).writing(0xffff_ffff_8180_0000)),
            seen(0x10, Access::Read).with_first(at(12)),
            Sighting::new(MsrIndex::new(0x1c9), Access::Read, Fate::Unknown).with_first(at(3000)),
        ],
    );
    insta::assert_snapshot!(learnt.text);
    assert_eq!(learnt.added.len(), 4);
    assert_eq!(learnt.kept, []);
    assert!(
        !learnt.text.contains("8180"),
        "the policy must not contain the value of LSTAR"
    );
}

#[test]
fn learn_keeps_and_lists_entries_of_author_that_refuse_accesses_of_guest() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\n# Ours.\n\"0x600..=0x6df\" = \"none\" # power\nIA32_PAT = \"r\"\n";
    let learnt = from(
        text,
        &[
            seen(0x611, Access::Read),
            seen(0x277, Access::Write),
            seen(0x277, Access::Read),
            seen(0xffff_ffff, Access::Read),
            seen(0x10, Access::Read),
        ],
    );
    insta::assert_snapshot!(learnt.text);
    insta::assert_debug_snapshot!(learnt.kept);
    assert_eq!(learnt.added, [(MsrIndex::new(0x10), Access::Read)]);
}

#[test]
fn learnt_entry_that_allows_reads_also_allows_writes_after_later_run_with_writes() {
    let first = from(EMPTY, &[seen(0x277, Access::Read).with_first(at(5))]);
    let second = from(&first.text, &[seen(0x277, Access::Write).with_first(at(7))]);
    assert_eq!(actions(&first.text, 0x277), [Action::Allow, Action::Deny]);
    assert_eq!(actions(&second.text, 0x277), [Action::Allow, Action::Allow]);
    let third = from(&second.text, &[seen(0x277, Access::Write)]);
    assert_eq!(
        [&first, &second, &third].map(|one| (one.runs, one.runs_without_news)),
        [(1, 0), (2, 0), (3, 1)]
    );
    insta::assert_snapshot!(third.text);
}

#[test]
fn learnt_entry_that_allows_writes_keeps_reads_allowed_by_wider_entry() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\n\"0x200..=0x2ff\" = { read = \"allow\", write = \"inherit\" }\n";
    let learnt = from(text, &[seen(0x277, Access::Write)]);
    assert_eq!(actions(&learnt.text, 0x277), [Action::Allow, Action::Allow]);
    assert_eq!(actions(&learnt.text, 0x278), [Action::Allow, Action::Deny]);
}

#[test]
fn learnt_entry_avoids_key_that_author_uses() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_PAT = { read = \"allow\", write = \"inherit\" }\n";
    let learnt = from(text, &[seen(0x277, Access::Write)]);
    assert_eq!(actions(&learnt.text, 0x277), [Action::Allow, Action::Allow]);
    assert!(
        learnt
            .text
            .contains("IA32_PAT = { read = \"allow\", write = \"inherit\" }"),
        "{}",
        learnt.text
    );
}

#[test]
fn learnt_entry_for_msr_unknown_to_kvm_allows_it_after_run_on_host_whose_kvm_knows_it() {
    let unknown = Sighting::new(MsrIndex::new(0x1c9), Access::Read, Fate::Unknown);
    let first = from(EMPTY, std::slice::from_ref(&unknown));
    assert_eq!(actions(&first.text, 0x1c9), [Action::Deny, Action::Deny]);
    let second = from(&first.text, &[seen(0x1c9, Access::Read)]);
    assert_eq!(actions(&second.text, 0x1c9), [Action::Allow, Action::Deny]);
    assert!(!second.text.contains(REFUSED), "{}", second.text);
    let third = from(&second.text, &[unknown]);
    assert_eq!(third.added, []);
}

#[test]
fn learn_adds_no_entry_to_policy_with_default_allow() {
    let learnt = from(
        "policy = 1\ndefault = \"allow\"\n",
        &[seen(0x10, Access::Read)],
    );
    assert_eq!((learnt.added, learnt.runs_without_news), (Vec::new(), 1));
}

/// An author may begin a `why` with `learnt: ` by chance, or add words to the `why` of a learnt
/// entry.
#[test]
fn learn_does_not_change_entry_whose_why_has_words_that_learning_never_writes() {
    for why in [
        "learnt: the hard way, never allow",
        "learnt: first read by mistake",
        "learnt: first read by vCPU 0 after 0.005 s; never allow",
        "learnt: first read at night",
        "learnt: ",
    ] {
        let text = format!(
            "policy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_EFER = {{ read = \"deny\", write = \"deny\", why = \"{why}\" }}\n"
        );
        let learnt = from(&text, &[seen(0xc000_0080, Access::Read)]);
        assert_eq!((learnt.added, learnt.kept.len()), (Vec::new(), 1), "{why}");
    }
}

#[test]
fn every_why_that_learning_writes_marks_entry_as_learnt() {
    let firsts = [
        First::default(),
        at(5),
        at(5).of_vm(3),
        at(5).writing(0xd01),
        First {
            at: Some("a b.jsonl:1".to_owned()),
            ..First::default()
        },
    ];
    for fate in FATES {
        for first in &firsts {
            for access in Access::ALL {
                let seen = Sighting::new(MsrIndex::new(0xc000_0080), access, fate);
                let seen = seen.with_first(first.clone());
                let why = entry::why(&[&seen]);
                assert!(entry::is_learnt(&why), "{why}");
                assert!(
                    entry::is_learnt(&(why.clone() + &entry::more(&[&seen]))),
                    "{why}"
                );
            }
        }
    }
}

const FATES: [Fate; 6] = [
    Fate::Done,
    Fate::Untried,
    Fate::Refused,
    Fate::Answered,
    Fate::Faulted,
    Fate::Unknown,
];

fn sightings() -> impl Strategy<Value = Vec<Sighting>> {
    let index = prop_oneof![
        0x0_u32..0x20,
        0x200_u32..0x210,
        0xc000_0080_u32..0xc000_0085
    ];
    let one = (index, any::<bool>(), 0..6_u8).prop_map(|(index, is_write, fate)| {
        Sighting::new(
            MsrIndex::new(index),
            Access::ALL[usize::from(is_write)],
            FATES[usize::from(fate)],
        )
    });
    prop::collection::vec(one, 0..20)
}

const AUTHORS: &str = "# Ours.\npolicy = 1\ndefault = \"deny\"\n\n[msrs]\n\"0x200..=0x204\" = \"none\"\n\"0x205..=0x208\" = { read = \"allow\", write = \"inherit\" } # MTRRs\n\"0x206\" = { read = \"inherit\", write = \"deny\", final = true }\n";

/// Returns the actions that a policy gives to reads and writes of all MSRs of [`sightings`].
fn decisions(text: &str) -> Vec<[Action; 2]> {
    let compiled = compiled(text);
    let indices = (0..0x20)
        .chain(0x200..0x210)
        .chain(0xc000_0080..0xc000_0085);
    indices.map(|index| actions_of(&compiled, index)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn order_of_learnt_runs_does_not_change_decisions_of_policy(
        one in sightings(), other in sightings(), third in sightings(), is_empty in any::<bool>(),
    ) {
        let text = if is_empty { EMPTY } else { AUTHORS };
        let run = |runs: &[&[Sighting]]| runs.iter().fold(text.to_owned(), |text, seen| from(&text, seen).text);
        let all = [one.clone(), other.clone(), third.clone()].concat();
        let wanted = decisions(&run(&[&all]));
        prop_assert_eq!(&decisions(&run(&[&one, &other, &third])), &wanted);
        prop_assert_eq!(&decisions(&run(&[&third, &one, &other])), &wanted);
        // Learning again from a run that was learnt before changes nothing but the count of runs.
        let once = run(&[&one, &other]);
        let again = from(&once, &one);
        prop_assert_eq!(&again.added, &[]);
        prop_assert_eq!(again.text.lines().skip(1).collect::<Vec<_>>(), once.lines().skip(1).collect::<Vec<_>>());
    }
}

fn accepted(text: &str, seen: &[Sighting], named: &[u32]) -> Learnt {
    let source = Source::new("guest.toml", text);
    let named = named.iter().copied().map(MsrIndex::new).collect();
    accept(&source, &mut NoIncludes, seen, &named).unwrap()
}

#[test]
fn accept_changes_entry_of_author_only_if_its_msr_is_named() {
    let text = "# Ours.\npolicy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_PAT = \"r\" # memory types\n\"0x600..=0x6df\" = \"none\" # power\nIA32_EFER = { read = \"deny\", write = \"deny\", why = \"not yet\" }\n";
    let all = [
        seen(0x277, Access::Write),
        seen(0x606, Access::Read),
        seen(0xc000_0080, Access::Read),
    ];
    let kept = accepted(text, &all, &[]);
    assert_eq!((kept.added, kept.kept.len()), (Vec::new(), 3));
    let learnt = accepted(text, &all, &[0x277, 0x606, 0xc000_0080]);
    insta::assert_snapshot!(learnt.text);
    assert_eq!((learnt.added.len(), learnt.kept), (3, Vec::new()));
    assert_eq!(actions(&learnt.text, 0x277), [Action::Allow, Action::Allow]);
    assert_eq!(actions(&learnt.text, 0x606), [Action::Allow, Action::Deny]);
    assert_eq!(actions(&learnt.text, 0x607), [Action::Deny, Action::Deny]);
}

#[test]
fn accept_keeps_final_entry_that_is_named() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\n0x606 = { read = \"deny\", write = \"deny\", final = true }\n";
    let learnt = accepted(text, &[seen(0x606, Access::Read)], &[0x606]);
    assert_eq!((learnt.added, learnt.kept.len()), (Vec::new(), 1));
}

#[test]
fn access_of_msr_whose_keys_are_all_used_is_listed_as_kept_and_not_as_added() {
    let keys: Vec<_> = entry::keys(MsrIndex::new(0x606)).collect();
    let entries: String = keys
        .iter()
        .map(|key| {
            format!("{key} = {{ read = \"inherit\", write = \"inherit\", log = \"none\" }}\n")
        })
        .collect();
    let text = format!("policy = 1\ndefault = \"deny\"\n\n[msrs]\n{entries}");
    let learnt = from(&text, &[seen(0x606, Access::Read)]);
    assert_eq!(learnt.added, []);
    assert_eq!(learnt.kept[0].by, KeptBy::KeysTaken);
}

#[test]
fn write_that_kvm_refused_for_its_value_is_allowed_below_comment_of_its_own() {
    let invalid = Sighting::new(MsrIndex::new(0x1a0), Access::Write, Fate::Refused);
    let learnt = from(EMPTY, &[seen(0x277, Access::Write), invalid]);
    assert!(learnt.text.contains(INVALID), "{}", learnt.text);
    assert_eq!(actions(&learnt.text, 0x1a0), [Action::Deny, Action::Allow]);
}

#[test]
fn notes_of_two_runs_stand_once_in_comments_at_head_of_policy() {
    let source = |text: &str| Source::new("guest.toml", text);
    let notes = Notes {
        missing: vec!["NOT ALL: 9 events.".to_owned()],
        unseen: vec!["a.jsonl has only refusals.".to_owned()],
    };
    let learn_with = |text: &str| {
        learn(&source(text), &mut NoIncludes, &[], &notes)
            .unwrap()
            .text
    };
    let twice = learn_with(&learn_with(EMPTY));
    let head: Vec<_> = twice.lines().take(4).collect();
    assert_eq!(
        head,
        [
            "# NOT ALL: 9 events.",
            "# Learnt by msrgate from 2 runs; the last 2 added nothing.",
            "# a.jsonl has only refusals.",
            ""
        ]
    );
}

#[test]
fn learn_and_accept_do_not_loosen_final_entry_that_inherits() {
    for entry in [
        "0x606 = { read = \"inherit\", write = \"deny\", final = true }",
        "\"0x600..=0x60f\" = { read = \"inherit\", write = \"deny\", final = true }",
    ] {
        let text = format!("policy = 1\ndefault = \"deny\"\n\n[msrs]\n{entry}\n");
        let all = [seen(0x606, Access::Read)];
        for learnt in [
            from(&text, &all),
            accepted(&text, &all, &[]),
            accepted(&text, &all, &[0x606]),
        ] {
            assert_eq!(learnt.added, [], "{entry}");
            assert!(matches!(learnt.kept[0].by, KeptBy::Entry { .. }), "{entry}");
        }
    }
}

#[test]
fn accept_lists_accesses_that_only_a_person_can_allow_and_allows_the_others() {
    let text = "policy = 1\ndefault = \"deny\"\n\n[msrs]\nIA32_EFER = \"none\"\nIA32_LSTAR = { read = \"allow\", write = \"pin\" }\n\n[[when]]\ncpu = { vendor = \"AuthenticAMD\" }\n[when.msrs]\nIA32_STAR = \"none\"\n";
    let all = [
        seen(0xc000_0080, Access::Read),
        seen(0xc000_0082, Access::Write),
        seen(0xc000_0081, Access::Write),
    ];
    let learnt = accepted(text, &all, &[0xc000_0080, 0xc000_0082, 0xc000_0081]);
    assert_eq!(learnt.added, [(MsrIndex::new(0xc000_0080), Access::Read)]);
    let lines = learnt.kept.iter().map(|kept| match &kept.by {
        KeptBy::ByHand { place, .. } => (kept.index.get(), place.line),
        other => panic!("{other:?}"),
    });
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [(0xc000_0081, 11), (0xc000_0082, 6)]
    );
}

#[test]
fn comment_with_schema_stays_first_line_of_learnt_policy() {
    let text = format!("#:schema policy.schema.json\n{EMPTY}");
    let notes = Notes {
        missing: vec!["NOT ALL: 9 events.".to_owned()],
        unseen: Vec::new(),
    };
    let mut text = text;
    for _ in 0..2 {
        let source = Source::new("guest.toml", &text);
        text = learn(&source, &mut NoIncludes, &[], &notes).unwrap().text;
    }
    let head: Vec<_> = text.lines().take(3).collect();
    assert_eq!(
        head[..2],
        ["#:schema policy.schema.json", "# NOT ALL: 9 events."]
    );
    assert!(
        head[2].starts_with("# Learnt by msrgate from 2 runs"),
        "{text}"
    );
}
