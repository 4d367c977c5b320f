//! A process that sets filters through the bytes of the ABI.

use msrgate_filter::abi::{CallerWidth, Request, Segment, UserAddress};
use msrgate_filter::{Filter, SetError, Vm};

const ARGUMENT: UserAddress = UserAddress::new(0x1000);
const BITMAPS: UserAddress = UserAddress::new(0x10_0000);

/// Encodes the filter as the bytes of `struct kvm_msr_filter`, and sets it by these bytes, as a
/// process does.
pub(crate) fn set(vm: &Vm, width: CallerWidth, filter: &Filter) -> Result<(), SetError> {
    edited(vm, width, filter, |_| ())
}

/// Sets the filter from the bytes of `struct kvm_msr_filter`, after `edit` has changed fields of
/// the struct.
pub(crate) fn edited(
    vm: &Vm,
    width: CallerWidth,
    filter: &Filter,
    edit: impl FnOnce(&mut Request),
) -> Result<(), SetError> {
    let (mut request, bitmaps) = Request::of(filter, BITMAPS);
    edit(&mut request);
    let argument = request.encode(width).expect("bitmaps within 4 GiB");
    let memory = [
        Segment {
            start: ARGUMENT,
            bytes: &argument,
        },
        Segment {
            start: BITMAPS,
            bytes: &bitmaps,
        },
    ];
    vm.set_msr_filter(width, &memory[..], ARGUMENT)
}

/// Makes the set call with a struct at an address that cannot be read.
pub(crate) fn unreadable(vm: &Vm) -> Result<(), SetError> {
    let nothing: &[Segment<'_>] = &[];
    vm.set_msr_filter(CallerWidth::Bits64, nothing, ARGUMENT)
}
