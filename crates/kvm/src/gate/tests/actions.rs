//! Tests of each action of a policy, by its effect on the guest. The tests of devices are in `devices`, and
//! the tests of logging are in `seen`.

use msrgate_filter::MsrIndex;

use super::machine::{FMASK, KERNEL_GS_BASE, LSTAR, NOWHERE, STAR, Saw, on_each, policy};
use crate::gate::GateOptions;
use crate::measure::guest::Op::{self, Read, Write};

/// MSRs that KVM does not offer to any guest, for emulated registers.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const OTHER: MsrIndex = MsrIndex::new(0x1_0001);

/// Runs a script under a policy with `default = "deny"` in each guest, of one vCPU and of four, and checks
/// the results of the accesses.
fn under(entries: &str, script: &[Op], expected: &[Saw]) {
    let program = policy("default = 'deny'", entries);
    for count in [1, 4] {
        on_each(&program, count, &GateOptions::new(), |machine| {
            std::thread::scope(|scope| {
                for vcpu in &mut machine.vcpus {
                    scope.spawn(|| assert_eq!(vcpu.run(script), expected, "{entries}"));
                }
            });
        });
    }
}

#[test]
fn allowed_access_reaches_kvm_and_denied_access_faults() {
    under(
        "IA32_STAR = 'rw'\nIA32_LSTAR = 'r'",
        &[
            Write(STAR, 5),
            Read(STAR),
            Write(LSTAR, 5),
            Read(LSTAR),
            Read(FMASK),
        ],
        &[
            Saw::Written,
            Saw::Value(5),
            Saw::Fault,
            Saw::Value(0),
            Saw::Fault,
        ],
    );
}

/// If a policy answers no access itself and logs none, no access makes an exit: the kernel alone
/// allows and denies accesses.
#[test]
fn accesses_under_policy_without_answers_or_log_make_no_exit() {
    let settings = "default = 'deny'\nlog = 'none'";
    on_each(
        &policy(settings, "IA32_STAR = 'rw'"),
        1,
        &GateOptions::new(),
        |machine| {
            let vcpu = machine.first();
            let saw = vcpu.run(&[Write(STAR, 5), Read(LSTAR), Read(NOWHERE)]);
            assert_eq!(saw, [Saw::Written, Saw::Fault, Saw::Fault]);
            assert_eq!(vcpu.exits, 0);
        },
    );
}

#[test]
fn read_with_action_value_gets_that_value_and_write_with_ignore_has_no_effect() {
    under(
        "0x10000 = { read = { value = '0x123456789abcdef0' }, write = 'ignore' }",
        &[Write(SPARE, 1), Read(SPARE)],
        &[Saw::Written, Saw::Value(0x1234_5678_9abc_def0)],
    );
}

#[test]
fn write_of_emulated_register_obeys_mask() {
    under(
        "0x10000 = { register = { reset = 7, mask = '0xff' } }\n\
         0x10001 = { register = { reset = '0xf00', mask = '0xff', outside = 'keep' } }",
        &[
            Read(SPARE),
            Write(SPARE, 0xfe),
            Write(SPARE, 0x100),
            Read(SPARE),
            Write(OTHER, u64::MAX),
            Read(OTHER),
        ],
        &[
            Saw::Value(7),
            Saw::Written,
            Saw::Fault,
            Saw::Value(0xfe),
            Saw::Written,
            Saw::Value(0xfff),
        ],
    );
}

#[test]
fn pinned_register_accepts_only_first_value() {
    under(
        "IA32_LSTAR = { read = 'allow', write = 'pin' }",
        &[
            Write(LSTAR, 0x1000),
            Write(LSTAR, 0x1000),
            Write(LSTAR, 0x2000),
            Read(LSTAR),
        ],
        &[Saw::Written, Saw::Written, Saw::Fault, Saw::Value(0x1000)],
    );
}

/// KVM refuses an address that is not canonical: the guest gets #GP, and the register is not pinned.
#[test]
fn forwarded_write_that_kvm_refuses_faults_and_pins_no_register() {
    under(
        "IA32_LSTAR = { read = 'allow', write = 'pin' }",
        &[Write(LSTAR, 1 << 62), Write(LSTAR, 0x1000), Read(LSTAR)],
        &[Saw::Fault, Saw::Written, Saw::Value(0x1000)],
    );
}

#[test]
fn forwarded_write_obeys_mask_and_sticky_bits() {
    under(
        "IA32_STAR = { read = 'allow', write = { mask = '0xffff', outside = 'keep' } }\n\
         IA32_KERNEL_GS_BASE = { read = 'allow', write = { mask = '0xffff' } }\n\
         IA32_FMASK = { read = 'allow', write = { sticky = '0x200' } }",
        &[
            Write(STAR, u64::MAX),
            Read(STAR),
            Write(KERNEL_GS_BASE, 0x1_0000),
            Write(KERNEL_GS_BASE, 0x1234),
            Read(KERNEL_GS_BASE),
            Write(FMASK, 0x4200),
            Write(FMASK, 0x100),
            Read(FMASK),
        ],
        &[
            Saw::Written,
            Saw::Value(0xffff),
            Saw::Fault,
            Saw::Written,
            Saw::Value(0x1234),
            Saw::Written,
            Saw::Written,
            Saw::Value(0x300),
        ],
    );
}

#[test]
fn access_with_handler_gets_handlers_reply() {
    under(
        "0x10000 = { read = { handler = 'mine' }, write = { handler = 'mine' } }",
        &[Read(SPARE), Write(SPARE, 9)],
        &[Saw::Value(0x5a), Saw::Written],
    );
}

#[test]
fn action_kill_returns_violation_and_access_faults_if_vcpu_runs_again() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = 'kill', write = 'deny' }",
    );
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let violation = vcpu.run_to_kill(&[Read(SPARE), Read(STAR)]).unwrap_err();
        assert_eq!(
            violation.to_string(),
            "vCPU 0: the policy has the action kill for the read of MSR 0x10000"
        );
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Fault);
    });
}

#[test]
fn access_of_msr_unknown_to_kvm_gets_answer_of_policy() {
    let settings = "default = 'allow'\nunknown = { read = '0x77', write = 'ignore' }";
    on_each(
        &policy(settings, "IA32_LSTAR = 'none'"),
        1,
        &GateOptions::new(),
        |machine| {
            let vcpu = machine.first();
            let saw = vcpu.run(&[
                Read(NOWHERE),
                Write(NOWHERE, 1),
                Read(LSTAR),
                Write(STAR, 3),
                Read(STAR),
            ]);
            assert_eq!(
                saw,
                [
                    Saw::Value(0x77),
                    Saw::Written,
                    Saw::Fault,
                    Saw::Written,
                    Saw::Value(3)
                ]
            );
            assert_eq!(vcpu.exits, 3);
        },
    );
}

/// Each of four vCPUs has its own registers and pins.
#[test]
fn each_vcpu_has_its_own_emulated_registers_and_pins() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { register = { reset = 7, mask = '0xff' } }\n\
         IA32_LSTAR = { read = 'allow', write = 'pin' }",
    );
    on_each(&program, 4, &GateOptions::new(), |machine| {
        std::thread::scope(|scope| {
            for (vcpu, value) in machine.vcpus.iter_mut().zip(0x10..) {
                scope.spawn(move || {
                    for _ in 0..50 {
                        let saw = vcpu.run(&[
                            Write(SPARE, value),
                            Read(SPARE),
                            Write(LSTAR, value),
                            Write(LSTAR, 0xbad),
                            Read(LSTAR),
                        ]);
                        let expected = [
                            Saw::Written,
                            Saw::Value(value),
                            Saw::Written,
                            Saw::Fault,
                            Saw::Value(value),
                        ];
                        assert_eq!(saw, expected);
                    }
                });
            }
        });
    });
}
