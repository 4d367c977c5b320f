//! Tests that compare the message of every error variant of this crate with a snapshot.

use std::time::Duration;

use msrgate_filter::{Access, MsrIndex, Revision};
use msrgate_policy::answer::{ResponderError, RestoreError};
use msrgate_policy::{CompileError, Cpu, PackError, is_seen};

use msrgate_kvm::gate::events::EventOptions;
use msrgate_kvm::gate::{AnswerError, GateError, StateError, VcpuError, VcpuId};
use msrgate_kvm::measure::{GuestError, MeasureError, StepAt};
use msrgate_kvm::{
    CallErrno, HostError, InstallError, RawErrno, RawReason, RawReasons, Requirement,
};

use msrgate_testing::messages::{HOSTILE, messages, messages_with_text};

fn errno() -> CallErrno {
    RawErrno::new(libc::EINVAL).into()
}

#[test]
fn host_errors_have_messages() {
    let device = || "/dev/kvm".into();
    let hosts = [
        HostError::Absent { device: device() },
        HostError::NoDriver { device: device() },
        HostError::NotPermitted { device: device() },
        HostError::NotKvm { device: device() },
        HostError::ApiVersion { version: 11 },
        HostError::TooOld {
            missing: Requirement::MsrFilter,
        },
        HostError::Busy { device: device() },
        HostError::Open {
            device: device(),
            reason: "too many open files".to_owned(),
        },
        HostError::CreateVm { errno: errno() },
        HostError::Lists { errno: errno() },
    ];
    let advice = |error: &HostError| Some(error.advice().to_owned());
    insta::assert_snapshot!(messages(
        include_str!("../src/host.rs"),
        "HostError",
        &hosts,
        advice
    ));
}

#[test]
fn install_guest_and_measure_errors_have_messages() {
    let installs = [
        InstallError::Revision(Revision::V6),
        InstallError::Reasons {
            mask: RawReasons::new(8),
            errno: errno(),
        },
        InstallError::Duplicate(errno()),
        InstallError::Filter(errno()),
    ];
    let step = StepAt::new(3, Some((MsrIndex::new(0x10), Access::Write)));
    let guests = [
        GuestError::Host(HostError::ApiVersion { version: 11 }),
        GuestError::Install(InstallError::Filter(errno())),
        GuestError::Call {
            name: "KVM_RUN",
            errno: errno(),
        },
        GuestError::Left {
            step,
            exit: "Hlt".to_owned(),
        },
        GuestError::Twice { step },
        GuestError::Registers {
            step,
            rax: 1,
            rcx: 2,
            rdx: 3,
        },
        GuestError::Endless {
            step,
            patience: Duration::from_secs(10),
        },
        GuestError::Skipped { step },
        GuestError::NotImmediate { step },
    ];
    let measures = [
        MeasureError::Guest(GuestError::Skipped { step }),
        MeasureError::SetFilter(errno()),
        MeasureError::SetReasons(errno()),
    ];
    insta::assert_snapshot!(
        [
            messages(
                include_str!("../src/install.rs"),
                "InstallError",
                &installs,
                |_| None
            ),
            messages(
                include_str!("../src/measure/guest/run.rs"),
                "GuestError",
                &guests,
                |_| { None }
            ),
            messages(
                include_str!("../src/measure.rs"),
                "MeasureError",
                &measures,
                |_| None
            ),
        ]
        .concat()
    );
}

#[test]
fn gate_answer_state_and_vcpu_errors_have_messages() {
    let cpu = |model| Cpu {
        vendor: "GenuineIntel".into(),
        family: 6,
        model,
        stepping: 0,
    };
    let vcpu = VcpuId::new(1);
    let gates = [
        GateError::Responder(ResponderError::NoVariant(cpu(1))),
        GateError::Pack(CompileError::Pack(PackError::LastMsr)),
        GateError::Reasons(RawReasons::new(8)),
        GateError::IgnoreMsrs,
        GateError::IgnoreMsrsNotSeen,
        GateError::NoMemory,
        GateError::NoHandler {
            name: "uart".into(),
        },
        GateError::NoSharedRegisters,
        GateError::Queue {
            asked: usize::MAX,
            most: EventOptions::LONGEST_QUEUE,
        },
        GateError::Install(InstallError::Filter(errno())),
        GateError::NotInstalled,
        GateError::InstalledTwice,
        GateError::OtherGate,
        GateError::VcpuTwice { vcpu },
        GateError::EventsTaken,
        GateError::NoCpuid,
        GateError::OtherCpu {
            vcpu,
            chosen: cpu(1),
            seen: cpu(2),
        },
        GateError::CpuidChanged { vcpu },
        GateError::Io(std::io::Error::from_raw_os_error(libc::EMFILE)),
    ];
    let answers = [
        AnswerError::NoExit,
        AnswerError::Reason(RawReason::new(3)),
        AnswerError::Call(errno()),
        AnswerError::Publish(errno()),
        AnswerError::OtherFilter {
            index: MsrIndex::new(0xc000_0081),
            access: Access::Read,
        },
        AnswerError::Gone,
        AnswerError::Theirs,
        AnswerError::Vcpu(VcpuError::NotReset { vcpu }),
        AnswerError::Stale,
    ];
    let states = [
        StateError::Restore(RestoreError::NotSaved),
        StateError::Unanswered,
        StateError::Vcpu(VcpuError::NotReset { vcpu }),
        StateError::Register {
            index: MsrIndex::new(0x48),
            value: 4,
        },
        StateError::Call(errno()),
    ];
    let vcpus = [
        VcpuError::NotReset { vcpu },
        VcpuError::OtherVcpu { vcpu },
        VcpuError::OtherCpuid { vcpu },
        VcpuError::TiedTwice {
            vcpu,
            other: VcpuId::new(0),
        },
        VcpuError::Restored { vcpu },
    ];
    let source = include_str!("../src/gate/error.rs");
    insta::assert_snapshot!(
        [
            messages(source, "GateError", &gates, |_| None),
            messages(source, "AnswerError", &answers, |_| None),
            messages(source, "StateError", &states, |_| None),
            messages(source, "VcpuError", &vcpus, |_| None),
        ]
        .concat()
    );
}

#[test]
fn error_messages_show_control_characters_of_names_in_one_line() {
    let device = || HOSTILE.into();
    let hosts = [
        HostError::Absent { device: device() },
        HostError::NoDriver { device: device() },
        HostError::NotPermitted { device: device() },
        HostError::NotKvm { device: device() },
        HostError::Busy { device: device() },
        HostError::Open {
            device: device(),
            reason: HOSTILE.to_owned(),
        },
    ];
    let guest = GuestError::Left {
        step: StepAt::new(3, None),
        exit: HOSTILE.to_owned(),
    };
    let restore = StateError::Restore(RestoreError::Device(HOSTILE.into()));
    let cpu = Cpu {
        vendor: HOSTILE.into(),
        family: 6,
        model: 1,
        stepping: 1,
    };
    let gate = GateError::Responder(ResponderError::NoVariant(cpu));
    let mut texts = messages_with_text(include_str!("../src/host.rs"), "HostError", &hosts);
    let of_guests = include_str!("../src/measure/guest/run.rs");
    texts.extend(messages_with_text(of_guests, "GuestError", &[guest]));
    texts.extend([restore.to_string(), gate.to_string()]);
    for text in texts {
        assert!(is_seen(&text) && !text.contains('\n'), "{text:?}");
    }
}
