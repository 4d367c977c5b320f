//! `msrgate exec`: runs an unmodified VMM under a policy.
//!
//! This process compiles the policy, writes it into the run's state page, sets a seccomp filter by which
//! only the library can make VMs, and becomes the VMM by execve(2). Two parts of msrgate remain: the library
//! inside the VMM, and the watcher, a small process that reports refused accesses during the run and at its
//! end.

mod appended;
mod door;
mod elf;
mod embedded;
mod events;
mod handover;
mod lease;
mod library;
mod loadable;
mod page;
mod process;
mod speaker;
mod summary;
mod supported;
mod watch;

use std::env;
use std::ffi::OsString;
use std::path::Path;

use msrgate_filter::ReasonMask;
use msrgate_kvm::gate::{Gate, GateError};
use msrgate_kvm::{HostCaps, IgnoreMsrs};
use msrgate_policy::{Compiled, Mode, Program, one_line};
use msrgate_state::NewRun;

use crate::cli::ExecArgs;
use crate::failure::Failure;
use crate::files::Inode;
use crate::load;
use crate::named;
use crate::named::name;

use door::Door;
use events::Events;
use page::StateFile;
use process::Vmm;
pub(super) use process::child;
pub(super) use watch::Report;
use watch::Watch;

/// The document that says what `exec` guards and what it does not.
const GUIDE: &str = "docs/wrapping-vmms.md";

/// Prepares the run, and replaces this process by the VMM. The function returns only if that failed: no file or
/// process of the run is then left.
pub(super) fn run(args: &ExecArgs) -> Failure {
    match start(args) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

/// A type without a value: on success the VMM has replaced this process.
pub(super) enum Never {}

/// A VMM, and the compiled policy under which it is to run.
pub(super) struct Launch<'a> {
    pub(super) compiled: &'a Compiled,
    /// The policy's name in messages.
    pub(super) policy: String,
    pub(super) vmm: &'a [OsString],
    pub(super) events: Option<Events>,
    /// The exit reasons that are recorded in addition to those that the program needs.
    pub(super) watched: ReasonMask,
    pub(super) report: Report,
    pub(super) at_open_door: AtOpenDoor,
}

/// The treatment of a VMM that does not load msrgate's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOpenDoor {
    /// The VMM cannot make VMs.
    Refuse,
    /// The VMM can make VMs, which run without the policy.
    LetPass,
}

fn start(args: &ExecArgs) -> Result<Never, Failure> {
    let mode = args.audit.then_some(Mode::Audit);
    let (compiled, read) = load::compiled_in(&args.policy, mode)?;
    for (option, file) in [("--events", &args.events), ("--summary", &args.summary)] {
        if let Some(file) = file
            && Inode::behind(file).is_some_and(|there| read.contains(&there))
        {
            return Err(Failure::Usage(format!(
                "{} is a file that the policy was read from; name another file for {option}",
                named::shown(file)
            )));
        }
    }
    let policy = if load::is_standard_input(&args.policy) {
        "standard input".to_owned()
    } else {
        named::shown(&args.policy)
    };
    supported::check(compiled.program(), &policy)?;
    let (events, _new_events) = match &args.events {
        Some(path) => {
            let (file, new) = appended::open(path)?;
            (Some(Events::new(file, path)), new)
        }
        None => (None, None),
    };
    let (report, _new_summary) = match &args.summary {
        Some(path) => {
            let (file, new) = appended::open(path)?;
            (Report::File(file), new)
        }
        None if args.quiet => (Report::None, None),
        None => (Report::StandardError, None),
    };
    launch(Launch {
        compiled: &compiled,
        policy,
        vmm: &args.vmm,
        events,
        watched: ReasonMask::NONE,
        report,
        at_open_door: if args.fail_open {
            AtOpenDoor::LetPass
        } else {
            AtOpenDoor::Refuse
        },
    })
}

/// Starts the run's watcher, and replaces this process by the VMM. The function returns only if that failed: no
/// file or process of the run is then left.
///
/// # Errors
/// The VMM cannot be run under the compiled policy. The error says why.
pub(super) fn launch(launch: Launch<'_>) -> Result<Never, Failure> {
    if env::var_os(page::LIBRARY_VARIABLE).is_some() {
        return Err(Failure::Usage(format!(
            "this is inside of a run of msrgate exec, whose policy holds for all VMs: one run in another is refused ({} is set)",
            page::LIBRARY_VARIABLE
        )));
    }
    let program = launch.compiled.program();
    let vmm = Vmm::find(launch.vmm)?;
    let libc = elf::check(&vmm.path)?;
    let preload = preload(&library::find(libc)?)?;
    let host = HostCaps::probe_without_vm()
        .map_err(|error| Failure::Host(format!("{error}. {}", error.advice())))?;
    // The library makes the same check when the VMM makes its first VM. A VM of our own would take longer than
    // all else here.
    let checked = Gate::new(program.clone(), &host)
        .map_err(|error| Failure::Host(format!("{}: {}", launch.policy, refusal(&error))))?;
    drop(checked);
    let cookie = process::random()?;
    let page = StateFile::new(&NewRun {
        cookie,
        reasons: host.reasons().get(),
        watched: launch.watched.bits() & host.reasons().get(),
        ignore_msrs: match host.ignore_msrs() {
            IgnoreMsrs::Off => 0,
            IgnoreMsrs::On => 1,
            IgnoreMsrs::NotSeen => 2,
        },
        program: &program.encode(),
        has_events: launch.events.is_some(),
    })?;
    let at_open_door = launch.at_open_door;
    let watcher = Watch::new(launch)
        .and_then(|watch| watch.begin(&page))
        .inspect_err(|_| page.remove())?;
    let variables = [
        (page::LIBRARY_VARIABLE, page.path().as_os_str().to_owned()),
        ("LD_PRELOAD", preload),
    ];
    let door = if at_open_door == AtOpenDoor::LetPass {
        say("--fail-open: a VMM that does not load the library runs its VMs without a policy");
        Door::Open
    } else {
        Door::close(cookie).inspect_err(|_| watcher.give_up())?
    };
    // A watcher that has died removes nothing.
    watcher.hand_over(&door).inspect_err(|_| page.remove())?;
    let failure = vmm.become_it(&variables);
    watcher.give_up();
    Err(failure)
}

/// Returns true if msrgate's library can do all that the compiled policy asks for. A policy that asks for
/// more needs a VMM with a gate of its own.
pub(super) fn can_keep(program: &Program) -> bool {
    supported::check(program, "").is_ok()
}

/// Returns the message for a program that cannot be enforced on this host. The error's own text gives advice
/// for the author of a VMM.
fn refusal(error: &GateError) -> String {
    match error {
        GateError::IgnoreMsrsNotSeen => "the policy answers for MSRs that KVM does not know, but kvm.ignore_msrs, which may hide such MSRs, cannot be read: make /sys/module/kvm/parameters/ignore_msrs readable, for instance by mounting /sys in the container".to_owned(),
        other => other.to_string(),
    }
}

/// Returns the value of `LD_PRELOAD` for the VMM: msrgate's library, followed by the libraries that the
/// variable already names.
fn preload(library: &Path) -> Result<OsString, Failure> {
    if let Some(why) = loadable::refusal(library) {
        return Err(Failure::Refused(format!(
            "{}: {why}; name a copy elsewhere by MSRGATE_PRELOAD",
            one_line(&name(library))
        )));
    }
    let mut all = library.as_os_str().to_owned();
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        all.push(":");
        all.push(others);
    }
    Ok(all)
}

/// Prints a sentence to standard error, with `msrgate: ` before it.
pub(super) fn say(text: &str) {
    crate::results::talk(&sentence(text));
}

fn sentence(text: &str) -> String {
    format!("msrgate: {}\n", msrgate_policy::shown(text))
}
