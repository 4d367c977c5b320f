//! Any bytes as any format: what is imported prints as a policy without mistakes that has the same
//! entries, or the bytes are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_policy::import::{Format, import, print};
use msrgate_policy::{NoIncludes, Source, parse};

fuzz_target!(|bytes: &[u8]| {
    let guessed = import(bytes, None);
    for format in Format::ALL {
        let Ok(imported) = import(bytes, Some(format)) else {
            continue;
        };
        if let Ok(guessed) = &guessed
            && guessed.format == format
        {
            assert_eq!(guessed, &imported);
        }
        let text = print(&imported, "fuzz");
        let policy = parse(&Source::new("fuzz.toml", &text), &mut NoIncludes)
            .expect("a policy without mistakes");
        assert_eq!(policy.policy().entries().len(), imported.entries.len());
        // Not in one order: long entries are tables, and stand behind the others.
        for draft in &imported.entries {
            let mut entries = policy.policy().entries().iter();
            assert!(
                entries.any(|entry| entry.msrs() == &draft.msrs),
                "{}",
                draft.msrs
            );
        }
    }
});
