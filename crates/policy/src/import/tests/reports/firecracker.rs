//! Tests of Firecracker's files.

use super::*;

/// If KVM refuses or drops a guest's writes of a register, the guest cannot change the register.
#[test]
fn import_of_fingerprint_refuses_writes_that_kvm_refuses() {
    let of = |index: u32| {
        let bitmap = "1".repeat(64);
        let fingerprint = format!(
            r#"{{"guest_cpu_config":{{"kvm_capabilities":[],"cpuid_modifiers":[],"msr_modifiers":[{{"addr":"{index:#x}","bitmap":"0b{bitmap}"}}]}}}}"#
        );
        let entries = entries_of(fingerprint.as_bytes());
        (entries[0].1.clone(), remarks_of(fingerprint.as_bytes()))
    };
    for constant in [0x17, 0xce, 0xcf, 0x10a] {
        let wanted = [Some(Action::Value(u64::MAX)), Some(Action::Deny)];
        assert_eq!(of(constant), (wanted, Vec::new()), "{constant:#x}");
    }
    let allow = || Some(Action::Allow);
    let refused = [0x34, 0x9e, 0xfe, 0x179, 0x345, 0x480, 0x491, 0x606];
    for (indices, actions, says) in [
        (
            &refused[..],
            [allow(), Some(Action::Deny)],
            "refuses writes, as KVM does",
        ),
        (
            &[0x8b, 0x79],
            [allow(), allow()],
            "KVM drops a guest's writes",
        ),
        (
            &[0x10, 0x3a, 0x174],
            [allow(), allow()],
            "a guest may change them",
        ),
    ] {
        for &index in indices {
            let (entry, remarks) = of(index);
            assert_eq!(entry, actions, "{index:#x}");
            assert!(
                remarks.len() == 1 && remarks[0].contains(says),
                "{index:#x}: {remarks:?}"
            );
        }
    }
}

/// Older lists also name the registers that a guest could not read.
#[test]
fn import_of_older_list_allows_reads_of_implemented_registers() {
    let list = b"MSR_ADDR,STATUS,VALUE\n0,implemented,0x0\n0x10,implemented,0x5\n\
        0x11,unimplemented,0x0\n0x12,unimplemented,\n0x13,guessed,0x0\n";
    let read = [Some(Action::Allow), Some(Action::Deny)];
    assert_eq!(entries_of(list), [(0, read.clone()), (0x10, read)]);
    let remarks = remarks_of(list);
    assert!(
        remarks.iter().any(|remark| remark.starts_with("line 6: ")),
        "{remarks:?}"
    );
    assert_eq!(remarks.len(), 2, "{remarks:?}");
}
