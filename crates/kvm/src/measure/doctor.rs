//! What the numbered statements say, measured on this host: each in a VM of its own, by an ioctl
//! or by the built-in guest.

mod decision;
mod exits;
mod interface;
mod lab;
mod promises;
mod request;
mod set;

use std::fmt;

use crate::measure::guest::GuestError;
use crate::probe::HostCaps;
use lab::Lab;

/// One thing KVM is said to do.
#[derive(Clone, Copy)]
pub struct Statement {
    number: &'static str,
    text: &'static str,
    check: Check,
}

/// How a statement is tried. An error means that the guest or a call did what none should.
type Check = fn(&mut Lab) -> Result<Finding, GuestError>;

/// What came of trying a statement on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The host does what it says.
    Holds,
    /// It does something else.
    Differs {
        /// What, and where it can be said in few words, instead of what.
        seen: String,
    },
    /// No ioctl and no guest of ours can tell, on this host or on any.
    CannotBeShown {
        /// Why not.
        why: &'static str,
    },
}

impl Statement {
    const fn new(number: &'static str, text: &'static str, check: Check) -> Self {
        Self {
            number,
            text,
            check,
        }
    }

    /// Its number in `docs/kvm-semantics.md`. A letter tells parts of one number apart.
    #[must_use]
    pub const fn number(&self) -> &'static str {
        self.number
    }

    /// What it says, in one line.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// Tries it in a new VM.
    #[must_use]
    pub fn measure(&self, host: &HostCaps) -> Finding {
        match Lab::new(host).and_then(|mut lab| (self.check)(&mut lab)) {
            Ok(finding) => finding,
            Err(error) => Finding::Differs {
                seen: error.to_string(),
            },
        }
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.number, self.text)
    }
}

/// All statements, in the order of their numbers' chapters: those that cannot be shown as well.
pub fn statements() -> impl Iterator<Item = &'static Statement> {
    let chapters = [
        interface::STATEMENTS,
        set::STATEMENTS,
        decision::STATEMENTS,
        exits::STATEMENTS,
        promises::STATEMENTS,
    ];
    chapters.into_iter().flatten()
}

impl Finding {
    /// Compares what was seen with what the statement says.
    fn compare<T: fmt::Debug + PartialEq>(what: &str, seen: &T, wanted: &T) -> Self {
        if seen == wanted {
            Self::Holds
        } else {
            Self::Differs {
                seen: format!("{what}: {seen:?} instead of {wanted:?}"),
            }
        }
    }

    /// This one, unless it holds: then the other.
    fn and(self, other: Self) -> Self {
        match self {
            Self::Holds => other,
            found => found,
        }
    }

    /// The first that does not hold, or [`Self::Holds`].
    fn all(findings: impl IntoIterator<Item = Self>) -> Self {
        findings.into_iter().fold(Self::Holds, Self::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_statement_has_a_number_of_its_own_and_one_line() {
        let mut numbers = BTreeSet::new();
        for statement in statements() {
            assert!(numbers.insert(statement.number()), "{statement:?}");
            assert!(!statement.text().contains('\n'), "{statement:?}");
            assert!(!statement.text().ends_with('.'), "{statement:?}");
        }
    }

    #[test]
    fn the_first_finding_that_does_not_hold_is_the_one() {
        let differs = Finding::compare("a", &1, &2);
        let wanted = Finding::Differs {
            seen: "a: 1 instead of 2".to_owned(),
        };
        assert_eq!(differs, wanted);
        let other = Finding::CannotBeShown { why: "b" };
        assert_eq!(Finding::all([Finding::Holds, differs, other]), wanted);
        assert_eq!(Finding::all([]), Finding::Holds);
    }
}
