use msrgate_policy::{NoIncludes, Source, parse};

use super::*;

use msrgate_testing::messages::messages;

#[test]
fn failure_of_every_kind_has_a_message() {
    let mistakes = parse(&Source::new("x.toml", "policy = 1"), &mut NoIncludes);
    let failures = [
        Failure::Mistakes(mistakes.expect_err("no default")),
        Failure::Refused("it does not fit".to_owned()),
        Failure::Host("there is no /dev/kvm".to_owned()),
        Failure::Input {
            what: "x.toml".to_owned(),
            why: "not UTF-8".to_owned(),
        },
        Failure::Usage("both are standard input".to_owned()),
        Failure::NotRun {
            status: 127,
            what: "qemu".to_owned(),
            why: "no such program".to_owned(),
        },
        Failure::Output(io::Error::from(io::ErrorKind::StorageFull)),
    ];
    let messages = messages(include_str!("../failure.rs"), "Failure", &failures, |_| {
        None
    });
    let plain = anstream::adapter::strip_str(&messages).to_string();
    let lines: Vec<_> = plain.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(
        lines,
        [
            "Failure",
            "  Mistakes:   × x.toml has a mistake",
            "Error: ",
            "  × `default` is missing",
            "  help: write `default = \"deny\"`, `default = \"allow\"` or `default = \"kill\"` above `[msrs]`: it",
            "        decides the MSRs that no entry names",
            "  Refused: error: it does not fit",
            "  Host: error: there is no /dev/kvm",
            "  Input: error: x.toml: not UTF-8",
            "  Usage: error: both are standard input",
            "  NotRun: error: qemu: no such program",
            "  Output: error: cannot write the results: no storage space",
        ]
    );
}
