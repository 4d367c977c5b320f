//! Unsafe: hands `KVM_X86_SET_MSR_FILTER` pointers that may be bad, which is the point.
//!
//! A filter as user space may really pass it, mistakes included.
#![expect(
    unsafe_code,
    reason = "an ioctl whose argument the caller may have made unreadable"
)]

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_msr_filter;
use msrgate_filter::abi::{CallerWidth, RangeRequest, Request, UserAddress};
use msrgate_filter::{Errno, Filter, MAX_RANGES};
use vmm_sys_util::ioctl::ioctl_with_ptr;

use crate::errno::CallErrno;
use crate::sys::memory::UnreadableEnd;

/// A filter as user space may pass it, unchecked (S1.7). Unused ranges have `nmsrs` 0.
pub type RawFilter = Request<RawBitmap>;

/// A range of a [`RawFilter`].
pub type RawRange = RangeRequest<RawBitmap>;

/// What a range's bitmap pointer points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawBitmap {
    /// These bytes and not one more: the next one is in a page that cannot be read, so that a
    /// bitmap too short for its range is EFAULT exactly where the kernel reads past it (S2.4).
    Bytes(Vec<u8>),
    /// A page that cannot be read.
    Unreadable,
}

impl Default for RawBitmap {
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

/// The request that sets `filter`, bitmaps in whole words as the kernel reads them (S2.4).
#[must_use]
pub fn raw_filter(filter: &Filter) -> RawFilter {
    Request::with_bitmaps(filter, |range| {
        let words = range.bitmap().words().iter();
        RawBitmap::Bytes(words.flat_map(|word| word.to_le_bytes()).collect())
    })
}

/// Asks the kernel for `request`, with nothing checked or padded on the way. `vm` is a VM's file
/// descriptor, in whichever crate's type.
///
/// # Errors
/// The kernel's answer (S2), or ENOMEM where there is no memory for the bitmaps.
pub fn set_filter_raw(vm: &impl AsRawFd, request: &RawFilter) -> Result<(), CallErrno> {
    send(vm, CallerWidth::Bits64, request)
}

/// Asks the kernel for `filter`, whose bitmaps are whole words already (S2.4): it reads them where
/// they are.
pub(crate) fn set_filter(vm: &impl AsRawFd, filter: &Filter) -> Result<(), CallErrno> {
    // x86 is little-endian: the first byte of a word holds its lowest bits. The kernel only reads.
    let request = Request::with_bitmaps(filter, |range| {
        UserAddress::new(range.bitmap().words().as_ptr().addr() as u64)
    });
    ask_for(vm, CallerWidth::Bits64, &request)
}

/// Asks the kernel for `filter` under the ioctl number of such a caller, which we need not be.
pub(crate) fn send(
    vm: &impl AsRawFd,
    width: CallerWidth,
    filter: &RawFilter,
) -> Result<(), CallErrno> {
    // Most of the sixteen have none: mapping a page for each would take longer than the call does to
    // publish the filter.
    let nothing = UnreadableEnd::after(&[])?;
    let mut bitmaps = Vec::with_capacity(MAX_RANGES);
    for range in &filter.ranges {
        bitmaps.push(match &range.bitmap {
            RawBitmap::Bytes(bytes) if !bytes.is_empty() => Some(UnreadableEnd::after(bytes)?),
            _ => None,
        });
    }
    let mut places = bitmaps.iter();
    let request = filter.map_bitmaps(|_| {
        let bitmap = places.next().and_then(Option::as_ref).unwrap_or(&nothing);
        UserAddress::new(bitmap.address() as u64)
    });
    ask_for(vm, width, &request)
}

/// Asks the kernel for the filter in a struct of 64-bit callers, whatever the number says.
fn ask_for(vm: &impl AsRawFd, width: CallerWidth, request: &Request) -> Result<(), CallErrno> {
    // Every address fits a pointer of 64 bits.
    let argument = request.encode(CallerWidth::Bits64);
    let argument = argument.map_err(|_| CallErrno::Known(Errno::Efault))?;
    ask(vm, width, argument.as_ptr().cast())
}

/// Asks the kernel for the filter at `argument`, which need not be readable.
pub(crate) fn ask(
    vm: &impl AsRawFd,
    width: CallerWidth,
    argument: *const kvm_msr_filter,
) -> Result<(), CallErrno> {
    let number = width.ioctl_number();
    // SAFETY: under either number the kernel only copies from the argument and from the bitmaps it
    // points to, through copy_from_user, which answers EFAULT to what cannot be read. Nothing is
    // written, and no pointer is kept after the call.
    match unsafe { ioctl_with_ptr(vm, number.into(), argument) } {
        0 => Ok(()),
        _ => Err(CallErrno::last()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msrgate_filter::{Accesses, Bitmap, DefaultAction, MsrIndex, Range, Revision};

    #[test]
    fn a_filter_becomes_whole_words() {
        let bitmap = Bitmap::from_fn(65, |offset| offset == 64).unwrap();
        let range = Range::new(Accesses::Write, MsrIndex::new(0x10), bitmap);
        let filter = Filter::new(Revision::Mainline, DefaultAction::Deny, vec![range]).unwrap();
        let raw = raw_filter(&filter);
        assert_eq!(raw.flags, 1);
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            raw.ranges[0],
            RawRange {
                flags: 2,
                nmsrs: 65,
                base: 0x10,
                bitmap: RawBitmap::Bytes(bytes.to_vec()),
            }
        );
        assert_eq!(raw.ranges[1..], RawFilter::default().ranges[1..]);
    }
}
