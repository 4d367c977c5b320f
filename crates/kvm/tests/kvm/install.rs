//! Tests that install, replace and remove a filter on a real KVM.

use msrgate_filter::{
    Accesses, Bitmap, DefaultAction, Errno, ExitReason, Filter, MsrIndex, Range, ReasonMask,
    Revision,
};
use msrgate_kvm::sys::{RawFilter, raw_filter, set_filter_raw};
use msrgate_kvm::{CallErrno, InstallError, RawReasons, install};

use msrgate_testing::host::host;

fn filter(revision: Revision, count: u32) -> Filter {
    let bitmap = Bitmap::from_fn(count, |offset| offset % 2 == 0).expect("a bitmap");
    let range = Range::new(Accesses::Both, MsrIndex::new(0xc000_0080), bitmap);
    Filter::new(revision, DefaultAction::Deny, vec![range]).expect("a filter")
}

fn mask(reasons: &[ExitReason]) -> ReasonMask {
    ReasonMask::of(Revision::Mainline, reasons)
}

#[test]
fn s2_4_install_accepts_filters_of_any_size() {
    let Some(host) = host() else { return };
    let vm = host.create_vm().unwrap();
    let mut installed = install(&vm, &filter(Revision::Mainline, 1), ReasonMask::NONE).unwrap();
    for count in [7, 8, 9, 63, 64, 65, 0x2fff, 0x3000] {
        let filter = filter(Revision::Mainline, count);
        installed.replace(&filter, ReasonMask::NONE).unwrap();
        // The kernel accepts the same filter again with bitmaps that end at an unreadable page.
        set_filter_raw(&vm, &raw_filter(&filter)).unwrap();
    }
    installed.remove().unwrap();
}

#[test]
fn s7_installed_remembers_reason_mask_until_filter_is_removed() {
    let Some(host) = host() else { return };
    let vm = host.create_vm().unwrap();
    let filter = filter(Revision::Mainline, 2);
    let mut installed = install(&vm, &filter, mask(&[ExitReason::Filter])).unwrap();
    assert_eq!(installed.reasons(), RawReasons::new(4));
    let all = mask(&ExitReason::ALL);
    installed.replace(&filter, all).unwrap();
    assert_eq!(installed.reasons(), RawReasons::new(7));
    installed.remove().unwrap();
    assert_eq!(installed.reasons(), RawReasons::NONE);
}

#[test]
fn install_of_filter_for_other_revision_is_refused() {
    let Some(host) = host() else { return };
    let vm = host.create_vm().unwrap();
    let seen = install(&vm, &filter(Revision::V6, 2), ReasonMask::NONE);
    assert_eq!(seen.err(), Some(InstallError::Revision(Revision::V6)));
}

#[test]
fn probe_returns_exit_reasons_that_kernel_accepts() {
    let Some(host) = host() else { return };
    let known = RawReasons::new(7);
    assert_eq!(host.reasons().union(known), host.reasons());
    if host.unknown_bits() == msrgate_kvm::UnknownBits::Rejected {
        assert_eq!(host.reasons(), known);
        let vm = host.create_vm().unwrap();
        let request = RawFilter {
            flags: 2,
            ..RawFilter::default()
        };
        let seen = set_filter_raw(&vm, &request);
        assert_eq!(seen, Err(CallErrno::Known(Errno::Einval)));
    }
}
