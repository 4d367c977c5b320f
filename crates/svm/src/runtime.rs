//! Unsafe: what a program without an operating system owes the compiler: a heap, a panic handler, the handler of its own
//! exceptions, and the memory functions that compiled code calls.
#![expect(unsafe_code, reason = "this file is the hypervisor's runtime")]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::Mutex;

use crate::console::fail;
use crate::status::Status;

const HEAP: usize = 1152 << 10;

#[repr(C, align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; HEAP]>);

// SAFETY: only the heap, behind its lock, has the arena's address.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; HEAP]));

struct Locked(Mutex<Option<Heap>>);

#[global_allocator]
static HEAP_OF_HYPERVISOR: Locked = Locked(Mutex::new(None));

// SAFETY: `Heap` hands out each byte of the arena once until it is freed, and the lock lets in one processor at a
// time. Nothing interrupts the hypervisor while it holds the lock.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut heap = self.0.lock();
        let heap = heap.get_or_insert_with(|| {
            // SAFETY: this is the only heap over the arena, which lives for ever.
            unsafe { Heap::new(ARENA.0.get().cast(), HEAP) }
        });
        heap.allocate_first_fit(layout)
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let (Some(heap), Some(pointer)) = (&mut *self.0.lock(), NonNull::new(pointer)) {
            // SAFETY: the caller got `pointer` from `alloc` with this layout, and gives it back once.
            unsafe { heap.deallocate(pointer, layout) };
        }
    }
}

/// Returns the number of bytes of the heap that are in use.
pub(crate) fn heap_in_use() -> usize {
    HEAP_OF_HYPERVISOR.0.lock().as_ref().map_or(0, Heap::used)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(Status::Panic, format_args!("{info}"))
}

/// Ends the machine after an exception of the hypervisor's own. `frame` is the vector, the error code and RIP.
#[unsafe(no_mangle)]
extern "C" fn exception_in_hypervisor(frame: &[u64; 3]) -> ! {
    let [vector, error, rip] = frame;
    fail(
        Status::Exception,
        format_args!("exception {vector} in the hypervisor at {rip:#x}, error code {error:#x}"),
    )
}

#[repr(C, align(16))]
struct Idt(core::cell::UnsafeCell<[[u64; 2]; 32]>);

// SAFETY: `load_idt` fills it with the same content on each processor, and the processors only read it.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(core::cell::UnsafeCell::new([[0; 2]; 32]));

/// Loads an IDT with one gate for each exception. There is no IST and no TSS: GIF is 0 in the hypervisor, so
/// that only its own instructions raise exceptions, and those that return are in entry.s, without a red zone.
pub(crate) fn load_idt() {
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    const CODE_SEGMENT: u64 = 8 << 16;
    unsafe extern "C" {
        static exception_stubs: [[u8; 16]; 32];
    }
    let stubs = (&raw const exception_stubs).addr() as u64;
    let gates: *mut [u64; 2] = IDT.0.get().cast();
    for vector in 0..32usize {
        let at = stubs + 16 * vector as u64;
        let low = at & 0xffff | CODE_SEGMENT | INTERRUPT_GATE | (at >> 16 & 0xffff) << 48;
        let gate = gates.wrapping_add(vector);
        // SAFETY: the IDT has 32 gates. Each processor writes the same values.
        unsafe { gate.write_volatile([low, at >> 32]) };
    }
    let mut register = [0; 10];
    register[..2].copy_from_slice(&511u16.to_le_bytes());
    register[2..].copy_from_slice(&(IDT.0.get().addr() as u64).to_le_bytes());
    // SAFETY: the register describes the IDT above, which lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &raw const register) };
}

// The next functions are the C library's, by name, contract and argument order. Compiled code calls them.

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller keeps memcpy's contract. The ABI has the direction flag clear.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller keeps memset's contract.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("eax") byte, inout("rcx") len => _);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: a copy upwards is right if `to` lies before `from`, or behind all of it.
        return unsafe { memcpy(to, from, len) };
    }
    let (last_to, last_from) = (
        to.wrapping_add(len).wrapping_sub(1),
        from.wrapping_add(len).wrapping_sub(1),
    );
    // SAFETY: the caller keeps memmove's contract; the copy goes downwards, and the direction flag is cleared.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") last_to => _, inout("rsi") last_from => _, inout("rcx") len => _
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for at in 0..len {
        let (one, other) = (one.wrapping_add(at), other.wrapping_add(at));
        // SAFETY: the caller keeps memcmp's contract. A volatile read does not become a call of memcmp.
        let one = unsafe { one.read_volatile() };
        // SAFETY: as above.
        let other = unsafe { other.read_volatile() };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: the contracts are the same.
    unsafe { memcmp(one, other, len) }
}
