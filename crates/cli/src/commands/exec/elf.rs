//! A check of the VMM's executable file, which shows if the dynamic linker will load msrgate's library into
//! the VMM.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use msrgate_policy::one_line;

use super::GUIDE;
use crate::failure::Failure;
use crate::named::name;

/// A C library for whose programs there is a build of msrgate's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Libc {
    Glibc,
    Musl,
}

impl Libc {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
        }
    }

    /// Returns the C library to which a dynamic linker belongs, or `None` if msrgate has no library for that
    /// C library.
    fn of_linker(linker: &Path) -> Option<Self> {
        match linker.file_name()?.to_str()? {
            "ld-linux-x86-64.so.2" => Some(Self::Glibc),
            "ld-musl-x86_64.so.1" => Some(Self::Musl),
            _ => None,
        }
    }
}

/// The kind of an executable file, by the file's first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// An ELF program that this dynamic linker loads.
    Dynamic(PathBuf),
    /// An ELF program that is statically linked: no dynamic linker loads it.
    Static,
    /// An ELF program for another processor, or for 32 bits.
    Foreign,
    /// A script that this interpreter runs.
    Script(PathBuf),
    /// A program whose file lacks its end, or contradicts itself.
    Damaged,
    /// A file that the kernel would not execute.
    Unknown,
}

/// The largest number of scripts that the check follows if the interpreter of a script is itself a script.
/// The kernel has the same limit.
const DEPTH: usize = 4;

/// Checks, as far as the file shows it, that the program will load msrgate's library. Returns the C library
/// that the program needs.
///
/// # Errors
/// The program will not load msrgate's library, or cannot be run. The error says why.
pub(super) fn check(path: &Path) -> Result<Libc, Failure> {
    let mut path = path.to_owned();
    let mut script: Option<PathBuf> = None;
    for _ in 0..DEPTH {
        let kind = kind(&path).map_err(|error| Failure::NotRun {
            status: 126,
            what: name(script.as_deref().unwrap_or(&path)),
            why: match &script {
                Some(_) => format!(
                    "the interpreter of this script, {}, cannot be run: {error}",
                    one_line(&name(&path))
                ),
                None if error.kind() == io::ErrorKind::PermissionDenied => {
                    "its file may not be read, which msrgate does to see that the program loads the library".to_owned()
                }
                None => error.to_string(),
            },
        })?;
        let shown = one_line(&name(&path));
        let refused = |why: &str| Err(Failure::Refused(format!("{shown}: {why}; see {GUIDE}")));
        let not_run = |why: &str| {
            Err(Failure::NotRun {
                status: 126,
                what: name(&path),
                why: why.to_owned(),
            })
        };
        return match kind {
            Kind::Dynamic(linker) => Libc::of_linker(&linker).map_or_else(
                || {
                    refused(&format!(
                        "this program is loaded by {}, for which there is no library: it needs a build for glibc or musl",
                        one_line(&name(&linker))
                    ))
                },
                Ok,
            ),
            Kind::Static => refused(
                "this program is statically linked, so that no library can be put into it: use a dynamically linked build",
            ),
            Kind::Foreign => refused("this is no program of x86-64, for which the library is"),
            Kind::Script(interpreter) => {
                script = Some(mem::replace(&mut path, interpreter));
                continue;
            }
            Kind::Damaged => not_run("the file of this program is cut or damaged"),
            Kind::Unknown => not_run("this is neither a program nor a script that begins with #!"),
        };
    }
    // The kernel refuses such a chain.
    Ok(Libc::Glibc)
}

fn kind(path: &Path) -> io::Result<Kind> {
    let file = File::open(path)?;
    let mut head = Vec::new();
    read(&file, 0, 4096, &mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let interpreter = line.trim_ascii().split(u8::is_ascii_whitespace).next();
        return Ok(match interpreter {
            Some(path) if !path.is_empty() => Kind::Script(path_of(path)),
            _ => Kind::Unknown,
        });
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(Kind::Unknown);
    }
    Ok(of_elf(&file, &head).unwrap_or(Kind::Damaged))
}

/// Reads `most` bytes of the file from the offset `at` into `into`, or fewer if the file ends before.
fn read(file: &File, at: u64, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(most, 0);
    let mut count = 0;
    while count < most {
        match file.read_at(&mut into[count..], at + count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    into.truncate(count);
    Ok(())
}

/// Returns the kind of an ELF file (System V ABI, chapters 4 and 5), or `None` if the file's headers
/// contradict each other or the file is cut off.
fn of_elf(file: &File, head: &[u8]) -> Option<Kind> {
    const CLASS_64: u8 = 2;
    const X86_64: u64 = 62;
    const INTERPRETER: u64 = 3;
    const EXECUTABLE: u64 = 2;
    const SHARED: u64 = 3;
    if *head.get(4)? != CLASS_64 || number(head, 18, 2)? != X86_64 {
        return Some(Kind::Foreign);
    }
    if ![EXECUTABLE, SHARED].contains(&number(head, 16, 2)?) {
        return Some(Kind::Unknown);
    }
    let (table, size, count) = (
        number(head, 32, 8)?,
        number(head, 54, 2)?,
        number(head, 56, 2)?,
    );
    let mut segments = Vec::new();
    let bytes = usize::try_from(size * count).ok()?;
    read(file, table, bytes, &mut segments).ok()?;
    if segments.len() < bytes {
        return None;
    }
    let size = usize::try_from(size).ok().filter(|size| *size >= 56)?;
    for segment in segments.chunks_exact(size) {
        if number(segment, 0, 4)? == INTERPRETER {
            let (at, length) = (number(segment, 8, 8)?, number(segment, 32, 8)?);
            let mut linker = Vec::new();
            read(
                file,
                at,
                usize::try_from(length.min(4096)).ok()?,
                &mut linker,
            )
            .ok()?;
            let end = linker.iter().position(|byte| *byte == 0)?;
            return Some(Kind::Dynamic(path_of(&linker[..end])));
        }
    }
    Some(Kind::Static)
}

/// Returns the little-endian number that occupies the `size` bytes from the offset `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}

fn path_of(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Kind {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, bytes).unwrap();
        kind(&path).unwrap()
    }

    #[test]
    fn kind_of_executable_file_is_determined_by_its_first_bytes() {
        let itself = kind(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(itself, Kind::Dynamic("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(of(b"#! /bin/sh -e\n"), Kind::Script("/bin/sh".into()));
        assert_eq!(of(b"#!\n"), Kind::Unknown);
        assert_eq!(of(b""), Kind::Unknown);
        assert_eq!(of(b"echo hello\n"), Kind::Unknown);
    }

    #[test]
    fn c_library_is_determined_by_path_of_dynamic_linker() {
        let of = |linker: &str| Libc::of_linker(Path::new(linker));
        assert_eq!(of("/lib64/ld-linux-x86-64.so.2"), Some(Libc::Glibc));
        assert_eq!(of("/lib/ld-musl-x86_64.so.1"), Some(Libc::Musl));
        assert_eq!(of("/lib/ld-linux.so.2"), None);
        assert_eq!(of("/"), None);
    }

    #[test]
    fn elf_file_without_dynamic_linker_is_static_and_truncated_one_is_damaged() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[16], elf[18], elf[32], elf[54], elf[56]) = (2, 62, 64, 56, 1);
        assert_eq!(of(&elf), Kind::Static);
        for length in [6, 40, 60, 64, 100, 119] {
            assert_eq!(of(&elf[..length]), Kind::Damaged, "{length} bytes");
        }
        elf[16] = 1;
        assert_eq!(of(&elf), Kind::Unknown, "an object file");
        elf[16] = 3;
        assert_eq!(of(&elf), Kind::Static);
        // The linker's name is cut: its segment is the interpreter's, and its text is beyond the end of the file.
        (elf[64], elf[72], elf[96]) = (3, 120, 28);
        assert_eq!(of(&elf), Kind::Damaged);
        elf.extend(b"/lib64/ld-linux-x86-64.so.2\0");
        assert_eq!(
            of(&elf),
            Kind::Dynamic("/lib64/ld-linux-x86-64.so.2".into())
        );
        elf[4] = 1;
        assert_eq!(of(&elf), Kind::Foreign);
    }
}
