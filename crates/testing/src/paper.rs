//! The ways in which a gate answers an exit, for tests and benches of what an answer costs.
//!
//! They run on a vCPU on paper: [`PaperVcpu`].

use kvm_bindings::kvm_cpuid_entry2;
use msrgate_kvm::bench::PaperVcpu;
use msrgate_kvm::filter::Exit;
use msrgate_kvm::gate::{AnswerError, Gate, GateError, Outcome, VcpuGate};
use msrgate_kvm::{Access, Deed, ExitReason, MsrIndex, Reply};

/// A way in which an access is answered.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In a word or two.
    pub name: &'static str,
    /// The access.
    pub exit: Exit,
    /// What the [`policy`] says to it.
    pub deed: Deed,
    /// What went before.
    pub before: Before,
}

/// What has to have happened for a case to be what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Nothing since the register was last written by the host.
    HostWrote,
    /// A write of this value.
    Write(u64),
    /// Accesses to two other registers, whose rules the vCPU remembers in the same place.
    Elsewhere,
}

/// A policy of 500 entries that has every action.
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

/// All the ways.
#[must_use]
pub fn cases() -> Vec<Case> {
    let read = |name, index, deed| case(name, index, Access::Read, 0, deed);
    let write = |name, index, data, deed| case(name, index, Access::Write, data, deed);
    let reason = |case: Case, reason| Case {
        exit: Exit {
            reason,
            ..case.exit
        },
        ..case
    };
    let after = |case: Case, before| Case { before, ..case };
    let pin = |name, deed| write(name, LSTAR, 5, deed);
    vec![
        read("deny", 0x2_0001, Deed::Denied),
        read("value", 0x2_0002, Deed::Value),
        after(
            read("value-after-another", 0x2_0002, Deed::Value),
            Before::Elsewhere,
        ),
        write("ignore", 0x2_0002, 1, Deed::Ignored),
        read("register-read", 0x2_0003, Deed::Register),
        write("register-write", 0x2_0003, 1, Deed::Register),
        after(pin("pin-first", Deed::Pinned), Before::HostWrote),
        after(pin("pin-again", Deed::Pinned), Before::Write(5)),
        after(pin("pin-refused", Deed::Denied), Before::Write(6)),
        write("sticky", 0xc000_0084, 1, Deed::Sticky),
        write("mask", 0xc000_0083, 1, Deed::Masked),
        read("handler", 0x2_0004, Deed::Handled),
        read("kill", 0x2_0005, Deed::Killed),
        read("kill-and-event", 0x2_0005, Deed::Killed),
        reason(
            read("unknown", 0x2_0000, Deed::Unknown),
            ExitReason::Unknown,
        ),
        reason(
            write("invalid", 0x2_0000, 1, Deed::Denied),
            ExitReason::Invalid,
        ),
        write("device-deny", 0x79, 0x1000, Deed::Denied),
        read("value-and-event", 0x2_0007, Deed::Value),
        read("first-touch", 0x2_0006, Deed::Allowed),
    ]
}

fn case(name: &'static str, index: u32, access: Access, data: u64, deed: Deed) -> Case {
    Case {
        name,
        exit: Exit {
            index: MsrIndex::new(index),
            access,
            data,
            reason: ExitReason::Filter,
        },
        deed,
        before: Before::Nothing,
    }
}

/// The CPUID of a processor with all that may be forwarded, and without virtualization.
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

/// A vCPU of a gate on paper.
///
/// # Errors
/// As [`Gate::vcpu`].
pub fn vcpu(gate: &Gate) -> Result<(VcpuGate, PaperVcpu), GateError> {
    let mut vcpu = PaperVcpu::new();
    let mut msrs = gate.vcpu(0, &cpuid())?;
    // The calls of a reset are on paper, and do not fail.
    let _ = vcpu.reset(&mut msrs);
    Ok((msrs, vcpu))
}

/// Brings a vCPU to where a case begins.
pub fn prepare(msrs: &mut VcpuGate, vcpu: &mut PaperVcpu, case: &Case) {
    match case.before {
        Before::Nothing => {}
        Before::HostWrote => {
            let _ = vcpu.host_wrote(msrs, case.exit.index);
        }
        Before::Elsewhere => {
            for offset in [0x1_0000, 0xff00] {
                let index = MsrIndex::new(case.exit.index.get() - offset);
                vcpu.leave(&Exit { index, ..case.exit });
                let _ = vcpu.answer(msrs);
            }
        }
        Before::Write(data) => {
            let _ = vcpu.host_wrote(msrs, case.exit.index);
            vcpu.leave(&Exit { data, ..case.exit });
            let _ = vcpu.answer(msrs);
        }
    }
}

/// Has a case answered, to the end.
///
/// # Errors
/// As [`VcpuGate::answer`].
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
