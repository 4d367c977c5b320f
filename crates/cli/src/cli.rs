//! The command line: the commands, their arguments and their options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use msrgate_policy::{CpuError, MsrSet, NamedCpu, parse_cpu, parse_msrs};

use crate::until::Until;

/// An MSR firewall for KVM virtual machines.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// When to use colour; the variable `NO_COLOR` turns colour off, too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 yes, 1 no (differences or mistakes found), 2 no answer (wrong usage, input/output,
a trace with gaps), 3 this host lacks KVM or a feature of it.
POLICY is a file, `-` for standard input, or the name of a shipped policy; a file with the same
name comes first.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a real guest behind the policy, and compare its results with those that the policy promises
    Test(TestArgs),
    /// Report the mistakes of a policy, and how the policy fits into KVM's filter
    Check(CheckArgs),
    /// Explain the result of each access of an MSR, and name the line that decides
    Explain(ExplainArgs),
    /// List the differences between two policies, sorted into looser and stricter
    Diff(DiffArgs),
    /// Run an unchanged VMM with its VMs behind a policy
    Exec(ExecArgs),
    /// Watch one run of a VMM, and write a policy that allows what its guest used
    Learn(LearnArgs),
    /// Compile a policy to a program, or to a filter in JSON, Rust, C or the kernel's bytes
    Compile(CompileArgs),
    /// Report how a policy would decide the accesses of a recorded trace
    Replay(ReplayArgs),
    /// List what a policy refuses of recorded accesses, with advice, and allow it on request
    Review(ReviewArgs),
    /// Convert a kernel log, or a file of another tool, to a policy
    Import(ImportArgs),
    /// Format policies, and keep their comments
    Fmt(FmtArgs),
    /// Find registers by name, part of a name, index, or word of the description
    Msr(MsrArgs),
    /// Measure whether this host's KVM behaves as documented, statement by statement
    Doctor(DoctorArgs),
    /// List the shipped policies, or print one
    Policies(PoliciesArgs),
    /// Explain a command, or the language of policies: `help policy`, `help schema`
    Help(HelpArgs),
}

impl Command {
    /// Returns the form of the answer: text for people, or JSON for programs.
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Test(args) => args.format.format,
            Self::Check(args) => args.format.format,
            Self::Explain(args) => args.format.format,
            Self::Replay(args) => args.format.format,
            Self::Review(args) => args.format.format,
            Self::Msr(args) => args.format.format,
            Self::Doctor(args) => args.format.format,
            Self::Policies(args) => args.format.format,
            Self::Diff(args) => args.format.format,
            Self::Fmt(args) => args.format.format,
            // These commands print a text or a file, which has no JSON form.
            Self::Compile(_) | Self::Import(_) | Self::Help(_) | Self::Exec(_) | Self::Learn(_) => {
                Format::Text
            }
        }
    }
}

impl Command {
    /// Returns true if the exit status is that of a VMM, unless msrgate itself fails.
    pub(crate) const fn runs_vmm(&self) -> bool {
        match self {
            Self::Exec(_) => true,
            Self::Learn(args) => args.from.is_empty(),
            _ => false,
        }
    }

    /// Returns true if the results are rows and sentences, whose lines may be broken on a narrow terminal.
    /// The lines of JSON and of printed files are never broken.
    pub(crate) const fn is_for_reading(&self) -> bool {
        let is_text = matches!(self.format(), Format::Text);
        match self {
            Self::Policies(args) => is_text && args.name.is_none(),
            Self::Compile(_) | Self::Import(_) | Self::Fmt(_) | Self::Help(_) => false,
            _ => is_text,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// Prove that the policy is no looser than this one, on every processor
    #[arg(long, value_name = "ORG")]
    pub(crate) within: Option<PathBuf>,
    /// The host whose CPUID and list of saved MSRs the policy is compared with
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    pub(crate) host: HostArg,
    /// Exit with 1 if there is a warning that the policy's `accept` does not name
    #[arg(long)]
    deny_warnings: bool,
    /// List every entry, cluster and range, and all warnings
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

impl CheckArgs {
    pub(crate) const fn severity(&self) -> Severity {
        if self.deny_warnings {
            Severity::Error
        } else {
            Severity::Warning
        }
    }

    pub(crate) const fn detail(&self) -> Detail {
        if self.verbose {
            Detail::Full
        } else {
            Detail::Brief
        }
    }
}

/// The severity of a warning that the policy does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The warning does not change the answer.
    Warning,
    /// The warning makes the answer a no.
    Error,
}

/// The amount of detail in an answer for people. The JSON always has everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The results that are worth a look.
    Brief,
    /// All results.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostArg {
    /// This host, if it has KVM
    Auto,
    /// This host; an error if it has no KVM
    Kvm,
    /// No host: the answer depends on the policy alone
    None,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A policy, a program, or a filter that `compile` wrote; `-` for standard input. A filter that names its
    /// processor is compared for that processor
    pub(crate) old: PathBuf,
    /// The policy, program or filter to compare with OLD
    pub(crate) new: PathBuf,
    /// The differences that make the exit code 1
    #[arg(long, value_name = "WHAT", default_value = "any")]
    pub(crate) fail_on: FailOn,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Any difference
    Any,
    /// A difference that is looser, or neither looser nor stricter
    Looser,
}

#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// The format of the output
    #[arg(long, value_name = "FORMAT", default_value = "program")]
    pub(crate) format: Output,
    /// The file to write, completely or not at all; without it or with `-`, standard output. A device, a pipe, or an open file such
    /// as /dev/stdout is written to directly. A file whose mode permits no user to write, such as 0444, is not replaced
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the filter even if it cannot do all that the policy says, and say on standard error what it leaves out
    #[arg(long)]
    pub(crate) filter_only: bool,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// The whole policy, for msrgate and for VMMs that use its library
    Program,
    /// A filter in one line of JSON
    Json,
    /// A filter as constants of Rust
    Rust,
    /// A filter as a header of C
    C,
    /// A filter as the 392 bytes of `struct kvm_msr_filter` and its bitmaps; the pointers are
    /// offsets from the first byte
    Abi,
}

impl Output {
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Json | Self::Rust | Self::C)
    }
}

// The usage line has POLICY before `--msr`, because `--msr` takes all arguments that follow it.
#[derive(Debug, Args)]
#[command(override_usage = "msrgate test <POLICY> [OPTIONS] [--msr <MSR>...]")]
pub(crate) struct TestArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// The place where the guest runs
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    pub(crate) backend: BackendArg,
    /// Test only these MSRs: a name, an index or a range such as 0x200..=0x20f (repeatable)
    #[arg(long = "msr", value_name = "MSR", value_parser = msrs, num_args = 1..)]
    pub(crate) msrs: Vec<MsrSet>,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// The MSRs: names, indices, or ranges such as 0x200..=0x20f
    #[arg(required = true, value_name = "MSR", value_parser = msrs)]
    pub(crate) msrs: Vec<MsrSet>,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// Text of the event `kvm:kvm_msr` by tracefs, `perf script`, `perf trace` or `trace-cmd report`, or JSON lines, such as events of `exec`;
    /// `-` for standard input. The exit code is 1 if an access would be refused; 0 only if the trace has accesses, or tells of a
    /// VM of `exec`, none would be refused, and no part is missing; else 2: the trace has neither, events were lost, accesses went
    /// to user space without their MSRs' names, lines could not be read, the last line has no end, Ctrl-C ended the reading, or a write may be refused by what the trace does not show
    pub(crate) trace: PathBuf,
    /// Replay only the accesses of this task: the name of a thread (`CPU 0/KVM`), the number of a thread or a process, or
    /// both as in a trace (`CPU 0/KVM-16856`). May be given several times. If the trace does not name the task of an
    /// access, the exit code is 2
    #[arg(long, value_name = "NAME|PID")]
    pub(crate) task: Vec<String>,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

// The usage line has `--accept` last, because it takes all arguments that follow it.
#[derive(Debug, Args)]
#[command(override_usage = "msrgate review [OPTIONS] <POLICY> <EVENTS>... [--accept [MSR]...]", after_help = REVIEW_STATUS)]
pub(crate) struct ReviewArgs {
    /// The policy that is reviewed; with --accept, a file
    pub(crate) policy: PathBuf,
    /// Events of `exec --events`, of an audit or of a gate, or a trace, as `replay` reads them; `-` for standard input. Each
    /// has an access, or tells of a VM of `exec`: an input without both is wrong, since it shows nothing
    #[arg(required = true, value_name = "EVENTS")]
    pub(crate) events: Vec<PathBuf>,
    /// Allow in the policy's file all that is open, or what is listed of these MSRs. An MSR that an entry refuses
    /// has to be named; an entry with `final = true` stays
    #[arg(long, value_name = "MSR", value_parser = msrs, num_args = 0..)]
    pub(crate) accept: Option<Vec<MsrSet>>,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

const REVIEW_STATUS: &str = "\
Exit codes: 0 if nothing is open or unclear, 1 if something is, 2 for wrong input, or if nothing is but events are
missing.";

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A kernel log, a Firecracker CPU template, fingerprint or list, an msr-safe allowlist, or what
    /// `compile` wrote; `-` for standard input. The policy notes the processor that a filter was compiled for. Of a
    /// program that differs by processor, only one part is imported, and the exit code is 1. A
    /// last line without a line feed is read only if it is certainly complete; if it is not read, the exit code is 2
    pub(crate) file: PathBuf,
    /// The format of the file, if msrgate does not recognise the format
    #[arg(long, value_name = "WHAT")]
    pub(crate) from: Option<FromArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FromArg {
    /// Lines such as `kvm [1234]: ignored rdmsr: 0x1c9 data 0x0`, also wrapped, or as `journalctl -o json`
    KernelLog,
    /// A custom CPU template of Firecracker, or a fingerprint
    Firecracker,
    /// Firecracker's list of the MSRs that a guest could read: `MSR_ADDR,VALUE`, or `MSR_ADDR,STATUS,VALUE`
    FirecrackerList,
    /// An allowlist of msr-safe: index, write mask, comment
    MsrSafe,
    /// The filter that `compile` wrote as JSON, C or Rust (no other source code), or the bytes of the ioctl, also as `hexdump`, `xxd` or `od` print them in
    /// hexadecimal or octal numbers
    Compiled,
    /// A compiled policy as a program, with its answers
    Program,
}

#[derive(Debug, Args)]
pub(crate) struct FmtArgs {
    /// Files; without --write and --check, one file, `-`, or the name of a shipped policy
    #[arg(required = true, value_name = "POLICY")]
    pub(crate) policies: Vec<PathBuf>,
    /// Write the files in place, each completely or not at all; formatted files stay untouched. A file that was
    /// changed meanwhile, cannot be read or written, or has a mode that permits no user to write, such as 0444, is an error,
    /// but the other files are still written
    #[arg(long, conflicts_with = "check")]
    pub(crate) write: bool,
    /// Write no file; name the files that are not formatted, and exit with 1 if there are any
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct MsrArgs {
    /// A name, part of a name, an index, a group, or words of a description
    #[arg(required = true, value_name = "WORD")]
    pub(crate) words: Vec<String>,
    /// Decode this value, such as 0x850089, by the fields of the registers
    #[arg(long, value_name = "VALUE", value_parser = value)]
    pub(crate) decode: Option<u64>,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

// All arguments after `--` are the VMM's, even those that look like options of msrgate.
#[derive(Debug, Args)]
#[command(override_usage = "msrgate exec [OPTIONS] <POLICY> -- <VMM> [ARGS...]", after_help = EXEC_STATUS)]
pub(crate) struct ExecArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// The VMM and its arguments
    #[arg(last = true, required = true, value_name = "VMM")]
    pub(crate) vmm: Vec<OsString>,
    /// Refuse nothing, and record what the policy would refuse
    #[arg(long)]
    pub(crate) audit: bool,
    /// Append each refusal and answer to this file, as lines of JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    /// Append the summary to this file, at the end of the last process of the run
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
    /// Print no summary at the VMM's end
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Let a VMM that does not load msrgate's library run its VMs without a policy
    #[arg(long)]
    pub(crate) fail_open: bool,
}

// All arguments after `--` are the VMM's.
#[derive(Debug, Args)]
#[command(override_usage = "msrgate learn [OPTIONS] -o <POLICY> -- <VMM> [ARGS...]\n       msrgate learn [OPTIONS] -o <POLICY> --from <FILE>...", after_help = LEARN_STATUS)]
pub(crate) struct LearnArgs {
    /// Write the policy to this file when the run has ended; with --from, `-` is standard output
    #[arg(short, long, value_name = "POLICY")]
    pub(crate) output: PathBuf,
    /// The VMM and its arguments
    #[arg(last = true, required_unless_present = "from", value_name = "VMM")]
    pub(crate) vmm: Vec<OsString>,
    /// Learn from these files in place of a run: events of `exec --events`, of an audit or of a gate, and traces of
    /// `kvm:kvm_msr`, as `replay` reads them; `-` for standard input. Each has an access, or tells of a VM of `exec`. All files together
    /// count as one run
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["vmm", "until"])]
    pub(crate) from: Vec<PathBuf>,
    /// Add to this policy what the run shows, and keep all that its author wrote
    #[arg(long, value_name = "OLD")]
    pub(crate) merge: Option<PathBuf>,
    /// End the VMM after this time, such as `30s`, or when it prints this text
    #[arg(long, value_name = "TIME|TEXT", value_parser = Until::read)]
    pub(crate) until: Option<Until>,
}

const LEARN_STATUS: &str = "\
Exit status: the VMM's own; 1 if the policy lacks accesses that found no room; 125 if the VMM was not watched, or
ends with 0 without a VM; 126 if it cannot be run, 127 if there is none. With --from: 0 if the policy allows all that
the files show, 1 if they lack accesses or the policy goes on to refuse some, 2 if no policy was written.";

const EXEC_STATUS: &str = "\
Exit status: the VMM's own, which keeps msrgate's process; 125 if it was not put behind the policy,
126 if the VMM cannot be run, 127 if there is none.";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct PoliciesArgs {
    /// The policy to print
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// A command, `policy` for the reference of the language, or `schema` for its JSON schema for editors
    pub(crate) topic: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CpuArg {
    /// The processor whose `[[when]]`s hold: `VENDOR:FAMILY:MODEL[:STEPPING]`, such as
    /// `GenuineIntel:6:0x6a`, or `host` for the processor of this host. The stepping may be left out if the
    /// policy is the same for all steppings
    #[arg(long, value_name = "CPU")]
    pub(crate) cpu: Option<Which>,
}

/// The processor that `--cpu` asks for.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// The processor that guests of this host get.
    Host,
    /// The processor with this vendor, family, model and, if it was given, stepping.
    Named(NamedCpu),
}

impl FromStr for Which {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        match text {
            "host" => Ok(Self::Host),
            named => parse_cpu(named).map(Self::Named),
        }
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FormatArg {
    /// The form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text, for people
    Text,
    /// JSON, for programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// KVM if it can be opened, else the model
    Auto,
    /// A real VM on this host
    Kvm,
    /// The built-in model of KVM, which does not measure the kernel
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    pub(crate) fn write_global(self) {
        let choice = match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}

fn value(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let value = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    value.map_err(|_| {
        "not a number of at most 64 bits; write decimal digits, or 0x and hexadecimal digits"
            .to_owned()
    })
}

fn msrs(text: &str) -> Result<MsrSet, String> {
    parse_msrs(text).map_err(|error| format!("{error}; {}", error.help()))
}
