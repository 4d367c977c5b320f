//! Compares each command's output with the recorded one. `TRYCMD=overwrite cargo test -p msrgate --test
//! commands` records the output anew.

#[test]
fn every_command_prints_recorded_output() {
    trycmd::TestCases::new()
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("tests/cmd/*.md");
}
