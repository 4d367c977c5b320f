//! Unsafe: the maps that all processors share: nested paging and ports.
#![expect(unsafe_code, reason = "the processor reads the maps of this file")]

use core::cell::UnsafeCell;

use msrgate_svm::icr::APIC;
use msrgate_svm::memory::OWN;

/// The nested page table: the root, two tables of 1 GiB pages, a table of 2 MiB pages for the first GiB, one
/// for the GiB of the APIC, and a table of 4 KiB pages around the APIC.
#[repr(C, align(4096))]
struct Nested([[u64; 512]; 6]);

/// The I/O permission map: one bit for each port, and three more (APM volume 2, 15.10.1).
#[repr(C, align(4096))]
struct Ports([u8; 3 * 4096]);

struct Shared<T>(UnsafeCell<T>);

// SAFETY: `fill` writes the maps before any guest and any other processor runs; afterwards they are only read.
unsafe impl<T> Sync for Shared<T> {}

static NESTED: Shared<Nested> = Shared(UnsafeCell::new(Nested([[0; 512]; 6])));
static PORTS: Shared<Ports> = Shared(UnsafeCell::new(Ports([0; 3 * 4096])));

/// Returns the physical address of the nested page table's root.
pub(crate) fn nested() -> u64 {
    NESTED.0.get().addr() as u64
}

/// Returns the physical address of the I/O permission map.
pub(crate) fn ports() -> u64 {
    PORTS.0.get().addr() as u64
}

/// Fills the maps: all memory but the hypervisor's is the guest's, writes to the APIC's page exit, and so do
/// accesses to `intercepted` ports. Call this once, before the guest and other processors start.
pub(crate) fn fill(intercepted: impl IntoIterator<Item = u16>) {
    // SAFETY: nobody else uses the maps yet: `main` calls this once, and no guest runs.
    let tables = unsafe { &mut (*NESTED.0.get()).0 };
    fill_nested(tables, nested());
    // SAFETY: as above.
    let map = unsafe { &mut (*PORTS.0.get()).0 };
    for port in intercepted {
        map[usize::from(port) / 8] |= 1 << (port % 8);
    }
}

/// Walks of the nested table are user accesses, so that each entry has the bit U (APM volume 2, 15.25.5).
const ALL: u64 = 7;
const READ_ONLY: u64 = 5;
const LARGE: u64 = 1 << 7;

fn fill_nested(tables: &mut [[u64; 512]; 6], root: u64) {
    let table = |number: u64| root + number * 4096;
    let [root, low, high, first, third, apic] = tables;
    root[0] = table(1) | ALL;
    root[1] = table(2) | ALL;
    for (number, entry) in (0u64..).zip(low.iter_mut().chain(high)) {
        *entry = number << 30 | LARGE | ALL;
    }
    low[0] = table(3) | ALL;
    low[3] = table(4) | ALL;
    for (number, entry) in (0u64..).zip(first) {
        let start = number << 21;
        *entry = if OWN.contains(&start) {
            0
        } else {
            start | LARGE | ALL
        };
    }
    for (number, entry) in (0u64..).zip(third) {
        let start = 3 << 30 | number << 21;
        let is_apics = start == APIC & !0x1f_ffff;
        *entry = if is_apics {
            table(5) | ALL
        } else {
            start | LARGE | ALL
        };
    }
    for (number, entry) in (0u64..).zip(apic) {
        let start = (APIC & !0x1f_ffff) + (number << 12);
        *entry = start | if start == APIC { READ_ONLY } else { ALL };
    }
}
