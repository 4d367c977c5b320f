//! Reads KVM's messages in the kernel's log about MSRs that KVM does not know.
//!
//! The formats come from kernels of 2.6.27 to 7.x and from logs that users have posted. The text
//! before the message differs: times, host, `kvm [PID]:`, `kvm: PID: cpu0`,
//! `vcpu0, guest rIP: 0x…`. The messages are
//!
//! - `unhandled rdmsr: 0x1c9`, `unhandled wrmsr: 0x1d9 data 0x1`, `Unhandled WRMSR(0x1d9) = 0x1`:
//!   the guest got #GP;
//! - `ignored rdmsr: 0x1c9 data 0x0`, with `ignore_msrs=1` (S10.1): a read gave 0, or a write had
//!   no effect; `unimplemented perfctr wrmsr: 0x186 data 0x130079` and `disabled perfctr wrmsr: …`
//!   are writes without effect, too.
//!
//! Logging daemons replace repetitions by `message repeated 3 times: [ … ]`, or, for the line
//! before, by `last message repeated 3 times`. Both are counted. If the kernel or a daemon dropped
//! messages and the log tells so, the import has a remark.

use std::collections::BTreeMap;

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, MsrRange};

use super::draft::{Draft, Gap};
use super::drafts::Drafts;
use super::{hexadecimal, lines};
use crate::registers::by_index;

/// The way in which KVM handled an access of an unknown MSR.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dealt {
    /// KVM gave the guest #GP.
    Refused,
    /// KVM returned 0 to a read, or ignored a write.
    Answered,
}

/// The words before `rdmsr` or `wrmsr`, in small letters.
const WORDS: [(&str, Dealt); 4] = [
    ("unhandled", Dealt::Refused),
    ("ignored", Dealt::Answered),
    ("unimplemented perfctr", Dealt::Answered),
    ("disabled perfctr", Dealt::Answered),
];

#[derive(Clone, Copy)]
struct Message {
    index: MsrIndex,
    access: Access,
    dealt: Dealt,
}

/// All messages about one direction of an MSR.
#[derive(Clone, Copy)]
struct Seen {
    /// The result that the first message reports.
    dealt: Dealt,
    /// The line of the first message that reports another result.
    changed: Option<usize>,
    count: usize,
}

/// The part of a log that has been read.
#[derive(Default)]
struct Log {
    seen: BTreeMap<MsrIndex, [Option<Seen>; 2]>,
    /// The message in the line before.
    before: Option<Message>,
    /// The first line that reports dropped messages.
    dropped: Option<usize>,
}

/// Returns true if a line is a message about an unknown MSR.
pub(super) fn is_message(line: &str) -> bool {
    parse(line).is_some()
}

/// Returns true if a line without its line feed still names its register: a character follows the
/// index, so no digit of the index is missing.
pub(super) fn is_whole(line: &str) -> bool {
    // A letter directly after the index makes a line unreadable, so a line that ends with its index
    // fails this check.
    is_message(&format!("{line}x"))
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Allow);
    let mut log = Log::default();
    for (number, line) in lines(bytes) {
        log.line(number, &line, &mut drafts);
    }
    if let Some(line) = log.dropped {
        let what = "the log says that messages are missing, so the policy may lack registers; record a trace of kvm:kvm_msr, and compare it with the policy by `msrgate replay`";
        drafts.lose(Some(line), what);
        drafts.lacks(Gap::LostMessages);
    }
    for (index, both) in log.seen {
        for (access, seen) in Access::ALL.into_iter().zip(both) {
            if let Some(line) = seen.and_then(|seen| seen.changed) {
                let name = by_index(index).map_or(String::new(), |one| format!(" {}", one.name));
                let what = format!(
                    "{index}{name}: KVM refused some {access}s and answered others; the policy refuses all {access}s"
                );
                drafts.lose(Some(line), what);
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

impl Log {
    fn line(&mut self, number: usize, line: &str, drafts: &mut Drafts) {
        let repeated = repetitions(line);
        let message = parse(line);
        match (message, repeated, self.before) {
            (Some(message), ..) => self.count(number, message, repeated.unwrap_or(1)),
            (None, Some(repeated), Some(before)) => self.count(number, before, repeated),
            (None, None, _) if is_about_msrs(line) => {
                drafts.lose(
                    Some(number),
                    "this line was skipped: KVM wrote it, but msrgate finds no MSR in it",
                );
            }
            (None, None, _) if says_that_messages_were_dropped(line) => {
                self.dropped.get_or_insert(number);
            }
            _ => {}
        }
        self.before = message;
    }

    fn count(&mut self, number: usize, message: Message, times: usize) {
        let both = self.seen.entry(message.index).or_default();
        let seen = both[message.access as usize].get_or_insert(Seen {
            dealt: message.dealt,
            changed: None,
            count: 0,
        });
        seen.count = seen.count.saturating_add(times);
        if seen.dealt != message.dealt {
            seen.changed.get_or_insert(number);
        }
    }
}

impl Seen {
    /// Returns the action that repeats KVM's result. If KVM gave two different results, returns
    /// deny.
    const fn action(self, access: Access) -> Action {
        match (self.dealt, self.changed, access) {
            (Dealt::Answered, None, Access::Read) => Action::Value(0),
            (Dealt::Answered, None, Access::Write) => Action::Ignore,
            _ => Action::Deny,
        }
    }
}

/// Returns the counts for a comment, such as `rdmsr 3 times, wrmsr once`.
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

/// Returns the number of repetitions that a line reports, of its own message or of the line before.
fn repetitions(line: &str) -> Option<usize> {
    let (_, after) = line.split_once("message repeated ")?;
    let (times, _) = after.split_once(" times")?;
    times.parse().ok()
}

/// Returns true if a line reports that messages were dropped, because of a rate limit or because
/// the reader of the log was too slow. Messages of KVM about MSRs may be among them.
fn says_that_messages_were_dropped(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    if let Some((before, _)) = line.split_once(" callbacks suppressed") {
        // The name of the kernel function that logs stands before the number, as in
        // `kvm_msr_ignored_check: 120`. Each function has a rate limit of its own.
        let function = before
            .rsplit_once(':')
            .map_or(before, |(function, _)| function);
        let function = function.rsplit(' ').next().unwrap_or_default();
        let of_kvm = ["kvm", "vmx", "svm", "msr", "__ratelimit"];
        return of_kvm.iter().any(|part| function.contains(part));
    }
    line.contains("printk messages dropped")
        || line.contains("kmsg buffer overrun")
        || line.contains("messages lost due to rate-limiting")
        || line.contains(": suppressed ") && line.contains(" messages from kernel")
        || line.contains(" messages suppressed --")
        || line.contains(" missed ") && line.contains(" kernel messages")
}

/// Returns true if a line is any message of KVM about RDMSR or WRMSR.
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
