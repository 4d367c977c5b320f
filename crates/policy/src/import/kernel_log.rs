//! Reads messages in the kernel's log about MSRs that KVM does not know, or does not implement.
//!
//! The messages come from kernels of 2.6.20 to 7.x and from logs that users have posted. The text
//! before a message differs: times, host, `kvm [PID]:`, `kvm: PID: cpu0`,
//! `vcpu0, guest rIP: 0x…`. [`message`] has the wordings, and [`results`] the table of what the
//! guest got. [`text`] unwraps lines. The kernel of a guest has a message of its own,
//! `unchecked MSR access error: …`, for an access that got #GP.
//!
//! The policy refuses an access only if KVM refused every access of that register. The policy
//! leaves a register to KVM if KVM itself dropped the write or refused one value, or if the log
//! does not tell the result.
//!
//! Logging daemons replace repetitions by `message repeated 3 times: [ … ]`, or, for the line
//! before, by `last message repeated 3 times`. The import counts repetitions in both forms. If the
//! kernel or a daemon dropped messages and the log tells so, the import has a remark.

mod message;
mod results;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use msrgate_filter::{Access, MsrIndex};
use msrgate_program::{Action, MsrRange};

use super::draft::{Draft, Gap};
use super::drafts::Drafts;
use crate::registers::titled;

use message::{Message, Wording, is_of_kvm};
use results::Got;

/// The messages about accesses of one MSR in one direction.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// For each result of an access, the number of the line with the first message about that
    /// result; indexed by [`Got`].
    first: [Option<usize>; Got::COUNT],
    count: usize,
}

/// The part of a log that has been read.
#[derive(Default)]
struct Log {
    seen: BTreeMap<MsrIndex, [Option<Seen>; 2]>,
    /// The messages in the line that was read last.
    before: Vec<Message>,
    /// The number of the first line that reports dropped messages.
    dropped: Option<usize>,
    /// The number of messages that were dropped, as far as the log reports it.
    suppressed: u64,
    /// The accesses that the VMM made while a vCPU was at the reset vector.
    reset: BTreeSet<(MsrIndex, Access)>,
    /// The number of the line with the first message of KVM.
    of_kvm: Option<usize>,
    /// The number of the line with the first message of a guest's kernel.
    of_guest: Option<usize>,
}

/// Returns the number of the first line with a message about an MSR.
pub(super) fn first_message(bytes: &[u8]) -> Option<usize> {
    let mut entries = text::entries(bytes);
    let first = entries.find(|entry| !entry.messages.read.is_empty());
    first.map(|entry| entry.number)
}

/// Returns true if a last line whose line feed is missing still names its register: a character
/// follows the index, so no digit of the index is missing.
pub(super) fn is_whole(line: &str) -> bool {
    // A letter directly after the index makes a line unreadable, so a line that ends with its index
    // fails this check.
    first_message(format!("{line}x").as_bytes()).is_some()
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Allow);
    let mut log = Log::default();
    for entry in text::entries(bytes) {
        log.entry(&entry, &mut drafts);
    }
    log.remarks(&mut drafts);
    for (index, both) in log.seen {
        for (access, seen) in Access::ALL.into_iter().zip(both) {
            if let Some(seen) = seen {
                seen.remarks(index, access, &mut drafts);
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
    fn entry(&mut self, entry: &text::Entry, drafts: &mut Drafts) {
        let repeated = repetitions(&entry.text);
        let read = &entry.messages.read;
        if let Some(times) = repeated
            && read.is_empty()
            && !is_about_msrs(&entry.text)
        {
            for message in std::mem::take(&mut self.before) {
                self.count(entry.number, message, times, drafts);
            }
            return;
        }
        for message in read {
            self.count(entry.number, *message, repeated.unwrap_or(1), drafts);
        }
        if entry.messages.has_unread || read.is_empty() && is_about_msrs(&entry.text) {
            let what = if read.is_empty() {
                "this line was skipped: it is about an MSR, but msrgate cannot read it as a message of KVM"
            } else {
                "a part of this line was skipped: msrgate cannot read all of its messages"
            };
            drafts.skip(entry.number, what);
        } else if read.is_empty()
            && let Some(count) = dropped(&entry.text)
        {
            self.dropped.get_or_insert(entry.number);
            self.suppressed = self.suppressed.saturating_add(count);
        }
        self.before.clone_from(read);
    }

    fn count(&mut self, number: usize, message: Message, times: usize, drafts: &mut Drafts) {
        if message.is_reset {
            let access = message.access;
            if self.reset.insert((message.index, access)) {
                let what = format!(
                    "{}: this {access} is at rIP 0xfff0, the reset vector, so the VMM made it, and not the guest; the policy says nothing of such {access}s",
                    titled(message.index)
                );
                drafts.lose(Some(number), what);
            }
            return;
        }
        if let Some(why) = results::known(&message) {
            let what = format!(
                "{}: KVM {why}, so it prints no such message about it; is the number cut? The policy says nothing of this {}",
                titled(message.index),
                message.access
            );
            drafts.skip(number, what);
            return;
        }
        let first = match message.wording {
            Wording::Guest => &mut self.of_guest,
            _ => &mut self.of_kvm,
        };
        first.get_or_insert(number);
        let both = self.seen.entry(message.index).or_default();
        let seen = both[message.access as usize].get_or_insert_default();
        seen.count = seen.count.saturating_add(times);
        seen.first[results::got(&message) as usize].get_or_insert(number);
    }

    /// Adds the remarks about the log as a whole to `drafts`.
    fn remarks(&self, drafts: &mut Drafts) {
        if let Some(line) = self.dropped {
            let messages = match self.suppressed {
                0 => "messages are".to_owned(),
                1 => "one message is".to_owned(),
                count => format!("{count} messages are"),
            };
            let what = format!(
                "the log says that {messages} missing, so the policy may lack registers; record a trace of kvm:kvm_msr, and compare it with the policy by `msrgate replay`"
            );
            drafts.note(Some(line), what);
            drafts.lacks(Gap::LostMessages);
        }
        if let (Some(_), Some(line)) = (self.of_kvm, self.of_guest) {
            drafts.note(
                Some(line),
                "the log has messages of KVM, so this one, of the kernel whose log it is, may be about an access of the host itself; it was read as an access of a guest",
            );
        }
    }
}

impl Seen {
    fn has(self, got: Got) -> bool {
        self.first[got as usize].is_some()
    }

    /// Returns true if the accesses of all messages had this result.
    fn is_only(self, got: Got) -> bool {
        self.has(got) && self.first.iter().flatten().count() == 1
    }

    /// Returns the action that gives a guest the result that the messages tell. If no action does,
    /// or if the messages do not tell the result, returns `allow`, which leaves the register to
    /// KVM.
    fn action(self, access: Access) -> Action {
        match access {
            _ if self.is_only(Got::Fault) => Action::Deny,
            Access::Read if self.is_only(Got::Answered) => Action::Value(0),
            Access::Write if self.is_only(Got::Answered) => Action::Ignore,
            _ => Action::Allow,
        }
    }

    /// Adds the remarks about accesses of one MSR in one direction to `drafts`.
    fn remarks(self, index: MsrIndex, access: Access, drafts: &mut Drafts) {
        let name = titled(index);
        let others = |got| self.has(got) && !self.is_only(got);
        if let Some(line) = self.first[Got::FaultOfValue as usize] {
            let what = format!(
                "{name}: the guest got #GP for this value, but KVM may take other values, so the policy leaves {access}s to KVM; a KVM of the same version refuses this value again"
            );
            drafts.note(Some(line), what);
        }
        if let Some(line) = self.first[Got::Unknown as usize] {
            let what = format!(
                "{name}: the message does not tell if the guest got #GP, so the policy leaves {access}s to KVM"
            );
            drafts.note(Some(line), what);
        }
        if others(Got::Fault) || others(Got::Answered) {
            let changed = self.first.iter().flatten().max().copied();
            let what = format!(
                "{name}: KVM did not treat all {access}s alike, so the policy leaves {access}s to KVM"
            );
            drafts.note(changed, what);
        }
    }
}

/// Returns the numbers of messages, as text for a comment such as `rdmsr 3 times, wrmsr once (no
/// effect)`.
fn counts(both: [Option<Seen>; 2]) -> String {
    let directions = ["rdmsr", "wrmsr"].into_iter().zip(both);
    let counts: Vec<_> = directions
        .filter_map(|(word, seen)| {
            let seen = seen?;
            let is_of_both = seen.first.iter().flatten().count() == 2;
            let dropped = if seen.is_only(Got::Dropped) {
                " (KVM drops it)"
            } else if seen.is_only(Got::Cut)
                || is_of_both && seen.has(Got::Cut) && seen.has(Got::Dropped)
            {
                " (KVM drops bits of it)"
            } else {
                ""
            };
            Some(format!("{word} {}{dropped}", times(seen.count)))
        })
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

/// Returns the number of repetitions that a line reports: of the message in that line, or of the
/// line before it.
fn repetitions(line: &str) -> Option<usize> {
    let (_, after) = line.split_once("message repeated ")?;
    let (times, _) = after.split_once(" times")?;
    times.parse().ok()
}

/// Returns the number of messages that were dropped, if a line in small letters reports some. The
/// messages were dropped because of a rate limit, or because the reader of the log was too slow,
/// and messages of KVM about MSRs may be among them. If the line does not have the number, the
/// result is `Some(0)`.
fn dropped(line: &str) -> Option<u64> {
    if let Some((before, _)) = line.split_once(" callbacks suppressed") {
        // The name of the kernel function that logs stands before the number, as in
        // `kvm_msr_ignored_check: 120`. Each function has a rate limit of its own.
        let (function, count) = before.rsplit_once(':').unwrap_or((before, ""));
        let function = function.rsplit(' ').next().unwrap_or_default();
        let of_kvm = ["kvm", "vmx", "svm", "msr", "__ratelimit", "hv_"];
        let is_of_kvm = of_kvm.iter().any(|part| function.contains(part));
        return is_of_kvm.then(|| count.trim().parse().unwrap_or(0));
    }
    // Kernels before 2.6.28 print `printk: 12 messages suppressed.`
    if let Some((before, _)) = line.split_once(" messages suppressed") {
        let count = before.rsplit(' ').next().unwrap_or_default();
        return Some(count.parse().unwrap_or(0));
    }
    let is_dropped = line.contains("printk messages dropped")
        || line.contains("kmsg buffer overrun")
        || line.contains("messages lost due to rate-limiting")
        || line.contains(": suppressed ") && line.contains(" messages from kernel")
        || line.contains(" missed ") && line.contains(" kernel messages");
    is_dropped.then_some(0)
}

/// Returns true if a line in small letters is any message of KVM about RDMSR or WRMSR, or of a guest's
/// kernel.
fn is_about_msrs(line: &str) -> bool {
    let is_name = |next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '+' | '-');
    // The names of functions in a call trace, such as `kvm_emulate_wrmsr+0x1c`, are no words.
    let has_word = |word: &str| {
        let mut places = line.match_indices(word);
        places.any(|(at, _)| {
            !line[..at].ends_with(is_name) && !line[at + word.len()..].starts_with(is_name)
        })
    };
    line.contains(message::OF_GUEST)
        || is_of_kvm(line) && (has_word("rdmsr") || has_word("wrmsr") || line.contains(", nop"))
}
