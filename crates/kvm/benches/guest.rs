//! The cost of a guest's MSR accesses, and of `KVM_X86_SET_MSR_FILTER`, on this host's KVM.
//!
//! The figures of accesses are measured over whole scripts. They include the time in which the host fills
//! and reads the mailbox, the memory through which host and guest exchange a script. Without KVM the bench
//! prints to stderr that it is skipped; with `MSRGATE_REQUIRE=kvm` it fails.

use msrgate_figures::{Batch, Figures, RateUnit, TimeUnit};
use msrgate_filter::{Access, Bitmap, MAX_RANGES, MsrIndex};
use msrgate_kvm::measure::{Backend, GuestOutcome, KvmBackend, Observed, Step, StepReply};
use msrgate_kvm::sys::{RawBitmap, RawFilter, RawRange};
use msrgate_kvm::{HostCaps, RawReasons};

/// A register that KVM handles on every host, and that nothing else uses here.
const STAR: MsrIndex = MsrIndex::new(0xc000_0081);

/// The number of accesses in a script: about as many as the mailbox has slots.
const ACCESSES: u32 = 4_000;

/// The value with which user space answers a read that exits.
const ANSWER: u64 = 0x5ca1_ab1e;

type Failure = Box<dyn std::error::Error>;

/// A VM in which all reads of STAR have the same result.
struct Reads {
    backend: KvmBackend,
    script: Vec<Step>,
}

impl Reads {
    /// Creates a VM and checks one run of the script.
    ///
    /// # Errors
    /// Returns an error if the VM cannot be created, the filter is refused, or a read does not return
    /// `value`.
    fn new(host: &HostCaps, filter: &RawFilter, value: u64) -> Result<Self, Failure> {
        let mut backend = KvmBackend::new(host)?;
        backend.set_reasons(RawReasons::new(7))?;
        backend.set_filter(filter)?;
        let step = Step {
            index: STAR,
            access: Access::Read,
            value: 0,
            reply: StepReply::Value(ANSWER),
        };
        let mut reads = Self {
            backend,
            script: vec![step; ACCESSES as usize],
        };
        let differs = |seen: &&Observed| seen.outcome != GuestOutcome::Value(value);
        match reads.run()?.iter().find(differs) {
            Some(seen) => Err(format!("a read of {STAR} is not {value:#x}: {seen:?}").into()),
            None => Ok(reads),
        }
    }

    fn run(&mut self) -> Result<Vec<Observed>, Failure> {
        Ok(self.backend.run(&self.script)?)
    }
}

/// Returns a filter with default deny and ranges of full size. The last range contains STAR, and each word
/// of every bitmap is `word`.
fn full(ranges: usize, word: u64) -> RawFilter {
    let mut filter = RawFilter {
        flags: 1,
        ..RawFilter::default()
    };
    let words = Bitmap::MAX_COUNT as usize / 64;
    let last = 0xc000_0000;
    let bases = (0..last).step_by(0x10_0000).take(ranges - 1).chain([last]);
    for (place, base) in filter.ranges.iter_mut().zip(bases) {
        *place = RawRange {
            flags: 3,
            nmsrs: Bitmap::MAX_COUNT,
            base,
            bitmap: RawBitmap::Bytes(word.to_le_bytes().repeat(words)),
        };
    }
    filter
}

fn reads(name: &str) -> Batch<'_> {
    Batch {
        name,
        operations: ACCESSES,
    }
}

fn main() -> Result<(), Failure> {
    let host = match HostCaps::probe() {
        Ok(host) => host,
        Err(error) => {
            let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
            if required.split(',').any(|word| word == "kvm") {
                return Err(format!("{error}. {}", error.advice()).into());
            }
            eprintln!("SKIPPED: {error}. {}", error.advice());
            return Ok(());
        }
    };
    let mut figures = Figures::from_args()?;

    let mut allowed = Reads::new(&host, &full(1, u64::MAX), 0)?;
    figures.rate(reads("guest/accesses"), RateUnit::PerSecond, || {
        allowed.run()
    })?;
    let mut refused = Reads::new(&host, &full(1, 0), ANSWER)?;
    figures.rate(reads("guest/deflected"), RateUnit::PerSecond, || {
        refused.run()
    })?;

    let mut sixteen = Reads::new(&host, &full(MAX_RANGES, u64::MAX), 0)?;
    let mut none = Reads::new(&host, &RawFilter::default(), 0)?;
    let batch = reads("filter-16");
    figures.compare(batch, || sixteen.run(), "none", || none.run())?;

    for (name, filter) in [
        ("set-filter/1-range", full(1, u64::MAX)),
        ("set-filter/16-full", full(MAX_RANGES, u64::MAX)),
    ] {
        let batch = Batch {
            name,
            operations: 1,
        };
        let mut answer = Ok(());
        let set = || answer = answer.and(allowed.backend.set_filter(&filter));
        figures.time(batch, TimeUnit::Milliseconds, set)?;
        answer?;
    }
    Ok(())
}
