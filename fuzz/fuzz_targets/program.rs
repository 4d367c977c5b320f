//! Decodes any bytes as a program. If the bytes are a program, encoding the program gives the same bytes.
//! The target replaces a wrong digest in the bytes by the right one, so that the fuzzer reaches the code
//! after the check of the digest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_program::{Program, ProgramError, Variant};

/// The position of the digest in an encoded program, in bytes.
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
