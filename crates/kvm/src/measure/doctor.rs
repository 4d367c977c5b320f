//! The numbered statements of `docs/kvm-semantics.md`, measured on this host. Each statement is tried in a
//! VM of its own, by an ioctl or with the built-in guest.

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

/// A numbered statement of `docs/kvm-semantics.md` about KVM's behaviour, with the function that tries it.
#[derive(Clone, Copy)]
pub struct Statement {
    number: &'static str,
    text: &'static str,
    check: Check,
}

/// A function that tries a numbered statement about KVM on this host. The function returns an error if
/// a system call or the guest fails in a way that no statement allows.
type Check = fn(&mut Lab) -> Result<Finding, GuestError>;

/// The result of trying a numbered statement about KVM on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The host behaves as the statement says.
    Holds,
    /// The host does not behave as the statement says.
    Differs {
        /// The behaviour that was observed, followed by the expected behaviour if its description is short.
        seen: String,
    },
    /// No ioctl and no built-in guest can show if the statement holds. `why` says if that is so on every
    /// host, or only on this one.
    CannotBeShown {
        /// The reason why the statement cannot be shown.
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

    /// The number of the statement in `docs/kvm-semantics.md`. If a statement is tried in several parts,
    /// each part has a letter after the number.
    #[must_use]
    pub const fn number(&self) -> &'static str {
        self.number
    }

    /// The text of the statement, in one line.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        self.text
    }

    /// Tries the statement on this host, in a new VM.
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

/// Returns all numbered statements, in the order of their chapters, including those that no host can show.
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
    /// Compares the observed result `seen` with the expected result `wanted`. `what` names the result in the
    /// finding.
    fn compare<T: fmt::Debug + PartialEq>(what: &str, seen: &T, wanted: &T) -> Self {
        if seen == wanted {
            Self::Holds
        } else {
            Self::Differs {
                seen: format!("{what}: {seen:?} instead of {wanted:?}"),
            }
        }
    }

    /// Returns `other` if `self` is [`Self::Holds`], else `self`.
    fn and(self, other: Self) -> Self {
        match self {
            Self::Holds => other,
            found => found,
        }
    }

    /// Returns the first finding other than [`Self::Holds`], or [`Self::Holds`] if there is none.
    fn all(findings: impl IntoIterator<Item = Self>) -> Self {
        findings.into_iter().fold(Self::Holds, Self::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn doctor_statements_have_unique_numbers_and_one_line_texts() {
        let mut numbers = BTreeSet::new();
        for statement in statements() {
            assert!(numbers.insert(statement.number()), "{statement:?}");
            assert!(!statement.text().contains('\n'), "{statement:?}");
            assert!(!statement.text().ends_with('.'), "{statement:?}");
        }
    }

    #[test]
    fn finding_all_returns_first_finding_other_than_holds() {
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
