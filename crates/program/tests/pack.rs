//! Tests of packing policies into filters with the fewest ranges.

use std::array;
use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use msrgate_filter::{Accesses, Filter, Range};
use msrgate_policy::{NoIncludes, ResolvedPolicy, Source, parse};
use msrgate_program::{CompileError, PackError, Verdicts};

fn verdicts(text: &str) -> Verdicts {
    let source = Source::new("test.toml", text);
    resolved(parse(&source, &mut NoIncludes).expect("a policy without mistakes"))
}

fn resolved(policy: ResolvedPolicy) -> Verdicts {
    let (policy, variants) = policy.into_parts();
    variants[0]
        .rules
        .verdicts(policy.default_action().verdict())
}

fn pack(verdicts: &Verdicts) -> Result<Filter, PackError> {
    verdicts.pack().map_err(|error| match error {
        CompileError::Pack(error) => error,
        other => unreachable!("{other}"),
    })
}

fn packed(default: &str, entries: &str) -> Result<Filter, PackError> {
    let table = verdicts(&format!(
        "policy = 1\ndefault = '{default}'\n[msrs]\n{entries}"
    ));
    let filter = pack(&table);
    if let Ok(filter) = &filter {
        assert_eq!(table.first_difference(filter), None, "{entries}");
    }
    filter
}

fn ranges(filter: &Filter) -> Vec<(Accesses, u32, u32)> {
    let one = |range: &Range| (range.accesses(), range.base().get(), range.bitmap().count());
    filter.ranges().iter().map(one).collect()
}

#[test]
fn pack_of_deny_all_has_a_dummy_range_and_allow_all_has_none() {
    assert_eq!(
        ranges(&packed("deny", "").unwrap()),
        [(Accesses::Both, 0, 1)]
    );
    assert_eq!(ranges(&packed("allow", "").unwrap()), []);
    assert_eq!(
        ranges(&packed("deny", "0x10 = 'none'").unwrap()),
        [(Accesses::Both, 0, 1)]
    );
}

#[test]
fn pack_covers_directions_with_equal_verdicts_by_one_range() {
    let filter = packed("deny", "0x10 = 'rw'\n0x2f00 = 'rw'").unwrap();
    assert_eq!(ranges(&filter), [(Accesses::Both, 0x10, 0x2ef1)]);
}

/// Reads of one MSR and writes of another MSR lie in two windows. A third MSR that needs both directions
/// fits into these two windows.
#[test]
fn pack_covers_both_directions_by_read_and_write_windows() {
    let filter = packed("deny", "0x10 = 'r'\n0x11 = 'w'\n0x12 = 'rw'").unwrap();
    assert_eq!(
        ranges(&filter),
        [(Accesses::Read, 0x10, 3), (Accesses::Write, 0x11, 2)]
    );
}

#[test]
fn pack_joins_ranges_on_both_sides_of_x2apic_registers() {
    let filter = packed("deny", "'0x0..=0x7ff' = 'rw'\n'0x900..=0x2fff' = 'rw'").unwrap();
    assert_eq!(ranges(&filter), [(Accesses::Both, 0, 0x3000)]);
}

/// S3.5: no range may end at 2^32, so MSR 0xffffffff has the default action.
#[test]
fn pack_ends_ranges_below_the_last_msr() {
    let filter = packed("deny", "'0xffffd000..=0xfffffffe' = 'rw'").unwrap();
    assert_eq!(ranges(&filter), [(Accesses::Both, 0xffff_d000, 0x2fff)]);
    let filter = packed("deny", "0xfffffffe = 'rw'").unwrap();
    assert_eq!(ranges(&filter), [(Accesses::Both, 0xffff_fffe, 1)]);
}

#[test]
fn pack_refuses_seventeen_distant_msrs_and_error_has_seventeen_windows() {
    let entries = |count: u32| {
        (0..count).fold(String::new(), |mut text, number| {
            let _ = writeln!(text, "{:#x} = 'rw'", number * 0x10_0000);
            text
        })
    };
    assert_eq!(packed("deny", &entries(16)).unwrap().ranges().len(), 16);
    let error = packed("deny", &entries(17)).unwrap_err();
    assert!(matches!(&error, PackError::TooManyRanges(windows) if windows.len() == 17));
}

/// Consecutive MSRs take one range for each 0x3000 of them: 0x30000 MSRs fit into 16 ranges, and
/// one more MSR does not.
#[test]
fn pack_fits_0x30000_consecutive_msrs_and_refuses_one_more() {
    assert!(packed("deny", "'0x10000..=0x3ffff' = 'rw'").is_ok());
    let error = packed("deny", "'0x10000..=0x40000' = 'rw'").unwrap_err();
    assert!(matches!(&error, PackError::TooManyRanges(windows) if windows.len() == 17));
    // A policy that needs ranges for almost every MSR is refused quickly, and the error has the number
    // of ranges.
    let error = packed("allow", "'0x10000..=0xfffffffe' = 'none'").unwrap_err();
    assert!(matches!(&error, PackError::TooManyRanges(windows) if windows.len() == 349_520));
}

/// Finds the fewest windows by trying all sets of windows over a smaller space, in which a window
/// has `length` MSRs instead of 0x3000. `needs` has the directions in which each MSR needs a
/// window.
fn brute_force(needs: &[Option<Accesses>], length: usize) -> usize {
    // A map from the positions up to which the windows of the three colours reach, to the fewest
    // windows that reach so far.
    let mut states = HashMap::from([([0_usize; 3], 0_usize)]);
    for need in needs {
        let mut next = HashMap::new();
        for (ends, count) in states {
            // Each set of colours: for each colour in the set, a window begins at this MSR, even if none
            // is needed.
            for opened in 0_u32..8 {
                let opens = |colour: usize| opened >> colour & 1 == 1;
                let ends: [usize; 3] =
                    array::from_fn(|colour| if opens(colour) { length } else { ends[colour] });
                let own = match need {
                    Some(Accesses::Read) => 0,
                    Some(Accesses::Write) => 1,
                    _ => 2,
                };
                let others = ends[(own + 1) % 3] > 0 && ends[(own + 2) % 3] > 0;
                if need.is_none() || ends[own] > 0 || others {
                    let fewest = next
                        .entry(ends.map(|end| end.saturating_sub(1)))
                        .or_insert(usize::MAX);
                    *fewest = (*fewest).min(count + opened.count_ones() as usize);
                }
            }
        }
        states = next;
    }
    states.into_values().min().unwrap_or(0)
}

/// Generates the needs of up to `most` MSRs: none, reads, writes or both.
fn letters(most: usize) -> impl Strategy<Value = Vec<Option<Accesses>>> {
    let letter = prop_oneof![
        Just(None),
        Just(Some(Accesses::Read)),
        Just(Some(Accesses::Write)),
        Just(Some(Accesses::Both)),
    ];
    prop::collection::vec(letter, 0..most)
}

fn text_of(letters: &[Option<Accesses>], default: &str, spread: u32) -> String {
    let mut text = format!("policy = 1\ndefault = '{default}'\n[msrs]\n");
    for (number, letter) in (0..).zip(letters) {
        let Some(differs) = letter else { continue };
        let word = match (differs, default) {
            (Accesses::Read, "deny") | (Accesses::Write, "allow") => "r",
            (Accesses::Read | Accesses::Write, _) => "w",
            (Accesses::Both, "deny") => "rw",
            (Accesses::Both, _) => "none",
        };
        let _ = writeln!(text, "{:#x} = '{word}'", 0x10_0000 + number * spread);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The packed filter has as many ranges as brute force needs windows. The MSRs are 0x1000
    /// apart, so that a window of 0x3000 MSRs contains three of them.
    #[test]
    fn pack_takes_as_few_windows_as_brute_force(letters in letters(14), allow in any::<bool>()) {
        let default = if allow { "allow" } else { "deny" };
        let table = verdicts(&text_of(&letters, default, 0x1000));
        let filter = pack(&table).unwrap();
        prop_assert_eq!(table.first_difference(&filter), None);
        let wanted = brute_force(&letters, 3);
        let dummy = usize::from(wanted == 0 && !allow);
        prop_assert_eq!(filter.ranges().len(), wanted + dummy, "{:?}", letters);
    }

    /// The packed filter of a random policy decides every access as the policy does. The policy's
    /// entries lie where a mistake of the packer is likely: near the x2APIC registers, at the
    /// lowest and the highest MSRs, and far apart.
    #[test]
    fn packed_filter_decides_each_access_as_the_policy(
        entries in prop::collection::vec(
            (prop::sample::select(vec![0_u32, 0x7f0, 0x900, 0xbff0, 0xc000_0080, 0xc001_0000, 0xffff_fff0]), 0_u32..0x40, 0_u32..0x20, 0_usize..4),
            0..40,
        ),
        allow in any::<bool>(),
    ) {
        let mut text = format!("policy = 1\ndefault = '{}'\n[msrs]\n", if allow { "allow" } else { "deny" });
        for (number, &(base, offset, count, word)) in entries.iter().enumerate() {
            let Some(last) = base.checked_add(offset + count) else { continue };
            let zeroes = "0".repeat(number + 1);
            let word = ["rw", "r", "w", "none"][word];
            let _ = writeln!(text, "'0x{zeroes}{:x}..=0x{last:x}' = '{word}'", base + offset);
        }
        let Ok(policy) = parse(&Source::new("test.toml", &text), &mut NoIncludes) else { return Ok(()) };
        let table = resolved(policy);
        let filter = pack(&table).unwrap();
        prop_assert_eq!(table.first_difference(&filter), None, "{}", text);
    }
}
