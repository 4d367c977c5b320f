//! Unsafe: reads `struct kvm_run`, which is a union.
//!
//! A vCPU on paper: the shared page of an exit, and a kernel that takes every call. What an answer
//! costs, and what it does not do, is measured on it.
#![expect(unsafe_code, reason = "a union of the kernel's ABI")]

use std::fmt;

use kvm_bindings::{KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_cpuid_entry2, kvm_run};
use msrgate_filter::{Access, Exit, ExitReason, Filter, MsrIndex, ReasonMask, Reply};
use msrgate_program::Program;
use msrgate_program::answer::Deed;

use super::bound::Place;
use super::port::{KvmPort, Port};
use super::vm::VmPort;
use super::{Asked, Gate, GateError, GateOptions, Outcome, VcpuGate};
use crate::errno::CallErrno;
use crate::exit::RawReason;
use crate::gate::AnswerError;
use crate::install::InstallError;
use crate::probe::HostCaps;
use crate::sys::calls::{Level, Taken};

/// No file descriptor: a call that is not on paper fails.
const NOWHERE: i32 = -1;

/// A vCPU's page.
pub struct PaperVcpu {
    page: Box<kvm_run>,
}

impl fmt::Debug for PaperVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PaperVcpu").finish_non_exhaustive()
    }
}

impl PaperVcpu {
    /// One that has not run.
    #[must_use]
    pub fn new() -> Self {
        Self {
            page: Box::default(),
        }
    }

    /// What `KVM_RUN` leaves for an exit.
    pub fn leave(&mut self, exit: &Exit) {
        self.page.exit_reason = match exit.access {
            Access::Read => KVM_EXIT_X86_RDMSR,
            Access::Write => KVM_EXIT_X86_WRMSR,
        };
        let msr = &mut self.page.__bindgen_anon_1;
        msr.msr.error = 0;
        msr.msr.index = exit.index.get();
        msr.msr.reason = RawReason::from(exit.reason).get();
        msr.msr.data = exit.data;
    }

    /// What the next `KVM_RUN` would take.
    #[must_use]
    pub fn reply(&self) -> Reply {
        // SAFETY: whatever was written last, it is integers.
        let msr = unsafe { self.page.__bindgen_anon_1.msr };
        Reply {
            error: msr.error,
            data: msr.data,
        }
    }

    /// The vCPU is new.
    ///
    /// # Errors
    /// As [`VcpuGate::reset`].
    pub fn reset(&mut self, gate: &mut VcpuGate) -> Result<(), AnswerError> {
        gate.reset_at(&mut self.port())
    }

    /// Has the gate told that the VMM has written an MSR.
    ///
    /// # Errors
    /// As [`VcpuGate::host_wrote`].
    pub fn host_wrote(&mut self, gate: &mut VcpuGate, index: MsrIndex) -> Result<(), AnswerError> {
        gate.host_wrote_at(&self.port(), index)
    }

    /// Has its exit answered.
    ///
    /// # Errors
    /// As [`VcpuGate::answer`].
    pub fn answer(&mut self, gate: &mut VcpuGate) -> Result<Outcome, AnswerError> {
        gate.answer_at(&mut self.port())
    }

    /// The VMM's own code has answered.
    ///
    /// # Errors
    /// As [`VcpuGate::finish`].
    #[expect(clippy::needless_pass_by_value, reason = "an exit is answered once")]
    pub fn finish(
        &mut self,
        gate: &mut VcpuGate,
        asked: Asked,
        reply: Reply,
    ) -> Result<(), AnswerError> {
        gate.finish_at(&mut self.port(), &asked, reply)
    }

    fn port(&mut self) -> Paper<'_> {
        Paper(KvmPort::new(NOWHERE, &mut self.page))
    }
}

impl Default for PaperVcpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The page as it is, calls that come to nothing.
struct Paper<'v>(KvmPort<'v>);

impl Port for Paper<'_> {
    #[inline]
    fn place(&self) -> Place {
        self.0.place()
    }

    fn cpuid(&self) -> Result<Option<Vec<kvm_cpuid_entry2>>, CallErrno> {
        Ok(None)
    }

    fn pending(&self) -> Result<Option<Exit>, RawReason> {
        self.0.pending()
    }

    fn reply(&mut self, reply: Reply) {
        self.0.reply(reply);
    }

    fn settle(&mut self) {
        self.0.settle();
    }

    fn note_restored(&mut self) {
        self.0.note_restored();
    }

    fn is_restored(&self) -> bool {
        self.0.is_restored()
    }

    fn rewind(&mut self) -> Result<(), CallErrno> {
        self.0.reply(Reply::FAULT);
        Ok(())
    }

    fn complete(&mut self) -> Result<(), CallErrno> {
        Ok(())
    }

    fn forget(&mut self) -> Result<(), CallErrno> {
        Ok(())
    }

    fn register(&mut self, _: MsrIndex) -> Result<Option<u64>, CallErrno> {
        Ok(Some(0))
    }

    fn set_register(&mut self, _: MsrIndex, _: u64) -> Result<Taken, CallErrno> {
        Ok(Taken::Yes)
    }

    fn physical(&mut self, _: u64) -> Result<Option<u64>, CallErrno> {
        Ok(None)
    }

    fn level(&mut self) -> Result<Level, CallErrno> {
        Ok(Level::Guest)
    }

    fn rip(&self) -> Option<u64> {
        self.0.rip()
    }

    fn ask_for_registers(&mut self) {
        self.0.ask_for_registers();
    }
}

/// A gate in a VM on paper, which takes every filter. Nobody opens it for what is touched.
///
/// # Errors
/// As [`Gate::with_options`].
pub fn gate(program: Program, options: GateOptions) -> Result<Gate, GateError> {
    let options = options.handlers(["own"]);
    let gate = Gate::with_options(program, &HostCaps::on_paper(), options)?;
    gate.shared.lock().vm = Some(Box::new(PaperVm));
    Ok(gate)
}

struct PaperVm;

impl VmPort for PaperVm {
    fn replace(&mut self, _: &Filter, _: ReasonMask) -> Result<(), InstallError> {
        Ok(())
    }

    fn has_nested_state(&self) -> bool {
        true
    }

    fn has_shared_registers(&self) -> bool {
        true
    }
}

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
/// As [`Gate::vcpu`], or as [`VcpuGate::reset`].
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
