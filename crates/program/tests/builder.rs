//! Tests of programs built from code.

use msrgate_filter::{Access, Accesses, MsrIndex, Verdict};
use msrgate_policy::{NoIncludes, Source, compile, parse};
use msrgate_program::{
    Action, BuildError, Device, Emulated, Mask, Microcode, MsrRange, Origin, Outside, Program,
    ProgramBuilder, Unknown, UnknownAction, Update,
};

const fn msr(index: u32) -> MsrIndex {
    MsrIndex::new(index)
}

fn from_text(text: &str) -> Program {
    let resolved = parse(&Source::new("test.toml", text), &mut NoIncludes).expect(text);
    compile(resolved).expect(text).into_program()
}

#[test]
fn program_of_builder_has_digest_of_equivalent_policy_text() {
    let low = Emulated {
        reset: 5,
        mask: Mask {
            bits: 0xff,
            outside: Outside::Deny,
        },
    };
    let built = ProgramBuilder::new(Verdict::Deny)
        .allow(MsrRange::between(msr(0x20f), msr(0x200)), Accesses::Read)
        .allow(msr(0x205), Accesses::Both)
        .value(msr(0x17), 7)
        .ignore(msr(0x17))
        .register(msr(0x150), low)
        .handler(msr(0x34), Accesses::Read, "smi")
        .action(msr(0x34), Access::Write, &Action::Kill)
        .action(msr(0xc000_0082), Access::Write, &Action::Pin)
        .build()
        .unwrap();
    let text = r#"
policy = 1
default = "deny"
[msrs]
"0x200..=0x20f" = "r"
0x205 = "rw"
0x17 = { read = { value = 7 }, write = "ignore" }
0x34 = { read = { handler = "smi" }, write = "kill" }
0xc0000082 = { read = "deny", write = "pin" }
[msrs.0x150]
register = { reset = 5, mask = 0xff }
"#;
    assert_eq!(built.digest(), from_text(text).digest());
    assert_eq!(Program::decode(&built.encode()), Ok(built.clone()));
    assert_eq!(Vec::from_iter(built.handlers()), ["smi"]);
    assert!(built.devices().is_empty());
}

#[test]
fn builder_that_kills_by_default_builds_program_of_default_kill() {
    let killing = || ProgramBuilder::kill_by_default().allow(msr(0x277), Accesses::Both);
    let built = killing().build().unwrap();
    let text = "policy = 1\ndefault = 'kill'\n[msrs]\n0x277 = 'rw'";
    assert_eq!(built.digest(), from_text(text).digest());
    assert_eq!(Program::decode(&built.encode()), Ok(built.clone()));
    let last = built.variants()[0].rule(msr(u32::MAX), Access::Read);
    assert_eq!(*last.action, Action::Kill);
    let unknown = Unknown {
        read: UnknownAction::Value(0),
        ..Unknown::default()
    };
    assert_eq!(killing().unknown(unknown).build(), Err(BuildError::Unknown));
}

#[test]
fn later_builder_call_decides_and_its_source_line_is_the_origin() {
    let built = ProgramBuilder::new(Verdict::Allow)
        .deny(MsrRange::between(msr(0x10), msr(0x1f)), Accesses::Both)
        .allow(msr(0x12), Accesses::Both)
        .deny(MsrRange::between(msr(0x12), msr(0x13)), Accesses::Write)
        .build()
        .unwrap();
    let variant = &built.variants()[0];
    let word = |index, access| variant.rule(msr(index), access).action.word();
    assert_eq!(word(0x12, Access::Read), "allow");
    assert_eq!(word(0x12, Access::Write), "deny");
    assert_eq!(word(0x13, Access::Read), "deny");
    let rule = variant.rule(msr(0x12), Access::Write);
    let Origin::Line(line) = variant.rules().origin(rule.by) else {
        panic!("a line of this file");
    };
    assert_eq!(built.file(line.file), Some("builder.rs"));
    let source = include_str!("builder.rs").lines();
    let at = source.into_iter().nth(line.number as usize - 1).unwrap();
    assert!(
        at.contains(".deny(MsrRange::between(msr(0x12), msr(0x13))"),
        "{at}"
    );
}

#[test]
fn builder_build_refuses_invalid_calls() {
    let deny = || ProgramBuilder::new(Verdict::Deny);
    let error_of = |builder: ProgramBuilder| builder.build().unwrap_err().to_string();
    let ignored = Unknown {
        read: UnknownAction::Deny,
        write: UnknownAction::Ignore,
        log: None,
    };
    let clusters = (0..17).fold(deny(), |builder, number| {
        builder.allow(msr(number * 0x10_0000), Accesses::Both)
    });
    let errors = [
        error_of(deny().action(msr(0x10), Access::Read, &Action::Ignore)),
        error_of(deny().allow(MsrRange::between(msr(0x7ff), msr(0x900)), Accesses::Both)),
        error_of(deny().unknown(ignored)),
        error_of(deny().action(msr(0xc000_0080), Access::Write, &Action::Pin)),
        error_of(deny().action(msr(0x79), Access::Write, &Action::Device(Device::Microcode))),
        error_of(deny().allow(MsrIndex::MAX, Accesses::Both)),
        error_of(clusters),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn program_devices_lists_devices_that_rules_use() {
    let microcode = Microcode {
        revision: 7,
        update: Update::Ignore,
    };
    let built = ProgramBuilder::new(Verdict::Deny)
        .microcode(microcode)
        .action(msr(0x79), Access::Write, &Action::Device(Device::Microcode))
        .build()
        .unwrap();
    assert_eq!(Vec::from_iter(built.devices()), [Device::Microcode]);
    assert!(built.handlers().is_empty());
}

#[test]
fn builder_build_errors_have_messages() {
    let examples = [
        BuildError::Direction {
            action: "ignore",
            access: Access::Read,
        },
        BuildError::X2apic(MsrRange::one(msr(0x800))),
        BuildError::Unknown,
        BuildError::Compile(msrgate_program::CompileError::Pack(
            msrgate_program::PackError::LastMsr,
        )),
        BuildError::Responder(msrgate_program::answer::ResponderError::NoDevice(
            Device::Microcode,
        )),
    ];
    let source = include_str!("../src/builder.rs");
    insta::assert_snapshot!(msrgate_testing::messages::messages(
        source,
        "BuildError",
        &examples,
        |_| None
    ));
}
