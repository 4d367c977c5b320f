//! Unsafe: forks, and makes the kernel kill the child at its next system call.
//!
//! Tests that an answer neither allocates nor makes a system call if it needs nothing from the kernel.
#![expect(unsafe_code, reason = "fork, seccomp and exit have no safe form")]
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, its functions too"
)]

use std::collections::BTreeSet;

use allocation_counter::measure;
use msrgate_kvm::gate::{Gate, GateOptions, Outcome};
use msrgate_kvm::{Disposition, bench};
use msrgate_policy::{NoIncludes, Source, compile, parse};
use msrgate_testing::paper::{self, Before, Case};

fn gate() -> Gate {
    let source = Source::new("paper.toml", &paper::policy());
    let compiled = compile(parse(&source, &mut NoIncludes).unwrap()).unwrap();
    bench::gate(compiled.into_program(), GateOptions::new()).unwrap()
}

/// Returns true if the gate's answer in this case needs no system call. Only the answer to a first access
/// needs a system call, because that answer waits for the filter to be opened.
fn is_alone(case: &Case) -> bool {
    case.name != "first-touch"
}

/// Checks that each case has the disposition that its name promises, so the other tests measure that
/// disposition.
#[test]
fn cases_of_exits_have_the_dispositions_that_they_are_named_after() {
    let gate = gate();
    for case in paper::cases() {
        let (mut msrs, mut vcpu) = paper::vcpu(&gate).unwrap();
        paper::prepare(&mut msrs, &mut vcpu, &case);
        let before = count(&gate, &case);
        paper::answer(&mut msrs, &mut vcpu, &case).unwrap();
        assert_eq!(count(&gate, &case), before + 1, "{case:?}");
    }
    let dispositions: BTreeSet<_> = paper::cases().iter().map(|case| case.disposition).collect();
    let not_enforced = [
        Disposition::WouldDeny,
        Disposition::WouldKill,
        Disposition::Device,
    ];
    for disposition in Disposition::ALL {
        let is_there = dispositions.contains(&disposition);
        assert_eq!(
            is_there,
            !not_enforced.contains(&disposition),
            "{disposition}"
        );
    }
}

fn count(gate: &Gate, case: &Case) -> u64 {
    let access = (case.exit.index, case.exit.access, case.disposition);
    let counts = gate.counted().counts.into_iter();
    let mut of = counts.filter(|one| (one.index, one.access, one.disposition) == access);
    of.next().map_or(0, |one| one.count)
}

#[test]
fn gate_answer_allocates_no_memory() {
    let gate = gate();
    for case in paper::cases().iter().filter(|case| is_alone(case)) {
        let (mut msrs, mut vcpu) = paper::vcpu(&gate).unwrap();
        for round in 0..3 {
            paper::prepare(&mut msrs, &mut vcpu, case);
            let mut reply = None;
            let seen = measure(|| reply = Some(paper::answer(&mut msrs, &mut vcpu, case)));
            assert!(matches!(reply, Some(Ok(_))), "{case:?}");
            assert_eq!(seen.count_total, 0, "{} in round {round}", case.name);
        }
    }
}

/// Makes the kernel kill this process at any system call except exit(2). Seccomp's strict mode cannot be
/// used, because it also disables RDTSC, which reads the clock without a system call.
fn forbid_calls() {
    let say = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    // The number of the system call is the first word of the filter's input.
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        say(load, 0, 0, 0),
        say(is, 0, 1, u32::try_from(libc::SYS_exit).unwrap_or(0)),
        say(end, 0, 0, libc::SECCOMP_RET_ALLOW),
        say(end, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the call takes only numbers, and only restricts this process.
    let first = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel copies the program, which is complete, and keeps no pointer to it.
    let second = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!((first, second), (0, 0));
}

/// Calls `act` in a child that the kernel kills at any system call except exit; returns true if the child
/// survives.
fn survives_without_calls(act: impl FnOnce()) -> bool {
    in_child(|| {
        forbid_calls();
        act();
    })
}

/// Calls `act` in a child; returns true if the child ends with status 0.
fn in_child(act: impl FnOnce()) -> bool {
    // SAFETY: until the child ends, it calls only what is safe after a fork of a process with threads: it
    // takes no lock that another thread may hold, and it allocates only through glibc, whose locks are
    // consistent in a child.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        act();
        // SAFETY: ends the child's only thread. The child's filter does not permit exit_group(2).
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let mut status = 0;
    // SAFETY: the child is this process' own, and the kernel writes an integer to `status`.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn gate_answer_makes_no_system_call() {
    let gate = gate();
    for case in paper::cases().iter().filter(|case| is_alone(case)) {
        let (mut msrs, mut vcpu) = paper::vcpu(&gate).unwrap();
        paper::prepare(&mut msrs, &mut vcpu, case);
        let survives = survives_without_calls(|| {
            vcpu.leave(&case.exit);
            if let Ok(Outcome::Handler(asked)) = vcpu.answer(&mut msrs) {
                // `finish` frees no memory here, because the gate also holds the handler's name.
                let _ = vcpu.finish(&mut msrs, asked, msrgate_filter::Reply::DONE);
            }
        });
        assert!(survives, "{}", case.name);
    }
    let calls = || drop(std::fs::exists("/"));
    assert!(!survives_without_calls(calls), "the child is not watched");
    let touch = paper::cases().into_iter().find(|case| !is_alone(case));
    let touch = touch.filter(|case| case.before == Before::Nothing).unwrap();
    let (mut msrs, mut vcpu) = paper::vcpu(&gate).unwrap();
    vcpu.leave(&touch.exit);
    let yields = || drop(vcpu.answer(&mut msrs));
    assert!(!survives_without_calls(yields), "a first touch yields");
}
