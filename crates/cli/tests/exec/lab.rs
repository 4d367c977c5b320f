//! Shared parts of the tests of `exec`: the command with its library, policies, and VMMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use msrgate_testing::host;
use tempfile::TempDir;

/// Builds msrgate's preload library, which no other package's tests build, and returns its path.
pub(crate) fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let command = Path::new(env!("CARGO_BIN_EXE_msrgate"));
        let folder = command.parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "-p", "msrgate-preload"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(folder.parent().unwrap());
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().unwrap().success(), "the library is built");
        folder.join("libmsrgate_preload.so")
    })
}

/// Builds msrgate's preload library for VMMs that are linked against musl, and returns its path. Returns
/// `None`, and prints why, if the library or such VMMs cannot be built on this machine.
pub(crate) fn library_for_musl() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
        if Command::new("musl-gcc").arg("--version").output().is_err() {
            assert!(
                !required.split(',').any(|word| word == "musl"),
                "MSRGATE_REQUIRE=musl, but there is no musl-gcc"
            );
            host::say(
                "SKIPPED: there is no musl-gcc. Install it, for instance Debian's musl-tools",
            );
            return None;
        }
        let folder = library().parent().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/build-musl");
        let mut build = Command::new(script);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        build.env("CARGO_TARGET_DIR", folder.parent().unwrap());
        let ran = Ran::from(build.output().unwrap());
        assert_eq!(ran.status, 0, "{}", ran.err);
        if ran.err.contains("SKIPPED") {
            host::say(ran.err.trim_end());
            return None;
        }
        Some(folder.join("libmsrgate_preload.musl.so"))
    };
    BUILT.get_or_init(build).as_deref()
}

/// A temporary folder for one test, with a policy in it.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
}

/// The output and exit status of a command that a test has run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    /// The exit status of the process; if a signal ended the process, 128 plus the signal's number.
    pub(crate) status: i32,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let by_signal = || 128 + output.status.signal().unwrap_or(0);
        Self {
            out: text(&output.stdout),
            err: text(&output.stderr),
            status: output.status.code().unwrap_or_else(by_signal),
        }
    }
}

impl Lab {
    /// Makes a lab with this policy as `guest.toml`. Returns `None`, and prints why, on a host without KVM.
    pub(crate) fn with_kvm(policy: &str) -> Option<Self> {
        host::host().map(|_| Self::new(policy))
    }

    /// Makes a lab with this policy as `guest.toml`, for tests that make no VM.
    pub(crate) fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("guest.toml"), policy).unwrap();
        Self { folder }
    }

    /// Returns the path of a file in the lab's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the command `msrgate exec OPTIONS guest.toml -- …`, to which the test adds the VMM.
    pub(crate) fn exec(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msrgate"));
        command
            .arg("exec")
            .args(options)
            .arg("guest.toml")
            .arg("--");
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
            .env("MSRGATE_PRELOAD", library())
            .env("NO_COLOR", "1");
        command.env("MSRGATE_STATE_DIR", self.folder.path());
        command
    }

    /// Returns a command that runs `script` in the lab's folder, where `"$@"` is the command `exec`. The
    /// words `starter` start the shell that runs the script.
    pub(crate) fn script(&self, starter: &[&str], script: &str, exec: &Command) -> Command {
        let shell = ["sh", "-c", script, "sh"];
        let mut words = starter.iter().chain(&shell);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(exec.get_program());
        command.args(exec.get_args());
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        let set = exec.get_envs();
        command.envs(set.filter_map(|(key, value)| Some((key, value?))));
        command
    }

    /// Builds a VMM from its source in `tests/vmms`, and returns its path.
    pub(crate) fn build(&self, name: &str, options: &[&str]) -> PathBuf {
        self.build_by("cc", name, options)
    }

    /// Builds a VMM from its source in `tests/vmms` and links it against musl. The compiler for musl lacks
    /// the kernel's headers, so the function supplies them.
    pub(crate) fn build_for_musl(&self, name: &str) -> PathBuf {
        let kernel = ["/usr/include", "/usr/include/x86_64-linux-gnu"];
        let options = kernel.map(|folder| ["-idirafter", folder]);
        self.build_by("musl-gcc", name, options.as_flattened())
    }

    fn build_by(&self, compiler: &str, name: &str, options: &[&str]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/vmms")
            .join(name);
        let program = self.path(name.trim_end_matches(".c"));
        let mut compiler = Command::new(compiler);
        compiler.args(["-w", "-O1", "-pthread"]).args(options);
        let status = compiler.arg("-o").arg(&program).arg(source).status();
        assert!(status.expect("there is a C compiler").success());
        program
    }

    /// Returns the lines about accesses in a file of `--events`. The file may also have lines about VMs, by which
    /// a run that refuses nothing leaves a file that is not empty.
    pub(crate) fn events(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(name)).unwrap();
        let lines = text.split_inclusive('\n');
        lines.filter(|line| !is_about_vms(line)).collect()
    }

    /// Waits until the watcher has removed the run's state page from the lab's folder.
    pub(crate) fn assert_no_page_is_left(&self) {
        for _ in 0..200 {
            let names = fs::read_dir(self.folder.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            if !names.into_iter().any(|name| name.starts_with("msrgate-")) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the watcher has left the run's state page");
    }
}

/// Returns true for a line of a file of `--events` that tells how many more VMs the policy guards.
pub(crate) fn is_about_vms(line: &str) -> bool {
    line.contains("\"event\":\"vm\"")
}

/// Prints why a test is skipped.
///
/// # Panics
/// Panics if the environment variable `MSRGATE_REQUIRE` contains `word`, the word for what is missing.
pub(crate) fn skip(word: &str, why: &str) {
    let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|one| one == word),
        "MSRGATE_REQUIRE={word}, but {why}"
    );
    host::say(&format!("SKIPPED: {why}"));
}

/// The command line, without the program, that starts a program in a mount namespace of its own.
pub(crate) const MOUNTS: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];

/// Returns true if these words, such as [`MOUNTS`], can start a program on this machine.
pub(crate) fn starts(words: &[&str]) -> bool {
    let (program, options) = words.split_first().unwrap();
    let made = Command::new(program).args(options).arg("true").output();
    let does = made.is_ok_and(|output| output.status.success());
    if !does {
        host::say(&format!("SKIPPED: `{}` fails here", words.join(" ")));
    }
    does
}

/// Runs a command to its end, and returns its output and exit status.
pub(crate) fn ran(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

/// A policy that allows every access. The policies below differ from this one only in MSR 0x8b, which the
/// guests of these tests read.
pub(crate) const ALLOWS: &str = "policy = 1\ndefault = 'allow'\n";
pub(crate) const DENIES: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'deny', write = 'allow' }\n";
pub(crate) const ANSWERS: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 5 }, write = 'allow' }\n";
pub(crate) const KILLS: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'kill', write = 'allow' }\n";
pub(crate) const LOGS: &str = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'allow', write = 'allow', log = 'first' }\n";
