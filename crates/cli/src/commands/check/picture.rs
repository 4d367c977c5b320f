//! The picture of a filter: for each cluster of MSRs, a bar of characters, and the numbers of MSRs that are
//! allowed, refused and answered.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use msrgate_filter::{Access, DefaultAction, MAX_RANGES, Range};
use msrgate_policy::{Cell, Cluster, Cpu, Overview, Tally, Variant, overview};
use serde::Serialize;

use crate::cli::Detail;

/// The number of cells of a bar. With this number of cells, a row is [`COLUMNS`] wide.
const CELLS: NonZeroUsize = NonZeroUsize::new(22).expect("not zero");

/// The number of clusters that are drawn, unless the user asks for all.
const SHOWN: usize = 32;

/// The width of a row in columns.
const COLUMNS: usize = 78;

const LEGEND: [&str; 5] = [
    "# allowed",
    "+ some allowed",
    ". refused",
    "? some answered",
    "x x2APIC, unfiltered",
];

/// The arrangement of the picture of all MSRs that `check` draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A row for reads and a row for writes, each with a bar and the numbers of MSRs beside the bar.
    Table,
    /// The numbers of MSRs below the bar, for terminals that are narrower than a row of the table.
    Narrow,
}

impl Layout {
    /// Returns the layout for a terminal of this width; `None` is no terminal.
    pub(super) fn of(width: Option<usize>) -> Self {
        match width {
            Some(width) if width < COLUMNS => Self::Narrow,
            _ => Self::Table,
        }
    }
}

/// The JSON of one filter.
#[derive(Serialize)]
pub(super) struct PackedVariant {
    /// A processor that the filter is for; null for a policy without `[[when]]`.
    cpu: Option<String>,
    ranges: Vec<PackedRange>,
    clusters: Vec<PackedCluster>,
    /// The counts of the MSRs that are in no cluster.
    rest: Tallies,
}

#[derive(Serialize)]
struct PackedRange {
    access: String,
    base: String,
    count: u32,
    allowed: u32,
}

/// A cluster: MSRs that lie close together.
#[derive(Serialize)]
struct PackedCluster {
    first: String,
    last: String,
    /// The indices of the filter's ranges in the cluster; the filter's first range has the index 0.
    ranges: Vec<usize>,
    #[serde(flatten)]
    tallies: Tallies,
}

#[derive(Serialize)]
struct Tallies {
    read: Counts,
    write: Counts,
}

/// The numbers of MSRs that a guest may access, that are refused, that the gate answers, and that KVM never
/// filters.
#[derive(Serialize)]
struct Counts {
    allowed: u64,
    refused: u64,
    answered: u64,
    /// The number of x2APIC registers, which KVM does not check against a filter.
    exempt: u64,
}

/// A variant of a policy's filter to show, with a processor that the variant is for if the policy has
/// `[[when]]`s.
pub(super) struct Shown<'c> {
    pub(super) variant: &'c Variant,
    pub(super) cpu: Option<&'c Cpu>,
}

impl PackedVariant {
    pub(super) fn of(shown: &Shown<'_>) -> Self {
        let variant = shown.variant;
        let Overview { clusters, rest, .. } = overview(variant);
        let clusters = clusters.into_iter().map(|cluster| PackedCluster {
            first: cluster.msrs.first().to_string(),
            last: cluster.msrs.last().to_string(),
            ranges: cluster.ranges,
            tallies: Tallies::of(cluster.tallies),
        });
        Self {
            cpu: shown.cpu.map(ToString::to_string),
            ranges: variant.filter().ranges().iter().map(packed).collect(),
            clusters: clusters.collect(),
            rest: Tallies::of(rest),
        }
    }
}

impl Tallies {
    fn of([read, write]: [Tally; 2]) -> Self {
        let [read, write] = [read, write].map(|tally| Counts {
            allowed: tally.allowed,
            refused: tally.refused,
            answered: tally.answered,
            exempt: tally.exempt,
        });
        Self { read, write }
    }
}

fn packed(range: &Range) -> PackedRange {
    let words = range.bitmap().words().iter();
    PackedRange {
        access: range.accesses().to_string(),
        base: range.base().to_string(),
        count: range.bitmap().count(),
        allowed: words.map(|word| word.count_ones()).sum(),
    }
}

/// Prints the picture of one filter.
pub(super) fn draw(
    out: &mut dyn Write,
    shown: &Shown<'_>,
    (detail, layout): (Detail, Layout),
) -> io::Result<()> {
    let variant = shown.variant;
    let bold = anstyle::Style::new().bold();
    let ranges = variant.filter().ranges();
    let on = shown
        .cpu
        .map_or(String::new(), |cpu| format!("on processors like {cpu}, "));
    let default = match variant.filter().default_action() {
        DefaultAction::Allow => "allow",
        DefaultAction::Deny => "deny",
    };
    let count = ranges.len();
    writeln!(
        out,
        "{bold}filter{bold:#}: {on}{count} of {MAX_RANGES} ranges, default {default}"
    )?;
    let space = overview(variant);
    if !space.clusters.is_empty() && layout == Layout::Table {
        let head = "reads (r) and writes (w)";
        writeln!(
            out,
            "{:<23} {:<5} {head:<26} {:>6} {:>6} {:>6}",
            "MSRs", "range", "allow", "refuse", "answer"
        )?;
    }
    let most = match detail {
        Detail::Brief => SHOWN,
        Detail::Full => usize::MAX,
    };
    for cluster in space.clusters.iter().take(most) {
        match layout {
            Layout::Table => draw_cluster(out, variant, cluster)?,
            Layout::Narrow => draw_narrow(out, variant, cluster)?,
        }
    }
    match space.clusters.len().saturating_sub(most) {
        0 => {}
        more => writeln!(out, "and {more} more clusters; --verbose draws all")?,
    }
    if !space.clusters.is_empty() {
        let between = match layout {
            Layout::Table => "   ",
            Layout::Narrow => "\n",
        };
        writeln!(out, "{}", LEGEND.join(between))?;
    }
    let other = if space.clusters.is_empty() {
        "every MSR"
    } else {
        "every other MSR"
    };
    let [reads, writes] = space.rest.map(words);
    writeln!(out, "{other}: reads {reads}; writes {writes}")?;
    if detail == Detail::Full {
        list_ranges(out, ranges)?;
    }
    Ok(())
}

fn list_ranges(out: &mut dyn Write, ranges: &[Range]) -> io::Result<()> {
    for (number, range) in ranges.iter().map(packed).enumerate() {
        let PackedRange {
            access,
            base,
            count,
            allowed,
        } = range;
        writeln!(
            out,
            "range {number:<2} {access:<2} from {base:<10} {count:>5} MSRs, {allowed} allowed"
        )?;
    }
    Ok(())
}

/// Returns the names of the filter's ranges in a cluster. A name is the range's index and its accesses, such
/// as `0 rw`.
fn range_names(variant: &Variant, cluster: &Cluster) -> Vec<String> {
    let ranges = variant.filter().ranges();
    let name = |&number: &usize| {
        let accesses = ranges.get(number).map(Range::accesses);
        let accesses = accesses.map_or(String::new(), |one| one.to_string());
        format!("{number} {accesses}")
    };
    cluster.ranges.iter().map(name).collect()
}

fn bar(variant: &Variant, cluster: &Cluster, access: Access) -> String {
    let cells = cluster.cells(variant, access, CELLS);
    let bar: String = cells.into_iter().map(symbol).collect();
    format!("[{bar}]")
}

const fn mark(access: Access) -> char {
    match access {
        Access::Read => 'r',
        Access::Write => 'w',
    }
}

/// Draws a cluster in at most 40 columns.
fn draw_narrow(out: &mut dyn Write, variant: &Variant, cluster: &Cluster) -> io::Result<()> {
    writeln!(out, "{}", cluster.msrs)?;
    for name in range_names(variant, cluster) {
        writeln!(out, "  range {name}")?;
    }
    for access in Access::ALL {
        let bar = bar(variant, cluster, access);
        writeln!(out, "  {} {bar}", mark(access))?;
        writeln!(out, "    {}", words(cluster.tallies[access as usize]))?;
    }
    Ok(())
}

fn draw_cluster(out: &mut dyn Write, variant: &Variant, cluster: &Cluster) -> io::Result<()> {
    let mut names = range_names(variant, cluster).into_iter();
    let mut next = || names.next().unwrap_or_default();
    for access in Access::ALL {
        let msrs = match access {
            Access::Read => cluster.msrs.to_string(),
            Access::Write => String::new(),
        };
        let Tally {
            allowed,
            refused,
            answered,
            ..
        } = cluster.tallies[access as usize];
        writeln!(
            out,
            "{msrs:<23} {:<5} {} {:<24} {allowed:>6} {refused:>6} {answered:>6}",
            next(),
            mark(access),
            bar(variant, cluster, access),
        )?;
    }
    for name in names {
        writeln!(out, "{:<23} {name}", "")?;
    }
    Ok(())
}

const fn symbol(cell: Cell) -> char {
    match cell {
        Cell::Allowed => '#',
        Cell::Mixed => '+',
        Cell::Refused => '.',
        Cell::Answered => '?',
        Cell::Exempt => 'x',
    }
}

/// Returns a tally of MSRs in words, such as `3 allowed`.
fn words(tally: Tally) -> String {
    let parts = [
        (tally.allowed, "allowed"),
        (tally.refused, "refused"),
        (tally.answered, "answered"),
    ];
    let said = parts.iter().filter(|(count, _)| *count > 0);
    let said: Vec<_> = said.collect();
    if let [(_, word)] = said[..] {
        return (*word).to_owned();
    }
    let said: Vec<_> = said
        .iter()
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use msrgate_policy::{NoIncludes, Source, compile, parse};

    use super::*;

    #[test]
    fn narrow_picture_of_filter_fits_40_columns() {
        let text = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x0..=0x7ff' = 'r'\n0xc0000080 = 'rw'\n'0x1000..=0x9000' = 'w'\n";
        let policy = parse(&Source::new("policy.toml", text), &mut NoIncludes).expect("a policy");
        let compiled = compile(policy).expect("a filter");
        let shown = Shown {
            variant: compiled.on(None),
            cpu: None,
        };
        let mut drawn = Vec::new();
        let layout = Layout::of(Some(40));
        draw(&mut drawn, &shown, (Detail::Full, layout)).expect("drawn");
        let text = crate::terminal::wrapped(&String::from_utf8(drawn).expect("text"), 40);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(text.contains("\n0x0..=0x9000\n  range 0 r"), "{text}");
    }

    #[test]
    fn picture_as_table_needs_78_columns() {
        assert_eq!(Layout::of(Some(77)), Layout::Narrow);
        assert_eq!(Layout::of(Some(78)), Layout::Table);
        assert_eq!(Layout::of(None), Layout::Table);
    }
}
