//! What a user reads, command by command. `TRYCMD=overwrite cargo test -p msrgate --test commands`
//! writes what is printed now.

#[test]
fn every_command_prints_recorded_output() {
    trycmd::TestCases::new()
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("tests/cmd/*.md");
}
