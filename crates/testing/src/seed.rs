//! The seeds of random tests.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Returns the seed from `MSRGATE_SEED`, decimal or hexadecimal with `0x`, or else a random one.
///
/// # Panics
/// Panics if `MSRGATE_SEED` is not a number of up to 64 bits.
#[must_use]
pub fn seed() -> u64 {
    let Ok(text) = std::env::var("MSRGATE_SEED") else {
        return RandomState::new().build_hasher().finish();
    };
    let seed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    seed.expect("MSRGATE_SEED is a number of up to 64 bits")
}

/// Returns a generator of random values for the thread with the number `worker`. Threads with the
/// same seed and different numbers get different values.
#[must_use]
pub fn runner(seed: u64, worker: u32) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&worker.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_time: 120_000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}
