//! Tests of the struct of the ioctl with its bitmaps.

use msrgate_filter::abi::{CallerWidth, RangeRequest, Request, UserAddress};
use msrgate_filter::{Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision};

use super::super::*;

const WIDTHS: [CallerWidth; 2] = CallerWidth::ALL;

/// Returns a range of eight MSRs, whose bitmap is at this offset.
fn range(base: u32, bitmap: u64) -> RangeRequest {
    RangeRequest {
        flags: 3,
        nmsrs: 8,
        base,
        bitmap: UserAddress::new(bitmap),
    }
}

/// Returns the struct of a filter that denies by default, and has these ranges in its first slots.
fn request<const N: usize>(ranges: [RangeRequest; N]) -> Request {
    let mut request = Request {
        flags: 1,
        ..Request::default()
    };
    request.ranges[..N].copy_from_slice(&ranges);
    request
}

fn encoded(request: &Request, width: CallerWidth, bitmaps: &[u8]) -> Vec<u8> {
    let mut bytes = request.encode(width).expect("small pointers");
    bytes.extend(bitmaps);
    bytes
}

fn size(width: CallerWidth) -> u64 {
    width.struct_size() as u64
}

/// Returns the error of import, which is also that of `diff`.
fn refusal(bytes: &[u8]) -> String {
    let error = import(bytes, None).expect_err("no filter").to_string();
    let of_diff = compiled_filter(bytes).expect_err("no filter").to_string();
    assert_eq!(of_diff, error);
    error
}

fn filter(ranges: &[(u32, u8)]) -> Filter {
    let ranges = ranges.iter().map(|(base, bits)| {
        let bitmap = Bitmap::from_fn(8, |offset| bits >> offset & 1 == 1).expect("a bitmap");
        Range::new(Accesses::Both, MsrIndex::new(*base), bitmap)
    });
    Filter::new(Revision::Mainline, DefaultAction::Deny, ranges.collect()).expect("a filter")
}

fn read(bytes: &[u8]) -> Filter {
    let read = compiled_filter(bytes).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(
        import(bytes, None).expect("an import").format,
        Format::Compiled
    );
    read.filter
}

const BITMAP: [u8; 8] = [0x11, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn import_refuses_range_whose_bitmap_pointer_is_null() {
    for width in WIDTHS {
        for (ranges, slot) in [
            ([range(0x174, 0), range(0x38, size(width))], 0),
            ([range(0x174, size(width)), range(0x38, 0)], 1),
        ] {
            let says = format!(
                "range {slot} has no bitmap: its pointer is NULL, and the kernel refuses such a filter with EFAULT"
            );
            assert_eq!(refusal(&encoded(&request(ranges), width, &BITMAP)), says);
        }
        // The bytes of the struct alone, which could be its own bitmap.
        let alone = encoded(&request([range(0x38, 0)]), width, &[]);
        assert!(refusal(&alone).starts_with("range 0 has no bitmap"));
    }
}

#[test]
fn import_refuses_range_whose_bitmap_lies_inside_the_struct() {
    for width in WIDTHS {
        for inside in [1, 4, 16, size(width) - 8, size(width) - 1] {
            let bytes = encoded(&request([range(0x38, inside)]), width, &BITMAP);
            let error = refusal(&bytes);
            assert!(
                error.starts_with("the bitmap of range 0 lies inside the struct; put"),
                "{inside}: {error}"
            );
        }
    }
}

#[test]
fn import_refuses_range_whose_bitmap_reaches_past_the_end_of_the_file() {
    for width in WIDTHS {
        for (pointer, bitmaps) in [
            (size(width), &BITMAP[..7]),
            (size(width), &[]),
            (size(width) + 1, &BITMAP[..]),
            (size(width) + 8, &BITMAP[..]),
            (0xffff, &BITMAP[..]),
        ] {
            let bytes = encoded(&request([range(0x38, pointer)]), width, bitmaps);
            assert_eq!(
                refusal(&bytes),
                "the bitmap of range 0 reaches past the end of the file: the file is cut off, or lacks the bitmaps behind the struct"
            );
        }
    }
}

#[test]
fn import_of_struct_with_addresses_says_that_bitmaps_are_missing() {
    for width in WIDTHS {
        for address in [0x1_0000, 0x8048_0000, 0xffff_fff8] {
            let bytes = encoded(&request([range(0x38, address)]), width, &BITMAP);
            let error = refusal(&bytes);
            assert!(
                error.starts_with("range 0 points to its bitmap by an address"),
                "{width:?}, {address:#x}: {error}"
            );
        }
    }
    for address in [0x7ffc_1234_5678, u64::MAX] {
        let bytes = encoded(&request([range(0x38, address)]), CallerWidth::Bits64, &[]);
        assert!(refusal(&bytes).starts_with("range 0 points to its bitmap by an address"));
    }
}

#[test]
fn import_ignores_fields_of_unused_ranges() {
    // A process of 32 bits has no such file: it could be the beginning of a struct of 64 bits.
    let unused = RangeRequest {
        nmsrs: 0,
        ..range(0x500, 0x7ffc_1000)
    };
    let mut without = request([unused, unused]);
    without.flags = 0;
    let allows = read(&encoded(&without, CallerWidth::Bits64, &[]));
    assert!(allows.ranges().is_empty() && allows.default_action() == DefaultAction::Allow);
    let error = refusal(&encoded(&without, CallerWidth::Bits32, &[]));
    let says = "the struct has no range in use, and bytes that are not 0";
    assert!(error.ends_with(says), "{error}");

    for width in WIDTHS {
        for pointer in [0, 1, 0x7ffc_1000, size(width)] {
            let unused = RangeRequest {
                nmsrs: 0,
                flags: 0xff,
                ..range(0x500, pointer)
            };
            let request = request([unused, range(0x174, size(width)), unused]);
            let bytes = encoded(&request, width, &BITMAP);
            assert_eq!(read(&bytes), filter(&[(0x174, 0x11)]), "{pointer:#x}");
        }
    }
}

/// The kernel copies each bitmap, so several ranges may have the same one.
#[test]
fn import_reads_bitmap_that_several_ranges_share() {
    for width in WIDTHS {
        let [one, other] = [0x174, 0x38].map(|base| range(base, size(width)));
        let longer = RangeRequest {
            nmsrs: 128,
            ..range(0x500, size(width))
        };
        let both = encoded(&request([one, other]), width, &BITMAP);
        assert_eq!(read(&both), filter(&[(0x174, 0x11), (0x38, 0x11)]));
        let bitmaps = [BITMAP, BITMAP].concat();
        let three = read(&encoded(&request([one, longer, other]), width, &bitmaps));
        assert_eq!(three.ranges()[1].bitmap().words(), [0x11, 0x11]);
    }
}

#[test]
fn import_refuses_bitmaps_that_overlap() {
    for width in WIDTHS {
        let ranges = [range(0x174, size(width) + 4), range(0x38, size(width))];
        let bytes = encoded(&request(ranges), width, &[0x11; 12]);
        assert_eq!(refusal(&bytes), "the bitmaps of ranges 1 and 0 overlap");
    }
}

#[test]
fn import_reads_bitmaps_that_are_aligned_by_zeros() {
    for width in WIDTHS {
        for gap in [0, 3, 4, 7] {
            let first = size(width) + gap;
            let ranges = [range(0x174, first), range(0x38, first + 8 + gap)];
            let zeros = vec![0; usize::try_from(gap).expect("a small number")];
            let bitmaps = [&zeros[..], &BITMAP, &zeros, &BITMAP, &zeros].concat();
            let bytes = encoded(&request(ranges), width, &bitmaps);
            assert_eq!(read(&bytes), filter(&[(0x174, 0x11), (0x38, 0x11)]));
        }
    }
}

/// Eight zeros may be a bitmap whose range was lost, and other bytes never align anything.
#[test]
fn import_refuses_bytes_that_belong_to_no_bitmap() {
    for width in WIDTHS {
        let size = size(width);
        for unused in [&[0; 8][..], &[0; 4096], b"x", &[0, 0, 0, 1]] {
            let length = unused.len() as u64;
            let [one, other] = [0x174, 0x38].map(|base| range(base, size));
            let behind = |one: RangeRequest, by: u64| RangeRequest {
                bitmap: UserAddress::new(size + by),
                ..one
            };
            for (from, ranges, bitmaps) in [
                (
                    size,
                    [behind(one, length), behind(other, length + 8)],
                    [unused, &BITMAP, &BITMAP].concat(),
                ),
                (
                    size + 8,
                    [one, behind(other, length + 8)],
                    [&BITMAP, unused, &BITMAP].concat(),
                ),
                (
                    size + 16,
                    [one, behind(other, 8)],
                    [&BITMAP, &BITMAP, unused].concat(),
                ),
            ] {
                let error = refusal(&encoded(&request(ranges), width, &bitmaps));
                let says = format!("the bytes from offset {from:#x} on belong to no range, so");
                assert!(error.starts_with(&says), "{error}");
            }
        }
    }
}

#[test]
fn import_names_wrong_flags_and_counts_of_struct() {
    let of = |flags, nmsrs, width| {
        let range = RangeRequest {
            flags,
            nmsrs,
            ..range(0x174, size(width))
        };
        encoded(&request([range]), width, &[0; 0x600])
    };
    for width in WIDTHS {
        for (bytes, says) in [
            (of(4, 8, width), "range 0 has unknown flags"),
            (of(0x8000_0003, 8, width), "range 0 has unknown flags"),
            (of(3, 0x3001, width), "range 0 has more than 12288 MSRs"),
            (of(3, u32::MAX, width), "range 0 has more than 12288 MSRs"),
        ] {
            let error = refusal(&bytes);
            assert!(error.ends_with(says), "{width:?}: {error}, not {says}");
        }
        let without = RangeRequest {
            flags: 0,
            ..range(0x38, size(width) + 8)
        };
        let bitmaps = [BITMAP, BITMAP].concat();
        let bytes = encoded(
            &request([range(0x174, size(width)), without]),
            width,
            &bitmaps,
        );
        let error = refusal(&bytes);
        let says = "range 1 has neither the flag for reads nor that for writes";
        assert!(error.ends_with(says), "{width:?}: {error}");
        let flags = Request {
            flags: 2,
            ..request([range(0x174, size(width))])
        };
        let error = refusal(&encoded(&flags, width, &BITMAP));
        assert!(
            error.ends_with("the filter's flags are neither 0 nor 1"),
            "{error}"
        );
    }
}

/// A struct of a 64-bit process with bytes in its padding is not one of a 32-bit process, and the other way round:
/// a struct of a 32-bit process whose first range is unused is not one of a 64-bit process.
#[test]
fn import_finds_width_of_process_by_the_whole_struct() {
    let long = request([range(0x174, 392)]);
    let mut bytes = encoded(&long, CallerWidth::Bits64, &BITMAP);
    for padding in [[0, 0, 0, 0], [3, 0, 0, 0], [0xff; 4]] {
        bytes[4..8].copy_from_slice(&padding);
        assert_eq!(read(&bytes), filter(&[(0x174, 0x11)]), "{padding:?}");
    }
    let unused = RangeRequest::default();
    for default in [0, 1] {
        let mut short = request([unused, range(0x174, 260)]);
        short.flags = default;
        let bytes = encoded(&short, CallerWidth::Bits32, &BITMAP);
        assert_eq!(read(&bytes).ranges(), filter(&[(0x174, 0x11)]).ranges());
    }
    // As the struct of a 64-bit process, these bytes would have no range: this file would allow everything.
    let wide = RangeRequest {
        nmsrs: 1056,
        ..range(0, 260)
    };
    let mut short = request([wide]);
    short.flags = 0;
    let bytes = encoded(&short, CallerWidth::Bits32, &[0; 136]);
    assert_eq!(read(&bytes).ranges().len(), 1);
}

/// The kernel refuses a filter that denies by default and has no range. A dump of it must not become a filter that allows
/// everything, as it would be if the bytes of a number were in another order.
#[test]
fn import_refuses_dump_of_default_deny_without_ranges() {
    for width in WIDTHS {
        let bytes = encoded(&request([]), width, &[]);
        assert!(refusal(&bytes).starts_with("the file is neither text nor a program, and not"));
        for size in [2, 4, 8, 16] {
            for reversed in [true, false] {
                let number = |bytes: &[u8]| -> String {
                    let mut bytes = [bytes, &[0; 16][bytes.len()..size]].concat();
                    if reversed {
                        bytes.reverse();
                    }
                    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
                    format!(" {}", digits.collect::<String>())
                };
                let line = |bytes: &[u8]| bytes.chunks(size).map(number).collect::<String>() + "\n";
                let dump: String = bytes.chunks(16).map(line).collect();
                let error = refusal(dump.as_bytes());
                let says = "the bytes of the dump are not the bytes of a filter";
                assert!(error.starts_with(says), "{size}, {reversed}: {error}");
            }
        }
    }
}

/// A cut struct is not taken for a shorter filter, or for the struct of a process of the other width.
#[test]
fn import_refuses_struct_cut_anywhere() {
    let unused = RangeRequest::default();
    for width in WIDTHS {
        for base in [0, 0x174] {
            for default in [0, 1] {
                let mut request = request([unused, range(base, size(width)), unused]);
                request.flags = default;
                let whole = encoded(&request, width, &BITMAP);
                read(&whole);
                for length in 0..whole.len() {
                    let cut = compiled_filter(&whole[..length]);
                    assert!(cut.is_err(), "{width:?}, {base:#x}, {length}");
                }
            }
        }
    }
}
