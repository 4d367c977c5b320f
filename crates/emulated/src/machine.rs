//! A machine of QEMU's emulator, on which the hypervisor starts.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use msrgate_program::Program;
use serde_json::Value;
use tempfile::TempDir;
use wait_timeout::ChildExt as _;

use crate::archive::archive;

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";

/// The longest time for which a machine runs, unless [`Machine::limit`] sets another.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns true if there is a QEMU that can be started.
#[must_use]
pub fn is_qemu_there() -> bool {
    Command::new(QEMU).arg("--version").output().is_ok()
}

/// A machine before it starts.
#[derive(Clone, Debug)]
pub struct Machine {
    hypervisor: PathBuf,
    archive: Archive,
    options: Vec<String>,
    cpu: String,
    limit: Duration,
}

#[derive(Clone, Debug)]
enum Archive {
    None,
    Bytes(Vec<u8>),
    Files(Vec<(String, Vec<u8>)>),
}

/// The end of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The machine was switched off or reset.
    Off,
    /// The guest or the hypervisor ended the machine with this code.
    Code(u8),
    /// QEMU itself failed, with this status.
    Qemu(i32),
    /// The machine ran until the time limit.
    AtLimit,
}

/// The record of a machine's run.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The bytes that came over the first serial port.
    pub serial: Vec<u8>,
    /// The text of the debug console, on which the hypervisor speaks.
    pub debug: String,
    /// The end of the machine.
    pub ended: Ended,
}

impl Machine {
    /// Creates a machine with one processor and 256 MiB of memory. `hypervisor` is the path of the
    /// hypervisor's image, and the guest is `kernel` under `program`.
    #[must_use]
    pub fn new(hypervisor: &Path, program: &Program, kernel: &[u8]) -> Self {
        Self {
            hypervisor: hypervisor.to_owned(),
            archive: Archive::Files(Vec::new()),
            options: Vec::new(),
            cpu: "EPYC,+svm,+npt".to_owned(),
            limit: LIMIT,
        }
        .file("program", &program.encode())
        .file("kernel", kernel)
    }

    /// Adds a file to the archive, or replaces the file with this name.
    #[must_use]
    pub fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        let mut files = match self.archive {
            Archive::Files(files) => files,
            Archive::None | Archive::Bytes(_) => Vec::new(),
        };
        files.retain(|(known, _)| known != name);
        files.push((name.to_owned(), bytes.to_owned()));
        self.archive = Archive::Files(files);
        self
    }

    /// Gives the hypervisor these bytes in place of an archive.
    #[must_use]
    pub fn archive(mut self, bytes: &[u8]) -> Self {
        self.archive = Archive::Bytes(bytes.to_owned());
        self
    }

    /// Gives the hypervisor no archive.
    #[must_use]
    pub fn without_archive(mut self) -> Self {
        self.archive = Archive::None;
        self
    }

    /// Adds options of QEMU.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Sets the processor, as QEMU's `-cpu` takes it.
    #[must_use]
    pub fn cpu(mut self, cpu: &str) -> Self {
        cpu.clone_into(&mut self.cpu);
        self
    }

    /// Sets the longest time for which the machine runs.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the machine, and waits until it ends.
    ///
    /// # Errors
    /// QEMU cannot be started, or a file cannot be written.
    pub fn run(&self) -> io::Result<Ran> {
        let folder = TempDir::new()?;
        let debug = folder.path().join("debug");
        let mut qemu = Command::new(QEMU);
        qemu.args([
            "-accel",
            "tcg",
            "-m",
            "256",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-no-reboot", "-serial", "stdio", "-cpu", &self.cpu])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-debugcon")
        .arg(format!("file:{}", debug.display()))
        .arg("-kernel")
        .arg(&self.hypervisor)
        .args(&self.options);
        if let Some(bytes) = self.archive_bytes() {
            let path = folder.path().join("archive");
            fs::write(&path, bytes)?;
            qemu.arg("-initrd").arg(path);
        }
        let (ended, serial) = run_limited(&mut qemu, self.limit)?;
        let debug = fs::read(debug).unwrap_or_default();
        Ok(Ran {
            serial,
            debug: String::from_utf8_lossy(&debug).into_owned(),
            ended,
        })
    }

    fn archive_bytes(&self) -> Option<Vec<u8>> {
        match &self.archive {
            Archive::None => None,
            Archive::Bytes(bytes) => Some(bytes.clone()),
            Archive::Files(files) => {
                let files = files.iter().map(|(name, file)| (&**name, &**file));
                Some(archive(&files.collect::<Vec<_>>()))
            }
        }
    }
}

fn run_limited(command: &mut Command, limit: Duration) -> io::Result<(Ended, Vec<u8>)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut out = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(out) = &mut out {
            out.read_to_end(&mut bytes)?;
        }
        io::Result::Ok(bytes)
    });
    let status = child.wait_timeout(limit)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let serial = reader.join().unwrap_or_else(|_| Ok(Vec::new()))?;
    // isa-debug-exit makes QEMU's status `2 * code + 1`.
    let ended = match status.map(|status| status.code().unwrap_or(-1)) {
        None => Ended::AtLimit,
        Some(0) => Ended::Off,
        Some(status) if status % 2 == 1 && status > 1 => {
            u8::try_from(status / 2).map_or(Ended::Qemu(status), Ended::Code)
        }
        Some(status) => Ended::Qemu(status),
    };
    Ok((ended, serial))
}

impl Ran {
    /// The lines of the debug console that are JSON.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        let lines = self.debug.lines();
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The events, without the hypervisor's own lines.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let lines = self.lines().into_iter();
        lines.filter(|line| line.get("msr").is_some()).collect()
    }

    /// The number of exits of this kind, from the hypervisor's last line. `None` if the machine ended without
    /// that line.
    #[must_use]
    pub fn exits(&self, kind: &str) -> Option<u64> {
        self.lines().last()?["exits"][kind].as_u64()
    }
}
