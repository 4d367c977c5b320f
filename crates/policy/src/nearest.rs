//! Guesses the known word that was meant by an unknown one.

/// Words of other tools and languages, grouped by meaning. For an unknown word, the rows that
/// contain the word are searched in their order, and the first word that is allowed at the place is
/// proposed.
const CONCEPTS: [&[&str]; 11] = [
    &["r", "ro", "read", "read-only", "readonly"],
    &["w", "wo", "write", "write-only", "writeonly"],
    &["denied", "deny", "refused", "denials", "errors", "on"],
    &["all", "debug", "verbose", "every", "trace"],
    &["first", "once"],
    &["audit", "permissive", "log", "warn", "dry-run", "test"],
    &["enforce", "enforcing", "strict", "on"],
    &[
        "allow", "rw", "wr", "r", "w", "accept", "permit", "yes", "all", "on",
    ],
    &[
        "deny", "none", "gp", "no", "off", "refuse", "reject", "block", "drop", "kill",
    ],
    &["ignore", "drop", "discard", "skip", "zero", "none"],
    &["keep", "ignore", "preserve"],
];

/// Returns the known word that stands in the same row of [`CONCEPTS`] as `word`.
fn synonym<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let rows = CONCEPTS.iter().filter(|row| row.contains(&&*word));
    let mut meant = rows.flat_map(|row| row.iter());
    meant.find_map(|meant| known.iter().copied().find(|known| known == meant))
}

/// Returns the number of letters in which `word` and `known` differ, ignoring case.
fn distance(word: &str, known: &str) -> usize {
    strsim::osa_distance(&word.to_lowercase(), &known.to_lowercase())
}

/// Returns the known word that was probably meant, if there is one.
pub(crate) fn meant<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let nearest = known
        .iter()
        .map(|&known| (distance(word, known), known))
        .min()
        .filter(|&(distance, known)| distance <= known.len() / 2 && distance <= 3);
    synonym(word, known).or(nearest.map(|(_, nearest)| nearest))
}

/// Returns advice with the word that was probably meant, if there is one, and with all possible
/// words.
pub(crate) fn one_of(word: &str, known: &[&str], what: &str, quote: char) -> String {
    let meant = meant(word, known);
    let quoted = |word: &str| format!("{quote}{word}{quote}");
    let all: Vec<_> = known.iter().map(|word| quoted(word)).collect();
    let all = format!("{what} may be {}", all.join(", "));
    match meant {
        Some(meant) if known.len() == 1 => format!("did you mean {}?", quoted(meant)),
        Some(meant) => format!("did you mean {}? {}", quoted(meant), capital(&all)),
        None => all,
    }
}

/// Returns a sentence with a capital first letter.
fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(rest).collect()
}
