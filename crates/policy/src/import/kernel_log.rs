//! What KVM writes to the kernel's log about MSRs that it does not know.
//!
//! Read from kernels of 2.6.27 to 7.x and from logs that users have posted. What stands in front of
//! the message differs: times, host, `kvm [PID]:`, `kvm: PID: cpu0`, `vcpu0, guest rIP: 0x…`. The
//! message is
//!
//! - `unhandled rdmsr: 0x1c9`, `unhandled wrmsr: 0x1d9 data 0x1`, `Unhandled WRMSR(0x1d9) = 0x1`: the
//!   guest got #GP;
//! - `ignored rdmsr: 0x1c9 data 0x0`, with `ignore_msrs=1` (S10.1): it read 0, or its write went
//!   nowhere; `unimplemented perfctr wrmsr: 0x186 data 0x130079` and `disabled perfctr wrmsr: …` are
//!   writes that went nowhere, too.

use std::collections::BTreeMap;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, MsrRange};

use super::draft::Draft;
use super::drafts::Drafts;
use super::{hexadecimal, lines};
use crate::registers::by_index;

/// How KVM dealt with an access that it does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dealt {
    /// #GP.
    Refused,
    /// A read of 0, or a write without effect.
    Answered,
}

/// The words before `rdmsr` or `wrmsr`, in small letters.
const WORDS: [(&str, Dealt); 4] = [
    ("unhandled", Dealt::Refused),
    ("ignored", Dealt::Answered),
    ("unimplemented perfctr", Dealt::Answered),
    ("disabled perfctr", Dealt::Answered),
];

struct Message {
    index: MsrIndex,
    access: Access,
    dealt: Dealt,
}

/// All messages about one direction of an MSR.
#[derive(Clone, Copy)]
struct Seen {
    /// What the first one says.
    dealt: Dealt,
    /// The line of the first that says something else.
    changed: Option<usize>,
    count: usize,
}

/// Whether a line is such a message.
pub(super) fn is_message(line: &str) -> bool {
    parse(line).is_some()
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Allow);
    let mut seen: BTreeMap<MsrIndex, [Option<Seen>; 2]> = BTreeMap::new();
    for (number, line) in lines(bytes) {
        match parse(&line) {
            Some(message) => {
                let both = seen.entry(message.index).or_default();
                let seen = both[message.access as usize].get_or_insert(Seen {
                    dealt: message.dealt,
                    changed: None,
                    count: 0,
                });
                seen.count += 1;
                if seen.dealt != message.dealt {
                    seen.changed.get_or_insert(number);
                }
            }
            None if is_about_msrs(&line) => {
                drafts.unsaid(Some(number), "KVM names no MSR there that is understood");
            }
            None => {}
        }
    }
    for (index, both) in seen {
        for (access, seen) in Access::ALL.into_iter().zip(both) {
            if let Some(line) = seen.and_then(|seen| seen.changed) {
                let name = by_index(index).map_or(String::new(), |one| format!(" {}", one.name));
                let what = format!(
                    "{index}{name}: KVM refused some {access}s and answered others; all are refused"
                );
                drafts.unsaid(Some(line), what);
            }
        }
        let actions = Access::ALL.map(|access| both[access as usize].map(|one| one.action(access)));
        drafts.say(&Draft {
            why: Some(counts(both)),
            ..Draft::new(MsrRange::one(index), actions)
        });
    }
    drafts
}

impl Seen {
    /// What KVM did. Of what it did in two ways, the stricter one.
    const fn action(self, access: Access) -> Action {
        match (self.dealt, self.changed, access) {
            (Dealt::Answered, None, Access::Read) => Action::Value(0),
            (Dealt::Answered, None, Access::Write) => Action::Ignore,
            _ => Action::Deny,
        }
    }
}

/// `rdmsr 3 times, wrmsr once`, for a comment.
fn counts(both: [Option<Seen>; 2]) -> String {
    let directions = ["rdmsr", "wrmsr"].into_iter().zip(both);
    let counts: Vec<_> = directions
        .filter_map(|(word, seen)| Some(format!("{word} {}", times(seen?.count))))
        .collect();
    counts.join(", ")
}

fn times(count: usize) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        count => format!("{count} times"),
    }
}

/// Whether KVM speaks of RDMSR or WRMSR in a line, whatever it says.
fn is_about_msrs(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    (line.contains("kvm") || line.contains("vcpu"))
        && ["rdmsr:", "wrmsr:", "rdmsr(", "wrmsr("]
            .iter()
            .any(|word| line.contains(word))
}

fn parse(line: &str) -> Option<Message> {
    let line = line.to_ascii_lowercase();
    if !line.contains("kvm") && !line.contains("vcpu") {
        return None;
    }
    let (at, access) = match (line.find("rdmsr"), line.find("wrmsr")) {
        (Some(at), _) => (at, Access::Read),
        (None, at) => (at?, Access::Write),
    };
    let before = line[..at].trim_end();
    let (_, dealt) = WORDS.into_iter().find(|(word, _)| before.ends_with(word))?;
    let after = &line[at + "rdmsr".len()..];
    let index = match after.strip_prefix('(') {
        Some(index) => index,
        None => after.strip_prefix(':')?.trim_start(),
    };
    let (index, rest) = hexadecimal(index)?;
    let is_cut = rest.starts_with(|next: char| next.is_ascii_alphanumeric());
    Some(Message {
        index: MsrIndex::new(u32::try_from(index).ok().filter(|_| !is_cut)?),
        access,
        dealt,
    })
}
