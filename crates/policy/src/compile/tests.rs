use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision, Verdict,
};

use super::*;
use crate::source::Source;
use crate::{NoIncludes, parse};

fn compiled() -> Variant {
    let text = "policy = 1\ndefault = 'deny'\n[msrs]\n0x10 = 'r'\n'0x200..=0x20f' = 'rw'\n0xc0000080 = 'w'";
    compile(parse(&Source::new("test.toml", text), &mut NoIncludes).unwrap())
        .unwrap()
        .variants()[0]
        .clone()
}

/// Returns the filter of `compiled`, in which `change` is applied to the range with this number.
fn mutant(compiled: &Variant, number: usize, change: impl Fn(&Range) -> Option<Range>) -> Filter {
    let mut ranges = compiled.filter().ranges().to_vec();
    match change(&ranges[number]) {
        Some(changed) => ranges[number] = changed,
        None => _ = ranges.remove(number),
    }
    Filter::new(
        Revision::Mainline,
        compiled.filter().default_action(),
        ranges,
    )
    .unwrap()
}

fn with_bit_flipped(range: &Range, bit: u32) -> Range {
    let old = range.bitmap();
    let bitmap = Bitmap::from_fn(old.count(), |offset| old.allows(offset) != (offset == bit));
    Range::new(range.accesses(), range.base(), bitmap.unwrap())
}

/// The comparison of a filter with its policy finds every filter in which one bit is flipped, or in
/// which one range is moved, left out, or given another direction.
#[test]
fn compile_comparison_finds_every_broken_filter() {
    let compiled = compiled();
    let caught = |filter: Filter| {
        compiled
            .rules()
            .verdicts(Verdict::Deny)
            .first_difference(&filter)
            .is_some()
    };
    assert!(!caught(compiled.filter().clone()));
    for (number, range) in compiled.filter().ranges().iter().enumerate() {
        assert!(
            caught(mutant(&compiled, number, |_| None)),
            "range {number} left out"
        );
        for bit in 0..range.bitmap().count() {
            let flipped = mutant(&compiled, number, |range| {
                Some(with_bit_flipped(range, bit))
            });
            let at = MsrIndex::new(range.base().get() + bit);
            let is_hidden = Access::ALL
                .iter()
                .all(|&access| compiled.filter().decide(at, access) == flipped.decide(at, access));
            assert!(caught(flipped) || is_hidden, "bit {bit} of range {number}");
        }
        let moved = mutant(&compiled, number, |range| {
            let base = MsrIndex::new(range.base().get() + 1);
            Some(Range::new(range.accesses(), base, range.bitmap().clone()))
        });
        assert!(caught(moved), "range {number} moved");
        let recoloured = mutant(&compiled, number, |range| {
            let other = if range.accesses() == Accesses::Read {
                Accesses::Write
            } else {
                Accesses::Read
            };
            Some(Range::new(other, range.base(), range.bitmap().clone()))
        });
        assert!(caught(recoloured), "range {number} in another direction");
    }
    let ranges = compiled.filter().ranges().to_vec();
    assert!(caught(
        Filter::new(Revision::Mainline, DefaultAction::Allow, ranges).unwrap()
    ));
}

/// The comparison of a filter with its policy also finds a wrong decision at MSRs far from all
/// entries.
#[test]
fn compile_comparison_finds_wrong_decision_at_msrs_between_entries() {
    let compiled = compiled();
    for index in [0, 0x7ff, 0x900, 0x4b56_4d00, 0xffff_fffe] {
        let mut ranges = compiled.filter().ranges().to_vec();
        let bitmap = Bitmap::from_fn(1, |_| true).unwrap();
        ranges.push(Range::new(Accesses::Write, MsrIndex::new(index), bitmap));
        let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, ranges).unwrap();
        assert_eq!(
            compiled
                .rules()
                .verdicts(Verdict::Deny)
                .first_difference(&filter),
            Some((MsrIndex::new(index), Access::Write, Verdict::Deny))
        );
    }
}
