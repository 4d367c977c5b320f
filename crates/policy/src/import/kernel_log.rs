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

use super::draft::{Draft, Drafts};
use super::{hexadecimal, lines};
use crate::action::Action;
use crate::msrs::MsrRange;
use crate::registers::by_index;

/// How KVM dealt with an access that it does not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// All messages about an MSR that say the same of one direction.
#[derive(Clone, Copy)]
struct Seen {
    first: usize,
    count: usize,
}

/// Whether a line is such a message.
pub(super) fn is_message(line: &str) -> bool {
    parse(line).is_some()
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Allow);
    let mut seen: BTreeMap<(MsrIndex, Dealt), [Option<Seen>; 2]> = BTreeMap::new();
    for (number, line) in lines(bytes) {
        match parse(&line) {
            Some(message) => {
                let both = seen.entry((message.index, message.dealt)).or_default();
                let seen = &mut both[message.access as usize];
                seen.get_or_insert(Seen {
                    first: number,
                    count: 0,
                })
                .count += 1;
            }
            None if is_about_msrs(&line) => {
                drafts.unsaid(Some(number), "KVM names no MSR there that is understood");
            }
            None => {}
        }
    }
    for ((index, dealt), both) in seen {
        match dealt {
            Dealt::Refused => drafts.say(&Draft {
                msrs: MsrRange::one(index),
                actions: both.map(|seen| seen.map(|_| Action::Deny)),
                why: Some(counts(both)),
            }),
            Dealt::Answered => unsaid(&mut drafts, index, both),
        }
    }
    drafts
}

/// An access that KVM answered: to refuse it would change what the guest sees.
fn unsaid(drafts: &mut Drafts, index: MsrIndex, both: [Option<Seen>; 2]) {
    let name = by_index(index).map_or(String::new(), |register| format!(" {}", register.name));
    for (access, seen) in Access::ALL.into_iter().zip(both) {
        let Some(Seen { first, count }) = seen else {
            continue;
        };
        let answer = match access {
            Access::Read => "answered a read with 0",
            Access::Write => "dropped a write",
        };
        let what = format!(
            "{index}{name}: KVM {answer} ({}); an entry would refuse it, so that it is left to KVM",
            times(count)
        );
        drafts.unsaid(Some(first), what);
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
