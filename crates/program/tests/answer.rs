//! Tests of the answers to a guest's exits under policies.

use std::sync::Arc;

use msrgate_filter::{Access, Exit, ExitReason, MsrIndex, Reply, Verdict};
use proptest::prelude::*;

use msrgate_policy::{NoIncludes, Source, compile, parse, parse_cpu};
use msrgate_program::answer::*;
use msrgate_program::{Cpu, Mask, Outside, Program};

const LSTAR: u32 = 0xc000_0082;
const STAR: u32 = 0xc000_0081;
const FMASK: u32 = 0xc000_0084;
const CSTAR: u32 = 0xc000_0083;

fn cpu() -> Cpu {
    parse_cpu("GenuineIntel:6:0x6a:6")
        .expect("a processor")
        .cpu()
        .clone()
}

fn program(text: &str) -> Arc<Program> {
    let policy = parse(&Source::new("test.toml", text), &mut NoIncludes).expect(text);
    Arc::new(compile(policy).expect(text).into_program())
}

const fn exit(index: u32, access: Access, data: u64, reason: ExitReason) -> Exit {
    let index = MsrIndex::new(index);
    Exit {
        index,
        access,
        data,
        reason,
    }
}

/// A vCPU whose exits are answered under a policy, and whose CPUID has all bits set.
struct Machine {
    responder: Responder,
    state: VcpuState,
}

impl Machine {
    fn new(settings: &str, entries: &str) -> Self {
        let text = format!("policy = 1\n{settings}\n[msrs]\n{entries}");
        let responder = Responder::new(program(&text), &cpu()).expect("answers");
        let state = VcpuState::new(&responder, |_| true);
        Self { responder, state }
    }

    fn deny(entries: &str) -> Self {
        Self::new("default = 'deny'", entries)
    }

    fn ask(&mut self, index: u32, access: Access, data: u64, reason: ExitReason) -> Answer<'_> {
        let exit = exit(index, access, data, reason);
        self.responder.respond(&mut self.state, &exit)
    }

    /// Returns true if an access becomes an event.
    fn is_event(&mut self, exit: Exit, is_first: bool) -> bool {
        let answer = self.responder.respond(&mut self.state, &exit);
        let (responder, disposition) = (&self.responder, answer.disposition);
        responder.is_event(&exit, &answer, disposition, || is_first)
    }

    fn read(&mut self, index: u32) -> (Response<'_>, Disposition) {
        let answer = self.ask(index, Access::Read, 0, ExitReason::Filter);
        (answer.response, answer.disposition)
    }

    fn write(&mut self, index: u32, data: u64) -> (Response<'_>, Disposition) {
        let answer = self.ask(index, Access::Write, data, ExitReason::Filter);
        (answer.response, answer.disposition)
    }

    /// Carries out a forwarded write to a register with the value `current`.
    fn carry(&mut self, index: u32, data: u64, current: u64) -> (Carried, Disposition) {
        let (Response::Forward(access), _) = self.write(index, data) else {
            unreachable!("not forwarded");
        };
        let (carried, disposition) = access.carry(current);
        if let Carried::Set(_) = carried {
            self.state.carried(&access);
        }
        (carried, disposition)
    }
}

const FAULT: Response<'static> = Response::Reply(Reply::FAULT);
const DONE: Response<'static> = Response::Reply(Reply::DONE);

const fn value(value: u64) -> Response<'static> {
    Response::Reply(Reply::value(value))
}

#[test]
fn response_to_access_that_policy_refuses_is_a_fault_or_kill() {
    let mut machine = Machine::deny("0x10 = 'r'");
    assert_eq!(machine.read(0x11), (FAULT, Disposition::Denied));
    assert_eq!(machine.write(0x10, 1), (FAULT, Disposition::Denied));
    let mut machine = Machine::deny("0x10 = { read = 'kill', write = 'kill' }");
    assert_eq!(machine.read(0x10), (Response::Kill, Disposition::Killed));
}

#[test]
fn response_to_access_with_action_value_ignore_or_handler_carries_out_that_action() {
    let mut machine = Machine::deny(
        "0x17 = { read = { value = '0x4000000000000' }, write = 'ignore' }\n\
         0x34 = { read = { handler = 'smi' }, write = 'deny' }",
    );
    assert_eq!(
        machine.read(0x17),
        (value(0x0004_0000_0000_0000), Disposition::Value)
    );
    assert_eq!(machine.write(0x17, 5), (DONE, Disposition::Ignored));
    assert_eq!(
        machine.read(0x34),
        (Response::Handler(&"smi".into()), Disposition::Handled)
    );
}

/// If the filter of an earlier program denied an access that the current program allows, the response to
/// its exit is a rewind (S5.8).
#[test]
fn respond_rewinds_exit_caused_by_filter_of_earlier_program() {
    let mut machine = Machine::deny("0x10 = 'rw'");
    assert_eq!(machine.read(0x10), (Response::Rewind, Disposition::Allowed));
    assert_eq!(
        machine.write(0x10, 1),
        (Response::Rewind, Disposition::Allowed)
    );
    assert!(!machine.responder.is_traced());
}

#[test]
fn write_to_emulated_register_changes_only_bits_of_its_mask() {
    let mut machine = Machine::deny(
        "0x10 = { register = { reset = 5, mask = '0xff' } }\n\
         0x11 = { register = { reset = '0xf00', mask = '0xff', outside = 'keep' } }",
    );
    assert_eq!(machine.read(0x10), (value(5), Disposition::Register));
    assert_eq!(machine.write(0x10, 0xfe), (DONE, Disposition::Register));
    assert_eq!(machine.read(0x10).0, value(0xfe));
    assert_eq!(machine.write(0x10, 0x1fe), (FAULT, Disposition::Denied));
    assert_eq!(machine.read(0x10).0, value(0xfe));
    assert_eq!(machine.read(0x11).0, value(0xf00));
    assert_eq!(machine.write(0x11, 0x0aa).0, DONE);
    assert_eq!(machine.read(0x11).0, value(0xfaa));
    let responder = machine.responder.clone();
    machine.state.reset(&responder);
    assert_eq!(machine.read(0x10).0, value(5));
}

/// If an entry of a policy has the action `register` for a range, each MSR of the range is an
/// emulated register of its own. Reads and writes of the MSR use the same register.
#[test]
fn each_msr_of_a_register_range_is_its_own_emulated_register() {
    let mut machine = Machine::deny(
        "'0x200..=0x20f' = { register = { reset = 7, mask = '0xffff' } }\n\
         0x205 = { read = 'deny', write = { register = { reset = 9, mask = '0xff' } } }",
    );
    for index in 0x200..=0x20f {
        let fits = machine.write(index, index.into());
        assert_eq!(fits.0 == DONE, index != 0x205, "{index:#x}");
    }
    for index in (0x200..=0x20f).filter(|&index| index != 0x205) {
        assert_eq!(machine.read(index).0, value(index.into()));
    }
    assert_eq!(machine.read(0x205).0, FAULT);
}

#[test]
fn pin_keeps_first_written_value_until_vcpu_reset() {
    let mut machine = Machine::deny("IA32_LSTAR = { read = 'allow', write = 'pin' }");
    assert_eq!(
        machine.carry(LSTAR, 0x1000, 0),
        (Carried::Set(0x1000), Disposition::Pinned)
    );
    // A second write of the same value is forwarded too, because the register may have lost the
    // value.
    assert_eq!(
        machine.carry(LSTAR, 0x1000, 0x3000),
        (Carried::Set(0x1000), Disposition::Pinned)
    );
    assert_eq!(machine.write(LSTAR, 0x2000), (FAULT, Disposition::Denied));
    let responder = machine.responder.clone();
    machine
        .state
        .msr_set_by_host(&responder, MsrIndex::new(STAR));
    assert_eq!(machine.write(LSTAR, 0x2000).0, FAULT);
    machine
        .state
        .msr_set_by_host(&responder, MsrIndex::new(LSTAR));
    assert_eq!(machine.carry(LSTAR, 0x2000, 0).0, Carried::Set(0x2000));
    machine.state.reset(&responder);
    assert_eq!(machine.carry(LSTAR, 0x3000, 0).0, Carried::Set(0x3000));
}

/// A forwarded write that does not reach the register pins nothing: a later write of another value
/// succeeds.
#[test]
fn forwarded_write_that_fails_pins_no_value() {
    let mut machine = Machine::deny("IA32_LSTAR = { read = 'allow', write = 'pin' }");
    let (Response::Forward(_), Disposition::Pinned) = machine.write(LSTAR, 0x8000 << 32) else {
        unreachable!("not forwarded");
    };
    assert_eq!(machine.carry(LSTAR, 0x1000, 0).0, Carried::Set(0x1000));
}

#[test]
fn forwarded_mask_or_sticky_write_depends_on_current_register_value() {
    let mut machine = Machine::deny(
        "IA32_STAR = { read = 'allow', write = { mask = '0xffff', outside = 'keep' } }\n\
         IA32_LSTAR = { read = 'allow', write = { mask = '0xffff' } }\n\
         IA32_FMASK = { read = 'allow', write = { sticky = '0x200' } }",
    );
    assert_eq!(
        machine.carry(STAR, 0xabcd_1234, 0x7777_0000),
        (Carried::Set(0x7777_1234), Disposition::Masked)
    );
    assert_eq!(
        machine.carry(LSTAR, 0x7777_1234, 0x7777_0000).0,
        Carried::Set(0x7777_1234)
    );
    assert_eq!(
        machine.carry(LSTAR, 0x1234, 0x7777_0000),
        (Carried::Fault, Disposition::Denied)
    );
    assert_eq!(
        machine.carry(FMASK, 0x100, 0x4200),
        (Carried::Set(0x300), Disposition::Sticky)
    );
    // A write by the host would store these reserved bits, but the guest's own write would fault.
    assert_eq!(machine.carry(FMASK, 1 << 32, 0).0, Carried::Fault);
}

/// If the guest's CPUID has no long mode, the guest has no LSTAR: its write gets #GP instead of
/// being forwarded.
#[test]
fn access_to_register_missing_in_cpuid_is_not_forwarded() {
    let mut machine = Machine::deny("IA32_LSTAR = { read = 'allow', write = 'pin' }");
    machine.state = VcpuState::new(&machine.responder, |bit| bit.feature != "LM");
    assert_eq!(machine.write(LSTAR, 1), (FAULT, Disposition::Denied));
}

#[test]
fn response_to_unknown_msr_follows_the_setting_unknown() {
    let settings = "default = 'allow'\nunknown = { read = 7, write = 'ignore', log = 'first' }";
    let mut machine = Machine::new(settings, "0x10 = 'none'");
    let read = machine.ask(0x1234, Access::Read, 0, ExitReason::Unknown);
    assert_eq!(
        (read.response, read.disposition),
        (value(7), Disposition::Unknown)
    );
    let read = exit(0x1234, Access::Read, 0, ExitReason::Unknown);
    let told = [true, false].map(|is_first| machine.is_event(read, is_first));
    assert_eq!(
        told,
        [true, false],
        "the log of `unknown`, not the default's"
    );
    let write = machine.ask(0x1234, Access::Write, 9, ExitReason::Unknown);
    assert_eq!(
        (write.response, write.disposition),
        (DONE, Disposition::Unknown)
    );
    // The policy refuses accesses to this MSR. The filter of an earlier program had allowed the access, and
    // KVM did not know the MSR.
    let stale = machine.ask(0x10, Access::Read, 0, ExitReason::Unknown);
    assert_eq!(
        (stale.response, stale.disposition),
        (FAULT, Disposition::Denied)
    );
    let invalid = machine.ask(0x1234, Access::Write, 9, ExitReason::Invalid);
    assert_eq!(
        (invalid.response, invalid.disposition),
        (FAULT, Disposition::Denied)
    );
    // Without the setting `unknown` the guest gets #GP, as from KVM itself.
    let mut machine = Machine::new("default = 'allow'", "");
    assert_eq!(
        machine
            .ask(0x1234, Access::Read, 0, ExitReason::Unknown)
            .response,
        FAULT
    );
}

#[test]
fn audit_mode_lets_kvm_handle_accesses_that_the_policy_refuses() {
    let mut machine = Machine::new(
        "default = 'deny'\nmode = 'audit'",
        "0x10 = { read = 'kill', write = 'deny' }\n\
         0x11 = { register = { reset = 0, mask = 1 } }\n\
         IA32_LSTAR = { read = 'allow', write = 'pin' }\n\
         IA32_STAR = { read = 'allow', write = { mask = '0xff' } }",
    );
    assert_eq!(machine.read(0x10), (Response::Open, Disposition::WouldKill));
    assert_eq!(
        machine.write(0x10, 0),
        (Response::Open, Disposition::WouldDeny)
    );
    assert_eq!(machine.write(0x11, 6), (DONE, Disposition::WouldDeny));
    assert_eq!(machine.read(0x11).0, value(6));
    assert_eq!(machine.carry(LSTAR, 1, 0).0, Carried::Set(1));
    assert_eq!(
        machine.carry(LSTAR, 2, 1),
        (Carried::Set(2), Disposition::WouldDeny)
    );
    assert_eq!(
        machine.carry(STAR, 0x100, 0),
        (Carried::Set(0x100), Disposition::WouldDeny)
    );
    // The gate had opened the kernel's filter for the access, and KVM does not know the MSR.
    let unknown = machine.ask(0x999, Access::Read, 0, ExitReason::Unknown);
    assert_eq!(
        (unknown.response, unknown.disposition),
        (FAULT, Disposition::Denied)
    );
    // No filter can open for the last MSR (S3.5): rewinding its access would loop forever.
    assert_eq!(machine.read(u32::MAX).0, FAULT);
}

#[test]
fn log_first_opens_kernel_filter_for_allowed_access_and_log_all_forwards_the_access() {
    let mut machine = Machine::deny(
        "0x10 = { read = 'allow', write = 'allow', log = 'first' }\n\
         IA32_LSTAR = { read = 'allow', write = 'allow', log = 'all' }",
    );
    assert_eq!(machine.read(0x10), (Response::Open, Disposition::Allowed));
    assert!(machine.responder.is_traced());
    let (Response::Forward(access), Disposition::Allowed) = machine.read(LSTAR) else {
        unreachable!("not forwarded");
    };
    assert!(access.needs_current());
    assert_eq!(access.carry(3), (Carried::Value(3), Disposition::Allowed));
    assert_eq!(machine.carry(LSTAR, 4, 0).0, Carried::Set(4));
    machine.state = VcpuState::new(&machine.responder, |_| false);
    assert_eq!(machine.read(LSTAR).0, Response::Open);
    let mut machine = Machine::new("default = 'allow'\nlog = 'first'", "");
    assert_eq!(machine.read(u32::MAX).0, FAULT);
    assert_eq!(machine.read(0x10).0, Response::Open);
}

#[test]
fn access_becomes_event_depending_on_log_level_and_disposition() {
    let log = |settings: &str, entries: &str, index| {
        let mut machine = Machine::new(settings, entries);
        let read = exit(index, Access::Read, 0, ExitReason::Filter);
        [true, false].map(|is_first| machine.is_event(read, is_first))
    };
    assert_eq!(log("default = 'deny'", "", 0x10), [true, true]);
    assert_eq!(
        log("default = 'deny'\nlog = 'none'", "", 0x10),
        [false, false]
    );
    assert_eq!(
        log("default = 'deny'\nlog = 'first'", "", 0x10),
        [true, false]
    );
    let quiet = "0x10 = { read = 'kill', write = 'kill', log = 'none' }";
    assert_eq!(log("default = 'deny'", quiet, 0x10), [true, true]);
    let value = "0x10 = { read = { value = 0 }, write = 'deny' }";
    assert_eq!(log("default = 'deny'", value, 0x10), [false, false]);
    let audit = "default = 'deny'\nmode = 'audit'\nlog = 'none'";
    assert_eq!(log(audit, "", 0x10), [true, false]);
}

/// The kernel's filter follows the rules, except that it first denies the accesses that are to become
/// events. The gate then opens the filter for one of these accesses at a time.
#[test]
fn verdicts_of_logging_program_open_filter_for_one_access_at_a_time() {
    let machine = Machine::deny(
        "0x10 = 'r'\n0x11 = { read = 'allow', write = 'deny', log = 'first' }\n\
         0x12 = { read = { value = 1 }, write = 'deny' }",
    );
    let verdict = |opened: &[(MsrIndex, Access)], index| {
        let filter = machine.responder.verdicts(opened).pack().unwrap();
        filter.decide(MsrIndex::new(index), Access::Read).verdict
    };
    let opened = [
        (MsrIndex::new(0x11), Access::Read),
        (MsrIndex::new(0x12), Access::Read),
    ];
    for (index, closed, open) in [
        (0x10, Verdict::Allow, Verdict::Allow),
        (0x11, Verdict::Deny, Verdict::Allow),
        // The filter denies an access that user space answers, even if the caller asks to open the
        // filter for that access.
        (0x12, Verdict::Deny, Verdict::Deny),
        (0x13, Verdict::Deny, Verdict::Deny),
    ] {
        assert_eq!(verdict(&[], index), closed, "{index:#x}");
        assert_eq!(verdict(&opened, index), open, "{index:#x}");
    }
}

#[test]
fn vcpu_state_under_new_program_keeps_registers_and_pins_that_both_programs_have() {
    let text = "policy = 1\ndefault = 'deny'\n[msrs]\n";
    let both = "0x10 = { register = { reset = 1, mask = '0xff' } }\nIA32_LSTAR = { read = 'allow', write = 'pin' }\n";
    let old = Responder::new(
        program(&format!(
            "{text}{both}0x11 = {{ register = {{ reset = 2, mask = '0xff' }} }}"
        )),
        &cpu(),
    )
    .unwrap();
    let new = Responder::new(
        program(&format!(
            "{text}{both}0x9 = {{ register = {{ reset = 3, mask = '0xff' }} }}"
        )),
        &cpu(),
    )
    .unwrap();
    let mut machine = Machine {
        state: VcpuState::new(&old, |_| true),
        responder: old.clone(),
    };
    assert_eq!(machine.write(0x10, 0x55).0, DONE);
    assert_eq!(machine.carry(LSTAR, 0x1000, 0).0, Carried::Set(0x1000));
    machine.state = machine.state.under(&old, &new);
    machine.responder = new;
    assert_eq!(machine.read(0x10).0, value(0x55));
    assert_eq!(machine.read(0x9).0, value(3));
    assert_eq!(machine.read(0x11).0, FAULT);
    assert_eq!(machine.write(LSTAR, 0x2000).0, FAULT);
}

/// If a vCPU goes back from a new program to the old one, registers and pins that both programs have
/// keep their current values, and those that only the old program has get their earlier values.
#[test]
fn vcpu_state_back_under_old_program_regains_values_that_new_program_does_not_have() {
    let both = "0x10 = { register = { reset = 1, mask = '0xff' } }\nIA32_LSTAR = { read = 'allow', write = 'pin' }\nIA32_STAR = { read = 'allow', write = 'pin' }\n";
    let of = |entries: &str| {
        let text = format!("policy = 1\ndefault = 'deny'\n[msrs]\n{both}{entries}");
        Responder::new(program(&text), &cpu()).expect("answers")
    };
    let old = of(
        "'0x11..=0x12' = { register = { reset = 2, mask = '0xff' } }\nIA32_CSTAR = { read = 'allow', write = 'pin' }\nIA32_FMASK = { read = 'allow', write = 'pin' }",
    );
    let new = of(
        "'0x8..=0x9' = { register = { reset = 3, mask = '0xff' } }\nIA32_KERNEL_GS_BASE = { read = 'allow', write = 'pin' }",
    );
    let mut machine = Machine {
        state: VcpuState::new(&old, |_| true),
        responder: old.clone(),
    };
    assert_eq!(machine.write(0x10, 0x55).0, DONE);
    assert_eq!(machine.write(0x12, 0x56).0, DONE);
    assert_eq!(machine.carry(LSTAR, 0x1000, 0).0, Carried::Set(0x1000));
    assert_eq!(machine.carry(CSTAR, 0x2000, 0).0, Carried::Set(0x2000));
    let before = machine.state.clone();
    machine.state = machine.state.under(&old, &new);
    machine.responder = new.clone();
    assert_eq!(machine.write(0x10, 0x65).0, DONE);
    assert_eq!(machine.write(0x9, 0x66).0, DONE);
    assert_eq!(machine.carry(STAR, 0x3000, 0).0, Carried::Set(0x3000));
    machine.state.msr_set_by_host(&new, MsrIndex::new(LSTAR));
    machine.state = machine.state.back(&new, &before, &old);
    machine.responder = old.clone();
    let saved = machine.state.save(&old);
    let msr = MsrIndex::new;
    assert_eq!(
        saved.registers,
        [(msr(0x10), 0x65), (msr(0x11), 2), (msr(0x12), 0x56)]
    );
    assert_eq!(saved.pins, [(msr(STAR), 0x3000), (msr(CSTAR), 0x2000)]);
    // If the caller gives `under` the wrong program for this state, the result still has all registers
    // of `old`.
    let foreign = VcpuState::new(&new, |_| true);
    assert_eq!(foreign.under(&old, &old).save(&old).registers.len(), 3);
    // A switch to the new program and back, without an access in between, leaves the vCPU's state
    // unchanged.
    let there = machine.state.under(&old, &new);
    let back = there.back(&new, &machine.state, &old);
    assert_eq!(back.save(&old), machine.state.save(&old));
}

#[test]
fn vcpu_state_restore_that_fails_changes_nothing() {
    let entries = "'0x10..=0x12' = { register = { reset = 1, mask = '0xff' } }\nIA32_LSTAR = { read = 'allow', write = 'pin' }";
    let mut machine = Machine::deny(entries);
    assert_eq!(machine.write(0x11, 0x55).0, DONE);
    assert_eq!(machine.carry(LSTAR, 0x1000, 0).0, Carried::Set(0x1000));
    let mut saved = machine.state.save(&machine.responder);
    saved.devices.push(("microcode".into(), Box::new([1, 2])));
    let saved = Saved::decode(&saved.encode()).unwrap();
    assert_eq!(saved.devices, [("microcode".into(), [1, 2].into())]);
    let mut other = Machine::deny(entries);
    other.state.restore(&other.responder, &saved).unwrap();
    let again = other.state.save(&other.responder);
    assert_eq!(again, machine.state.save(&machine.responder));
    let mut smaller = Machine::deny("'0x10..=0x11' = { register = { reset = 1, mask = '0xff' } }");
    let before = smaller.state.save(&smaller.responder);
    let error = smaller.state.restore(&smaller.responder, &saved);
    assert_eq!(error, Err(RestoreError::NoRegister(MsrIndex::new(0x12))));
    assert_eq!(smaller.state.save(&smaller.responder), before);
}

/// `Saved::decode` reads a state that the first version of the format encoded: the current code must still
/// be able to read these bytes.
#[test]
fn saved_vcpu_state_of_format_version_1_is_still_decoded() {
    let saved = Saved {
        registers: vec![(MsrIndex::new(0x10), 5), (MsrIndex::new(0x11), u64::MAX)],
        pins: vec![(MsrIndex::new(LSTAR), 0xffff_ffff_8100_0000)],
        devices: vec![("microcode".into(), 0x2b00_0590_u32.to_le_bytes().into())],
    };
    let fixture = include_bytes!("fixtures/saved-v1.msrgv");
    assert_eq!(Saved::decode(fixture), Ok(saved.clone()));
    assert_eq!(saved.encode(), fixture);
}

#[test]
fn saved_state_decode_refuses_truncated_or_trailing_bytes() {
    let fixture = include_bytes!("fixtures/saved-v1.msrgv");
    for length in 0..fixture.len() {
        assert!(Saved::decode(&fixture[..length]).is_err(), "{length}");
    }
    let longer = [&fixture[..], &[0]].concat();
    assert_eq!(Saved::decode(&longer), Err(RestoreError::Broken));
    let mut newer = fixture.to_vec();
    newer[8] = 2;
    assert_eq!(Saved::decode(&newer), Err(RestoreError::Version(2)));
}

#[test]
fn new_responder_refuses_program_with_too_many_emulated_registers() {
    let text = "policy = 1\ndefault = 'deny'\n[msrs]\n'0x1000..=0x1400' = { register = { reset = 0, mask = 0 } }";
    let error = Responder::new(program(text), &cpu()).unwrap_err();
    assert_eq!(error, ResponderError::TooManyRegisters(0x401));
}

proptest! {
    #[test]
    fn saved_state_decode_of_any_bytes_returns_state_or_error(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Saved::decode(&bytes);
        let versioned = [b"msrgvcpu\x01\x00", &bytes[..]].concat();
        if let Ok(saved) = Saved::decode(&versioned) {
            prop_assert_eq!(saved.encode(), versioned);
        }
    }

    /// `Mask::apply` takes the bits inside the mask from the written value, and the bits outside the
    /// mask from the current value.
    #[test]
    fn mask_apply_changes_only_bits_of_the_mask(current: u64, value: u64, bits: u64) {
        let keep = Mask { bits, outside: Outside::Keep }.apply(current, value);
        prop_assert_eq!(keep, Some(value & bits | current & !bits));
        let deny = Mask { bits, outside: Outside::Deny }.apply(current, value);
        prop_assert_eq!(deny, keep.filter(|&new| new == value));
    }
}
