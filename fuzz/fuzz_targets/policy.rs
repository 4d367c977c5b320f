//! Any bytes as a policy's text: a policy or mistakes, never a panic; and what is a policy either
//! does not fit, or packs into a filter that equals it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_policy::{CompileError, NoIncludes, Source, compile, parse};

fuzz_target!(|text: &str| {
    let source = Source::new("fuzz.toml", text);
    match parse(&source, &mut NoIncludes) {
        Err(mistakes) => assert!(mistakes.total() > 0 && !mistakes.mistakes().is_empty()),
        Ok(policy) => {
            if let Err(error) = compile(policy) {
                assert!(matches!(error, CompileError::Pack(_)), "{error}");
            }
        }
    }
});
