//! Every message of an error of this crate.

use std::time::Duration;

use msrgate_filter::{Access, MsrIndex, Revision};

use crate::errno::{CallErrno, RawErrno};
use crate::exit::RawReasons;
use crate::{GuestError, HostError, InstallError, MeasureError, Requirement, StepAt};

#[path = "../../policy/tests/variants/mod.rs"]
mod variants;
use variants::messages;

fn errno() -> CallErrno {
    RawErrno::new(libc::EINVAL).into()
}

#[test]
fn why_a_host_cannot_do_it() {
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
    ];
    let advice = |error: &HostError| Some(error.advice().to_owned());
    insta::assert_snapshot!(messages(
        include_str!("host.rs"),
        "HostError",
        &hosts,
        advice
    ));
}

#[test]
fn why_nothing_was_measured() {
    let installs = [
        InstallError::Revision(Revision::V6),
        InstallError::Reasons {
            mask: RawReasons::new(8),
            errno: errno(),
        },
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
                include_str!("install.rs"),
                "InstallError",
                &installs,
                |_| None
            ),
            messages(include_str!("guest/run.rs"), "GuestError", &guests, |_| {
                None
            }),
            messages(
                include_str!("measure.rs"),
                "MeasureError",
                &measures,
                |_| None
            ),
        ]
        .concat()
    );
}
