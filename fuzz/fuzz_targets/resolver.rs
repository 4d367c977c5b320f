//! Compiles any text as a policy with its includes. Lines of `#---` separate the files; the first file is
//! the policy, and every file may include the others as `1.toml`, `2.toml` and so on. The compiled program
//! is unchanged after encoding and decoding. The policy is also printed as one file: that file compiles to a
//! program that treats every access alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msrgate_policy::{
    CompileError, IncludeError, Includes, MAX_LINE, NoIncludes, NotCompiled, Program, Source,
    compile, differences, parse, print,
};

struct Parts<'p>(Vec<&'p str>);

impl Includes for Parts<'_> {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let number = path
            .strip_suffix(".toml")
            .and_then(|name| name.parse().ok());
        let text = number.and_then(|number: usize| self.0.get(number));
        let text = text.ok_or_else(|| IncludeError::new("no such part"))?;
        Ok(Source::new(path, text))
    }
}

fuzz_target!(|text: &str| {
    let mut parts = Parts(text.split("#---\n").collect());
    let source = Source::new("0.toml", parts.0[0]);
    let policy = match parse(&source, &mut parts) {
        Ok(policy) => policy,
        Err(mistakes) => {
            assert!(mistakes.total() > 0 && !mistakes.mistakes().is_empty());
            return;
        }
    };
    let printed = print(policy.policy());
    let compiled = match compile(policy) {
        Ok(compiled) => compiled,
        Err(NotCompiled { error, .. }) => {
            assert!(matches!(error, CompileError::Pack(_)), "{error}");
            return;
        }
    };
    let program = compiled.program().clone();
    assert_eq!(Program::decode(&program.encode()).as_ref(), Ok(&program));
    match parse(&Source::new("printed.toml", &printed), &mut NoIncludes) {
        Ok(again) => {
            let again = compile(again).expect("it fitted before").into_program();
            assert_eq!(
                differences(&program, &again, None),
                Ok(Vec::new()),
                "{printed}"
            );
            assert_eq!(program.settings(), again.settings());
        }
        // A `why` of many lines is printed as one line, which may be longer than a line of a policy may be.
        Err(mistakes) => assert!(
            printed.lines().any(|line| line.len() > MAX_LINE),
            "{mistakes:?}\n{printed}"
        ),
    }
});
