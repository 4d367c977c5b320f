//! Tests that a gate logs the accesses that `explain` says become events.

use msrgate_filter::{Access, MsrIndex};
use msrgate_policy::{Events, NoIncludes, Source, compile, explain, parse};

use super::machine::{FMASK, LSTAR, NOWHERE, STAR, on_each};
use crate::gate::{Gate, GateOptions};
use crate::measure::guest::Op::{Read, Write};

const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const LOADER: MsrIndex = MsrIndex::new(0x79);

/// The accesses of an MSR in one direction under a policy: which of three accesses are refused, and the
/// events that `explain` says they become.
struct Row {
    settings: &'static str,
    entry: &'static str,
    index: MsrIndex,
    access: Access,
    events: Events,
    /// The number of refused accesses, of three reads or of writes of 1, 2 and 3. In audit mode, the number of
    /// accesses that would be refused.
    refused: usize,
}

const fn row(
    settings: &'static str,
    entry: &'static str,
    (index, access): (MsrIndex, Access),
    events: Events,
    refused: usize,
) -> Row {
    Row {
        settings,
        entry,
        index,
        access,
        events,
        refused,
    }
}

const R: Access = Access::Read;
const W: Access = Access::Write;

const DENY: &str = "default = 'deny'";
const QUIET: &str = "default = 'deny'\nlog = 'none'";
const FIRST: &str = "default = 'deny'\nlog = 'first'";
const AUDIT: &str = "default = 'deny'\nmode = 'audit'";
const QUIET_AUDIT: &str = "default = 'deny'\nmode = 'audit'\nlog = 'none'";
const FIRST_AUDIT: &str = "default = 'deny'\nmode = 'audit'\nlog = 'first'";
const ALLOW_FIRST: &str = "default = 'allow'\nlog = 'first'";
const QUIET_UNKNOWN: &str =
    "default = 'allow'\nunknown = { read = 0, write = 'ignore', log = 'first' }";
const UNKNOWN: &str = "default = 'allow'\nunknown = 'ignore'";
const UNKNOWN_ALL: &str = "default = 'allow'\nunknown = { read = 0, log = 'all' }";
const UNKNOWN_DENIED: &str = "default = 'allow'\nunknown = { read = 0 }";
const UNKNOWN_NONE: &str = "default = 'allow'\nlog = 'first'\nunknown = { read = 0, log = 'none' }";
const UNKNOWN_FIRST: &str =
    "default = 'allow'\nlog = 'first'\nunknown = { read = 0, log = 'denied' }";
const FIRST_UNKNOWN: &str = "default = 'allow'\nlog = 'first'\nunknown = { read = 0 }";
const FIRST_AUDIT_UNKNOWN: &str =
    "default = 'allow'\nmode = 'audit'\nlog = 'first'\nunknown = { read = 0 }";
const UNKNOWN_AUDIT: &str = "default = 'allow'\nmode = 'audit'\nunknown = { read = 0 }";

const BOTH: Events = Events::FirstAndFirstRefused;
const WOULD: Events = Events::FirstAndFirstWouldBeRefused;

const KILL: &str = "0x10000 = { read = 'kill', write = 'kill' }";
const HANDLER: &str = "0x10000 = { read = { handler = 'mine' }, write = { handler = 'mine' } }";
const VALUE: &str = "0x10000 = { read = { value = 7 }, write = 'ignore' }";
const REGISTER: &str = "0x10000 = { register = { reset = 0, mask = 1 } }";
const PIN: &str = "IA32_LSTAR = { read = 'allow', write = 'pin' }";
const MASK: &str = "IA32_STAR = { read = 'allow', write = { mask = 1, outside = 'deny' } }";
const STICKY: &str = "IA32_FMASK = { read = 'allow', write = 'sticky' }";
const ALL: &str = "IA32_STAR = { read = 'allow', write = 'allow', log = 'all' }";
const NONE: &str = "0x10000 = 'none'";
const MICROCODE: &str = "0x79 = { device = 'microcode' }\n0x8b = 'rw'\n[device.microcode]\nrevision = 1\nupdate = 'deny'";
const NO_UPDATES: &str = "0x79 = { device = 'microcode' }\n0x8b = 'rw'\n[device.microcode]\nrevision = 1\nupdate = 'ignore'";

const ROWS: &[Row] = &[
    row(DENY, "", (STAR, R), Events::Each, 3),
    row(DENY, "IA32_STAR = 'rw'", (STAR, W), Events::NoRefusals, 0),
    row(QUIET, "", (STAR, R), Events::None, 3),
    row(FIRST, "", (STAR, W), Events::First, 3),
    row(ALLOW_FIRST, "", (STAR, W), Events::First, 0),
    row(ALLOW_FIRST, "", (NOWHERE, R), Events::First, 3),
    row(DENY, ALL, (STAR, W), Events::Each, 0),
    // The end of a VM is an event at any level.
    row(DENY, KILL, (SPARE, R), Events::Each, 3),
    row(QUIET, KILL, (SPARE, W), Events::Each, 3),
    row(FIRST, KILL, (SPARE, R), Events::Each, 3),
    // Audit mode logs the first access, at any level.
    row(AUDIT, "", (STAR, W), Events::First, 3),
    row(QUIET_AUDIT, "", (STAR, R), Events::First, 3),
    row(FIRST_AUDIT, KILL, (SPARE, R), Events::First, 3),
    row(QUIET_AUDIT, KILL, (SPARE, R), Events::First, 3),
    row(AUDIT, PIN, (LSTAR, W), Events::FirstWouldBeRefused, 2),
    row(QUIET_AUDIT, PIN, (LSTAR, W), Events::FirstWouldBeRefused, 2),
    row(FIRST_AUDIT, PIN, (LSTAR, W), WOULD, 2),
    row(FIRST_AUDIT, MASK, (STAR, W), WOULD, 2),
    row(FIRST_AUDIT, REGISTER, (SPARE, W), WOULD, 2),
    row(FIRST_AUDIT, REGISTER, (SPARE, R), Events::First, 0),
    row(FIRST_AUDIT, VALUE, (SPARE, W), Events::First, 0),
    row(FIRST_AUDIT, NONE, (SPARE, R), Events::First, 3),
    row(AUDIT, REGISTER, (SPARE, W), Events::FirstWouldBeRefused, 2),
    row(AUDIT, "", (MsrIndex::MAX, R), Events::Each, 3),
    row(QUIET_AUDIT, "", (MsrIndex::MAX, W), Events::None, 3),
    row(AUDIT, VALUE, (SPARE, R), Events::NoRefusals, 0),
    // Answers.
    row(DENY, VALUE, (SPARE, R), Events::NoRefusals, 0),
    row(FIRST, VALUE, (SPARE, W), Events::First, 0),
    // The first refused access is an event, although one that was not refused came before.
    row(FIRST, PIN, (LSTAR, W), BOTH, 2),
    row(FIRST, MASK, (STAR, W), BOTH, 2),
    row(FIRST, REGISTER, (SPARE, W), BOTH, 2),
    row(FIRST, STICKY, (FMASK, W), BOTH, 0),
    row(FIRST, HANDLER, (SPARE, R), BOTH, 0),
    row(FIRST, MICROCODE, (LOADER, W), Events::First, 3),
    row(DENY, HANDLER, (SPARE, R), Events::EachRefused, 0),
    row(QUIET, HANDLER, (SPARE, W), Events::None, 0),
    row(DENY, REGISTER, (SPARE, W), Events::EachRefused, 2),
    row(DENY, REGISTER, (SPARE, R), Events::NoRefusals, 0),
    row(DENY, PIN, (LSTAR, W), Events::EachRefused, 2),
    row(DENY, STICKY, (FMASK, W), Events::EachRefused, 0),
    row(DENY, MICROCODE, (LOADER, R), Events::Each, 3),
    row(DENY, MICROCODE, (LOADER, W), Events::Each, 3),
    row(DENY, NO_UPDATES, (LOADER, W), Events::NoRefusals, 0),
    // Registers that KVM does not know.
    row(QUIET_UNKNOWN, "", (NOWHERE, R), Events::First, 0),
    row(QUIET_UNKNOWN, "", (NOWHERE, W), Events::First, 0),
    row(UNKNOWN, "", (NOWHERE, R), Events::NoRefusals, 0),
    row(UNKNOWN_ALL, "", (NOWHERE, R), Events::Each, 0),
    row(UNKNOWN_ALL, "", (NOWHERE, W), Events::Each, 3),
    row(UNKNOWN_DENIED, "", (NOWHERE, R), Events::NoRefusals, 0),
    row(UNKNOWN_DENIED, "", (NOWHERE, W), Events::Each, 3),
    row(UNKNOWN_NONE, "", (NOWHERE, W), Events::First, 3),
    // Such an access exits twice if the filter is to see it, too.
    row(UNKNOWN_AUDIT, NONE, (SPARE, R), Events::EachAndFirst, 3),
    row(UNKNOWN_FIRST, "", (NOWHERE, W), Events::EachAndFirst, 3),
    row(FIRST_UNKNOWN, "", (NOWHERE, R), Events::First, 0),
    row(FIRST_UNKNOWN, "", (NOWHERE, W), Events::FirstTwice, 3),
    row(FIRST_AUDIT_UNKNOWN, NONE, (SPARE, R), Events::First, 3),
];

/// Returns the number of events of three accesses.
fn logged(gate: &Gate) -> usize {
    let mut count = 0;
    gate.events().unwrap().drain(|_| count += 1);
    count
}

#[test]
fn gate_logs_accesses_that_explain_names() {
    for row in ROWS {
        let text = format!("policy = 1\n{}\n[msrs]\n{}", row.settings, row.entry);
        let policy = parse(&Source::new("test.toml", &text), &mut NoIncludes).expect(&text);
        let compiled = compile(policy).expect(&text);
        let variant = &compiled.variants()[0];
        let explanation = explain(compiled.policy(), variant, row.index, row.access);
        // KVM knows neither of these two MSRs.
        let unknown = match row.index {
            NOWHERE | SPARE => explanation.events_if_unknown(variant.reasons()),
            _ => None,
        };
        let says = unknown.unwrap_or_else(|| explanation.events());
        assert_eq!(says, row.events, "{text}");
        let expected = match says {
            Events::First => 1,
            Events::FirstTwice => 2,
            Events::FirstAndFirstRefused | Events::FirstAndFirstWouldBeRefused => {
                row.refused.min(1) + (3 - row.refused).min(1)
            }
            Events::FirstWouldBeRefused => row.refused.min(1),
            Events::EachRefused => row.refused,
            Events::Each => 3,
            Events::EachAndFirst => 4,
            _ => 0,
        };
        on_each(compiled.program(), 1, &GateOptions::new(), |machine| {
            for value in 1..=3 {
                let op = match row.access {
                    Access::Read => Read(row.index),
                    Access::Write => Write(row.index, value),
                };
                // A kill leaves the guest at the access.
                let _ = machine.first().run_to_kill(&[op]);
            }
            let (index, access) = (row.index, row.access);
            assert_eq!(
                logged(&machine.gate),
                expected,
                "{access} of {index}: {text}"
            );
        });
    }
}
