//! The state page of a run, with accesses that a test chooses.

use std::sync::atomic::{AtomicU64, Ordering};

use msrgate_program::Origin;
use msrgate_state::{Kind, Limited, NewRun, Page, Seen, Snapshot};

/// Returns the snapshot of a run with one VM whose vCPU 0 has made these accesses. The accesses have the
/// times 0, 1, 2 and so on.
///
/// # Panics
/// Panics if the state page cannot be made or read.
pub fn snapshot_after(accesses: impl IntoIterator<Item = Kind>) -> Snapshot {
    let new = NewRun {
        cookie: 7,
        reasons: 6,
        ignore_msrs: 0,
        program: b"",
        has_events: false,
    };
    let bytes = new.encode();
    let (chunks, _) = bytes.as_chunks();
    let words: Vec<_> = chunks
        .iter()
        .map(|chunk| AtomicU64::new(u64::from_le_bytes(*chunk)))
        .collect();
    let page = Page::new(&words).expect("a page");
    let vm = page.add_vm(1, 0);
    page.count_guarded_vm();
    for (time, kind) in (0..).zip(accesses) {
        let seen = Seen {
            kind,
            value: 0,
            vcpu: 0,
            pid: 1,
            vm,
            origin: Origin::Default,
            time,
        };
        page.note(&seen, Limited::Passes);
    }
    let values = words.iter().map(|word| word.load(Ordering::Relaxed));
    let bytes: Vec<u8> = values.flat_map(u64::to_le_bytes).collect();
    Snapshot::new(&bytes).expect("a snapshot")
}
