//! Unsafe: forks, and asks the kernel to end the child at its next call.
//!
//! What an answer that needs nothing of the kernel does not do: allocate, and call.
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

/// The ones that may call: what is seen first waits for the filter.
fn is_alone(case: &Case) -> bool {
    case.name != "first-touch"
}

/// Each case is what its name says, so that what is measured of it is.
#[test]
fn each_case_does_what_it_is_named_for() {
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
fn an_answer_allocates_nothing() {
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

/// Has the kernel end this process at any call but exit(2). Not by seccomp's strict mode, which takes
/// RDTSC away, by which the clock is read without a call.
fn forbid_calls() {
    let say = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    // The number of a call is the first word of what the filter sees.
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
    // SAFETY: takes numbers, and only limits this process.
    let first = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel copies the program, which is whole, and keeps no pointer to it.
    let second = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!((first, second), (0, 0));
}

/// In a child that the kernel kills at any call but exit.
fn survives_without_calls(act: impl FnOnce()) -> bool {
    in_child(|| {
        forbid_calls();
        act();
    })
}

/// Does it in a child, which ends: whether well.
fn in_child(act: impl FnOnce()) -> bool {
    // SAFETY: until it ends, the child calls only what is safe between fork and exec of a process
    // with threads: it takes no lock that another thread may hold, and what it allocates it does by
    // glibc, whose locks are whole in a child.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        act();
        // SAFETY: ends the child's only thread. exit_group(2) is not among what it may call.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` an integer to be written.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn an_answer_calls_nothing() {
    let gate = gate();
    for case in paper::cases().iter().filter(|case| is_alone(case)) {
        let (mut msrs, mut vcpu) = paper::vcpu(&gate).unwrap();
        paper::prepare(&mut msrs, &mut vcpu, case);
        let survives = survives_without_calls(|| {
            vcpu.leave(&case.exit);
            if let Ok(Outcome::Handler(asked)) = vcpu.answer(&mut msrs) {
                // Its answer, which frees nothing here: the gate holds the name, too.
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
