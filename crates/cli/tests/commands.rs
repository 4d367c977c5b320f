//! Runs the recorded command lines, and compares the output of each with the recorded output.
//! `TRYCMD=overwrite cargo test -p msrgate --test commands` records the output anew.

#[test]
fn every_command_of_msrgate_prints_its_recorded_output() {
    trycmd::TestCases::new()
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("tests/cmd/*.md");
}
