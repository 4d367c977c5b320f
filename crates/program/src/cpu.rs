//! The processors to which a `[[when]]` section applies.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use crate::shown::one_line;

/// A processor as CPUID leaves 0 and 1 describe it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cpu {
    /// The processor's vendor: the twelve characters of CPUID leaf 0, such as `GenuineIntel`.
    pub vendor: Box<str>,
    /// The processor's family. If the base family is 15, this is the sum of base and extended family
    /// (SDM volume 2, CPUID; APM volume 3, appendix E).
    pub family: u32,
    /// The processor's model. From family 6 on, the upper four bits of this number are the extended
    /// model.
    pub model: u32,
    /// The processor's stepping.
    pub stepping: u32,
}

/// Writes the processor as `GenuineIntel:6:0x6a:6`.
impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{:#x}:{}",
            one_line(&self.vendor),
            self.family,
            self.model,
            self.stepping
        )
    }
}

impl Cpu {
    /// Creates the processor that CPUID describes. `vendor` is EBX, EDX and ECX of leaf 0, in this
    /// order; `signature` is EAX of leaf 1.
    #[must_use]
    pub fn from_cpuid(vendor: [u32; 3], signature: u32) -> Self {
        let bytes: Vec<u8> = vendor
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .collect();
        let field = |low: u32, width: u32| signature >> low & ((1 << width) - 1);
        let (base, extended) = (field(8, 4), field(20, 8));
        let family = if base == 0xf { base + extended } else { base };
        let model = field(4, 4)
            | if base >= CpuPart::FIRST_WITH_LONG_MODEL {
                field(16, 4) << 4
            } else {
                0
            };
        Self {
            vendor: String::from_utf8_lossy(&bytes).into(),
            family,
            model,
            stepping: field(0, 4),
        }
    }
}

/// A set of processors: those that have one of its vendors, one of its families, one of its models
/// and one of its steppings. A part that is `None` matches every processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet {
    /// The vendors of the processors in the set; `None` stands for every vendor.
    pub vendor: Option<Vec<Box<str>>>,
    /// The families of the processors in the set; `None` stands for every family.
    pub family: Option<Vec<RangeInclusive<u32>>>,
    /// The models of the processors in the set; `None` stands for every model.
    pub model: Option<Vec<RangeInclusive<u32>>>,
    /// The steppings of the processors in the set; `None` stands for every stepping.
    pub stepping: Option<Vec<RangeInclusive<u32>>>,
}

/// One of the numbers in CPUID leaf 1: the family, the model or the stepping.
#[derive(Clone, Copy, Debug)]
pub struct CpuPart {
    /// The key under which a policy gives this number.
    pub key: &'static str,
    /// The largest value that CPUID can express for this number.
    pub most: u32,
    of: fn(&CpuSet) -> &Numbers,
}

impl CpuPart {
    /// The family: four bits, plus the eight bits of the extended family.
    pub const FAMILY: Self = Self {
        key: "family",
        most: 0xf + 0xff,
        of: |set| &set.family,
    };

    /// The first family whose model has the four bits of the extended model in front. According to
    /// the manuals, only the families 6 and 15 have such models. Linux adds the extended model for
    /// all families from 6 on, and Zhaoxin's processors of family 7 have such models.
    pub const FIRST_WITH_LONG_MODEL: u32 = 6;

    /// The largest model of the families below [`Self::FIRST_WITH_LONG_MODEL`].
    pub const LAST_SHORT_MODEL: u32 = 0xf;

    /// The model: four bits, with four bits of the extended model in front.
    pub const MODEL: Self = Self {
        key: "model",
        most: 0xff,
        of: |set| &set.model,
    };

    /// The stepping: four bits.
    pub const STEPPING: Self = Self {
        key: "stepping",
        most: 0xf,
        of: |set| &set.stepping,
    };
}

impl Cpu {
    /// Creates a placeholder that stands for every processor: the example processor of a program
    /// without `[[when]]` sections.
    #[must_use]
    pub fn any() -> Self {
        Self {
            vendor: "any".into(),
            family: 0,
            model: 0,
            stepping: 0,
        }
    }

    /// The vendor of an example processor that stands for all vendors that the policy does not
    /// name.
    pub const OTHER_VENDOR: &str = "any other";
}

type Numbers = Option<Vec<RangeInclusive<u32>>>;

fn has(numbers: &Numbers, number: u32) -> bool {
    numbers
        .as_ref()
        .is_none_or(|ranges| ranges.iter().any(|range| range.contains(&number)))
}

impl CpuSet {
    /// Creates the set that contains no processor.
    #[must_use]
    pub fn none() -> Self {
        Self {
            vendor: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// Returns true if the set contains `cpu`.
    #[must_use]
    pub fn contains(&self, cpu: &Cpu) -> bool {
        self.has_vendor(&cpu.vendor)
            && has(&self.family, cpu.family)
            && has(&self.model, cpu.model)
            && has(&self.stepping, cpu.stepping)
    }

    fn has_vendor(&self, name: &str) -> bool {
        self.vendor
            .as_ref()
            .is_none_or(|vendors| vendors.iter().any(|vendor| **vendor == *name))
    }
}

/// Returns, for each combination of `sets`, one processor that is in the sets of the combination
/// and in no other set. Combinations without such a processor are left out. A combination is a list
/// with a value for each set: true if the set contains the processor.
///
/// If some processor is in no set, that combination comes first. Combinations of more sets come
/// later.
#[must_use]
pub fn distinguished(sets: &[CpuSet]) -> Vec<(Vec<bool>, Cpu)> {
    let all: Vec<usize> = (0..sets.len()).collect();
    let mut ways = Vec::new();
    let mut seen = BTreeSet::new();
    for (vendor, some) in vendors(sets) {
        for (family, some) in cells(sets, &some, CpuPart::FAMILY) {
            for (model, some) in cells(sets, &some, CpuPart::MODEL) {
                for (stepping, some) in cells(sets, &some, CpuPart::STEPPING) {
                    if seen.insert(some.clone()) {
                        let cpu = Cpu {
                            vendor: vendor.into(),
                            family,
                            model,
                            stepping,
                        };
                        let holds = all.iter().map(|set| some.contains(set)).collect();
                        ways.push((holds, cpu));
                    }
                }
            }
        }
    }
    ways.sort_by_key(|(holds, _): &(Vec<bool>, Cpu)| {
        (
            holds.iter().filter(|&&one| one).count(),
            holds.iter().map(|one| !one).collect::<Vec<_>>(),
        )
    });
    ways
}

/// Returns an upper bound for the number of processors that [`distinguished`] tries: the product of
/// the number of vendors and of the numbers of family, model and stepping intervals between the
/// bounds in the sets.
#[must_use]
pub fn told_apart(sets: &[CpuSet]) -> usize {
    let stretches = |part: CpuPart| {
        let ranges = sets.iter().flat_map(|set| (part.of)(set).iter().flatten());
        let ends = ranges.flat_map(|range| [Some(*range.start()), range.end().checked_add(1)]);
        let points = ends.flatten().filter(|point| *point <= part.most);
        points.chain([0]).collect::<BTreeSet<u32>>().len()
    };
    let vendors = vendors(sets).len();
    [CpuPart::FAMILY, CpuPart::MODEL, CpuPart::STEPPING]
        .into_iter()
        .map(stretches)
        .fold(vendors, usize::saturating_mul)
}

/// Returns the vendors that the sets name, and one vendor that stands for all others, each with the
/// positions of the sets that contain the vendor.
fn vendors(sets: &[CpuSet]) -> BTreeMap<&str, Vec<usize>> {
    let mut vendors = BTreeMap::from([(Cpu::OTHER_VENDOR, Vec::new())]);
    for vendor in sets.iter().flat_map(|set| set.vendor.iter().flatten()) {
        vendors.entry(&**vendor).or_default();
    }
    for (number, set) in sets.iter().enumerate() {
        let Some(named) = &set.vendor else {
            for sets in vendors.values_mut() {
                sets.push(number);
            }
            continue;
        };
        let named: BTreeSet<&str> = named.iter().map(|vendor| &**vendor).collect();
        for vendor in named {
            vendors.entry(vendor).or_default().push(number);
        }
    }
    vendors
}

/// Returns one value of this part of CPUID for each combination of sets that contain the value,
/// with the positions of these sets. Only the sets at the positions `some` are looked at, and only
/// values that CPUID can express.
fn cells(sets: &[CpuSet], some: &[usize], part: CpuPart) -> Vec<(u32, Vec<usize>)> {
    // For each set, the number of its ranges that contain the current point; 1 if the set contains
    // every number.
    let mut within: Vec<i32> = Vec::new();
    let mut steps = BTreeMap::from([(0, Vec::new())]);
    for (place, &set) in some.iter().enumerate() {
        let ranges = (part.of)(&sets[set]);
        within.push(i32::from(ranges.is_none()));
        for range in ranges.iter().flatten() {
            steps.entry(*range.start()).or_default().push((place, 1));
            if let Some(after) = range.end().checked_add(1) {
                steps.entry(after).or_default().push((place, -1));
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut cells = Vec::new();
    for (point, steps) in steps
        .into_iter()
        .take_while(|(point, _)| *point <= part.most)
    {
        for (place, step) in steps {
            within[place] += step;
        }
        let holding = some.iter().zip(&within).filter(|(_, within)| **within > 0);
        let holding: Vec<usize> = holding.map(|(set, _)| *set).collect();
        if seen.insert(holding.clone()) {
            cells.push((point, holding));
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(vendor: &str, models: &[RangeInclusive<u32>]) -> CpuSet {
        CpuSet {
            vendor: Some(vec![vendor.into()]),
            model: Some(models.to_vec()),
            ..CpuSet::default()
        }
    }

    #[test]
    fn cpu_from_cpuid_adds_extended_family_and_model() {
        let intel = Cpu::from_cpuid([0x756e_6547, 0x4965_6e69, 0x6c65_746e], 0x0006_06a6);
        assert_eq!(intel.to_string(), "GenuineIntel:6:0x6a:6");
        let amd = Cpu::from_cpuid([0x6874_7541, 0x6974_6e65, 0x444d_4163], 0x00a0_0f11);
        assert_eq!(amd.to_string(), "AuthenticAMD:25:0x1:1");
        // A KX-6000 of Zhaoxin, and a Pentium, for which the bits of the extended model do not
        // count.
        let zhaoxin = Cpu::from_cpuid([0x6853_2020, 0x6867_6e61, 0x2020_6961], 0x0003_07b0);
        assert_eq!(zhaoxin.to_string(), "  Shanghai  :7:0x3b:0");
        let pentium = Cpu::from_cpuid([0x756e_6547, 0x4965_6e69, 0x6c65_746e], 0x0006_05a6);
        assert_eq!(pentium.to_string(), "GenuineIntel:5:0xa:6");
    }

    #[test]
    fn distinguished_cpus_omit_combinations_of_sets_that_no_processor_has() {
        let sets = [
            set("GenuineIntel", &[0x6a..=0x6a, 0x6c..=0x6c]),
            set("GenuineIntel", &[0x6c..=0x8f]),
            set("AuthenticAMD", &[0..=0xff]),
        ];
        let ways = distinguished(&sets);
        let holds: Vec<_> = ways.iter().map(|(holds, _)| holds.clone()).collect();
        assert_eq!(
            holds,
            [
                vec![false, false, false],
                vec![true, false, false],
                vec![false, true, false],
                vec![false, false, true],
                vec![true, true, false],
            ]
        );
        for (holds, cpu) in &ways {
            let real: Vec<_> = sets.iter().map(|set| set.contains(cpu)).collect();
            assert_eq!(*holds, real, "{cpu}");
        }
    }

    mod any_sets {
        use proptest::prelude::*;

        use super::*;

        const VENDORS: [&str; 3] = ["A", "B", Cpu::OTHER_VENDOR];

        fn numbers() -> impl Strategy<Value = Numbers> {
            let range = (0..5u32, 0..3u32).prop_map(|(first, more)| first..=first + more);
            prop::option::of(prop::collection::vec(range, 0..3))
        }

        fn any_set() -> impl Strategy<Value = CpuSet> {
            let names = prop::sample::subsequence(vec!["A".into(), "B".into()], 0..=2);
            let parts = (prop::option::of(names), numbers(), numbers(), numbers());
            parts.prop_map(|(vendor, family, model, stepping)| CpuSet {
                vendor,
                family,
                model,
                stepping,
            })
        }

        proptest! {
            /// `distinguished` returns the same combinations of sets as a loop over all processors
            /// finds.
            #[test]
            fn distinguished_cpus_have_same_combinations_of_sets_as_loop_over_all_processors(
                sets in prop::collection::vec(any_set(), 0..4),
            ) {
                let mut all = BTreeSet::new();
                for (vendor, parts) in VENDORS.into_iter().flat_map(|one| (0..512).map(move |n| (one, n))) {
                    let (family, model, stepping) = (parts >> 6, parts >> 3 & 7, parts & 7);
                    let vendor = vendor.into();
                    let cpu = Cpu { vendor, family, model, stepping };
                    all.insert(sets.iter().map(|set| set.contains(&cpu)).collect::<Vec<_>>());
                }
                let ways = distinguished(&sets);
                prop_assert_eq!(ways.len(), all.len());
                for (holds, cpu) in ways {
                    let real: Vec<_> = sets.iter().map(|set| set.contains(&cpu)).collect();
                    prop_assert_eq!(&holds, &real);
                    prop_assert!(all.contains(&holds));
                }
            }
        }
    }

    #[test]
    fn distinguished_cpus_have_no_family_model_or_stepping_above_the_largest_cpuid_value() {
        let all = |part: fn(&mut CpuSet) -> &mut Numbers, most| {
            let mut set = CpuSet::default();
            *part(&mut set) = Some(vec![0..=most]);
            distinguished(&[set]).len()
        };
        assert_eq!(all(|set| &mut set.family, 0x10e), 1);
        assert_eq!(all(|set| &mut set.model, 0xff), 1);
        assert_eq!(all(|set| &mut set.stepping, 0xf), 1);
        assert_eq!(all(|set| &mut set.stepping, 0xe), 2);
    }

    #[test]
    fn distinguished_without_cpu_sets_returns_one_combination() {
        assert_eq!(distinguished(&[]).len(), 1);
        assert_eq!(distinguished(&[CpuSet::default()]).len(), 1);
    }
}
