//! The name by which a path appears in the command's output.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use msrgate_policy::{is_no_file, shown_name};

/// Returns the name of a path for JSON output. Different paths have different names. Text for people has the
/// name in the form of [`shown_name`].
///
/// A path of UTF-8 without `\x` in it is its own name. In the name of any other path each backslash is
/// doubled, and a byte that is not UTF-8 is `\x` and its two hexadecimal digits. A file that is called like
/// something that [is no file](is_no_file), such as `standard input`, has `./` before its name.
pub(crate) fn name(path: &Path) -> String {
    match path.to_str() {
        Some(text) if is_no_file(text) => format!("./{text}"),
        Some(text) if !text.contains("\\x") => text.to_owned(),
        _ => escaped(path.as_os_str().as_bytes()),
    }
}

/// Returns the name of a path for text that people read. Different paths look different.
pub(crate) fn shown(path: &Path) -> String {
    shown_name(&name(path))
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            // Writing to a `String` does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;

    use super::*;

    fn of(bytes: &[u8]) -> String {
        name(Path::new(OsStr::from_bytes(bytes)))
    }

    #[test]
    fn json_name_of_path_escapes_bytes_that_are_not_utf8() {
        for (bytes, wanted) in [
            (&b"d/x.toml"[..], "d/x.toml"),
            ("größe\u{1b}".as_bytes(), "größe\u{1b}"),
            (b"a\\b.toml", "a\\b.toml"),
            (b"d\xff/x.toml", "d\\xff/x.toml"),
            (b"d\xfe/x.toml", "d\\xfe/x.toml"),
            // The first bytes of a character without its last one.
            (b"\xe2\x82", "\\xe2\\x82"),
            ("\u{fffd}".as_bytes(), "\u{fffd}"),
            (b"a\\b\xff", "a\\\\b\\xff"),
            (b"d\\xff/x.toml", "d\\\\xff/x.toml"),
            (b"standard input", "./standard input"),
            (b"sandbox.toml (shipped)", "./sandbox.toml (shipped)"),
            (
                b"/tmp/sandbox.toml (shipped)",
                "/tmp/sandbox.toml (shipped)",
            ),
        ] {
            assert_eq!(of(bytes), wanted);
        }
    }

    #[test]
    fn different_paths_have_different_names_in_json_and_in_text() {
        const PARTS: [&[u8]; 7] = [b"\\", b"x", b"f", b"\xff", b"\x0f", b"\xe2\x82", b"\\xff"];
        let mut paths = vec![Vec::new()];
        for _ in 0..4 {
            let longer = paths
                .iter()
                .flat_map(|path: &Vec<u8>| PARTS.map(|part| [path.as_slice(), part].concat()));
            let longer: Vec<_> = longer.collect();
            paths.extend(longer);
        }
        let paths: BTreeSet<_> = paths.into_iter().collect();
        let names: BTreeSet<_> = paths.iter().map(|path| of(path)).collect();
        assert_eq!(names.len(), paths.len());
    }
}
