//! The loop of one processor: enter the guest, handle the exit, enter again.

use alloc::rc::Rc;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;

use msrgate_filter::{Gprs, Instruction};
use msrgate_program::{Cpu, CpuidBit, CpuidRegister, Program};
use msrgate_svm::code::{Code, Opcode};
use msrgate_svm::cpuid;
use msrgate_svm::events::{Place, write_event};
use msrgate_svm::exit::{Direction, ExitCode, PortAccess};
use msrgate_svm::guard::{Effect, Guard, ProcessorGuard, REPLACE};
use msrgate_svm::icr::APIC;
use msrgate_svm::machine::{Machine, Switched};
use msrgate_svm::vmcb::{Exception, Maps, Start, field};
use spin::Mutex;

use crate::console::{DEBUG, fail, line, say};
use crate::hardware::{self, Real, World, read_port, ticks, write_port};
use crate::maps;
use crate::physical::Physical;
use crate::processors::{self, address_of};
use crate::runtime::heap_in_use;
use crate::status::Status;

/// The state that all processors share, behind one lock.
pub(crate) struct Hypervisor {
    pub(crate) guard: Guard,
    pub(crate) cpu: Cpu,
    /// The program with which a hypercall replaces the current one.
    pub(crate) replacement: Option<Arc<Program>>,
    /// The number of replacements so far.
    pub(crate) generation: u64,
    /// The port `PM1a_CNT`, by which the guest switches the machine off.
    pub(crate) power_port: Option<u16>,
    pub(crate) counts: Counts,
}

/// The number of exits by reason.
#[derive(Default)]
pub(crate) struct Counts {
    msr: u64,
    cpuid: u64,
    port: u64,
    apic: u64,
    hypercall: u64,
    other: u64,
    /// The ticks that all MSR exits took, from the exit until the hypervisor is done with it.
    msr_ticks: u64,
}

/// The hypervisor, once the guest may start.
pub(crate) static HYPERVISOR: Mutex<Option<Hypervisor>> = Mutex::new(None);

/// One processor and its guest.
pub(crate) struct Processor {
    number: usize,
    world: World,
    switched: Rc<Switched>,
    guard: ProcessorGuard<Machine<Real>>,
    has_next_rip: bool,
}

impl Processor {
    /// Prepares the processor with this number to begin the guest at `start`.
    ///
    /// # Errors
    /// The reason in words.
    pub(crate) fn new(number: usize, start: &Start) -> Result<Self, String> {
        const PAT: msrgate_filter::MsrIndex = msrgate_filter::MsrIndex::new(0x277);
        use msrgate_svm::machine::RealMsrs as _;
        let switched = Rc::new(Switched::default());
        let machine = Machine::new(Real, Rc::clone(&switched));
        let guard = match &*HYPERVISOR.lock() {
            Some(hypervisor) => hypervisor.guard.processor(machine, has),
            None => return Err("the hypervisor is not ready".to_string()),
        };
        let world = World::take(number).ok_or("the processor was started twice")?;
        let maps = Maps {
            ports: maps::ports(),
            msrs: address_of(guard.map()),
            nested: maps::nested(),
        };
        world
            .vmcb
            .start(start, maps, Real.read(PAT).unwrap_or(0x0007_0406_0007_0406));
        if let Start::Long(registers) | Start::Protected(registers) = start {
            world.guest.rbx = registers.rbx;
            world.guest.rsi = registers.rsi;
        }
        Ok(Self {
            number,
            world,
            switched,
            guard,
            has_next_rip: hardware::cpuid(0x8000_000a, 0).edx >> 3 & 1 == 1,
        })
    }
}

fn has(bit: &CpuidBit) -> bool {
    let leaf = hardware::cpuid(bit.leaf, bit.subleaf);
    let register = match bit.register {
        CpuidRegister::Eax => leaf.eax,
        CpuidRegister::Ebx => leaf.ebx,
        CpuidRegister::Ecx => leaf.ecx,
        CpuidRegister::Edx => leaf.edx,
    };
    register >> bit.bit & 1 == 1
}

/// The step after an exit.
enum Next {
    /// The processor enters the guest again.
    Enter,
    /// The program was replaced: the processor first makes the others take the new one.
    Kick,
}

/// Runs the guest on this processor for ever.
pub(crate) fn serve(mut processor: Processor) -> ! {
    let mut next = Next::Enter;
    loop {
        let generation = {
            let mut shared = HYPERVISOR.lock();
            let Some(hypervisor) = &mut *shared else {
                fail(
                    Status::NotStarted,
                    format_args!("the hypervisor is not ready"),
                );
            };
            processor.guard.enter(&hypervisor.guard);
            let generation = hypervisor.generation;
            if matches!(next, Next::Enter) {
                processors::enters_guest(processor.number, generation);
            }
            generation
        };
        if matches!(next, Next::Kick) {
            next = Next::Enter;
            if processors::kick_others(processor.number, generation).is_none() {
                fail(
                    Status::NotStarted,
                    format_args!("there is no APIC to reach other processors by"),
                );
            }
            continue;
        }
        processor.world.run();
        let since = ticks();
        processors::left_guest(processor.number);
        let mut shared = HYPERVISOR.lock();
        if let Some(hypervisor) = &mut *shared {
            next = processor.handle_exit(hypervisor, since);
        }
    }
}

impl Processor {
    fn handle_exit(&mut self, hypervisor: &mut Hypervisor, since: u64) -> Next {
        let vmcb = &mut *self.world.vmcb;
        vmcb.put(field::TLB_CONTROL, 0u8);
        vmcb.redeliver_interrupted_event();
        let counts = &mut hypervisor.counts;
        match ExitCode::from(vmcb.get(field::EXIT_CODE)) {
            ExitCode::Msr => {
                counts.msr += 1;
                self.msr(hypervisor);
                hypervisor.counts.msr_ticks += ticks().saturating_sub(since);
            }
            ExitCode::Cpuid => {
                counts.cpuid += 1;
                self.cpuid();
            }
            ExitCode::Port => {
                counts.port += 1;
                self.port(hypervisor);
            }
            ExitCode::NestedPageFault => {
                counts.apic += 1;
                self.apic();
            }
            ExitCode::Nmi => {
                counts.other += 1;
                self.nmi();
            }
            ExitCode::Hypercall => {
                counts.hypercall += 1;
                return self.hypercall(hypervisor);
            }
            ExitCode::SvmInstruction => {
                counts.other += 1;
                self.world.vmcb.inject(Exception::UndefinedOpcode);
            }
            ExitCode::Invalid if self.code().len_of(Opcode::MovToControl).is_some() => {
                counts.other += 1;
                self.world.vmcb.inject(Exception::GeneralProtection);
            }
            ExitCode::Shutdown => {
                summary(hypervisor, "triple fault of the guest");
                self.stop(Status::TripleFault, "the guest had a triple fault");
            }
            ExitCode::Invalid => self.stop(Status::UnknownExit, "VMRUN refused the guest's state"),
            ExitCode::Other(code) => {
                let why = alloc::format!("the guest exited with the unknown code {code:#x}");
                self.stop(Status::UnknownExit, &why);
            }
        }
        Next::Enter
    }

    /// Ends the machine, and says where the guest was.
    fn stop(&self, status: Status, why: &str) -> ! {
        let get = |register| self.world.vmcb.get(register);
        fail(
            status,
            format_args!(
                "{why}; processor {}, RIP {:#x}, RSP {:#x}, CR0 {:#x}, CR2 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}, information {:#x} and {:#x}",
                self.number,
                get(field::RIP),
                get(field::RSP),
                get(field::CR0),
                get(field::CR2),
                get(field::CR3),
                get(field::CR4),
                get(field::EFER),
                get(field::EXIT_INFO_1),
                get(field::EXIT_INFO_2),
            ),
        )
    }

    fn code(&self) -> Code {
        Code::read(&Physical, self.world.vmcb)
    }

    /// Returns the address of the instruction after the one that exited.
    fn next_rip(&self, opcode: Opcode) -> u64 {
        if self.has_next_rip {
            return self.world.vmcb.get(field::NEXT_RIP);
        }
        match self.code().len_of(opcode) {
            Some(len) => self.world.vmcb.get(field::RIP).wrapping_add(len),
            None => self.stop(
                Status::Instruction,
                "the guest's code changed under its instruction",
            ),
        }
    }

    fn msr(&mut self, hypervisor: &mut Hypervisor) {
        let (instruction, opcode) = match self.world.vmcb.get(field::EXIT_INFO_1) & 1 {
            0 => (Instruction::Rdmsr, Opcode::Rdmsr),
            _ => (Instruction::Wrmsr, Opcode::Wrmsr),
        };
        let rip = self.world.vmcb.get(field::RIP);
        let gprs = Gprs {
            rax: self.world.vmcb.get(field::RAX),
            rcx: self.world.guest.rcx,
            rdx: self.world.guest.rdx,
            rip,
        };
        self.switched.load(self.world.vmcb);
        let (effect, event) = self.guard.access(&mut hypervisor.guard, gprs, instruction);
        self.switched.store(self.world.vmcb);
        if let Some(event) = event {
            let place = Place {
                processor: self.number,
                rip,
                ticks: ticks(),
            };
            line(|mut out| write_event(&mut out, &event, place));
        }
        match effect {
            Effect::Complete(gprs) => {
                let next = self.next_rip(opcode);
                self.world.vmcb.put(field::RAX, gprs.rax);
                self.world.guest.rdx = gprs.rdx;
                self.world.vmcb.advance(next);
            }
            Effect::Fault => self.world.vmcb.inject(Exception::GeneralProtection),
            Effect::Kill => {
                summary(hypervisor, "killed by the policy");
                let index = gprs.index();
                let access = instruction.access();
                let why = alloc::format!("the policy ends the machine at a {access} of {index}");
                self.stop(Status::Killed, &why);
            }
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "CPUID takes the lower halves"
    )]
    fn cpuid(&mut self) {
        let function = self.world.vmcb.get(field::RAX) as u32;
        let subfunction = self.world.guest.rcx as u32;
        let real = hardware::cpuid(function, subfunction);
        let leaf = cpuid::of_guest(function, subfunction, real, self.world.vmcb.get(field::CR4));
        let next = self.next_rip(Opcode::Cpuid);
        self.world.vmcb.put(field::RAX, u64::from(leaf.eax));
        self.world.guest.rbx = leaf.ebx.into();
        self.world.guest.rcx = leaf.ecx.into();
        self.world.guest.rdx = leaf.edx.into();
        self.world.vmcb.advance(next);
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "OUT writes the lower half of RAX at most"
    )]
    fn port(&mut self, hypervisor: &Hypervisor) {
        let Some(access) = PortAccess::decode(self.world.vmcb.get(field::EXIT_INFO_1)) else {
            self.stop(
                Status::Instruction,
                "the guest moves strings to or from a guarded port",
            );
        };
        let PortAccess { port, size, .. } = access;
        let rax = self.world.vmcb.get(field::RAX);
        match access.direction {
            Direction::In => {
                let value = if port == DEBUG {
                    u32::MAX
                } else {
                    read_port(port, size)
                };
                // A read of 32 bits clears the upper half of RAX, and a smaller one leaves the rest alone.
                let read = match size {
                    1 => rax & !0xff | u64::from(value & 0xff),
                    2 => rax & !0xffff | u64::from(value & 0xffff),
                    _ => value.into(),
                };
                self.world.vmcb.put(field::RAX, read);
            }
            Direction::Out if port == DEBUG => {}
            Direction::Out => {
                if let Some(how) = end_by(hypervisor.power_port, access, rax) {
                    summary(hypervisor, how);
                }
                write_port(port, size, rax as u32);
            }
        }
        let next = self.world.vmcb.get(field::EXIT_INFO_2);
        self.world.vmcb.advance(next);
    }

    /// Handles a write to the APIC's page, the only page of the guest that is read-only.
    fn apic(&mut self) {
        const WRITE: u64 = 1 << 1;
        let error = self.world.vmcb.get(field::EXIT_INFO_1);
        let address = self.world.vmcb.get(field::EXIT_INFO_2);
        let store = self.code().store(|number| self.world.register(number));
        let (true, Some(store)) = (address & !0xfff == APIC && error & WRITE != 0, store) else {
            let why = alloc::format!("the guest touched {address:#x}, which is not its own");
            self.stop(Status::Memory, &why);
        };
        if processors::write_apic(self.number, address & 0xfff, store.value).is_none() {
            self.stop(
                Status::Memory,
                "the guest wrote to its APIC at an odd address",
            );
        }
        let next = self.world.vmcb.get(field::RIP).wrapping_add(store.len);
        self.world.vmcb.advance(next);
    }

    fn nmi(&mut self) {
        hardware::accept_nmi();
        if !processors::was_kicked(self.number) {
            self.world.vmcb.inject(Exception::Nmi);
        }
    }

    /// Replaces the program, if the guest's kernel asks for it and there is one.
    fn hypercall(&mut self, hypervisor: &mut Hypervisor) -> Next {
        let vmcb = &mut *self.world.vmcb;
        let is_kernel = vmcb.get(field::CPL) == 0;
        let is_asked = is_kernel && vmcb.get(field::RAX) == u64::from(REPLACE.get());
        let replacement = if is_asked && hypervisor.guard.may_be_replaced() {
            hypervisor.replacement.take()
        } else {
            None
        };
        let Some(replacement) = replacement else {
            vmcb.inject(Exception::UndefinedOpcode);
            return Next::Enter;
        };
        match hypervisor.guard.replace(replacement, &hypervisor.cpu) {
            Ok(()) => {
                hypervisor.generation += 1;
                say(format_args!("replaced the program"));
            }
            Err(error) => say(format_args!("the old program stays: {error}")),
        }
        let next = self.next_rip(Opcode::Group7);
        self.world.vmcb.advance(next);
        Next::Kick
    }
}

/// Returns the way in which an OUT ends the machine, if it does.
fn end_by(power_port: Option<u16>, access: PortAccess, rax: u64) -> Option<&'static str> {
    match access.port {
        0x64 if rax & 0xff == 0xfe => Some("reset by the keyboard controller"),
        0xcf9 if rax & 4 != 0 => Some("reset by port 0xcf9"),
        0xf4 => Some("isa-debug-exit"),
        port if Some(port) == power_port && access.size == 2 && rax >> 13 & 1 == 1 => {
            Some("power-off")
        }
        _ => None,
    }
}

/// Says how the machine ends, and how often the guest exited.
fn summary(hypervisor: &Hypervisor, how: &str) {
    let Counts {
        msr,
        cpuid,
        port,
        apic,
        hypercall,
        other,
        msr_ticks,
    } = hypervisor.counts;
    let heap = heap_in_use();
    line(|out| {
        writeln!(
            out,
            "{{\"schema\":1,\"svm\":\"end\",\"how\":\"{how}\",\"exits\":{{\"msr\":{msr},\"cpuid\":{cpuid},\"port\":{port},\"apic\":{apic},\"hypercall\":{hypercall},\"other\":{other}}},\"msr_ticks\":{msr_ticks},\"heap\":{heap}}}"
        )
    });
}
