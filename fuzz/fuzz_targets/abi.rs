//! Reads any bytes as the argument of `KVM_X86_SET_MSR_FILTER`, and checks the filter that the call sets
//! against the statements S2 and S3 of `docs/kvm-semantics.md`.
//!
//! The first byte of the input selects the kernel's revision, the caller's width, and whether `tame` changes
//! the struct. The other bytes are the caller's memory from address 0 on. The struct is at address 0, and
//! its pointers to bitmaps may have any value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
use msrgate_filter::{
    Access, DefaultAction, Errno, Filter, MsrIndex, RangeError, Revision, SetCall, SetError,
    Verdict,
};

fuzz_target!(|input: &[u8]| {
    let Some((&selector, memory)) = input.split_first() else {
        return;
    };
    let revision = Revision::ALL[usize::from(selector & 1)];
    let width = CallerWidth::ALL[usize::from(selector >> 1 & 1)];
    let mut memory = memory.to_vec();
    if selector & 4 != 0 {
        tame(&mut memory, width);
    }
    let segment = Segment {
        start: UserAddress::NULL,
        bytes: &memory,
    };
    let call = SetCall::read(revision, width, &segment, UserAddress::NULL);
    check_published(revision, &call);
    if let Err(error) = call.result() {
        check_error(&error);
    }
    if let Some(filter) = call.published().last() {
        check_decisions(filter);
        check_round_trip(filter);
    }
});

/// Changes `struct kvm_msr_filter` so that most calls get as far as reading the bitmaps: few flags remain, a
/// range has at most one MSR too many, and pointers lead into the caller's memory or just past its end.
fn tame(memory: &mut [u8], width: CallerWidth) {
    let end = memory.len() as u64 + 8;
    let Some(bytes) = memory.get_mut(..width.struct_size()) else {
        return;
    };
    let mut request = Request::decode(bytes, width).unwrap();
    request.flags &= 0b11;
    for range in &mut request.ranges {
        range.flags &= 0b111;
        range.nmsrs %= 0x3002;
        range.bitmap = UserAddress::new(range.bitmap.get() % end);
    }
    bytes.copy_from_slice(&request.encode(width).unwrap());
}

/// Checks the filters that a call puts into effect. Mainline Linux puts one filter into effect, or none if
/// the call fails. Version 6 of the patch puts one into effect after each step (S2.7).
fn check_published(revision: Revision, call: &SetCall) {
    let published = call.published();
    match revision {
        Revision::Mainline => assert_eq!(published.len(), usize::from(call.result().is_ok())),
        Revision::V6 => {
            for (number, filter) in published.iter().enumerate() {
                assert_eq!(filter.ranges().len(), number.saturating_sub(1));
            }
            assert!(published.len() >= 2 || call.result().is_err());
        }
    }
}

fn check_error(error: &SetError) {
    assert!(!error.to_string().is_empty());
    let unreadable = match error {
        SetError::Range { why, .. } => matches!(why, RangeError::Unreadable { .. }),
        other => matches!(other, SetError::Unreadable(_)),
    };
    assert_eq!(error.errno() == Errno::Efault, unreadable);
    assert_eq!(
        error.slot().is_some(),
        matches!(error, SetError::Range { .. })
    );
}

/// Checks that a filter which is encoded and set again is the same filter.
fn check_round_trip(filter: &Filter) {
    let (argument, bitmaps_at) = (UserAddress::NULL, UserAddress::new(0x10_0001));
    let (request, bitmaps) = Request::of(filter, bitmaps_at);
    for width in CallerWidth::ALL {
        let bytes = request.encode(width).unwrap();
        assert_eq!(Request::decode(&bytes, width), Ok(request.clone()));
        let memory = [
            Segment {
                start: argument,
                bytes: &bytes,
            },
            Segment {
                start: bitmaps_at,
                bytes: &bitmaps,
            },
        ];
        let call = SetCall::read(filter.revision(), width, &memory[..], argument);
        match (filter.revision(), width) {
            (Revision::V6, CallerWidth::Bits32) => {
                assert_eq!(call.result(), Err(SetError::NoSuchCall));
            }
            // With version 6 of the patch, a failed call leaves an incomplete filter behind. That filter can
            // also be set again.
            _ => assert!(call.published().last() == Some(filter)),
        }
    }
}

/// Compares `decide` with [`linear`] at every index where the decision may change, and at both of its
/// neighbours.
fn check_decisions(filter: &Filter) {
    let mut edges = vec![0, 0x800, 0x900];
    for range in filter.ranges() {
        let (base, count) = (range.base().get(), range.bitmap().count());
        edges.extend([base, base.wrapping_add(count), base.wrapping_add(count / 2)]);
        edges.extend([base & !0xfff, base & !63]);
    }
    for edge in edges {
        for index in [edge.wrapping_sub(1), edge, edge.wrapping_add(1)] {
            for access in Access::ALL {
                let verdict = filter.decide(MsrIndex::new(index), access).verdict;
                assert_eq!(
                    verdict,
                    linear(filter, index, access),
                    "{access} {index:#x}"
                );
            }
        }
    }
}

/// Decides an access as the statement S3 of `docs/kvm-semantics.md` says, in an obvious way: by a loop over
/// the ranges.
fn linear(filter: &Filter, index: u32, access: Access) -> Verdict {
    let allow = |allowed| {
        if allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    };
    let is_open = match filter.revision() {
        Revision::Mainline => (0x800..0x900).contains(&index),
        Revision::V6 => filter.ranges().is_empty(),
    };
    if is_open {
        return Verdict::Allow;
    }
    for range in filter.ranges() {
        let base = range.base().get();
        let end = base.wrapping_add(range.bitmap().count());
        if index >= base && index < end && range.accesses().contain(access) {
            return allow(range.bitmap().allows(index - base));
        }
    }
    allow(filter.default_action() == DefaultAction::Allow)
}
