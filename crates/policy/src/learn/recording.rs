//! Recordings: traces and logs of events, from which learning takes the accesses that a guest made.

use std::collections::BTreeMap;

use msrgate_filter::{Access, MsrIndex};

use super::{Fate, First, Notes, Sighting};
use crate::trace::{Line, LineNumber, MAX_ROWS, Outcome, Told, Totals, Traced};

/// The accesses of a recording: a trace of the kernel's event `kvm_msr`, or the events of a gate.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    kinds: BTreeMap<(MsrIndex, Access), Kind>,
    /// The number of accesses that a gate's event tells of.
    events: u64,
    /// The number of accesses that lines without a gate's event tell of.
    traced: u64,
    /// The number of events of accesses that no policy refused.
    passed: u64,
    /// The number of events of accesses by which a policy ended the guest.
    ended: u64,
}

/// The accesses of one MSR in one direction.
#[derive(Clone, Copy, Debug)]
struct Kind {
    first: LineNumber,
    /// The value of the first write, if the recording has it.
    value: Option<u64>,
    /// The best fate that one of these accesses had, in the order of [`Fate`].
    best: Fate,
    /// The fate of those accesses that KVM did not carry out, if there were any.
    by_kvm: Option<Fate>,
}

impl Recording {
    /// Adds one line of the recording.
    pub fn add(&mut self, number: LineNumber, line: Line) {
        let Line::Access(traced) = line else { return };
        match traced.told {
            Some(told) => {
                self.events += 1;
                self.passed += u64::from(!matches!(told, Told::Refused | Told::Ended));
                self.ended += u64::from(told == Told::Ended);
            }
            None => self.traced += 1,
        }
        let key = (traced.index, traced.access);
        if self.kinds.len() >= MAX_ROWS && !self.kinds.contains_key(&key) {
            return;
        }
        let fate = fate(&traced);
        let kind = self.kinds.entry(key).or_insert(Kind {
            first: number,
            value: traced.value.filter(|_| traced.access == Access::Write),
            best: fate,
            by_kvm: None,
        });
        kind.best = kind.best.min(fate);
        kind.by_kvm = match (kind.by_kvm, fate) {
            // The guest that got an answer once goes on with it.
            (Some(Fate::Answered), _) | (_, Fate::Answered) => Some(Fate::Answered),
            (before, Fate::Refused | Fate::Unknown) => before.max(Some(fate)),
            (before, _) => before,
        };
    }

    /// Returns one sighting for each kind of access. `name` is the recording's name.
    ///
    /// KVM asks the filter before it looks for the register, so that a gate may report one access in two events: as let
    /// through by the filter, and as refused by KVM. Then the refusal decides the fate of the access.
    #[must_use]
    pub fn sightings(&self, name: &str) -> Vec<Sighting> {
        let of = |(&(index, access), kind): (&(MsrIndex, Access), &Kind)| {
            let mut first = First::in_recording(name, kind.first);
            first.value = kind.value;
            let fate = kind.by_kvm.unwrap_or(kind.best);
            Sighting::new(index, access, fate).with_first(first)
        };
        self.kinds.iter().map(of).collect()
    }

    /// Returns the comments about what this recording cannot show. `totals` has the totals of the
    /// recording's lines.
    #[must_use]
    pub fn notes(&self, name: &str, totals: &Totals) -> Notes {
        let mut notes = Notes::default();
        let missing = missing(totals);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            notes.missing = vec![format!(
                "NOT ALL of the guest's accesses are in here. Of {name}: {missing}."
            )];
        }
        let mut say = |text: &str| notes.unseen.push(format!("{name} {text}"));
        if self.traced > 0 {
            say(
                "is a trace. It shows no access of MSRs that KVM passes through to the processor, such as IA32_FS_BASE, IA32_GS_BASE, IA32_SYSENTER_CS and, on AMD, IA32_LSTAR, and none that the tracer's filter left out.",
            );
        }
        if self.events > 0 && self.passed == 0 {
            say(
                "has only refusals. What its policy allowed is missing here; --merge adds to that policy.",
            );
        } else if self.events > 0 {
            say("has the accesses that its policy logs, and no others.");
        }
        if self.traced + self.events == 0 && totals.guarded > 0 {
            say(
                "is of a run that refused nothing. What its policy allowed is missing here; --merge adds to that policy.",
            );
        }
        if self.traced + self.events > 0 {
            say("does not show what the guest did before the recording began.");
        }
        if self.kinds.values().any(|kind| kind.best == Fate::Faulted) {
            say("shows a #GP, but not if KVM or a filter gave it to the guest.");
        }
        let is_answered = |kind: &Kind| kind.by_kvm == Some(Fate::Answered);
        if self.kinds.values().any(is_answered) {
            say(
                "has accesses of MSRs that KVM does not know, and that its policy answered. Under this policy, `unknown` decides about them.",
            );
        }
        notes.unseen.extend(self.end(name));
        notes
    }

    /// Returns the comment about guests that the action `kill` ended: the recording does not show what they would
    /// have done after that. `None`: there is no such guest in the recording. `name` is the recording's name.
    #[must_use]
    pub fn end(&self, name: &str) -> Option<String> {
        let times = match self.ended {
            0 => return None,
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        Some(format!(
            "{name} shows that `kill` ended a guest {times}, and not what the guest would have done after that. Events of `exec --audit` show it."
        ))
    }
}

/// Returns phrases about the parts of the recording that are known to be missing, such as `2 events
/// are lost`.
fn missing(totals: &Totals) -> Vec<String> {
    let mut missing = Vec::new();
    let mut say = |number: u64, one: &str, several: &str| match number {
        0 => {}
        1 => missing.push(format!("1 {one}")),
        number => missing.push(format!("{number} {several}")),
    };
    say(totals.lost, "event is lost", "events are lost");
    say(
        totals.unreadable,
        "line cannot be read",
        "lines cannot be read",
    );
    say(
        totals.nameless(),
        "access went to user space without its MSR's name",
        "accesses went to user space without their MSRs' names",
    );
    say(
        totals.unlisted,
        "access found no room in memory",
        "accesses found no room in memory",
    );
    missing
}

fn fate(traced: &Traced) -> Fate {
    match (traced.told, traced.outcome) {
        (Some(Told::Unknown), Outcome::Faulted) => Fate::Unknown,
        (Some(Told::Unknown), Outcome::Done) => Fate::Answered,
        (Some(Told::Invalid), _) => Fate::Refused,
        (Some(Told::Refused | Told::Ended), _) => Fate::Untried,
        (Some(Told::Passed), _) | (None, Outcome::Done) => Fate::Done,
        (None, Outcome::Faulted) => Fate::Faulted,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::trace::Lines;

    fn recorded(text: &str) -> Recording {
        let mut recording = Recording::default();
        let mut lines = Lines::new(Cursor::new(text));
        while let Some((number, line)) = lines.next_line().unwrap() {
            recording.add(number, line);
        }
        recording
    }

    fn fates(text: &str) -> Vec<(u32, Access, Fate)> {
        let sightings = recorded(text).sightings("r");
        let all = sightings.iter();
        all.map(|one| (one.index.get(), one.access, one.fate))
            .collect()
    }

    fn event(index: u32, reason: &str, action: &str) -> String {
        format!(
            "{{\"schema\":1,\"msr\":\"{index:#x}\",\"access\":\"write\",\"reason\":\"{reason}\",\"action\":\"{action}\"}}\n"
        )
    }

    #[test]
    fn fate_of_recorded_access_follows_from_reason_and_action_of_event() {
        for (reason, action, fate) in [
            ("filter", "deny", Fate::Untried),
            ("filter", "would-deny", Fate::Untried),
            ("filter", "kill", Fate::Untried),
            ("filter", "would-kill", Fate::Untried),
            ("filter", "allow", Fate::Done),
            ("filter", "mask", Fate::Done),
            ("invalid", "deny", Fate::Refused),
            ("unknown", "deny", Fate::Unknown),
            ("unknown", "unknown", Fate::Answered),
        ] {
            let wanted = [(0x277, Access::Write, fate)];
            assert_eq!(
                fates(&event(0x277, reason, action)),
                wanted,
                "{reason} {action}"
            );
        }
    }

    /// A gate may report one access in two events, because KVM asks the filter before it looks for
    /// the register.
    #[test]
    fn access_that_filter_let_through_and_kvm_refused_has_fate_of_refusal() {
        let passed = event(0x1c9, "filter", "allow");
        for (action, fate) in [("deny", Fate::Unknown), ("unknown", Fate::Answered)] {
            let told = event(0x1c9, "unknown", action);
            for text in [format!("{passed}{told}"), format!("{told}{passed}")] {
                assert_eq!(fates(&text), [(0x1c9, Access::Write, fate)], "{text}");
            }
        }
    }

    #[test]
    fn access_has_fate_faulted_only_if_it_got_gp_each_time_in_trace() {
        let fault = "a-1 [0] 1.2: kvm_msr: msr_read 606 = 0x0 (#GP)\n";
        let done = "a-1 [0] 1.3: kvm_msr: msr_read 606 = 0x3\n";
        let index = |fate| [(0x606, Access::Read, fate)];
        assert_eq!(fates(&fault.repeat(2)), index(Fate::Faulted));
        assert_eq!(fates(&format!("{fault}{done}")), index(Fate::Done));
    }

    #[test]
    fn sighting_from_trace_has_line_and_value_of_first_write() {
        let text = "a-1 [0] 1.2: kvm_msr: msr_write c0000080 = 0x500\na-1 [0] 1.3: kvm_msr: msr_write c0000080 = 0xd01\n";
        let sightings = recorded(text).sightings("guest.trace");
        let first = &sightings[0].first;
        assert_eq!(
            (first.at.as_deref(), first.value),
            (Some("guest.trace:1"), Some(0x500))
        );
    }
}
