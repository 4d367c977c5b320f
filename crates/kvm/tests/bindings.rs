//! Unsafe: gives a gate the shared page of a vCPU by a pointer.
//!
//! VMMs with other versions of `kvm-ioctls` than this crate's, and VMMs that reach their vCPU by `&self`,
//! can use a gate: the gate needs only a file descriptor, a pointer to the shared page, and plain values.
#![expect(unsafe_code, reason = "RawVcpu::new")]
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, its functions too"
)]

use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use msrgate_kvm::gate::{
    AnswerError, CpuidEntry, Gate, Outcome, RawVcpu, StateError, VcpuError, VcpuGate,
};
use msrgate_kvm::{HostCaps, MsrIndex, Program, ProgramBuilder, Verdict};

fn program() -> Program {
    let builder = ProgramBuilder::new(Verdict::Deny).value(MsrIndex::new(0x10000), 42);
    builder.build().unwrap()
}

/// A VMM's vCPU that several threads share: its page is reached by `&self`.
struct Held {
    vcpu: RawVcpu,
}

impl Held {
    fn save(&self, msrs: &mut VcpuGate) -> Result<Vec<u8>, StateError> {
        msrs.save(&mut self.vcpu.clone())
    }
}

/// Defines a test that resets, saves and restores a vCPU and asks for an answer, with the VM and the vCPU
/// of the `kvm-ioctls` version `$ioctls`.
macro_rules! gate_works_with {
    ($test:ident, $ioctls:ident) => {
        #[test]
        fn $test() {
            let Some(host) = msrgate_testing::host::host() else {
                return;
            };
            let kvm = $ioctls::Kvm::new().unwrap();
            let vm = kvm.create_vm().unwrap();
            let mut vcpu = vm.create_vcpu(0).unwrap();
            let other = vm.create_vcpu(1).unwrap();
            let cpuid = kvm.get_supported_cpuid(80).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            let entries: Vec<_> = cpuid
                .as_slice()
                .iter()
                .map(|entry| CpuidEntry {
                    function: entry.function,
                    index: entry.index,
                    eax: entry.eax,
                    ebx: entry.ebx,
                    ecx: entry.ecx,
                    edx: entry.edx,
                })
                .collect();
            let gate = Gate::new(program(), &host).unwrap();
            gate.install(&vm).unwrap();
            let mut msrs = gate.vcpu(0, &entries).unwrap();
            let page = NonNull::from(vcpu.get_kvm_run());
            // SAFETY: `vcpu` keeps its page mapped until the test ends, on one thread.
            let mut raw = unsafe { RawVcpu::new(vcpu.as_raw_fd(), page) };
            msrs.reset(&mut raw).unwrap();
            assert!(matches!(msrs.answer(&mut raw), Err(AnswerError::NoExit)));
            let held = Held { vcpu: raw };
            let saved = held.save(&mut msrs).unwrap();
            msrs.restore(&mut raw, &saved).unwrap();
            // SAFETY: as above. The file descriptor is that of another vCPU; no system call is made on it.
            let mut mixed = unsafe { RawVcpu::new(other.as_raw_fd(), page) };
            let seen = msrs.reset(&mut mixed);
            let is_told = matches!(seen, Err(AnswerError::Vcpu(VcpuError::OtherVcpu { .. })));
            assert!(is_told, "{seen:?}");
        }
    };
}

gate_works_with!(gate_works_with_vcpu_of_kvm_ioctls_0_19, kvm_ioctls_0_19);
gate_works_with!(gate_works_with_vcpu_of_kvm_ioctls_0_24, kvm_ioctls_0_24);
gate_works_with!(gate_works_with_vcpu_of_kvm_ioctls_0_25, kvm_ioctls);

/// Makes the usual calls with this crate's own `kvm-ioctls`. Nothing calls this function: the borrow
/// checker must accept it.
fn _obvious_calls(msrs: &mut VcpuGate, vcpu: &mut kvm_ioctls::VcpuFd) -> Result<(), AnswerError> {
    msrs.reset(vcpu)?;
    while let Outcome::Handler(asked) = msrs.answer(vcpu)? {
        msrs.finish(vcpu, asked, msrgate_kvm::Reply::DONE)?;
    }
    Ok(())
}

/// A check at compile time: a VMM may send these types to a vCPU's thread, and may share some of them
/// between threads.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    is_send::<VcpuGate>();
    is_shared::<RawVcpu>();
    is_shared::<HostCaps>();
};
