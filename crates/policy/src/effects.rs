//! Registers whose writes have side effects, so that a write of the register's own value is not
//! harmless.

use msrgate_filter::MsrIndex;

/// The table of side effects of writes. A row has the first and the last index of some MSRs, and
/// the side effect of a write to one of them.
const EFFECTS: [(u32, u32, &str); 12] = [
    (0x10, 0x10, "sets the time-stamp counter"),
    (
        0x11,
        0x12,
        "gives KVM an address in the guest's memory, to which KVM then writes",
    ),
    (0x49, 0x49, "flushes the branch predictors"),
    (0x79, 0x79, "loads microcode from the guest's memory"),
    (0x10b, 0x10b, "flushes the L1 cache"),
    (0x390, 0x391, "clears or sets overflow bits"),
    (
        0x800,
        0x8ff,
        "is an x2APIC command, which ends or sends interrupts",
    ),
    (
        0x4000_0000,
        0x4000_01ff,
        "is a command to the hypervisor, such as a reset or a timer",
    ),
    (
        0x4b56_4d00,
        0x4b56_4dff,
        "gives KVM an address in the guest's memory, to which KVM then writes",
    ),
    (
        0xc001_0020,
        0xc001_0020,
        "loads microcode from the guest's memory",
    ),
    (
        0xc001_0130,
        0xc001_0130,
        "is a request to the hypervisor of an encrypted guest",
    ),
    (0xc001_0300, 0xc001_0303, "clears or sets overflow bits"),
];

/// Returns the side effect of a write to this MSR beyond storing the value, in a few words.
/// `None`: no side effect is known.
#[must_use]
pub fn write_effect(index: MsrIndex) -> Option<&'static str> {
    EFFECTS
        .iter()
        .find(|(first, last, _)| (*first..=*last).contains(&index.get()))
        .map(|&(_, _, effect)| effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_effect_rows_are_sorted_and_disjoint() {
        let mut end = None;
        for (first, last, effect) in EFFECTS {
            assert!(first <= last && end < Some(first) && !effect.is_empty());
            end = Some(last);
        }
    }

    #[test]
    fn write_effect_is_found_for_first_and_last_msr_of_row_and_not_beyond_them() {
        for (index, acts) in [
            (0x48, false),
            (0x49, true),
            (0x4a, false),
            (0x8ff, true),
            (0x900, false),
        ] {
            assert_eq!(
                write_effect(MsrIndex::new(index)).is_some(),
                acts,
                "{index:#x}"
            );
        }
    }
}
