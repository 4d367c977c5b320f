use msrgate_filter::MsrIndex;

use super::*;
use crate::{Compiled, NoIncludes, Source, compile, parse};

fn compiled(text: &str) -> Compiled {
    let source = Source::new("policy.toml", text);
    let policy = parse(&source, &mut NoIncludes).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    compile(policy).unwrap()
}

/// Returns the explanation of one access as text: action, result for the guest, report of the
/// kernel, events, enforcement.
fn said(compiled: &Compiled, index: u32, access: Access) -> String {
    let program = compiled.program().clone();
    let mask = program.variants()[0].reasons();
    let variant = &compiled.variants()[0];
    let explanation = explain(compiled.policy(), variant, MsrIndex::new(index), access);
    let (extent, bypasses) = explanation.enforced();
    let bypasses: String = bypasses
        .iter()
        .map(|bypass| format!(" [{}]", bypass.cause.name()))
        .collect();
    let gate = if explanation.needs_gate() {
        " (gate)"
    } else {
        ""
    };
    let unknown = explanation
        .reported_unknown(mask)
        .map_or_else(String::new, |reported| format!("; unknown: {reported}"));
    let gate_if_unknown = if explanation.needs_gate_if_unknown() {
        " (gate if unknown)"
    } else {
        ""
    };
    let events_if_unknown = explanation
        .events_if_unknown(mask)
        .map_or_else(String::new, |events| format!("; unknown: {events}"));
    format!(
        "{index:#x} {access} {}\n  guest: {}{gate}{gate_if_unknown}\n  kernel: {}{unknown}\n  events: {}{events_if_unknown}\n  {extent}{bypasses}\n",
        explanation.action,
        explanation.guest(),
        explanation.reported(mask),
        explanation.events(),
    )
}

fn all(text: &str, indices: &[u32]) -> String {
    let compiled = compiled(text);
    let both = |index: &u32| Access::ALL.map(|access| said(&compiled, *index, access));
    indices.iter().flat_map(both).collect()
}

/// A policy with every action, in each direction that has the action.
const ACTIONS: &str = "policy = 1
default = 'deny'
[device.microcode]
revision = 0x2b
update = 'accept'
[msrs]
IA32_EFER = 'rw'
0x10 = 'none'
0x17 = { read = { value = '0x4' }, write = 'ignore' }
0x34 = { read = { handler = 'smi' }, write = { handler = 'smi' } }
0x3a = { read = 'kill', write = 'kill' }
0x79 = { device = 'microcode' }
0x8b = 'rw'
0x610 = { register = { reset = '0x7', mask = '0xff' } }
0x611 = { register = { reset = 0, mask = '0xff', outside = 'keep' } }
0x612 = { register = { reset = 0, mask = '0xffffffffffffffff' } }
IA32_STAR = { read = 'allow', write = { mask = '0xff', outside = 'keep' } }
IA32_CSTAR = { read = 'allow', write = { mask = '0xff' } }
IA32_LSTAR = { read = 'allow', write = 'pin' }
IA32_FMASK = { read = 'allow', write = 'sticky' }
IA32_KERNEL_GS_BASE = { read = 'allow', write = { sticky = '0x200' } }
";

const OF_ACTIONS: [u32; 15] = [
    0xc000_0080,
    0x10,
    0x17,
    0x34,
    0x3a,
    0x79,
    0x610,
    0x611,
    0x612,
    0xc000_0081,
    0xc000_0083,
    0xc000_0082,
    0xc000_0084,
    0xc000_0102,
    0x6e0,
];

#[test]
fn explain_tells_guest_result_and_kernel_report_of_every_action() {
    insta::assert_snapshot!(all(ACTIONS, &OF_ACTIONS));
}

#[test]
fn explain_in_audit_mode_tells_that_access_is_let_through() {
    let text = ACTIONS.replacen("default", "mode = 'audit'\ndefault", 1);
    insta::assert_snapshot!(all(
        &text,
        &[0x10, 0x3a, 0x17, 0x610, 0xc000_0082, 0x6e0, u32::MAX]
    ));
}

#[test]
fn explain_covers_default_x2apic_and_unknown_registers() {
    let deny = all("policy = 1\ndefault = 'deny'", &[0x10, 0x808, u32::MAX]);
    let allow = all(
        "policy = 1\ndefault = 'allow'\nunknown = { read = '0xff', write = 'ignore' }\n[msrs]\n0x10 = 'r'",
        &[0x10, 0x11, 0x830],
    );
    insta::assert_snapshot!(deny + "--\n" + &allow);
}

/// Of a register that KVM does not know, the first access becomes an event, and a gate answers.
#[test]
fn explain_of_quiet_unknown_tells_events_and_gate() {
    let text = include_str!("../../../../policies/quiet-unknown.toml");
    insta::assert_snapshot!(all(text, &[0xdead]));
}

#[test]
fn explain_tells_events_of_each_log_level() {
    let of = |level: &str| {
        let text = format!(
            "policy = 1\ndefault = 'deny'\nlog = '{level}'\n[msrs]\nIA32_EFER = 'rw'\nIA32_LSTAR = {{ read = 'deny', write = 'pin' }}"
        );
        if level == "all" {
            // `log = "all"` exists only for MSRs whose accesses may be forwarded.
            return "policy = 1\ndefault = 'deny'\n[msrs]\nIA32_LSTAR = { read = 'allow', write = 'pin', log = 'all' }".to_owned();
        }
        text
    };
    let levels = ["none", "denied", "first", "all"].map(|level| {
        let indices = [0xc000_0080, 0xc000_0082, 0x808];
        format!("-- {level}\n{}", all(&of(level), &indices))
    });
    insta::assert_snapshot!(levels.concat());
}

#[test]
fn explain_tells_microcode_device_answer_to_update() {
    for (update, wanted) in [
        ("accept", "the guest then reads its revision"),
        ("ignore", "loads nothing"),
        ("deny", "#GP"),
    ] {
        let text = ACTIONS.replace("'accept'", &format!("'{update}'"));
        let guest = all(&text, &[0x79]);
        assert!(guest.contains(wanted), "{guest}");
    }
}
