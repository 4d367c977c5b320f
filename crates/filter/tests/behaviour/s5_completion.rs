//! S5.4 to S5.8: completing, interrupting, saving and rewinding an exit.

use msrgate_filter::{
    Accesses, ExitPending, ExitReason, Gprs, Instruction, ReasonMask, RegisterMap, Reply, Revision,
    RunExit, SingleStep, Vcpu,
};

use crate::machine::{
    AT, FAULT, INITIAL, PAST, PLAIN, about_to_access, about_to_read, denying, guarded, read,
    reason, registers, write,
};

const ANSWER: u64 = 0xfedc_ba98_7654_3210;

/// Returns a reply with this error byte.
fn error(error: u8) -> Reply {
    Reply {
        error,
        data: ANSWER,
    }
}

/// Returns the RIP that a guest has after a reply with an error: the address of the RDMSR or WRMSR
/// on mainline, and the address after it on v6.
fn refused_at(revision: Revision) -> u64 {
    match revision {
        Revision::Mainline => AT,
        Revision::V6 => PAST,
    }
}

fn resume(vcpu: &mut Vcpu<RegisterMap>, reply: Reply) -> RunExit {
    vcpu.reply(reply);
    vcpu.run(Instruction::Rdmsr)
}

#[test]
fn s5_4_completed_read_returns_data_and_advances_rip() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        read(&mut vcpu, PLAIN);
        assert_eq!(resume(&mut vcpu, Reply::value(ANSWER)), RunExit::Retired);
        let expected = Gprs {
            rax: 0x7654_3210,
            rdx: 0xfedc_ba98,
            rip: PAST,
            ..about_to_read(PLAIN)
        };
        assert_eq!(vcpu.gprs(), expected);
        assert_eq!(vcpu.pending_exit(), None);
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
    }
}

#[test]
fn s5_4_completed_write_changes_no_general_register_except_rip() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        write(&mut vcpu, PLAIN, 5);
        assert_eq!(resume(&mut vcpu, Reply::value(ANSWER)), RunExit::Retired);
        let expected = Gprs {
            rip: PAST,
            ..about_to_access(PLAIN, 5)
        };
        assert_eq!(vcpu.gprs(), expected);
        assert_eq!(vcpu.host_read(PLAIN), Ok(INITIAL));
    }
}

/// If the VMM writes no reply, a read returns 0: `kvm_run` still holds `error` 0 and the exit's
/// `data`.
#[test]
fn s5_4_unanswered_read_returns_zero() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        read(&mut vcpu, PLAIN);
        assert_eq!(vcpu.run(Instruction::Rdmsr), RunExit::Retired);
        assert_eq!((vcpu.gprs().value(), vcpu.gprs().rip), (0, PAST));
    }
}

#[test]
fn s5_4_error_reply_gives_guest_a_fault_and_v6_skips_the_instruction() {
    for revision in Revision::ALL {
        for byte in [1, 2, 0x80, 0xff] {
            for start in [read, |vcpu: &mut _, index| write(vcpu, index, 5)] {
                let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
                start(&mut vcpu, PLAIN);
                let before = vcpu.gprs();
                let rip = refused_at(revision);
                assert_eq!(
                    resume(&mut vcpu, error(byte)),
                    RunExit::GeneralProtection { rip }
                );
                assert_eq!(vcpu.gprs(), Gprs { rip, ..before });
            }
        }
    }
}

#[test]
fn s5_4_completion_under_single_step_is_a_debug_exit() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        vcpu.set_single_step(SingleStep::On);
        read(&mut vcpu, PLAIN);
        assert_eq!(resume(&mut vcpu, Reply::value(1)), RunExit::Debug);
        assert_eq!((vcpu.gprs().value(), vcpu.gprs().rip), (1, PAST));

        read(&mut vcpu, PLAIN);
        let rip = refused_at(revision);
        let fault = RunExit::GeneralProtection { rip };
        match revision {
            Revision::Mainline => assert_eq!(resume(&mut vcpu, Reply::FAULT), fault),
            Revision::V6 => {
                assert_eq!(resume(&mut vcpu, Reply::FAULT), RunExit::Debug);
                assert_eq!(vcpu.run(Instruction::Rdmsr), fault);
            }
        }
    }
}

/// A filter or reason mask that is set while an exit is pending does not change how the exit completes.
/// The new filter or mask holds from the next access on.
#[test]
fn s5_5_new_filter_or_reason_mask_leaves_pending_exit_unchanged() {
    for revision in Revision::ALL {
        for (reply, rip) in [
            (Reply::value(ANSWER), PAST),
            (Reply::FAULT, refused_at(revision)),
        ] {
            let (vm, mut vcpu) = guarded(revision, &[PLAIN]);
            read(&mut vcpu, PLAIN);
            vm.set_filter(&denying(revision, Accesses::Both, &[]))
                .unwrap();
            vm.set_reasons(ReasonMask::NONE);
            resume(&mut vcpu, reply);
            assert_eq!(vcpu.gprs().rip, rip);
            if reply.error == 0 {
                assert_eq!(vcpu.gprs().value(), ANSWER);
            }
            assert_eq!(read(&mut vcpu, PLAIN), RunExit::Retired, "the new filter");
            assert_eq!(vcpu.gprs().value(), INITIAL);
        }
    }
}

#[test]
fn s5_5_only_completed_read_overwrites_registers_set_during_the_exit() {
    let meanwhile = Gprs {
        rax: 1,
        rcx: 2,
        rdx: 3,
        rip: 0x5000,
    };
    for revision in Revision::ALL {
        let skipped = refused_at(revision) - AT;
        let after_read = Gprs {
            rax: ANSWER & 0xffff_ffff,
            rdx: ANSWER >> 32,
            rip: 0x5002,
            ..meanwhile
        };
        let after_write = Gprs {
            rip: 0x5002,
            ..meanwhile
        };
        let after_fault = Gprs {
            rip: 0x5000 + skipped,
            ..meanwhile
        };
        let reading = read as fn(&mut Vcpu<RegisterMap>, _) -> RunExit;
        let writing = |vcpu: &mut Vcpu<RegisterMap>, index| write(vcpu, index, 9);
        for (start, reply, expected) in [
            (reading, Reply::value(ANSWER), after_read),
            (writing, Reply::value(ANSWER), after_write),
            (reading, error(1), after_fault),
            (writing, error(1), after_fault),
        ] {
            let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
            start(&mut vcpu, PLAIN);
            vcpu.set_gprs(meanwhile);
            resume(&mut vcpu, reply);
            assert_eq!(vcpu.gprs(), expected, "{revision:?} {reply:?}");
        }
    }
}

#[test]
fn s5_6_immediate_exit_completes_pending_exit_and_returns_eintr() {
    for revision in Revision::ALL {
        let (_vm, mut vcpu) = guarded(revision, &[PLAIN]);
        assert_eq!(vcpu.run_immediate_exit(), RunExit::Interrupted);
        read(&mut vcpu, PLAIN);
        vcpu.reply(Reply::value(ANSWER));
        assert_eq!(vcpu.run_immediate_exit(), RunExit::Interrupted);
        assert_eq!(vcpu.pending_exit(), None);
        assert_eq!((vcpu.gprs().value(), vcpu.gprs().rip), (ANSWER, PAST));

        read(&mut vcpu, PLAIN);
        vcpu.reply(Reply::FAULT);
        assert_eq!(vcpu.run_immediate_exit(), RunExit::Interrupted);
        let rip = refused_at(revision);
        let delivered = vcpu.run(Instruction::Rdmsr);
        assert_eq!(delivered, RunExit::GeneralProtection { rip });
    }
}

#[test]
fn s5_6_save_and_restore_refuse_a_pending_exit() {
    for revision in Revision::ALL {
        let (vm, mut vcpu) = guarded(revision, &[PLAIN]);
        let before = vcpu.save().unwrap();
        read(&mut vcpu, PLAIN);
        let exit = vcpu.pending_exit().unwrap();
        assert_eq!(vcpu.save(), Err(ExitPending(exit)));
        assert_eq!(vcpu.restore(before), Err(ExitPending(exit)));
        vcpu.reply(Reply::FAULT);
        vcpu.run_immediate_exit();

        // The queued #GP is part of the saved state.
        let saved = vcpu.save().unwrap();
        let mut other = vm.create_vcpu(registers());
        other.restore(saved).unwrap();
        let rip = refused_at(revision);
        let fault = RunExit::GeneralProtection { rip };
        assert_eq!(other.run(Instruction::Rdmsr), fault);
    }
}

#[test]
fn s5_7_fault_handler_sees_address_of_refused_instruction() {
    let (_vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
    for start in [read, |vcpu: &mut _, index| write(vcpu, index, 5)] {
        start(&mut vcpu, PLAIN);
        assert_eq!(resume(&mut vcpu, Reply::FAULT), FAULT);
        let again = vcpu.run(Instruction::Rdmsr);
        assert_eq!(reason(again), Some(ExitReason::Filter), "one fault, once");
        vcpu.run_immediate_exit();
    }
}

/// After the rewind the guest executes the access itself, under a filter that now allows the access, and
/// cannot tell that the access had exited before. The guest cannot tell under single-step either.
#[test]
fn s5_8_guest_executes_rewound_access_again() {
    for single_step in [SingleStep::Off, SingleStep::On] {
        let (vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
        vcpu.set_single_step(single_step);
        assert_eq!(reason(write(&mut vcpu, PLAIN, 5)), Some(ExitReason::Filter));
        vm.set_filter(&denying(Revision::Mainline, Accesses::Both, &[]))
            .unwrap();

        let registers = vcpu.gprs();
        vcpu.reply(Reply::FAULT);
        assert_eq!(vcpu.run_immediate_exit(), RunExit::Interrupted);
        vcpu.set_gprs(registers);

        let retired = match single_step {
            SingleStep::Off => RunExit::Retired,
            SingleStep::On => RunExit::Debug,
        };
        assert_eq!(vcpu.run(Instruction::Wrmsr), retired);
        assert_eq!(vcpu.host_read(PLAIN), Ok(5));
        assert_eq!(vcpu.gprs().rip, PAST);
    }
}

/// If the reply has no error, `KVM_RUN` completes the access instead of rewinding it, and returns a
/// debug exit in place of EINTR under single-step.
#[test]
fn s5_8_reply_without_error_completes_the_access_instead_of_rewinding() {
    for (single_step, outcome) in [
        (SingleStep::Off, RunExit::Interrupted),
        (SingleStep::On, RunExit::Debug),
    ] {
        let (_vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
        vcpu.set_single_step(single_step);
        read(&mut vcpu, PLAIN);
        assert_eq!(vcpu.run_immediate_exit(), outcome);
        assert_eq!((vcpu.gprs().value(), vcpu.gprs().rip), (0, PAST));
    }
}

/// If the VMM does not write the vCPU's registers back after its error reply, the guest gets the queued
/// #GP.
#[test]
fn s5_8_rewind_without_set_regs_gives_guest_a_fault() {
    let (_vm, mut vcpu) = guarded(Revision::Mainline, &[PLAIN]);
    read(&mut vcpu, PLAIN);
    vcpu.reply(Reply::FAULT);
    vcpu.run_immediate_exit();
    assert_eq!(vcpu.run(Instruction::Rdmsr), FAULT);
}
