//! Unsafe: hands `KVM_X86_SET_MSR_FILTER` pointers that may be bad, which is the point.
//!
//! A filter as user space may really pass it, mistakes included.
#![expect(
    unsafe_code,
    reason = "an ioctl whose argument the caller may have made unreadable"
)]

use std::array;
use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_msr_filter, kvm_msr_filter_range};
use msrgate_filter::abi::CallerWidth;
use msrgate_filter::{Fallback, Filter, MAX_RANGES};
use vmm_sys_util::ioctl::ioctl_with_ptr;

use crate::errno::CallErrno;
use crate::sys::memory::UnreadableEnd;

/// The fields of `struct kvm_msr_filter`, unchecked (S1.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawFilter {
    /// 1 is default deny; other bits mean nothing.
    pub flags: u32,
    /// All sixteen; unused ones have `nmsrs` 0.
    pub ranges: [RawRange; MAX_RANGES],
}

/// The fields of `struct kvm_msr_filter_range`, unchecked (S1.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRange {
    /// 1 reads, 2 writes; other bits mean nothing.
    pub flags: u32,
    /// How many MSRs.
    pub nmsrs: u32,
    /// The first of them.
    pub base: u32,
    /// Their bits.
    pub bitmap: RawBitmap,
}

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

/// The filter's one flag: default deny (S1.7).
const fn default_flag(fallback: Fallback) -> u32 {
    match fallback {
        Fallback::Allow => 0,
        Fallback::Deny => 1,
    }
}

/// The request that sets this filter, bitmaps in whole words as the kernel reads them (S2.4).
impl From<&Filter> for RawFilter {
    fn from(filter: &Filter) -> Self {
        let mut raw = Self {
            flags: default_flag(filter.fallback()),
            ..Self::default()
        };
        for (slot, range) in raw.ranges.iter_mut().zip(filter.ranges()) {
            let words = range.bitmap().words();
            *slot = RawRange {
                flags: range.accesses().bits(),
                nmsrs: range.bitmap().count(),
                base: range.base().get(),
                bitmap: RawBitmap::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect()),
            };
        }
        raw
    }
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
    let range = |place: usize| {
        let Some(range) = filter.ranges().get(place) else {
            return kvm_msr_filter_range::default();
        };
        kvm_msr_filter_range {
            flags: range.accesses().bits(),
            nmsrs: range.bitmap().count(),
            base: range.base().get(),
            // x86 is little-endian: the first byte of a word holds its lowest bits. The kernel only
            // reads.
            bitmap: range.bitmap().words().as_ptr().cast_mut().cast(),
        }
    };
    let argument = kvm_msr_filter {
        flags: default_flag(filter.fallback()),
        ranges: array::from_fn(range),
    };
    ask(vm, CallerWidth::Bits64, &raw const argument)
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
    let argument = kvm_msr_filter {
        flags: filter.flags,
        ranges: array::from_fn(|place| kvm_msr_filter_range {
            flags: filter.ranges[place].flags,
            nmsrs: filter.ranges[place].nmsrs,
            base: filter.ranges[place].base,
            bitmap: bitmaps[place].as_ref().unwrap_or(&nothing).address() as *mut u8,
        }),
    };
    ask(vm, width, &raw const argument)
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
    use msrgate_filter::{Accesses, Bitmap, MsrIndex, Range, Revision};

    #[test]
    fn a_filter_becomes_whole_words() {
        let bitmap = Bitmap::from_fn(65, |offset| offset == 64).unwrap();
        let range = Range::new(Accesses::Write, MsrIndex::new(0x10), bitmap);
        let filter = Filter::new(Revision::Mainline, Fallback::Deny, vec![range]).unwrap();
        let raw = RawFilter::from(&filter);
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
