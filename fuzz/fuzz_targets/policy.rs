//! Parses any text as a policy. The result is a policy or a list of mistakes. A policy packs into a filter,
//! or the compiler reports that the policy does not fit into a filter. A formatted text does not change when
//! it is formatted again, and a formatted policy is a policy with the same settings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_policy::{CompileError, NoIncludes, Source, compile, format, parse};

fuzz_target!(|text: &str| {
    let source = Source::new("fuzz.toml", text);
    let formatted = format(&source);
    if let Ok(text) = &formatted {
        let again = format(&Source::new("fuzz.toml", text)).expect("no mistakes");
        assert_eq!(again, *text);
    }
    match parse(&source, &mut NoIncludes) {
        Err(mistakes) => assert!(mistakes.total() > 0 && !mistakes.mistakes().is_empty()),
        Ok(policy) => {
            let text = formatted.expect("what has no mistakes alone");
            let again = parse(&Source::new("fuzz.toml", &text), &mut NoIncludes);
            let again = again.expect("a policy");
            assert_eq!(again.policy().settings(), policy.policy().settings());
            if let Err(error) = compile(policy) {
                assert!(matches!(error.error, CompileError::Pack(_)), "{error}");
            }
        }
    }
});
