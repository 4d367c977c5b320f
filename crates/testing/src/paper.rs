//! Guest accesses that cover the gate's dispositions, for tests of the gate's answers and for benches of the
//! time that an answer takes.
//!
//! The accesses run on a [`PaperVcpu`], a vCPU without a kernel.

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_kvm::bench::PaperVcpu;
use msrgate_kvm::filter::Exit;
use msrgate_kvm::gate::{AnswerError, Gate, GateError, Outcome, VcpuGate};
use msrgate_kvm::{Access, Disposition, ExitReason, MsrIndex, Reply};

/// An MSR access of the guest, with the disposition that the gate must give the access.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name of the case.
    pub name: &'static str,
    /// The MSR exit that the access causes.
    pub exit: Exit,
    /// The disposition that the gate must give the access under the [`policy`].
    pub disposition: Disposition,
    /// The preparation of the vCPU that the access needs.
    pub before: Before,
}

/// The preparation that a vCPU needs before the access of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The vCPU needs no preparation.
    Nothing,
    /// The VMM sets the register that the case accesses. The guest does not write the register
    /// before the access.
    HostWrote,
    /// The guest writes this value to the register that the case accesses.
    Write(u64),
    /// The guest accesses two other registers that share a slot of the vCPU's cache of rules with the
    /// register that the case accesses. So the cache has no rule for that register.
    Elsewhere,
}

/// Returns the text of a policy of 500 entries, in which every action occurs.
#[must_use]
pub fn policy() -> String {
    let fillers = (0..500 - ENTRIES.lines().count()).map(|number| {
        format!(
            "{:#x} = {{ read = {{ value = {number} }}, write = 'ignore' }}\n",
            0x1_0000 + 2 * number
        )
    });
    format!(
        "policy = 1\ndefault = 'allow'\nlog = 'none'\n\
         unknown = {{ read = '0x77', write = 'ignore' }}\n\
         [device.microcode]\nrevision = '0x2b000000'\nupdate = 'deny'\n[msrs]\n{ENTRIES}{}",
        fillers.collect::<String>()
    )
}

const ENTRIES: &str = "\
0x20001 = 'none'
0x20002 = { read = { value = 7 }, write = 'ignore' }
0x20003 = { register = { reset = 0, mask = '0xff' } }
0x20004 = { read = { handler = 'own' }, write = { handler = 'own' } }
0x20005 = { read = 'kill', write = 'kill' }
0x20006 = { read = 'allow', write = 'allow', log = 'first' }
0x20007 = { read = { value = 7 }, write = 'ignore', log = 'all' }
IA32_LSTAR = { read = 'allow', write = 'pin' }
IA32_FMASK = { read = 'allow', write = { sticky = '0xff' } }
IA32_CSTAR = { read = 'allow', write = { mask = '0xffff' } }
IA32_BIOS_UPDT_TRIG = { device = 'microcode' }
";

const LSTAR: u32 = 0xc000_0082;

/// Returns the cases: accesses that the gate answers in different ways.
#[must_use]
pub fn cases() -> Vec<Case> {
    let read = |name, index, disposition| case(name, index, Access::Read, 0, disposition);
    let write =
        |name, index, data, disposition| case(name, index, Access::Write, data, disposition);
    let reason = |case: Case, reason| Case {
        exit: Exit {
            reason,
            ..case.exit
        },
        ..case
    };
    let after = |case: Case, before| Case { before, ..case };
    let pin = |name, disposition| write(name, LSTAR, 5, disposition);
    vec![
        read("deny", 0x2_0001, Disposition::Denied),
        read("value", 0x2_0002, Disposition::Value),
        after(
            read("value-after-another", 0x2_0002, Disposition::Value),
            Before::Elsewhere,
        ),
        write("ignore", 0x2_0002, 1, Disposition::Ignored),
        read("register-read", 0x2_0003, Disposition::Register),
        write("register-write", 0x2_0003, 1, Disposition::Register),
        after(pin("pin-first", Disposition::Pinned), Before::HostWrote),
        after(pin("pin-again", Disposition::Pinned), Before::Write(5)),
        after(pin("pin-refused", Disposition::Denied), Before::Write(6)),
        write("sticky", 0xc000_0084, 1, Disposition::Sticky),
        write("mask", 0xc000_0083, 1, Disposition::Masked),
        read("handler", 0x2_0004, Disposition::Handled),
        read("kill", 0x2_0005, Disposition::Killed),
        read("kill-and-event", 0x2_0005, Disposition::Killed),
        reason(
            read("unknown", 0x2_0000, Disposition::Unknown),
            ExitReason::Unknown,
        ),
        reason(
            write("invalid", 0x2_0000, 1, Disposition::Denied),
            ExitReason::Invalid,
        ),
        write("device-deny", 0x79, 0x1000, Disposition::Denied),
        read("value-and-event", 0x2_0007, Disposition::Value),
        read("first-touch", 0x2_0006, Disposition::Allowed),
    ]
}

fn case(
    name: &'static str,
    index: u32,
    access: Access,
    data: u64,
    disposition: Disposition,
) -> Case {
    Case {
        name,
        exit: Exit {
            index: MsrIndex::new(index),
            access,
            data,
            reason: ExitReason::Filter,
        },
        disposition,
        before: Before::Nothing,
    }
}

/// Returns the CPUID of a processor that has every register that may be forwarded, and neither SVM nor VMX.
#[must_use]
pub fn cpuid() -> Vec<kvm_cpuid_entry2> {
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    vec![
        leaf(0, [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(1, [0x0006_06a6, 0, 0, 1 << 11]),
        leaf(0x8000_0001, [0, 0, 0, 1 << 29]),
    ]
}

/// Creates a vCPU that has a gate, but no vCPU of the kernel behind the gate.
///
/// # Errors
/// Returns the errors of [`Gate::vcpu`].
pub fn vcpu(gate: &Gate) -> Result<(VcpuGate, PaperVcpu), GateError> {
    let mut vcpu = PaperVcpu::new();
    let mut msrs = gate.vcpu(0, &cpuid())?;
    // This vCPU's system calls reach no kernel and never fail.
    let _ = vcpu.reset(&mut msrs);
    Ok((msrs, vcpu))
}

/// Brings a vCPU into the state that it must have before the case's access.
pub fn prepare(msrs: &mut VcpuGate, vcpu: &mut PaperVcpu, case: &Case) {
    match case.before {
        Before::Nothing => {}
        Before::HostWrote => {
            let _ = vcpu.msr_set_by_host(msrs, case.exit.index);
        }
        Before::Elsewhere => {
            for offset in [0x1_0000, 0xff00] {
                let index = MsrIndex::new(case.exit.index.get() - offset);
                vcpu.leave(&Exit { index, ..case.exit });
                let _ = vcpu.answer(msrs);
            }
        }
        Before::Write(data) => {
            let _ = vcpu.msr_set_by_host(msrs, case.exit.index);
            vcpu.leave(&Exit { data, ..case.exit });
            let _ = vcpu.answer(msrs);
        }
    }
}

/// Lets the gate answer the access of a case. If the answer is a handler request, completes this
/// request too.
///
/// # Errors
/// Returns the errors of [`VcpuGate::answer`] and [`VcpuGate::finish`].
pub fn answer(
    msrs: &mut VcpuGate,
    vcpu: &mut PaperVcpu,
    case: &Case,
) -> Result<Reply, AnswerError> {
    vcpu.leave(&case.exit);
    if let Outcome::Handler(asked) = vcpu.answer(msrs)? {
        vcpu.finish(msrs, asked, Reply::value(9))?;
    }
    Ok(vcpu.reply())
}
