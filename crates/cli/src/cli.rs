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
    /// When to use colour; `NO_COLOR` is honoured, too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 yes, 1 no (differs, has mistakes), 2 no answer (usage, input/output, a trace
with gaps), 3 the host lacks something.
POLICY is a file, `-` for standard input, or the name of a shipped policy; a file of that name
comes first.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the policy in a real guest, and compare what it gets with what the policy promises
    Test(TestArgs),
    /// Say what is wrong with a policy, and how it packs into KVM's filter
    Check(CheckArgs),
    /// Say what happens to an MSR, and which line says so
    Explain(ExplainArgs),
    /// Say what changes from one policy to another, looser and stricter apart
    Diff(DiffArgs),
    /// Run a VMM, as it is, with its VMs behind a policy
    Exec(ExecArgs),
    /// Watch one run of a VMM, and write the least policy under which its guest runs
    Learn(LearnArgs),
    /// Turn a policy into a program, or its filter into JSON, Rust, C or the kernel's bytes
    Compile(CompileArgs),
    /// Say what a policy would have decided of the accesses in a trace
    Replay(ReplayArgs),
    /// Turn what other tools and the kernel write into a policy
    Import(ImportArgs),
    /// Write policies in their canonical form, with their comments
    Fmt(FmtArgs),
    /// Look a register up by name, part of a name, index or word
    Msr(MsrArgs),
    /// Measure what this host's KVM does, statement by statement
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
    /// List every entry, cluster and range, not only what is worth a look
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

impl CheckArgs {
    pub(crate) const fn detail(&self) -> Detail {
        if self.verbose {
            Detail::Full
        } else {
            Detail::Brief
        }
    }
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
    /// This host's, where it has KVM
    Auto,
    /// This host's; an error where it has no KVM
    Kvm,
    /// None: the answer depends on the policy alone
    None,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A policy, a program, or a filter that `compile` wrote; `-` for standard input. A filter that names its
    /// processor is compared for that processor
    pub(crate) old: PathBuf,
    /// The policy, program or filter to compare it with
    pub(crate) new: PathBuf,
    /// What makes the exit code 1
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
    /// Something became looser, or so different that neither can be said
    Looser,
}

#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// A file, `-`, or the name of a shipped policy
    pub(crate) policy: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT", default_value = "program")]
    pub(crate) format: Output,
    /// The file to write, whole or not at all; without it, standard output. A device, a pipe, or an open file such
    /// as /dev/stdout is written to directly
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the filter even though it does not do all that the policy says
    #[arg(long)]
    pub(crate) filter_only: bool,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// All of the policy, for msrgate and VMMs that link it
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
    /// Where the guest runs: KVM where there is one, else the embedded model
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    pub(crate) backend: BackendArg,
    /// Only these MSRs: a name, an index or a range such as 0x200..=0x20f (repeatable)
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
    /// Names, indices or ranges such as 0x200..=0x20f
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
    /// Text of the event `kvm:kvm_msr` by tracefs, `perf script` or `trace-cmd report`, or JSON lines;
    /// `-` for standard input. The exit code is 1 if an access would be refused; 0 only if it has accesses, none of
    /// them would be refused, and nothing is missing; else 2: there are no accesses, events were lost, lines could not be
    /// read, the last line has no end, Ctrl-C ended the reading, or a write may be refused by what the trace does not show
    pub(crate) trace: PathBuf,
    #[command(flatten)]
    pub(crate) cpu: CpuArg,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A kernel log, a Firecracker CPU template, fingerprint or list, an msr-safe allowlist, or what
    /// `compile` wrote; `-` for standard input. A filter that names its processor is imported with a note of it. Of a
    /// program that differs by processor one part is imported, named in the policy, and the exit code is 1. A
    /// last line without its line feed is not read unless it is whole all the same, and the exit code is 2 then
    pub(crate) file: PathBuf,
    /// The format of the file, if import does not recognise it
    #[arg(long, value_name = "WHAT")]
    pub(crate) from: Option<FromArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FromArg {
    /// Lines such as `kvm [1234]: ignored rdmsr: 0x1c9 data 0x0`
    KernelLog,
    /// A custom CPU template of Firecracker, or a fingerprint
    Firecracker,
    /// Firecracker's list of what a guest could read: `MSR_ADDR,VALUE`
    FirecrackerList,
    /// An allowlist of msr-safe: index, write mask, comment
    MsrSafe,
    /// The filter of a compiled policy: JSON, C, Rust, or the bytes of the ioctl
    Compiled,
    /// A compiled policy as a program, with its answers
    Program,
}

#[derive(Debug, Args)]
pub(crate) struct FmtArgs {
    /// Files; one that is printed may be `-`, or the name of a shipped policy
    #[arg(required = true, value_name = "POLICY")]
    pub(crate) policies: Vec<PathBuf>,
    /// Write the files in place, each whole or not at all; what would not change is left alone. A file that was
    /// changed meanwhile is an error, and so is one that cannot be read or written; the others are written
    #[arg(long, conflicts_with = "check")]
    pub(crate) write: bool,
    /// Write nothing; name the files that would change, and exit with 1 if there are any
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct MsrArgs {
    /// A name, part of a name, an index, or a word
    #[arg(required = true, value_name = "WORD")]
    pub(crate) words: Vec<String>,
    /// Take this value apart by the register's fields, such as 0x850089
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
    /// Say nothing at the VMM's end
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Let a VMM that does not load the library have its VMs, without a policy
    #[arg(long)]
    pub(crate) fail_open: bool,
}

// All arguments after `--` are the VMM's.
#[derive(Debug, Args)]
#[command(override_usage = "msrgate learn [OPTIONS] -o <POLICY> -- <VMM> [ARGS...]", after_help = LEARN_STATUS)]
pub(crate) struct LearnArgs {
    /// Write the policy to this file when the run has ended
    #[arg(short, long, value_name = "POLICY")]
    pub(crate) output: PathBuf,
    /// The VMM and its arguments
    #[arg(last = true, required = true, value_name = "VMM")]
    pub(crate) vmm: Vec<OsString>,
    /// Add to this policy what the run shows, and keep all that its author wrote
    #[arg(long, value_name = "OLD")]
    pub(crate) merge: Option<PathBuf>,
    /// End the VMM after this time, such as `30s`, or when it prints this text
    #[arg(long, value_name = "TIME|TEXT", value_parser = Until::read)]
    pub(crate) until: Option<Until>,
}

const LEARN_STATUS: &str = "\
Exit status: the VMM's own; 1 if the policy lacks accesses that found no room; 125 if the VMM was not watched,
126 if the VMM cannot be run, 127 if there is none.";

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
    /// Print the text of this one
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) format: FormatArg,
}

#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// A command; `policy`, the reference of the language; or `schema`, its JSON schema for editors
    pub(crate) topic: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CpuArg {
    /// The processor whose `[[when]]`s hold: `VENDOR:FAMILY:MODEL[:STEPPING]`, such as
    /// `GenuineIntel:6:0x6a`, or `host` for the one of this host. The stepping may be left out if the policy is the
    /// same for all steppings
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
    /// For people, or for programs
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// KVM where it can be opened, else the model
    Auto,
    /// A real VM on this host
    Kvm,
    /// The embedded model of KVM; measures nothing
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
        "not a number of at most 64 bits; write digits, or 0x and hexadecimal digits".to_owned()
    })
}

fn msrs(text: &str) -> Result<MsrSet, String> {
    parse_msrs(text).map_err(|error| format!("{error}; {}", error.help()))
}
