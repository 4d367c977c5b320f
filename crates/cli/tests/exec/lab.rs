//! What the tests share: the command with its library, policies, and VMMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use msrgate_testing::host;
use tempfile::TempDir;

/// The library of this build. No test of another package builds it, so it is built here.
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

/// A folder of a test's own, with a policy in it.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    /// The exit status, or 128 and the signal's number.
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
    /// A lab with this policy under the name `guest.toml`; `None`, with a word, where there is no KVM.
    pub(crate) fn with_kvm(policy: &str) -> Option<Self> {
        host::host().map(|_| Self::new(policy))
    }

    /// The same for tests that make no VM.
    pub(crate) fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("guest.toml"), policy).unwrap();
        Self { folder }
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `msrgate exec OPTIONS guest.toml -- …`, to which the VMM is to be added.
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

    /// Builds a VMM of `tests/vmms`.
    pub(crate) fn build(&self, name: &str, options: &[&str]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/vmms")
            .join(name);
        let program = self.path(name.trim_end_matches(".c"));
        let mut compiler = Command::new("cc");
        compiler.args(["-w", "-O1", "-pthread"]).args(options);
        let status = compiler.arg("-o").arg(&program).arg(source).status();
        assert!(status.expect("there is a C compiler").success());
        program
    }

    /// No state page is left when all is over.
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

/// Runs it to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

/// Policies about MSR 0x8b, which all guests of these tests read.
pub(crate) const ALLOWS: &str = "policy = 1\ndefault = 'allow'\n";
pub(crate) const DENIES: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'deny', write = 'allow' }\n";
pub(crate) const ANSWERS: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = { value = 5 }, write = 'allow' }\n";
pub(crate) const KILLS: &str =
    "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'kill', write = 'allow' }\n";
pub(crate) const LOGS: &str = "policy = 1\ndefault = 'allow'\n[msrs]\n0x8b = { read = 'allow', write = 'allow', log = 'first' }\n";
