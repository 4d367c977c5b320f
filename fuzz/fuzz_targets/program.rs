//! Any bytes as a program: what is decoded is encoded as the same bytes. A digest that does not fit
//! is made to, so that what lies behind it is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_program::{Program, ProgramError, Variant};

/// Where a program's digest stands.
const DIGEST: std::ops::Range<usize> = 10..42;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let mut decoded = Program::decode(&bytes);
    if let Err(ProgramError::WrongDigest { computed, .. }) = decoded {
        bytes[DIGEST].copy_from_slice(computed.bytes());
        decoded = Program::decode(&bytes);
        assert!(decoded.is_ok());
    }
    if let Ok(program) = decoded {
        assert_eq!(program.encode(), bytes);
        assert!(!program.variants().is_empty());
        for variant in program.variants() {
            let on = program.on(variant.example());
            assert_eq!(on.map(Variant::holds), Some(variant.holds()));
        }
    }
});
