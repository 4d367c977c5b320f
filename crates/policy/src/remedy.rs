//! Remedies: entries that a policy needs so that an included entry no longer loosens something.

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

/// Entries to be pasted into the policy together. They replace the included entries of the same
/// MSRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    pub(crate) lines: Vec<Line>,
    /// The policy's name.
    file: String,
}

/// One entry of a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The entry, as a line of the policy's text.
    pub(crate) text: String,
    /// The `cpu` of the `[[when]]` that has to contain the entry.
    pub(crate) cpu: Option<String>,
    /// The line of the policy that the entry replaces: it already has an entry of these MSRs.
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

/// The action of a line in one direction, with its origin. If two lines contradict each other on a
/// processor, the one with the lesser origin gives way.
#[derive(Clone, Copy)]
struct Said<'a> {
    action: &'a Action,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// The wider entry, which is loosened.
    Limit,
    /// An entry that holds for all processors, and that a line of a `[[when]]` replaces there.
    General,
    /// An included entry of the same processors.
    Here,
    /// An entry of the policy itself.
    Own,
}

/// The loosest action that a remedy may give to some MSRs.
#[derive(Clone, Copy)]
pub(crate) enum Limit<'a> {
    /// The action of a wider entry that is loosened.
    Loosened(&'a Action),
    /// The action of a wider entry that is loosened in the other direction only. An included entry
    /// may still be looser if a narrower entry hides it. The line then inherits instead of
    /// repeating the action.
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

/// The actions of one entry, with the processors on which it holds.
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

    /// Returns the processors of an entry's `[[when]]`.
    fn place(&self, entry: &Entry) -> Place<'p> {
        let when = entry.when?;
        Some(self.policy.whens[when.number()].cpus())
    }

    /// Returns the processors for the line against `loose`, which loosens `fixed`. Only an entry
    /// for the same processors can replace an entry of a `[[when]]`.
    pub(crate) fn base(&self, loose: &Entry, fixed: &Entry) -> Place<'p> {
        self.place(loose).or(self.place(fixed))
    }

    /// Returns the entries that replace `loose` and the other included entries of its MSRs.
    ///
    /// There is one entry for each of the processors in `bases`, and one for each further place
    /// with an entry of these MSRs that would contradict it. No entry is looser than `limits` in
    /// either direction; otherwise the entries repeat the actions that hold already. An entry
    /// inherits if another entry contradicts its action: the included entries are replaced all the
    /// same.
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

    /// Returns true if an included entry with the MSRs of `one` has this place.
    pub(crate) fn has_included(&self, one: &Entry, place: Place<'p>) -> bool {
        let mut all = self.of_msrs(one).map(|(_, entry)| entry);
        all.any(|entry| entry.source() != OWN && self.place(entry) == place)
    }

    /// Returns true if an entry of one of these places replaces this one.
    fn is_replaced(&self, id: EntryId, places: &[Place<'p>]) -> bool {
        let mut by = self.overrides.of_entry(id);
        by.any(|by| places.contains(&self.place(self.policy.entry(by))))
    }

    /// Returns the line for some processors.
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

    /// Returns the actions of entries of this place that no entry of `replacing` replaces, and
    /// true if one of these entries is the policy's own.
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

    /// Returns the processors of an entry that contradicts a row and may have a line of its own.
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

    /// Makes lines inherit if they contradict a line of another `[[when]]`, or an entry of the
    /// policy that stays.
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

/// The bounds of the lines of one remedy.
struct Bounds<'b, 'p> {
    bases: &'b [Place<'p>],
    limits: Limits<'p>,
    /// True, by direction, if a line with a new action would contradict an entry that overlaps it
    /// in part.
    is_crossed: [bool; 2],
}

impl<'p> Bounds<'_, 'p> {
    /// Returns the action of a line, where `found` holds so far.
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
            // An exception in the policy's own text is intended.
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

/// Returns true if some processor belongs to both places.
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
    // Once from the left and once from the right: a range that ends within another begins before
    // it.
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

/// Returns the MSRs into which another range reaches that begins before them and ends before they
/// do.
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

/// Returns the limit, or a refusal if the limit's action is not known to be sound for these MSRs.
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
