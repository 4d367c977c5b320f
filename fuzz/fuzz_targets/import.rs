//! Imports any bytes in every format. Either the importer refuses the bytes, or the imported entries are
//! printed as a policy that has no mistakes and the same entries.
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
        // The order of the entries may differ: a long entry is printed as a table, after the short ones.
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
