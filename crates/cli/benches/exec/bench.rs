//! A VMM that is run alone, and behind msrgate.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The number of pairs of runs.
pub(crate) const PAIRS: usize = 21;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The policy that `learn` writes.
const LEARNT: &str = "learnt.toml";

/// The way in which a VMM is started.
#[derive(Clone, Copy)]
pub(crate) enum Way<'p> {
    /// Without msrgate.
    Plain,
    /// By `msrgate exec` with this policy.
    Exec(&'p str),
    /// By `msrgate learn`.
    Learn,
}

/// The folder of a bench, with a VMM, a policy and the path of the library.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    vmm: PathBuf,
    library: PathBuf,
}

/// The output of a run of `loop.c`.
pub(crate) struct Ran {
    pub(crate) nanoseconds: f64,
    pub(crate) kibibytes: f64,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
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
        fs::write(folder.path().join("answers.toml"), policy)?;
        if !build.success() || !compiled.success() {
            return Err("the library or the VMM is not built".into());
        }
        Ok(Self {
            folder,
            vmm,
            library: target.join("libmsrgate_preload.so"),
        })
    }

    /// The program of `loop.c`.
    pub(crate) fn vmm(&self) -> &Path {
        &self.vmm
    }

    /// Returns the path of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the command that starts `program` in this way.
    pub(crate) fn command(&self, way: Way<'_>, program: &Path) -> Command {
        let options = match way {
            Way::Plain => &[][..],
            Way::Exec(policy) => &["exec", "--quiet", policy],
            Way::Learn => &["learn", "-o", LEARNT],
        };
        let mut command = match way {
            Way::Plain => Command::new(program),
            Way::Exec(_) | Way::Learn => Command::new(env!("CARGO_BIN_EXE_msrgate")),
        };
        if !options.is_empty() {
            command.args(options).arg("--").arg(program);
            command.env("MSRGATE_PRELOAD", &self.library);
        }
        // `learn` says what it has learnt.
        let said = match way {
            Way::Learn => Stdio::null(),
            Way::Plain | Way::Exec(_) => Stdio::inherit(),
        };
        command.current_dir(self.folder.path()).stderr(said);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, way: Way<'_>, arguments: [&str; 2]) -> Result<Ran> {
        self.forget()?;
        let output = self.command(way, &self.vmm).args(arguments).output()?;
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

    /// Removes the policy of the last `learn`, which would not replace it.
    fn forget(&self) -> Result<()> {
        match fs::remove_file(self.path(LEARNT)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Runs the VMM in pairs: first without msrgate and with the arguments `alone`, then in another way and with the
    /// arguments `guarded`. The function `of` computes a number from each pair of runs. Returns the median of these
    /// numbers.
    pub(crate) fn pairs(
        &self,
        alone: [&str; 2],
        way: Way<'_>,
        guarded: [&str; 2],
        of: impl Fn(&Ran, &Ran) -> f64,
    ) -> Result<f64> {
        let mut values = Vec::new();
        for _ in 0..PAIRS {
            let alone = self.run(Way::Plain, alone)?;
            values.push(of(&alone, &self.run(way, guarded)?));
        }
        Ok(median(values))
    }

    /// Returns the time in milliseconds of a command from its start to its end.
    pub(crate) fn milliseconds(&self, command: &mut Command) -> Result<f64> {
        self.forget()?;
        let begun = Instant::now();
        let status = command.stdout(Stdio::null()).status()?;
        let taken = begun.elapsed().as_secs_f64() * 1000.0;
        let is_done = matches!(status.code(), Some(0 | DONE));
        is_done
            .then_some(taken)
            .ok_or_else(|| status.to_string().into())
    }
}

/// QEMU's exit status after a guest has written 0x10 to the port of `isa-debug-exit`.
const DONE: i32 = 33;

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
