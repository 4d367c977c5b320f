//! The statements of chapter S2: the filters that the kernel accepts, and the errors for the filters that it
//! refuses.

use msrgate_filter::abi::CallerWidth;
use msrgate_filter::{Access, DefaultAction, Errno, MsrIndex, Verdict};

use super::lab::{CSTAR, Lab, NOWHERE, STAR};
use super::request::{
    BOTH, READ, WRITE, allow_all, allow_only, deny_all, filter, range, with_bitmap,
};
use super::{Finding, Statement};
use crate::errno::CallErrno;
use crate::measure::guest::GuestError;
use crate::sys::memory::UnreadableEnd;
use crate::sys::raw::{RawBitmap, RawFilter, RawRange, ask};

pub(super) const STATEMENTS: &[Statement] = &[
    Statement::new("S2.1", "a struct that cannot be read gives EFAULT", |lab| {
        let seen = send_unreadable(lab);
        let wanted = Err(CallErrno::Known(Errno::Efault));
        Ok(Finding::compare("the call", &seen, &wanted))
    }),
    Statement::new(
        "S2.2",
        "an unknown bit in the filter's flags gives EINVAL",
        |lab| {
            let with = |bits| RawFilter {
                flags: bits,
                ..allow_all()
            };
            let known = lab.accepts("no bit", &with(0));
            Ok(known.and(Finding::all((1..32).map(|bit| {
                lab.refuses(&format!("bit {bit}"), &with(1 << bit), Errno::Einval)
            }))))
        },
    ),
    Statement::new(
        "S2.3",
        "the default action deny with sixteen empty ranges gives EINVAL",
        |lab| {
            let request = filter(DefaultAction::Deny, []);
            let one_range = lab.accepts("one range", &deny_all());
            Ok(one_range.and(lab.refuses("the call", &request, Errno::Einval)))
        },
    ),
    Statement::new(
        "S2.3a",
        "the default action allow with sixteen empty ranges is accepted, and filters no access",
        empty_allow,
    ),
    Statement::new(
        "S2.4a",
        "the kernel skips an empty range without reading its bitmap, and the other ranges keep their order",
        empty_ranges,
    ),
    Statement::new(
        "S2.4b",
        "an unknown bit in a range's flags gives EINVAL",
        |lab| {
            let with = |bits| one(range(BOTH | bits, STAR, 1, |_| true));
            let known = lab.accepts("no bit", &with(0));
            Ok(known.and(Finding::all((2..32).map(|bit| {
                lab.refuses(&format!("bit {bit}"), &with(1 << bit), Errno::Einval)
            }))))
        },
    ),
    Statement::new("S2.4c", "a range without flags gives EINVAL", |lab| {
        let with = |flags| one(range(flags, STAR, 1, |_| true));
        let flagged = lab.accepts("a range with flags", &with(BOTH));
        Ok(flagged.and(lab.refuses("the call", &with(0), Errno::Einval)))
    }),
    Statement::new(
        "S2.4d",
        "a bitmap of more than 0x600 bytes gives EINVAL",
        |lab| {
            let fits = one(range(BOTH, MsrIndex::MIN, 0x3000, |_| true));
            let above = one(with_bitmap(0x3001, RawBitmap::Unreadable));
            Ok(lab.accepts("0x3000 MSRs", &fits).and(lab.refuses(
                "0x3001 MSRs",
                &above,
                Errno::Einval,
            )))
        },
    ),
    Statement::new(
        "S2.4e",
        "a bitmap that cannot be read gives EFAULT",
        |lab| {
            let with = |bitmap| one(with_bitmap(1, bitmap));
            let readable = lab.accepts("a readable bitmap", &with(RawBitmap::Bytes(vec![0; 8])));
            let unreadable = with(RawBitmap::Unreadable);
            Ok(readable.and(lab.refuses("the call", &unreadable, Errno::Efault)))
        },
    ),
    Statement::new(
        "S2.4f",
        "the kernel reads bitmaps in whole words of 8 bytes, even for one MSR",
        |lab| Ok(whole_words(lab)),
    ),
    Statement::new("S2.4g", "a bitmap may start at any address", unaligned),
    Statement::new(
        "S2.4h",
        "the first invalid range decides the error; its flags and size are checked before its bitmap is read",
        |lab| Ok(first_bad(lab)),
    ),
    Statement::new(
        "S2.5",
        "after the call has returned, the new filter decides all accesses",
        published,
    ),
    Statement::new(
        "S2.6",
        "overlapping, duplicate, wrapping and x2APIC ranges are accepted",
        |lab| Ok(odd_ranges(lab)),
    ),
    Statement::new(
        "S2.7",
        "a call that fails leaves the old filter in force",
        failure_is_nothing,
    ),
    Statement::new(
        "S10.2",
        "a range of nearly 2^32 MSRs gives EINVAL: its size does not wrap to a small one",
        |lab| {
            let with = |nmsrs| one(with_bitmap(nmsrs, RawBitmap::Bytes(vec![0xff; 0x600])));
            let sizes = [0x8000_0000, 0xffff_ff00, 0xffff_ffc0, 0xffff_ffc1, u32::MAX];
            let fits = lab.accepts("0x3000 MSRs", &with(0x3000));
            Ok(fits.and(Finding::all(sizes.map(|nmsrs| {
                lab.refuses(&format!("{nmsrs:#x} MSRs"), &with(nmsrs), Errno::Einval)
            }))))
        },
    ),
];

fn one(range: RawRange) -> RawFilter {
    filter(DefaultAction::Allow, [range])
}

fn empty_allow(lab: &mut Lab) -> Result<Finding, GuestError> {
    let before = lab.accepts("deny all", &deny_all());
    let denied = lab.both(STAR, Verdict::Deny)?;
    let taken = lab.accepts("no range", &filter(DefaultAction::Allow, []));
    Ok(Finding::all([
        before,
        denied,
        taken,
        lab.both(STAR, Verdict::Allow)?,
        lab.both(NOWHERE, Verdict::Allow)?,
    ]))
}

fn empty_ranges(lab: &mut Lab) -> Result<Finding, GuestError> {
    let empty = || RawRange {
        flags: u32::MAX,
        nmsrs: 0,
        base: u32::MAX,
        bitmap: RawBitmap::Unreadable,
    };
    let request = filter(
        DefaultAction::Deny,
        [
            empty(),
            range(BOTH, STAR, 1, |_| true),
            empty(),
            range(BOTH, STAR, 3, |offset| offset == 2),
        ],
    );
    Ok(Finding::all([
        lab.accepts("the call", &request),
        lab.both(STAR, Verdict::Allow)?,
        lab.both(MsrIndex::new(STAR.get() + 1), Verdict::Deny)?,
        lab.both(CSTAR, Verdict::Allow)?,
    ]))
}

fn whole_words(lab: &Lab) -> Finding {
    let readable = |nmsrs, bytes| one(with_bitmap(nmsrs, RawBitmap::Bytes(vec![0xff; bytes])));
    Finding::all([
        lab.refuses("1 MSR, 1 byte", &readable(1, 1), Errno::Efault),
        lab.refuses("1 MSR, 7 bytes", &readable(1, 7), Errno::Efault),
        lab.accepts("1 MSR, 8 bytes", &readable(1, 8)),
        lab.accepts("64 MSRs, 8 bytes", &readable(64, 8)),
        lab.refuses("65 MSRs, 9 bytes", &readable(65, 9), Errno::Efault),
        lab.refuses("65 MSRs, 15 bytes", &readable(65, 15), Errno::Efault),
        lab.accepts("65 MSRs, 16 bytes", &readable(65, 16)),
    ])
}

/// Sets filters with bitmaps of 8 to 15 bytes. A bitmap ends at the end of a page (S2.4f needs that, too), so
/// that these start at each offset from a word.
fn unaligned(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut findings = Vec::new();
    for length in 8..16 {
        let mut bytes = vec![0; length];
        bytes[0] = 0b101;
        let ranges = [RawRange {
            base: STAR.get(),
            ..with_bitmap(64, RawBitmap::Bytes(bytes))
        }];
        findings.extend([
            lab.accepts(
                &format!("{length} bytes"),
                &filter(DefaultAction::Deny, ranges),
            ),
            lab.both(STAR, Verdict::Allow)?,
            lab.both(MsrIndex::new(STAR.get() + 1), Verdict::Deny)?,
            lab.both(CSTAR, Verdict::Allow)?,
        ]);
    }
    Ok(Finding::all(findings))
}

fn first_bad(lab: &Lab) -> Finding {
    let good = || range(BOTH, STAR, 1, |_| true);
    let unreadable = || with_bitmap(1, RawBitmap::Unreadable);
    let flagless = || range(0, STAR, 1, |_| true);
    let both = |flags, nmsrs| RawRange {
        flags,
        ..with_bitmap(nmsrs, RawBitmap::Unreadable)
    };
    let allow = DefaultAction::Allow;
    Finding::all([
        lab.refuses(
            "a valid range, one whose bitmap cannot be read, one without flags",
            &filter(allow, [good(), unreadable(), flagless()]),
            Errno::Efault,
        ),
        lab.refuses(
            "a valid range, one without flags, one whose bitmap cannot be read",
            &filter(allow, [good(), flagless(), unreadable()]),
            Errno::Einval,
        ),
        lab.refuses(
            "a range without flags whose bitmap cannot be read",
            &one(both(0, 1)),
            Errno::Einval,
        ),
        lab.refuses(
            "a range with an unknown flag whose bitmap cannot be read",
            &one(both(BOTH | 4, 1)),
            Errno::Einval,
        ),
        lab.refuses(
            "a range of too many MSRs whose bitmap cannot be read",
            &one(both(BOTH, 0x3001)),
            Errno::Einval,
        ),
    ])
}

fn published(lab: &mut Lab) -> Result<Finding, GuestError> {
    let mut findings = Vec::new();
    for (first, second) in [(STAR, CSTAR), (CSTAR, STAR), (STAR, CSTAR)] {
        findings.push(lab.accepts("the call", &allow_only([first])));
        findings.push(lab.both(first, Verdict::Allow)?);
        findings.push(lab.both(second, Verdict::Deny)?);
    }
    Ok(Finding::all(findings))
}

fn odd_ranges(lab: &Lab) -> Finding {
    let two = |a, b| filter(DefaultAction::Deny, [a, b]);
    let all = |base, nmsrs| range(BOTH, MsrIndex::new(base), nmsrs, |_| true);
    Finding::all([
        lab.accepts(
            "overlapping ranges",
            &two(all(0x100, 0x80), all(0x140, 0x80)),
        ),
        lab.accepts("the same range twice", &two(all(0x100, 8), all(0x100, 8))),
        lab.accepts(
            "ranges past 2^32",
            &two(all(0xffff_ff00, 0x100), all(u32::MAX, 0x3000)),
        ),
        lab.accepts("x2APIC ranges", &two(all(0x800, 0x100), all(0x7ff, 0x102))),
    ])
}

fn failure_is_nothing(lab: &mut Lab) -> Result<Finding, GuestError> {
    let reads = range(READ, STAR, 1, |_| true);
    let writes = range(WRITE, CSTAR, 1, |_| true);
    let held = filter(DefaultAction::Deny, [reads, writes]);
    let open = || range(BOTH, STAR, 3, |_| true);
    let unreadable = with_bitmap(1, RawBitmap::Unreadable);
    let mut flagged = allow_all();
    flagged.flags = 2;
    let failing = [
        (filter(DefaultAction::Deny, []), Errno::Einval),
        (flagged, Errno::Einval),
        (
            filter(DefaultAction::Allow, [open(), unreadable]),
            Errno::Efault,
        ),
        (one(range(0, STAR, 1, |_| true)), Errno::Einval),
        (one(range(BOTH, STAR, 0x3001, |_| true)), Errno::Einval),
    ];
    let mut findings = vec![lab.accepts("the filter", &held)];
    for (request, errno) in failing {
        findings.push(lab.refuses("the failing call", &request, errno));
        findings.push(lab.verdicts(&[
            (STAR, Access::Read, Verdict::Allow),
            (STAR, Access::Write, Verdict::Deny),
            (CSTAR, Access::Read, Verdict::Deny),
            (CSTAR, Access::Write, Verdict::Allow),
            (NOWHERE, Access::Read, Verdict::Deny),
        ])?);
    }
    Ok(Finding::all(findings))
}

/// Passes the address of an unreadable page as the filter.
fn send_unreadable(lab: &Lab) -> Result<(), CallErrno> {
    let nothing = UnreadableEnd::after(&[])?;
    ask(
        lab.guest.vm(),
        CallerWidth::Bits64,
        nothing.address() as *const _,
    )
}
