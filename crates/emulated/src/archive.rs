//! The archive in which the hypervisor gets its files.

/// Makes a cpio archive (newc) of these files, each with its name.
#[must_use]
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, file) in files.iter().chain(&[("TRAILER!!!", &[][..])]) {
        let (size, name_size) = (file.len(), name.len() + 1);
        let z = "00000000";
        let header =
            format!("070701{z}{z}{z}{z}{z}{z}{size:08x}{z}{z}{z}{z}{name_size:08x}{z}{name}\0");
        bytes.extend(header.bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(file);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
