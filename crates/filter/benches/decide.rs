//! Benchmark of the time that a filter takes to decide an access, by itself and compared with a
//! loop over the filter's ranges.
//!
//! Each figure is the time of one decision in a long series of independent decisions. A hypervisor that
//! recomputes its bitmaps makes such a series, and so does the replay of a trace. Most figures use only the
//! verdict of each decision, so the compiler leaves out the code that finds the reason. The figures
//! `…/with-reason` use the verdict and the reason.

use std::hint::black_box;
use std::io;

use msrgate_figures::{Batch, Figures, TimeUnit, Unit};
use msrgate_filter::{
    Access, Accesses, Bitmap, DefaultAction, Filter, MsrIndex, Range, Revision, Verdict, X2APIC,
};

/// The number of accesses that one run decides.
const POINTS: u32 = 1 << 16;

type Point = (MsrIndex, Access);

/// One filter, as this crate stores it and as a list of ranges, and the accesses that the benchmark
/// decides by it.
struct Scenario {
    filter: Filter,
    linear: Linear,
    points: Vec<Point>,
}

/// The filter as the original kernel patch stores it (see `docs/seed.md`): a list of ranges.
struct Linear {
    default_action: Verdict,
    ranges: Vec<LinearRange>,
}

struct LinearRange {
    flags: u32,
    base: u32,
    nmsrs: u32,
    bitmap: Vec<u64>,
}

impl Linear {
    fn of(filter: &Filter) -> Self {
        let range = |range: &Range| LinearRange {
            flags: range.accesses().bits(),
            base: range.base().get(),
            nmsrs: range.bitmap().count(),
            bitmap: range.bitmap().words().to_vec(),
        };
        Self {
            default_action: match filter.default_action() {
                DefaultAction::Allow => Verdict::Allow,
                DefaultAction::Deny => Verdict::Deny,
            },
            ranges: filter.ranges().iter().map(range).collect(),
        }
    }

    /// Decides as the original patch does: tries one range after the other until one matches. The
    /// x2APIC registers are exempt, as on mainline.
    #[inline]
    fn decide(&self, index: MsrIndex, access: Access) -> Verdict {
        if X2APIC.contains(&index) {
            return Verdict::Allow;
        }
        let (index, flag) = (index.get(), 1 << access as u32);
        for range in &self.ranges {
            let end = range.base.wrapping_add(range.nmsrs);
            if index >= range.base && index < end && range.flags & flag != 0 {
                let offset = index - range.base;
                return match range.bitmap[(offset / 64) as usize] >> (offset % 64) & 1 {
                    0 => Verdict::Deny,
                    _ => Verdict::Allow,
                };
            }
        }
        self.default_action
    }
}

/// A Xorshift generator with a fixed seed: every run has the same accesses.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a random number below `end`. `end` must not be 0.
    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap_or_default()
    }
}

/// Creates a filter of `number` ranges with random bits. Range n has `count(n)` MSRs. The ranges
/// are far apart, and each begins in the middle of a page of the lookup table.
fn filter(
    number: u32,
    accesses: &[Accesses],
    count: impl Fn(u32) -> u32,
    random: &mut Random,
) -> Result<Filter, Box<dyn std::error::Error>> {
    let ranges = (0..number)
        .zip(accesses.iter().cycle())
        .map(|(place, &accesses)| {
            let base = MsrIndex::new(place * 0x1000_0000 + 0x1234);
            let bitmap = Bitmap::from_fn(count(place), |_| random.next() & 1 == 1)?;
            Ok(Range::new(accesses, base, bitmap))
        })
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    Ok(Filter::new(
        Revision::Mainline,
        DefaultAction::Deny,
        ranges,
    )?)
}

impl Scenario {
    fn new(filter: Filter, point: impl FnMut() -> Point) -> Self {
        Self {
            linear: Linear::of(&filter),
            points: std::iter::repeat_with(point)
                .take(POINTS as usize)
                .collect(),
            filter,
        }
    }

    fn measure(&self, figures: &mut Figures, name: &str) -> io::Result<()> {
        let ours = || self.allowed(|index, access| self.filter.decide(index, access).verdict);
        let theirs = || self.allowed(|index, access| self.linear.decide(index, access));
        assert_eq!(ours(), theirs(), "{name}: the two disagree");
        figures.compare(batch(name), ours, "linear", theirs)
    }

    /// Returns the number of the scenario's accesses that `decide` allows.
    #[inline]
    fn allowed(&self, decide: impl Fn(MsrIndex, Access) -> Verdict) -> u32 {
        let allowed = |&(index, access): &Point| decide(index, access) as u32;
        self.points.iter().map(allowed).sum()
    }
}

fn batch(name: &str) -> Batch<'_> {
    Batch {
        name,
        operations: POINTS,
    }
}

/// Returns a random MSR of the range.
fn inside(range: &Range, random: &mut Random) -> MsrIndex {
    MsrIndex::new(range.base().get() + random.below(range.bitmap().count()))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const BOTH: &[Accesses] = &[Accesses::Both];
    const VARIED: &[Accesses] = &[Accesses::Read, Accesses::Write, Accesses::Both];
    let count = |place| 0x800 + 64 * place;

    let mut figures = Figures::from_args()?;
    let mut random = Random(0x0139_408d_cbbf_7a44);

    for (name, number) in [("decide/1-range", 1), ("decide/16-ranges-last", 16)] {
        let filter = filter(number, BOTH, count, &mut random)?;
        let last = filter.ranges().last().cloned().ok_or("no range")?;
        let scenario = Scenario::new(filter, || (inside(&last, &mut random), Access::Read));
        scenario.measure(&mut figures, name)?;
    }

    let sixteen = filter(16, BOTH, count, &mut random)?;
    let anywhere = || (MsrIndex::new(random.below(u32::MAX)), Access::Read);
    Scenario::new(sixteen, anywhere).measure(&mut figures, "decide/16-ranges-miss")?;

    let varied = filter(16, VARIED, count, &mut random)?;
    let ranges = varied.ranges().to_vec();
    let mixed = Scenario::new(varied, || {
        let range = &ranges[random.below(16) as usize];
        let access = Access::ALL[random.below(2) as usize];
        (inside(range, &mut random), access)
    });
    mixed.measure(&mut figures, "decide/16-ranges-mixed")?;
    figures.time(
        batch("decide/16-ranges-mixed/with-reason"),
        TimeUnit::Nanoseconds,
        || {
            for &(index, access) in &mixed.points {
                black_box(mixed.filter.decide(index, access));
            }
        },
    )?;

    let full = filter(16, BOTH, |_| Bitmap::MAX_COUNT, &mut random)?;
    let build = || {
        Filter::new(
            full.revision(),
            full.default_action(),
            full.ranges().to_vec(),
        )
    };
    let once = Batch {
        name: "decide/build-16-full",
        operations: 1,
    };
    figures.time(once, TimeUnit::Microseconds, build)?;
    let kibibytes = u32::try_from(full.footprint()).map(f64::from)? / 1024.0;
    figures.value("decide/footprint-16-full", kibibytes, Unit::Kibibytes)?;
    Ok(())
}
