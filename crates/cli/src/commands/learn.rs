//! `msrgate learn`: watches one run of a VMM, and writes a policy that allows what its guest used.
//!
//! The VMM runs as under `exec`, behind a program that lets everything through and records the first access
//! of each kind. This process stays its parent, and writes the policy when the run has ended.

mod from;
mod output;
mod parent;
mod sightings;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use msrgate_filter::{ExitReason, ReasonMask, Revision};
use msrgate_kvm::{HostCaps, IgnoreMsrs};
use msrgate_policy::learn::{EMPTY, Kept, KeptBy, LearnError, Learnt, Notes, Sighting, learn};
use msrgate_policy::{Compiled, NoIncludes, Source, compile, one_line, parse, registers};
use msrgate_state::{Layout, Snapshot};
use rustix::pipe::{PipeFlags, pipe_with};

use super::exec::{self, AtOpenDoor, Launch, Report, say};
use crate::cli::LearnArgs;
use crate::failure::{Answer, EXIT_NOT_BEHIND, Failure};
use crate::files::{Files, Place};
use crate::links::{self, Target};
use crate::load::Input;
use crate::named;
use crate::output::count;
use output::{is_standard, put};
use sightings::Sightings;

/// The policy under which a guest is watched.
const LEARNER: &str = "policy = 1\nname = \"learner\"\ndefault = \"allow\"\nlog = \"first\"\n";

/// The line that makes MSRs exit that KVM does not know. Its KVM must not ignore them.
const UNKNOWN: &str = "unknown = { read = \"deny\", write = \"deny\", log = \"first\" }\n";

/// The exit status if accesses are missing from the policy.
const NOT_ALL: u8 = 1;

pub(super) fn run(args: &LearnArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    output::check(args)?;
    if args.vmm.is_empty() {
        return from::run(args, out);
    }
    // A policy with mistakes is refused before the run. It is read again after the run, since its author may
    // edit it in the meantime.
    Old::read(args)?;
    let host = HostCaps::probe_without_vm()
        .map_err(|error| Failure::Host(format!("{error}. {}", error.advice())))?;
    let learner = learner(&host)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| Failure::Host(format!("the kernel makes no pipe: {error}")))?;
    let mut report = Some(File::from(writer));
    let launch = || Launch {
        compiled: &learner,
        policy: "learn".to_owned(),
        vmm: &args.vmm,
        events: None,
        watched: ReasonMask::of(Revision::Mainline, &[ExitReason::Invalid]),
        report: report.take().map_or(Report::None, Report::Page),
        at_open_door: AtOpenDoor::Refuse,
    };
    let status = parent::run(launch, args.until.as_ref())?;
    drop(report);
    let mut bytes = Vec::new();
    let most = Layout::largest() as u64;
    let read = File::from(reader).take(most).read_to_end(&mut bytes);
    if bytes.is_empty() && (125..=127).contains(&status) {
        // The child has said why.
        return Ok(Answer::Status(status));
    }
    let is_lost = |why: &str| {
        Failure::Host(format!(
            "{why}; what the run showed is lost, and no policy was written"
        ))
    };
    if read.is_err() || bytes.is_empty() {
        return Err(is_lost("the process that watches the VMM was killed"));
    }
    let snapshot = Snapshot::new(&bytes)
        .map_err(|bad| is_lost(&format!("the VMM has damaged the run's state page: {bad}")))?;
    if snapshot.vms_guarded() == 0 {
        say(&format!(
            "the VMM made no VM, so there is nothing to learn from; {} was not written",
            named::shown(&args.output)
        ));
        return Ok(Answer::Status(match status {
            0 => EXIT_NOT_BEHIND,
            status => status,
        }));
    }
    written(args, &host, &snapshot, status)
}

/// Writes the policy, and says what is in it.
fn written(
    args: &LearnArgs,
    host: &HostCaps,
    snapshot: &Snapshot,
    status: u8,
) -> Result<Answer, Failure> {
    let Sightings { seen, without_fate } = sightings::of(snapshot);
    let mut notes = Notes::default();
    let overflow = snapshot.others();
    if overflow > 0 {
        notes.missing.push(format!(
            "NOT ALL of the guest's accesses are in here: {overflow} found no room in the table of first accesses."
        ));
    }
    if without_fate > 0 {
        notes.missing.push(format!(
            "{without_fate} kinds of accesses are left out, because nothing shows if KVM knows their MSRs: the table was full."
        ));
    }
    let merged = Old::read(args).and_then(|old| {
        let learnt = old.with(&seen, &notes)?;
        Ok((old, learnt))
    });
    let (old, learnt) = merged.inspect_err(|_| show_alone(&seen, &notes))?;
    put(args, &old, &learnt)?;
    tell(args, host, &learnt, snapshot);
    Ok(Answer::Status(if overflow > 0 { NOT_ALL } else { status }))
}

/// Shows what a run adds to no policy, since the policy of `--merge` cannot be used any more.
fn show_alone(seen: &[Sighting], notes: &Notes) {
    let empty = Source::new("learnt", EMPTY);
    if let Ok(learnt) = learn(&empty, &mut NoIncludes, seen, notes) {
        say(
            "the policy of --merge cannot be used; what the run shows is shown here instead, as a policy of its own:",
        );
        crate::results::talk(&learnt.text);
    }
}

/// The policy that is added to.
struct Old {
    source: Source,
    /// The place of the policy of `--merge`, from which its includes are looked up.
    place: Option<Place>,
}

impl Old {
    /// Reads the policy of `--merge`.
    ///
    /// # Errors
    /// The policy cannot be read, or has mistakes, or includes files that the new policy would not find.
    fn read(args: &LearnArgs) -> Result<Self, Failure> {
        let Some(merge) = &args.merge else {
            let source = Source::new(&output::name(args), EMPTY);
            return Ok(Self {
                source,
                place: None,
            });
        };
        let input = Input::read(merge)?;
        let (_, included) = input.compiled_with_files(None)?;
        if let Place::File { folder, .. } = &input.place
            && !included.is_empty()
            && folder_of(folder)? != folder_of(&folder_behind(args)?)?
        {
            let file = named::shown(merge);
            return Err(Failure::Usage(format!(
                "{file} includes files, which are looked up from its own folder, so the new policy would include others; name a file in the folder of {file} with -o"
            )));
        }
        let source = input.source()?;
        Ok(Self {
            source,
            place: Some(input.place),
        })
    }

    fn with(&self, seen: &[Sighting], notes: &Notes) -> Result<Learnt, Failure> {
        let learnt = match &self.place {
            Some(place) => {
                let mut files = Files::from(&self.source, place);
                learn(&self.source, &mut files, seen, notes)
            }
            None => learn(&self.source, &mut NoIncludes, seen, notes),
        };
        learnt.map_err(|error| match error {
            LearnError::Mistakes(mistakes) => Failure::Mistakes(mistakes),
            error => Failure::Refused(error.to_string()),
        })
    }
}

/// Returns the folder of the new policy's file, or the working folder for standard output.
fn folder_behind(args: &LearnArgs) -> Result<PathBuf, Failure> {
    let path = &*args.output;
    if is_standard(args) {
        return Ok(PathBuf::new());
    }
    match links::follow(path) {
        Ok(Target::Path(path) | Target::Open(path)) => Ok(links::folder(&path).to_owned()),
        Err(error) => Err(not_found(path, &error)),
    }
}

/// Returns a folder's path without links. The empty path is the working folder.
fn folder_of(folder: &Path) -> Result<PathBuf, Failure> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    folder
        .canonicalize()
        .map_err(|error| not_found(folder, &error))
}

fn not_found(path: &Path, error: &io::Error) -> Failure {
    Failure::Input {
        what: named::name(path),
        why: format!("cannot be found: {error}"),
    }
}

/// Returns the policy under which a guest is watched on this host.
fn learner(host: &HostCaps) -> Result<Compiled, Failure> {
    let mut text = LEARNER.to_owned();
    if host.ignore_msrs() != IgnoreMsrs::On {
        text.push_str(UNKNOWN);
    }
    let resolved =
        parse(&Source::new("learner", &text), &mut NoIncludes).map_err(Failure::Mistakes)?;
    compile(resolved).map_err(|error| Failure::Refused(error.to_string()))
}

/// Says on standard error what was learnt, and what to do next.
fn tell(args: &LearnArgs, host: &HostCaps, learnt: &Learnt, snapshot: &Snapshot) {
    let vms = usize::try_from(snapshot.vms_guarded()).unwrap_or(usize::MAX);
    let vms = count(vms, "VM", "VMs");
    tell_learnt(
        args,
        learnt,
        &format!("a run with {vms}"),
        &format!("the last one with {vms}"),
    );
    if host.ignore_msrs() == IgnoreMsrs::On {
        say(
            "this host's kvm has ignore_msrs=1, so MSRs that KVM does not know cannot be told from others; they are allowed",
        );
    }
    if snapshot.others() > 0 {
        say(&format!(
            "the policy is not all: {} accesses found no room in the table; the guest may be scanning MSRs",
            snapshot.others()
        ));
    }
    let file = word(args.output.as_os_str());
    let vmm: Vec<_> = args.vmm.iter().map(|one| word(one)).collect();
    let vmm = vmm.join(" ");
    say(&format!(
        "next:\n  msrgate check {file}\n  msrgate exec --audit {file} -- {vmm}\n  msrgate exec {file} -- {vmm}"
    ));
}

/// Says what was added to the policy, and what the policy goes on to refuse. `first` and `last` are words for the
/// only run, and for the last one of several.
fn tell_learnt(args: &LearnArgs, learnt: &Learnt, first: &str, last: &str) {
    let file = output::name(args);
    let accesses = |number| count(number, "kind of access", "kinds of accesses");
    let added = match (learnt.added.len(), learnt.unknown.len()) {
        (0, 0) => "which added nothing".to_owned(),
        (more, 0) => format!("which added {}", accesses(more)),
        (more, unknown) => format!(
            "which added {}, and {} that got #GP without a policy, too",
            accesses(more),
            accesses(unknown)
        ),
    };
    say(&match learnt.runs {
        1 => format!("{file} was learnt from {first}, {added}"),
        runs => format!(
            "{file} was learnt from {runs} runs, {last}, {added}{}",
            match learnt.runs_without_news {
                0 | 1 => String::new(),
                several => format!("; the last {several} runs added nothing"),
            }
        ),
    });
    for kept in &learnt.kept {
        say(&format!("not added: {}", kept_in_words(kept)));
    }
}

/// Returns the access that the policy goes on to refuse, with the reason.
pub(super) fn kept_in_words(kept: &Kept) -> String {
    let by = match &kept.by {
        KeptBy::Entry { file, place, key } => {
            format!(
                "{}:{} refuses it: {}",
                one_line(file),
                place.line,
                one_line(key)
            )
        }
        KeptBy::ByHand { file, place, key } => {
            format!(
                "change {}:{} by hand: {}",
                one_line(file),
                place.line,
                one_line(key)
            )
        }
        KeptBy::KeysTaken => {
            "every name and spelling of this MSR is a key already; change one of these entries"
                .to_owned()
        }
        _ => "only the policy's default decides it".to_owned(),
    };
    format!(
        "a {} of {}; {by}",
        kept.access,
        registers::titled(kept.index)
    )
}

/// Returns an argument as a word of a shell's command line.
pub(super) fn word(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let quoted = shlex::try_quote(&text);
    quoted.map_or_else(|_| text.to_string(), Cow::into_owned)
}

/// Runs the child's part: it becomes the VMM, or returns the exit status of the failure.
fn begin(launch: Launch<'_>) -> u8 {
    let failure = match exec::launch(launch) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    crate::output::say(&failure);
    match failure {
        Failure::NotRun { status, .. } => status,
        _ => EXIT_NOT_BEHIND,
    }
}
