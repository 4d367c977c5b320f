//! Remedies: entries that a policy needs so that an included entry no longer loosens a wider entry
//! or a final entry.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{
    Action, Comparison, CpuSet, EntryId, MsrRange, MsrSet, forward, one_line, shown_name,
};

use crate::layout::{self, Value};
use crate::overrides::Overrides;
use crate::policy::{Entry, OWN, Policy, Replaces};
use crate::print;

/// Entries to be pasted into the policy together. The pasted entries replace the included entries
/// of the same MSRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    pub(crate) lines: Vec<Line>,
    /// The name of the policy's file, into which the entries are to be pasted.
    file: String,
}

/// One entry of a remedy, to be pasted as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The entry, as a line of the policy's text.
    pub(crate) text: String,
    /// The `cpu` of the `[[when]]` that has to contain the entry.
    pub(crate) cpu: Option<String>,
    /// The number of the policy's line that the entry replaces, if the policy already has an entry
    /// for these MSRs.
    pub(crate) instead: Option<u32>,
}

impl Remedy {
    /// Returns the entries, each as a line of a policy's text.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|line| &*line.text)
    }
}

/// The processors of an entry: those of its `[[when]]`; `None` for all.
type Place<'p> = Option<&'p CpuSet>;

/// The action of a remedy's line in one direction, with the origin of the action. If two lines
/// contradict each other on a processor, the line whose action has the lesser [`Origin`] inherits
/// instead.
#[derive(Clone, Copy)]
struct Said<'a> {
    action: &'a Action,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// The action is that of the wider entry, which an included entry loosens.
    Limit,
    /// The action is that of an entry for all processors. A line of a `[[when]]` replaces the entry
    /// on the processors of the `[[when]]`.
    General,
    /// The action is that of an included entry for the same processors as the line.
    Here,
    /// The action is that of an entry of the policy itself.
    Own,
}

/// The loosest action that a remedy may give to some MSRs.
#[derive(Clone, Copy)]
pub(crate) enum Limit<'a> {
    /// The action of a wider entry that a narrower entry loosens in this direction.
    Loosened(&'a Action),
    /// The action of a wider entry that is loosened in the other direction only. A narrower entry
    /// may hide an included entry that would loosen this direction, too. A remedy's line then
    /// inherits this direction instead of repeating the looser action.
    Whole(&'a Action),
}

/// The limits of both directions, indexed by [`Access`]; `None` where a direction has no limit.
pub(crate) type Limits<'a> = [Option<Limit<'a>>; 2];

impl<'a> Limit<'a> {
    pub(crate) const fn action(self) -> &'a Action {
        match self {
            Self::Loosened(action) | Self::Whole(action) => action,
        }
    }
}

/// A line of a remedy: its action in each direction, and the processors on which it holds.
#[derive(Clone, Copy)]
struct Row<'p> {
    place: Place<'p>,
    says: [Option<Said<'p>>; 2],
}

/// The entries of a policy by their MSRs. An `override` replaces all included entries of the same
/// MSRs.
pub(crate) struct Remedies<'p> {
    policy: &'p Policy,
    overrides: &'p Overrides,
    by_msrs: HashMap<&'p MsrSet, Vec<EntryId>>,
    /// The MSRs of entries that overlap another entry in part, indexed by [`Access`].
    crossed: [HashSet<&'p MsrSet>; 2],
}

impl<'p> Remedies<'p> {
    pub(crate) fn new(policy: &'p Policy, overrides: &'p Overrides) -> Self {
        let mut by_msrs = HashMap::<_, Vec<_>>::new();
        for id in policy.ids() {
            by_msrs.entry(policy.entry(id).msrs()).or_default().push(id);
        }
        Self {
            policy,
            overrides,
            by_msrs,
            crossed: Access::ALL.map(|access| crossed(policy, access)),
        }
    }

    /// Returns the processors of an entry's `[[when]]` section. `None`: the entry holds on all
    /// processors.
    fn place(&self, entry: &Entry) -> Place<'p> {
        let when = entry.when?;
        Some(self.policy.whens[when.number()].cpus())
    }

    /// Returns the processors for the line that stops `loose` from loosening `fixed`: those of
    /// `loose`, or those of `fixed` if `loose` holds on all. Only a line for the same processors
    /// can replace an entry of a `[[when]]`.
    pub(crate) fn base(&self, loose: &Entry, fixed: &Entry) -> Place<'p> {
        self.place(loose).or(self.place(fixed))
    }

    /// Returns the entries that replace `loose` and the other included entries of its MSRs.
    ///
    /// There is one new entry for each set of processors in `bases`. There is one more new entry
    /// for each further `[[when]]` whose entry for these MSRs would contradict a new entry. The new
    /// entries repeat the actions that hold already, except for actions that are looser than
    /// `limits`. If another entry contradicts a new entry in one direction, the new entry inherits
    /// that direction. The new entry replaces the included entries nevertheless.
    pub(crate) fn against(
        &self,
        loose: &'p Entry,
        bases: &[Place<'p>],
        limits: Limits<'p>,
    ) -> Remedy {
        let limits = limits.map(|limit| {
            limit.map(|limit| match limit {
                Limit::Loosened(action) => Limit::Loosened(possible(loose, action)),
                Limit::Whole(action) => Limit::Whole(action),
            })
        });
        let limits = Bounds {
            bases,
            limits,
            is_crossed: self.crossed.each_ref().map(|all| all.contains(&loose.msrs)),
        };
        let mut rows: Vec<_> = bases
            .iter()
            .map(|&place| self.row(loose, place, &limits))
            .collect();
        while let Some(place) = self.contradicting(loose, &rows) {
            rows.push(self.row(loose, place, &limits));
        }
        self.reconcile(loose, &mut rows);
        rows.sort_by_key(|row| row.place.is_some());
        let lines = rows.iter().map(|row| self.line(loose, row));
        Remedy {
            lines: lines.collect(),
            file: shown_name(self.policy.source().name()),
        }
    }

    /// Returns the entries that have the same MSRs as `one`.
    fn of_msrs(&self, one: &Entry) -> impl Iterator<Item = (EntryId, &'p Entry)> {
        let all = self.by_msrs.get(one.msrs()).into_iter().flatten();
        all.map(|&id| (id, self.policy.entry(id)))
    }

    /// Returns true if there is an included entry with the MSRs of `one` and for the processors
    /// `place`.
    pub(crate) fn has_included(&self, one: &Entry, place: Place<'p>) -> bool {
        let mut all = self.of_msrs(one).map(|(_, entry)| entry);
        all.any(|entry| entry.source() != OWN && self.place(entry) == place)
    }

    /// Returns true if an entry for one of these sets of processors replaces this entry.
    fn is_replaced(&self, id: EntryId, places: &[Place<'p>]) -> bool {
        let mut by = self.overrides.of_entry(id);
        by.any(|by| places.contains(&self.place(self.policy.entry(by))))
    }

    /// Returns the remedy's line for the processors `place`.
    fn row(&self, loose: &Entry, place: Place<'p>, bounds: &Bounds<'_, 'p>) -> Row<'p> {
        let is_base = bounds.bases.contains(&place);
        let said = |access: Access| {
            let here = self.said(loose, access, place, &[place]);
            let found = match (here, place) {
                (Some((action, true)), _) => Some((action, Origin::Own)),
                (Some((action, false)), _) => Some((action, Origin::Here)),
                (None, Some(_)) => {
                    let general = self.said(loose, access, None, &[None, place]);
                    general.map(|(action, _)| (action, Origin::General))
                }
                (None, None) => None,
            };
            bounds.bounded(found, access, is_base)
        };
        Row {
            place,
            says: Access::ALL.map(said),
        }
    }

    /// Returns the action of an entry for the processors `place`, and true if the entry is the
    /// policy's own. An entry of the policy's own text is preferred. An entry does not count if an
    /// entry for one of the processor sets in `replacing` replaces it.
    fn said(
        &self,
        loose: &Entry,
        access: Access,
        place: Place<'p>,
        replacing: &[Place<'p>],
    ) -> Option<(&'p Action, bool)> {
        let speaking = self.of_msrs(loose).filter_map(|(id, entry)| {
            let is_here = self.place(entry) == place && !self.is_replaced(id, replacing);
            let action = entry.action(access).filter(|_| is_here)?;
            Some((action, entry.source() == OWN))
        });
        speaking.max_by_key(|(_, is_own)| *is_own)
    }

    /// Returns the processors of an entry that contradicts a line of the remedy, and that needs a
    /// line of its own.
    fn contradicting(&self, loose: &Entry, rows: &[Row<'p>]) -> Option<Place<'p>> {
        let mut others = self.of_msrs(loose).filter(|&(id, entry)| {
            let place = self.place(entry);
            // A line of a `[[when]]` replaces a line that holds for all processors.
            let is_other = place.is_some() && rows.iter().all(|row| row.place != place);
            is_other && !self.is_replaced(id, &[place])
        });
        let other = others.find(|(_, entry)| {
            let is_own = entry.source() == OWN;
            rows.iter().any(|row| {
                let may_stay = match row.place {
                    None => is_own && entry.replaces == Replaces::Included,
                    Some(_) => is_own,
                };
                !may_stay && may_meet(row.place, self.place(entry)) && disagree(row, entry)
            })
        });
        other.map(|(_, entry)| self.place(entry))
    }

    /// Changes the action of a line to `inherit` in each direction in which the line contradicts a
    /// line of another `[[when]]`, or an entry that stays in the policy.
    fn reconcile(&self, loose: &Entry, rows: &mut Vec<Row<'p>>) {
        let own = self.of_msrs(loose).filter_map(|(_, entry)| {
            let place = self.place(entry);
            let stays = entry.source() == OWN && place.is_some();
            let stays = stays && rows.iter().all(|row| row.place != place);
            let said = |access: Access| {
                let action = entry.action(access)?;
                let origin = Origin::Own;
                Some(Said { action, origin })
            };
            stays.then(|| Row {
                place,
                says: Access::ALL.map(said),
            })
        });
        let own: Vec<_> = own.collect();
        let before = [&rows[..], &own].concat();
        for row in rows.iter_mut().filter(|row| row.place.is_some()) {
            let met = before.iter().filter(|other| {
                other.place.is_some()
                    && other.place != row.place
                    && may_meet(other.place, row.place)
            });
            for other in met {
                for (said, against) in row.says.iter_mut().zip(other.says) {
                    let gives_way = |said: &Said<'_>| {
                        against.is_some_and(|against| {
                            said.action != against.action && said.origin <= against.origin
                        })
                    };
                    *said = said.filter(|said| !gives_way(said));
                }
            }
        }
    }

    fn line(&self, loose: &Entry, row: &Row<'_>) -> Line {
        let says = |access: Access| {
            let said = row.says[access as usize];
            print::action(said.map(|said| said.action))
        };
        let fields = [
            ("read", says(Access::Read)),
            ("write", says(Access::Write)),
            ("override", Value::Bare("true".to_owned())),
        ];
        let fields = fields.map(|(key, value)| (key.to_owned(), value));
        let body = Value::Table(fields.into()).line().unwrap_or_default();
        let mut own = self.of_msrs(loose).map(|(_, entry)| entry);
        let there = own.find(|one| one.source() == OWN && self.place(one) == row.place);
        Line {
            text: one_line(&format!("{} = {body}", layout::key(&loose.key))),
            cpu: row.place.and_then(|cpus| print::cpus(cpus).line()),
            instead: there.map(|one| one.place.line),
        }
    }
}

/// The conditions that limit the actions of one remedy's lines.
struct Bounds<'b, 'p> {
    bases: &'b [Place<'p>],
    limits: Limits<'p>,
    /// For each direction, true if a line with a new action would contradict an entry that overlaps
    /// the line in part.
    is_crossed: [bool; 2],
}

impl<'p> Bounds<'_, 'p> {
    /// Returns the action of a line in one direction. `found` is the action that holds before the
    /// remedy, if there is one.
    fn bounded(
        &self,
        found: Option<(&'p Action, Origin)>,
        access: Access,
        is_base: bool,
    ) -> Option<Said<'p>> {
        let limit = self.limits[access as usize];
        let loosened = limit.and_then(|limit| match limit {
            Limit::Loosened(action) => Some(action),
            Limit::Whole(_) => None,
        });
        if let Some((action, origin)) = found {
            let is_kept = limit.is_none_or(|limit| no_looser(action, limit.action()));
            // An exception in the policy's own text is intended, so its action is kept.
            let is_meant = origin == Origin::Own && (!is_base || loosened.is_none());
            if is_kept || is_meant {
                return Some(Said { action, origin });
            }
        } else if !is_base {
            return None;
        }
        let limit = loosened.filter(|_| !self.is_crossed[access as usize]);
        limit.map(|action| Said {
            action,
            origin: Origin::Limit,
        })
    }
}

fn no_looser(this: &Action, that: &Action) -> bool {
    this.compared_with(that) == Comparison::NoLooser
}

fn disagree(row: &Row<'_>, entry: &Entry) -> bool {
    Access::ALL.into_iter().any(|access| {
        let (said, other) = (row.says[access as usize], entry.action(access));
        matches!((said, other), (Some(said), Some(other)) if said.action != other)
    })
}

/// Returns true if some processor may belong to both sets of processors.
fn may_meet(one: Place<'_>, other: Place<'_>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return true;
    };
    let vendors = match (&one.vendor, &other.vendor) {
        (Some(one), Some(other)) => one.iter().any(|vendor| other.contains(vendor)),
        _ => true,
    };
    let numbers = |one: &Option<Vec<RangeInclusive<u32>>>, other: &Option<Vec<_>>| {
        let (Some(one), Some(other)) = (one, other) else {
            return true;
        };
        let meets = |one: &RangeInclusive<u32>, other: &RangeInclusive<u32>| {
            one.start() <= other.end() && other.start() <= one.end()
        };
        one.iter()
            .any(|one| other.iter().any(|other| meets(one, other)))
    };
    vendors
        && numbers(&one.family, &other.family)
        && numbers(&one.model, &other.model)
        && numbers(&one.stepping, &other.stepping)
}

/// Returns the MSRs of entries that overlap another entry in part; only entries with an action in
/// this direction count.
fn crossed(policy: &Policy, access: Access) -> HashSet<&MsrSet> {
    let speaking = policy
        .entries()
        .iter()
        .filter(|one| one.action(access).is_some());
    let (ranges, groups): (Vec<_>, Vec<_>) =
        speaking.partition(|one| one.msrs().as_range().is_some());
    let mut crossed = HashSet::new();
    for group in &groups {
        for other in ranges.iter().chain(&groups) {
            let (one, other) = (group.msrs(), other.msrs());
            let shared: u64 = one.shared(other).map(MsrRange::count).sum();
            if shared > 0 && shared < one.count() && shared < other.count() {
                crossed.extend([one, other]);
            }
        }
    }
    let ranges: Vec<_> = ranges.into_iter().map(Entry::msrs).collect();
    // Each run finds one of two ranges that overlap in part: the range that the run meets second.
    // So one run goes from the left, and one from the right.
    crossed.extend(ended_within(&ranges, |msrs| {
        let range = msrs.as_range()?;
        Some((
            i64::from(range.first().get()),
            i64::from(range.last().get()),
        ))
    }));
    crossed.extend(ended_within(&ranges, |msrs| {
        let range = msrs.as_range()?;
        Some((
            -i64::from(range.last().get()),
            -i64::from(range.first().get()),
        ))
    }));
    crossed
}

/// Returns the ranges that overlap an earlier range in part: the earlier range begins before the
/// returned one, and ends within it.
fn ended_within<'p>(
    all: &[&'p MsrSet],
    ends: impl Fn(&MsrSet) -> Option<(i64, i64)>,
) -> Vec<&'p MsrSet> {
    let mut order: Vec<_> = all
        .iter()
        .filter_map(|&msrs| ends(msrs).map(|ends| (ends, msrs)))
        .collect();
    order.sort_by_key(|&((first, last), _)| (first, Reverse(last)));
    let mut open = BTreeSet::new();
    let mut crossed = Vec::new();
    for ((first, last), msrs) in order {
        while open.first().is_some_and(|&end| end < first) {
            open.pop_first();
        }
        if open.first().is_some_and(|&end| end < last) {
            crossed.push(msrs);
        }
        open.insert(last);
    }
    crossed
}

/// Returns the limit, or deny if the limit's action needs forwarding, and forwarding is not known
/// to be safe for these MSRs.
fn possible<'a>(loose: &Entry, limit: &'a Action) -> &'a Action {
    let mut msrs = loose.msrs.ranges().iter();
    let is_forwarded = msrs.all(|range| {
        let mut indices = range.first().get()..=range.last().get();
        indices.all(|index| forward(MsrIndex::new(index)).is_some())
    });
    if limit.needs_forwarding() && !is_forwarded {
        &Action::Deny
    } else {
        limit
    }
}

/// Writes "write `…` below `[msrs]` of policy.toml" for each line.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        for (number, Line { text, cpu, instead }) in self.lines.iter().enumerate() {
            if number > 0 {
                f.write_str("; and ")?;
            }
            match (instead, cpu) {
                (Some(number), _) => {
                    write!(f, "write `{text}` in place of line {number} of {file}")?;
                }
                (None, None) => write!(f, "write `{text}` below `[msrs]` of {file}")?,
                (None, Some(cpu)) => write!(
                    f,
                    "write `{text}` in {file}, below `[when.msrs]` of a `[[when]]` with `cpu = {cpu}`"
                )?,
            }
        }
        Ok(())
    }
}
