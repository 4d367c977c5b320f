//! The argument of `--until`: a time, or a text that the VMM prints.

use std::time::Duration;

/// The event at which `learn` ends the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// This time has passed while the VMM ran.
    Time(Duration),
    /// The VMM has printed this text on standard output.
    Text(Vec<u8>),
}

impl Until {
    /// Reads the argument. A number with `s`, `m` or `h` is a time; all else is a text.
    pub(crate) fn read(argument: &str) -> Result<Self, String> {
        if argument.is_empty() {
            return Err("this is neither a time, such as `30s`, nor a text".to_owned());
        }
        let seconds = [("s", 1), ("m", 60), ("h", 3600)];
        let time = seconds.into_iter().find_map(|(unit, seconds)| {
            let number: u64 = argument.strip_suffix(unit)?.parse().ok()?;
            Some(Duration::from_secs(number.saturating_mul(seconds)))
        });
        Ok(time.map_or_else(|| Self::Text(argument.into()), Self::Time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_reads_times_and_texts() {
        let read = |text: &str| Until::read(text).unwrap();
        assert_eq!(read("30s"), Until::Time(Duration::from_secs(30)));
        assert_eq!(read("2m"), Until::Time(Duration::from_secs(120)));
        assert_eq!(read("login:"), Until::Text(b"login:".to_vec()));
        assert_eq!(read("s"), Until::Text(b"s".to_vec()));
        assert!(Until::read("").is_err());
    }
}
