//! Unsafe: gives memory to KVM.
//!
//! The README's example of a VMM, compiled and run. The README shows those lines of this file that stand
//! between a mark of its beginning and a mark of its end.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, its functions too"
)]

use std::error::Error;
use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd};
use msrgate_kvm::Reply;
use msrgate_kvm::gate::HandlerRequest;
use msrgate_policy::{NoIncludes, Source, compile, parse};

// The README begins here.
use kvm_ioctls::VcpuExit;
use msrgate_kvm::gate::{Gate, GateOptions, Outcome};
use msrgate_kvm::{HostCaps, Program};
// The README ends here.

const POLICY: &str = "policy = 1\ndefault = 'deny'\n[msrs]\n\
    0x10000 = { read = { value = 42 }, write = 'deny' }\n\
    0x10001 = { read = { handler = 'mine' }, write = 'kill' }";

/// A page of the guest's memory.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// The page's address in the guest.
const ADDRESS: u16 = 0x1000;

/// 16-bit code that reads MSR 0x10000 into EBX and MSR 0x10001 into EAX.
const READS: &[u8] = &[
    0x66, 0xb9, 0x00, 0x00, 0x01, 0x00, // mov ecx, 0x10000
    0x0f, 0x32, // rdmsr
    0x66, 0x89, 0xc3, // mov ebx, eax
    0x66, 0xb9, 0x01, 0x00, 0x01, 0x00, // mov ecx, 0x10001
    0x0f, 0x32, // rdmsr
    0xf4, // hlt
];

/// 16-bit code that writes MSR 0x10001; the policy kills that access.
const WRITES: &[u8] = &[
    0x66, 0xb9, 0x01, 0x00, 0x01, 0x00, // mov ecx, 0x10001
    0x0f, 0x30, // wrmsr
    0xf4, // hlt
];

/// Answers a handler request, as the VMM's own handler for `handler = "mine"`.
fn device(asked: &HandlerRequest) -> Reply {
    assert_eq!(asked.handler(), "mine");
    Reply::value(7)
}

/// Runs 16-bit code to its HLT, behind a gate with the program in `file`. Returns RBX and RAX.
fn run(code: &[u8], file: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let mut page = Box::new(Page([0; 4096]));
    page.0[..code.len()].copy_from_slice(code);
    let host = HostCaps::probe()?;
    let vm = host.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ADDRESS.into(),
        memory_size: page.0.len() as u64,
        userspace_addr: page.0.as_ptr() as u64,
    };
    // SAFETY: the page is as large as the region says. It outlives the vCPU, which alone uses it from here
    // on, and this process does not read it afterwards.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let cpuid = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut system = vcpu.get_sregs()?;
    (system.cs.base, system.cs.selector) = (0, 0);
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rflags) = (ADDRESS.into(), 2);
    vcpu.set_regs(&registers)?;
    example(file, &vm, &mut vcpu, &cpuid)?;
    let registers = vcpu.get_regs()?;
    Ok((registers.rbx, registers.rax))
}

fn example(
    file: &Path,
    vm: &kvm_ioctls::VmFd,
    vcpu: &mut VcpuFd,
    cpuid: &kvm_bindings::CpuId,
) -> Result<(), Box<dyn Error>> {
    // The README begins here.
    let program = Program::decode(&std::fs::read(file)?)?;
    let options = GateOptions::new().handlers(["mine"]);
    let gate = Gate::with_options(program, &HostCaps::probe()?, options)?;
    gate.install(vm)?;
    let mut msrs = gate.vcpu(0, cpuid)?;
    msrs.reset(vcpu)?;
    loop {
        match vcpu.run()? {
            VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => match msrs.answer(vcpu)? {
                Outcome::Resume => {}
                Outcome::Handler(asked) => {
                    let reply = device(&asked);
                    msrs.finish(vcpu, asked, reply)?;
                }
                Outcome::Kill(violation) => return Err(violation.into()),
            },
            VcpuExit::Hlt => return Ok(()),
            other => return Err(format!("{other:?}").into()),
        }
    }
    // The README ends here.
}

/// Returns the lines that the README shows: first the `use` lines, then the example.
fn shown() -> String {
    const BEGINS: &str = "// The README begins here.\n";
    const ENDS: &str = "// The README ends here.\n";
    let source = include_str!("readme.rs");
    let parts = source.split(BEGINS).skip(1).take(2);
    let parts = parts.map(|part| part.split(ENDS).next().unwrap_or(part));
    let parts = parts.map(|part| {
        let lines = part
            .lines()
            .map(|line| line.strip_prefix("    ").unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    });
    parts.collect::<Vec<_>>().join("\n\n") + "\n"
}

/// Returns the README's lines for `Cargo.toml`, with the version of `kvm-ioctls` that is tested.
fn dependencies() -> String {
    let workspace = include_str!("../../../Cargo.toml");
    let line = |name: &str| {
        let line = workspace.lines().find(|line| line.starts_with(name));
        let version = line
            .unwrap()
            .split('"')
            .rfind(|part| part.starts_with(|c: char| c.is_ascii_digit()));
        version.unwrap().to_owned()
    };
    let own = line("msrgate-kvm = ");
    let own = own.strip_suffix(".0").unwrap_or(&own);
    let ioctls = line("kvm-ioctls = ");
    format!("[dependencies]\nmsrgate-kvm = \"{own}\"\nkvm-ioctls = \"{ioctls}\"\n")
}

#[test]
fn readme_contains_the_tested_example() {
    let readme = include_str!("../../../README.md");
    let block = format!("```rust\n{}```\n", shown());
    assert!(readme.contains(&block), "README.md is to have\n{block}");
    let block = format!("```toml\n{}```\n", dependencies());
    assert!(readme.contains(&block), "README.md is to have\n{block}");
}

#[test]
fn example_vmm_of_readme_answers_exits_and_ends_at_access_that_policy_kills() {
    if msrgate_testing::host::host().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sandbox.msrg");
    let policy = parse(&Source::new("sandbox.toml", POLICY), &mut NoIncludes).unwrap();
    let program = compile(policy).unwrap().into_program();
    std::fs::write(&file, program.encode()).unwrap();
    assert_eq!(run(READS, &file).unwrap(), (42, 7));
    let violation = run(WRITES, &file).unwrap_err();
    assert_eq!(
        violation.to_string(),
        "vCPU 0: the policy has the action kill for the write of MSR 0x10001"
    );
}
