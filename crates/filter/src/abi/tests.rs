use alloc::string::ToString;
use alloc::vec;

use proptest::prelude::*;

use super::*;
use crate::bitmap::Bitmap;
use crate::lookup::tests::filter;
use crate::msr::MsrIndex;
use crate::revision::Revision;
use crate::set::SetCall;

/// S1.6: in `_IOW('KVMIO' = 0xAE, 0xc6, size)`, bits 30–31 are the direction 1 (write), bits 16–29
/// are the size, and the type and the number follow.
#[test]
fn ioctl_number_contains_struct_size() {
    for width in CallerWidth::ALL {
        let size = u32::try_from(width.struct_size()).unwrap();
        assert_eq!(
            width.ioctl_number(),
            1 << 30 | size << 16 | 0xae << 8 | 0xc6
        );
    }
    assert_eq!(CallerWidth::Bits64.struct_size(), 392);
    assert_eq!(CallerWidth::Bits32.struct_size(), 260);
}

/// S1.7: each field is encoded at the offset at which the kernel reads it. Each field has a
/// different value, so that the test notices a swap of two fields.
#[test]
fn request_encode_puts_fields_where_the_kernel_reads_them() {
    let mut request = Request {
        flags: 0x0403_0201,
        ..Request::default()
    };
    request.ranges[0] = RangeRequest {
        flags: 0x1413_1211,
        nmsrs: 0x1817_1615,
        base: 0x1c1b_1a19,
        bitmap: UserAddress::new(0x2423_2221),
    };
    request.ranges[15].bitmap = UserAddress::new(0x3433_3231);

    let bytes = request.encode(CallerWidth::Bits64).unwrap();
    assert_eq!(bytes[..8], [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(
        bytes[8..20],
        [
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c
        ]
    );
    assert_eq!(
        bytes[20..32],
        [0, 0, 0, 0, 0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0]
    );
    assert_eq!(bytes[384..], [0x31, 0x32, 0x33, 0x34, 0, 0, 0, 0]);

    let bytes = request.encode(CallerWidth::Bits32).unwrap();
    assert_eq!(bytes[..4], [1, 2, 3, 4]);
    assert_eq!(
        bytes[4..16],
        [
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c
        ]
    );
    assert_eq!(bytes[16..20], [0x21, 0x22, 0x23, 0x24]);
    assert_eq!(bytes[256..], [0x31, 0x32, 0x33, 0x34]);
}

#[test]
fn request_decode_refuses_struct_of_wrong_size() {
    for width in CallerWidth::ALL {
        let expected = width.struct_size();
        for found in [0, 1, expected - 1, expected + 1] {
            let error = Request::decode(&vec![0; found], width).unwrap_err();
            assert_eq!(error, DecodeError::WrongSize { found, expected });
        }
        assert_eq!(
            Request::decode(&vec![0; expected], width),
            Ok(Request::default())
        );
    }
}

#[test]
fn request_encode_refuses_pointer_above_4_gib_of_32_bit_caller() {
    let mut request = Request::default();
    request.ranges[3].bitmap = UserAddress::new(u64::from(u32::MAX));
    assert!(request.encode(CallerWidth::Bits32).is_ok());
    request.ranges[3].bitmap = UserAddress::new(1 << 32);
    assert!(request.encode(CallerWidth::Bits64).is_ok());
    let error = request.encode(CallerWidth::Bits32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "range 3: a 32-bit pointer cannot hold the bitmap's address 0x100000000"
    );
}

#[test]
fn memory_segment_is_readable_only_within_its_bounds() {
    let bytes = [1, 2, 3, 4];
    let start = UserAddress::new(u64::MAX - 7);
    let segment = Segment {
        start,
        bytes: &bytes,
    };
    let read = |from: u64, count: usize| {
        let mut into = vec![0; count];
        segment
            .read(UserAddress::new(from), &mut into)
            .map(|()| into)
    };
    assert_eq!(read(start.get(), 4), Ok(vec![1, 2, 3, 4]));
    assert_eq!(read(start.get() + 3, 1), Ok(vec![4]));
    assert_eq!(read(start.get(), 5), Err(Fault));
    assert_eq!(read(start.get() + 3, 2), Err(Fault));
    assert_eq!(read(start.get() + 4, 1), Err(Fault));
    assert_eq!(read(start.get() - 1, 1), Err(Fault));
    assert_eq!(read(u64::MAX, 8), Err(Fault));
    assert_eq!(read(0, 1), Err(Fault));
}

#[test]
fn request_pads_bitmaps_to_whole_words() {
    let range = |count| {
        let bitmap = Bitmap::from_fn(count, |_| true).unwrap();
        Range::new(Accesses::Both, MsrIndex::new(0x10), bitmap)
    };
    let filter = Filter::new(
        Revision::Mainline,
        DefaultAction::Deny,
        vec![range(1), range(65), range(64)],
    )
    .unwrap();
    let (request, bitmaps) = Request::of(&filter, UserAddress::new(0x1000));
    assert_eq!(request.flags, DEFAULT_DENY);
    let at = request.ranges.map(|range| range.bitmap.get());
    assert_eq!(at[..4], [0x1000, 0x1008, 0x1018, 0]);
    assert_eq!(request.ranges[1].nmsrs, 65);
    assert_eq!(bitmaps.len(), 8 + 16 + 8);
    assert_eq!(bitmaps[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    any::<(u32, u32, u32, u64)>().prop_map(|(flags, nmsrs, base, bitmap)| RangeRequest {
        flags,
        nmsrs,
        base,
        bitmap: UserAddress::new(bitmap),
    })
}

/// Returns the request with each pointer cut to the 32 bits of a 32-bit process.
fn narrowed(mut request: Request) -> Request {
    for range in &mut request.ranges {
        range.bitmap = UserAddress::new(range.bitmap.get() & u64::from(u32::MAX));
    }
    request
}

proptest! {
    /// S1.7: any `struct kvm_msr_filter`, valid or not, is unchanged after encoding and decoding.
    #[test]
    fn request_decode_undoes_encode(flags: u32, ranges in prop::array::uniform16(range_request())) {
        let wide = Request { flags, ranges };
        let narrow = narrowed(wide.clone());
        for (width, request) in [(CallerWidth::Bits64, wide), (CallerWidth::Bits32, narrow)] {
            let bytes = request.encode(width).unwrap();
            prop_assert_eq!(bytes.len(), width.struct_size());
            prop_assert_eq!(Request::decode(&bytes, width), Ok(request));
        }
    }

    /// If any bytes are decoded as a `struct kvm_msr_filter` and encoded again, all of them except
    /// for padding are unchanged.
    #[test]
    fn request_encode_undoes_decode(bytes in prop::collection::vec(any::<u8>(), 260)) {
        let request = Request::decode(&bytes, CallerWidth::Bits32).unwrap();
        prop_assert_eq!(request.encode(CallerWidth::Bits32), Ok(bytes));
    }

    /// A set call that reads the encoded bytes of a filter sets an equal filter.
    #[test]
    fn filter_set_by_its_own_encoded_bytes_is_unchanged(filter in filter()) {
        let (struct_at, bitmaps_at) = (UserAddress::new(0x1000), UserAddress::new(0x7fff_f001));
        let (request, bitmaps) = Request::of(&filter, bitmaps_at);
        for width in CallerWidth::ALL {
            if filter.revision() == Revision::V6 && width == CallerWidth::Bits32 {
                continue;
            }
            let bytes = request.encode(width).unwrap();
            let memory = [
                Segment { start: struct_at, bytes: &bytes },
                Segment { start: bitmaps_at, bytes: &bitmaps },
            ];
            let call = SetCall::read(filter.revision(), width, &memory[..], struct_at);
            prop_assert_eq!(call.result(), Ok(()));
            prop_assert!(call.published().last() == Some(&filter));
        }
    }
}
