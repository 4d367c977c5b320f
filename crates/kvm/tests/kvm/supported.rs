//! A test of the CPUID and the MSRs that this host supports for guests.

use msrgate_filter::MsrIndex;
use msrgate_kvm::IgnoreMsrs;
use msrgate_kvm::measure::Supported;

use msrgate_testing::host::host;

#[test]
fn supported_cpuid_and_saved_msrs_are_returned_for_host() {
    let Some(host) = host() else { return };
    let supported = Supported::of(&host).unwrap();
    let name = supported.cpuid(0, 0).unwrap();
    let cpu = host.cpu().unwrap();
    assert_eq!([name.ebx, name.edx, name.ecx], cpu.vendor);
    assert_eq!(supported.cpuid(0x1234_5678, 0), None);
    assert_eq!(supported.cpuid(1, 7), None);
    assert!(supported.saved().is_sorted());
    let [tsc, lstar] = [0x10, 0xc000_0082].map(MsrIndex::new);
    for index in [tsc, lstar] {
        assert!(supported.saved().contains(&index), "{index}");
        assert!(supported.has(index), "{index}");
    }
    if host.ignore_msrs() != IgnoreMsrs::On {
        assert!(!supported.has(MsrIndex::new(0xdead_beef)));
    }
}
