//! Random policies as text, with entries of all kinds, includes and `[[when]]`s.

use std::fmt::Write as _;

use msrgate_policy::{
    CompileError, Compiled, IncludeError, Includes, PackError, ResolvedPolicy, Source, compile,
    parse, registers,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// The name of the file that a random policy includes.
const BASE: &str = "base.toml";

/// A randomly generated policy, some of whose entries may contradict others.
#[derive(Clone, Debug)]
pub struct PolicyPlan {
    default: &'static str,
    log: &'static str,
    base: Vec<EntryPlan>,
    entries: Vec<EntryPlan>,
    whens: Vec<(&'static str, Vec<EntryPlan>)>,
}

#[derive(Clone, Debug)]
struct EntryPlan {
    key: KeyPlan,
    says: String,
    log: Option<&'static str>,
    is_final: bool,
}

/// The key that an entry of a random policy is to have.
#[derive(Clone, Debug)]
enum KeyPlan {
    Own(String),
    /// The key of an entry in an outer section, which the entry with this key then overrides. The outer
    /// section is the `[msrs]` of the included file or, for an entry in a `[[when]]`, also the policy's own
    /// `[msrs]`.
    Outer(Index),
}

/// A random policy that has been compiled. The policy lacks those generated entries that contradict earlier
/// entries, or with which the policy would not fit a filter.
#[derive(Debug)]
pub struct Drawn {
    /// The text of the included file, if there is one, and after it the policy's text.
    pub text: String,
    /// The compiled policy.
    pub compiled: Compiled,
    /// The number of the policy's entries that override another entry.
    pub overrides: usize,
    /// The number of the policy's `final` entries.
    pub finals: usize,
}

/// Generates policies with entries of all kinds. Many entries cover MSRs that lie within the range
/// of another entry.
pub fn policy() -> impl Strategy<Value = PolicyPlan> {
    const CPUS: [&str; 5] = [
        "{ vendor = \"GenuineIntel\" }",
        "{ vendor = [\"AuthenticAMD\", \"HygonGenuine\"] }",
        "{ vendor = \"GenuineIntel\", family = 6, model = [\"0x6a..=0x6c\", 0x8f] }",
        "{ family = [6, 25] }",
        "{ stepping = \"0..=3\" }",
    ];
    let logs = select(vec!["none", "denied", "denied", "first"]);
    let base = prop_oneof![2 => Just(Vec::new()), 1 => vec(entry(0), 1..4)];
    let whens = vec((select(CPUS.to_vec()), vec(entry(3), 0..3)), 0..3);
    let whens = prop_oneof![2 => Just(Vec::new()), 1 => whens];
    let default = select(vec!["deny", "allow"]);
    (default, logs, base, vec(entry(1), 0..10), whens).prop_map(
        |(default, log, base, entries, whens)| PolicyPlan {
            default,
            log,
            base,
            entries,
            whens,
        },
    )
}

/// Generates an entry of a policy. On average, `overriding` of 8 generated entries override another
/// entry.
fn entry(overriding: u32) -> impl Strategy<Value = EntryPlan> {
    let own = key().prop_map(KeyPlan::Own);
    let outer = any::<Index>().prop_map(KeyPlan::Outer);
    let key = prop_oneof![8 - overriding => own, overriding => outer];
    let log = option::weighted(0.2, select(vec!["none", "denied", "first", "all"]));
    (key, says(), log, proptest::bool::weighted(0.1)).prop_map(|(key, says, log, is_final)| {
        EntryPlan {
            key,
            says,
            log,
            is_final,
        }
    })
}

/// Generates the key of an entry: an index, a range, a name or a group.
fn key() -> impl Strategy<Value = String> {
    let names: Vec<_> = registers::all().iter().map(|one| one.name).collect();
    let groups: Vec<_> = registers::groups().iter().map(|one| one.name).collect();
    prop_oneof![
        3 => index().prop_map(|index| format!("{index:#x}")),
        4 => (index(), length()).prop_map(|(first, length)| {
            format!("{first:#x}..={:#x}", first.saturating_add(length))
        }),
        3 => select(names).prop_map(str::to_owned),
        1 => select(groups).prop_map(str::to_owned),
    ]
}

/// Generates an MSR index near a place where registers or hardware bitmaps begin or end.
fn index() -> impl Strategy<Value = u32> {
    const EDGES: [u32; 12] = [
        0x0,
        0x10,
        0x174,
        0x200,
        0x277,
        0x7f0,
        0x900,
        0x1ff0,
        0xc000_0080,
        0xc000_0100,
        0xc001_0010,
        0xffff_fff0,
    ];
    let near = (select(EDGES.to_vec()), 0..0x20_u32);
    let near = near.prop_map(|(edge, offset)| edge.saturating_add(offset));
    prop_oneof![8 => near, 1 => any::<u32>()]
}

/// Generates the number of MSRs in a range after its first one: few, or about as many as a bitmap holds
/// (S1.8).
fn length() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0..0x20_u32, 2 => 0..0x800_u32, 1 => 0x2ff0..0x3010_u32]
}

/// Generates the text to the right of an entry's key, without the braces: the actions for reads and
/// writes, or an emulated register.
fn says() -> impl Strategy<Value = String> {
    let either = [
        "\"allow\"",
        "\"deny\"",
        "\"kill\"",
        "\"inherit\"",
        "{ handler = \"x\" }",
    ];
    let read = [&either[..], &["{ value = \"0x123\" }"]].concat();
    let of_writes = [
        "\"ignore\"",
        "\"pin\"",
        "\"sticky\"",
        "{ mask = \"0xff\", outside = \"keep\" }",
    ];
    let write = [&either[..], &of_writes].concat();
    let says = |(read, write): (&str, &str)| format!("read = {read}, write = {write}");
    let plain = ["\"allow\"", "\"deny\""].to_vec();
    let short = (select(plain.clone()), select(plain)).prop_map(says);
    let long = (select(read), select(write)).prop_map(says);
    let register = Just("register = { reset = 0, mask = \"0xff\" }".to_owned());
    prop_oneof![4 => short, 4 => long, 1 => register]
}

/// The texts of a policy and its included file as written so far.
#[derive(Clone, Default)]
struct Texts {
    head: String,
    base: String,
    entries: String,
    /// The texts of the `[[when]]` sections. New entries can only be added to the last section.
    whens: Vec<String>,
}

impl Texts {
    fn policy(&self) -> String {
        let whens = self.whens.concat();
        format!("{}[msrs]\n{}{whens}", self.head, self.entries)
    }

    fn base(&self) -> String {
        format!("policy = 1\n[msrs]\n{}", self.base)
    }

    fn read(&self) -> Option<ResolvedPolicy> {
        parse(&Source::new("random.toml", &self.policy()), &mut Base(self)).ok()
    }
}

/// A reader of included files that returns the included file of the random policy for every path.
struct Base<'t>(&'t Texts);

impl Includes for Base<'_> {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        Ok(Source::new(path, &self.0.base()))
    }
}

/// The section of the policy in which an entry stands.
#[derive(Clone, Copy)]
enum Section {
    Base,
    Policy,
    When,
}

/// An unfinished random policy: the texts written so far, and the keys that later entries may override.
struct Draw {
    texts: Texts,
    drawn: Drawn,
    keys: Vec<String>,
}

impl PolicyPlan {
    /// Compiles the policy. Leaves out entries that contradict earlier entries, or with which the
    /// policy does not fit a filter.
    ///
    /// # Errors
    /// Returns an error if the remaining policy cannot be compiled.
    pub fn compile(&self) -> Result<Drawn, CompileError> {
        let (default, log) = (self.default, self.log);
        let include = match self.base.as_slice() {
            [] => String::new(),
            _ => format!("include = [\"{BASE}\"]\n"),
        };
        let texts = Texts {
            head: format!("policy = 1\ndefault = \"{default}\"\nlog = \"{log}\"\n{include}"),
            ..Texts::default()
        };
        let policy = texts.read().unwrap_or_else(|| unreachable!("no entries"));
        let drawn = Drawn {
            text: String::new(),
            compiled: packed(policy)?,
            overrides: 0,
            finals: 0,
        };
        let mut draw = Draw {
            texts,
            drawn,
            keys: Vec::new(),
        };
        draw.section(&self.base, Section::Base)?;
        draw.section(&self.entries, Section::Policy)?;
        for (cpu, entries) in &self.whens {
            let when = format!("[[when]]\ncpu = {cpu}\n[when.msrs]\n");
            let mut longer = draw.texts.clone();
            longer.whens.push(when);
            if let Some(policy) = longer.read() {
                draw.texts = longer;
                draw.drawn.compiled = packed(policy)?;
                draw.section(entries, Section::When)?;
            }
        }
        let texts = draw.texts;
        let base = if self.base.is_empty() {
            String::new()
        } else {
            format!("# {BASE}\n{}\n", texts.base())
        };
        Ok(Drawn {
            text: base + &texts.policy(),
            ..draw.drawn
        })
    }
}

fn packed(policy: ResolvedPolicy) -> Result<Compiled, CompileError> {
    compile(policy).map_err(|not| not.error)
}

impl Draw {
    fn section(&mut self, entries: &[EntryPlan], section: Section) -> Result<(), CompileError> {
        let mut keys = self.keys.clone();
        for entry in entries {
            let (key, overrides) = match &entry.key {
                KeyPlan::Own(key) => (key.clone(), false),
                KeyPlan::Outer(_) if self.keys.is_empty() => continue,
                KeyPlan::Outer(index) => (index.get(&self.keys).clone(), true),
            };
            let mut line = format!("\"{key}\" = {{ {}", entry.says);
            if let Some(log) = entry.log {
                let _ = write!(line, ", log = \"{log}\"");
            }
            line += if overrides { ", override = true" } else { "" };
            line += if entry.is_final { ", final = true" } else { "" };
            line += " }\n";
            let mut longer = self.texts.clone();
            match section {
                Section::Base => longer.base += &line,
                Section::Policy => longer.entries += &line,
                Section::When => longer
                    .whens
                    .last_mut()
                    .into_iter()
                    .for_each(|when| *when += &line),
            }
            match longer.read().map(packed) {
                Some(Ok(compiled)) => {
                    self.texts = longer;
                    self.drawn.compiled = compiled;
                    self.drawn.overrides += usize::from(overrides);
                    self.drawn.finals += usize::from(entry.is_final);
                    keys.push(key);
                }
                // The entry contradicts an earlier one, or does not fit into the filter.
                Some(Err(CompileError::Pack(PackError::TooManyRanges(_)))) | None => {}
                Some(Err(error)) => return Err(error),
            }
        }
        // An entry may override entries of outer sections, but not entries of another `[[when]]`.
        if !matches!(section, Section::When) {
            self.keys = keys;
        }
        Ok(())
    }
}
