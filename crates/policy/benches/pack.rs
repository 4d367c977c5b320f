//! Measures the time and the memory that compiling a policy takes.
//!
//! The figures `pack/…` are for [`compile`]: it makes the policy's rules, packs them into the
//! fewest filter ranges, and compares the filter with the rules over all accesses. The figures
//! `policy/…` include the reading of the policy's text, too. The time for 60,000 entries, each of
//! which overrides an entry of an include, is also given as a ratio to the time for 120,000 entries
//! of one text. Memory is the peak of a process that does nothing else.

use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use msrgate_figures::{Batch, Figures, TimeUnit, Unit};
use msrgate_filter::{MAX_RANGES, X2APIC};
use msrgate_policy::{
    CompileError, IncludeError, Includes, NoIncludes, PackError, ResolvedPolicy, Source, compile,
    parse,
};

/// The number of policies that are measured, each with a random access to every register that has a
/// name.
const DRAWS: u32 = 1_000;

/// The environment variable with the name of the text that a child process reads, so that its
/// memory can be measured.
const CHILD: &str = "MSRGATE_BENCH_PEAK_OF";

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n[msrs]\n";

const WORDS: [&str; 4] = ["none", "r", "w", "rw"];

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A generator of random numbers (xorshift). Its seed is fixed, so the policies are the same in
/// every run.
struct Random(u64);

impl Random {
    /// Returns a number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn word(&mut self) -> &'static str {
        WORDS[usize::try_from(self.below(4)).unwrap_or_default()]
    }
}

/// Returns a policy with a random access to each register that has a name.
fn all_known(random: &mut Random) -> String {
    let mut text = HEAD.to_owned();
    for register in msrgate_policy::registers::all() {
        if !X2APIC.contains(&register.index) {
            let _ = writeln!(text, "{} = \"{}\"", register.index, random.word());
        }
    }
    text
}

/// Returns a policy with 100,000 entries that fit a filter. The entries lie in eight windows of
/// 0x3000 MSRs. Each block of four MSRs in a window has an entry, and so do most single MSRs of the
/// block.
fn nested(random: &mut Random) -> String {
    let mut text = HEAD.to_owned();
    let mut left = 100_000;
    for window in 0..8_u64 {
        let start = 0x10_0000 * (window + 1);
        for block in (start..start + 0x3000).step_by(4) {
            let _ = writeln!(
                text,
                "\"{block:#x}..={:#x}\" = \"{}\"",
                block + 3,
                random.word()
            );
            left -= 1;
            for msr in block..block + 4 {
                if left > 0 && random.below(10) < 8 {
                    let _ = writeln!(text, "{msr:#x} = \"{}\"", random.word());
                    left -= 1;
                }
            }
        }
    }
    text
}

/// Returns a policy with 100,000 entries that do not fit a filter: one MSR each, anywhere.
fn anywhere(random: &mut Random) -> String {
    let mut msrs: Vec<u64> = (0..100_000).map(|_| random.below(0xffff_ffff)).collect();
    msrs.retain(|&msr| !(0x800..0x900).contains(&msr));
    msrs.sort_unstable();
    msrs.dedup();
    let lines = msrs
        .iter()
        .map(|msr| format!("{msr:#x} = \"{}\"\n", random.word()));
    HEAD.to_owned() + &lines.collect::<String>()
}

/// Returns a policy with 500 entries as people write them: registers by name.
fn by_name(random: &mut Random) -> String {
    let registers = msrgate_policy::registers::all().iter();
    let registers = registers.filter(|register| !X2APIC.contains(&register.index));
    let lines = registers.step_by(4).take(500).map(|register| {
        let name = register.name;
        format!("{name:<32} = \"{}\"\n", random.word())
    });
    HEAD.to_owned() + &lines.collect::<String>()
}

/// Returns the lines of entries, one for each of these MSRs; `says` is the text after each `=`.
fn entries(says: &str, msrs: Range<u32>) -> String {
    let lines = msrs.map(|msr| format!("{msr:#x} = {says}\n"));
    lines.collect()
}

/// An opener of includes that returns the same text for every path.
struct Base(String);

impl Includes for Base {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        Ok(Source::new(path, &self.0))
    }
}

/// Measures 60,000 entries, each of which overrides an entry of an include, and 120,000 entries of
/// one text.
fn overrides(figures: &mut Figures) -> Outcome<()> {
    const FIRST: u32 = 0x1_0000;
    const COUNT: u32 = 60_000;
    let (msrs, further) = (FIRST..FIRST + COUNT, FIRST + COUNT..FIRST + 2 * COUNT);
    let overriding = "{ read = \"allow\", write = \"allow\", override = true }";
    let plain = "{ read = \"allow\", write = \"allow\", log = \"first\" }";
    let head = HEAD.replace("[msrs]", "include = [\"base.toml\"]\n[msrs]");
    let own = Source::new("bench.toml", &(head + &entries(overriding, msrs.clone())));
    let mut base = Base(format!(
        "policy = 1\n[msrs]\n{}",
        entries("\"r\"", msrs.clone())
    ));
    let one = format!(
        "{HEAD}{}{}",
        entries(plain, msrs),
        entries("\"r\"", further)
    );
    let batch = Batch {
        name: "policy/60k-overrides",
        operations: 1,
    };
    figures.cost(
        batch,
        || ranges(parse(&own, &mut base)?),
        "120k-entries",
        || policy(&one).and_then(ranges),
    )?;
    Ok(())
}

fn policy(text: &str) -> Outcome<ResolvedPolicy> {
    Ok(parse(&Source::new("bench.toml", text), &mut NoIncludes)?)
}

/// Returns the number of filter ranges that the policy needs, even if they are too many for a
/// filter.
fn ranges(policy: ResolvedPolicy) -> Outcome<usize> {
    match compile(policy).map_err(|not| not.error) {
        Ok(compiled) => Ok(compiled.variants()[0].filter().ranges().len()),
        Err(CompileError::Pack(PackError::TooManyRanges(windows))) => Ok(windows.len()),
        Err(error) => Err(error.into()),
    }
}

/// Measures the time that packing takes for policies with random accesses to all registers that
/// have names: the mean over all policies, and the time for the slowest one.
fn all_known_msrs(figures: &mut Figures, random: &mut Random) -> Outcome<()> {
    let mut total = Duration::ZERO;
    let mut slowest = None;
    for _ in 0..DRAWS {
        let drawn = policy(&all_known(random))?;
        let kept = drawn.clone();
        let start = Instant::now();
        let ranges = ranges(drawn)?;
        let elapsed = start.elapsed();
        assert!(ranges <= MAX_RANGES, "{ranges} ranges");
        total += elapsed;
        if slowest
            .as_ref()
            .is_none_or(|(longest, _)| *longest < elapsed)
        {
            slowest = Some((elapsed, kept));
        }
    }
    let mean = total.as_secs_f64() * 1e3 / f64::from(DRAWS);
    let unit = Unit::Time(TimeUnit::Milliseconds);
    figures.value("pack/all-known-msrs", mean, unit)?;
    let (_, slowest) = slowest.ok_or("no draw")?;
    time(figures, "pack/all-known-msrs/slowest", || {
        ranges(slowest.clone())
    })
}

fn time<R>(figures: &mut Figures, name: &str, routine: impl FnMut() -> R) -> Outcome<()> {
    let once = Batch {
        name,
        operations: 1,
    };
    Ok(figures.time(once, TimeUnit::Milliseconds, routine)?)
}

/// Returns the peak memory, in MiB, of a child process that reads and compiles the text named
/// `which`.
fn peak(which: &str) -> Outcome<f64> {
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, which)
        .output()?;
    let kibibytes: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(kibibytes / 1024.0)
}

/// Reads and compiles the text named `which`, and prints the peak memory of this process in KiB.
fn child(which: &str) -> Outcome<()> {
    ranges(policy(&text(which, &mut seeded()))?)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    println!("{}", peak.ok_or("no VmHWM")?);
    Ok(())
}

fn seeded() -> Random {
    Random(0x0139_408d_cbbf_7a44)
}

fn text(which: &str, random: &mut Random) -> String {
    match which {
        "pack/100k-random-entries" => nested(random),
        "pack/100k-random-entries/refused" => anywhere(random),
        _ => by_name(random),
    }
}

fn main() -> Outcome<()> {
    if let Ok(which) = std::env::var(CHILD) {
        return child(&which);
    }
    let mut figures = Figures::from_args()?;
    all_known_msrs(&mut figures, &mut seeded())?;

    for name in [
        "pack/100k-random-entries",
        "pack/100k-random-entries/refused",
    ] {
        let policy = policy(&text(name, &mut seeded()))?;
        assert!(policy.policy().entries().len() > 99_000, "{name}");
        assert_eq!(
            ranges(policy.clone())? <= MAX_RANGES,
            !name.ends_with("refused")
        );
        time(&mut figures, name, || ranges(policy.clone()))?;
        figures.value(&format!("{name}/peak"), peak(name)?, Unit::Mebibytes)?;
    }

    overrides(&mut figures)?;

    let name = "policy/500-entries";
    let text = text(name, &mut seeded());
    assert_eq!(policy(&text)?.policy().entries().len(), 500);
    time(&mut figures, name, || policy(&text).and_then(ranges))?;
    figures.value("policy/500-entries/peak", peak(name)?, Unit::Mebibytes)?;
    Ok(())
}
