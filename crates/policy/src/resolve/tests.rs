use proptest::prelude::*;

use super::*;
use crate::NoIncludes;
use crate::source::Source;
use msrgate_filter::MsrIndex;
use msrgate_program::{Action, DecidedBy};

fn resolved(text: &str) -> Rules {
    let text = format!("policy = 1\ndefault = \"deny\"\n[msrs]\n{text}");
    let parsed = parse(&Source::new("test.toml", &text), &mut NoIncludes);
    first(parsed.expect("a policy without mistakes"))
}

fn first(resolved: ResolvedPolicy) -> Rules {
    resolved.into_parts().1.swap_remove(0).rules
}

fn read(table: &Rules, index: u32) -> (Action, DecidedBy) {
    let segment = table.at(MsrIndex::new(index), Access::Read);
    (segment.action.clone(), segment.by)
}

#[test]
fn resolve_lets_narrower_entry_win_over_wider_one_in_any_order_of_entries() {
    let table = resolved("0x15 = 'none'\n'0x10..=0x1f' = 'r'\n'0x12..=0x17' = 'rw'");
    let entry = |id| DecidedBy::Entry(EntryId::new(id));
    assert_eq!(read(&table, 0x0f), (Action::Deny, DecidedBy::Default));
    assert_eq!(read(&table, 0x10), (Action::Allow, entry(1)));
    assert_eq!(read(&table, 0x12), (Action::Allow, entry(2)));
    assert_eq!(read(&table, 0x15), (Action::Deny, entry(0)));
    assert_eq!(read(&table, 0x16), (Action::Allow, entry(2)));
    assert_eq!(read(&table, 0x1f), (Action::Allow, entry(1)));
    assert_eq!(read(&table, 0x20), (Action::Deny, DecidedBy::Default));
    assert_eq!(read(&table, 0x8ff), (Action::Allow, DecidedBy::Kvm));
}

#[test]
fn resolve_inherit_takes_action_of_wider_entry() {
    let table = resolved("'0x10..=0x1f' = 'r'\n0x15 = { read = 'inherit', write = 'allow' }");
    assert_eq!(read(&table, 0x15).1, DecidedBy::Entry(EntryId::new(0)));
    let write = table.at(MsrIndex::new(0x15), Access::Write);
    assert_eq!(
        (write.action.clone(), write.by),
        (Action::Allow, DecidedBy::Entry(EntryId::new(1)))
    );
}

/// A policy may have 250,000 entries, whose size makes up much of the memory that compiling takes.
#[test]
fn entry_type_takes_at_most_128_bytes() {
    assert!(size_of::<Entry>() <= 128, "{}", size_of::<Entry>());
}

/// Generates random entries: the first MSR, the number of further MSRs, and the number of a word.
/// The MSRs are few, so that entries nest and overlap.
fn entries() -> impl Strategy<Value = Vec<(u32, u32, usize)>> {
    prop::collection::vec((0_u32..64, 0_u32..20, 0_usize..4), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A policy is refused exactly if two entries are equal or overlap in part, and disagree.
    /// Otherwise the smallest entry that contains an MSR decides it.
    #[test]
    fn resolve_matches_rule_of_smallest_entry(entries in entries()) {
        let words = ["rw", "r", "w", "none"];
        let allows = |word: usize, access: Access| words[word].contains(match access {
            Access::Read => 'r',
            Access::Write => 'w',
        });
        let mut text = "policy = 1\ndefault = 'deny'\n[msrs]\n".to_owned();
        for (number, &(first, count, word)) in entries.iter().enumerate() {
            // A range is written in several ways, so that TOML does not see a duplicate key.
            let zeroes = "0".repeat(number + 1);
            let last = first + count;
            text += &format!("'0x{zeroes}{first:x}..=0x{last:x}' = '{}'\n", words[word]);
        }
        let clash = |&(a, an, aw): &(u32, u32, usize), &(b, bn, bw): &(u32, u32, usize)| {
            let (ae, be) = (a + an, b + bn);
            let a_in_b = b <= a && ae <= be;
            let b_in_a = a <= b && be <= ae;
            let nested = (a_in_b || b_in_a) && (a, ae) != (b, be);
            a <= be && b <= ae && !nested && aw != bw
        };
        let clashes = entries.iter().enumerate()
            .any(|(at, one)| entries[..at].iter().any(|other| clash(one, other)));
        let parsed = parse(&Source::new("test.toml", &text), &mut NoIncludes);
        prop_assert_eq!(parsed.is_err(), clashes, "{}", text);
        let Ok(policy) = parsed else { return Ok(()) };
        let table = first(policy);
        for access in Access::ALL {
            for index in 0..0x60 {
                let smallest = entries.iter()
                    .filter(|(first, count, _)| (*first..=first + count).contains(&index))
                    .min_by_key(|(_, count, _)| *count);
                let wanted = smallest.is_some_and(|&(_, _, word)| allows(word, access));
                let got = *table.at(MsrIndex::new(index), access).action == Action::Allow;
                prop_assert_eq!(got, wanted, "{} of {:#x} in {}", access, index, text);
            }
            let mut next = 0_u64;
            for segment in table.of(access) {
                prop_assert_eq!(u64::from(segment.msrs.first().get()), next);
                next = u64::from(segment.msrs.last().get()) + 1;
            }
            prop_assert_eq!(next, 1 << 32);
        }
    }
}
