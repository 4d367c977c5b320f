//! A machine of QEMU's emulator, on which the hypervisor starts.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use msrgate_program::Program;
use tempfile::TempDir;
use wait_timeout::ChildExt as _;

use crate::guest::{self, Outcome, Step};

/// The greatest time that a machine runs.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns true if there is a QEMU. Without one the tests are skipped, unless `MSRGATE_REQUIRE` names the lab.
pub(crate) fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").output();
    if found.is_ok() {
        return true;
    }
    let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|one| one == "lab"),
        "MSRGATE_REQUIRE has lab, but there is no qemu-system-x86_64"
    );
    eprintln!("SKIPPED: there is no qemu-system-x86_64");
    false
}

/// The files that the hypervisor gets, and the machine's options.
pub(crate) struct Machine {
    files: Vec<(&'static str, Vec<u8>)>,
    options: Vec<String>,
    cpu: &'static str,
}

/// What a machine left behind.
pub(crate) struct Ran {
    /// What came over the first serial port.
    pub serial: Vec<u8>,
    /// The lines of the debug console.
    pub debug: String,
    /// QEMU's status; `None` if the machine ran until the time limit.
    pub status: Option<i32>,
}

impl Machine {
    /// A machine with one processor and 256 MiB of memory, whose guest is `kernel` under `program`.
    pub(crate) fn new(program: &Program, kernel: Vec<u8>) -> Self {
        Self {
            files: vec![("program", program.encode()), ("kernel", kernel)],
            options: Vec::new(),
            cpu: "EPYC,+svm,+npt",
        }
    }

    /// Adds a file to the archive, or replaces one.
    pub(crate) fn file(mut self, name: &'static str, bytes: Vec<u8>) -> Self {
        self.files.retain(|(known, _)| *known != name);
        self.files.push((name, bytes));
        self
    }

    /// Adds options of QEMU.
    pub(crate) fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Sets the processor.
    pub(crate) fn cpu(mut self, cpu: &'static str) -> Self {
        self.cpu = cpu;
        self
    }

    /// Starts the machine, and waits until it ends.
    pub(crate) fn run(self) -> Ran {
        let folder = TempDir::new().unwrap();
        let archive = folder.path().join("archive");
        fs::write(&archive, cpio(&self.files)).unwrap();
        self.run_with(folder.path(), Some(&archive))
    }

    /// Starts the machine with this archive, or without one.
    pub(crate) fn run_with(self, folder: &Path, archive: Option<&Path>) -> Ran {
        let debug: PathBuf = folder.join("debug");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-m",
            "256",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-no-reboot", "-serial", "stdio", "-cpu", self.cpu])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-debugcon")
        .arg(format!("file:{}", debug.display()))
        .args(["-kernel", env!("CARGO_BIN_EXE_msrgate-svm")])
        .args(self.options);
        if let Some(archive) = archive {
            qemu.arg("-initrd").arg(archive);
        }
        let (status, output) = run_limited(&mut qemu);
        Ran {
            serial: output.stdout,
            debug: fs::read_to_string(debug).unwrap_or_default(),
            status,
        }
    }
}

fn run_limited(command: &mut Command) -> (Option<i32>, Output) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut out, &mut bytes).unwrap();
        bytes
    });
    let status = child.wait_timeout(LIMIT).unwrap();
    if status.is_none() {
        child.kill().unwrap();
    }
    let last = child.wait().unwrap();
    let output = Output {
        status: last,
        stdout: reader.join().unwrap(),
        stderr: Vec::new(),
    };
    (status.and_then(|status| status.code()), output)
}

/// Makes a cpio archive (newc).
pub(crate) fn cpio(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let trailer = ("TRAILER!!!", Vec::new());
    for (name, file) in files.iter().chain([&trailer]) {
        let z = "00000000";
        write!(
            bytes,
            "070701{z}{z}{z}{z}{z}{z}{:08x}{z}{z}{z}{z}{:08x}{z}{name}\0",
            file.len(),
            name.len() + 1
        )
        .unwrap();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(file);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

impl Ran {
    /// The hypervisor's lines as JSON.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let lines = self.debug.lines();
        lines
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// The number of exits of this kind, by the hypervisor's last line.
    pub(crate) fn exits(&self, kind: &str) -> u64 {
        let lines = self.lines();
        lines
            .last()
            .and_then(|end| end["exits"][kind].as_u64())
            .expect(&self.debug)
    }

    /// The events, without the hypervisor's own lines.
    pub(crate) fn events(&self) -> Vec<serde_json::Value> {
        let lines = self.lines().into_iter();
        lines.filter(|line| line.get("msr").is_some()).collect()
    }
}

/// Runs these steps under `program`.
pub(crate) fn steps(program: &Program, steps: &[Step]) -> (Vec<Outcome>, Ran) {
    let ran = Machine::new(program, guest::kernel(steps)).run();
    assert_eq!(
        ran.status,
        Some(0x21),
        "{}{}",
        ran.debug,
        String::from_utf8_lossy(&ran.serial)
    );
    let outcomes = guest::outcomes(&ran.serial);
    assert_eq!(outcomes.len(), steps.len(), "{}", ran.debug);
    (outcomes, ran)
}
