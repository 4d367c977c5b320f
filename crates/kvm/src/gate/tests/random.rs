//! A test with random policies and random accesses: the gate acts the same on the model and on a real KVM.

use std::fmt::Write as _;
use std::sync::LazyLock;

use msrgate_filter::MsrIndex;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::machine::{FMASK, KERNEL_GS_BASE, LSTAR, Machine, NOWHERE, STAR, Saw, policy};
use crate::gate::events::Count;
use crate::gate::{GateOptions, Violation};
use crate::measure::guest::Op::{self, Read, Write};
use crate::probe::HostCaps;

/// KVM's MSRs to which the gate may forward accesses in this test, and MSRs that KVM does not know.
const MSRS: [MsrIndex; 8] = [
    STAR,
    LSTAR,
    FMASK,
    KERNEL_GS_BASE,
    MsrIndex::new(0x1_0000),
    MsrIndex::new(0x1_0001),
    MsrIndex::new(0x1_0002),
    NOWHERE,
];

const FORWARDED: usize = 4;

/// Returns a proptest strategy of the actions that a policy may have for one direction of the MSR
/// `MSRS[place]`. The actions in `forwarded` are included if the gate may forward accesses to that MSR.
fn action(place: usize, forwarded: &[&'static str]) -> impl Strategy<Value = &'static str> + use<> {
    let anywhere = [
        "'allow'",
        "'deny'",
        "'inherit'",
        "{ handler = 'mine' }",
        "{ register = { reset = 7, mask = '0xff' } }",
        "{ register = { reset = '0xf00', mask = '0xffff', outside = 'keep' } }",
    ];
    let mut words = anywhere.to_vec();
    if place < FORWARDED {
        words.extend(forwarded);
    }
    prop_oneof![12 => select(words), 1 => Just("'kill'")]
}

fn read(place: usize) -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => action(place, &[]), 1 => Just("{ value = '0x123456789' }")]
}

fn write(place: usize) -> impl Strategy<Value = &'static str> {
    const FORWARDED: [&str; 4] = [
        "'pin'",
        "{ sticky = '0x1234' }",
        "{ mask = '0xffff' }",
        "{ mask = '0xffff', outside = 'keep' }",
    ];
    prop_oneof![3 => action(place, &FORWARDED), 1 => Just("'ignore'")]
}

/// An address that is not canonical: KVM and processors refuse this address as the value of an MSR, from the
/// host and from the guest.
const WILD: u64 = 1 << 62;

/// Tells if KVM refuses a guest's own writes of [`WILD`]. With QEMU's SVM these writes succeed without
/// reaching KVM.
pub(super) fn refuses_wild() -> bool {
    static REFUSES: LazyLock<bool> = LazyLock::new(|| {
        let Some(mut kvm) = Machine::new(policy("default = 'allow'", ""), 1) else {
            return true;
        };
        let saw = kvm.first().run(&[Write(LSTAR, WILD)]);
        saw == [Saw::Fault]
    });
    *REFUSES
}

/// Returns a proptest strategy of a policy's settings and of its entries for some of the MSRs.
fn text() -> impl Strategy<Value = (String, String)> {
    let settings = select(vec![
        "default = 'deny'",
        "default = 'deny'\nlog = 'none'",
        "default = 'deny'\nlog = 'first'",
        "default = 'deny'\nmode = 'audit'",
        "default = 'kill'",
        "default = 'kill'\nmode = 'audit'",
        "default = 'allow'",
        "default = 'allow'\nlog = 'first'",
        "default = 'allow'\nunknown = { read = 9, write = 'ignore' }",
        "default = 'allow'\nunknown = 'ignore'\nmode = 'audit'",
    ]);
    let entry = |place: usize| {
        let entry = (read(place), write(place));
        prop::option::weighted(0.8, entry).prop_map(move |entry| (place, entry))
    };
    let entries: Vec<_> = (0..MSRS.len()).map(entry).collect();
    (settings, entries).prop_map(|(settings, entries)| {
        let mut text = String::new();
        for (place, entry) in entries {
            if let Some((read, write)) = entry {
                let index = MSRS[place];
                writeln!(text, "{index} = {{ read = {read}, write = {write} }}").unwrap();
            }
        }
        (settings.to_owned(), text)
    })
}

fn script() -> impl Strategy<Value = Vec<Op>> {
    let values = select(vec![0, 5, 0xff, 0x1234, 0x1_0000, 0xffff_ffff]);
    let access = (0..MSRS.len(), prop::option::of(values));
    let access = access.prop_map(|(place, value)| match value {
        None => Read(MSRS[place]),
        Some(value) => Write(MSRS[place], value),
    });
    let wild = select(vec![LSTAR, KERNEL_GS_BASE]).prop_map(|index| Write(index, WILD));
    vec(prop_oneof![12 => access, 1 => wild], 1..40)
}

/// The results that the guest saw, and the gate's counters. A count that depends on how soon the
/// publisher widens the filter is replaced by 1.
type Observed = (Result<Vec<Saw>, Violation>, Vec<Count>);

fn observed<G: super::machine::TestGuest>(machine: &mut Machine<G>, script: &[Op]) -> Observed {
    let saw = machine.first().run_to_kill(script);
    let mut counts = machine.gate.counted().counts;
    for count in &mut counts {
        use msrgate_policy::answer::Disposition::{Allowed, WouldDeny, WouldKill};
        if [Allowed, WouldDeny, WouldKill].contains(&count.disposition) {
            count.count = 1;
        }
    }
    (saw, counts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_policy_acts_same_on_model_and_kvm((settings, entries) in text(), script in script()) {
        if HostCaps::for_test().is_none() {
            return Ok(());
        }
        let is_tried = |op: &Op| refuses_wild() || !matches!(op, Write(_, WILD));
        let script: Vec<_> = script.into_iter().filter(is_tried).collect();
        let program = policy(&settings, &entries);
        let Some(mut kvm) = Machine::new(program.clone(), 1) else {
            return Ok(());
        };
        let options = GateOptions::new();
        let mut model = Machine::of_model(program, 1, options, kvm.cpuid.clone());
        prop_assert_eq!(observed(&mut model, &script), observed(&mut kvm, &script));
    }
}
