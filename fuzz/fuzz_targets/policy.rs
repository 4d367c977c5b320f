//! Any bytes as a policy's text: a policy or mistakes, never a panic; and what is a policy either
//! does not fit, or packs into a filter that equals it. What can be formatted stays a policy, and is
//! formatted once for all.
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
