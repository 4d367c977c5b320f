//! The messages of all errors of this crate.

use msrgate_filter::{Access, Accesses, FilterError, MsrIndex, Verdict};
use msrgate_policy::parse_cpu;
use msrgate_program::answer::{ResponderError, RestoreError};
use msrgate_program::{
    Action, CompileError, Cpu, Device, Digest, MsrRange, PackError, ProgramError, Window, is_seen,
};
use msrgate_testing::messages::{HOSTILE, messages, messages_with_text};

#[test]
fn compile_errors_have_messages() {
    let window = Window {
        colour: Accesses::Both,
        msrs: MsrRange::one(MsrIndex::MIN),
    };
    let packs = || {
        [
            PackError::TooManyRanges(vec![window; 17]),
            PackError::LastMsr,
        ]
    };
    let [too_many, _] = packs();
    let differs = CompileError::Differs {
        index: MsrIndex::new(0x10),
        access: Access::Write,
        wanted: Verdict::Deny,
    };
    insta::assert_snapshot!(
        messages(
            include_str!("../src/pack.rs"),
            "PackError",
            &packs(),
            |_| None
        ) + &messages(
            include_str!("../src/pack.rs"),
            "CompileError",
            &[CompileError::Pack(too_many), differs],
            |_| None
        )
    );
}

#[test]
fn program_errors_have_messages() {
    let programs = [
        ProgramError::NotAProgram,
        ProgramError::UnknownVersion(2),
        ProgramError::Ends { at: 7 },
        ProgramError::Trailing { at: 7 },
        ProgramError::Value {
            at: 7,
            what: "an action",
        },
        ProgramError::SameName("i.toml".into()),
        ProgramError::Filter(FilterError::TooManyRanges(17)),
        ProgramError::Differs {
            index: MsrIndex::new(0x10),
            access: Access::Read,
        },
        ProgramError::WrongDigest {
            found: Digest::from_bytes([0; 32]),
            computed: Digest::from_bytes([0xff; 32]),
        },
    ];
    insta::assert_snapshot!(messages(
        include_str!("../src/program/error.rs"),
        "ProgramError",
        &programs,
        |_| None
    ));
}

#[test]
fn responder_errors_have_messages() {
    let cpu = parse_cpu("GenuineIntel:6:0x6a:6").unwrap().cpu().clone();
    let index = MsrIndex::new(0x10);
    let responders = [
        ResponderError::NoVariant(cpu),
        ResponderError::TooManyRegisters(1 << 20),
        ResponderError::NotForwardable(index),
        ResponderError::NoDevice(Device::Microcode),
    ];
    let restores = [
        RestoreError::NotSaved,
        RestoreError::Version(2),
        RestoreError::Broken,
        RestoreError::NoRegister(index),
        RestoreError::NoPin(index),
        RestoreError::Device("microcode".into()),
    ];
    let of_responders = include_str!("../src/answer/responder.rs");
    let of_saves = include_str!("../src/answer/save.rs");
    insta::assert_snapshot!(
        messages(of_responders, "ResponderError", &responders, |_| None)
            + &messages(of_saves, "RestoreError", &restores, |_| None)
    );
}

/// Names in a saved state, in a program and in CPUID come from outside and may contain control
/// characters; error messages show them within one line.
#[test]
fn program_errors_show_names_with_control_characters_in_one_line() {
    let cpu = Cpu {
        vendor: HOSTILE.into(),
        family: 6,
        model: 1,
        stepping: 1,
    };
    let of_saves = include_str!("../src/answer/save.rs");
    let restore = RestoreError::Device(HOSTILE.into());
    let mut texts = messages_with_text(of_saves, "RestoreError", &[restore]);
    texts.push(Action::Handler(HOSTILE.into()).to_string());
    texts.push(ResponderError::NoVariant(cpu).to_string());
    for text in texts {
        assert!(is_seen(&text) && !text.contains('\n'), "{text:?}");
    }
    let long = RestoreError::Device("x".repeat(1 << 20).into());
    assert!(long.to_string().len() < 200);
}

#[test]
fn displayed_action_escapes_quotes_in_handler_name() {
    let action = Action::Handler("a\"b\\c".into());
    assert_eq!(action.to_string(), r#"{ handler = "a\"b\\c" }"#);
}
