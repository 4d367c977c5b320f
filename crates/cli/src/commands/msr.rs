//! `msrgate msr`: looks up registers and decodes their values.

use std::collections::BTreeSet;
use std::io::Write;

use msrgate_filter::MsrIndex;
use msrgate_policy::one_line;
use msrgate_policy::registers::{self, Field, Found, Register};
use serde::Serialize;

use crate::cli::{Format, MsrArgs};
use crate::failure::{Answer, Failure};
use crate::output::{self, SCHEMA};

/// The JSON report about all words on the command line.
#[derive(Default, Serialize)]
struct Report {
    schema: u32,
    registers: Vec<Listed>,
    /// The MSR indices without a name that the user asked for or that a group contains.
    nameless: Vec<String>,
    /// The words that are no register's name, but resemble one in the style of another code base.
    alike: Vec<NearWord>,
    /// The words for which no register was found.
    not_found: Vec<NearWord>,
}

/// A word that is no register's name, with the names that the user may have meant.
#[derive(Serialize)]
struct NearWord {
    word: String,
    near: Vec<&'static str>,
}

#[derive(Serialize)]
struct Listed {
    index: String,
    name: &'static str,
    aliases: &'static [&'static str],
    vendor: String,
    summary: &'static str,
    /// The extent to which KVM's filter controls accesses of the register: `enforced`, `partly` or `not`.
    reach: String,
    gaps: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoded: Option<DecodedValue>,
}

/// A value of a register, split into the register's fields.
#[derive(Serialize)]
struct DecodedValue {
    value: String,
    fields: Vec<DecodedField>,
    /// The bits of the value that are set and that no field covers.
    undescribed: String,
}

#[derive(Serialize)]
struct DecodedField {
    name: &'static str,
    bits: String,
    value: String,
    summary: &'static str,
}

pub(super) fn run(args: &MsrArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let answers: Vec<(&str, Found)> = args
        .words
        .iter()
        .map(|word| (word.as_str(), registers::search(word)))
        .collect();
    match args.format.format {
        Format::Json => output::json(out, &report(&answers, args.decode))?,
        Format::Text => print_all(out, &answers, args.decode)?,
    }
    for (word, found) in &answers {
        if let Some(said) = remark(word, found) {
            output::say(&said);
        }
    }
    let all_found = answers.iter().all(|(_, found)| match found {
        Found::Group(_) => true,
        other => !other.registers().is_empty(),
    });
    Ok(if all_found { Answer::Yes } else { Answer::No })
}

/// Returns a note for the user about one word, such as that no register was found for the word.
fn remark(word: &str, found: &Found) -> Option<String> {
    let word = one_line(word);
    let names = |registers: &[&Register]| {
        let names: Vec<_> = registers.iter().map(|register| register.name).collect();
        names.join(" or ")
    };
    match found {
        Found::Nothing(near) if near.is_empty() => Some(format!(
            "`{word}` finds nothing; write a name, a part of a name, an index such as 0x8b, a group such as @mtrr, or words of the description\n"
        )),
        Found::Nothing(near) => Some(format!(
            "`{word}` finds nothing; did you mean {}?\n",
            near.join(" or ")
        )),
        Found::Alike(registers) => Some(format!(
            "no register is called `{word}`; did you mean {}?\n",
            names(registers)
        )),
        Found::Registers { registers, exact } if *exact > 1 => Some(format!(
            "`{word}` is the name of {exact} registers: {}; a policy needs the index, or these names\n",
            names(&registers[..*exact])
        )),
        Found::Indices(indices) if indices.len() > 1 => {
            let [decimal, hexadecimal] = indices[..] else {
                return None;
            };
            Some(format!(
                "`{word}` is {decimal} if it is decimal, and {hexadecimal} if it is hexadecimal\n"
            ))
        }
        _ => None,
    }
}

fn print_all(
    out: &mut dyn Write,
    answers: &[(&str, Found)],
    value: Option<u64>,
) -> Result<(), Failure> {
    let mut shown = BTreeSet::new();
    for (word, found) in answers {
        let asked = asked(found);
        let registers = found.registers();
        let indices = registers.iter().map(|register| register.index);
        let all: Vec<_> = if asked.is_empty() {
            indices.collect()
        } else {
            asked
        };
        for index in all {
            if !shown.insert(index) {
                continue;
            }
            let Some(register) = registers::by_index(index) else {
                print_nameless(out, word, found, index)?;
                continue;
            };
            print(out, register)?;
            if let Some(value) = value {
                print_decoded(out, register, value)?;
            }
        }
    }
    Ok(())
}

/// Returns the MSR indices that a word asks for, with or without a name. The list is empty if the word names
/// neither an index nor a group.
fn asked(found: &Found) -> Vec<MsrIndex> {
    match found {
        Found::Indices(indices) => indices.clone(),
        Found::Group(group) => {
            let ranges = group.ranges();
            let numbers = ranges.flat_map(|range| range.start().get()..=range.end().get());
            numbers.map(MsrIndex::new).collect()
        }
        _ => Vec::new(),
    }
}

/// Prints the line of an MSR index that has no name, and the named registers before and after it. For an
/// index in a group, the function prints only the line.
fn print_nameless(
    out: &mut dyn Write,
    word: &str,
    found: &Found,
    index: MsrIndex,
) -> Result<(), Failure> {
    let dim = anstyle::Style::new().dimmed();
    writeln!(
        out,
        "{:<10} has no name: no list that msrgate knows names this index",
        index.to_string()
    )?;
    if !matches!(found, Found::Indices(_)) {
        return Ok(());
    }
    let after = registers::all().partition_point(|register| register.index < index);
    let around = registers::all()[after.saturating_sub(1)..].iter().take(2);
    let around: Vec<_> = around
        .map(|register| registers::titled(register.index))
        .collect();
    writeln!(out, "           {dim}next to {}{dim:#}", around.join(", "))?;
    let digits = word.trim().to_ascii_lowercase();
    let begins = |register: &&Register| register.index.to_string().starts_with(&digits);
    let beginning: Vec<_> = registers::all().iter().filter(begins).collect();
    if !digits.starts_with("0x") || beginning.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "           {dim}longer indices with these first digits, {}:{dim:#}",
        beginning.len()
    )?;
    for register in beginning {
        let titled = registers::titled(register.index);
        writeln!(out, "             {dim}{titled}{dim:#}")?;
    }
    Ok(())
}

fn report(answers: &[(&str, Found)], value: Option<u64>) -> Report {
    let mut report = Report {
        schema: SCHEMA,
        ..Report::default()
    };
    let mut shown = BTreeSet::new();
    for (word, found) in answers {
        for register in found.registers() {
            if shown.insert(register.index) {
                report.registers.push(listed(register, value));
            }
        }
        for index in asked(found) {
            if registers::by_index(index).is_none() && shown.insert(index) {
                report.nameless.push(index.to_string());
            }
        }
        let word = (*word).to_owned();
        match found {
            Found::Nothing(near) => report.not_found.push(NearWord {
                word,
                near: near.clone(),
            }),
            Found::Alike(registers) => report.alike.push(NearWord {
                word,
                near: registers.iter().map(|register| register.name).collect(),
            }),
            _ => {}
        }
    }
    report
}

fn listed(register: &Register, value: Option<u64>) -> Listed {
    Listed {
        index: register.index.to_string(),
        name: register.name,
        aliases: register.aliases,
        vendor: register.vendor.to_string(),
        summary: register.summary,
        reach: register.reach().to_string(),
        gaps: register.reach().gaps().iter().map(|gap| gap.name).collect(),
        decoded: value.map(|value| decoded(register, value)),
    }
}

fn print(out: &mut dyn Write, register: &Register) -> Result<(), Failure> {
    let bold = anstyle::Style::new().bold();
    let dim = anstyle::Style::new().dimmed();
    writeln!(
        out,
        "{bold}{:<10} {}{bold:#}  {dim}{}{dim:#}",
        register.index.to_string(),
        register.name,
        register.vendor
    )?;
    if !register.summary.is_empty() {
        writeln!(out, "           {}", register.summary)?;
    }
    if !register.aliases.is_empty() {
        writeln!(
            out,
            "           {dim}also {}{dim:#}",
            register.aliases.join(", ")
        )?;
    }
    for gap in register.reach().gaps() {
        writeln!(
            out,
            "           {dim}can bypass the filter: {}{dim:#}",
            gap.why
        )?;
    }
    Ok(())
}

/// Returns the positions of a field's bits as text, such as `12` or `39:32`.
fn bits(field: &Field) -> String {
    if field.low == field.high {
        field.low.to_string()
    } else {
        format!("{}:{}", field.high, field.low)
    }
}

fn decoded(register: &Register, value: u64) -> DecodedValue {
    let decoded = register.decode(value);
    let fields = decoded.fields().map(|(field, held)| DecodedField {
        name: field.name,
        bits: bits(field),
        value: format!("{held:#x}"),
        summary: field.summary,
    });
    DecodedValue {
        value: format!("{value:#x}"),
        fields: fields.collect(),
        undescribed: format!("{:#x}", decoded.undescribed()),
    }
}

fn print_decoded(out: &mut dyn Write, register: &Register, value: u64) -> Result<(), Failure> {
    let decoded = register.decode(value);
    writeln!(out, "           {value:#x} is")?;
    for (field, held) in decoded.fields().filter(|&(_, held)| held != 0) {
        let bits = bits(field);
        writeln!(
            out,
            "             {bits:>5}  {} = {held:#x}  {}",
            field.name, field.summary
        )?;
    }
    match (decoded.undescribed(), register.fields().is_empty()) {
        (_, true) => writeln!(
            out,
            "             msrgate does not know the fields of this register"
        )?,
        (0, false) => {}
        (rest, false) => writeln!(
            out,
            "             {rest:#x}  bits that msrgate does not know"
        )?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::FormatArg;

    fn said(words: &[&str], format: Format) -> (Answer, String) {
        let args = MsrArgs {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            decode: None,
            format: FormatArg { format },
        };
        let mut out = Vec::new();
        let answer = run(&args, &mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        (answer, anstream::adapter::strip_str(&text).to_string())
    }

    /// The output for a group has a line for each of the group's indices. In the group `@mce`, 64 indices
    /// have no name: the seventh register of each of AMD's scalable machine-check banks.
    #[test]
    fn msr_command_lists_every_index_of_each_register_group() {
        for group in registers::groups() {
            let count = asked(&Found::Group(group)).len();
            let (answer, text) = said(&[group.name], Format::Text);
            assert!(matches!(answer, Answer::Yes));
            let lines = text.lines().filter(|line| line.starts_with("0x"));
            assert_eq!(lines.count(), count, "{}", group.name);
            let (_, text) = said(&[group.name], Format::Json);
            let report: Value = serde_json::from_str(&text).expect("JSON");
            let length = |name: &str| report[name].as_array().map_or(0, Vec::len);
            assert_eq!(length("registers") + length("nameless"), count);
        }
        let (_, text) = said(&["@mce"], Format::Text);
        assert_eq!(text.matches(" has no name").count(), 64);
    }

    #[test]
    fn msr_command_with_several_words_succeeds_only_if_each_word_finds_a_register() {
        for (words, is_found) in [
            (&["KGSBASE", "SF_MASK"][..], true),
            (&["KGSBASE", "no-such-word"], false),
            (&["0x8b", "0x150"], false),
            (&["@pat", "@nothing"], false),
        ] {
            let (answer, _) = said(words, Format::Text);
            assert_eq!(matches!(answer, Answer::Yes), is_found, "{words:?}");
        }
    }
}
