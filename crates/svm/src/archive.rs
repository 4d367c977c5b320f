//! The files that the hypervisor gets from the boot loader: one cpio archive (newc).

use core::fmt;

/// The files of the archive.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// `kernel`: a bzImage, or a multiboot kernel.
    pub kernel: &'a [u8],
    /// `initramfs`, for a bzImage. Empty if the archive has none.
    pub initramfs: &'a [u8],
    /// `cmdline`: the kernel's command line, without the white space at its end.
    pub cmdline: &'a [u8],
    /// `program`: the compiled policy that the guest obeys from its first instruction on.
    pub program: &'a [u8],
    /// `replacement`: the compiled policy with which a hypercall replaces the first.
    pub replacement: Option<&'a [u8]>,
}

/// An error of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// The bytes are no cpio archive of the kind newc, or one that is cut off before its end.
    Broken,
    /// The archive has no file with this name.
    Missing(&'static str),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str(
                "the archive is no cpio archive (newc), or it is cut off; make one with `cpio -o -H newc` and give it with -initrd",
            ),
            Self::Missing(name) => write!(f, "the archive has no file \"{name}\""),
        }
    }
}

impl core::error::Error for ArchiveError {}

const HEADER: usize = 110;

/// Finds the files in the archive.
///
/// # Errors
/// [`ArchiveError`]: the archive is broken, or has no `kernel` or no `program`.
pub fn files(archive: &[u8]) -> Result<Files<'_>, ArchiveError> {
    let mut files = Files {
        kernel: &[],
        initramfs: &[],
        cmdline: &[],
        program: &[],
        replacement: None,
    };
    let mut at = 0;
    loop {
        let (name, file, next) = entry(archive, at).ok_or(ArchiveError::Broken)?;
        match name.strip_prefix(b"./").unwrap_or(name) {
            b"TRAILER!!!" => break,
            b"kernel" => files.kernel = file,
            b"initramfs" => files.initramfs = file,
            b"cmdline" => files.cmdline = file.trim_ascii_end(),
            b"program" => files.program = file,
            b"replacement" => files.replacement = Some(file),
            _ => {}
        }
        at = next;
    }
    for (name, file) in [("kernel", files.kernel), ("program", files.program)] {
        if file.is_empty() {
            return Err(ArchiveError::Missing(name));
        }
    }
    Ok(files)
}

/// Reads the entry at `at`: its name, its content, and the position of the next entry.
fn entry(archive: &[u8], at: usize) -> Option<(&[u8], &[u8], usize)> {
    let header = archive.get(at..at.checked_add(HEADER)?)?;
    if !header.starts_with(b"070701") {
        return None;
    }
    // After the magic number come thirteen fields of eight hexadecimal digits.
    let number = |field: usize| {
        let digits = header.get(6 + field * 8..14 + field * 8)?;
        usize::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    };
    let (size, name_size) = (number(6)?, number(11)?);
    let name_end = at.checked_add(HEADER)?.checked_add(name_size)?;
    let name = archive.get(at + HEADER..name_end.checked_sub(1)?)?;
    let start = name_end.checked_next_multiple_of(4)?;
    let end = start.checked_add(size)?;
    let file = archive.get(start..end)?;
    Some((name, file, end.checked_next_multiple_of(4)?))
}

#[cfg(test)]
mod tests {
    use msrgate_emulated::archive;

    use super::*;

    #[test]
    fn files_are_found_by_name() {
        let bytes = archive(&[
            ("./kernel", b"image"),
            ("cmdline", b"console=ttyS0\n"),
            ("other", b"?"),
            ("program", b"msrg"),
        ]);
        let files = files(&bytes).unwrap();
        assert_eq!(files.kernel, b"image");
        assert_eq!(files.cmdline, b"console=ttyS0");
        assert_eq!(files.program, b"msrg");
        assert_eq!((files.initramfs, files.replacement), (&b""[..], None));
    }

    #[test]
    fn archive_cut_anywhere_is_broken() {
        let bytes = archive(&[("kernel", b"image"), ("program", b"msrg")]);
        let trailer = bytes.len() - (HEADER + 11).next_multiple_of(4);
        for len in 0..trailer + HEADER + 10 {
            assert_eq!(
                files(&bytes[..len]).unwrap_err(),
                ArchiveError::Broken,
                "{len}"
            );
        }
    }

    #[test]
    fn archive_without_program_is_refused_by_name() {
        let bytes = archive(&[("kernel", b"image")]);
        assert_eq!(files(&bytes).unwrap_err(), ArchiveError::Missing("program"));
        let bytes = archive(&[("kernel", b""), ("program", b"msrg")]);
        assert_eq!(files(&bytes).unwrap_err(), ArchiveError::Missing("kernel"));
    }

    #[test]
    fn sizes_that_overflow_are_broken() {
        let mut bytes = archive(&[("kernel", b"image")]);
        bytes[6 + 6 * 8..14 + 6 * 8].copy_from_slice(b"ffffffff");
        assert_eq!(files(&bytes).unwrap_err(), ArchiveError::Broken);
        let mut bytes = archive(&[("kernel", b"image")]);
        bytes[6 + 11 * 8..14 + 11 * 8].copy_from_slice(b"00000000");
        assert_eq!(files(&bytes).unwrap_err(), ArchiveError::Broken);
    }
}
