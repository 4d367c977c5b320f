//! Tests of lines that tools other than tracefs print, and that people annotate, quote and wrap.

use super::super::*;
use super::{access, all, read, write};

fn parsed(line: &str) -> Line {
    parse_line(line.as_bytes())
}

fn fault(index: u32) -> Line {
    access(Access::Read, index, 0, Outcome::Faulted)
}

#[test]
fn parse_line_reads_fields_with_names() {
    for line in [
        // trace-cmd report -R: numbers of 32 bits are decimal.
        "CPU 0/KVM-16856 [007] 380.398695: kvm_msr:              write=1 ecx=3221225600 data=0xd01 exception=0",
        "  kvm_msr:              write=1 ecx=3221225600 data=3329 exception=0",
        // tracefs with the option `fields`.
        "CPU 0/KVM-16856 [007] ..... 380.398695: kvm_msr: write=1 ecx=0xc0000080 (3221225600) data=0xd01 (3329) exception=0",
        "CPU 0/KVM-16856 [007] ..... 380.398695: kvm_msr: write=true ecx=3221225600 (0xc0000080) data=3329 (0xd01) exception=false",
        // perf trace leaves out fields that are 0.
        "     0.000 CPU 0/KVM/12345 kvm:kvm_msr(write: 1, ecx: 3221225600, data: 3329)",
        "     0.000 CPU 0/KVM/12345 kvm:kvm_msr(write: 1, ecx: 3221225600, data: 3329, exception: 0)",
        "     0.000 (         ): CPU 0/KVM/12345 kvm:kvm_msr(write: 1, ecx: 3221225600, data: 3329)",
        "     0.000 CPU 0/KVM/12345 kvm:kvm_msr:msr_write c0000080 = 0xd01)",
    ] {
        assert_eq!(parsed(line), write(0xc000_0080, 0xd01), "{line}");
    }
    for line in [
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=1553 data=0x0 exception=1",
        "0.041 CPU 0/KVM/12345 kvm:kvm_msr(ecx: 1553, exception: 1)",
        " 1)               |  /* kvm_msr: msr_read 611 = 0x0 (#GP) */",
        " 380.398695 |   1)               |  /* kvm_msr: msr_read 611 = 0x0 (#GP) */",
    ] {
        assert_eq!(parsed(line), fault(0x611), "{line}");
    }
    for line in [
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=1553",
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=1553 data=0x",
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=15g3 data=0x0",
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=1553 data=0x0 ecx=1554",
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=4294967296 data=0x0",
        "x-1 [0] 1.5: kvm_msr: write=0 ecx=1553 data=0x0 more=1",
        "0.041 CPU 0/KVM/12345 kvm:kvm_msr(ecx: 1553, exc",
        "0.041 CPU 0/KVM/12345 kvm:kvm_msr",
        " 1)               |  /* kvm_msr: msr_read 611 = */",
    ] {
        assert_eq!(parsed(line), Line::Unreadable, "{line}");
    }
}

#[test]
fn parse_line_reads_annotated_and_quoted_lines() {
    for line in [
        "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0        <before the write>",
        "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0 # the first",
        "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0  // RAPL",
        "> x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0",
        "> >  x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0 <-- here",
        "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0        RAPL of the package",
        "kvm_msr: msr_read 611 = 0x0\tRAPL",
    ] {
        assert_eq!(parsed(line), read(0x611, 0), "{line}");
    }
    let annotated = "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0 (#GP)   <-- here";
    assert_eq!(parsed(annotated), fault(0x611));
    for (line, meaning) in [
        ("> # tracer: nop", Line::Nothing),
        ("> CPU:3 [LOST 42 EVENTS]", Line::Lost(42)),
        ("CPU:3 [LOST 42 EVENTS]   <-- too many", Line::Lost(42)),
        (
            "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0<before",
            Line::Unreadable,
        ),
        (
            "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0  (#G",
            Line::Unreadable,
        ),
        (
            "x-1 [0] 1.5: kvm_msr: msr_read 611 = 0x0   x-1 [0] 1.6: kvm_exit: reason",
            Line::Unreadable,
        ),
        ("kvm_exit: reason MSR_READ rip 0x1000", Line::Other),
        ("kvm_entry: vcpu 0", Line::Other),
        ("kvm:kvm_exit: reason MSR_READ rip 0x1000", Line::Other),
        ("kvm_nested_vmexit: rip 0x1000", Line::Nested),
        ("kvm_exi", Line::Unreadable),
        (
            "> kvm_userspace_exit: reason KVM_EXIT_X86_WRMSR (30)",
            Line::Deflected(Access::Write),
        ),
    ] {
        assert_eq!(parsed(line), meaning, "{line}");
    }
}

#[test]
fn parse_line_distinguishes_other_lines_of_function_graph_and_perf_trace() {
    for line in [
        " 1)               |  kvm_emulate_rdmsr() {",
        " 1)   0.321 us    |  }",
        " 1) + 12.321 us   |    vmx_get_msr();",
        " 380.398695 |   1)   0.321 us    |  } /* kvm_emulate_rdmsr */",
        " 1)  qemu-123  |   0.321 us    |  }",
        " ------------------------------------------",
        " 0)  bash-1234  =>  CPU 0/K-1235",
        "     0.041 ( 0.001 ms): qemu/123 ioctl(fd: 12, cmd: KVM_RUN, arg: 0) = 0",
        "     0.041 CPU 0/KVM/123 kvm:kvm_exit(exit_reason: 31, guest_rip: 4096)",
    ] {
        assert_eq!(parsed(line), Line::Other, "{line}");
    }
    for (line, meaning) in [
        ("LOST 5 events!", Line::Lost(5)),
        ("Processed 12345 events and lost 3 chunks!", Line::Lost(3)),
        (
            "0.041 CPU 0/KVM/123 kvm:kvm_userspace_exit(reason: 29)",
            Line::Deflected(Access::Read),
        ),
        (
            "x-1 [001] 1.5: kvm_userspace_exit:   reason=30 errno=0",
            Line::Deflected(Access::Write),
        ),
        (" 1)  0.321 us    |  kvm_emul", Line::Unreadable),
        ("0.041 CPU 0/KVM/123 kvm:kvm_ms", Line::Unreadable),
    ] {
        assert_eq!(parsed(line), meaning, "{line}");
    }
}

/// A mail wraps lines at blanks. The event has the number of its first line.
#[test]
fn next_line_joins_wrapped_event() {
    let event = "CPU 0/KVM-16856 [007] ..... 380.398695: kvm_msr: msr_read 611 = 0x0 (#GP)\n";
    let of_value = event.find("= ").unwrap() + 2;
    let blanks = event.match_indices(' ').map(|(at, _)| at);
    let start = event.find("kvm_msr").unwrap();
    let wraps = blanks.filter(|at| (start..of_value).contains(at));
    for at in wraps.chain([event.find("380").unwrap() - 1]) {
        let mut wrapped = event.to_owned();
        wrapped.replace_range(at..=at, "\n");
        for buffer in [1, 40, 4096] {
            let lines = all(wrapped.as_bytes(), buffer);
            assert_eq!(lines, [(1, fault(0x611)), (2, Line::Nothing)], "{wrapped}");
        }
    }
    let mut apart = "x-1 [0] 1.5: kvm_msr: msr_wr\n".to_owned();
    apart.push_str(event);
    let lines = all(apart.as_bytes(), 64);
    assert_eq!(lines, [(1, Line::Unreadable), (2, fault(0x611))]);
    let cut = b"x-1 [0] 1.5: kvm_msr: msr_read 611 =\n0x0";
    assert_eq!(all(cut, 64), [(1, Line::Unreadable), (2, Line::CutOff)]);
}

/// Returns the task of a line as tracefs prints it, and its process and VM.
fn task(line: &str) -> Option<(String, Option<u32>, Option<u64>)> {
    let mut lines = Lines::new(line.as_bytes());
    let (_, parsed) = lines.next_line().unwrap().unwrap();
    assert!(matches!(parsed, Line::Access(_)), "{line}");
    let task = lines.task()?;
    Some((task.to_string(), task.process, task.vm))
}

#[test]
fn task_of_access_is_read_from_trace_lines_of_each_tool() {
    let name = "CPU 0/KVM-16856";
    let access = "msr_read 611 = 0x0\n";
    for (head, process) in [
        (
            "     CPU 0/KVM-16856   [007] .......   380.398695: kvm_msr: ",
            None,
        ),
        (
            "     CPU 0/KVM-16856   (  16850) [007] .......   380.398695: kvm_msr: ",
            Some(16850),
        ),
        (
            "     CPU 0/KVM-16856   (-------) [007] .......   380.398695: kvm_msr: ",
            None,
        ),
        ("CPU 0/KVM 16856 [015] 4831258.258053: kvm:kvm_msr: ", None),
        (
            "CPU 0/KVM 16850/16856 [015] 4831258.258053: kvm:kvm_msr: ",
            Some(16850),
        ),
        ("     0.000 CPU 0/KVM/16856 kvm:kvm_msr:", None),
        ("     0.000 (         ): CPU 0/KVM/16856 kvm:kvm_msr:", None),
    ] {
        let line = format!("{head}{access}");
        assert_eq!(
            task(&line),
            Some((name.to_owned(), process, None)),
            "{line}"
        );
    }
    for (head, name) in [
        ("trace.txt:        microkvm-14196 [000]", "microkvm"),
        ("a/b:12:        microkvm-14196 [000]", "microkvm"),
        ("trace.txt:12:CPU 0/KVM-14196 [000]", "CPU 0/KVM"),
        ("trace-of-monday:CPU 0/KVM-14196 [000]", "CPU 0/KVM"),
        ("vm:1-14196 [000]", "vm:1"),
    ] {
        let line = format!("{head} ..... 1.5: kvm_msr: {access}");
        let found = task(&line);
        assert_eq!(found, Some((format!("{name}-14196"), None, None)), "{line}");
    }
    let nameless = task("  <...>-8397 [002] ..... 1404.389509: kvm_msr: msr_read 611 = 0x0\n");
    assert_eq!(nameless, Some(("8397".to_owned(), None, None)));
    assert_eq!(task("  kvm_msr: msr_read 611 = 0x0\n"), None);
    let event = r#"{"schema":1,"pid":7,"vm":1,"msr":"0x8b","access":"read"}"#;
    assert_eq!(task(event), Some(("7 VM 1".to_owned(), Some(7), Some(1))));
    let of_gate = r#"{"schema":1,"vm":"web","msr":"0x8b","access":"read"}"#;
    assert_eq!(task(of_gate), Some(("web".to_owned(), None, None)));
    assert_eq!(task(r#"{"schema":1,"msr":"0x8b","access":"read"}"#), None);
}

#[test]
fn task_of_trace_line_is_found_by_its_name_its_number_or_both() {
    let task = Task {
        name: Some(b"CPU 0/KVM"),
        thread: Some(16856),
        process: Some(16850),
        vm: None,
    };
    for wanted in ["CPU 0/KVM", "16856", "16850", "CPU 0/KVM-16856"] {
        assert!(task.is(wanted.as_bytes()), "{wanted}");
    }
    for other in ["CPU 0", "CPU 0/KVM-1685", "1685", "", "-16856"] {
        assert!(!task.is(other.as_bytes()), "{other}");
    }
}

#[test]
fn trace_of_several_vms_is_found_by_processes_or_by_threads_with_name_of_one_vcpu() {
    let vms = |tasks: &[(Option<&str>, u32, Option<u32>)]| {
        let mut all = Tasks::default();
        for (name, thread, process) in tasks {
            all.add(&Task {
                name: name.map(str::as_bytes),
                thread: Some(*thread),
                process: *process,
                vm: None,
            });
        }
        all.of_several_vms().len()
    };
    assert_eq!(
        vms(&[(Some("CPU 0/KVM"), 1, None), (Some("CPU 1/KVM"), 2, None)]),
        0
    );
    assert_eq!(
        vms(&[(Some("CPU 0/KVM"), 1, None), (Some("CPU 0/KVM"), 2, None)]),
        2
    );
    assert_eq!(
        vms(&[(Some("fc_vcpu 0"), 1, None), (Some("fc_vcpu 0"), 2, None)]),
        2
    );
    // The vCPUs of a QEMU that gives them no names, and tasks whose names are lost.
    assert_eq!(
        vms(&[
            (Some("qemu-system-x86"), 1, None),
            (Some("qemu-system-x86"), 2, None)
        ]),
        0
    );
    assert_eq!(vms(&[(None, 1, None), (None, 2, None)]), 0);
    assert_eq!(vms(&[(None, 1, Some(9)), (None, 2, Some(9))]), 0);
    assert_eq!(vms(&[(None, 1, Some(9)), (None, 2, Some(10))]), 2);
}
