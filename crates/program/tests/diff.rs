//! Tests of the changes from one program to another.

use msrgate_filter::{Access, MsrIndex};
use proptest::prelude::*;

use msrgate_policy::{NoIncludes, Source, compile, parse, parse_cpu};
use msrgate_program::*;

fn program(text: &str) -> Program {
    let source = Source::new("policy.toml", text);
    let policy = parse(&source, &mut NoIncludes).expect(text);
    compile(policy).expect(text).into_program()
}

fn small(entries: &str) -> Program {
    program(&format!("policy = 1\ndefault = 'deny'\n[msrs]\n{entries}"))
}

/// Returns the changes between the first variants of two programs.
fn changed(old: &Program, new: &Program) -> Vec<Change> {
    let [old, new] = [old, new].map(|program| &program.variants()[0]);
    changes(old, new)
}

#[test]
fn changes_joins_neighbouring_msrs_with_the_same_change() {
    let old = small("'0x10..=0x1f' = 'r'\n0x30 = 'rw'");
    let new = small("'0x10..=0x17' = 'rw'\n'0x18..=0x1f' = 'rw'\n'0x20..=0x2f' = 'none'");
    let shown: Vec<_> = changed(&old, &new)
        .iter()
        .map(|change| {
            let (was, is) = (change.was.0.word(), change.is.0.word());
            format!(
                "{} {} {was} {is} {:?}",
                change.access, change.msrs, change.direction
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "read 0x30 allow deny Stricter",
            "write 0x10..=0x1f deny allow Looser",
            "write 0x30 allow deny Stricter",
        ]
    );
}

#[test]
fn differences_compares_all_variants_that_apply_on_the_same_processor() {
    let when = |model: &str, entry: &str| {
        format!(
            "policy = 1\ndefault = 'deny'\n[[when]]\ncpu = {{ vendor = 'GenuineIntel', model = {model} }}\n[when.msrs]\n{entry}"
        )
    };
    let old = program(&when("[1, 2]", "0x10 = 'r'"));
    let new = program(&when("[2, 3]", "0x10 = 'r'"));
    let found: Vec<_> = differences(&old, &new, None)
        .expect("few processors")
        .iter()
        .map(|one| (one.cpu.clone().unwrap().model, one.changes[0].direction))
        .collect();
    assert_eq!(found, [(1, Direction::Stricter), (3, Direction::Looser)]);
    let two = parse_cpu("GenuineIntel:6:2").unwrap().cpu().clone();
    assert_eq!(differences(&old, &new, Some(&two)), Ok(Vec::new()));
}

#[test]
fn direction_of_change_to_wider_mask_is_looser() {
    let mask = |bits: u64| {
        Action::Mask(Mask {
            bits,
            outside: Outside::Deny,
        })
    };
    let of = |was: u64, is: u64| Direction::of(&mask(was), &mask(is));
    assert_eq!(of(1, 3), Direction::Looser);
    assert_eq!(of(3, 1), Direction::Stricter);
    assert_eq!(of(1, 2), Direction::Different);
    assert!(Direction::Different.may_loosen());
    assert!(!Direction::Neutral.may_loosen());
}

#[test]
fn setting_changes_lists_each_changed_setting() {
    let of = |text: &str| {
        program(&format!("policy = 1\ndefault = 'allow'\n{text}"))
            .settings()
            .clone()
    };
    let found: Vec<_> = setting_changes(
        &of(""),
        &of("mode = 'audit'\nunknown = 'ignore'\nlog = 'none'"),
    )
    .iter()
    .map(|one| format!("{} {} {} {:?}", one.key, one.was, one.is, one.direction))
    .collect();
    assert_eq!(
        found,
        [
            "mode enforce audit Looser",
            "unknown.read deny 0x0 Looser",
            "unknown.write deny ignore Looser",
            "log denied none Neutral",
        ]
    );
    assert_eq!(setting_changes(&of(""), &of("")), []);
}

#[test]
fn setting_changes_with_more_accepted_gaps_are_looser() {
    let of = |words: &str| {
        program(&format!("policy = 1\ndefault = 'deny'\naccept = [{words}]"))
            .settings()
            .clone()
    };
    let found = |was: &str, is: &str| {
        let changes = setting_changes(&of(was), &of(is));
        changes.first().map(|one| {
            assert_eq!((changes.len(), one.key), (1, "accept"));
            (one.was.clone(), one.is.clone(), one.direction)
        })
    };
    let change = |was: &str, is: &str, direction| Some((was.to_owned(), is.to_owned(), direction));
    let (one, two) = ("'x2apic'", "'x2apic', 'confidential-guest'");
    assert_eq!(
        found("", one),
        change("nothing", "x2apic", Direction::Looser)
    );
    assert_eq!(
        found(two, one),
        change("confidential-guest, x2apic", "x2apic", Direction::Stricter)
    );
    assert_eq!(
        found("'confidential-guest'", one),
        change("confidential-guest", "x2apic", Direction::Different)
    );
    assert_eq!(found(two, "'confidential-guest', 'x2apic', 'x2apic'"), None);
}

#[test]
fn differences_lists_msrs_whose_entry_changes_log_but_not_a_changed_log_of_whole_policy() {
    let of = |log: &str, entry: &str, other: &str| {
        program(&format!(
            "policy = 1\ndefault = 'deny'\nlog = '{log}'\n[msrs]\n'0x10..=0x1f' = {{ read = 'allow', write = 'inherit'{entry} }}\n0x20 = {{ read = 'allow', write = 'deny'{other} }}"
        ))
    };
    let found = |was: &Program, is: &Program| {
        let differences = differences(was, is, None).expect("few processors");
        let shown = differences.iter().flat_map(|one| {
            assert_eq!(one.changes, []);
            one.logs.iter().map(|log| {
                let (was, is) = (log.was.0.word(), log.is.0.word());
                format!("{} {} {was} {is}", log.access, log.msrs)
            })
        });
        shown.collect::<Vec<_>>()
    };
    let plain = of("denied", "", "");
    assert_eq!(
        found(&plain, &of("denied", ", log = 'first'", ", log = 'first'")),
        ["read 0x10..=0x20 denied first", "write 0x20 denied first"]
    );
    assert_eq!(found(&plain, &of("none", "", "")), [""; 0]);
    // The `log` of the policy changes. The logging of the MSR 0x20 stays, because its entry has a `log`
    // of its own.
    assert_eq!(found(&plain, &of("none", "", ", log = 'denied'")), [""; 0]);
    assert_eq!(
        found(&plain, &of("none", "", ", log = 'first'")),
        ["read 0x20 denied first", "write 0x20 denied first"]
    );
}

/// The texts of entries' actions: under some of them a guest can do more than under others.
const VALUES: [&str; 8] = [
    "'rw'",
    "'r'",
    "'w'",
    "'none'",
    "{ read = { value = '0x1' }, write = 'ignore' }",
    "{ read = { value = '0x2' }, write = 'kill' }",
    "{ read = { handler = 'a' }, write = { handler = 'a' } }",
    "{ read = { handler = 'b' }, write = 'deny' }",
];

/// Generates programs whose entries have one MSR each, from 0x10 to 0x1f.
fn any_program() -> impl Strategy<Value = Program> {
    let values = proptest::collection::vec(proptest::option::of(0..VALUES.len()), 16);
    (values, any::<bool>()).prop_map(|(values, is_open)| {
        let entries: Vec<_> = (0x10..)
            .zip(values)
            .filter_map(|(index, value)| Some(format!("{index:#x} = {}", VALUES[value?])))
            .collect();
        let default = if is_open { "allow" } else { "deny" };
        let entries = entries.join("\n");
        program(&format!(
            "policy = 1\ndefault = '{default}'\n[msrs]\n{entries}"
        ))
    })
}

fn is_within(policy: &Program, org: &Program) -> bool {
    let changes = changed(org, policy);
    changes.iter().all(|change| !change.direction.may_loosen())
}

/// Iterates over the MSRs at which these programs may differ, and their neighbours.
fn indices() -> impl Iterator<Item = MsrIndex> {
    let everywhere = (0..0x40).chain([0x7ff, 0x800, 0x8ff, 0x900, u32::MAX]);
    everywhere.map(MsrIndex::new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn changes_between_programs_match_rules_of_both_for_each_access(old in any_program(), new in any_program()) {
        let changes = changed(&old, &new);
        for (index, access) in indices().flat_map(|index| Access::ALL.map(|access| (index, access))) {
            let [was, is] = [&old, &new].map(|program| program.variants()[0].rule(index, access).action);
            let found: Vec<_> = changes
                .iter()
                .filter(|change| change.access == access && change.msrs.contains(index))
                .collect();
            if was == is {
                prop_assert!(found.is_empty());
                continue;
            }
            let [change] = found[..] else {
                return Err(TestCaseError::fail(format!("{access} of {index}: {found:?}")));
            };
            prop_assert_eq!((&change.was.0, &change.is.0), (was, is));
            let expected = match is.compared_with(was) {
                Comparison::Looser => Direction::Looser,
                Comparison::NoLooser => Direction::Stricter,
                Comparison::Different => Direction::Different,
            };
            prop_assert_eq!(change.direction, expected);
        }
        prop_assert_eq!(changes.is_empty(), old.digest() == new.digest());
    }

    #[test]
    fn no_looser_than_relation_is_a_partial_order_of_programs(
        one in any_program(), two in any_program(), three in any_program(),
    ) {
        prop_assert!(is_within(&one, &one));
        if is_within(&one, &two) && is_within(&two, &one) {
            prop_assert_eq!(changed(&one, &two), []);
        }
        if is_within(&one, &two) && is_within(&two, &three) {
            prop_assert!(is_within(&one, &three));
        }
    }

    #[test]
    fn changes_from_new_to_old_program_have_the_opposite_direction(
        old in any_program(), new in any_program(),
    ) {
        let back = changed(&new, &old);
        for (there, back) in changed(&old, &new).iter().zip(back) {
            prop_assert_eq!((there.msrs, &there.was, &there.is), (back.msrs, &back.is, &back.was));
            let opposite = match there.direction {
                Direction::Looser => Direction::Stricter,
                Direction::Stricter => Direction::Looser,
                other => other,
            };
            prop_assert_eq!(back.direction, opposite);
        }
    }
}
