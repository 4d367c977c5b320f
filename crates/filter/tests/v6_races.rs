//! Races of v6's way of replacing a filter (S7), each beside the same test on mainline, where the
//! race cannot happen. The tests run on the crate's own VM, which under v6 publishes the same steps
//! as the kernel code of v6.
//!
//! The kernel code of v6 also frees memory twice, and uses freed memory (S7h). Safe Rust can do
//! neither, so no test here shows these two faults.

use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, RegisterMap, Revision,
    Verdict, Vm,
};

use Verdict::{Allow, Deny};

const FIRST: MsrIndex = MsrIndex::new(0x10);
const SECOND: MsrIndex = MsrIndex::new(0xc000_0080);

fn one(index: MsrIndex, verdict: Verdict) -> Range {
    let allows = |_| verdict == Allow;
    let bitmap = Bitmap::from_fn(1, allows).expect("one MSR");
    Range::new(Accesses::Both, index, bitmap)
}

/// Sets a filter in a VM that already has the same filter. Returns the verdicts on a guest's read
/// of `index` before the call, after each step that guests can see, and after the call.
fn during_a_set(filter: &Filter, index: MsrIndex) -> Vec<Verdict> {
    let (argument, bitmaps) = (UserAddress::new(0x1000), UserAddress::new(0x2000));
    let (request, bitmap_bytes) = Request::of(filter, bitmaps);
    let width = CallerWidth::Bits64;
    let bytes = request.encode(width).expect("64-bit pointers reach all");
    let memory = [
        Segment {
            start: argument,
            bytes: &bytes,
        },
        Segment {
            start: bitmaps,
            bytes: &bitmap_bytes,
        },
    ];
    let vm = Vm::new(filter.revision());
    vm.set_filter(filter).expect("the revision is the same");
    let vcpu = vm.create_vcpu(RegisterMap::default());
    let read = || vcpu.decide(index, Access::Read).verdict;
    let mut seen = vec![read()];
    vm.set_msr_filter_watched(width, &memory[..], argument, |_| seen.push(read()))
        .expect("a valid filter");
    seen.push(read());
    seen
}

/// Both the old and the new filter deny the MSR. Between the two filters v6 allows everything at
/// two moments: after it has removed the old ranges, and after it has set the new default action
/// but before it adds the first new range.
#[test]
fn s7_v6_set_allows_everything_after_clearing_and_before_adding_ranges() {
    let denies =
        |revision| Filter::new(revision, DefaultAction::Deny, vec![one(FIRST, Deny)]).unwrap();
    let seen = during_a_set(&denies(Revision::V6), FIRST);
    assert_eq!(seen, [Deny, Allow, Allow, Deny, Deny]);
    let seen = during_a_set(&denies(Revision::V6), SECOND);
    assert_eq!(seen, [Deny, Allow, Allow, Deny, Deny], "the default too");

    let seen = during_a_set(&denies(Revision::Mainline), FIRST);
    assert_eq!(seen, [Deny, Deny, Deny]);
}

/// Both the old and the new filter allow the second MSR. After v6 has added the first range and
/// before it adds the second, it denies that MSR: a guest that makes only allowed accesses gets
/// #GP.
#[test]
fn s7_access_during_replace_of_v6_sees_half_built_filter_with_new_default() {
    let allows = |revision| {
        let ranges = vec![one(FIRST, Allow), one(SECOND, Allow)];
        Filter::new(revision, DefaultAction::Deny, ranges).unwrap()
    };
    let seen = during_a_set(&allows(Revision::V6), SECOND);
    assert_eq!(seen, [Allow, Allow, Allow, Deny, Allow, Allow]);

    let seen = during_a_set(&allows(Revision::Mainline), SECOND);
    assert_eq!(seen, [Allow, Allow, Allow]);
}
