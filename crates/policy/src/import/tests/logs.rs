//! Tests of the import of kernel logs that people have copied, cut and quoted: nothing of a log is
//! lost in silence, and no half of a message becomes an entry.

use msrgate_filter::Access;
use msrgate_program::Action;

use super::super::*;
use super::reports::{READ_REFUSED, WRITE_LEFT, WRITE_REFUSED, entries_of, remarks_of};

/// Returns the import of a kernel log.
fn log(text: &str) -> Imported {
    import(text.as_bytes(), Some(Format::KernelLog)).unwrap()
}

/// A record of a web page, or the sentence of a person, may have several messages in one line.
#[test]
fn import_of_log_reads_every_message_of_line() {
    let both = [const { Some(Action::Deny) }; 2];
    for (text, wanted) in [
        (
            "kvm: 1: cpu0 unhandled wrmsr: 0x1c9 data 0 or kvm: 4: cpu0 unhandled wrmsr: 0x1a6 data 0",
            vec![(0x1a6, WRITE_REFUSED), (0x1c9, WRITE_REFUSED)],
        ),
        (
            "it logs kvm: 8: cpu0 unhandled wrmsr: 0xc0010117 data 0 or kvm: 4: cpu0 unhandled rdmsr: 0xc0010117.....",
            vec![(0xc001_0117, both)],
        ),
        (
            r#"{"notes": [{"text": "kvm: 2: cpu0 unhandled rdmsr: 0x345"},{"text": "kvm: 2: cpu0 unhandled wrmsr: 0x6c3 data 0"}, {"text": "kvm: 2: cpu0 unhandled wrmsr: 0x684 data 0"}]}"#,
            vec![
                (0x345, READ_REFUSED),
                (0x684, WRITE_REFUSED),
                (0x6c3, WRITE_REFUSED),
            ],
        ),
        (
            "[1.1] unchecked MSR access error: RDMSR from 0x1ad at rIP: 0xff (__rdmsr_on_cpu+0x26/0x60) [1.2] unchecked MSR access error: RDMSR from 0x1fc at rIP: 0xff (x+0x26/0x60)",
            vec![(0x1ad, READ_REFUSED), (0x1fc, READ_REFUSED)],
        ),
        (
            "kvm [1]: MSR_IA32_DEBUGCTLMSR 0x1, nop kvm [1]: vcpu0 unhandled rdmsr: 0x1c9",
            vec![(0x1c9, READ_REFUSED), (0x1d9, WRITE_LEFT)],
        ),
        (
            "kvm: 1: cpu0 unhandled wrmsr: 0x1c9 data 0 or kvm: 4: cpu0 unhandled\nwrmsr: 0x1a6 data 0",
            vec![(0x1a6, WRITE_REFUSED), (0x1c9, WRITE_REFUSED)],
        ),
    ] {
        let imported = import(format!("{text}\n").as_bytes(), None).unwrap();
        assert_eq!(imported.format, Format::KernelLog);
        let wanted: Vec<(u32, [Option<Action>; 2])> = wanted;
        let of = |draft: &Draft| (draft.msrs.first().get(), draft.actions.clone());
        assert_eq!(
            imported.entries.iter().map(of).collect::<Vec<_>>(),
            wanted,
            "{text}"
        );
        assert_eq!((imported.losses.len(), imported.gap), (0, None), "{text}");
    }
    let at_reset = "kvm [1]: vcpu0 unhandled rdmsr: 0x611 kvm [1]: vcpu0, guest rIP: 0xfff0 unhandled rdmsr: 0xe1\n";
    assert_eq!(entries_of(at_reset.as_bytes()), [(0x611, READ_REFUSED)]);
}

#[test]
fn import_of_repeated_line_counts_every_message_of_line() {
    let text = "kvm: 1: cpu0 unhandled rdmsr: 0x1c9, then kvm: 1: cpu0 unhandled rdmsr: 0x345\n\
        last message repeated 2 times\n";
    let whys: Vec<_> = log(text)
        .entries
        .into_iter()
        .map(|entry| entry.why)
        .collect();
    assert_eq!(
        whys,
        [
            Some("rdmsr 3 times".to_owned()),
            Some("rdmsr 3 times".to_owned())
        ]
    );
}

/// A message whose colon is missing is read. A file with a line that stays unread is incomplete.
#[test]
fn import_with_skipped_line_is_incomplete() {
    let known = "kvm [1]: vcpu0 unhandled rdmsr: 0x1c9\n";
    let read = log(&format!(
        "{known}kvm: 23090: cpu0 unhandled wrmsr 0x391 data 2000000f\n"
    ));
    assert_eq!((read.entries.len(), read.gap), (2, None));
    for line in [
        "kvm [1]: vcpu0 ignored rdmsr=0x391",
        "kvm_set_msr_common: MSR_IA32_NEW 0x1, nop",
        "unchecked MSR access error: WRMSR 0x48",
        "kvm [1]: vcpu0 unhandled rdmsr: 0x100000000",
        "kvm [1]: vcpu0 unhandled rdmsr: 0x611, and unhandled wrmsr=0x612",
        "message repeated 3 times: [ kvm [1]: vcpu0 ignored rdmsr=0x391]",
        "it would print `ignored rdmsr: 0x280` here",
    ] {
        let imported = log(&format!("{known}{line}\n"));
        assert_eq!(imported.gap, Some(Gap::Skipped), "{line}");
        assert_eq!(imported.losses[0].line, Some(2), "{line}");
        assert!(
            print(&imported, "FILE").contains("could not be read"),
            "{line}"
        );
    }
    for (text, format, remark) in [
        (
            "0x10 0x0 # TSC\n0x0110400001105000 0x0 # wide\n",
            Format::MsrSafe,
            "an MSR index has at most 32 bits",
        ),
        (
            "0x10 0x0 # TSC\n0x11 none # odd\n",
            Format::MsrSafe,
            "this line is not `0xINDEX",
        ),
        (
            "MSR_ADDR,VALUE\n0x400000000,0x0\n",
            Format::FirecrackerList,
            "an MSR index has at most 32 bits",
        ),
        (
            "MSR_ADDR,VALUE\n0x10,odd\n",
            Format::FirecrackerList,
            "this line is not `0xADDRESS",
        ),
    ] {
        let imported = import(text.as_bytes(), Some(format)).unwrap();
        assert_eq!(imported.gap, Some(Gap::Skipped), "{text}");
        let skipped = imported
            .losses
            .iter()
            .find(|loss| loss.line == Some(2))
            .unwrap();
        assert!(skipped.what.starts_with(remark), "{text}: {skipped}");
    }
}

/// The kernel prints the value of every write after `Unhandled WRMSR(…)`.
#[test]
fn import_of_log_takes_no_prose_for_message() {
    let prose = "a partial write for this vCPU. The log has the\n\
        cause: `Unhandled WRMSR(0xc0010007)`, which is a counter. A host\n\
        would have logged `ignored rdmsr: 0x280`. So an older\n";
    assert_eq!(
        import(prose.as_bytes(), None),
        Err(ImportError::UnknownFormat)
    );
    let imported = log(prose);
    assert!(imported.entries.is_empty(), "{:?}", imported.entries);
    let lines: Vec<_> = imported.losses.iter().map(|loss| loss.line).collect();
    assert_eq!(
        (lines, imported.gap),
        (vec![Some(2), Some(3)], Some(Gap::Skipped))
    );

    let without_value = log("kvm [1]: vcpu0, guest rIP: 0x1000 Unhandled WRMSR(0xc0010007)\n");
    assert_eq!(without_value.entries[0].actions, WRITE_LEFT);
    assert!(without_value.losses[0].what.contains("does not tell"));
    assert_eq!(without_value.entries[0].why.as_deref(), Some("wrmsr once"));
}

/// `0x12` may be the beginning of `0x122`. KVM has a register 0x12, so the log cannot mean it.
#[test]
fn import_of_log_asks_if_number_is_cut_where_kvm_knows_register() {
    for (message, index, access) in [
        ("ignored rdmsr: 0x12", 0x12u32, Access::Read),
        ("unhandled rdmsr: 0x12", 0x12, Access::Read),
        ("ignored wrmsr: 0x10 data 0x1", 0x10, Access::Write),
        ("unhandled wrmsr: 0x1b data 1", 0x1b, Access::Write),
        ("ignored rdmsr: 0x1", 0x1, Access::Read),
        (
            "Unhandled WRMSR(0xc0000080) = 0x1",
            0xc000_0080,
            Access::Write,
        ),
    ] {
        let imported = log(&format!(
            "[5684.2] kvm [4004]: vcpu6, guest rIP: 0x7ff {message}\n"
        ));
        assert!(imported.entries.is_empty(), "{message}");
        assert_eq!(imported.gap, Some(Gap::Skipped), "{message}");
        let remark = &imported.losses[0].what;
        assert!(remark.starts_with(&format!("{index:#x}")), "{remark}");
        assert!(
            remark.contains("is the number cut?") && remark.ends_with(&format!("this {access}")),
            "{remark}"
        );
    }
    // The guest's kernel prints its message for every register, and KVM answers only reads of 0x1.
    for text in [
        "unchecked MSR access error: WRMSR to 0x277 (tried to write 0x2)\n",
        "kvm [1]: vcpu0 unhandled wrmsr: 0x1 data 0\n",
    ] {
        assert_eq!(log(text).entries.len(), 1, "{text}");
    }
}

/// The first kernels with KVM print an index without `0x`.
#[test]
fn import_of_log_reads_index_without_mark() {
    assert_eq!(
        entries_of(b"kvm: unhandled rdmsr: 9b\n"),
        [(0x9b, READ_REFUSED)]
    );
    for prose in [
        "kvm: unhandled rdmsr: add it",
        "kvm: unhandled rdmsr: 3 times",
        "kvm: unhandled rdmsr: bad",
    ] {
        let imported = log(&format!("{prose}\n"));
        assert!(imported.entries.is_empty(), "{prose}");
        assert_eq!(imported.gap, Some(Gap::Skipped), "{prose}");
    }
}

/// The registers of PCI devices have lists of the same form, and numbers that could be MSRs.
#[test]
fn import_of_list_of_csrs_is_refused() {
    for head in [
        "# CSR              Write Mask         # Comment",
        "# CSR # Write Mask",
        "# csr",
    ] {
        let text = format!("# Arch: Ivy Bridge\n{head}\n0x50000 0x0 # vid\n");
        let error = import(text.as_bytes(), None).unwrap_err().to_string();
        assert!(
            error.starts_with("line 2: this is the head of a list of CSRs"),
            "{error}"
        );
    }
    let msrs = "# MSR # Write Mask # Comment\n# CSR 0x50000 is another list\n0x10 0x0 # TSC\n";
    assert_eq!(entries_of(msrs.as_bytes()).len(), 1);
    assert!(
        !remarks_of(msrs.as_bytes())
            .iter()
            .any(|remark| remark.contains("CSR"))
    );
}

#[test]
fn import_error_for_source_code_that_compile_did_not_write_names_language() {
    for (source, wanted) in [
        (
            "/* filter */\n#include <linux/kvm.h>\nstatic struct kvm_msr_filter f = {\n};\n",
            "this C is not what `compile --format c` writes",
        ),
        (
            "// filter\nuse kvm_bindings::*;\npub fn filter() {\n    let a = 1;\n}\n",
            "this Rust is not what `compile --format rust` writes",
        ),
        (
            "vm.set_msr_filter(\n    MsrFilterDefaultAction::ALLOW,\n)?;\n",
            "this Rust is not what `compile --format rust` writes",
        ),
        ("0x10\n", "the file is not a filter as `compile` writes it"),
    ] {
        let error = import(source.as_bytes(), Some(Format::Compiled))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(wanted), "{error}");
        assert!(!error.contains("JSON: line"), "{error}");
    }
}
