//! Decodes any bytes as a vCPU's saved state. If the bytes are a saved state, encoding the state gives the
//! same bytes. A vCPU that has restored the state saves the same values; a vCPU that refuses to restore the
//! state is unchanged.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use msrgate_policy::answer::{Responder, Saved, VcpuState};
use msrgate_policy::{NoIncludes, Source, compile, parse};

/// A policy with emulated registers, pinned registers, and a register without a writable bit.
const POLICY: &str = "policy = 1\ndefault = \"deny\"\n[msrs]\n\
    \"0x10..=0x13\" = { register = { reset = \"0x5a\", mask = \"0xff\" } }\n\
    0x200 = { register = { reset = 0, mask = 0 } }\n\
    IA32_LSTAR = { read = \"allow\", write = \"pin\" }\n\
    IA32_STAR = { read = \"allow\", write = \"pin\" }\n";

static RESPONDER: LazyLock<Responder> = LazyLock::new(|| {
    let policy = parse(&Source::new("fuzz.toml", POLICY), &mut NoIncludes).unwrap();
    let program = compile(policy).unwrap().into_program();
    let cpu = program.variants()[0].example().clone();
    Responder::new(Arc::new(program), &cpu).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(saved) = Saved::decode(bytes) else {
        return;
    };
    assert_eq!(saved.encode(), bytes);
    let mut state = VcpuState::new(&RESPONDER, |_| true);
    let before = state.save(&RESPONDER);
    if state.restore(&RESPONDER, &saved).is_err() {
        assert_eq!(state.save(&RESPONDER), before);
        return;
    }
    let again = state.save(&RESPONDER);
    assert_eq!(again.pins, saved.pins);
    for register in &saved.registers {
        assert!(again.registers.contains(register));
    }
    let mut other = VcpuState::new(&RESPONDER, |_| true);
    other.restore(&RESPONDER, &again).unwrap();
    assert_eq!(other.save(&RESPONDER), state.save(&RESPONDER));
});
