//! Each action, as the guest sees it.

use std::sync::{Arc, Mutex};

use msrgate_filter::MsrIndex;

use super::machine::{
    FMASK, KERNEL_GS_BASE, LSTAR, NOWHERE, STAR, Saw, TestGuest, on_each, policy,
};
use crate::errno::CallErrno;
use crate::gate::{
    BadState, Device, GateOptions, GuestMemory, GuestPhysical, Machine as DeviceMachine, NotMapped,
    VcpuId, Written,
};
use crate::guest::Op::{self, Read, Write};

/// MSRs that no KVM lets a guest have, for registers of user space.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const OTHER: MsrIndex = MsrIndex::new(0x1_0001);

/// What each guest sees under a policy with `default = "deny"`, alone and beside others.
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
fn what_the_policy_allows_is_kvms_and_the_rest_faults() {
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

/// A policy with nothing to answer and nothing to log leaves everything to the kernel.
#[test]
fn without_answers_and_events_nothing_exits() {
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
fn values_and_ignored_writes() {
    under(
        "0x10000 = { read = { value = '0x123456789abcdef0' }, write = 'ignore' }",
        &[Write(SPARE, 1), Read(SPARE)],
        &[Saw::Written, Saw::Value(0x1234_5678_9abc_def0)],
    );
}

#[test]
fn registers_of_user_space() {
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
fn a_pinned_register_takes_one_value() {
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

/// KVM refuses an address that is not canonical: #GP, and it pins nothing.
#[test]
fn what_kvm_refuses_is_a_fault_and_pins_nothing() {
    under(
        "IA32_LSTAR = { read = 'allow', write = 'pin' }",
        &[Write(LSTAR, 1 << 62), Write(LSTAR, 0x1000), Read(LSTAR)],
        &[Saw::Fault, Saw::Written, Saw::Value(0x1000)],
    );
}

#[test]
fn masks_and_sticky_bits() {
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
fn a_handler_is_the_vmms_own() {
    under(
        "0x10000 = { read = { handler = 'mine' }, write = { handler = 'mine' } }",
        &[Read(SPARE), Write(SPARE, 9)],
        &[Saw::Value(0x5a), Saw::Written],
    );
}

#[test]
fn kill_ends_the_call_and_a_vcpu_that_is_run_on_faults() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = 'kill', write = 'deny' }",
    );
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let violation = vcpu.run_to_kill(&[Read(SPARE), Read(STAR)]).unwrap_err();
        assert_eq!(
            violation.to_string(),
            "vCPU 0: a read of MSR 0x10000, for which the policy says kill"
        );
        while vcpu.step().is_some() {}
        assert_eq!(vcpu.saw(0, Read(SPARE)), Saw::Fault);
    });
}

#[test]
fn unknown_msrs_are_quiet() {
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

/// Each access comes once, and is then KVM's.
#[test]
fn first_touch_sees_each_access_once() {
    let program = policy("default = 'allow'\nlog = 'first'", "IA32_LSTAR = 'none'");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let script = [
            Write(STAR, 5),
            Read(STAR),
            Write(STAR, 6),
            Read(STAR),
            Read(NOWHERE),
            Read(LSTAR),
        ];
        let vcpu = machine.first();
        let saw = vcpu.run(&script);
        let expected = [
            Saw::Written,
            Saw::Value(5),
            Saw::Written,
            Saw::Value(6),
            Saw::Fault,
            Saw::Fault,
        ];
        assert_eq!(saw, expected);
        // At native speed from now on, but for what is refused.
        let before = vcpu.exits;
        assert_eq!(vcpu.run(&script), expected);
        assert_eq!(vcpu.exits, before + 1);
        let mut seen = Vec::new();
        machine.gate.events().drain(|event| {
            seen.push((event.index, event.access, event.deed.to_string()));
        });
        let seen: Vec<_> = seen
            .iter()
            .map(|(index, access, deed)| format!("{access} {index} {deed}"))
            .collect();
        assert_eq!(
            seen,
            [
                "write 0xc0000081 allow",
                "read 0xc0000081 allow",
                "read 0x12345678 allow",
                "read 0xc0000082 deny",
            ]
        );
    });
}

#[test]
fn an_audit_refuses_nothing_and_records_what_it_would() {
    let program = policy("default = 'deny'\nmode = 'audit'", "IA32_STAR = 'rw'");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let vcpu = machine.first();
        let saw = vcpu.run(&[
            Write(STAR, 1),
            Write(LSTAR, 2),
            Read(LSTAR),
            Write(LSTAR, 3),
            Read(LSTAR),
        ]);
        assert_eq!(
            saw,
            [
                Saw::Written,
                Saw::Written,
                Saw::Value(2),
                Saw::Written,
                Saw::Value(3)
            ]
        );
        let mut seen = Vec::new();
        machine
            .gate
            .events()
            .drain(|event| seen.push((event.index, event.deed.to_string())));
        assert_eq!(
            seen,
            [
                (LSTAR, "would-deny".to_owned()),
                (LSTAR, "would-deny".to_owned())
            ]
        );
    });
}

#[test]
fn all_accesses_are_seen_where_forwarding_is_sound() {
    let entry = "IA32_LSTAR = { read = 'allow', write = 'allow', log = 'all' }";
    on_each(
        &policy("default = 'deny'", entry),
        1,
        &GateOptions::new(),
        |machine| {
            let vcpu = machine.first();
            let saw = vcpu.run(&[
                Write(LSTAR, 2),
                Read(LSTAR),
                Write(LSTAR, 1 << 62),
                Read(LSTAR),
            ]);
            assert_eq!(
                saw,
                [Saw::Written, Saw::Value(2), Saw::Fault, Saw::Value(2)]
            );
            let mut count = 0;
            machine.gate.events().drain(|_| count += 1);
            assert_eq!(count, 4);
        },
    );
}

/// More scattered accesses than a filter has ranges: the filter opens for those that are waited for.
#[test]
fn a_guest_that_touches_everywhere_is_still_let_through() {
    let program = policy("default = 'deny'\nmode = 'audit'", "");
    on_each(&program, 1, &GateOptions::new(), |machine| {
        let script: Vec<_> = (1..60)
            .map(|number| Read(MsrIndex::new(number << 24)))
            .chain([Write(STAR, 7), Read(STAR)])
            .collect();
        let vcpu = machine.first();
        let saw = vcpu.run(&script);
        assert_eq!(saw[script.len() - 2..], [Saw::Written, Saw::Value(7)]);
        assert!(saw[..59].iter().all(|saw| *saw == Saw::Fault));
        let mut count = 0;
        machine.gate.events().drain(|_| count += 1);
        assert_eq!(count, 61);
    });
}

/// Four vCPUs, each with registers and pins of its own.
#[test]
fn vcpus_have_their_own_registers() {
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

/// A device of the VMM's own, in place of its loop.
struct Doubler(u64);

impl Device for Doubler {
    fn read(&mut self, _: MsrIndex, _: &mut dyn DeviceMachine) -> Result<Option<u64>, CallErrno> {
        Ok(Some(self.0 * 2))
    }

    fn write(
        &mut self,
        _: MsrIndex,
        value: u64,
        _: &mut dyn DeviceMachine,
    ) -> Result<Written, CallErrno> {
        self.0 = value;
        Ok(if value == 13 {
            Written::Fault
        } else {
            Written::Done
        })
    }

    fn reset(&mut self, _: &mut dyn DeviceMachine) -> Result<(), CallErrno> {
        self.0 = 1;
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_le_bytes().into()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.0 = u64::from_le_bytes(bytes.try_into().map_err(|_| BadState)?);
        Ok(())
    }
}

#[test]
fn a_device_answers_for_its_handler() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'double' }, write = { handler = 'double' } }",
    );
    let options = GateOptions::new().device("double", |_: VcpuId| Box::new(Doubler(0)));
    on_each(&program, 1, &options, |machine| {
        let saw =
            machine
                .first()
                .run(&[Read(SPARE), Write(SPARE, 21), Read(SPARE), Write(SPARE, 13)]);
        assert_eq!(
            saw,
            [Saw::Value(2), Saw::Written, Saw::Value(42), Saw::Fault]
        );
    });
}

/// The built-in guest's memory, of which linear and physical addresses are the same.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Region>>>);

/// An address, and the bytes there.
type Region = (u64, Vec<u8>);

impl GuestMemory for Memory {
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> Result<(), NotMapped> {
        let regions = self.0.lock().unwrap();
        for (start, bytes) in regions.iter() {
            if let Some(offset) = from.get().checked_sub(*start)
                && let Ok(offset) = usize::try_from(offset)
                && let Some(part) = bytes.get(offset..).and_then(|rest| rest.get(..into.len()))
            {
                into.copy_from_slice(part);
                return Ok(());
            }
        }
        Err(NotMapped)
    }
}

/// A guest loads microcode by an update that crosses a page, by one whose header is unsound, and by
/// one that is nowhere.
#[test]
fn a_guest_believes_its_microcode_was_updated() {
    let trigger = MsrIndex::new(0x79);
    let revision = MsrIndex::new(0x8b);
    let program = policy(
        "default = 'deny'",
        "IA32_BIOS_UPDT_TRIG = { device = 'microcode' }\nIA32_BIOS_SIGN_ID = 'rw'\n\
         [device.microcode]\nrevision = '0x2b000000'\nupdate = 'accept'",
    );
    let memory = Memory::default();
    let options = GateOptions::new().memory(Arc::new(memory.clone()));
    on_each(&program, 1, &options, |machine| {
        let signature = machine
            .cpuid
            .iter()
            .find(|leaf| leaf.function == 1)
            .unwrap()
            .eax;
        let header = |signature: u32| -> Vec<u8> {
            let fields = [
                1,
                0x2b00_0590,
                0,
                signature,
                0,
                1,
                0,
                2000,
                2048,
                0,
                0,
                0_u32,
            ];
            fields
                .iter()
                .flat_map(|field| field.to_le_bytes())
                .collect()
        };
        // Two pages that the guest's tables map, and what it would find there.
        *memory.0.lock().unwrap() = vec![
            (0x1ff0, header(signature)[..0x10].to_vec()),
            (0x2000, header(signature)[0x10..].to_vec()),
            (0x3000, header(signature ^ 1)),
        ];
        let vendor = machine.cpuid[0];
        assert_eq!(vendor.function, 0);
        let is_amd = [*b"Auth", *b"Hygo"].contains(&vendor.ebx.to_le_bytes());
        let shown = |revision: u64| if is_amd { revision } else { revision << 32 };
        let saw = machine.first().run(&[
            Read(revision),
            Write(trigger, 0x3030),
            Read(revision),
            Write(trigger, 0x9_0000),
            Write(trigger, 1 << 62),
            Write(trigger, 0x2020),
            Write(revision, 0),
            Read(revision),
            Read(trigger),
        ]);
        assert_eq!(
            saw,
            [
                Saw::Value(shown(0x2b00_0000)),
                Saw::Written,
                Saw::Value(shown(0x2b00_0000)),
                Saw::Fault,
                Saw::Fault,
                Saw::Written,
                Saw::Written,
                Saw::Value(shown(0x2b00_0590)),
                Saw::Fault,
            ]
        );
        // On another host, which has shown the guest what the policy says.
        let vcpu = machine.first();
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(
            vcpu.run(&[Read(revision)]),
            [Saw::Value(shown(0x2b00_0000))]
        );
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        assert_eq!(
            vcpu.run(&[Read(revision)]),
            [Saw::Value(shown(0x2b00_0590))]
        );
    });
}
