//! Includes of includes: each text is read once, and the limits hold for all texts together.

use std::cell::Cell;
use std::fmt::Write as _;

use super::*;
use crate::compile::compile;
use crate::limits::{MAX_BYTES, MAX_DEPTH, MAX_FILES};
use crate::resolve::ResolvedPolicy;

const HEAD: &str = "policy = 1\ndefault = \"deny\"\n";

/// An opener of included texts. The function returns the text that a path names.
struct Files<F>(F);

impl<F: FnMut(&str) -> Option<Source>> Includes for Files<F> {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        (self.0)(path).ok_or_else(|| IncludeError::new("no such file"))
    }
}

fn read(
    text: &str,
    files: impl FnMut(&str) -> Option<Source>,
) -> Result<ResolvedPolicy, Box<Mistakes>> {
    parse(&Source::new("policy.toml", text), &mut Files(files))
}

fn include<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<_> = names
        .into_iter()
        .map(|name| format!("{name:?},\n"))
        .collect();
    format!("include = [\n{}]\n", names.concat())
}

fn kinds(mistakes: &Mistakes) -> Vec<String> {
    let each = mistakes.mistakes().iter();
    each.map(|one| one.kind().to_string()).collect()
}

/// Returns the report as a person sees it, and after it the message of each mistake.
fn all_that_is_said(mistakes: &Mistakes) -> String {
    let mut said = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .render_report(&mut said, mistakes)
        .unwrap();
    for mistake in mistakes.mistakes() {
        let _ = writeln!(said, "{} {:?}", mistake.kind(), mistake.kind().help());
    }
    said
}

/// If each of eight files includes the next one 20 times, eight texts are read.
#[test]
fn file_included_many_times_is_read_once() {
    let texts: Vec<String> = (0..7)
        .map(|number| {
            let next = format!("b{}.toml", number + 1);
            let next = (number < 6).then(|| include([&*next; 20]));
            format!("policy = 1\n{}", next.unwrap_or_default())
        })
        .collect();
    let file = |path: &str| {
        let number: usize = path
            .strip_prefix('b')?
            .strip_suffix(".toml")?
            .parse()
            .ok()?;
        Some(Source::new(path, &texts[number]))
    };
    let text = format!("{HEAD}{}", include(["b0.toml"; 20]));
    let policy = read(&text, file).unwrap();
    assert_eq!(policy.policy().sources().len(), 8);
    let below: Vec<_> = policy.policy().below.iter().map(SourceSet::len).collect();
    assert_eq!(below, [7, 6, 5, 4, 3, 2, 1, 0]);
    let way = policy.policy().includers(SourceId::new(7)).into_iter();
    let way: Vec<_> = way.map(Source::name).collect();
    assert_eq!(
        way.join(" "),
        "policy.toml b0.toml b1.toml b2.toml b3.toml b4.toml b5.toml"
    );
}

/// If files form many layers, and each file includes all files of the next layer, each file is read
/// once.
#[test]
fn includes_in_many_layers_read_each_file_once() {
    const WIDTH: usize = 20;
    let name = |layer: usize, number: usize| format!("{layer}-{number}.toml");
    let layer = |layer: usize| {
        let names: Vec<_> = (0..WIDTH).map(|number| name(layer, number)).collect();
        include(names.iter().map(|name| &**name))
    };
    let file = |path: &str| {
        let above: usize = path.split('-').next()?.parse().ok()?;
        let next = if above < 6 {
            layer(above + 1)
        } else {
            String::new()
        };
        Some(Source::new(path, &format!("policy = 1\n{next}")))
    };
    let policy = read(&format!("{HEAD}{}", layer(0)), file).unwrap();
    assert_eq!(policy.policy().sources().len(), 1 + 7 * WIDTH);
    assert_eq!(policy.policy().below[0].len(), 140);
    let deepest = policy
        .policy()
        .sources()
        .iter()
        .position(|one| one.name() == "6-19.toml");
    let deepest = SourceId::new(deepest.unwrap());
    assert_eq!(policy.policy().includers(deepest).len(), 7);
}

/// The depth of a file is that of the longest chain of includes, whether a short or a long chain
/// reaches the file first. `1.toml` includes `2.toml`, and so on.
#[test]
fn include_depth_limit_ignores_order_of_includes() {
    let of_last = |last: usize, names: [&str; 2]| {
        let file = |path: &str| {
            let number: usize = path.strip_suffix(".toml")?.parse().ok()?;
            let next = format!("{}.toml", number + 1);
            let more = if number < last {
                include([&*next])
            } else {
                String::new()
            };
            Some(Source::new(path, &format!("policy = 1\n{more}")))
        };
        read(&format!("{HEAD}{}", include(names)), file)
    };
    for names in [["1.toml", "6.toml"], ["6.toml", "1.toml"]] {
        assert!(of_last(MAX_DEPTH - 1, names).is_ok(), "{names:?}");
        for last in [MAX_DEPTH, MAX_DEPTH + 1] {
            let mistakes = of_last(last, names).unwrap_err();
            let kinds = kinds(&mistakes);
            assert!(
                kinds[0].contains("the chain of includes has more than 8 files"),
                "{names:?}: {kinds:?}"
            );
            assert_eq!(kinds.len(), 1, "{names:?}: {kinds:?}");
        }
    }
}

#[test]
fn includes_beyond_file_limit_are_refused_unopened() {
    let opened = Cell::new(0);
    let file = |path: &str| {
        opened.set(opened.get() + 1);
        Some(Source::new(path, "policy = 1\n"))
    };
    let names: Vec<_> = (0..MAX_FILES + 9)
        .map(|number| format!("{number}.toml"))
        .collect();
    let names = |count: usize| include(names[..count].iter().map(|name| &**name));
    // The policy itself counts as a file.
    let policy = read(&format!("{HEAD}{}", names(MAX_FILES - 1)), file).unwrap();
    assert_eq!(policy.policy().sources().len(), MAX_FILES);
    opened.set(0);
    let mistakes = read(&format!("{HEAD}{}", names(MAX_FILES)), file).unwrap_err();
    let files = "the policy has 257 files; at most 256 are allowed";
    assert_eq!(kinds(&mistakes), [files]);
    assert_eq!(opened.get(), MAX_FILES);
    opened.set(0);
    let mistakes = read(&format!("{HEAD}{}", names(MAX_FILES + 1)), file).unwrap_err();
    let listed = "the policy has 257 names in an `include`; at most 256 are allowed";
    assert_eq!(kinds(&mistakes), [listed]);
    assert_eq!(opened.get(), 0);
}

/// The limit on bytes is for all files together: 255 files exceed it, although each file by itself
/// is within the limit.
#[test]
fn includes_share_limit_of_bytes() {
    let opened = Cell::new(0);
    let line = format!("# {}\n", "x".repeat(61));
    let filler = line.repeat(MAX_BYTES / 100 / line.len());
    let file = |path: &str| {
        opened.set(opened.get() + 1);
        Some(Source::new(path, &format!("policy = 1\n{filler}")))
    };
    let names: Vec<_> = (0..MAX_FILES - 1)
        .map(|number| format!("{number}.toml"))
        .collect();
    let text = format!("{HEAD}{}", include(names.iter().map(|name| &**name)));
    let mistakes = read(&text, file).unwrap_err();
    let [kind] = &kinds(&mistakes)[..] else {
        panic!("{mistakes:?}");
    };
    assert!(
        kind.contains("bytes with its includes; at most 16777216"),
        "{kind}"
    );
    assert_eq!(opened.get(), 100);
    // The message points to the include.
    let place = mistakes.place(&mistakes.mistakes()[0]);
    assert_eq!(
        place.map(|(source, place)| (source.name(), place.line)),
        Some(("policy.toml", 103))
    );
}

#[test]
fn included_texts_of_same_name_are_distinguished_by_identity() {
    let file = |path: &str| {
        let (name, identity, entry) = match path {
            "a" => ("\u{fffd}.toml", b"\xff.toml".as_slice(), "0x10 = \"r\""),
            "b" => ("\u{fffd}.toml", b"\xfe.toml".as_slice(), "0x11 = \"r\""),
            _ => ("link.toml", b"\xff.toml".as_slice(), "0x10 = \"r\""),
        };
        let text = format!("policy = 1\n[msrs]\n{entry}\n");
        Some(Source::new(name, &text).with_identity(identity))
    };
    let policy = read(&format!("{HEAD}{}", include(["a", "b", "c"])), file).unwrap();
    assert_eq!(
        (
            policy.policy().sources().len(),
            policy.policy().entries().len()
        ),
        (3, 2)
    );
    let keys: Vec<_> = policy.policy().entries().iter().map(Entry::key).collect();
    assert_eq!(keys, ["0x10", "0x11"]);
}

/// A message about a file that is not a policy says just that, and never quotes the file, whatever
/// the form of its content.
#[test]
fn include_of_file_that_is_not_policy_never_quotes_its_text() {
    for secret in [
        "hunter2",
        "password: hunter2\n",
        "password = 'hunter2'\n",
        "[msrs]\nhunter2 = 'r'\n",
        "default = 'hunter2'\npolicy = 'hunter2'\n",
        "policy = { hunter2 = 1 }\n",
        "[policy]\nhunter2 = 1\n",
        "hunter2\npolicy = 1\n",
        "include = ['hunter2']\n",
        &format!("hunter2 = '{}'\n", "x".repeat(MAX_LINE)),
        "hunter2 = 1\nhunter2 = 2\n",
        "policy = 7\nname = 'hunter2'\nhunter2\n",
        "policy = 30\n[msrs]\nhunter2 = 'r'\n",
        "policy = 0x1f\ninclude = ['hunter2']\n",
        "policy = -1\nhunter2 = '\u{202e}'\n",
        &format!("policy = 2\nhunter2 = '{}'\n", "x".repeat(MAX_LINE)),
        &format!("hunter2{}", ",".repeat(crate::MAX_TOKENS)),
        "hunter2 = '\u{fffd}",
    ] {
        let included = read(&format!("{HEAD}{}", include(["x.toml"])), |path| {
            Some(Source::new(path, secret))
        });
        let alone = parse(&Source::new("policy.toml", secret), &mut NoIncludes);
        let formatted = crate::format(&Source::new("policy.toml", secret)).map(|_| ());
        for mistakes in [included.map(|_| ()), alone.map(|_| ()), formatted] {
            let mistakes = mistakes.unwrap_err();
            let said = all_that_is_said(&mistakes);
            let secret: String = secret.chars().take(60).collect();
            assert!(!said.contains("hunter2"), "{secret}: {said}");
            let is_of_the_whole = said.contains("this text is not a policy")
                || said.contains("this msrgate does not know version");
            assert!(is_of_the_whole, "{secret}: {said}");
            assert_eq!(mistakes.total(), 1, "{secret}: {said}");
        }
    }
}

#[test]
fn include_of_file_that_is_not_policy_is_reported_at_include() {
    let mistakes = read(&format!("{HEAD}{}", include(["x.toml"])), |path| {
        Some(Source::new(path, "user = 1\npassword = hunter2\n"))
    });
    let said = all_that_is_said(&mistakes.unwrap_err());
    assert!(
        said.contains(
            "this text is not a policy: line 2 is not TOML, and no line above it is `policy = 1`"
        ),
        "{said}"
    );
    assert!(
        said.contains("in `x.toml`") && said.contains("policy.toml:4:1"),
        "{said}"
    );
}

/// The limit of entries is for all files together. The entries of a text that exceeds the limit are
/// refused before they are parsed.
#[test]
fn includes_share_limit_of_entries() {
    let entries = |file: usize| {
        let lines = (0..60_000).map(|msr| format!("{:#x}='r'\n", 0x10000 * (file + 1) + msr));
        lines.collect::<String>()
    };
    let file = |path: &str| {
        let number = path.parse().ok()?;
        Some(Source::new(
            path,
            &format!("policy = 1\n[msrs]\n{}", entries(number)),
        ))
    };
    let text = format!("{HEAD}{}", include(["0", "1", "2", "3", "4", "5"]));
    let mistakes = read(&text, file).unwrap_err();
    let kind = "the policy has 300000 entries; at most 250000 are allowed";
    assert_eq!(kinds(&mistakes), [kind; 2]);
}

/// If the policy and its include have 20,000 spellings of one MSR each, overrides are found without
/// comparing all pairs, which would take 400 million steps.
#[test]
fn overrides_in_many_spellings_are_found_quickly() {
    let spelled = |number: usize| -> String {
        let bits = (0..15).map(|bit| if number >> bit & 1 == 1 { "0_" } else { "0" });
        format!("0x{}10", bits.collect::<String>())
    };
    let entries = |says: &str| -> String {
        (0..20_000)
            .map(|number| format!("{} = {says}\n", spelled(number)))
            .collect()
    };
    let base = format!("policy = 1\n[msrs]\n{}", entries("'r'"));
    let own = entries("{ read = 'deny', write = 'allow', override = true }");
    let text = format!("{HEAD}include = ['base.toml']\n[msrs]\n{own}");
    let policy = read(&text, |path| Some(Source::new(path, &base))).unwrap();
    let compiled = compile(policy).unwrap();
    let table = compiled.variants()[0].rules();
    let said = msrgate_filter::Access::ALL.map(|access| {
        table
            .at(msrgate_filter::MsrIndex::new(0x10), access)
            .action
            .clone()
    });
    assert_eq!(said, [Action::Deny, Action::Allow]);
}
