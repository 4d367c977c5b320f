//! A builder of programs from code, without the text of a policy and without register names.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::panic::Location;

use msrgate_filter::{Access, Accesses, Verdict, X2APIC};

use crate::action::{Action, Emulated};
use crate::answer::{Responder, ResponderError};
use crate::layers::{Layers, resolve};
use crate::msrs::MsrRange;
use crate::origin::{EntryId, FileId, Line};
use crate::pack::CompileError;
use crate::program::{Program, ProgramSettings, ResolvedVariant};
use crate::rules::Outcome;
use crate::settings::{Log, Microcode, Mode, Unknown, UnknownAction};

/// A builder that makes a [`Program`] from calls. If two calls cover the same access, the later call
/// applies.
///
/// The [`Origin`](crate::Origin) of a rule is the source line of the call that made it.
///
/// # Examples
/// ```
/// use msrgate_filter::{Access, Accesses, MsrIndex, Verdict};
/// use msrgate_program::{MsrRange, ProgramBuilder};
///
/// let efer = MsrIndex::new(0xc000_0080);
/// let mtrrs = MsrRange::between(MsrIndex::new(0x200), MsrIndex::new(0x20f));
/// let program = ProgramBuilder::new(Verdict::Deny)
///     .allow(efer, Accesses::Both)
///     .allow(mtrrs, Accesses::Read)
///     .value(MsrIndex::new(0x17), 4 << 52)
///     .build()?;
/// let write = program.variants()[0].rule(MsrIndex::new(0x200), Access::Write);
/// assert_eq!(write.action.word(), "deny");
/// # Ok::<_, msrgate_program::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProgramBuilder {
    settings: ProgramSettings,
    default: Action,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    msrs: MsrRange,
    access: Access,
    action: Action,
    at: &'static Location<'static>,
}

impl ProgramBuilder {
    /// Creates a builder of a program that applies `default` to each access that no later call covers.
    /// Refused accesses become events ([`Log::Denied`]).
    #[must_use]
    pub fn new(default: Verdict) -> Self {
        Self::otherwise(match default {
            Verdict::Allow => Action::Allow,
            Verdict::Deny => Action::Deny,
        })
    }

    /// Creates a builder of a program that ends the guest at each access that no later call covers
    /// ([`Action::Kill`]). The kernel's filter refuses these accesses, so without a gate the guest gets #GP.
    /// Refused accesses become events ([`Log::Denied`]).
    #[must_use]
    pub fn kill_by_default() -> Self {
        Self::otherwise(Action::Kill)
    }

    fn otherwise(default: Action) -> Self {
        Self {
            settings: ProgramSettings::default(),
            default,
            entries: Vec::new(),
        }
    }

    /// Sets the name of the program.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Sets the mode of the program: enforce or audit.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.settings.mode = mode;
        self
    }

    /// Sets the log level of the program: it says which accesses become events.
    #[must_use]
    pub fn log(mut self, log: Log) -> Self {
        self.settings.log = log;
        self
    }

    /// Sets the action for MSRs that KVM does not know.
    #[must_use]
    pub fn unknown(mut self, unknown: Unknown) -> Self {
        self.settings.unknown = unknown;
        self
    }

    /// Sets the settings of the emulated microcode device.
    #[must_use]
    pub fn microcode(mut self, microcode: Microcode) -> Self {
        self.settings.microcode = Some(microcode);
        self
    }

    /// Lets KVM handle these accesses.
    #[must_use]
    #[track_caller]
    pub fn allow(self, msrs: impl Into<MsrRange>, accesses: Accesses) -> Self {
        self.each(msrs.into(), accesses, &Action::Allow)
    }

    /// Refuses these accesses: the guest gets #GP.
    #[must_use]
    #[track_caller]
    pub fn deny(self, msrs: impl Into<MsrRange>, accesses: Accesses) -> Self {
        self.each(msrs.into(), accesses, &Action::Deny)
    }

    /// Makes reads of these MSRs return `value`.
    #[must_use]
    #[track_caller]
    pub fn value(self, msrs: impl Into<MsrRange>, value: u64) -> Self {
        self.each(msrs.into(), Accesses::Read, &Action::Value(value))
    }

    /// Makes writes to these MSRs succeed without an effect.
    #[must_use]
    #[track_caller]
    pub fn ignore(self, msrs: impl Into<MsrRange>) -> Self {
        self.each(msrs.into(), Accesses::Write, &Action::Ignore)
    }

    /// Replaces each of these MSRs by an emulated register, one for each vCPU.
    #[must_use]
    #[track_caller]
    pub fn register(self, msrs: impl Into<MsrRange>, register: Emulated) -> Self {
        self.each(msrs.into(), Accesses::Both, &Action::Register(register))
    }

    /// Passes these accesses to the VMM's handler with this name.
    #[must_use]
    #[track_caller]
    pub fn handler(
        self,
        msrs: impl Into<MsrRange>,
        accesses: Accesses,
        name: impl Into<Arc<str>>,
    ) -> Self {
        self.each(msrs.into(), accesses, &Action::Handler(name.into()))
    }

    /// Applies `action` to accesses of one direction, for actions without a method of their own.
    #[must_use]
    #[track_caller]
    pub fn action(self, msrs: impl Into<MsrRange>, access: Access, action: &Action) -> Self {
        let accesses = match access {
            Access::Read => Accesses::Read,
            Access::Write => Accesses::Write,
        };
        self.each(msrs.into(), accesses, action)
    }

    /// Builds the program: packs it into a filter, and compares the filter with the calls over all
    /// 2^32 MSRs in both directions.
    ///
    /// # Errors
    /// - [`BuildError::Direction`]: a call has an action that cannot apply to its direction.
    /// - [`BuildError::X2apic`]: a call contains an x2APIC register.
    /// - [`BuildError::Unknown`]: the setting [`unknown`](Self::unknown) never takes effect, because the
    ///   default refuses accesses to unknown MSRs before KVM finds that it does not know the MSR.
    /// - [`BuildError::Compile`]: the program does not fit a filter.
    /// - [`BuildError::Responder`]: no [`Responder`] can answer for the program.
    pub fn build(self) -> Result<Program, BuildError> {
        self.check()?;
        let (files, lines) = self.places();
        let default = self.default.verdict();
        let example = crate::Cpu::any();
        let variant = ResolvedVariant {
            holds: Vec::new(),
            example: example.clone(),
            rules: resolve(&self, lines),
        };
        let program = Program::new(
            self.settings,
            files,
            Vec::new(),
            default,
            Vec::from([variant]),
        );
        let program = Arc::new(program.map_err(BuildError::Compile)?);
        Responder::new(Arc::clone(&program), &example).map_err(BuildError::Responder)?;
        Ok(Arc::unwrap_or_clone(program))
    }

    #[track_caller]
    fn each(mut self, msrs: MsrRange, accesses: Accesses, action: &Action) -> Self {
        let at = Location::caller();
        for access in Access::ALL {
            if accesses.contain(access) {
                self.entries.push(Entry {
                    msrs,
                    access,
                    action: action.clone(),
                    at,
                });
            }
        }
        self
    }

    fn check(&self) -> Result<(), BuildError> {
        for entry in &self.entries {
            if !entry.action.is_for(entry.access) {
                return Err(BuildError::Direction {
                    action: entry.action.word(),
                    access: entry.access,
                });
            }
            if entry.msrs.first() <= *X2APIC.end() && *X2APIC.start() <= entry.msrs.last() {
                return Err(BuildError::X2apic(entry.msrs));
            }
        }
        let unknown = &self.settings.unknown;
        let answers = [unknown.read, unknown.write] != [UnknownAction::Deny; 2];
        if answers && self.default != Action::Allow {
            return Err(BuildError::Unknown);
        }
        Ok(())
    }

    /// Returns the names of the source files that contain the calls, and the source line of each call.
    fn places(&self) -> (Vec<Box<str>>, Arc<[Line]>) {
        let mut files = Vec::new();
        let mut numbers = BTreeMap::new();
        let lines = self.entries.iter().map(|entry| {
            let file = *numbers.entry(entry.at.file()).or_insert_with(|| {
                files.push(entry.at.file().into());
                FileId::new(u32::try_from(files.len() - 1).unwrap_or(u32::MAX))
            });
            let number = entry.at.line();
            Line { file, number }
        });
        let lines = lines.collect();
        (files, lines)
    }
}

/// Ranks the calls so that the later of two calls decides.
impl Layers for ProgramBuilder {
    fn ranges(&self, access: Access) -> impl Iterator<Item = (EntryId, MsrRange)> {
        let numbered = self.entries.iter().enumerate();
        let spoken = numbered.filter(move |(_, entry)| entry.access == access);
        spoken.map(|(number, entry)| (EntryId::new(number), entry.msrs))
    }

    fn rank(&self, entry: EntryId) -> u64 {
        u64::MAX - entry.number() as u64
    }

    fn outcome(&self, entry: EntryId, _: Access) -> Option<Outcome> {
        let entry = self.entries.get(entry.number())?;
        Some(Outcome {
            action: entry.action.clone(),
            log: self.settings.log,
        })
    }

    fn default(&self) -> Outcome {
        Outcome {
            action: self.default.clone(),
            log: self.settings.log,
        }
    }
}

/// The reason why calls could not be built into a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A call gives this action to accesses of a direction, reads or writes, to which the action cannot
    /// apply.
    Direction {
        /// The word for the action in a policy.
        action: &'static str,
        /// The direction of the accesses.
        access: Access,
    },
    /// A call has this range, which contains x2APIC registers. KVM never filters them (S3.1).
    X2apic(MsrRange),
    /// The setting [`unknown`](ProgramBuilder::unknown) never takes effect, because the default refuses
    /// accesses to unknown MSRs before KVM finds that it does not know the MSR (S5.1).
    Unknown,
    /// The program does not fit a filter.
    Compile(CompileError),
    /// No [`Responder`] can answer for the program.
    Responder(ResponderError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direction { action, access } => {
                write!(f, "the action `{action}` does not apply to a {access}")
            }
            Self::X2apic(msrs) => write!(
                f,
                "{msrs} contains x2APIC registers (0x800..=0x8ff), which KVM never filters (S3.1); leave them out"
            ),
            Self::Unknown => f.write_str(
                "`unknown` has no effect under a default action that refuses, as accesses of unknown MSRs are then refused first (S5.1); use the default action allow",
            ),
            Self::Compile(error) => fmt::Display::fmt(error, f),
            Self::Responder(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for BuildError {}
