//! Tests of `exec` with the policy's actions `ignore` and `register`, with `unknown` and with
//! `log = "denied"`, and with VMMs that set an MSR filter of their own.

use std::fs;
use std::process::Command;

use crate::lab::{ALLOWS, Lab, ran};

/// Runs the test VMM `answers` with the argument `what` under a policy, and returns its output. The policy
/// has the lines `rest` and allows all other accesses.
fn guarded(rest: &str, what: &str) -> Option<String> {
    let lab = Lab::with_kvm(&policy(rest))?;
    let vmm = lab.build("answers.c", &[]);
    let ran = ran(lab.exec(&["--quiet"]).arg(vmm).arg(what));
    assert_eq!((&*ran.err, ran.status), ("", 0), "{rest}\n{}", ran.out);
    Some(ran.out)
}

fn policy(rest: &str) -> String {
    format!("policy = 1\ndefault = 'allow'\n{rest}\n")
}

/// Runs the test VMM `answers` with the argument `what` without `exec`, and returns its output.
fn plain(what: &str) -> Option<String> {
    let lab = Lab::with_kvm(ALLOWS)?;
    let vmm = lab.build("answers.c", &[]);
    Some(ran(Command::new(vmm).arg(what)).out)
}

/// The guest writes 5 to a register and reads it. Then the VMM reads KVM's register and writes 3 to it, and
/// the guest reads again.
#[test]
fn guest_write_with_action_ignore_or_register_does_not_reach_kvm_register() {
    let Some(plain) = plain("written") else {
        return;
    };
    assert_eq!(plain, "5.\nKVM has 5\n3.\n");
    assert_eq!(guarded("", "written"), Some(plain));
    let ignores = "[msrs]\n0xc0000102 = { read = 'allow', write = 'ignore' }";
    let shown = guarded(ignores, "written").unwrap();
    assert_eq!(shown, "0.\nKVM has 0\n3.\n");
    // The VMM's write is a reset of the emulated register.
    let emulates = "[msrs]\n0xc0000102 = { register = { reset = 2, mask = 7 } }";
    let shown = guarded(emulates, "written").unwrap();
    assert_eq!(shown, "5.\nKVM has 0\n2.\n");
}

/// The guest accesses an MSR that KVM does not know, in four rounds. In the second and the fourth round the
/// VMM's mask asks for exits of such accesses: the VMM answers them then, and the policy does in the other
/// rounds.
#[test]
fn access_of_unknown_msr_goes_to_vmm_if_its_mask_asks_and_else_to_policy() {
    let Some(plain) = plain("unknown") else {
        return;
    };
    let theirs = "[write 12345678 2][exit 12345678 2]7.\n";
    let rounds = |own: &str, last: &str| {
        format!(
            "{own}mask 0: 0 \n{own}mask 2: 0 \n{theirs}mask 4: 0 \n{own}mask 6: 0 \n{theirs}mask 0: 0 \n{last}"
        )
    };
    assert_eq!(plain, rounds("0!\n", "0!\n"));
    for (policy, own, last) in [
        ("", "0!\n", "0!\n"),
        ("unknown = { read = 6, write = 'ignore' }", "6.\n", "6.\n"),
        ("unknown = { read = 6 }", "6!\n", "6.\n"),
        ("unknown = 'ignore'", "0.\n", "0.\n"),
        ("unknown = { write = 'ignore' }", "0!\n", "0!\n"),
    ] {
        let shown = guarded(policy, "unknown").unwrap();
        assert_eq!(shown, rounds(own, last), "{policy}");
    }
}

/// The guest reads a register that the policy denies and one that the policy allows. With `log = "denied"`
/// only the denied read becomes an event.
#[test]
fn log_denied_makes_event_of_denied_access_and_none_of_allowed_access() {
    let denies = "log = 'denied'\n[msrs]\n0x8b = { read = 'deny', write = 'allow' }";
    let Some(lab) = Lab::with_kvm(&policy(denies)) else {
        return;
    };
    let vmm = lab.build("answers.c", &[]);
    let ran = ran(lab.exec(&["--events", "events"]).arg(vmm).arg("both"));
    assert_eq!((&*ran.out, ran.status), ("!\n.\n", 0), "{}", ran.err);
    lab.assert_no_page_is_left();
    let events = lab.events("events");
    assert_eq!(events.lines().count(), 1, "{events}");
    let event: serde_json::Value = serde_json::from_str(&events).unwrap();
    let seen = [&event["action"], &event["msr"], &event["access"]];
    assert_eq!(seen, ["deny", "0x8b", "read"]);
}

/// Three writes and four reads come to the gate. The first of each exits for the filter, too.
#[test]
fn audit_counts_access_of_refused_and_unknown_msr_once() {
    let denies = "unknown = { read = 'deny', write = 'deny', log = 'first' }\n[msrs]\n0x12345678 = { read = 'deny', write = 'deny' }";
    let Some(lab) = Lab::with_kvm(&policy(denies)) else {
        return;
    };
    let vmm = lab.build("answers.c", &[]);
    let ran = ran(lab.exec(&["--audit"]).arg(vmm).arg("unknown"));
    assert_eq!(ran.status, 0, "{}", ran.err);
    let kinds = ran.err.lines().filter(|line| line.contains("0x12345678"));
    assert_eq!(kinds.count(), 4, "{}", ran.err);
    let wanted = "would have refused at least 7 accesses\n";
    assert!(ran.err.contains(wanted), "{}", ran.err);
}

/// The VMM sets its filter five times, each time with one range more, as QEMU does with `rapl`. The guest's
/// accesses have the same results as without a policy.
#[test]
fn filter_that_vmm_sets_again_with_one_range_more_takes_effect_each_time() {
    let Some(plain) = plain("growing") else {
        return;
    };
    let last = "[exit 35 4]7.\n[exit 606 4]7.\n[exit 610 4]7.\n[exit 611 4]7.\n[exit 614 4]7.\n.\n";
    assert!(plain.ends_with(last), "{plain}");
    for policy in ["", "log = 'first'"] {
        assert_eq!(
            guarded(policy, "growing").as_ref(),
            Some(&plain),
            "{policy}"
        );
    }
    // What the policy denies the VMM does not get, and the guest's read without an exit is a #GP.
    let denies = "[msrs]\n0x610 = { read = 'deny', write = 'allow' }";
    let shown = guarded(denies, "growing").unwrap();
    // Before the VMM's filter has the register, the read is the kernel's: a value or a #GP.
    let of_rounds = |text: &str| -> Vec<Vec<String>> {
        let rounds = text.split("filter: 0\n").skip(1);
        let lines = |round: &str| round.lines().map(str::to_owned).collect();
        rounds.map(lines).collect()
    };
    let mut expected = of_rounds(&plain);
    for round in &mut expected {
        round[2] = "!".to_owned();
    }
    assert_eq!(of_rounds(&shown), expected);
}

/// The policy denies a read only on Intel's processors, and the VMM sets no CPUID for its vCPU. The library
/// ends such a VMM.
#[test]
fn vmm_is_ended_with_message_if_policy_differs_by_processor_and_vcpu_has_no_cpuid() {
    let differs = "[[when]]\ncpu = { vendor = 'GenuineIntel' }\n[when.msrs]\n0x8b = { read = 'deny', write = 'allow' }";
    let Some(lab) = Lab::with_kvm(&policy(differs)) else {
        return;
    };
    let vmm = lab.build("answers.c", &[]);
    let mut command = lab.exec(&["--quiet"]);
    let ran = ran(command.arg(vmm).arg("without-cpuid"));
    assert_eq!((&*ran.out, ran.status), ("", 128 + 9));
    let said = "msrgate: a vCPU cannot be guarded, and the VMM is ended: the policy differs by processor, and the VMM has given vCPU 0 no CPUID\n";
    assert_eq!(ran.err, said);
    lab.assert_no_page_is_left();
}

/// Under `--fail-open`, the VMM has bypassed the library and set an MSR filter that denies an access that
/// the policy allows. The gate retries the access, gives up and ends the VMM.
#[test]
fn vmm_is_ended_with_message_if_kernel_keeps_refusing_access_that_policy_allows() {
    let denies = "[msrs]\n0x10 = { read = 'deny', write = 'allow' }";
    let Some(lab) = Lab::with_kvm(&policy(denies)) else {
        return;
    };
    let vmm = lab.build("answers.c", &[]);
    let mut command = lab.exec(&["--quiet", "--fail-open"]);
    let ran = ran(command.arg(vmm).arg("past-the-library"));
    assert_eq!((&*ran.out, ran.status), (".\n", 128 + 9), "{}", ran.err);
    let said = "\nmsrgate: the policy cannot be kept up, and the VMM is ended: the kernel keeps refusing a read of MSR 0x8b that the policy allows";
    assert_eq!(ran.err.matches(said).count(), 1, "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    lab.assert_no_page_is_left();
}

/// The guest reads 0x8b, and no other MSR.
#[test]
fn default_kill_ends_vmm_at_access_that_no_entry_names() {
    let Some(lab) = Lab::with_kvm("policy = 1\ndefault = 'kill'\n") else {
        return;
    };
    let vmm = lab.build("strict.c", &[]);
    let killed = ran(lab.exec(&[]).arg(&vmm));
    assert_eq!(
        (&*killed.out, killed.status),
        ("", 128 + 9),
        "{}",
        killed.err
    );
    let said = "the policy has the action kill for the read of MSR 0x8b";
    assert!(killed.err.contains(said), "{}", killed.err);
    for text in [
        "by the default of guest.toml (kill), first",
        "`kill` has ended a VMM",
    ] {
        assert!(killed.err.contains(text), "{text}: {}", killed.err);
    }
    let audit = ran(lab.exec(&["--audit"]).arg(&vmm));
    for text in [
        "(kill), first",
        "without the audit, the first access marked (kill)",
    ] {
        assert!(audit.err.contains(text), "{text}: {}", audit.err);
    }
    let grant = "to allow: IA32_BIOS_SIGN_ID = { read = \"allow\", write = \"inherit\" }\n";
    assert!(killed.err.contains(grant), "{}", killed.err);
    let entry = "IA32_BIOS_SIGN_ID = { read = \"allow\", write = \"inherit\" }";
    let named = format!("policy = 1\ndefault = 'kill'\n[msrs]\n{entry}\n");
    fs::write(lab.path("guest.toml"), named).unwrap();
    let allowed = ran(lab.exec(&[]).arg(&vmm));
    assert_eq!(
        (&*allowed.out, allowed.status),
        (".\n", 0),
        "{}",
        allowed.err
    );
}
