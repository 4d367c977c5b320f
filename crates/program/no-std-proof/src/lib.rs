//! A minimal library that links `msrgate-program` and `msrgate-filter` without an operating system and
//! without std, and an allocator over a fixed arena. The library calls every part of the two crates that
//! allocates or computes, so that the linker keeps all these parts.
#![no_std]

extern crate alloc;

use alloc::sync::Arc;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use msrgate_filter::abi::{CallerWidth, Segment, UserAddress};
use msrgate_filter::intercept::{PassThrough, SvmMap, VmxBitmap};
use msrgate_filter::{
    Access, Accesses, Exit, ExitReason, Instruction, MsrIndex, RegisterMap, Revision, RunExit,
    SetCall, Verdict, Vm,
};
use msrgate_program::answer::{Responder, Response, VcpuState};
use msrgate_program::{Cpu, Program, ProgramBuilder, differences, emit};

const ARENA: usize = 1 << 20;

/// An allocator that hands out each byte of a fixed arena once and never frees memory.
#[repr(C, align(4096))]
struct Arena {
    bytes: core::cell::UnsafeCell<[u8; ARENA]>,
    used: AtomicUsize,
}

// SAFETY: `used` gives each byte of `bytes` to one caller only.
unsafe impl Sync for Arena {}

// SAFETY: each block lies in `bytes`, which is aligned to 4096. The offset of the block is aligned as
// `layout` asks, and `used` moves past the block before the block is returned. So no two blocks share a
// byte.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > align_of::<Self>() {
            return core::ptr::null_mut();
        }
        let end = |used: usize| {
            let end = used
                .checked_next_multiple_of(layout.align())?
                .checked_add(layout.size())?;
            (end <= ARENA).then_some(end)
        };
        match self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, end)
        {
            // SAFETY: `end` left room for the block between the aligned offset and `ARENA`.
            Ok(used) => unsafe {
                self.bytes
                    .get()
                    .cast::<u8>()
                    .add(used.next_multiple_of(layout.align()))
            },
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Arena = Arena {
    bytes: core::cell::UnsafeCell::new([0; ARENA]),
    used: AtomicUsize::new(0),
};

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Sets the filter that `bytes` encode in a model of a VM, and decides one read of the MSR `index`.
/// `bytes` are the memory of the caller from the address `at` on: `struct kvm_msr_filter`, then the
/// bitmaps.
///
/// Returns 1 if the read is allowed, 0 if it is denied, and a negative errno if the filter is
/// refused. In addition, bit 1 of the result is 1 if the VMX bitmap intercepts the read, and bit 2
/// is 1 if the SVM map does.
#[unsafe(no_mangle)]
pub extern "C" fn msrgate_filter_reads(bytes: &[u8; 4096], at: u64, index: u32) -> i32 {
    let start = UserAddress::new(at);
    let memory = Segment { start, bytes };
    let call = SetCall::read(Revision::Mainline, CallerWidth::Bits64, &memory, start);
    if let Err(error) = call.result() {
        return -error.errno().number();
    }
    let Some(filter) = call.published().last() else {
        return 0;
    };
    let (mut vmx, mut svm) = (VmxBitmap::exit_all(), SvmMap::exit_all());
    let wants = |_, _| PassThrough::Wanted;
    vmx.recompute(wants, |index, access| filter.decide(index, access));
    svm.recompute(wants, |index, access| filter.decide(index, access));
    let index = MsrIndex::new(index);
    i32::from(filter.decide(index, Access::Read).verdict == Verdict::Allow)
        | i32::from(vmx.intercepts(index, Access::Read)) << 1
        | i32::from(svm.intercepts(index, Access::Read)) << 2
}

/// Sets the filter that `bytes` encode in a model of a VM, whose guest then reads the MSR `index`.
/// `bytes` are the memory of the caller from the address `at` on: `struct kvm_msr_filter`, then the
/// bitmaps.
///
/// Returns 1 if the guest gets #GP, 0 if it does not, and a negative errno if the filter is
/// refused.
#[unsafe(no_mangle)]
pub extern "C" fn msrgate_filter_guest_faults(bytes: &[u8; 4096], at: u64, index: u32) -> i32 {
    let start = UserAddress::new(at);
    let vm = Vm::new(Revision::Mainline);
    if let Err(error) = vm.set_msr_filter(CallerWidth::Bits64, &Segment { start, bytes }, start) {
        return -error.errno().number();
    }
    let mut vcpu = vm.create_vcpu(RegisterMap::default());
    let mut gprs = vcpu.gprs();
    gprs.rcx = u64::from(index);
    vcpu.set_gprs(gprs);
    let exit = vcpu.run(Instruction::Rdmsr);
    i32::from(matches!(exit, RunExit::GeneralProtection { .. }))
}

/// Decodes a program, and answers one read of a guest on the processor that CPUID describes.
/// Returns the value that the guest reads, -1 if the guest gets #GP, or -2 if the bytes are not a
/// program or the program has no variant for this processor.
#[unsafe(no_mangle)]
pub extern "C" fn msrgate_program_answers(
    bytes: &[u8; 4096],
    vendor: &[u32; 3],
    signature: u32,
    index: u32,
) -> i64 {
    let Ok(program) = Program::decode(bytes) else {
        return -2;
    };
    let cpu = Cpu::from_cpuid(*vendor, signature);
    let Ok(responder) = Responder::new(Arc::new(program), &cpu) else {
        return -2;
    };
    let mut state = VcpuState::new(&responder, |_| true);
    let exit = Exit {
        index: MsrIndex::new(index),
        access: Access::Read,
        data: 0,
        reason: ExitReason::Filter,
    };
    match responder.respond(&mut state, &exit).response {
        Response::Reply(reply) if reply.error == 0 => i64::try_from(reply.data).unwrap_or(-1),
        _ => -1,
    }
}

/// Builds a program that allows one register, encodes the program as a program file and as a C
/// header, and compares the program with one that allows nothing. Returns the number of changes
/// between the two programs, or -1 if a step fails.
#[unsafe(no_mangle)]
pub extern "C" fn msrgate_program_builds(index: u32) -> i64 {
    let none = ProgramBuilder::new(Verdict::Deny).build();
    let one = ProgramBuilder::new(Verdict::Deny)
        .allow(MsrIndex::new(index), Accesses::Both)
        .build();
    let (Ok(none), Ok(one)) = (none, one) else {
        return -1;
    };
    if one.encode().is_empty() || emit::c(&one.variants()[0], None).is_empty() {
        return -1;
    }
    let Ok(changes) = differences(&none, &one, None) else {
        return -1;
    };
    changes.iter().map(|one| one.changes.len() as i64).sum()
}
