//! Registers that are numbered: pairs of MTRRs, banks of machine checks, counters.

use std::ops::RangeInclusive;

use msrgate_filter::MsrIndex;

use super::{Register, by_index};

/// Registers whose numbers count up as their indices do: `IA32_MTRR_PHYSBASE{}` number n is at
/// 0x200 + 2n.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Series {
    /// Their names, `{}` for the number.
    pub pattern: &'static str,
    /// Their numbers, at least two.
    pub numbers: RangeInclusive<u16>,
    first: u32,
    step: u8,
}

impl Series {
    /// The index of the one with this number, if there is one.
    #[must_use]
    pub fn index(&self, number: u16) -> Option<MsrIndex> {
        let nth = u32::from(number.checked_sub(*self.numbers.start())?);
        let there = self.numbers.contains(&number);
        there.then(|| MsrIndex::new(self.first + u32::from(self.step) * nth))
    }

    /// The number of the one with this index, if it is one of them.
    #[must_use]
    pub fn number(&self, index: MsrIndex) -> Option<u16> {
        let offset = index.get().checked_sub(self.first)?;
        let nth = u16::try_from(offset / u32::from(self.step)).ok()?;
        let number = self.numbers.start().checked_add(nth)?;
        (self.index(number)? == index).then_some(number)
    }

    /// Its registers, by index.
    pub fn registers(&self) -> impl Iterator<Item = &'static Register> + use<'_> {
        let numbers = self.numbers.clone();
        numbers.filter_map(|number| by_index(self.index(number)?))
    }
}

/// Every series, by its first index.
#[must_use]
pub fn all_series() -> &'static [Series] {
    &SERIES
}

impl Register {
    /// The series that it is one of. Not every numbered name is in one: uncore monitors, which
    /// each family has elsewhere, and the Pentium 4's counters are not.
    #[must_use]
    pub fn of_series(&self) -> Option<&'static Series> {
        SERIES
            .iter()
            .find(|series| series.number(self.index).is_some())
    }
}

const fn series(
    pattern: &'static str,
    numbers: RangeInclusive<u16>,
    first: u32,
    step: u8,
) -> Series {
    Series {
        pattern,
        numbers,
        first,
        step,
    }
}

/// By first index.
static SERIES: [Series; 62] = [
    series("IA32_SGXLEPUBKEYHASH{}", 0..=3, 0x8c, 1),
    series("IA32_PMC{}", 0..=7, 0xc1, 1),
    series("IA32_PERFEVTSEL{}", 0..=7, 0x186, 1),
    series("MSR_OFFCORE_RSP_{}", 0..=1, 0x1a6, 1),
    series("IA32_FRED_RSP{}", 0..=3, 0x1cc, 1),
    series("IA32_FRED_SSP{}", 1..=3, 0x1d1, 1),
    series("IA32_MTRR_PHYSBASE{}", 0..=9, 0x200, 2),
    series("IA32_MTRR_PHYSMASK{}", 0..=9, 0x201, 2),
    series("IA32_MC{}_CTL2", 0..=31, 0x280, 1),
    series("IA32_FIXED_CTR{}", 0..=2, 0x309, 1),
    series("IA32_MC{}_CTL", 0..=31, 0x400, 4),
    series("IA32_MC{}_STATUS", 0..=31, 0x401, 4),
    series("IA32_MC{}_ADDR", 0..=31, 0x402, 4),
    series("IA32_MC{}_MISC", 0..=31, 0x403, 4),
    series("IA32_A_PMC{}", 0..=7, 0x4c1, 1),
    series("IA32_RTIT_ADDR{}_A", 0..=3, 0x580, 2),
    series("IA32_RTIT_ADDR{}_B", 0..=3, 0x581, 2),
    series("IA32_PL{}_SSP", 0..=3, 0x6a4, 1),
    series("IA32_X2APIC_ISR{}", 0..=7, 0x810, 1),
    series("IA32_X2APIC_TMR{}", 0..=7, 0x818, 1),
    series("IA32_X2APIC_IRR{}", 0..=7, 0x820, 1),
    series("IA32_L3_QOS_MASK_{}", 0..=15, 0xc90, 1),
    series("IA32_L2_QOS_MASK_{}", 0..=3, 0xd10, 1),
    series("IA32_LBR_{}_INFO", 0..=31, 0x1200, 1),
    series("IA32_LBR_{}_FROM_IP", 0..=31, 0x1500, 1),
    series("IA32_LBR_{}_TO_IP", 0..=31, 0x1600, 1),
    series("HV_X64_MSR_SINT{}", 0..=15, 0x4000_0090, 1),
    series("HV_X64_MSR_STIMER{}_CONFIG", 0..=3, 0x4000_00b0, 2),
    series("HV_X64_MSR_STIMER{}_COUNT", 0..=3, 0x4000_00b1, 2),
    series("HV_X64_MSR_CRASH_P{}", 0..=4, 0x4000_0100, 1),
    series("HV_X64_MSR_NESTED_SINT{}", 0..=15, 0x4000_1090, 1),
    series("MSR_AMD64_SMCA_MC{}_CTL", 0..=63, 0xc000_2000, 16),
    series("MSR_AMD64_SMCA_MC{}_STATUS", 0..=63, 0xc000_2001, 16),
    series("MSR_AMD64_SMCA_MC{}_ADDR", 0..=63, 0xc000_2002, 16),
    series("MSR_AMD64_SMCA_MC{}_MISC0", 0..=63, 0xc000_2003, 16),
    series("MSR_AMD64_SMCA_MC{}_CONFIG", 0..=63, 0xc000_2004, 16),
    series("MSR_AMD64_SMCA_MC{}_IPID", 0..=63, 0xc000_2005, 16),
    series("MSR_AMD64_SMCA_MC{}_SYND", 0..=63, 0xc000_2006, 16),
    series("MSR_AMD64_SMCA_MC{}_DESTAT", 0..=63, 0xc000_2008, 16),
    series("MSR_AMD64_SMCA_MC{}_DEADDR", 0..=63, 0xc000_2009, 16),
    series("MSR_AMD64_SMCA_MC{}_MISC1", 0..=63, 0xc000_200a, 16),
    series("MSR_AMD64_SMCA_MC{}_MISC2", 0..=63, 0xc000_200b, 16),
    series("MSR_AMD64_SMCA_MC{}_MISC3", 0..=63, 0xc000_200c, 16),
    series("MSR_AMD64_SMCA_MC{}_MISC4", 0..=63, 0xc000_200d, 16),
    series("MSR_AMD64_SMCA_MC{}_SYND1", 0..=63, 0xc000_200e, 16),
    series("MSR_AMD64_SMCA_MC{}_SYND2", 0..=63, 0xc000_200f, 16),
    series("MSR_K7_EVNTSEL{}", 0..=3, 0xc001_0000, 1),
    series("MSR_K7_PERFCTR{}", 0..=3, 0xc001_0004, 1),
    series("IORRBase{}", 0..=1, 0xc001_0016, 2),
    series("IORRMask{}", 0..=1, 0xc001_0017, 2),
    series("ProcNameString{}", 0..=5, 0xc001_0030, 1),
    series("MSR_AMD64_MC{}_MASK", 0..=8, 0xc001_0044, 1),
    series("SMI_ON_IO_TRAP_{}", 0..=3, 0xc001_0050, 1),
    series("PStateDef{}", 0..=7, 0xc001_0064, 1),
    series("MSR_F15H_PERF_CTL{}", 0..=5, 0xc001_0200, 2),
    series("MSR_F15H_PERF_CTR{}", 0..=5, 0xc001_0201, 2),
    series("ChL3PmcCfg{}", 0..=5, 0xc001_0230, 2),
    series("ChL3Pmc{}", 0..=5, 0xc001_0231, 2),
    series("NB_PerfEvtSel{}", 0..=3, 0xc001_0240, 2),
    series("NB_PerfCtr{}", 0..=3, 0xc001_0241, 2),
    series("MCA_CTL_MASK_BANK{}", 0..=63, 0xc001_0400, 1),
    series("MSR_F16H_DR{}_ADDR_MASK", 1..=3, 0xc001_1019, 1),
];

#[cfg(test)]
mod tests {
    use super::super::{Named, all, by_name};
    use super::*;

    #[test]
    fn each_number_of_a_series_is_the_register_of_that_name() {
        assert!(SERIES.is_sorted_by_key(|series| series.first));
        for series in &SERIES {
            let pattern = series.pattern;
            assert_eq!(pattern.matches("{}").count(), 1, "{pattern}");
            assert!(series.numbers.start() < series.numbers.end(), "{pattern}");
            for number in series.numbers.clone() {
                let name = pattern.replace("{}", &number.to_string());
                let index = series.index(number).unwrap();
                let register = by_index(index).unwrap();
                assert_eq!(register.name, name, "{index}");
                assert_eq!(series.number(index), Some(number), "{name}");
                assert_eq!(register.of_series(), Some(series), "{name}");
            }
            assert_eq!(series.registers().count(), series.numbers.len());
        }
    }

    /// A register more, by a new list, makes its series longer.
    #[test]
    fn a_series_ends_where_its_names_do() {
        for series in &SERIES {
            let next = series.numbers.end() + 1;
            let steps = u32::from(series.step) * (u32::from(next - series.numbers.start()));
            let name = series.pattern.replace("{}", &next.to_string());
            if let Named::One(register) = by_name(&name) {
                assert_ne!(register.index.get(), series.first + steps, "{name}");
            }
        }
    }

    #[test]
    fn a_register_is_in_one_series_at_most() {
        for register in all() {
            let holds = |series: &&Series| series.number(register.index).is_some();
            assert!(
                SERIES.iter().filter(holds).count() <= 1,
                "{}",
                register.name
            );
        }
        assert_eq!(SERIES[0].index(9), None);
        let mtrr = by_index(MsrIndex::new(0x206)).unwrap().of_series().unwrap();
        assert_eq!(mtrr.pattern, "IA32_MTRR_PHYSBASE{}");
        assert_eq!(mtrr.number(MsrIndex::new(0x206)), Some(3));
        assert_eq!(mtrr.number(MsrIndex::new(0x207)), None);
        assert_eq!(mtrr.number(MsrIndex::new(0x1ff)), None);
        assert_eq!(mtrr.number(MsrIndex::MAX), None);
        assert_eq!(mtrr.index(10), None);
    }
}
