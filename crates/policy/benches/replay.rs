//! Measures the speed of reading a trace, and of deciding its accesses.
//!
//! Both figures are for one core, in millions of accesses per second. `replay/text` reads lines
//! from memory, parses, decides and counts them, as `msrgate replay` does. `replay/decide` decides
//! accesses that are parsed already.

use std::fmt::Write as _;
use std::io::BufReader;

use msrgate_figures::{Batch, Figures, RateUnit};
use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::trace::{Line, Lines, Outcome, Replay, Traced};
use msrgate_policy::{Compiled, NoIncludes, Source, compile, parse, registers};

/// The number of accesses in the trace, one a line.
const ACCESSES: u32 = 1 << 16;

/// The size in bytes of the buffer through which the command `msrgate replay` reads a trace.
const BUFFER: usize = 256 << 10;

/// A generator of random numbers (xorshift). Its seed is fixed, so the trace is the same in every
/// run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Returns reads and writes of registers that have names, each as likely as any other. This is
/// worse for caches and branch prediction than the accesses of a real guest.
fn accesses() -> Vec<Traced> {
    let mut random = Random(0x0139_408d_cbbf_7a44);
    let registers = registers::all();
    let one = |_| {
        let place = usize::try_from(random.next()).unwrap_or_default() % registers.len();
        Traced {
            index: registers[place].index,
            access: Access::ALL[usize::from(random.next() & 1 == 1)],
            value: Some(random.next()),
            outcome: Outcome::Done,
            told: None,
        }
    };
    (0..ACCESSES).map(one).collect()
}

/// Returns the accesses as text, in the form of tracefs.
fn text(accesses: &[Traced]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for (microsecond, access) in accesses.iter().enumerate() {
        writeln!(
            text,
            "       CPU 0/KVM-16856   [007] .....   380.{microsecond:06}: kvm_msr: {access}"
        )?;
    }
    Ok(text)
}

fn linux_boot() -> Result<Compiled, Box<dyn std::error::Error>> {
    let text = include_str!("../../../policies/linux-boot.toml");
    Ok(compile(parse(
        &Source::new("linux-boot", text),
        &mut NoIncludes,
    )?)?)
}

/// Returns the number of accesses that the policy refuses.
fn replay(compiled: &Compiled, text: &str) -> std::io::Result<u64> {
    let mut replay = Replay::new(compiled.policy(), compiled.on(None));
    let mut lines = Lines::new(BufReader::with_capacity(BUFFER, text.as_bytes()));
    while let Some((number, line)) = lines.next_line()? {
        assert!(matches!(line, Line::Access(_)), "line {number} is none");
        replay.add(number, line);
    }
    Ok(replay.totals().refused)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut figures = Figures::from_args()?;
    let compiled = linux_boot()?;
    let accesses = accesses();
    let text = text(&accesses)?;

    let points: Vec<(MsrIndex, Access)> = accesses
        .iter()
        .map(|traced| (traced.index, traced.access))
        .collect();
    let filter = compiled.on(None).filter();
    let allowed = || -> u64 {
        let one =
            |&(index, access): &(MsrIndex, Access)| filter.decide(index, access).verdict as u64;
        points.iter().map(one).sum()
    };
    let refused = replay(&compiled, &text)?;
    assert_eq!(refused + allowed(), u64::from(ACCESSES), "the two disagree");

    let batch = |name| Batch {
        name,
        operations: ACCESSES,
    };
    figures.rate(batch("replay/text"), RateUnit::MillionsPerSecond, || {
        replay(&compiled, &text)
    })?;
    figures.rate(batch("replay/decide"), RateUnit::MillionsPerSecond, allowed)?;
    Ok(())
}
