//! What a filter has to say of each of 2^32 MSRs in each direction: what is packed, and what the
//! packed filter is compared with.

use std::fmt;

use msrgate_filter::{Access, Filter, MsrIndex, Verdict};

use crate::equality;
use crate::msrs::MsrRange;
use crate::pack::{PackError, pack};

/// Consecutive MSRs of which a filter says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) msrs: MsrRange,
    /// `None` where nothing asks it: x2APIC registers (S3.1).
    pub(crate) verdict: Option<Verdict>,
}

/// For each direction, stretches that cover all MSRs once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    by_access: [Vec<Stretch>; 2],
    default: Verdict,
}

impl Verdicts {
    /// What these say, which cover all MSRs of their direction once, in order; `None` is for x2APIC.
    /// `default` is that of the filter that is to be made.
    pub(crate) fn new<I>(default: Verdict, of: impl Fn(Access) -> I) -> Self
    where
        I: Iterator<Item = (MsrRange, Option<Verdict>)>,
    {
        Self {
            by_access: Access::ALL.map(|access| joined(of(access))),
            default,
        }
    }

    /// The stretches of one direction.
    pub(crate) fn of(&self, access: Access) -> &[Stretch] {
        &self.by_access[access as usize]
    }

    /// What the filter is to say where no range does.
    pub(crate) const fn default(&self) -> Verdict {
        self.default
    }

    /// Whether what is wanted of one access is other than the default.
    pub(crate) fn differs(&self, stretch: &Stretch) -> bool {
        stretch
            .verdict
            .is_some_and(|verdict| verdict != self.default)
    }

    /// What is wanted of one access.
    pub(crate) fn at(&self, index: MsrIndex, access: Access) -> Option<Verdict> {
        let stretches = self.of(access);
        let place = stretches.partition_point(|stretch| stretch.msrs.last() < index);
        stretches.get(place).and_then(|stretch| stretch.verdict)
    }

    /// The filter that decides as these say, in the fewest ranges, compared with them over all 2^32
    /// MSRs in both directions.
    ///
    /// # Errors
    /// They do not fit a filter, or the comparison failed.
    pub fn pack(&self) -> Result<Filter, CompileError> {
        let filter = pack(self).map_err(CompileError::Pack)?;
        match self.first_difference(&filter) {
            None => Ok(filter),
            Some((index, access, wanted)) => Err(CompileError::Differs {
                index,
                access,
                wanted,
            }),
        }
    }

    /// The first access that `filter` does not decide as wanted.
    pub(crate) fn first_difference(&self, filter: &Filter) -> Option<(MsrIndex, Access, Verdict)> {
        let of = |access| {
            let stretches = self.of(access).iter();
            stretches.filter_map(move |one| Some((one.msrs, access, one.verdict?)))
        };
        equality::first_difference(Access::ALL.into_iter().flat_map(of), filter)
    }
}

/// What became no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompileError {
    /// No filter can express it.
    Pack(PackError),
    /// The filter that was made is not what the policy says: a defect of this program, found by
    /// its check of all accesses. Nothing was installed.
    Differs {
        /// An MSR on which they differ.
        index: MsrIndex,
        /// In this direction.
        access: Access,
        /// What the policy says.
        wanted: Verdict,
    },
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pack(error) => fmt::Display::fmt(error, f),
            Self::Differs {
                index,
                access,
                wanted,
            } => write!(
                f,
                "a {access} of {index} is not decided as the policy says ({wanted:?}); this is a defect of msrgate, please report it with the policy"
            ),
        }
    }
}

impl std::error::Error for CompileError {}

/// The same, with neighbours of one verdict made one.
fn joined(stretches: impl Iterator<Item = (MsrRange, Option<Verdict>)>) -> Vec<Stretch> {
    let mut joined: Vec<Stretch> = Vec::new();
    for (msrs, verdict) in stretches {
        if let Some(last) = joined.last_mut()
            && last.verdict == verdict
            && let Some(both) = MsrRange::new(last.msrs.first(), msrs.last())
        {
            last.msrs = both;
        } else {
            joined.push(Stretch { msrs, verdict });
        }
    }
    joined
}
