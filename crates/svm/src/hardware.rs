//! Unsafe: ports, MSRs, CPUID, the pages that the processor reads, and VMRUN.
//!
//! The contracts are those of the APM: volume 2, chapter 15 for SVM, and volume 3 for the instructions.
#![expect(unsafe_code, reason = "this file is the hypervisor's hardware")]

use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, Ordering};

use msrgate_filter::MsrIndex;
use msrgate_svm::cpuid::Leaf;
use msrgate_svm::machine::RealMsrs;
use msrgate_svm::vmcb::Vmcb;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The greatest number of processors that the hypervisor guards.
pub(crate) const MOST: usize = 8;

/// The register that holds the physical address of the page where VMRUN saves the hypervisor's state.
const VM_HSAVE_PA: MsrIndex = MsrIndex::new(0xc001_0117);

unsafe extern "C" {
    fn read_msr(index: u32, value: *mut u64) -> u32;
    fn write_msr(index: u32, value: u64) -> u32;
    fn run_guest(vmcb: *mut Vmcb, guest: *mut GeneralRegisters);
    fn take_nmi();
}

/// The processor's own registers.
#[derive(Clone, Copy)]
pub(crate) struct Real;

impl RealMsrs for Real {
    fn read(&self, index: MsrIndex) -> Option<u64> {
        let mut value = 0;
        // SAFETY: entry.s turns a #GP of this RDMSR into the result 1. RDMSR changes no memory but `value`.
        let fault = unsafe { read_msr(index.get(), &raw mut value) };
        (fault == 0).then_some(value)
    }

    fn write(&self, index: MsrIndex, value: u64) -> Option<()> {
        // SAFETY: entry.s turns a #GP of this WRMSR into the result 1. `Machine`, the only caller for a guest,
        // keeps the registers that the hypervisor depends on (`msrs::KEPT`, EFER, PAT) from the guest.
        let fault = unsafe { write_msr(index.get(), value) };
        (fault == 0).then_some(())
    }
}

/// The general registers of the guest that VMRUN does not switch, then its x87 and SSE state. entry.s knows
/// the offsets.
#[repr(C, align(16))]
pub(crate) struct GeneralRegisters {
    pub(crate) rbx: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rbp: u64,
    pub(crate) r8_to_r15: [u64; 8],
    unused: [u64; 2],
    fx: [u8; 512],
}

impl GeneralRegisters {
    const ZERO: Self = Self {
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        rbp: 0,
        r8_to_r15: [0; 8],
        unused: [0; 2],
        fx: [0; 512],
    };
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// The pages of one processor.
#[repr(C, align(4096))]
struct Pages {
    vmcb: Vmcb,
    /// VMRUN saves the hypervisor's state here.
    host: Page,
    guest: GeneralRegisters,
}

/// The pages that VMRUN and entry.s use, for each processor.
struct AllPages(core::cell::UnsafeCell<[Pages; MOST]>);

// SAFETY: `World::take` gives the pages of a processor to one caller only.
unsafe impl Sync for AllPages {}

static PAGES: AllPages = AllPages(core::cell::UnsafeCell::new(
    [const {
        Pages {
            vmcb: Vmcb::zeroed(),
            host: Page([0; 4096]),
            guest: GeneralRegisters::ZERO,
        }
    }; MOST],
));

/// The bits of the processors whose pages are taken.
static TAKEN: AtomicU8 = AtomicU8::new(0);

/// The world of one processor's guest: what VMRUN and entry.s switch.
pub(crate) struct World {
    pub(crate) vmcb: &'static mut Vmcb,
    pub(crate) guest: &'static mut GeneralRegisters,
}

impl World {
    /// Takes the pages of the processor with this number, and tells the processor where VMRUN saves the
    /// hypervisor's state. Returns `None` if the pages were taken before, or if there are none.
    pub(crate) fn take(number: usize) -> Option<Self> {
        let bit = u8::try_from(number)
            .ok()
            .and_then(|number| 1u8.checked_shl(number.into()))?;
        if TAKEN.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return None;
        }
        let pages: *mut Pages = PAGES.0.get().cast::<Pages>().wrapping_add(number);
        // SAFETY: the bit of `number`, which is below MOST, was 0: nobody else has these pages, ever.
        let Pages { vmcb, host, guest } = unsafe { &mut *pages };
        Real.write(VM_HSAVE_PA, core::ptr::from_mut(host).addr() as u64)?;
        // SAFETY: FXSAVE64 writes 512 bytes to an address that is a multiple of 16.
        unsafe { asm!("fxsave64 [{}]", in(reg) guest.fx.as_mut_ptr()) };
        Some(Self { vmcb, guest })
    }

    /// Enters the guest, until it exits.
    pub(crate) fn run(&mut self) {
        let (vmcb, guest): (*mut Vmcb, *mut GeneralRegisters) = (self.vmcb, self.guest);
        // SAFETY: `Vmcb::start` made the VMCB's intercepts and maps, so the guest reaches none of the
        // hypervisor's pages and registers (APM volume 2, 15.5). entry.s keeps the registers of the C ABI.
        unsafe { run_guest(vmcb, guest) };
    }

    /// Reads the guest's general register with this number (APM volume 3, 1.4.1).
    pub(crate) fn register(&self, number: u8) -> u64 {
        use msrgate_svm::vmcb::field;
        let guest = &self.guest;
        match number {
            0 => self.vmcb.get(field::RAX),
            1 => guest.rcx,
            2 => guest.rdx,
            3 => guest.rbx,
            4 => self.vmcb.get(field::RSP),
            5 => guest.rbp,
            6 => guest.rsi,
            7 => guest.rdi,
            other => guest.r8_to_r15[usize::from(other) & 7],
        }
    }
}

/// Lets in the NMI by which another processor made this one's guest exit.
pub(crate) fn accept_nmi() {
    // SAFETY: the IDT is loaded, and its gate for NMIs returns at once (entry.s). RFLAGS.IF is 0, so nothing
    // else comes in between STGI and CLGI.
    unsafe { take_nmi() };
}

/// Executes CPUID.
pub(crate) fn cpuid(function: u32, subfunction: u32) -> Leaf {
    let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(function, subfunction);
    Leaf { eax, ebx, ecx, edx }
}

/// The time-stamp counter. Under QEMU's `-icount shift=0` it counts instructions.
pub(crate) fn ticks() -> u64 {
    // SAFETY: RDTSC has no effect, and CR4.TSD is 0 in the hypervisor.
    unsafe { _rdtsc() }
}

/// Reads a port of this many bytes.
pub(crate) fn read_port(port: u16, size: u8) -> u32 {
    let value: u32;
    // SAFETY (for all three): the machine's ports are the guest's, and an IN has the effect on a device that
    // the guest asked for. The hypervisor itself reads ports without effects.
    match size {
        // SAFETY: see above.
        1 => unsafe { asm!("xor eax, eax", "in al, dx", in("dx") port, out("eax") value) },
        // SAFETY: see above.
        2 => unsafe { asm!("xor eax, eax", "in ax, dx", in("dx") port, out("eax") value) },
        // SAFETY: see above.
        _ => unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) },
    }
    value
}

/// Writes to a port of this many bytes.
pub(crate) fn write_port(port: u16, size: u8, value: u32) {
    match size {
        // SAFETY: an OUT has an effect on a device only; DMA that it starts is a limit that the README names.
        1 => unsafe { asm!("out dx, al", in("dx") port, in("eax") value) },
        // SAFETY: see above.
        2 => unsafe { asm!("out dx, ax", in("dx") port, in("eax") value) },
        // SAFETY: see above.
        _ => unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) },
    }
}

/// Ends the machine: by QEMU's isa-debug-exit, if there is one, which makes QEMU's status `2 * code + 1`, or
/// else by a triple fault.
pub(crate) fn end_machine(code: u8) -> ! {
    write_port(0xf4, 1, code.into());
    let no_idt = [0u16; 5];
    // SAFETY: the IDT without entries makes INT3 a triple fault, which resets the machine.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const no_idt, options(noreturn)) }
}
