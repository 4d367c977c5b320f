//! Names of registers in the code of other projects: `cargo run -p xtask -- names FOLDER` takes them from
//! public files into `crates/policy/data`.
//!
//! FOLDER has one folder for each code base, with copies of the files that [`ALL`] lists. Only the names and
//! the numbers are taken; they are facts. If a code base has no folder in FOLDER, its list stays unchanged.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, ensure};

use crate::generated::write;

/// A project whose code names registers.
pub(crate) struct CodeBase {
    /// The name of the folder with copies of the project's files. The name is also a part of the
    /// file name of the project's list of registers.
    pub(crate) folder: &'static str,
    /// The project's name, and the files of the project that the names of registers are taken from.
    pub(crate) origin: &'static str,
    /// The licence of the files that the names are taken from.
    pub(crate) licence: &'static str,
    /// The prefixes of those constants of the project that name registers, such as `MSR_`.
    prefixes: &'static [&'static str],
}

/// Every code base, in the order of the variants of `Source`.
pub(crate) const ALL: [CodeBase; 10] = [
    CodeBase {
        folder: "freebsd",
        origin: "FreeBSD, sys/x86/include/specialreg.h",
        licence: "BSD-3-Clause",
        prefixes: &["MSR_"],
    },
    CodeBase {
        folder: "illumos",
        origin: "illumos-gate, usr/src/uts/intel/sys/{controlregs,x86_archext}.h",
        licence: "CDDL-1.0",
        prefixes: &["MSR_"],
    },
    CodeBase {
        folder: "openvmm",
        origin: "microsoft/openvmm, vm/x86/x86defs/src/lib.rs and vm/hv1/hvdef/src/lib.rs",
        licence: "MIT",
        prefixes: &["X86X_", "X64_MSR_", "HV_X64_MSR_"],
    },
    CodeBase {
        folder: "xen",
        origin: "Xen 4.17, xen/arch/x86/include/asm/msr-index.h",
        licence: "GPL-2.0-only",
        prefixes: &["MSR_"],
    },
    CodeBase {
        folder: "rust-x86",
        origin: "the crate x86 0.52, src/msr.rs",
        licence: "MIT",
        prefixes: &[""],
    },
    CodeBase {
        folder: "virtualbox",
        origin: "VirtualBox 7, src/VBox/VMM/include/GIMHvInternal.h",
        licence: "GPL-3.0-only",
        prefixes: &["MSR_GIM_HV_"],
    },
    // The names without a family are Linux's, or mean other registers there.
    CodeBase {
        folder: "corefreq",
        origin: "CoreFreq, intel_reg.h",
        licence: "GPL-2.0-only",
        prefixes: &[
            "MSR_NHM_", "MSR_SNB_", "MSR_IVB_", "MSR_HSW_", "MSR_SKL_", "MSR_ADL_",
        ],
    },
    CodeBase {
        folder: "coreboot",
        origin: "coreboot, src/include/cpu/{amd,intel}/msr.h, src/soc/intel/common/block/include/intelblocks/msr.h and src/soc/intel/{broadwell,skylake}/include/soc/msr.h",
        licence: "GPL-2.0-only",
        prefixes: &[""],
    },
    CodeBase {
        folder: "bochs",
        origin: "Bochs, cpu/msr.h and an older cpu/cpu.h",
        licence: "LGPL-2.0-or-later",
        prefixes: &["BX_MSR_", "BX_SVM_"],
    },
    CodeBase {
        folder: "hyperplatform",
        origin: "tandasat/HyperPlatform, HyperPlatform/ia32_type.h",
        licence: "MIT",
        prefixes: &["kIa32"],
    },
];

impl CodeBase {
    /// Returns the path of the file in the folder `data` that has this code base's list of names.
    pub(crate) fn list(&self, data: &Path) -> PathBuf {
        data.join(format!("msr-names-{}.tsv", self.folder))
    }
}

/// Writes the list of names of each code base that has a folder in `from`, and prints how many
/// names the list has.
pub(crate) fn take(from: &Path, data: &Path) -> anyhow::Result<()> {
    let mut taken = 0;
    for base in &ALL {
        let folder = from.join(base.folder);
        let files = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("reading {}", folder.display()))?,
        };
        let mut names = BTreeSet::new();
        for file in files {
            let path = file?.path();
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let found = text.lines().filter_map(|line| constant(line, base));
            names.extend(found.map(|(index, name)| (index, name.to_owned())));
        }
        ensure!(!names.is_empty(), "{} names no register", folder.display());
        println!("{}: {} names", base.folder, names.len());
        write(vec![(base.list(data), list(base, &names))])?;
        taken += 1;
    }
    ensure!(taken > 0, "{} has no folder of a code base", from.display());
    Ok(())
}

/// Returns the text of a list: a heading with origin and licence, then `index<TAB>name`.
fn list(base: &CodeBase, names: &BTreeSet<(u32, String)>) -> String {
    let mut out = format!(
        "# MSR names of {} ({}; names and numbers only): index, name\n",
        base.origin, base.licence
    );
    for (index, name) in names {
        let _ = writeln!(out, "{index:#010x}\t{name}");
    }
    out
}

/// Returns the constant that a line of C, C++ or Rust defines, if its value is a plain number of 32 bits. Xen
/// and coreboot write two blanks before the name of a bit field; such a line defines no register.
fn constant<'l>(line: &'l str, base: &CodeBase) -> Option<(u32, &'l str)> {
    let (name, value, rest) = definition(line)?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = base.prefixes.iter().any(|prefix| name.starts_with(prefix));
    if name.is_empty() || !fits || !name.bytes().all(is_name) {
        return None;
    }
    if !(rest.is_empty() || rest.starts_with("/*") || rest.starts_with("//")) {
        return None;
    }
    // VirtualBox writes `UINT32_C(0x10)`.
    let plain = value
        .strip_prefix("UINT32_C(")
        .and_then(|value| value.strip_suffix(')'));
    let value = plain.unwrap_or(value);
    let value = value.replace('_', "").to_ascii_lowercase();
    let index = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    Some((index.ok()?, name))
}

/// Returns the name, the value and the rest of a line that is a `#define`, a `pub const` or an enumerator,
/// `NAME = VALUE,`.
fn definition(line: &str) -> Option<(&str, &str, &str)> {
    if let Some(rest) = line.strip_prefix("#define") {
        let rest = rest.strip_prefix([' ', '\t'])?;
        let (name, value) = rest.split_once([' ', '\t'])?;
        let value = value.trim();
        let (value, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
        return Some((name, value, rest.trim()));
    }
    if let Some(rest) = line.trim().strip_prefix("pub const ") {
        let (name, value) = rest.strip_suffix(';')?.split_once(": u32 = ")?;
        return Some((name, value.trim(), ""));
    }
    let (name, rest) = line.trim().split_once('=')?;
    let (value, rest) = rest.split_once(',')?;
    Some((name.trim(), value.trim(), rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_is_read_from_definitions_of_registers_only() {
        let [
            freebsd,
            _,
            _,
            xen,
            rust,
            virtualbox,
            corefreq,
            coreboot,
            bochs,
            hyper,
        ] = &ALL;
        for (base, line, wanted) in [
            (
                freebsd,
                "#define\tMSR_TSC\t\t0x010",
                Some((0x10, "MSR_TSC")),
            ),
            (
                freebsd,
                "#define\tMSR_AMD_CPUID07\t0xc0011002\t/* CPUID 07 */",
                Some((0xc001_1002, "MSR_AMD_CPUID07")),
            ),
            (
                freebsd,
                "#define\tMSR_MC_CTL(x)\t(MSR_MC0_CTL + (x) * 4)",
                None,
            ),
            (freebsd, "#define\tEFER_SCE 0x1", None),
            (
                xen,
                "#define MSR_P5_MC_ADDR   0",
                Some((0, "MSR_P5_MC_ADDR")),
            ),
            (xen, "#define  MSR_CTC_THREAD_MASK   0x0000ffff", None),
            (xen, "#define MSR_IA32_MCx_CTL(x) 0x400", None),
            (
                xen,
                "#define MSR_IA32_CR_PAT_RESET 0x0007040600070406ULL",
                None,
            ),
            (xen, "#define MSR_X 0x10 + 1", None),
            (
                rust,
                "pub const IA32_EFER: u32 = 0xc000_0080;",
                Some((0xc000_0080, "IA32_EFER")),
            ),
            (rust, "pub const DEFAULT: u64 = 0x7;", None),
            (
                virtualbox,
                "#define MSR_GIM_HV_SINT10             UINT32_C(0x4000009A)",
                Some((0x4000_009a, "MSR_GIM_HV_SINT10")),
            ),
            (
                virtualbox,
                "#define MSR_GIM_HV_STIMER_SINTX       UINT64_C(0xf0000)",
                None,
            ),
            (
                virtualbox,
                "#define MSR_GIM_HV_RANGE0_LAST        MSR_GIM_HV_RESET",
                None,
            ),
            (
                corefreq,
                "#define MSR_SKL_UNCORE_PERF_GLOBAL_CTRL \t0x00000e01",
                Some((0xe01, "MSR_SKL_UNCORE_PERF_GLOBAL_CTRL")),
            ),
            (
                corefreq,
                "\t#define MSR_NHM_TURBO_RATIO_LIMIT\t0x000001ad",
                None,
            ),
            (corefreq, "#define MSR_FLEX_RATIO\t0x00000194", None),
            (
                coreboot,
                "#define PS_LIM_REG\t\t\t0xC0010061",
                Some((0xc001_0061, "PS_LIM_REG")),
            ),
            (coreboot, "#define  PS_MAX_VAL_SHFT\t\t\t4", None),
            (
                bochs,
                "  BX_MSR_PMC0             = 0x0c1,  /* PERFCTR0 */",
                Some((0xc1, "BX_MSR_PMC0")),
            ),
            (bochs, "  BX_MEMTYPE_UC = 0,", None),
            (
                hyper,
                "  kIa32VmxVmcsEnum = 0x48A,",
                Some((0x48a, "kIa32VmxVmcsEnum")),
            ),
        ] {
            assert_eq!(constant(line, base), wanted, "{line}");
        }
    }
}
