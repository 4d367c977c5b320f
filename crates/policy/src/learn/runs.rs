//! The comment that counts the runs from which a policy was learnt.

use super::Notes;

/// The numbers of runs from which a policy was learnt. They stand in a comment at the head of the
/// policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) all: u32,
    /// The number of runs since the last run that added something to the policy.
    pub(super) without_news: u32,
}

const BEGINNING: &str = "# Learnt by msrgate from ";

impl Runs {
    /// Returns the numbers of runs that one of these comments states, or 0 if no comment states
    /// them.
    pub(super) fn of(head: &[String]) -> Self {
        head.iter().find_map(|line| read(line)).unwrap_or_default()
    }

    /// Returns the numbers of runs after one more run.
    pub(super) const fn after(self, has_news: News) -> Self {
        Self {
            all: self.all.saturating_add(1),
            without_news: match has_news {
                News::Some => 0,
                News::None => self.without_news.saturating_add(1),
            },
        }
    }

    /// Writes the numbers of runs into the comments at the head of a policy.
    pub(super) fn put(self, head: &mut Vec<String>) {
        if let Some(line) = head.iter_mut().find(|line| read(line).is_some()) {
            *line = self.line();
            return;
        }
        let top = top(head);
        if head.len() == top {
            head.push(String::new());
        }
        head.insert(top, self.line());
    }

    /// Adds notes as comments at the head of a policy: those about missing accesses first, the others below the numbers
    /// of runs. A comment that stands there already is not repeated.
    pub(super) fn put_notes(head: &mut Vec<String>, notes: &Notes) {
        let comment = |text: &String| format!("# {text}");
        let below = head
            .iter()
            .position(|line| read(line).is_some())
            .map_or(0, |at| at + 1);
        for line in notes.unseen.iter().rev().map(comment) {
            if !head.contains(&line) {
                head.insert(below, line);
            }
        }
        for line in notes.missing.iter().rev().map(comment) {
            if !head.contains(&line) {
                head.insert(top(head), line);
            }
        }
    }

    fn line(self) -> String {
        let runs = if self.all == 1 { "run" } else { "runs" };
        let news = match self.without_news {
            0 => String::new(),
            1 => "; the last one added nothing".to_owned(),
            count => format!("; the last {count} added nothing"),
        };
        format!("{BEGINNING}{} {runs}{news}.", self.all)
    }
}

/// Returns the number of the first line that comments may take: editors look for the schema in the first line.
fn top(head: &[String]) -> usize {
    usize::from(
        head.first()
            .is_some_and(|line| line.starts_with("#:schema")),
    )
}

/// A flag: a run added something to the policy, or added nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Some,
    None,
}

fn read(line: &str) -> Option<Runs> {
    let rest = line.strip_prefix(BEGINNING)?.strip_suffix('.')?;
    let (count, rest) = rest.split_once(' ')?;
    let rest = rest
        .strip_prefix("run")
        .map(|rest| rest.trim_start_matches('s'))?;
    let without_news = match rest {
        "" => 0,
        "; the last one added nothing" => 1,
        rest => {
            let count = rest.strip_prefix("; the last ")?;
            count.strip_suffix(" added nothing")?.parse().ok()?
        }
    };
    Some(Runs {
        all: count.parse().ok()?,
        without_news,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_runs_are_same_after_writing_to_comment_and_reading_back() {
        for runs in [(1, 0), (2, 0), (2, 1), (30, 12)] {
            let (all, without_news) = runs;
            let runs = Runs { all, without_news };
            let mut head = vec!["# A guest of ours.".to_owned(), String::new()];
            runs.put(&mut head);
            assert_eq!(Runs::of(&head), runs, "{head:?}");
            runs.after(News::None).put(&mut head);
            assert_eq!(Runs::of(&head), runs.after(News::None), "{head:?}");
            assert_eq!(head.len(), 3, "the line is replaced: {head:?}");
        }
    }
}
