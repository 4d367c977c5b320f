//! Reads the C and the Rust that [`emit`](crate::emit) writes, and no other C or Rust.
//!
//! The reader looks for known lines, and skips the text between them. The last known line has to
//! be there, and only comments may follow it: a text that is cut off, or that has two filters, is
//! refused.

use msrgate_filter::{
    Accesses, DefaultAction, ExitReason, Filter, MsrIndex, Range, ReasonMask, Revision,
};

use super::with_reasons::{Compiled, range_of};
use super::{ImportError, hexadecimal, lines};

/// The lines by which a language is recognized, and by which a text is known to be whole.
struct Language {
    /// The beginning and the end of a file's first line, by which its language is recognized.
    /// Between the two stands nothing, or ` for ` and the name of a processor.
    head: (&'static str, &'static str),
    /// The last line of a file in this language, which occurs once in the file.
    last: &'static str,
    /// The name of the language.
    name: &'static str,
    /// The option of `compile` for this language.
    option: &'static str,
    /// Beginnings of lines by which a text of this language is recognized, whoever wrote the text.
    starts: &'static [&'static str],
    /// A text within lines of this language that lines of the other do not have.
    within: &'static str,
}

static LANGUAGES: [Language; 2] = [
    Language {
        head: ("/* Made by msrgate compile --format c", ". */"),
        last: "#endif",
        within: "struct kvm_",
        name: "C",
        option: "compile --format c",
        starts: &[
            "#include", "#define", "#if", "#pragma", "struct ", "static ", "typedef ", "enum ",
            "const ", "int ", "void ",
        ],
    },
    Language {
        head: ("// Made by msrgate compile --format rust", "."),
        last: "];",
        within: "::",
        name: "Rust",
        option: "compile --format rust",
        starts: &[
            "use ",
            "pub ",
            "fn ",
            "mod ",
            "impl ",
            "let ",
            "#[",
            "#![",
            "const fn ",
            "static mut ",
        ],
    },
];

/// A range of the filter, of which a part has been read.
#[derive(Default)]
struct Partial {
    flags: Option<u64>,
    nmsrs: Option<u64>,
    base: Option<u64>,
    bytes: Vec<u8>,
}

/// The parts of the filter that have been read.
#[derive(Default)]
struct Reader {
    ranges: Vec<Partial>,
    default_action: Option<DefaultAction>,
    reasons: Option<u64>,
    /// The range to which the bitmap in the following lines belongs.
    bitmap: Option<usize>,
}

/// Returns true if the text begins like the C or the Rust code that `compile` writes, or ends within the
/// first line of such code.
pub(super) fn is_emitted(bytes: &[u8]) -> bool {
    language(bytes).is_some()
}

/// Returns the language of a text, which may be cut off in its first line.
fn language(bytes: &[u8]) -> Option<&'static Language> {
    let bytes = bytes.trim_ascii_start();
    LANGUAGES.iter().find(|language| {
        let start = language.head.0.as_bytes();
        bytes.starts_with(start) || !bytes.is_empty() && start.starts_with(bytes)
    })
}

/// Returns the error for a text that is not JSON either, and that `compile` did not write. The error
/// quotes nothing of the text, which may be a secret.
pub(super) fn foreign(bytes: &[u8]) -> Option<ImportError> {
    if bytes.trim_ascii().is_empty() || bytes.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let lines_of = |language: &Language| {
        let is_of_it = |line: &str| {
            line.contains(language.within)
                || language.starts.iter().any(|start| line.starts_with(start))
        };
        lines(bytes)
            .filter(|(_, line)| is_of_it(line.trim_start()))
            .count()
    };
    let language = LANGUAGES
        .iter()
        .rev()
        .max_by_key(|language| lines_of(language));
    let what = match language.filter(|language| lines_of(language) > 0) {
        Some(Language { name, option, .. }) => format!("this {name} is not what `{option}` writes"),
        None => {
            "the file is not a filter as `compile` writes it, in JSON, C, Rust or bytes".to_owned()
        }
    };
    let advice = "import reads no other source code; name the MSRs in a policy, or import the bytes that a VMM passes to KVM_X86_SET_MSR_FILTER";
    Some(ImportError::Bytes(format!("{what}; {advice}")))
}

/// Returns the processor that the first line names, or an empty text if it names none. `None`: the
/// line is not the first line of this language.
fn made_for<'t>(bytes: &'t [u8], language: &Language) -> Option<&'t str> {
    let line = bytes
        .trim_ascii_start()
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let (start, end) = language.head;
    match line.strip_prefix(start)?.strip_suffix(end)? {
        "" => Some(""),
        named => named.strip_prefix(" for "),
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<Compiled, ImportError> {
    let language = language(bytes).ok_or(ImportError::UnknownFormat)?;
    let is_last = |line: &str| line.trim() == language.last;
    let mut end = lines(bytes).skip_while(|(_, line)| !is_last(line));
    if end.next().is_none() {
        let why = format!(
            "`{}` is missing, so the file is cut off; compile the policy again",
            language.last
        );
        return Err(ImportError::value("the last line", why));
    }
    if let Some((number, _)) = end.find(|(_, line)| !is_comment(line.trim())) {
        let why = "text follows the end of the filter; compile the policy again";
        return Err(ImportError::value(format!("line {number}"), why));
    }
    let named = made_for(bytes, language);
    let named = named.ok_or_else(|| {
        ImportError::value(
            "the first line",
            "the line is incomplete; compile the policy again",
        )
    })?;
    let mut reader = Reader::default();
    for (number, line) in lines(bytes).take_while(|(_, line)| !is_last(line)) {
        let read = reader.line(line.trim());
        read.map_err(|why| ImportError::value(format!("line {number}"), why))?;
    }
    Ok(Compiled {
        made_for: (!named.is_empty()).then(|| named.to_owned()),
        ..reader.compiled()?
    })
}

/// Returns true if a line is blank or a comment.
fn is_comment(line: &str) -> bool {
    line.is_empty() || line.starts_with("//") || line.starts_with("/*")
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        if let Some(range) = self.bitmap {
            if line.starts_with(['}', ']']) {
                self.bitmap = None;
                return Ok(());
            }
            let bytes = line.split(',').map(str::trim).filter(|one| !one.is_empty());
            for byte in bytes {
                let byte = number(byte).and_then(|byte| u8::try_from(byte).ok());
                let byte = byte.ok_or("the line must have bytes of a bitmap, such as 0xff")?;
                self.range(range)?.bytes.push(byte);
            }
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("static unsigned char msrgate_bitmap_") {
            let (place, _) = rest
                .split_once('[')
                .ok_or("the length of the bitmap is missing")?;
            self.bitmap = Some(
                place
                    .parse()
                    .map_err(|_| "the number of the range is missing")?,
            );
        } else if let Some(rest) = line.strip_prefix("filter->ranges[") {
            let (place, field) = rest
                .split_once("].")
                .ok_or("the field of the range is missing")?;
            let place = place
                .parse()
                .map_err(|_| "the number of the range is missing")?;
            let (key, value) = field
                .split_once(" = ")
                .ok_or("the value of the field is missing")?;
            if key != "bitmap" {
                self.field(place, key, value.trim_end_matches(';'))?;
            }
        } else if let Some((_, flags)) = line.split_once("{ .flags = ") {
            let flags = flags.split(' ').next().and_then(number);
            self.default_action =
                Some(match flags.ok_or("the flags of the filter are missing")? {
                    0 => DefaultAction::Allow,
                    1 => DefaultAction::Deny,
                    _ => return Err("the flags of the filter must be 0 or 1"),
                });
        } else if let Some(reasons) = line.strip_prefix("#define MSRGATE_EXIT_REASONS ") {
            self.reasons = Some(number(reasons).ok_or("the exit reasons are missing")?);
        } else {
            self.rust(line)?;
        }
        Ok(())
    }

    /// Reads a line that occurs in the Rust code, but not in the C code.
    fn rust(&mut self, line: &str) -> Result<(), &'static str> {
        let end = |value: &str| value.trim_end_matches([';', ',']).to_owned();
        if line == "Range {" {
            self.ranges.push(Partial::default());
        } else if line == "bitmap: &[" {
            let last = self.ranges.len().checked_sub(1);
            self.bitmap = Some(last.ok_or("the bitmap belongs to no range")?);
        } else if let Some(value) = line.strip_prefix("pub const DEFAULT_DENY: bool = ") {
            self.default_action = Some(match end(value).as_str() {
                "false" => DefaultAction::Allow,
                "true" => DefaultAction::Deny,
                _ => return Err("the value must be true or false"),
            });
        } else if let Some(value) = line.strip_prefix("pub const EXIT_REASONS: u64 = ") {
            self.reasons = Some(number(&end(value)).ok_or("the exit reasons are missing")?);
        } else if let Some((key @ ("flags" | "base" | "nmsrs"), value)) = line.split_once(": ") {
            let last = self.ranges.len().checked_sub(1);
            self.field(
                last.ok_or("the field belongs to no range")?,
                key,
                &end(value),
            )?;
        }
        Ok(())
    }

    fn field(&mut self, place: usize, key: &str, value: &str) -> Result<(), &'static str> {
        let value = Some(number(value).ok_or("the value must be a number")?);
        let range = self.range(place)?;
        match key {
            "flags" => range.flags = value,
            "base" => range.base = value,
            "nmsrs" => range.nmsrs = value,
            _ => return Err("a range has no such field"),
        }
        Ok(())
    }

    fn range(&mut self, place: usize) -> Result<&mut Partial, &'static str> {
        if place >= msrgate_filter::MAX_RANGES {
            return Err("the filter has more than 16 ranges");
        }
        if self.ranges.len() <= place {
            self.ranges.resize_with(place + 1, Partial::default);
        }
        Ok(&mut self.ranges[place])
    }

    fn compiled(self) -> Result<Compiled, ImportError> {
        let missing = |what: &str| {
            ImportError::value(what, "the file does not state it; compile the policy again")
        };
        let default_action = self.default_action.ok_or_else(|| missing("the default"))?;
        let bits = self.reasons.ok_or_else(|| missing("the exit reasons"))?;
        let mask = ReasonMask::from_bits(Revision::Mainline, bits)
            .map_err(|error| ImportError::value("the exit reasons", error))?;
        let reasons = ExitReason::ALL.into_iter();
        let reasons = reasons.filter(|reason| mask.contains(Revision::Mainline, *reason));
        let ranges = self.ranges.iter().enumerate();
        let ranges = ranges
            .map(|(number, range)| {
                range
                    .range()
                    .map_err(|why| ImportError::value(format!("ranges[{number}]"), why))
            })
            .collect::<Result<_, _>>()?;
        Ok(Compiled {
            filter: Filter::new(Revision::Mainline, default_action, ranges)
                .map_err(ImportError::Filter)?,
            made_for: None,
            reasons: Some(reasons.map(|reason| reason.to_string()).collect()),
        })
    }
}

impl Partial {
    fn range(&self) -> Result<Range, String> {
        let accesses = match self.flags {
            Some(1) => Accesses::Read,
            Some(2) => Accesses::Write,
            Some(3) => Accesses::Both,
            _ => return Err("the flags must be 1, 2 or 3".to_owned()),
        };
        let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
        let base = small(self.base).ok_or("the base is missing")?;
        let count = small(self.nmsrs).ok_or("the number of MSRs is missing")?;
        range_of(accesses, MsrIndex::new(base), count, &self.bytes).map_err(|(_, why)| why)
    }
}

/// Parses a number: decimal digits, or `0x` and hexadecimal digits.
fn number(text: &str) -> Option<u64> {
    match hexadecimal(text) {
        Some((number, "")) => Some(number),
        Some(_) => None,
        None => text.parse().ok(),
    }
}
