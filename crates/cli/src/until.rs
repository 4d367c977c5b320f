//! The argument of `learn --until`: a time, or a text that the VMM prints.

use std::time::Duration;

/// The event at which `learn` ends the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// `learn` ends the VMM when the VMM has run for this time.
    Time(Duration),
    /// `learn` ends the VMM when the VMM has printed this text on standard output.
    Text(Vec<u8>),
}

/// The units of time that `--until` accepts, each with its length in seconds.
const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

impl Until {
    /// Parses the argument of `--until`. A number followed by `ms`, `s`, `m` or `h` is a time. Any other
    /// argument is a text; but a number that only looks like a time is an error.
    pub(crate) fn read(argument: &str) -> Result<Self, String> {
        if argument.is_empty() {
            return Err("this is neither a time, such as `30s`, nor a text".to_owned());
        }
        let is_digit = |one: char| one.is_ascii_digit() || one == '.';
        let unit = argument.trim_start_matches(is_digit);
        let number = &argument[..argument.len() - unit.len()];
        if let Some((_, seconds)) = UNITS.iter().find(|(name, _)| *name == unit)
            && number.starts_with(|one: char| one.is_ascii_digit())
        {
            let time = number.parse().map(|number: f64| number * seconds);
            let time = time
                .ok()
                .and_then(|time| Duration::try_from_secs_f64(time).ok());
            return time
                .filter(|time| !time.is_zero())
                .map(Self::Time)
                .ok_or_else(|| {
                    format!("{argument} is no time; write it as 30s, 1.5s, 200ms or 2m")
                });
        }
        let is_word = unit.trim_start().chars().all(char::is_alphabetic);
        if argument.starts_with(|one: char| one.is_ascii_digit()) && is_word {
            return Err(format!(
                "{argument} looks like a time; write it as 30s, 1.5s, 200ms or 2m"
            ));
        }
        Ok(Self::Text(argument.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_option_takes_number_with_unit_as_time_and_other_argument_as_text() {
        let read = |text: &str| Until::read(text).unwrap();
        let time = |milliseconds| Until::Time(Duration::from_millis(milliseconds));
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("2m", 120_000),
            ("1.5s", 1500),
            ("200ms", 200),
            ("0.5h", 1_800_000),
        ] {
            assert_eq!(read(text), time(milliseconds), "{text}");
        }
        for text in [
            "login:",
            "s",
            ".5s of peace",
            "4 of 4 tests passed",
            "v1.5s",
        ] {
            assert_eq!(read(text), Until::Text(text.into()));
        }
    }

    #[test]
    fn until_option_refuses_number_that_only_looks_like_a_time() {
        for text in ["", "30", "30 s", "30sec", "1.5.2s", "0s", "5 min", "7days"] {
            assert!(Until::read(text).is_err(), "{text}");
        }
    }
}
