//! Unsafe: fork(2) and related calls.
//!
//! A VMM forks while its gate is in force. The child drops the gate and the `EventThread`, although their
//! threads run only in the parent.
#![expect(
    unsafe_code,
    reason = "fork, alarm, waitpid and _exit have no safe form"
)]
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, its functions too"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use msrgate_kvm::InstallError;
use msrgate_kvm::bench::GuestVm;
use msrgate_kvm::gate::events::TextLines;
use msrgate_kvm::gate::{Gate, GateError};
use msrgate_policy::{NoIncludes, Program, Source, compile, parse};

fn opening() -> Program {
    // A program with log = 'first' has a publisher thread, which opens the filter after a first access.
    program("default = 'allow'\nlog = 'first'")
}

fn program(settings: &str) -> Program {
    let text = format!("policy = 1\n{settings}\n");
    let policy = parse(&Source::new("forked.toml", &text), &mut NoIncludes).unwrap();
    compile(policy).unwrap().into_program()
}

/// Calls `act` in a forked child and returns the child's status from waitpid(2). SIGALRM ends the child
/// after ten seconds.
fn in_child(act: impl FnOnce()) -> i32 {
    // SAFETY: the child calls `act`, whose allocations glibc allows after a fork, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: alarm(2) takes a number; SIGALRM ends only this process.
        unsafe { libc::alarm(10) };
        let done = catch_unwind(AssertUnwindSafe(act));
        // SAFETY: _exit(2) takes a number and ends this process.
        unsafe { libc::_exit(done.is_err().into()) };
    }
    let mut status = 0;
    // SAFETY: waitpid(2) writes an integer to `status`, a local variable.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    status
}

#[test]
fn gate_drop_in_forked_child_returns_without_panic() {
    let Some(host) = msrgate_testing::host::host() else {
        return;
    };
    let guest = GuestVm::new(&host).unwrap();
    let gate = Gate::new(opening(), &host).unwrap();
    gate.install(&**guest.vm()).unwrap();
    let msrs = gate.vcpu(0, guest.cpuid()).unwrap();
    let sinks = || vec![Box::new(TextLines::new(Vec::new(), "")) as _];
    let thread = gate.events().unwrap().spawn(sinks()).unwrap();
    let mut all = Some((msrs, thread, gate));
    let dropped = in_child(|| {
        let (msrs, thread, gate) = all.take().unwrap();
        drop((msrs, thread, gate));
    });
    assert_eq!(dropped, 0, "of the drop");
    let stopped = in_child(|| {
        let (_, thread, gate) = all.take().unwrap();
        drop(gate);
        assert!(!thread.is_running());
        assert!(thread.stop().is_none());
    });
    assert_eq!(stopped, 0, "of the stop");
    // The parent's threads still exist: the child's drops have not ended them.
    let (msrs, thread, gate) = all.take().unwrap();
    assert!(thread.is_running());
    let reader = thread.stop().unwrap();
    assert_eq!(reader.drops(), []);
    drop((msrs, gate));
}

/// A forked child has the parent's file descriptors. But the kernel refuses calls of the child on the VM,
/// and the gate returns that error.
#[test]
fn gate_replace_in_forked_child_is_an_error() {
    let Some(host) = msrgate_testing::host::host() else {
        return;
    };
    let guest = GuestVm::new(&host).unwrap();
    let gate = Gate::new(program("default = 'allow'"), &host).unwrap();
    gate.install(&**guest.vm()).unwrap();
    let new = program("default = 'deny'");
    let before = gate.program().digest();
    let status = in_child(|| {
        let seen = gate.replace(new.clone());
        assert!(
            matches!(
                seen,
                Err(GateError::Install(
                    InstallError::Reasons { .. } | InstallError::Filter(_)
                ))
            ),
            "{seen:?}"
        );
        assert_eq!(gate.program().digest(), before);
    });
    assert_eq!(status, 0);
    gate.replace(new).unwrap();
}
