use msrgate_program::Variant;

use super::*;
use crate::compile::compile;
use crate::parse::{IncludeError, Includes};
use crate::resolve::parse;
use crate::source::Source;

/// The text of the one file that the policies of these tests can include.
struct Base(&'static str);

impl Includes for Base {
    fn open(&mut self, _from: &Source, _path: &str) -> Result<Source, IncludeError> {
        Ok(Source::new("base.toml", self.0))
    }
}

fn compiled(text: &str, base: &'static str) -> Compiled {
    let policy = Source::new("guest.toml", text);
    let resolved =
        parse(&policy, &mut Base(base)).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    compile(resolved).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"))
}

/// Returns the actions of an MSR, for reads and for writes, in every variant.
fn actions(compiled: &Compiled, index: MsrIndex) -> Vec<[Action; 2]> {
    let of =
        |variant: &Variant| Access::ALL.map(|access| variant.rule(index, access).action.clone());
    compiled.program().variants().iter().map(of).collect()
}

fn origin(variant: &Variant, index: MsrIndex, access: Access) -> Origin {
    variant.rules().origin(variant.rule(index, access).by)
}

/// Asserts that the policy refuses the access in some variant, that the grant's text is `says`, and
/// that the policy `after`, which has the grant's change, allows the access in that variant, and
/// decides the other direction as before.
fn assert_granted(
    before: &str,
    base: &'static str,
    index: u32,
    access: Access,
    says: &str,
    after: &str,
) {
    let (index, old) = (MsrIndex::new(index), compiled(before, base));
    let variants = old.program().variants();
    let refuses = |variant: &&Variant| *variant.rule(index, access).action == Action::Deny;
    let refusing = variants
        .iter()
        .find(refuses)
        .expect("a variant that refuses");
    let origin = origin(refusing, index, access);
    let accesses = match access {
        Access::Read => Accesses::Read,
        Access::Write => Accesses::Write,
    };
    let granted = grant(&old, origin, index, accesses).map(|grant| grant.to_string());
    assert_eq!(granted.as_deref(), Some(says), "{before}");
    let mut wanted = actions(&old, index);
    for one in &mut wanted {
        one[access as usize] = Action::Allow;
    }
    assert_eq!(actions(&compiled(after, base), index), wanted, "{after}");
}

const HEAD: &str = "policy = 1\ndefault = 'deny'\n";

#[test]
fn grant_of_access_refused_by_default_adds_entry_or_changes_entry_of_same_msr() {
    for (before, says, after) in [
        (
            "[msrs]\n",
            "to allow: IA32_PAT = \"r\"",
            "[msrs]\nIA32_PAT = \"r\"\n",
        ),
        (
            "[msrs]\n0x277 = { read = 'inherit', write = 'ignore' }\n",
            "to allow, in line 4: read = \"allow\"",
            "[msrs]\n0x277 = { read = 'allow', write = 'ignore' }\n",
        ),
        (
            "[msrs]\n'0x200..=0x2ff' = { read = 'inherit', write = 'allow' }\n",
            "to allow: IA32_PAT = { read = \"allow\", write = \"inherit\" }",
            "[msrs]\n'0x200..=0x2ff' = { read = 'inherit', write = 'allow' }\nIA32_PAT = { read = 'allow', write = 'inherit' }\n",
        ),
    ] {
        let (before, after) = (format!("{HEAD}{before}"), format!("{HEAD}{after}"));
        assert_granted(&before, "", 0x277, Access::Read, says, &after);
    }
}

#[test]
fn grant_of_access_refused_by_policys_own_entry_changes_that_entry_or_adds_narrower_one() {
    for (before, says, after) in [
        (
            "[msrs]\n0x277 = 'w'\n",
            "to allow, in line 4: 0x277 = \"rw\"",
            "[msrs]\n0x277 = \"rw\"\n",
        ),
        (
            "[msrs]\nIA32_PAT = { read = 'deny', write = 'allow', why = 'ours' }\n",
            "to allow, in line 4: read = \"allow\"",
            "[msrs]\nIA32_PAT = { read = \"allow\", write = 'allow', why = 'ours' }\n",
        ),
        (
            "[msrs]\n'@mtrr' = 'none'\n'0x270..=0x27f' = { read = 'deny', write = 'ignore' }\n",
            "to allow: IA32_PAT = { read = \"allow\", write = \"inherit\" }",
            "[msrs]\n'@mtrr' = 'none'\n'0x270..=0x27f' = { read = 'deny', write = 'ignore' }\nIA32_PAT = { read = \"allow\", write = \"inherit\" }\n",
        ),
        (
            "[msrs]\n'0x270..=0x27f' = { read = 'deny', write = 'allow' }\n0x277 = { read = 'inherit', write = 'ignore' }\n",
            "to allow, in line 5: read = \"allow\"",
            "[msrs]\n'0x270..=0x27f' = { read = 'deny', write = 'allow' }\n0x277 = { read = \"allow\", write = 'ignore' }\n",
        ),
    ] {
        let (before, after) = (format!("{HEAD}{before}"), format!("{HEAD}{after}"));
        assert_granted(&before, "", 0x277, Access::Read, says, &after);
    }
}

#[test]
fn grant_of_access_refused_by_entry_of_when_section_changes_that_section() {
    let head = format!("{HEAD}[[when]]\ncpu = {{ vendor = 'AuthenticAMD' }}\n[when.msrs]\n");
    for (before, says, after) in [
        (
            "0x277 = 'w'\n",
            "to allow, in line 6: 0x277 = \"rw\"",
            "0x277 = \"rw\"\n",
        ),
        (
            "'0x270..=0x27f' = 'w'\n",
            "to allow, in the [[when]] of line 6: IA32_PAT = { read = \"allow\", write = \"inherit\" }",
            "'0x270..=0x27f' = 'w'\nIA32_PAT = { read = \"allow\", write = \"inherit\" }\n",
        ),
    ] {
        let (before, after) = (format!("{head}{before}"), format!("{head}{after}"));
        let (old, new) = (compiled(&before, ""), compiled(&after, ""));
        let index = MsrIndex::new(0x277);
        let on_amd = |compiled: &Compiled| {
            let variants = compiled.program().variants();
            let variant = variants
                .iter()
                .find(|one| matches!(one.rule(index, Access::Write).action, Action::Allow));
            variant.expect("the variant of AMD").clone()
        };
        let granted = grant(
            &old,
            origin(&on_amd(&old), index, Access::Read),
            index,
            Accesses::Read,
        )
        .expect("a grant");
        assert_eq!(granted.to_string(), says);
        assert_eq!(
            *on_amd(&new).rule(index, Access::Read).action,
            Action::Allow,
            "{after}"
        );
    }
}

#[test]
fn grant_of_access_refused_by_included_entry_overrides_that_entry_or_adds_narrower_one() {
    let head = "policy = 1\ndefault = 'deny'\ninclude = ['base.toml']\n[msrs]\n";
    for (base, says, added) in [
        (
            "policy = 1\n[msrs]\n0x277 = 'w'\n",
            "to allow: IA32_PAT = { read = \"allow\", write = \"allow\", override = true }",
            "IA32_PAT = { read = \"allow\", write = \"allow\", override = true }\n",
        ),
        (
            "policy = 1\n[msrs]\n'0x270..=0x27f' = 'w'\n",
            "to allow: IA32_PAT = { read = \"allow\", write = \"inherit\" }",
            "IA32_PAT = { read = \"allow\", write = \"inherit\" }\n",
        ),
    ] {
        assert_granted(
            head,
            base,
            0x277,
            Access::Read,
            says,
            &format!("{head}{added}"),
        );
    }
    let base = "policy = 1\n[msrs]\n0x277 = { read = 'deny', write = 'allow', final = true }\n";
    let compiled = compiled(head, base);
    let index = MsrIndex::new(0x277);
    let origin = origin(&compiled.program().variants()[0], index, Access::Read);
    let granted = grant(&compiled, origin, index, Accesses::Read).expect("a grant");
    assert_eq!(
        granted.to_string(),
        "base.toml:3 is final, so only a change of it can allow this"
    );
}

#[test]
fn grant_that_allows_reads_and_writes_is_one_entry() {
    let index = MsrIndex::new(0x277);
    for (entries, says) in [
        ("", "to allow: IA32_PAT = \"rw\""),
        ("0x277 = 'none'\n", "to allow, in line 4: 0x277 = \"rw\""),
        (
            "0x277 = { read = 'deny', write = 'deny', why = 'ours' }\n",
            "to allow, in line 4: read = \"allow\", write = \"allow\"",
        ),
        (
            "'0x270..=0x27f' = 'none'\n",
            "to allow: IA32_PAT = { read = \"allow\", write = \"allow\" }",
        ),
    ] {
        let compiled = compiled(&format!("{HEAD}[msrs]\n{entries}"), "");
        let origin = origin(&compiled.program().variants()[0], index, Access::Read);
        let granted = grant(&compiled, origin, index, Accesses::Both).expect("a grant");
        assert_eq!(granted.to_string(), says);
    }
}

#[test]
fn grant_of_write_refused_by_entry_with_register_says_to_change_whole_entry() {
    let text = format!(
        "{HEAD}[msrs]\n0x277 = {{ register = {{ reset = 0, mask = '0xff', outside = 'deny' }} }}\n"
    );
    let compiled = compiled(&text, "");
    let index = MsrIndex::new(0x277);
    let origin = origin(&compiled.program().variants()[0], index, Access::Write);
    let granted = grant(&compiled, origin, index, Accesses::Write).expect("a grant");
    assert_eq!(
        granted.to_string(),
        "line 4 answers reads and writes together; to allow, change that entry as a whole"
    );
}

#[test]
fn grant_of_access_of_last_msr_or_of_access_refused_by_kvm_is_none() {
    let compiled = compiled(HEAD, "");
    let x2apic = MsrIndex::new(0x800);
    assert_eq!(
        grant(&compiled, Origin::Default, MsrIndex::MAX, Accesses::Read),
        None
    );
    assert_eq!(grant(&compiled, Origin::Kvm, x2apic, Accesses::Read), None);
}
