//! Random policies, as text.

use std::fmt::Write as _;

use msrgate_policy::{
    CompileError, Compiled, NoIncludes, PackError, Policy, Source, compile, parse, registers,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// A policy as it is drawn: some of its entries may contradict others.
#[derive(Clone, Debug)]
pub(crate) struct PolicyPlan {
    default: &'static str,
    entries: Vec<(String, String)>,
}

/// Policies of all kinds of entries, many of which lie within others.
pub(crate) fn policy() -> impl Strategy<Value = PolicyPlan> {
    let entries = vec((key(), says()), 0..14);
    (select(vec!["deny", "allow"]), entries)
        .prop_map(|(default, entries)| PolicyPlan { default, entries })
}

/// What an entry speaks of: an index, a range, a name, a group.
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

/// Around the places where registers and hardware's bitmaps begin or end.
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

/// How many MSRs follow the first of a range: few, or more than a bitmap holds (S1.8).
fn length() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0..0x20_u32, 2 => 0..0x800_u32, 1 => 0x2ff0..0x3010_u32]
}

/// A word, or a table with both directions.
fn says() -> impl Strategy<Value = String> {
    let short = select(vec!["rw", "r", "w", "none"]).prop_map(|word| format!("\"{word}\""));
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
    let long = (select(read), select(write))
        .prop_map(|(read, write)| format!("{{ read = {read}, write = {write} }}"));
    let register = Just("{ register = { reset = 0, mask = \"0xff\" } }".to_owned());
    prop_oneof![4 => short, 4 => long, 1 => register]
}

impl PolicyPlan {
    /// The policy with those of its entries that contradict none before them, and fit with them.
    pub(crate) fn compile(&self) -> Result<(String, Compiled), CompileError> {
        let mut text = format!("policy = 1\ndefault = \"{}\"\n[msrs]\n", self.default);
        let mut compiled = compile(read(&text).unwrap_or_else(|| unreachable!("no entries")))?;
        for (key, says) in &self.entries {
            let before = text.len();
            let _ = writeln!(text, "\"{key}\" = {says}");
            match read(&text).map(compile) {
                Some(Ok(longer)) => compiled = longer,
                Some(Err(CompileError::Pack(PackError::TooManyRanges(_)))) | None => {
                    text.truncate(before);
                }
                Some(Err(error)) => return Err(error),
            }
        }
        Ok((text, compiled))
    }
}

fn read(text: &str) -> Option<Policy> {
    parse(&Source::new("random.toml", text), &mut NoIncludes).ok()
}
