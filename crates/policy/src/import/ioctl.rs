//! Reads the bytes of the ioctl: the struct that a process passes to `KVM_X86_SET_MSR_FILTER`, with the
//! bitmaps behind it, and with the bitmaps' offsets in the file in place of their addresses.
//!
//! A file may be damaged, or may have been taken from a program's memory without the bitmaps. So the reader
//! takes no byte for a bitmap that the file does not certainly have for it: each byte belongs to the struct
//! or to a bitmap, except for zeros that align a bitmap.

use std::cmp::Reverse;

use msrgate_filter::abi::{CallerWidth, Request, Segment, Slot, UserAddress};
use msrgate_filter::{Bitmap, Filter, RangeError, Revision, SetCall, SetError};

use super::ImportError;

/// The smallest address of a bitmap in a program's memory. Every offset in a file of a struct and its bitmaps
/// is smaller.
const LOWEST_ADDRESS: u64 = 0x1_0000;

/// The size of the smallest bitmap in bytes. Fewer bytes that belong to no range can only align a bitmap.
const LEAST_BITMAP: usize = size_of::<u64>();

/// The error of bytes that are not the struct of a caller of one width, with its bitmaps.
struct Misread {
    stage: Stage,
    why: String,
}

/// The part of the file that is wrong, in the order in which the parts are checked. Of the two layouts of the
/// struct, the right one is usually wrong in a later part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The file is shorter than the struct.
    Size,
    /// The flags of the filter are unknown.
    Flags,
    /// The struct has no range, and is not the struct of a filter that has only a default.
    NoRange,
    /// The flags or the size of a range are not valid.
    Range,
    /// The bitmap of a range is not in the file.
    Pointer,
    /// The file has bytes that belong to no bitmap.
    Rest,
}

impl Misread {
    fn new(stage: Stage, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { stage, why }
    }
}

/// The bytes of a range's bitmap in the file.
struct Place {
    slot: Slot,
    start: usize,
    end: usize,
}

/// Returns the filter that the kernel would set for the process from which these bytes come.
///
/// # Errors
/// Returns [`ImportError::Bytes`] if the bytes are not a struct with its bitmaps.
pub(super) fn read(bytes: &[u8]) -> Result<Filter, ImportError> {
    one_of(&[bytes], "the file is neither text nor a program, and")
}

/// Returns the filter of the bytes of a dump, which can be read in several ways. Only one of the ways gives a
/// filter with ranges: the flags of a range, 1 to 3, are large numbers if their bytes are in another order. A filter
/// without ranges has to be one in all ways, unless its struct has only zeros: with eight bytes in another order, the
/// flag for deny becomes padding.
///
/// # Errors
/// Returns [`ImportError::Bytes`] if no reading is a struct with its bitmaps, or if two readings are
/// different filters.
pub(super) fn read_dump(readings: &[Vec<u8>]) -> Result<Filter, ImportError> {
    let readings: Vec<_> = readings.iter().map(Vec::as_slice).collect();
    one_of(&readings, "the bytes of the dump are")
}

fn one_of(readings: &[&[u8]], subject: &str) -> Result<Filter, ImportError> {
    let mut filters: Vec<Filter> = Vec::new();
    let mut misread: Vec<Misread> = Vec::new();
    // The struct of a 64-bit process whose end is missing, or the bytes of eight in another order, can look like a
    // struct whose ranges are all unused.
    let has_no_range = |bytes: &&[u8]| {
        filter(bytes, CallerWidth::Bits64).is_ok_and(|filter| filter.ranges().is_empty())
    };
    let is_certain = |bytes: &[u8], width: CallerWidth| {
        is_blank(bytes, width) || width == CallerWidth::Bits64 && readings.iter().all(has_no_range)
    };
    for bytes in readings {
        for width in widths(bytes) {
            match filter(bytes, width) {
                Ok(filter) if filters.contains(&filter) => {}
                Ok(filter) if filter.ranges().is_empty() && !is_certain(bytes, width) => {
                    let why = "the struct has no range in use, and bytes that are not 0";
                    misread.push(Misread::new(Stage::NoRange, why));
                }
                Ok(filter) => filters.push(filter),
                Err(error) => misread.push(error),
            }
        }
    }
    // A struct whose ranges are all unused may be one of the other width, of which the ranges were overlooked.
    if filters.iter().any(|filter| !filter.ranges().is_empty()) {
        filters.retain(|filter| !filter.ranges().is_empty());
    }
    match filters.pop() {
        Some(only) if filters.is_empty() => return Ok(only),
        Some(_) => {
            return Err(ImportError::Bytes(
                "the bytes can be read as two different filters, for example as the struct of a 64-bit process and as that of a 32-bit process"
                    .to_owned(),
            ));
        }
        None => {}
    }
    let furthest = misread.into_iter().min_by_key(|error| Reverse(error.stage));
    Err(ImportError::Bytes(match furthest {
        Some(Misread { stage, why }) if stage >= Stage::Pointer => why,
        Some(Misread { why, .. }) => format!("{subject} not the bytes of a filter: {why}"),
        None => format!("{subject} not the bytes of a filter"),
    }))
}

/// Returns the widths of a caller, the likelier one first: after the flags, a caller of 64 bits has padding,
/// and one of 32 bits the flags of its first range.
fn widths(bytes: &[u8]) -> [CallerWidth; 2] {
    match bytes.get(4..8) {
        None | Some([0, 0, 0, 0]) => [CallerWidth::Bits64, CallerWidth::Bits32],
        Some(_) => [CallerWidth::Bits32, CallerWidth::Bits64],
    }
}

/// Returns the filter that the kernel would set if a caller of this width had these bytes in its memory.
fn filter(bytes: &[u8], width: CallerWidth) -> Result<Filter, Misread> {
    let size = width.struct_size();
    let head = bytes.get(..size);
    let Some(request) = head.and_then(|head| Request::decode(head, width).ok()) else {
        let [long, short] = CallerWidth::ALL.map(CallerWidth::struct_size);
        return Err(Misread::new(
            Stage::Size,
            format!(
                "the file is too short: the struct has {long} bytes, or {short} in a 32-bit process"
            ),
        ));
    };
    let memory = Segment {
        start: UserAddress::NULL,
        bytes,
    };
    let call = SetCall::read(Revision::Mainline, width, &memory, UserAddress::NULL);
    if let Err(error) = call.result() {
        without_values(&error)?;
    }
    let places = places(bytes, size, &request)?;
    every_byte_is_used(bytes, size, &places)?;
    let published = call.published().last();
    let none = || Misread::new(Stage::NoRange, "the bytes set no filter");
    published.cloned().ok_or_else(none)
}

/// Returns true if the struct has only zeros after the filter's flags.
fn is_blank(bytes: &[u8], width: CallerWidth) -> bool {
    let fields = bytes.get(size_of::<u32>()..width.struct_size());
    fields.is_some_and(|fields| fields.iter().all(|byte| *byte == 0))
}

/// Returns the error of the kernel, unless it is one of a bitmap's address, of which [`places`] says more. The
/// text has none of the struct's numbers: if the file is not a filter, they may be a secret.
fn without_values(error: &SetError) -> Result<(), Misread> {
    let (stage, why) = match error {
        SetError::UnknownFlags(_) => (
            Stage::Flags,
            "the filter's flags are neither 0 nor 1".to_owned(),
        ),
        SetError::NoFilter(error) => (Stage::NoRange, error.to_string()),
        SetError::Range { slot, why } => {
            let why = match why {
                RangeError::Unreadable { .. } => return Ok(()),
                RangeError::NoFlags => {
                    "has neither the flag for reads nor that for writes".to_owned()
                }
                RangeError::UnknownFlags(_) => "has unknown flags".to_owned(),
                RangeError::Bitmap(_) => {
                    format!("has more than {} MSRs", Bitmap::MAX_COUNT)
                }
                _ => "is not valid".to_owned(),
            };
            (Stage::Range, format!("range {slot} {why}"))
        }
        _ => (
            Stage::Size,
            "the bytes do not have the form of a filter".to_owned(),
        ),
    };
    Err(Misread::new(stage, why))
}

/// Returns the places of all bitmaps, in the order of the file.
fn places(bytes: &[u8], size: usize, request: &Request) -> Result<Vec<Place>, Misread> {
    let mut places = Vec::new();
    for (slot, range) in request.slots().filter(|(_, range)| range.nmsrs != 0) {
        let length = Bitmap::words_for(range.nmsrs).unwrap_or(0) * size_of::<u64>();
        let pointer = range.bitmap.get();
        let start = usize::try_from(pointer).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        let why = if pointer == 0 {
            format!(
                "range {slot} has no bitmap: its pointer is NULL, and the kernel refuses such a filter with EFAULT"
            )
        } else if start < size {
            format!(
                "the bitmap of range {slot} lies inside the struct; put the bitmaps behind the struct, and their offsets in the file in place of the addresses"
            )
        } else if pointer >= LOWEST_ADDRESS.max(bytes.len() as u64) {
            format!(
                "range {slot} points to its bitmap by an address in the program that the struct was taken from, so the bitmap is not in the file; put the bitmaps behind the struct, and their offsets in the file in place of the addresses"
            )
        } else if end > bytes.len() {
            format!(
                "the bitmap of range {slot} reaches past the end of the file: the file is cut off, or lacks the bitmaps behind the struct"
            )
        } else {
            places.push(Place { slot, start, end });
            continue;
        };
        return Err(Misread::new(Stage::Pointer, why));
    }
    places.sort_by_key(|place| (place.start, place.end));
    Ok(places)
}

/// Checks that each byte after the struct belongs to a bitmap, or aligns one. Several ranges may have one
/// bitmap, or the beginning of it.
///
/// A file whose beginning was overwritten with zeros has bytes that belong to no bitmap, because the zeros are
/// a filter without ranges.
fn every_byte_is_used(bytes: &[u8], size: usize, places: &[Place]) -> Result<(), Misread> {
    let stage = match places {
        [] => Stage::NoRange,
        _ => Stage::Rest,
    };
    let mut used = size;
    let mut before: Option<&Place> = None;
    let aligns =
        |unused: &[u8]| unused.len() < LEAST_BITMAP && unused.iter().all(|byte| *byte == 0);
    let unused = |from: usize| {
        let why = format!(
            "the bytes from offset {from:#x} on belong to no range, so the file is not a single filter, or a part of it was overwritten; the bitmaps must follow the struct and one another, with fewer than {LEAST_BITMAP} zero bytes between them, and nothing may follow the last one"
        );
        Misread::new(stage, why)
    };
    for place in places {
        match before {
            Some(before) if before.start == place.start => {}
            Some(before) if place.start < used => {
                let why = format!(
                    "the bitmaps of ranges {} and {} overlap",
                    before.slot, place.slot
                );
                return Err(Misread::new(Stage::Rest, why));
            }
            _ if aligns(&bytes[used..place.start]) => {}
            _ => return Err(unused(used)),
        }
        used = used.max(place.end);
        before = Some(place);
    }
    if aligns(&bytes[used..]) {
        Ok(())
    } else {
        Err(unused(used))
    }
}
