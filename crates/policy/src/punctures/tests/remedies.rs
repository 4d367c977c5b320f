//! A property test: the lines of remedies compile, and close every puncture.

use msrgate_filter::MsrIndex;
use msrgate_program::{Cpu, DecidedBy};
use proptest::prelude::*;

use super::super::*;
use super::Texts;
use crate::policy::OWN;
use crate::remedy;
use crate::{Source, compile, parse};

/// The `cpu`s of a text's `[[when]]`s, which stand beside `[msrs]`.
const CPUS: [&str; 2] = ["{ vendor = [\"GenuineIntel\"] }", "{ family = [0x6] }"];

/// The keys of the entries. They are few, so that they often repeat, nest, and overlap in part.
const KEYS: [&str; 7] = [
    "0x610",
    "0x611",
    "'0x610..=0x611'",
    "'0x610..=0x613'",
    "'0x612..=0x617'",
    "'0x600..=0x6df'",
    "'@power'",
];

/// The lines of each table of a text.
#[derive(Clone, Debug)]
struct Tables {
    head: &'static str,
    lines: [Vec<String>; 3],
}

impl Tables {
    fn text(&self) -> String {
        let head = |table: usize| match table {
            0 => "[msrs]\n".to_owned(),
            _ => format!("[[when]]\ncpu = {}\n[when.msrs]\n", CPUS[table - 1]),
        };
        let tables = self.lines.iter().enumerate();
        let tables = tables.map(|(table, lines)| head(table) + &lines.join("\n") + "\n");
        self.head.to_owned() + &tables.collect::<String>()
    }

    /// Pastes each line of the remedies once. Lines that replace lines of the policy come first,
    /// while the line numbers are still right.
    fn paste_all(&mut self, lines: &[remedy::Line]) {
        let mut seen = BTreeSet::new();
        let mut lines: Vec<_> = lines
            .iter()
            .filter(|line| seen.insert((&line.text, &line.cpu)))
            .collect();
        lines.sort_by_key(|line| line.instead.is_none());
        for line in lines {
            self.paste(line);
        }
    }

    /// Pastes one line of a remedy. If the line replaces a line of the policy, that line has to be
    /// in the same table.
    fn paste(&mut self, line: &remedy::Line) {
        let cpu = |cpu: &String| CPUS.iter().position(|one| one == cpu).expect("a known one");
        let table = line.cpu.as_ref().map_or(0, |name| cpu(name) + 1);
        if let Some(number) = line.instead {
            let text = self.text();
            let old = text.lines().nth(number as usize - 1).expect("it is there");
            let lines = self.lines[table].iter_mut();
            let mut old = lines.filter(|one| **one == old);
            *old.next().expect("it is in this table") = line.text.clone();
        } else {
            self.lines[table].push(line.text.clone());
        }
    }
}

/// The actions for reads and for writes in an include: most allow. The actions in a policy's own
/// text, [`STRICT`], mostly refuse.
const LOOSE: [[&str; 6]; 2] = [
    [
        "'allow'",
        "'allow'",
        "'allow'",
        "'allow'",
        "'deny'",
        "'inherit'",
    ],
    [
        "'allow'",
        "'allow'",
        "'allow'",
        "'allow'",
        "'kill'",
        "'inherit'",
    ],
];
const STRICT: [[&str; 6]; 2] = [
    [
        "'deny'",
        "'deny'",
        "'deny'",
        "'allow'",
        "'inherit'",
        "{ value = 1 }",
    ],
    [
        "'deny'",
        "'deny'",
        "'kill'",
        "'allow'",
        "'inherit'",
        "'ignore'",
    ],
];

/// Generates the entries of a policy's text. Each entry ends with one of `words`, such as `, final
/// = true`.
fn tables(
    head: &'static str,
    [reads, writes]: [[&'static str; 6]; 2],
    words: &'static [&'static str],
) -> impl Strategy<Value = Tables> {
    let entry = (
        prop::sample::select(KEYS.to_vec()),
        prop::sample::select(reads.to_vec()),
        prop::sample::select(writes.to_vec()),
        prop::sample::select(words),
    );
    let table = |most: usize| prop::collection::vec(entry.clone(), 0..=most);
    [table(3), table(2), table(1)].prop_map(move |tables| {
        let lines = |entries: Vec<_>| -> Vec<String> {
            let mut keys = BTreeSet::new();
            let entries: Vec<(&str, &str, &str, &str)> = entries;
            let once = entries.into_iter().filter(|(key, ..)| keys.insert(*key));
            let line = |(key, read, write, word): (&str, &str, &str, &str)| {
                format!("{key} = {{ read = {read}, write = {write}{word} }}")
            };
            once.map(line).collect()
        };
        let lines = tables.map(lines);
        Tables { head, lines }
    })
}

/// Returns each puncture on some processor: the MSR, the direction, and the action of the wide
/// entry. Exceptions in the policy's own text, or in the text of the wide entry, do not count.
fn loosened(compiled: &Compiled) -> Vec<(Cpu, MsrIndex, Access, Action)> {
    let policy = compiled.policy();
    let all = punctures(compiled);
    let mut loosened = Vec::new();
    for (active, puncture) in variants(policy)
        .iter()
        .flat_map(|active| all.iter().map(move |puncture| (active, puncture)))
    {
        if ![puncture.wide, puncture.narrow]
            .iter()
            .all(|id| active.entries.contains(id))
        {
            continue;
        }
        let wide = policy.entry(puncture.wide);
        for (access, msrs) in Access::ALL.into_iter().zip(&puncture.msrs) {
            let Some(said) = wide.action(access) else {
                continue;
            };
            for range in msrs.iter().flat_map(MsrSet::ranges) {
                for index in [range.first(), range.last()] {
                    let is_exception = |id: &EntryId| {
                        let entry = policy.entry(*id);
                        let says = entry.action(access);
                        [OWN, wide.source()].contains(&entry.source())
                            && entry.msrs().contains(index)
                            && entry.msrs().count() < wide.msrs().count()
                            && says.is_some_and(|says| {
                                says.compared_with(said) != Comparison::NoLooser
                            })
                    };
                    let rules = compiled.on(Some(&active.example)).rules();
                    let decides = rules.at(index, access).by == DecidedBy::Entry(puncture.narrow);
                    if decides && !active.entries.iter().any(is_exception) {
                        loosened.push((active.example.clone(), index, access, said.clone()));
                    }
                }
            }
        }
    }
    loosened
}

const INCLUDING: &str = "policy = 1\ndefault = 'deny'\ninclude = ['one.toml', 'other.toml']\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_global_rejects: 60_000, ..ProptestConfig::default() })]

    /// If all lines are pasted, the policy compiles, and after a few steps no puncture is left. A
    /// remedy's line that names a line of the policy is pasted in that line's place.
    #[test]
    fn remedies_compile_and_close_every_puncture(
        own in tables(INCLUDING, STRICT, &["", "", ", final = true"]),
        one in tables("policy = 1\n", LOOSE, &[""]),
        other in tables("policy = 1\n", LOOSE, &[""]),
    ) {
        let texts = [("one.toml", one.text()), ("other.toml", other.text())];
        let files = texts.each_ref().map(|(name, text)| (*name, &**text));
        let read = |own: &Tables| parse(&Source::new("policy.toml", &own.text()), &mut Texts(&files));
        let first = read(&own);
        prop_assume!(first.is_ok());
        let first = compile(first.expect("no mistakes")).expect("it fits");
        let before = loosened(&first);
        prop_assume!(!before.is_empty());
        let (mut own, mut now) = (own, first);
        for _ in 0..8 {
            let lines: Vec<_> = punctures(&now).iter().flat_map(|puncture| puncture.remedy.lines.clone()).collect();
            // The lines of each puncture are pasted alone, and the lines of all punctures together.
            let mut pasted = own.clone();
            pasted.paste_all(&lines);
            for puncture in punctures(&now) {
                let mut alone = own.clone();
                alone.paste_all(&puncture.remedy.lines);
                let parsed = read(&alone);
                prop_assert!(parsed.is_ok(), "{}\n{}\n{files:?}\n{parsed:?}", own.text(), alone.text());
            }
            let parsed = read(&pasted);
            prop_assert!(parsed.is_ok(), "{}\n{files:?}\n{parsed:?}", pasted.text());
            now = compile(parsed.expect("no mistakes")).expect("it fits");
            own = pasted;
        }
        let left = punctures(&now);
        prop_assert!(left.is_empty(), "{}\n{files:?}\n{left:?}", own.text());
        for (cpu, index, access, said) in before {
            let is = now.on(Some(&cpu)).rules().at(index, access).action;
            prop_assert_eq!(is.compared_with(&said), Comparison::NoLooser, "{} {} on {}\n{}\n{:?}", access, index, cpu, own.text(), files);
        }
    }
}
