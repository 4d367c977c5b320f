//! Unsafe: gives memory to KVM.
//!
//! A VM behind a gate whose guest is a hypervisor. The guest, or its nested guest, makes one MSR access at
//! a time.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_EXCEPTION_PAYLOAD, KVM_MAX_CPUID_ENTRIES, KVM_STATE_NESTED_GUEST_MODE, Msrs,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_msr_entry, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuExit, VcpuFd, VmFd};
use msrgate_filter::{MsrIndex, Reply};
use msrgate_kvm::HostCaps;
use msrgate_kvm::gate::{Gate, GateOptions, GuestPhysical, NotMapped, Outcome, VcpuGate};
use msrgate_policy::{NoIncludes, Source, compile, parse};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use msrgate_testing::host;

use crate::{code, layout, vmcb};

pub(crate) const EFER: MsrIndex = MsrIndex::new(0xc000_0080);
pub(crate) const STAR: MsrIndex = MsrIndex::new(0xc000_0081);
pub(crate) const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);
pub(crate) const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);
pub(crate) const FMASK: MsrIndex = MsrIndex::new(0xc000_0084);
const VM_HSAVE_PA: MsrIndex = MsrIndex::new(0xc001_0117);

/// The values that the hypervisor gives the nested guest in the registers of SYSCALL, with their offsets
/// in the VMCB.
pub(crate) const NESTED_REGISTERS: [(MsrIndex, usize, u64); 4] = [
    (STAR, vmcb::STAR, 0x0023_0010_0000_0000),
    (LSTAR, vmcb::LSTAR, 0xa000),
    (CSTAR, vmcb::CSTAR, 0xb000),
    (FMASK, vmcb::FMASK, 0xff),
];

/// The guest that makes an MSR access: the VM's guest or its nested guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Guest,
    Nested,
}

/// The MSR access that a guest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read(MsrIndex),
    Write(MsrIndex, u64),
}

/// The result of an MSR access for the guest that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saw {
    Value(u64),
    Written,
    Fault,
    /// The gate returned `Outcome::Kill`, so the access was not completed.
    Killed,
}

/// The event that stopped the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    ToAnMsr,
    /// The end of the access: an OUT to this port.
    ToTheEnd(u16),
}

/// A VM with one vCPU and a gate, whose guest is a hypervisor.
pub(crate) struct Machine {
    pub(crate) vcpu: VcpuFd,
    pub(crate) msrs: VcpuGate,
    pub(crate) gate: Gate,
    pub(crate) memory: GuestMemoryMmap,
    /// EAX of CPUID leaf 1: the family, model and stepping of the vCPU's processor.
    pub(crate) signature: u32,
    /// The guest that was running at each MSR exit of the last access: the guest or the nested guest.
    pub(crate) exits: Vec<Who>,
    made: kvm_sregs,
    last: (Who, Op),
    _vm: VmFd,
}

/// The VM's memory, in the type that the gate takes.
struct Ram(GuestMemoryMmap);

impl msrgate_kvm::gate::GuestMemory for Ram {
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> Result<(), NotMapped> {
        let read = self.0.read_slice(into, GuestAddress(from.get()));
        read.map_err(|_| NotMapped)
    }
}

/// Returns this host and its CPUID; returns `None` and prints why the test is skipped if there is no SVM.
fn host_with_svm() -> Option<(HostCaps, CpuId)> {
    let host = host::host()?;
    let kvm = Kvm::new().expect("KVM");
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .expect("a CPUID");
    let leaf = |number| move |leaf: &&kvm_cpuid_entry2| leaf.function == number;
    // The guest needs SVM to run a nested guest; this nested guest also needs nested paging (APM volume 3,
    // appendix E).
    let mut leaves = cpuid.as_slice().iter();
    let has_svm = leaves
        .clone()
        .find(leaf(0x8000_0001))
        .is_some_and(|leaf| leaf.ecx >> 2 & 1 == 1);
    let has_npt = leaves
        .find(leaf(0x8000_000a))
        .is_some_and(|leaf| leaf.edx & 1 == 1);
    if has_svm && has_npt && kvm.check_extension(Cap::NestedState) {
        return Some((host, cpuid));
    }
    let why = "this KVM offers its guests no SVM with nested paging: \
               scripts/lab has one that does, or load kvm_amd with nested=1";
    let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|word| word == "nested"),
        "MSRGATE_REQUIRE=nested, but {why}"
    );
    host::say(&format!("SKIPPED: {why}"));
    None
}

impl Machine {
    /// Creates a VM under a policy with `default = "deny"`, these settings and entries, and the MSRs that
    /// a hypervisor needs. Returns `None` and prints the reason if this machine has no KVM that supports
    /// nesting.
    pub(crate) fn new(settings: &str, entries: &str) -> Option<Self> {
        let (host, cpuid) = host_with_svm()?;
        let text = format!(
            "policy = 1\ndefault = 'deny'\n{settings}\n[msrs]\nIA32_EFER = 'rw'\n'@svm' = 'rw'\n{entries}"
        );
        let policy = parse(&Source::new("nested.toml", &text), &mut NoIncludes).expect(&text);
        let program = compile(policy).expect(&text).into_program();
        let vm = host.create_vm().expect("a VM");
        // This capability is needed: without it, KVM saves a #GP that is still to be delivered as one that
        // the nested guest has received.
        let payload = kvm_enable_cap {
            cap: KVM_CAP_EXCEPTION_PAYLOAD,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&payload).expect("KVM_CAP_EXCEPTION_PAYLOAD");
        let memory = add_memory(&vm);
        layout::load(&memory);
        let options = GateOptions::new().memory(Arc::new(Ram(memory.clone())));
        let options = options.handlers(["mine"]);
        let gate = Gate::with_options(program, &host, options).expect(&text);
        gate.install(&vm).expect("a VM without a gate");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
        let msrs = gate.vcpu(0, &cpuid).expect("the first vCPU");
        let mut leaves = cpuid.as_slice().iter();
        let signature = leaves.find(|leaf| leaf.function == 1);
        let mut machine = Self {
            made: vcpu.get_sregs().expect("KVM_GET_SREGS"),
            vcpu,
            msrs,
            gate,
            memory,
            signature: signature.expect("every CPUID has it").eax,
            exits: Vec::new(),
            last: (Who::Guest, Op::Read(EFER)),
            _vm: vm,
        };
        machine.start();
        Some(machine)
    }

    /// Resets the vCPU, and makes the guest a hypervisor.
    pub(crate) fn start(&mut self) {
        self.msrs.reset(&mut self.vcpu).expect("a reset");
        let system = layout::system_registers(&self.made);
        self.vcpu.set_sregs(&system).expect("KVM_SET_SREGS");
        let efer = layout::EFER_SCE_LME_LMA | layout::EFER_SVME;
        let switches = [(EFER, efer), (VM_HSAVE_PA, layout::VMRUN_AREA)];
        for (index, value) in switches {
            let saw = self.run(Who::Guest, Op::Write(index, value));
            assert_eq!(saw, Saw::Written, "{index}");
        }
    }

    /// Lets the guest or the nested guest make an access, which the gate answers. The VMM's own handler
    /// replies with 0x5a.
    pub(crate) fn run(&mut self, who: Who, op: Op) -> Saw {
        self.begin(who, op);
        self.run_on()
    }

    /// Runs the vCPU from its present place to the end of the access that was begun.
    pub(crate) fn run_on(&mut self) -> Saw {
        loop {
            match self.resume() {
                Came::ToTheEnd(port) => return self.saw(port),
                Came::ToAnMsr => match self.answer() {
                    Outcome::Resume => {}
                    Outcome::Handler(asked) => {
                        let reply = Reply::value(0x5a);
                        let finished = self.msrs.finish(&mut self.vcpu, asked, reply);
                        finished.expect("the exit waits");
                    }
                    Outcome::Kill(_) => return Saw::Killed,
                },
            }
        }
    }

    /// Lets the gate answer an exit.
    pub(crate) fn answer(&mut self) -> Outcome {
        self.msrs.answer(&mut self.vcpu).expect("an answer")
    }

    /// Places the vCPU before an access of the guest, or before the VMRUN of a nested guest that makes the
    /// access.
    pub(crate) fn begin(&mut self, who: Who, op: Op) {
        self.last = (who, op);
        self.exits.clear();
        let (index, value) = match op {
            Op::Read(index) => (index, u64::MAX),
            Op::Write(index, value) => (index, value),
        };
        let mut registers = layout::registers(self.site());
        registers.rcx = index.get().into();
        registers.rdx = value >> 32;
        registers.rax = value & 0xffff_ffff;
        if who == Who::Nested {
            self.fill_vmcb(self.site(), registers.rax);
            registers.rip = layout::GUEST + code::ENTER;
        }
        self.vcpu.set_regs(&registers).expect("KVM_SET_REGS");
    }

    fn fill_vmcb(&self, rip: u64, rax: u64) {
        let mut vmcb = layout::nested(rip, rax);
        for (_, at, value) in NESTED_REGISTERS {
            vmcb[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let at = GuestAddress(layout::VMCB);
        self.memory.write_slice(&vmcb, at).expect("memory");
    }

    /// Lets the guest load, by VMLOAD, the nested guest's registers into its own registers.
    pub(crate) fn load(&mut self) {
        self.fill_vmcb(layout::NESTED, 0);
        let registers = layout::registers(layout::GUEST + code::LOAD);
        self.vcpu.set_regs(&registers).expect("KVM_SET_REGS");
        assert_eq!(self.resume(), Came::ToTheEnd(u16::from(code::DONE_PORT)));
    }

    /// The address of the instruction that makes the access.
    fn site(&self) -> u64 {
        match self.last {
            (Who::Guest, Op::Read(_)) => layout::GUEST + code::GUEST_READ,
            (Who::Guest, Op::Write(..)) => layout::GUEST + code::GUEST_WRITE,
            (Who::Nested, Op::Read(_)) => layout::NESTED + code::NESTED_READ,
            (Who::Nested, Op::Write(..)) => layout::NESTED + code::NESTED_WRITE,
        }
    }

    /// Runs the vCPU to its next exit.
    pub(crate) fn resume(&mut self) -> Came {
        let came = match self.vcpu.run().expect("KVM_RUN") {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => Came::ToAnMsr,
            VcpuExit::IoOut(port, _) => Came::ToTheEnd(port),
            other => unreachable!("no code here leaves with {other:?}: {:x?}", self.last),
        };
        if came == Came::ToAnMsr {
            self.exits.push(self.level());
        }
        came
    }

    /// Returns the guest that the vCPU runs, according to the kernel: the guest or the nested guest.
    pub(crate) fn level(&self) -> Who {
        let mut state = KvmNestedStateBuffer::empty();
        let state_of = self.vcpu.nested_state(&mut state);
        state_of.expect("KVM_GET_NESTED_STATE");
        if u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE == 0 {
            Who::Guest
        } else {
            Who::Nested
        }
    }

    /// Returns the result of the access, which ended with an OUT to this port. Checks that a #GP is at the
    /// instruction, has error code 0, and leaves RAX and RDX unchanged (S5.4).
    fn saw(&self, port: u16) -> Saw {
        let (who, op) = self.last;
        assert_eq!(self.level(), Who::Guest);
        let registers = self.vcpu.get_regs().expect("KVM_GET_REGS");
        let (fault, rax) = match who {
            Who::Guest => (self.fault(port, registers.rsp), registers.rax),
            Who::Nested => (self.nested_fault(port), self.vmcb(vmcb::RAX)),
        };
        let value = registers.rdx << 32 | rax;
        match (fault, op) {
            (Some(fault), _) => {
                let untouched = match op {
                    Op::Read(_) => u64::MAX,
                    Op::Write(_, value) => value,
                };
                assert_eq!((fault, value), ([0, self.site()], untouched), "{op:x?}");
                Saw::Fault
            }
            (None, Op::Read(_)) => Saw::Value(value),
            (None, Op::Write(..)) => Saw::Written,
        }
    }

    /// Returns the error code and the RIP of a #GP that the guest's handler received; both are on top of
    /// its stack.
    fn fault(&self, port: u16, stack: u64) -> Option<[u64; 2]> {
        (port == u16::from(code::FAULT_PORT))
            .then(|| [0, 8].map(|offset| self.word(stack + offset)))
    }

    /// Returns the error code and the RIP of a #GP of the nested guest that its hypervisor intercepted.
    fn nested_fault(&self, port: u16) -> Option<[u64; 2]> {
        assert_eq!(port, u16::from(code::DONE_PORT));
        let [exit, error, rip] =
            [vmcb::EXIT_CODE, vmcb::EXIT_INFO_1, vmcb::RIP].map(|field| self.vmcb(field));
        if exit == vmcb::EXIT_GP {
            return Some([error, rip]);
        }
        let after = self.site() + code::LENGTH;
        assert_eq!((exit, rip), (vmcb::EXIT_VMMCALL, after), "{:x?}", self.last);
        None
    }

    /// The value of a field of the nested guest's VMCB.
    pub(crate) fn vmcb(&self, field: usize) -> u64 {
        self.word(layout::VMCB + field as u64)
    }

    fn word(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).expect("memory")
    }

    /// Returns the value of a register as KVM keeps it.
    pub(crate) fn register(&self, index: MsrIndex) -> u64 {
        let mut msrs = one_msr(index, 0);
        assert_eq!(self.vcpu.get_msrs(&mut msrs), Ok(1));
        msrs.as_slice()[0].data
    }

    /// Moves the vCPU's state, and the state that the gate holds, to another VM that was just created
    /// under the same policy, as a migration does.
    pub(crate) fn move_to(&mut self, other: &mut Self) {
        let gate = self.msrs.save(&mut self.vcpu).expect("an answered exit");
        let registers = self.vcpu.get_regs().expect("KVM_GET_REGS");
        let system = self.vcpu.get_sregs().expect("KVM_GET_SREGS");
        let events = self.vcpu.get_vcpu_events().expect("KVM_GET_VCPU_EVENTS");
        let mut nested = KvmNestedStateBuffer::empty();
        let had = self.vcpu.nested_state(&mut nested);
        had.expect("KVM_GET_NESTED_STATE").expect("a nested guest");
        let mut memory = vec![0; layout::BYTES];
        let start = GuestAddress(0);
        let read = self.memory.read_slice(&mut memory, start);
        read.expect("memory");

        let written = other.memory.write_slice(&memory, start);
        written.expect("memory");
        let vcpu = &mut other.vcpu;
        vcpu.set_sregs(&system).expect("KVM_SET_SREGS");
        for index in [STAR, LSTAR, CSTAR, FMASK, VM_HSAVE_PA] {
            let msrs = one_msr(index, self.register(index));
            assert_eq!(vcpu.set_msrs(&msrs), Ok(1), "{index}");
        }
        let set = vcpu.set_nested_state(&nested);
        set.expect("KVM_SET_NESTED_STATE");
        vcpu.set_regs(&registers).expect("KVM_SET_REGS");
        vcpu.set_vcpu_events(&events).expect("KVM_SET_VCPU_EVENTS");
        other.msrs.restore(vcpu, &gate).expect("a saved state");
        other.last = self.last;
    }
}

fn one_msr(index: MsrIndex, data: u64) -> Msrs {
    let entry = kvm_msr_entry {
        index: index.get(),
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry]).expect("one")
}

fn add_memory(vm: &VmFd) -> GuestMemoryMmap {
    let range = (GuestAddress(0), layout::BYTES);
    let memory = GuestMemoryMmap::from_ranges(&[range]).expect("memory");
    let start = memory.get_host_address(GuestAddress(0));
    let region = kvm_userspace_memory_region {
        memory_size: layout::BYTES as u64,
        userspace_addr: start.expect("memory") as u64,
        ..kvm_userspace_memory_region::default()
    };
    // SAFETY: the region is a mapping of vm-memory's own, which expects that a guest writes there, and
    // this process accesses it only through vm-memory. `Machine` keeps the mapping, and drops the vCPU
    // first.
    unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
    memory
}
