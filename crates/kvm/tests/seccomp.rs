//! Tests that probing and a gate make only the system calls that `SystemCalls` lists: each thread gets a
//! seccomp filter that permits those calls and kills the process at any other.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is a test, its functions too"
)]

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;

use kvm_ioctls::VcpuExit;
use msrgate_filter::{Access, MsrIndex, Reply};
use msrgate_kvm::HostCaps;
use msrgate_kvm::bench::GuestVm;
use msrgate_kvm::gate::{Gate, GateOptions, Ioctl, Outcome, SystemCalls, VcpuGate};
use msrgate_policy::{NoIncludes, Program, Source, compile, parse};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// A policy that needs only the kernel's filter: no exit reaches the gate.
const PLAIN: &str = "default = 'deny'\nlog = 'none'\n[msrs]\nIA32_STAR = 'rw'";

/// A policy with every kind of answer, and with first accesses.
const ALL: &str = "default = 'allow'\nlog = 'first'\n[msrs]\n\
    0x10000 = 'none'\n\
    0x10001 = { read = { value = 7 }, write = 'ignore' }\n\
    0x10002 = { register = { reset = 1, mask = '0xff' } }\n\
    0x10003 = { read = { handler = 'own' }, write = 'kill' }\n\
    IA32_LSTAR = { read = 'allow', write = 'pin', log = 'all' }\n\
    IA32_FMASK = { read = 'allow', write = { sticky = '0xff' } }\n\
    IA32_CSTAR = { read = 'allow', write = { mask = '0xffff' } }";

fn program(text: &str) -> Program {
    let text = format!("policy = 1\n{text}");
    let policy = parse(&Source::new("calls.toml", &text), &mut NoIncludes).unwrap();
    compile(policy).unwrap().into_program()
}

fn call(name: &str) -> i64 {
    match name {
        "brk" => libc::SYS_brk,
        "clock_gettime" => libc::SYS_clock_gettime,
        "clone" => libc::SYS_clone,
        "clone3" => libc::SYS_clone3,
        "close" => libc::SYS_close,
        "exit" => libc::SYS_exit,
        "fcntl" => libc::SYS_fcntl,
        "futex" => libc::SYS_futex,
        "getpid" => libc::SYS_getpid,
        "gettid" => libc::SYS_gettid,
        "madvise" => libc::SYS_madvise,
        "mmap" => libc::SYS_mmap,
        "mprotect" => libc::SYS_mprotect,
        "mremap" => libc::SYS_mremap,
        "munmap" => libc::SYS_munmap,
        "fstat" => libc::SYS_fstat,
        "getdents64" => libc::SYS_getdents64,
        "lseek" => libc::SYS_lseek,
        "newfstatat" => libc::SYS_newfstatat,
        "openat" => libc::SYS_openat,
        "read" => libc::SYS_read,
        "statx" => libc::SYS_statx,
        "prctl" => libc::SYS_prctl,
        "rseq" => libc::SYS_rseq,
        "rt_sigprocmask" => libc::SYS_rt_sigprocmask,
        "sched_getaffinity" => libc::SYS_sched_getaffinity,
        "sched_yield" => libc::SYS_sched_yield,
        "set_robust_list" => libc::SYS_set_robust_list,
        "sigaltstack" => libc::SYS_sigaltstack,
        other => panic!("{other} has no number here"),
    }
}

/// Makes the kernel permit only these calls, to this thread and to the threads that it starts from now on.
fn permit(ioctls: &[Ioctl], others: &[&[&str]]) {
    let request = |ioctl: &Ioctl| {
        let number = ioctl.number.into();
        let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number);
        SeccompRule::new(vec![condition.unwrap()]).unwrap()
    };
    let others = others.iter().copied().flatten();
    let mut rules: BTreeMap<_, _> = others.map(|name| (call(name), Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, ioctls.iter().map(request).collect());
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&filter).unwrap();
}

/// Runs a vCPU to the end of its script; returns the number of exits for the VMM's own handler.
fn run(guest: &mut GuestVm, msrs: &mut VcpuGate) -> usize {
    let mut handled = 0;
    loop {
        let exit = guest.vcpu().run();
        assert!(
            matches!(
                exit,
                Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) | VcpuExit::IoOut(..))
            ),
            "{exit:?}"
        );
        if matches!(exit, Ok(VcpuExit::IoOut(..))) {
            return handled;
        }
        if let Outcome::Handler(asked) = msrs.answer(guest.vcpu()).unwrap() {
            handled += 1;
            msrs.finish(guest.vcpu(), asked, Reply::value(9)).unwrap();
        }
    }
}

#[test]
fn gate_makes_only_listed_system_calls() {
    let Some(host) = msrgate_testing::host::host() else {
        return;
    };
    let msrs = [
        0x1_0000,
        0x1_0001,
        0x1_0002,
        0x1_0003,
        0x174,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0102,
    ];
    let script: Vec<_> = msrs
        .into_iter()
        .flat_map(|index| Access::ALL.map(|access| (MsrIndex::new(index), access)))
        .collect();
    let mut guest = GuestVm::new(&host).unwrap();
    let options = GateOptions::new().handlers(["own"]);
    let gate = Gate::with_options(program(PLAIN), &host, options).unwrap();
    let calls = SystemCalls::ALL;
    let (vm, cpuid) = (guest.vm().clone(), guest.cpuid().clone());
    let (of_gate, at_vcpu) = mpsc::channel::<VcpuGate>();
    let (of_vcpu, at_gate) = mpsc::channel();
    let (of_replaced, is_replaced) = mpsc::channel();
    let (plain, all) = (program(PLAIN), program(ALL));
    let handled = thread::scope(|scope| {
        let installer = scope.spawn(move || {
            let SystemCalls {
                vm_ioctls,
                vm_others,
                own_others,
                ..
            } = SystemCalls::ALL;
            permit(vm_ioctls, &[vm_others, own_others]);
            gate.install(&*vm).unwrap();
            of_gate.send(gate.vcpu(0, &cpuid).unwrap()).unwrap();
            // The seccomp filter of the vCPU's thread permits the calls of every program, so the program may
            // be replaced now.
            at_gate.recv().unwrap();
            gate.replace(all).unwrap();
            of_replaced.send(()).unwrap();
            at_gate.recv().unwrap();
            gate.replace(plain).unwrap();
            drop(gate);
            of_replaced.send(()).unwrap();
        });
        let vcpu = scope.spawn(move || {
            let mut msrs = at_vcpu.recv().unwrap();
            guest.load(&script).unwrap();
            permit(calls.vcpu_ioctls, &[calls.vcpu_others, calls.own_others]);
            msrs.reset(guest.vcpu()).unwrap();
            of_vcpu.send(()).unwrap();
            is_replaced.recv().unwrap();
            let handled = run(&mut guest, &mut msrs);
            msrs.save(guest.vcpu()).unwrap();
            of_vcpu.send(()).unwrap();
            // The gate is dropped already; dropping the last `VcpuGate` closes the gate's file descriptor
            // of the VM.
            is_replaced.recv().unwrap();
            drop(msrs);
            // Dropping the guest makes system calls that are not the gate's, so the guest is dropped on
            // another thread.
            (handled, guest)
        });
        installer.join().unwrap();
        vcpu.join().unwrap().0
    });
    assert_eq!(handled, 1);
}

/// A host can be probed on a thread that may make only the calls listed for probing, and those with
/// which a thread ends.
#[test]
fn probe_makes_only_listed_system_calls() {
    let Some(host) = msrgate_testing::host::host() else {
        return;
    };
    let probed = thread::spawn(|| {
        let calls = SystemCalls::ALL;
        permit(calls.probe_ioctls, &[calls.probe_others, calls.own_others]);
        HostCaps::probe()
    });
    assert_eq!(probed.join().unwrap(), Ok(host));
}
