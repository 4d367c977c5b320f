//! Measures the cost of `msrgate exec`. A VMM repeats one operation many times, alternately without msrgate
//! and behind a policy.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use msrgate_figures::{Figures, TimeUnit, Unit};

/// The number of pairs of runs.
const PAIRS: usize = 21;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Bench {
    folder: tempfile::TempDir,
    vmm: PathBuf,
    library: PathBuf,
}

/// The output of a run of `loop.c`.
struct Ran {
    nanoseconds: f64,
    kibibytes: f64,
}

impl Bench {
    fn new() -> Result<Self> {
        let command = Path::new(env!("CARGO_BIN_EXE_msrgate"));
        let target = command.parent().ok_or("no folder")?;
        let build = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "-p", "msrgate-preload"])
            .arg("--target-dir")
            .arg(target.parent().ok_or("no folder")?)
            .status()?;
        let folder = tempfile::tempdir()?;
        let vmm = folder.path().join("loop");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vmms/loop.c");
        let compiled = Command::new("cc")
            .args(["-w", "-O1", "-o"])
            .arg(&vmm)
            .arg(source)
            .status()?;
        let policy = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 5 }, write = 'allow' }\n";
        std::fs::write(folder.path().join("answers.toml"), policy)?;
        if !build.success() || !compiled.success() {
            return Err("the library or the VMM is not built".into());
        }
        Ok(Self {
            folder,
            vmm,
            library: target.join("libmsrgate_preload.so"),
        })
    }

    /// Returns the command that runs `program`: through `msrgate exec` with `policy` if a policy is given,
    /// else alone.
    fn command(&self, policy: Option<&str>, program: &Path) -> Command {
        let mut command = match policy {
            None => Command::new(program),
            Some(policy) => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
                command.args(["exec", "--quiet", policy, "--"]).arg(program);
                command.env("MSRGATE_PRELOAD", &self.library);
                command
            }
        };
        command
            .current_dir(self.folder.path())
            .stderr(Stdio::inherit());
        command
    }

    fn run(&self, policy: Option<&str>, arguments: [&str; 2]) -> Result<Ran> {
        let output = self.command(policy, &self.vmm).args(arguments).output()?;
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(nanoseconds), Some(kibibytes)) => Ok(Ran {
                nanoseconds: nanoseconds?,
                kibibytes: kibibytes?,
            }),
            _ => Err(format!("the VMM printed {text:?}").into()),
        }
    }

    /// Runs the VMM in pairs: first without msrgate and with the arguments `alone`, then behind `policy` and
    /// with the arguments `guarded`. The function `of` computes a number from each pair of runs. Returns the
    /// median of these numbers.
    fn pairs(
        &self,
        alone: [&str; 2],
        policy: &str,
        guarded: [&str; 2],
        of: impl Fn(&Ran, &Ran) -> f64,
    ) -> Result<f64> {
        let mut values = Vec::new();
        for _ in 0..PAIRS {
            let alone = self.run(None, alone)?;
            values.push(of(&alone, &self.run(Some(policy), guarded)?));
        }
        Ok(median(values))
    }

    /// Returns the time in milliseconds of a VMM from its start to its end, behind `policy` if a policy is given. The VMM
    /// makes a VM with a vCPU, which runs to its first exit: so the library has put the policy into the VM, and has
    /// bound the vCPU.
    fn start(&self, policy: Option<&str>) -> Result<f64> {
        let mut command = self.command(policy, &self.vmm);
        command.args(["io", "1"]).stdout(Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        let taken = begun.elapsed().as_secs_f64() * 1000.0;
        status
            .success()
            .then_some(taken)
            .ok_or_else(|| status.to_string().into())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut figures = Figures::from_args()?;
    let wanted = [
        "exec/run",
        "exec/read",
        "exec/ioctl",
        "exec/start",
        "exec/memory",
    ];
    if !wanted.iter().any(|name| figures.wants(name)) {
        return Ok(());
    }
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm");
        return Ok(());
    }
    let bench = Bench::new()?;
    let ratio = |alone: &Ran, guarded: &Ran| guarded.nanoseconds / alone.nanoseconds;
    if figures.wants("exec/run") {
        let io = ["io", "100000"];
        let value = bench.pairs(io, "allow-all", io, ratio)?;
        figures.value("exec/run/of-plain", value, Unit::Times)?;
    }
    if figures.wants("exec/read") {
        let value = bench.pairs(
            ["deflected", "50000"],
            "answers.toml",
            ["read", "50000"],
            ratio,
        )?;
        figures.value("exec/read/of-inline", value, Unit::Times)?;
    }
    if figures.wants("exec/ioctl") {
        let ioctl = ["ioctl", "1000000"];
        let more = |alone: &Ran, guarded: &Ran| guarded.nanoseconds - alone.nanoseconds;
        let value = bench.pairs(ioctl, "allow-all", ioctl, more)?;
        figures.value("exec/ioctl/more", value, Unit::Time(TimeUnit::Nanoseconds))?;
    }
    if figures.wants("exec/memory") {
        let io = ["io", "1000"];
        let more = |alone: &Ran, guarded: &Ran| (guarded.kibibytes - alone.kibibytes) / 1024.0;
        let value = bench.pairs(io, "allow-all", io, more)?;
        figures.value("exec/memory/more", value, Unit::Mebibytes)?;
    }
    if figures.wants("exec/start") {
        let more = || Ok(-bench.start(None)? + bench.start(Some("linux-guest"))?);
        let values: Result<Vec<f64>> = (0..PAIRS).map(|_| more()).collect();
        figures.value(
            "exec/start/more",
            median(values?),
            Unit::Time(TimeUnit::Milliseconds),
        )?;
    }
    Ok(())
}
