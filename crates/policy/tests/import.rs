//! Tests that importing the output of `compile` gives a policy with the same decisions and
//! answers.

use msrgate_policy::import::{Format, import, print};
use msrgate_policy::{
    Change, Cpu, NoIncludes, Program, Source, Variant, compile, differences, emit, parse,
    setting_changes,
};
use proptest::prelude::*;

use msrgate_testing::random::policy;

/// Returns the program imported from these bytes, and the number of parts that a policy could not
/// express.
fn again(bytes: &[u8], format: Format) -> (Program, usize) {
    let imported = import(bytes, None).expect("what was written");
    assert_eq!(imported.format, format);
    let text = print(&imported, "FILE");
    let policy = parse(&Source::new("imported.toml", &text), &mut NoIncludes).expect(&text);
    let compiled = compile(policy).expect(&text);
    (compiled.program().clone(), imported.losses.len())
}

/// Returns the decisions in which two programs differ. Their `log` is not compared, because a
/// filter does not have one.
fn decided(one: &Program, other: &Program, cpu: Option<&Cpu>) -> Vec<Change> {
    let differences = differences(one, other, cpu).expect("few processors");
    differences
        .into_iter()
        .flat_map(|one| one.changes)
        .collect()
}

fn abi(variant: &Variant) -> Vec<u8> {
    emit::abi(variant).expect("a pointer of 64 bits holds any offset")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn import_of_compile_output_gives_equal_policy(plan in policy()) {
        let drawn = plan.compile().expect("no defect");
        let program = drawn.compiled.program().clone();
        for variant in program.variants() {
            let filter = Program::of_filter(variant.filter().clone());
            let emitted = [
                emit::json(variant, None).into_bytes(),
                emit::c(variant, None).into_bytes(),
                emit::rust(variant, None).into_bytes(),
                abi(variant),
            ];
            for bytes in &emitted {
                let (again, _) = again(bytes, Format::Compiled);
                prop_assert_eq!(decided(&filter, &again, None), [], "{}", drawn.text);
            }
        }
        let (again, losses) = again(&program.encode(), Format::Program);
        // Only the first variant is imported. For each other variant, the import reports that it
        // differs.
        let others = program.variants().len() - 1;
        prop_assert!(losses >= others);
        let first = program.variants()[0].example();
        prop_assert_eq!(decided(&program, &again, Some(first)), [], "{}", drawn.text);
        prop_assert_eq!(setting_changes(program.settings(), again.settings()), []);
        if losses == 0 {
            prop_assert_eq!(again.settings(), program.settings());
            for (access, rule) in msrgate_filter::Access::ALL
                .into_iter()
                .flat_map(|access| program.variants()[0].rules().of(access).map(move |rule| (access, rule)))
            {
                let same = again.variants()[0].rule(rule.msrs.first(), access);
                prop_assert_eq!((&same.action, same.log), (&rule.action, rule.log), "{} {}", access, rule.msrs);
            }
        }
    }
}
