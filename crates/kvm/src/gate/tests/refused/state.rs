//! Tests of a vCPU's registers, pins and devices after a replacement whose filter the kernel refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use msrgate_policy::Program;
use msrgate_policy::answer::Saved;

use super::super::machine::{LSTAR, STAR, Saw, TestGuest, Vcpu, policy};
use super::{CSTAR, Kernel, NEW, SHARED, SPARE, is_refused, new, old, on_each};
use crate::measure::guest::Op::{Read, Write};

/// Makes the vCPU write to the emulated and pinned registers of the old program.
fn fill<G: TestGuest>(vcpu: &mut Vcpu<G>) {
    let script = [Write(SPARE, 9), Write(SHARED, 0x11), Write(LSTAR, 0x1000)];
    assert_eq!(vcpu.run(&script), [Saw::Written; 3]);
}

/// Makes the vCPU take over the new program and write the new program's emulated registers. The new program
/// has only some of the old program's registers.
fn follow<G: TestGuest>(vcpu: &mut Vcpu<G>) {
    let saw = vcpu.run(&[
        Read(SPARE),
        Read(SHARED),
        Write(SHARED, 0x22),
        Write(NEW, 4),
        Write(CSTAR, 0x2000),
        Write(STAR, 5),
    ]);
    let expected = [
        Saw::Fault,
        Saw::Value(0x11),
        Saw::Written,
        Saw::Written,
        Saw::Written,
        Saw::Written,
    ];
    assert_eq!(saw, expected);
}

/// Checks the vCPU's state after the new program was refused. The state that only the old program has is as
/// before. The registers and pins that both programs have hold the latest values. The state that only the
/// new program has is gone.
fn is_back<G: TestGuest>(vcpu: &mut Vcpu<G>) {
    let saw = vcpu.run(&[
        Read(SPARE),
        Read(SHARED),
        Read(NEW),
        Write(LSTAR, 0x3000),
        Read(LSTAR),
        Write(CSTAR, 0x4000),
        Write(STAR, 5),
    ]);
    let expected = [
        Saw::Value(9),
        Saw::Value(0x22),
        Saw::Fault,
        Saw::Fault,
        Saw::Value(0x1000),
        Saw::Fault,
        Saw::Fault,
    ];
    assert_eq!(saw, expected);
}

#[test]
fn refused_replace_keeps_state_of_every_vcpu() {
    on_each(&old(), 2, |machine, script| {
        machine.vcpus.iter_mut().for_each(fill);
        let gate = Arc::clone(&machine.gate);
        let before = gate.program().digest();
        // Replace the program three times: a refused replacement leaves nothing behind that changes the next
        // one.
        for round in 0..3 {
            let vcpu = machine.first();
            let seen = script.replace(&gate, new(), Kernel::Refuses, || {
                if round == 0 {
                    follow(vcpu);
                } else {
                    let saw = vcpu.run(&[Read(SPARE), Read(NEW), Read(SHARED)]);
                    assert_eq!(saw, [Saw::Fault, Saw::Value(3), Saw::Value(0x22)]);
                }
            });
            assert!(is_refused(&seen), "{seen:?}");
            assert_eq!(gate.program().digest(), before);
            is_back(machine.first());
        }
        let other = &mut machine.vcpus[1];
        let saw = other.run(&[Read(SPARE), Read(SHARED), Write(LSTAR, 0x3000)]);
        assert_eq!(saw, [Saw::Value(9), Saw::Value(0x11), Saw::Fault]);
        // If the kernel accepts the new program, the vCPU keeps that program's state.
        gate.replace(new()).unwrap();
        let saw = machine.first().run(&[Read(SPARE), Read(NEW), Read(SHARED)]);
        assert_eq!(saw, [Saw::Fault, Saw::Value(3), Saw::Value(0x22)]);
        gate.replace(old()).unwrap();
        let saw = machine.first().run(&[Read(SPARE), Read(SHARED)]);
        assert_eq!(saw, [Saw::Value(7), Saw::Value(0x22)]);
    });
}

#[test]
fn refused_replace_keeps_effect_of_vcpu_reset_and_msr_set_by_host() {
    on_each(&old(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        fill(vcpu);
        let seen = script.replace(&gate, new(), Kernel::Refuses, || {
            follow(vcpu);
            vcpu.guest.msr_set_by_host(&mut vcpu.msrs, LSTAR).unwrap();
            vcpu.guest.msr_set_by_host(&mut vcpu.msrs, SHARED).unwrap();
        });
        assert!(is_refused(&seen), "{seen:?}");
        let saw = vcpu.run(&[Read(SPARE), Read(SHARED), Write(LSTAR, 0x3000)]);
        assert_eq!(saw, [Saw::Value(9), Saw::Value(8), Saw::Written]);
        let seen = script.replace(&gate, new(), Kernel::Refuses, || {
            assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
            vcpu.guest.msr_set_by_host(&mut vcpu.msrs, SPARE).unwrap();
        });
        assert!(is_refused(&seen), "{seen:?}");
        let saw = vcpu.run(&[Read(SPARE), Write(SPARE, 9), Write(LSTAR, 0x4000)]);
        assert_eq!(saw, [Saw::Value(7), Saw::Written, Saw::Fault]);
        let seen = script.replace(&gate, new(), Kernel::Refuses, || {
            assert_eq!(vcpu.run(&[Write(SHARED, 0x33)]), [Saw::Written]);
            vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        });
        assert!(is_refused(&seen), "{seen:?}");
        let script = [
            Read(SPARE),
            Read(SHARED),
            Write(LSTAR, 0x4000),
            Write(CSTAR, 0x4000),
        ];
        let expected = [Saw::Value(7), Saw::Value(8), Saw::Written, Saw::Written];
        assert_eq!(vcpu.run(&script), expected);
    });
}

/// A vCPU that makes no exit between a refused program and the next program first takes back the old
/// program's state. So registers and pins that the next program shares with the old program keep their
/// values.
#[test]
fn refused_replace_keeps_state_of_idle_vcpu() {
    on_each(&old(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        fill(vcpu);
        let more = || {
            let entries = "0x10000 = { register = { reset = 0, mask = '0xff' } }\n\
                IA32_LSTAR = { read = 'allow', write = 'pin' }";
            policy("default = 'deny'", entries)
        };
        let seen = script.replace(&gate, new(), Kernel::Refuses, || follow(vcpu));
        assert!(is_refused(&seen), "{seen:?}");
        let seen = script.replace(&gate, more(), Kernel::Refuses, || {
            let saw = vcpu.run(&[Read(SPARE), Write(SPARE, 10), Write(LSTAR, 0x3000)]);
            assert_eq!(saw, [Saw::Value(9), Saw::Written, Saw::Fault]);
        });
        assert!(is_refused(&seen), "{seen:?}");
        // The vCPU makes no exit between the refused program and this one.
        gate.replace(more()).unwrap();
        let saw = vcpu.run(&[Read(SPARE), Read(SHARED), Write(LSTAR, 0x3000)]);
        assert_eq!(saw, [Saw::Value(10), Saw::Fault, Saw::Fault]);
        // The state that the vCPU has set aside for an earlier program does not come back.
        let seen = script.replace(&gate, new(), Kernel::Refuses, || {
            assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
        });
        assert!(is_refused(&seen), "{seen:?}");
        assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Value(10)]);
    });
}

/// `save` and `restore` wait for a replacement that is under way, so that a snapshot is of a program that
/// stays in force.
#[test]
fn save_and_restore_wait_for_replace() {
    on_each(&old(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        fill(vcpu);
        let before = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        thread::scope(|scope| {
            let mut saving = None;
            let seen = script.replace(&gate, new(), Kernel::Refuses, || {
                assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
                let (begins, begun) = channel();
                saving = Some(scope.spawn(move || {
                    begins.send(()).unwrap();
                    vcpu.guest.save(&mut vcpu.msrs).unwrap()
                }));
                begun.recv().unwrap();
                // A `save` that does not wait for the replacement would return in this time. One that waits
                // may even begin later.
                thread::sleep(std::time::Duration::from_millis(20));
            });
            assert!(is_refused(&seen), "{seen:?}");
            assert_eq!(saving.unwrap().join().unwrap(), before);
        });
        let vcpu = machine.first();
        let mut saved = Saved::decode(&before).unwrap();
        saved.registers.retain(|&(index, _)| index == SPARE);
        saved.registers[0].1 = 0x44;
        let saved = saved.encode();
        thread::scope(|scope| {
            let mut restoring = None;
            let seen = script.replace(&gate, new(), Kernel::Refuses, || {
                assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
                let (begins, begun) = channel();
                restoring = Some(scope.spawn(move || {
                    begins.send(()).unwrap();
                    vcpu.guest.restore(&mut vcpu.msrs, &saved)
                }));
                begun.recv().unwrap();
                thread::sleep(std::time::Duration::from_millis(20));
            });
            assert!(is_refused(&seen), "{seen:?}");
            restoring.unwrap().join().unwrap().unwrap();
        });
        let saw = machine.first().run(&[Read(SPARE), Read(SHARED)]);
        assert_eq!(saw, [Saw::Value(0x44), Saw::Value(8)]);
    });
}

/// Makes a policy whose microcode device has this revision.
fn microcode(revision: &str) -> Program {
    let entries = format!(
        "IA32_BIOS_UPDT_TRIG = {{ device = 'microcode' }}\nIA32_BIOS_SIGN_ID = 'rw'\n\
         [device.microcode]\nrevision = '{revision}'\nupdate = 'ignore'"
    );
    policy("default = 'deny'", &entries)
}

fn revision<G: TestGuest>(vcpu: &mut Vcpu<G>) -> Option<u32> {
    let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
    let devices = Saved::decode(&saved).unwrap().devices;
    let bytes = &devices.first()?.1;
    Some(u32::from_le_bytes((**bytes).try_into().unwrap()))
}

#[test]
fn refused_replace_keeps_microcode_device_of_old_program() {
    on_each(&microcode("0x10"), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let vcpu = machine.first();
        // The saved state of the device after the guest has loaded a microcode update.
        let loaded = Saved {
            devices: vec![("microcode".into(), 0x17_u32.to_le_bytes().into())],
            ..Saved::default()
        };
        vcpu.guest
            .restore(&mut vcpu.msrs, &loaded.encode())
            .unwrap();
        for tried in [new(), microcode("0x20")] {
            let seen = script.replace(&gate, tried, Kernel::Refuses, || {
                assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
            });
            assert!(is_refused(&seen), "{seen:?}");
            assert_eq!(revision(vcpu), Some(0x17));
        }
        let seen = script.replace(&gate, new(), Kernel::Refuses, || {
            assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
            vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        });
        assert!(is_refused(&seen), "{seen:?}");
        assert_eq!(revision(vcpu), Some(0x10));
        gate.replace(new()).unwrap();
        assert_eq!(revision(vcpu), None);
        // If only the refused program has a device, the device is gone afterwards.
        let seen = script.replace(&gate, microcode("0x20"), Kernel::Refuses, || {
            assert_eq!(vcpu.run(&[Read(SPARE)]), [Saw::Fault]);
        });
        assert!(is_refused(&seen), "{seen:?}");
        assert_eq!(revision(vcpu), None);
    });
}

/// If the call that sets the filter panics, `replace` leaves the old program in force.
#[test]
fn panicked_replace_leaves_old_program_in_force() {
    on_each(&old(), 1, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        let before = gate.program().digest();
        let vcpu = machine.first();
        fill(vcpu);
        let panics = catch_unwind(AssertUnwindSafe(|| {
            script.replace(&gate, new(), Kernel::Panics, || follow(vcpu))
        }));
        assert!(panics.is_err());
        assert_eq!(gate.program().digest(), before);
        is_back(machine.first());
    });
}

/// The kernel refuses the same replacement again and again while two vCPUs run. A register and a pin that
/// only the old program has keep their values whenever the old program answers.
#[test]
fn refused_replace_under_load_keeps_registers_and_pins() {
    on_each(&old(), 2, |machine, script| {
        let gate = Arc::clone(&machine.gate);
        script.refuse(1000);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        thread::scope(|scope| {
            for vcpu in &mut machine.vcpus {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut held = 7;
                    let mut shared = 8;
                    let mut pinned = None;
                    for value in (0_u64..0xff).cycle() {
                        if is_over.load(order) {
                            break;
                        }
                        let saw = vcpu.run(&[
                            Read(SPARE),
                            Read(SHARED),
                            Write(SPARE, value),
                            Write(SHARED, value),
                            Write(LSTAR, 0x1000 + value),
                        ]);
                        assert!([Saw::Value(held), Saw::Fault].contains(&saw[0]), "{saw:?}");
                        assert_eq!(saw[1], Saw::Value(shared));
                        if saw[2] == Saw::Written {
                            held = value;
                        }
                        assert_eq!(saw[3], Saw::Written);
                        shared = value;
                        // The first value that is written is pinned, and writes of other values are refused.
                        if saw[4] == Saw::Written {
                            assert_eq!(*pinned.get_or_insert(value), value);
                        }
                    }
                });
            }
            for _ in 0..1000 {
                let seen = gate.replace(new());
                assert!(is_refused(&seen), "{seen:?}");
            }
            is_over.store(true, order);
        });
    });
}
