//! Overwrites parts of a state page, the file in which the library in a VMM records what it saw, with any
//! bytes. The reader refuses the changed page, or returns results of bounded size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_state::{Cursor, NewRun, Snapshot, Unfinished};

fuzz_target!(|bytes: &[u8]| {
    let mut page = NewRun {
        cookie: 1,
        reasons: 7,
        watched: 0,
        ignore_msrs: 0,
        program: b"program",
        has_events: true,
    }
    .encode();
    // Each change is twelve bytes of the input: four for the position, eight for the new value.
    for change in bytes.chunks_exact(12) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize
            % (page.len() - 8);
        page[at..at + 8].copy_from_slice(&change[4..]);
    }
    if let Ok(snapshot) = Snapshot::new(&page) {
        assert!(snapshot.recorded().len() <= 8192);
        assert!(snapshot.vms().len() <= 64);
        let followed = snapshot.events_since(&Cursor::default(), Unfinished::Skip);
        assert!(followed.events.len() <= 8 * 2048);
    }
});
