//! Tests of the import of files as users really have them: each stands for a kind of files, and
//! must give the right entries.

mod firecracker;

use msrgate_program::Action;

use super::super::*;

/// Reads a file of `tests/imports`.
macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../../../cli/tests/imports/", $name))
    };
}

/// Returns the read and write actions of each entry of an imported file, by index.
pub(super) fn entries_of(bytes: &[u8]) -> Vec<(u32, [Option<Action>; 2])> {
    let imported = import(bytes, None).unwrap();
    let of = |draft: &Draft| (draft.msrs.first().get(), draft.actions.clone());
    imported.entries.iter().map(of).collect()
}

/// Returns the remarks of an imported file.
pub(super) fn remarks_of(bytes: &[u8]) -> Vec<String> {
    let imported = import(bytes, None).unwrap();
    imported.losses.iter().map(ToString::to_string).collect()
}

pub(super) const READ_REFUSED: [Option<Action>; 2] = [Some(Action::Deny), None];
pub(super) const WRITE_REFUSED: [Option<Action>; 2] = [None, Some(Action::Deny)];
pub(super) const WRITE_LEFT: [Option<Action>; 2] = [None, Some(Action::Allow)];

/// KVM prints `Unhandled WRMSR(x) = v` also for writes that succeed without effect.
#[test]
fn import_of_log_leaves_writes_that_kvm_drops_to_kvm() {
    let dropped = file!("log-unhandled-but-dropped.txt");
    let wanted = [(0x186, WRITE_LEFT), (0xc001_0115, WRITE_LEFT)];
    assert_eq!(entries_of(dropped), wanted);
    assert!(remarks_of(dropped).is_empty());
    let line =
        |text: &str| entries_of(format!("kvm [1]: vcpu0, guest rIP: 0x1000 {text}\n").as_bytes());
    for index in [
        0xc1u32,
        0xc2,
        0x186,
        0x187,
        0xc001_0000,
        0xc001_0007,
        0x11e,
        0xc001_0115,
    ] {
        let message = format!("Unhandled WRMSR({index:#x}) = 0x130079");
        assert_eq!(line(&message), [(index, WRITE_LEFT)], "{message}");
    }
    for message in [
        "disabled perfctr wrmsr: 0xc1 data 0xffff",
        "unimplemented perfctr wrmsr: 0xc1 data 0xffff",
    ] {
        assert_eq!(line(message), [(0xc1, WRITE_LEFT)], "{message}");
    }
    let debugctl = [(0x1d9, WRITE_LEFT)];
    for message in [
        "Unhandled WRMSR(0x1d9) = 0x1",
        "kvm_set_msr_common: MSR_IA32_DEBUGCTLMSR 0x1, nop",
        "vmx_set_msr: BTF|LBR in IA32_DEBUGCTLMSR 0x3, nop",
        "svm_set_msr: MSR_IA32_DEBUGCTL 0x1, nop",
    ] {
        assert_eq!(line(message), debugctl, "{message}");
    }
    assert_eq!(line("ignored wrmsr: 0x11e data 0x1"), [(0x11e, WRITE_LEFT)]);
    for message in [
        "Unhandled WRMSR(0x40000021) = 0x1",
        "unhandled wrmsr: 0x40000021 data 0x1",
    ] {
        assert_eq!(line(message), [(0x4000_0021, WRITE_REFUSED)], "{message}");
    }
    assert_eq!(
        line("Unhandled RDMSR(0x40000021)"),
        [(0x4000_0021, READ_REFUSED)]
    );
}

/// KVM for AMD clears the bit BTF of a written value, and may keep the bit LBR, which has an
/// effect.
#[test]
fn import_of_log_does_not_call_write_dropped_if_kvm_may_keep_one_of_its_bits() {
    for (value, comment) in [
        ("0x1", "wrmsr once (KVM drops it)"),
        ("0x2", "wrmsr once (KVM drops it)"),
        ("0x3", "wrmsr once (KVM drops bits of it)"),
    ] {
        let log = format!(
            "kvm_amd: kvm [1]: vcpu0, guest rIP: 0x1000 Unhandled WRMSR(0x1d9) = {value}\n"
        );
        assert_eq!(entries_of(log.as_bytes()), [(0x1d9, WRITE_LEFT)], "{value}");
        let imported = import(log.as_bytes(), None).unwrap();
        let why = imported.entries[0].why.as_deref();
        assert_eq!(why, Some(comment), "{value}");
    }
}

/// A line about an MSR that msrgate cannot read gets a remark, whether or not the log has other
/// lines.
#[test]
fn import_of_log_names_line_with_other_sign_and_no_line_of_call_trace() {
    let known = "[1.0] kvm [3657]: ignored rdmsr: 0x1ad data 0x0\n";
    for (line, is_named) in [
        (
            "[1.1] kvm: 23090: cpu0 unhandled wrmsr=0x391 data 2000000f",
            true,
        ),
        ("[1.1] kvm [1]: vcpu0 ignored rdmsr=0x391", true),
        ("[1.1] kvm_set_msr_common: MSR_IA32_NEW 0x1, nop", true),
        ("[1.1] unchecked MSR access error: WRMSR 0x48", true),
        ("[1.1]  ? kvm_emulate_wrmsr+0x1c/0x50 [kvm]", false),
        ("[1.1]  handle_rdmsr+0x43/0x80 [kvm_intel]", false),
        ("[1.1]  native_wrmsr 0x391", false),
    ] {
        for (before, number) in [("", 1), (known, 2)] {
            let log = format!("{before}{line}\n");
            let imported = import(log.as_bytes(), Some(Format::KernelLog)).unwrap();
            let lines: Vec<_> = imported.losses.iter().map(|loss| loss.line).collect();
            let wanted = Vec::from_iter(is_named.then_some(Some(number)));
            assert_eq!(lines, wanted, "{log}");
        }
    }
}

/// If KVM refused a write for its value, KVM knows the register, and may take other values.
#[test]
fn import_of_log_with_refused_value_leaves_register_to_kvm_with_remark() {
    let of_value = "the guest got #GP for this value";
    let file = file!("log-one-value-refused.txt");
    assert_eq!(entries_of(file), [(0xc001_0015, WRITE_LEFT)]);
    assert!(remarks_of(file)[0].contains(of_value));
    for (message, index, remark) in [
        ("Unhandled WRMSR(0xc0010058) = 0x80", 0xc001_0058, of_value),
        ("unimplemented HWCR wrmsr: 0x80", 0xc001_0015, of_value),
        (
            "unimplemented MMIO_CONF_BASE wrmsr: 0x1",
            0xc001_0058,
            of_value,
        ),
        // Other kernels than today's may print the message for other registers.
        ("Unhandled WRMSR(0x48) = 0x4", 0x48, "does not tell"),
        ("Unhandled WRMSR(0x1d9) = 0x1003", 0x1d9, "does not tell"),
        ("Unhandled WRMSR(0x1d9)", 0x1d9, "does not tell"),
        ("unimplemented wrmsr: 0x48 data 0x4", 0x48, "does not tell"),
    ] {
        let log = format!("kvm [1]: vcpu0, guest rIP: 0x1000 {message}\n");
        assert_eq!(
            entries_of(log.as_bytes()),
            [(index, WRITE_LEFT)],
            "{message}"
        );
        let remarks = remarks_of(log.as_bytes());
        assert!(
            remarks.len() == 1 && remarks[0].contains(remark),
            "{remarks:?}"
        );
    }
}

#[test]
fn import_of_log_reads_every_wording_and_wrapped_lines() {
    let nop = [(0x1c9, READ_REFUSED), (0x1d9, WRITE_LEFT)];
    assert_eq!(entries_of(file!("log-debugctl-nop.txt")), nop);
    let other = [
        (0x1c9, READ_REFUSED),
        (0x4000_0004, WRITE_REFUSED),
        (0xc001_0115, WRITE_LEFT),
    ];
    assert_eq!(entries_of(file!("log-other-wordings.txt")), other);
    assert!(remarks_of(file!("log-other-wordings.txt")).is_empty());

    let wrapped = [(0x606, READ_REFUSED), (0x611, READ_REFUSED)];
    assert_eq!(entries_of(file!("log-wrapped.txt")), wrapped);
    for (log, wanted) in [
        (
            "> [1.5] kvm [3412]: vcpu0, guest rIP: 0xf8 disabled\n> perfctr wrmsr: 0xc1 data 0xffff\n",
            (0xc1, WRITE_LEFT),
        ),
        (
            "> > kvm [3412]: vcpu0, guest rIP: 0xf8\n> > unhandled rdmsr:\n> > 0x611\n",
            (0x611, READ_REFUSED),
        ),
        (
            "kvm [9]: vcpu0, guest rIP: 0xcc Hyper-V uhandled wrmsr: 0x40000004 data\n0x94\n",
            (0x4000_0004, WRITE_REFUSED),
        ),
        (
            "kvm [9]: vcpu0 Unhandled WRMSR(0x1d9)\n = 0x1\n",
            (0x1d9, WRITE_LEFT),
        ),
        (
            "kvm [9]: vcpu0 HYPER-V unimplemented wrmsr: 0x40000004 data 0x94\n",
            (0x4000_0004, WRITE_REFUSED),
        ),
        (
            "unchecked MSR access error: RDMSR from\n0x1ad at rIP: 0xffffffff8144d300\n",
            (0x1ad, READ_REFUSED),
        ),
    ] {
        assert_eq!(entries_of(log.as_bytes()), [wanted], "{log}");
        assert!(remarks_of(log.as_bytes()).is_empty(), "{log}");
    }
    // A line with a head of its own continues no message.
    let apart = "kvm [1]: vcpu0, guest rIP: 0xf8\n[2.5] usb unhandled rdmsr: 0x611\n";
    assert_eq!(
        import(apart.as_bytes(), None),
        Err(ImportError::UnknownFormat)
    );
}

#[test]
fn import_of_log_counts_repeated_and_names_suppressed_messages() {
    let suppressed = file!("log-suppressed.txt");
    assert_eq!(entries_of(suppressed), [(0xc001_0007, WRITE_LEFT)]);
    assert!(remarks_of(suppressed)[0].contains("1910 messages are missing"));
    let repeated = b"kvm: message repeated 4 times: [ kvm [1]: vcpu0 unhandled rdmsr: 0x611]\n";
    let imported = import(repeated, None).unwrap();
    assert_eq!(imported.entries[0].why.as_deref(), Some("rdmsr 4 times"));
}

#[test]
fn import_of_journal_records_is_same_as_import_of_their_messages() {
    let answered = [Some(Action::Value(0)), None];
    let wanted = [(0x35, answered.clone()), (0x1ad, answered)];
    assert_eq!(entries_of(file!("log-journal-json.txt")), wanted);
    let bytes: Vec<String> = "kvm [1]: vcpu0 unhandled rdmsr: 0x611 \u{fffd}"
        .bytes()
        .map(|byte| byte.to_string())
        .collect();
    let array = format!("{{\"MESSAGE\":[{}]}}\n", bytes.join(","));
    assert_eq!(entries_of(array.as_bytes()), [(0x611, READ_REFUSED)]);
    let pretty = b"{\n\t\"_HOSTNAME\" : \"host\",\n\t\"MESSAGE\" : \"kvm [1]: vcpu0 unhandled rdmsr: 0x611\"\n}\n{\n}\n";
    assert_eq!(entries_of(pretty), [(0x611, READ_REFUSED)]);
}

/// Accesses at the reset vector are the VMM's, before a vCPU runs or while the VMM resets it. The
/// guest does not make them.
#[test]
fn import_of_log_skips_accesses_at_reset_vector_with_remark() {
    let log = b"kvm [1]: vcpu0, guest rIP: 0xfff0 ignored wrmsr: 0x1ad data 0x1\n\
        kvm [1]: vcpu1, guest rIP: 0xfff0 ignored wrmsr: 0x1ad data 0x1\n\
        kvm [1]: vcpu0, guest rIP: 0xfff0 unhandled rdmsr: 0xe1\n\
        kvm [1]: vcpu0, guest rIP: 0xfff01 ignored wrmsr: 0x1ae data 0x1\n";
    assert_eq!(entries_of(log), [(0x1ae, [None, Some(Action::Ignore)])]);
    let remarks = remarks_of(log);
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(
        remarks[0].contains("this write is at rIP 0xfff0"),
        "{remarks:?}"
    );
    assert!(
        remarks[1].contains("this read is at rIP 0xfff0"),
        "{remarks:?}"
    );
}

/// Programs on Windows write logs in UTF-16, or put a byte order mark before UTF-8.
#[test]
fn import_error_for_text_in_utf_16_names_that_encoding() {
    let text = "kvm [1]: vcpu0 unhandled rdmsr: 0x611\n";
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for wide in [
        little.clone(),
        big.clone(),
        [&b"\xff\xfe"[..], &little].concat(),
        [&b"\xfe\xff"[..], &big].concat(),
    ] {
        for format in [None, Some(Format::KernelLog)] {
            let error = import(&wide, format).unwrap_err().to_string();
            assert!(error.contains("UTF-16"), "{error}");
        }
    }
    let marked = [&b"\xef\xbb\xbf"[..], text.as_bytes()].concat();
    assert_eq!(entries_of(&marked), [(0x611, READ_REFUSED)]);
}

/// A remark on a line that became an entry does not count as a part that could not be imported.
#[test]
fn head_of_imported_policy_counts_remarks_apart_from_parts_that_were_left_out() {
    let log = b"kvm [1]: vcpu0 unhandled rdmsr: 0x611\n\
        kvm [1]: vcpu0, guest rIP: 0x1000 Unhandled WRMSR(0x48) = 0x4\n";
    let list = b"0x10 0x0 # A\n0x10 0x0 # A\n";
    for file in [&log[..], list] {
        let imported = import(file, None).unwrap();
        assert_eq!(imported.losses[0].kind, LossKind::Note);
        let policy = print(&imported, "FILE");
        assert!(policy.contains("printed a note about it"), "{policy}");
        assert!(!policy.contains("could not be imported"), "{policy}");
    }
}

/// A message of a guest's own kernel tells that the guest got #GP for an access, and went on.
#[test]
fn import_of_log_of_guests_kernel_refuses_reads_and_leaves_refused_writes_to_kvm() {
    let guests = file!("log-of-the-guest.txt");
    let wanted = [(0x1ad, READ_REFUSED), (0xc001_001f, WRITE_LEFT)];
    assert_eq!(entries_of(guests), wanted);
    let remarks = remarks_of(guests);
    assert!(
        remarks.len() == 1 && remarks[0].starts_with("line 2: 0xc001001f"),
        "{remarks:?}"
    );

    let mixed = [
        &guests[..],
        b"[2.5] kvm [1]: vcpu0 unhandled rdmsr: 0x611\n",
    ]
    .concat();
    assert_eq!(entries_of(&mixed).len(), 3);
    let remarks = remarks_of(&mixed);
    assert!(
        remarks[0].contains("an access of the host itself"),
        "{remarks:?}"
    );
}

/// In a file of two columns of numbers, the second column may be masks, or values of registers.
#[test]
fn import_of_two_bare_columns_asks_for_format() {
    let list = file!("list-of-writes-taken-for-allowlist.txt");
    assert_eq!(import(list, None), Err(ImportError::TwoColumns));
    assert!(
        ImportError::TwoColumns
            .to_string()
            .contains("--from msr-safe")
    );
    assert_eq!(
        import(list, Some(Format::MsrSafe)).unwrap().entries.len(),
        3
    );
    for allowlist in [
        &b"# MSR # Write Mask # Comment\n0x10 0x0\n"[..],
        b"0x10 0x0 # \"TSC\"\n",
        b"0x10 0x0\n0x611 0x0 # \"MSR_PKG_ENERGY_STATUS\"\n",
    ] {
        assert_eq!(import(allowlist, None).unwrap().format, Format::MsrSafe);
    }
}

#[test]
fn import_of_allowlist_that_is_commented_out_says_that_it_allows_nothing() {
    let imported = import(file!("allowlist-all-commented"), None).unwrap();
    assert_eq!(
        (imported.format, imported.entries.len()),
        (Format::MsrSafe, 0)
    );
    let remark = imported.losses[0].to_string();
    assert!(
        remark.starts_with("2 entries are commented out"),
        "{remark}"
    );
    assert_eq!(
        import(b"# 0x10 is the TSC\n", None),
        Err(ImportError::UnknownFormat)
    );
}

#[test]
fn import_error_for_template_for_aarch64_names_aarch64() {
    for template in [
        &file!("template-aarch64.json")[..],
        br#"{"reg_modifiers":[{"addr":"0x603000000013c020","bitmap":"0b1"}]}"#,
        br#"{"guest_cpu_config":{"kvm_capabilities":[],"reg_modifiers":[],"vcpu_features":[]}}"#,
    ] {
        assert_eq!(import(template, None), Err(ImportError::Aarch64));
        assert_eq!(
            import(template, Some(Format::Firecracker)),
            Err(ImportError::Aarch64)
        );
    }
    assert_eq!(
        import(br#"{"kvm_capabilities":["170"]}"#, None)
            .unwrap()
            .format,
        Format::Firecracker
    );
}

/// Bits of a filter that KVM never uses get a remark, and the imported policy decides as KVM does
/// with that filter.
#[test]
fn import_of_filter_has_remark_on_bits_that_kvm_never_uses() {
    let x2apic = file!("filter-x2apic.abi");
    assert!(entries_of(x2apic).is_empty());
    let remarks = remarks_of(x2apic);
    assert!(
        remarks.len() == 1 && remarks[0].contains("(S3.1)"),
        "{remarks:?}"
    );

    let shadowed = file!("filter-shadowed-range.abi");
    let allowed = [const { Some(Action::Allow) }; 2];
    assert_eq!(entries_of(shadowed), [(0x170, allowed)]);
    let remarks = remarks_of(shadowed);
    let hidden = "ranges[1] allows MSRs in 0x174..=0x176 that an earlier range decides otherwise: they stay refused";
    assert!(
        remarks.len() == 1 && remarks[0].starts_with(hidden),
        "{remarks:?}"
    );
}

#[test]
fn import_of_struct_with_addresses_says_that_bitmaps_are_missing() {
    let error = import(file!("filter-with-addresses.abi"), None).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("range 0 points to its bitmap by an address"),
        "{error}"
    );
}

/// The output of `compile` for each shipped policy can be imported without a remark about its
/// ranges, and the imported policy has the same filter.
#[test]
fn import_of_compiled_shipped_policies_has_no_remark_about_ranges() {
    use crate::source::Source;
    use crate::{NoIncludes, compile, emit, parse};
    for (name, text) in [
        (
            "allow-all",
            include_str!("../../../../../policies/allow-all.toml"),
        ),
        (
            "quiet-unknown",
            include_str!("../../../../../policies/quiet-unknown.toml"),
        ),
        (
            "linux-boot",
            include_str!("../../../../../policies/linux-boot.toml"),
        ),
        (
            "sandbox",
            include_str!("../../../../../policies/sandbox.toml"),
        ),
        (
            "unikernel",
            include_str!("../../../../../policies/unikernel.toml"),
        ),
    ] {
        let policy = parse(&Source::new(name, text), &mut NoIncludes).unwrap();
        let compiled = compile(policy).unwrap();
        let variant = compiled.on(None);
        for bytes in [emit::json, emit::c, emit::rust].map(|emit| emit(variant, None)) {
            let imported = import(bytes.as_bytes(), None).unwrap();
            let text = print(&imported, "FILE");
            let again = compile(parse(&Source::new("again", &text), &mut NoIncludes).unwrap());
            let again = again.unwrap();
            assert_eq!(again.on(None).filter(), variant.filter(), "{name}");
            let of_ranges = imported
                .losses
                .iter()
                .any(|loss| loss.what.contains("ranges["));
            assert!(!of_ranges, "{name}: {:?}", imported.losses);
        }
    }
}

/// The struct that a 32-bit process passes to the ioctl has 260 bytes.
#[test]
fn import_reads_struct_of_32_bit_caller() {
    let mut bytes = vec![0u8; 260];
    bytes[0] = 1; // KVM_MSR_FILTER_DEFAULT_DENY
    bytes[4] = 3;
    bytes[8] = 4;
    bytes[12..16].copy_from_slice(&0x174u32.to_le_bytes());
    bytes[16..20].copy_from_slice(&260u32.to_le_bytes());
    bytes.extend(7u64.to_le_bytes());
    let allowed = [const { Some(Action::Allow) }; 2];
    assert_eq!(entries_of(&bytes), [(0x174, allowed)]);
}
