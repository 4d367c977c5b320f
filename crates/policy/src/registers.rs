//! The registers that public sources name: Intel's, AMD's, Linux's, KVM's and Hyper-V's names for
//! one MSR are aliases of one [`Register`].
//!
//! The table is generated from `data/` by `cargo run -p xtask -- registers`; `data/README.md` says
//! where each part is from and how a register gets its name. All rows lie in eight windows of
//! 0x3000 indices, so any choice of accesses to them packs into 16 ranges (S1.8).
//!
//! ```
//! use msrgate_policy::registers::{Named, by_name, search, titled, titled_range};
//!
//! let Named::One(patch_level) = by_name("MSR_AMD64_PATCH_LEVEL") else { panic!() };
//! assert_eq!(patch_level.name, "IA32_BIOS_SIGN_ID");
//! assert_eq!(patch_level.index.to_string(), "0x8b");
//!
//! // Processor families have a register of this name at different indices.
//! assert!(matches!(by_name("MSR_LASTBRANCH_TOS"), Named::Several(both) if both.len() == 2));
//!
//! let Named::None(meant) = by_name("IA32_EFFER") else { panic!() };
//! assert_eq!(meant[0], "IA32_EFER");
//! assert_eq!(search("sysenter").registers().len(), 3);
//! ```
//!
//! Two more tables are written by hand, each row with its reason: the accesses that may be forwarded
//! ([`Register::forward`]), and the reach of a filter ([`reach`], [`Register::uses`]).
//!
//! ```
//! use msrgate_policy::registers::{Named, Reach, by_name};
//!
//! let Named::One(lstar) = by_name("LSTAR") else { panic!() };
//! assert_eq!(lstar.reach(), Reach::Enforced);
//! assert_eq!(lstar.uses().next().map(|gap| gap.name), Some("syscall"));
//! assert!(lstar.forward().is_some());
//!
//! let Named::One(deadline) = by_name("IA32_TSC_DEADLINE") else { panic!() };
//! let Reach::Partly(gaps) = deadline.reach() else { panic!() };
//! assert_eq!(gaps[0].name, "tsc-deadline-fastpath");
//! ```

mod decoded;
mod features;
mod field;
#[expect(clippy::unreadable_literal, reason = "as logs write indices, for grep")]
#[rustfmt::skip]
mod fields;
mod groups;
mod lookup;
#[rustfmt::skip]
mod names;
mod reach;
#[expect(clippy::unreadable_literal, reason = "as logs write indices, for grep")]
#[rustfmt::skip]
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use msrgate_filter::MsrIndex;
use msrgate_program::Forward;

pub use decoded::Decoded;
pub use features::{Feature, features, is_offered};
pub use field::Field;
pub use groups::{Group, group, groups};
pub use lookup::{Found, Named, by_index, by_name, search, titled, titled_range};
pub(crate) use reach::exempt;
pub use reach::{Gap, GapKind, Kernel, Kernels, Reach, gaps, reach, uses, vm_gaps};

/// An MSR that a public source names.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Register {
    /// The index, which a guest puts into ECX.
    pub index: MsrIndex,
    /// The name, which no other register has: the SDM's for architectural registers (`IA32_EFER`),
    /// else Linux's, AMD's or Hyper-V's (`MSR_K7_HWCR`, `HV_X64_MSR_RESET`).
    pub name: &'static str,
    /// Further names, best known first. Other registers may share an alias.
    pub aliases: &'static [&'static str],
    /// The vendor whose processors or hypervisor have the register.
    pub vendor: Vendor,
    /// The description, in at most 90 bytes; empty if no list of registers has one.
    pub summary: &'static str,
    /// The lists of registers that name this register.
    pub sources: Sources,
}

/// Returns every register, sorted by index.
#[must_use]
pub fn all() -> &'static [Register] {
    &table::TABLE
}

impl Register {
    /// The accesses that a gate may forward to the real register, and their limits: see
    /// [`forward`](crate::forward). `None`: the gate must not forward any access.
    #[must_use]
    pub fn forward(&self) -> Option<&'static Forward> {
        msrgate_program::forward(self.index)
    }

    /// Returns the register's name, then its aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// The vendor of a register. If two vendors use the same index, the vendor is the one whose name
/// the register has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// Intel and AMD alike.
    Any,
    /// Intel.
    Intel,
    /// AMD and Hygon.
    Amd,
    /// VIA, Centaur, IDT and Zhaoxin.
    Centaur,
    /// Transmeta.
    Transmeta,
    /// KVM's paravirtual interface; no processor has the register.
    Kvm,
    /// The interface of Microsoft's hypervisor, which KVM implements, too; no processor has the
    /// register.
    HyperV,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Intel => "Intel",
            Self::Amd => "AMD",
            Self::Centaur => "Centaur",
            Self::Transmeta => "Transmeta",
            Self::Kvm => "KVM",
            Self::HyperV => "Hyper-V",
        })
    }
}

/// A list that names registers. `data/README.md` has origins and licences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// ia32-doc: the architectural MSRs of the SDM.
    Ia32Doc = 0,
    /// The constants of Linux.
    Linux = 1,
    /// EDK2's headers, which follow the SDM by processor family.
    Edk2 = 2,
    /// The lists of fields of geopm.
    Geopm = 3,
    /// Public manuals; the rows are written by hand.
    Manuals = 4,
    /// The constants of FreeBSD.
    FreeBsd = 5,
    /// The constants of illumos.
    Illumos = 6,
    /// The constants of OpenVMM.
    OpenVmm = 7,
    /// The constants of Xen.
    Xen = 8,
    /// The constants of the crate `x86`, from an old SDM.
    RustX86 = 9,
    /// The constants of VirtualBox for Hyper-V's registers.
    VirtualBox = 10,
    /// The constants of CoreFreq for the uncore of Intel's processor families.
    CoreFreq = 11,
    /// The constants of coreboot.
    Coreboot = 12,
    /// The constants of Bochs.
    Bochs = 13,
    /// The constants of HyperPlatform.
    HyperPlatform = 14,
}

impl Source {
    /// Every list of registers.
    pub const ALL: [Self; 15] = [
        Self::Ia32Doc,
        Self::Linux,
        Self::Edk2,
        Self::Geopm,
        Self::Manuals,
        Self::FreeBsd,
        Self::Illumos,
        Self::OpenVmm,
        Self::Xen,
        Self::RustX86,
        Self::VirtualBox,
        Self::CoreFreq,
        Self::Coreboot,
        Self::Bochs,
        Self::HyperPlatform,
    ];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ia32Doc => "ia32-doc",
            Self::Linux => "Linux",
            Self::Edk2 => "EDK2",
            Self::Geopm => "geopm",
            Self::Manuals => "manuals",
            Self::FreeBsd => "FreeBSD",
            Self::Illumos => "illumos",
            Self::OpenVmm => "OpenVMM",
            Self::Xen => "Xen",
            Self::RustX86 => "rust-x86",
            Self::VirtualBox => "VirtualBox",
            Self::CoreFreq => "CoreFreq",
            Self::Coreboot => "coreboot",
            Self::Bochs => "Bochs",
            Self::HyperPlatform => "HyperPlatform",
        })
    }
}

/// The lists that name a register: at least one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sources(u16);

impl Sources {
    /// Returns true if `source` names the register.
    #[must_use]
    pub const fn contain(self, source: Source) -> bool {
        self.0 & 1 << source as u16 != 0
    }

    /// Returns each list that names the register.
    pub fn iter(self) -> impl Iterator<Item = Source> {
        let all = Source::ALL.into_iter();
        all.filter(move |source| self.contain(*source))
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
