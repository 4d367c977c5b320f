use alloc::string::ToString;

use super::*;
use crate::abi::Segment;
use crate::decide::Verdict;
use crate::msr::Access;
use crate::range::MAX_RANGES;

const ARGUMENT: UserAddress = UserAddress::new(0x1000);
const BITMAPS: UserAddress = UserAddress::new(0x8000);
const NOWHERE: UserAddress = UserAddress::new(0xdead_0000);

/// The number of readable bytes at [`BITMAPS`]: the bitmap of one full range.
const READABLE: usize = 0x600;

/// Makes a `KVM_X86_SET_MSR_FILTER` call with this struct. The memory of the bitmaps is `READABLE`
/// bytes, all of whose bits are 1.
fn call(revision: Revision, width: CallerWidth, request: &Request) -> SetCall {
    let bytes = request.encode(width).unwrap();
    let memory = [
        Segment {
            start: ARGUMENT,
            bytes: &bytes,
        },
        Segment {
            start: BITMAPS,
            bytes: &[0xff; READABLE],
        },
    ];
    SetCall::read(revision, width, &memory[..], ARGUMENT)
}

fn request<const N: usize>(flags: u32, ranges: [(usize, RangeRequest); N]) -> Request {
    let mut request = Request {
        flags,
        ..Request::default()
    };
    for (slot, range) in ranges {
        request.ranges[slot] = range;
    }
    request
}

/// Creates a range of `nmsrs` MSRs from 0x10 on, for reads and writes.
fn range(nmsrs: u32) -> RangeRequest {
    RangeRequest {
        flags: 3,
        nmsrs,
        base: 0x10,
        bitmap: BITMAPS,
    }
}

/// Creates a range whose bitmap begins `bytes` bytes before the end of the readable memory.
fn before_end(nmsrs: u32, bytes: u64) -> RangeRequest {
    RangeRequest {
        bitmap: UserAddress::new(BITMAPS.get() + READABLE as u64 - bytes),
        ..range(nmsrs)
    }
}

fn flagged(flags: u32, range: RangeRequest) -> RangeRequest {
    RangeRequest { flags, ..range }
}

fn at(base: u32, range: RangeRequest) -> RangeRequest {
    RangeRequest { base, ..range }
}

fn unreadable(nmsrs: u32) -> RangeRequest {
    RangeRequest {
        bitmap: NOWHERE,
        ..range(nmsrs)
    }
}

/// The result of a set call: the number of ranges of the filter that stays in force, or the errno and
/// the slot of the invalid range.
type Outcome = Result<usize, (Errno, Option<usize>)>;

const EINVAL: Outcome = Err((Errno::Einval, None));

const fn einval(slot: usize) -> Outcome {
    Err((Errno::Einval, Some(slot)))
}

const fn efault(slot: usize) -> Outcome {
    Err((Errno::Efault, Some(slot)))
}

fn outcome(call: &SetCall) -> Outcome {
    match call.result() {
        Ok(()) => Ok(call.published().last().unwrap().ranges().len()),
        Err(error) => Err((error.errno(), error.slot().map(Slot::get))),
    }
}

/// Makes the set call of each row on both revisions. A row has a name, the struct, the expected outcome
/// on mainline and the expected outcome on v6.
fn check<const N: usize>(rows: [(&str, Request, Outcome, Outcome); N]) {
    for (what, request, mainline, v6) in rows {
        for width in CallerWidth::ALL {
            let call = call(Revision::Mainline, width, &request);
            assert_eq!(outcome(&call), mainline, "{what}, mainline, {width:?}");
            // S2.7: on mainline a call publishes one filter if it succeeds, else no filter.
            let published = usize::from(mainline.is_ok());
            assert_eq!(call.published().len(), published, "{what}");
        }
        let call = call(Revision::V6, CallerWidth::Bits64, &request);
        assert_eq!(outcome(&call), v6, "{what}, v6");
    }
}

#[test]
fn s2_2_s2_3_set_checks_flags_and_default_action() {
    let none = |flags| request(flags, []);
    let one = |flags| request(flags, [(0, range(1))]);
    check([
        ("default allow", one(0), Ok(1), Ok(1)),
        ("default deny", one(1), Ok(1), Ok(1)),
        ("unknown flag", one(2), EINVAL, Ok(1)),
        ("unknown flag and deny", one(3), EINVAL, Ok(1)),
        ("highest flag", one(1 << 31), EINVAL, Ok(1)),
        ("no ranges, default allow", none(0), Ok(0), Ok(0)),
        ("no ranges, default deny", none(1), EINVAL, Ok(0)),
        ("no ranges, unknown flag", none(2), EINVAL, Ok(0)),
    ]);
    let error = |flags| call(Revision::Mainline, CallerWidth::Bits64, &none(flags)).result();
    assert_eq!(error(3), Err(SetError::UnknownFlags(3)));
    assert_eq!(
        error(1),
        Err(SetError::NoFilter(FilterError::DenyWithoutRanges))
    );
}

#[test]
fn s2_4_set_checks_each_range() {
    let one = |range| request(1, [(5, range)]);
    check([
        ("reads", one(flagged(1, range(1))), Ok(1), Ok(1)),
        ("writes", one(flagged(2, range(1))), Ok(1), Ok(1)),
        ("no flag", one(flagged(0, range(1))), einval(5), einval(5)),
        (
            "unknown flag",
            one(flagged(4, range(1))),
            einval(5),
            einval(5),
        ),
        (
            "known and unknown",
            one(flagged(7, range(1))),
            einval(5),
            einval(5),
        ),
        ("the most MSRs", one(range(0x3000)), Ok(1), Ok(1)),
        ("one MSR more", one(range(0x3001)), einval(5), einval(5)),
        ("2^31 MSRs", one(range(1 << 31)), einval(5), einval(5)),
        // S10.2: rounded up to a multiple of 64, these numbers of MSRs do not fit into 32 bits.
        (
            "2^32 - 63 MSRs",
            one(range(0xffff_ffc1)),
            einval(5),
            einval(5),
        ),
        ("2^32 - 1 MSRs", one(range(u32::MAX)), einval(5), einval(5)),
        ("unreadable", one(unreadable(1)), efault(5), efault(5)),
        (
            "null",
            one(RangeRequest {
                bitmap: UserAddress::NULL,
                ..range(1)
            }),
            efault(5),
            efault(5),
        ),
    ]);
}

#[test]
fn s2_4_set_reads_bitmaps_in_whole_words() {
    let one = |nmsrs, bytes| request(1, [(0, before_end(nmsrs, bytes))]);
    check([
        ("1 MSR, 8 bytes", one(1, 8), Ok(1), Ok(1)),
        ("1 MSR, 7 bytes", one(1, 7), efault(0), efault(0)),
        ("64 MSRs, 8 bytes", one(64, 8), Ok(1), Ok(1)),
        ("65 MSRs, 9 bytes", one(65, 9), efault(0), efault(0)),
        ("65 MSRs, 15 bytes", one(65, 15), efault(0), efault(0)),
        ("65 MSRs, 16 bytes", one(65, 16), Ok(1), Ok(1)),
        ("not aligned", one(1, 13), Ok(1), Ok(1)),
    ]);
}

#[test]
fn s2_4_set_ignores_empty_ranges() {
    let skipped = RangeRequest {
        flags: u32::MAX,
        nmsrs: 0,
        base: u32::MAX,
        bitmap: UserAddress::new(0xffff_fff0),
    };
    let kept = [
        (0, skipped),
        (3, at(0x20, range(2))),
        (9, skipped),
        (15, at(0x10, range(1))),
    ];
    check([
        (
            "only skipped, allow",
            request(0, [(0, skipped)]),
            Ok(0),
            Ok(0),
        ),
        (
            "only skipped, deny",
            request(1, [(0, skipped)]),
            EINVAL,
            Ok(0),
        ),
        ("some kept", request(1, kept), Ok(2), Ok(2)),
    ]);
    let call = call(Revision::Mainline, CallerWidth::Bits64, &request(1, kept));
    let bases: Vec<_> = call.published()[0]
        .ranges()
        .iter()
        .map(Range::base)
        .collect();
    assert_eq!(bases, [MsrIndex::new(0x20), MsrIndex::new(0x10)]);
}

#[test]
fn s2_4_first_failed_check_of_set_decides_the_error() {
    let order = |first, second| request(1, [(2, first), (7, second)]);
    let (no_flag, long) = (flagged(0, range(1)), range(0x3001));
    check([
        // One range has two mistakes. Mainline checks the flags before the bitmap, v6 after it.
        // Both check the size of the bitmap before they copy it.
        (
            "bad flags, bad pointer",
            request(1, [(4, flagged(4, unreadable(1)))]),
            einval(4),
            efault(4),
        ),
        (
            "no flag, bad pointer",
            request(1, [(4, flagged(0, unreadable(1)))]),
            einval(4),
            efault(4),
        ),
        (
            "too long, bad pointer",
            request(1, [(4, unreadable(0x3001))]),
            einval(4),
            einval(4),
        ),
        // Two ranges are invalid: the range in the lower slot decides the error.
        (
            "unreadable, then no flag",
            order(unreadable(1), no_flag),
            efault(2),
            efault(2),
        ),
        (
            "no flag, then unreadable",
            order(no_flag, unreadable(1)),
            einval(2),
            einval(2),
        ),
        (
            "too long, then unreadable",
            order(long, unreadable(1)),
            einval(2),
            einval(2),
        ),
        (
            "unreadable, then too long",
            order(unreadable(1), long),
            efault(2),
            efault(2),
        ),
        // The filter's flags are checked before any range.
        (
            "unknown flag, unreadable",
            request(2, [(0, unreadable(1))]),
            EINVAL,
            efault(0),
        ),
    ]);
    let both = request(1, [(4, flagged(4, range(0x3001)))]);
    let why = |revision| match call(revision, CallerWidth::Bits64, &both).result() {
        Err(SetError::Range { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(Revision::Mainline), RangeError::UnknownFlags(4));
    assert_eq!(
        why(Revision::V6),
        RangeError::Bitmap(BitmapError::TooLong(0x3001))
    );
}

#[test]
fn s2_6_set_accepts_overlapping_and_wrapping_ranges() {
    let pair = |first, second| request(0, [(0, first), (1, second)]);
    check([
        ("duplicates", pair(range(9), range(9)), Ok(2), Ok(2)),
        (
            "an overlap",
            pair(range(9), at(0x12, range(9))),
            Ok(2),
            Ok(2),
        ),
        (
            "a range that wraps",
            request(1, [(0, at(u32::MAX, range(2)))]),
            Ok(1),
            Ok(1),
        ),
        (
            "a range up to 2^32",
            request(1, [(0, at(u32::MAX, range(1)))]),
            Ok(1),
            Ok(1),
        ),
        (
            "x2APIC",
            request(1, [(0, at(0x800, range(0x100)))]),
            Ok(1),
            Ok(1),
        ),
        (
            "sixteen",
            Request {
                flags: 1,
                ranges: [range(1); MAX_RANGES],
            },
            Ok(16),
            Ok(16),
        ),
    ]);
}

/// S2.1: if one byte of `struct kvm_msr_filter` is not readable, the call puts no filter into
/// effect, neither on mainline nor on v6.
#[test]
fn s2_1_set_fails_if_a_byte_of_the_struct_is_unreadable() {
    let cases = [
        (Revision::Mainline, CallerWidth::Bits64),
        (Revision::Mainline, CallerWidth::Bits32),
        (Revision::V6, CallerWidth::Bits64),
    ];
    for (revision, width) in cases {
        let bytes = vec![0; width.struct_size()];
        let read = |bytes, argument| {
            let memory = Segment {
                start: ARGUMENT,
                bytes,
            };
            SetCall::read(revision, width, &memory, argument)
        };
        assert_eq!(read(&bytes, ARGUMENT).result(), Ok(()));
        let beyond_all = UserAddress::new(u64::MAX - 8);
        for (bytes, argument) in [
            (&bytes[1..], ARGUMENT),
            (&bytes[..], NOWHERE),
            (&bytes[..], UserAddress::NULL),
            (&bytes[..], beyond_all),
        ] {
            let call = read(bytes, argument);
            assert_eq!(call.result(), Err(SetError::Unreadable(argument)));
            assert_eq!(call.result().unwrap_err().errno(), Errno::Efault);
            assert!(call.published().is_empty());
        }
    }
}

/// S1.6: v6 does not have the ioctl for 32-bit callers, whatever the argument is.
#[test]
fn s1_6_v6_refuses_32_bit_callers() {
    let memory = Segment {
        start: ARGUMENT,
        bytes: &[],
    };
    let call = SetCall::read(Revision::V6, CallerWidth::Bits32, &memory, ARGUMENT);
    assert_eq!(call.result(), Err(SetError::NoSuchCall));
    assert_eq!(call.result().unwrap_err().errno(), Errno::Enotty);
    assert!(call.published().is_empty());
}

fn verdict(filter: &Filter, index: u32) -> Verdict {
    filter.decide(MsrIndex::new(index), Access::Read).verdict
}

/// S2.7 on v6: guests see the filter cleared, then the incomplete filter under the new default.
#[test]
fn s2_7_v6_publishes_unfinished_filter_after_each_range() {
    let ranges = [(1, at(0x10, range(1))), (4, at(0x20, range(1)))];
    let call = call(Revision::V6, CallerWidth::Bits64, &request(1, ranges));
    let counts: Vec<_> = call
        .published()
        .iter()
        .map(|filter| filter.ranges().len())
        .collect();
    assert_eq!(counts, [0, 0, 1, 2]);
    let [cleared, new_default, half, whole] = call.published() else {
        panic!("{call:?}");
    };
    assert_eq!(
        [cleared.default_action(), new_default.default_action()],
        [DefaultAction::Allow, DefaultAction::Deny]
    );
    // Without ranges v6 ignores the default action: every access is allowed.
    assert_eq!(
        [0x20, 0x30].map(|index| verdict(cleared, index)),
        [Verdict::Allow; 2]
    );
    assert_eq!(
        [0x20, 0x30].map(|index| verdict(new_default, index)),
        [Verdict::Allow; 2]
    );
    // The incomplete filter denies an access that the finished filter allows.
    assert_eq!(verdict(half, 0x20), Verdict::Deny);
    assert_eq!(verdict(whole, 0x20), Verdict::Allow);
}

/// S2.7 on v6: a call that fails because of an invalid range leaves a filter of the ranges before
/// that range. If the first range is invalid, every access is allowed.
#[test]
fn s2_7_failed_set_on_v6_leaves_ranges_before_the_invalid_one() {
    let after_good = request(1, [(0, range(1)), (1, unreadable(1)), (2, range(1))]);
    let call_after_good = call(Revision::V6, CallerWidth::Bits64, &after_good);
    assert_eq!(outcome(&call_after_good), efault(1));
    let left = call_after_good.published().last().unwrap();
    assert_eq!(left.ranges().len(), 1);
    assert_eq!(verdict(left, 0x30), Verdict::Deny);

    let first_bad = request(1, [(0, unreadable(1)), (1, range(1))]);
    let call_first_bad = call(Revision::V6, CallerWidth::Bits64, &first_bad);
    assert_eq!(outcome(&call_first_bad), efault(0));
    let left = call_first_bad.published().last().unwrap();
    assert_eq!(verdict(left, 0x30), Verdict::Allow);
}

/// S3.6: bits past `nmsrs` in the last word are not part of the filter.
#[test]
fn s3_6_set_drops_bitmap_bits_past_the_last_msr() {
    let call = call(
        Revision::Mainline,
        CallerWidth::Bits64,
        &request(1, [(0, range(3))]),
    );
    assert_eq!(call.published()[0].ranges()[0].bitmap().words(), [0b111]);
}

#[test]
fn set_error_messages_name_the_invalid_range_and_a_remedy() {
    let mainline = |request: Request| {
        call(Revision::Mainline, CallerWidth::Bits64, &request)
            .result()
            .unwrap_err()
            .to_string()
    };
    let one = |range| mainline(request(0, [(12, range)]));
    assert_eq!(
        mainline(request(6, [])),
        "the filter's flags 0x6 have unknown bits: use 0 for the default action allow, or 0x1 for deny"
    );
    assert_eq!(
        mainline(request(1, [])),
        "a filter with the default action deny needs at least one range"
    );
    assert_eq!(
        one(flagged(12, range(1))),
        "range 12: the flags 0xc have unknown bits: use 0x1 for reads, 0x2 for writes, or 0x3 for both"
    );
    assert_eq!(
        one(flagged(0, range(1))),
        "range 12: the flags are 0: use 0x1 for reads, 0x2 for writes, or 0x3 for both"
    );
    assert_eq!(
        one(range(0x3001)),
        "range 12: a range of 0x3001 MSRs is too large: a bitmap holds at most 0x3000; split the range"
    );
    assert_eq!(
        one(unreadable(65)),
        "range 12: the 16 bytes of the bitmap at 0xdead0000 cannot be read: pad the bitmap to whole \
         8-byte words"
    );
    let unreadable = SetError::Unreadable(NOWHERE).to_string();
    assert_eq!(
        unreadable,
        "the memory of the filter at 0xdead0000 cannot be read"
    );
    let none = SetError::NoSuchCall.to_string();
    assert_eq!(
        none,
        "the kernel has no form of this call for a 32-bit caller"
    );
}
