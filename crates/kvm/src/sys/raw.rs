//! Unsafe: passes pointers to `KVM_X86_SET_MSR_FILTER` that may be invalid on purpose.
//!
//! This module sends filters exactly as user space could pass them, mistakes included.
#![expect(
    unsafe_code,
    reason = "an ioctl whose argument the caller may have made unreadable"
)]

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_msr_filter;
use msrgate_filter::abi::{CallerWidth, RangeRequest, Request, UserAddress};
use msrgate_filter::{Errno, Filter, MAX_RANGES};

use crate::errno::CallErrno;
use crate::sys::ioctl::ioctl_with_ptr;
use crate::sys::memory::UnreadableEnd;

/// A filter as user space can pass it, unchecked (S1.7). An unused range has `nmsrs` 0.
pub type RawFilter = Request<RawBitmap>;

/// A range of a [`RawFilter`].
pub type RawRange = RangeRequest<RawBitmap>;

/// The memory to which a range's bitmap pointer points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawBitmap {
    /// A buffer with exactly these bytes. The next byte is in an unreadable page. So if the bitmap is too
    /// short for its range, the kernel reads past the end, and returns EFAULT (S2.4).
    Bytes(Vec<u8>),
    /// An unreadable page, so that the kernel's read of the bitmap fails with EFAULT.
    Unreadable,
}

impl Default for RawBitmap {
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

/// Returns the request that sets `filter`. Its bitmaps are whole 64-bit words, as the kernel reads them
/// (S2.4).
#[must_use]
pub fn raw_filter(filter: &Filter) -> RawFilter {
    Request::with_bitmaps(filter, |range| {
        let words = range.bitmap().words().iter();
        RawBitmap::Bytes(words.flat_map(|word| word.to_le_bytes()).collect())
    })
}

/// Passes `request` to the kernel unchanged: nothing is checked and nothing is padded. `vm` is the file
/// descriptor of a VM, in any crate's type.
///
/// # Errors
/// Returns the kernel's error number (S2), or ENOMEM if there is no memory for the bitmaps.
pub fn set_filter_raw(vm: &impl AsRawFd, request: &RawFilter) -> Result<(), CallErrno> {
    send(vm, CallerWidth::Bits64, request)
}

/// Sets the filter of the VM. The bitmaps of `filter` are whole words already (S2.4), so the kernel can
/// read them where they are, without a copy by this crate.
pub(crate) fn set_filter(vm: &impl AsRawFd, filter: &Filter) -> Result<(), CallErrno> {
    // x86 is little-endian, so the first byte of a word holds the word's lowest bits. The kernel only reads
    // the bitmap.
    let request = Request::with_bitmaps(filter, |range| {
        UserAddress::new(range.bitmap().words().as_ptr().addr() as u64)
    });
    ask_for(vm, CallerWidth::Bits64, &request)
}

/// Passes `filter` to the kernel with the ioctl number that 32-bit or 64-bit callers use, as `width` says.
/// This process itself is a 64-bit caller.
pub(crate) fn send(
    vm: &impl AsRawFd,
    width: CallerWidth,
    filter: &RawFilter,
) -> Result<(), CallErrno> {
    // Most of the sixteen ranges have no bitmap. They share one page, because mapping a page for each
    // would take longer than the ioctl itself.
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

/// Passes `request` in the struct of 64-bit callers, with the ioctl number of `width`.
fn ask_for(vm: &impl AsRawFd, width: CallerWidth, request: &Request) -> Result<(), CallErrno> {
    // Every address fits into the 64-bit pointers of this struct.
    let argument = request.encode(CallerWidth::Bits64);
    let argument = argument.map_err(|_| CallErrno::Known(Errno::Efault))?;
    ask(vm, width, argument.as_ptr().cast())
}

/// Passes the filter at the address `argument`, which may be unreadable, to the kernel.
pub(crate) fn ask(
    vm: &impl AsRawFd,
    width: CallerWidth,
    argument: *const kvm_msr_filter,
) -> Result<(), CallErrno> {
    let number = width.ioctl_number();
    // SAFETY: with either number the kernel only copies from the argument and from the bitmaps that it
    // points to, through copy_from_user, which returns EFAULT for unreadable memory. The kernel writes
    // nothing and keeps no pointer after the call.
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
    fn raw_filter_has_bitmaps_of_whole_words() {
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
