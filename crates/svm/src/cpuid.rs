//! CPUID, as the guest sees it: the processor's, without SVM and x2APIC.

/// The result of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

const X2APIC: u32 = 1 << 21;
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;
const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;

/// Returns the leaf `function` for a guest with this CR4. `real` is the leaf as the processor gave it to the
/// hypervisor.
///
/// The bits `OSXSAVE` and `OSPKE` repeat bits of CR4, and the processor took them from the hypervisor's. In x2APIC mode
/// a guest could start processors by an MSR that no map of SVM intercepts in QEMU's emulator.
#[must_use]
pub fn of_guest(function: u32, subfunction: u32, real: Leaf, cr4: u64) -> Leaf {
    let copy = |bit: u32, is_set: bool, ecx: u32| if is_set { ecx | bit } else { ecx & !bit };
    let ecx = match (function, subfunction) {
        (1, _) => copy(OSXSAVE, cr4 >> 18 & 1 == 1, real.ecx & !X2APIC),
        (7, 0) => copy(OSPKE, cr4 >> 22 & 1 == 1, real.ecx),
        (0x8000_0001, _) => real.ecx & !(SVM | SKINIT),
        (0x8000_000a, _) => return Leaf::default(),
        _ => real.ecx,
    };
    Leaf { ecx, ..real }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONES: Leaf = Leaf {
        eax: !0,
        ebx: !0,
        ecx: !0,
        edx: !0,
    };

    #[test]
    fn guest_sees_neither_svm_nor_x2apic() {
        assert_eq!(of_guest(0x8000_0001, 0, ONES, 0).ecx, !0x1004);
        assert_eq!(of_guest(0x8000_000a, 0, ONES, 0), Leaf::default());
        assert_eq!(of_guest(1, 0, ONES, 1 << 18).ecx, !(1 << 21));
    }

    #[test]
    fn bits_that_repeat_cr4_are_guests() {
        assert_eq!(of_guest(1, 0, Leaf::default(), 1 << 18).ecx, OSXSAVE);
        assert_eq!(of_guest(1, 0, ONES, 0).ecx & OSXSAVE, 0);
        assert_eq!(of_guest(7, 0, ONES, 1 << 22).ecx, !0);
        assert_eq!(of_guest(7, 0, ONES, 0).ecx, !OSPKE);
        assert_eq!(of_guest(7, 1, ONES, 0), ONES);
    }
}
