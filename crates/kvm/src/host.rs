//! The reasons why this host's KVM cannot filter MSRs, with advice for the owner of the host.

use std::error::Error;
use std::ffi::c_ulong;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use msrgate_filter::{Capability, Revision};
use msrgate_program::{one_line, shown_name};

use crate::errno::CallErrno;

/// A capability of KVM that this project needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// `KVM_CAP_X86_USER_SPACE_MSR`: refused accesses can exit to user space (S1.1).
    UserSpaceMsr,
    /// `KVM_CAP_X86_MSR_FILTER`: a VM can have an MSR filter (S1.2).
    MsrFilter,
}

impl Requirement {
    /// Both capabilities that this project needs.
    pub const ALL: [Self; 2] = [Self::UserSpaceMsr, Self::MsrFilter];

    /// The number `KVM_CAP_*` that this capability has in mainline Linux.
    #[must_use]
    pub const fn capability(self) -> Capability {
        match self {
            Self::UserSpaceMsr => Capability::user_space_msr(Revision::Mainline),
            Self::MsrFilter => Capability::msr_filter(Revision::Mainline),
        }
    }

    /// The capability's name in `linux/kvm.h`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserSpaceMsr => "KVM_CAP_X86_USER_SPACE_MSR",
            Self::MsrFilter => "KVM_CAP_X86_MSR_FILTER",
        }
    }

    /// The first kernel version that has the capability (S9).
    #[must_use]
    pub const fn since(self) -> &'static str {
        match self {
            Self::UserSpaceMsr | Self::MsrFilter => "5.10",
        }
    }

    /// Returns an error unless `check_extension` reports that the capability is supported.
    pub(crate) fn require(
        self,
        check_extension: impl FnOnce(c_ulong) -> i32,
    ) -> Result<(), HostError> {
        if check_extension(self.capability().get().into()) > 0 {
            Ok(())
        } else {
            Err(HostError::TooOld { missing: self })
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.capability().get())
    }
}

/// The reason why there is no usable KVM; [`Self::advice`] says what the host's owner can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// The device file of KVM, such as `/dev/kvm`, does not exist.
    Absent {
        /// The path that was opened as the device file.
        device: PathBuf,
    },
    /// The device file exists, but the kernel has no driver for it (ENODEV or ENXIO).
    NoDriver {
        /// The path of the device file.
        device: PathBuf,
    },
    /// This process has no permission to open the device file.
    NotPermitted {
        /// The path of the device file.
        device: PathBuf,
    },
    /// The file that was opened as the device file is not KVM's.
    NotKvm {
        /// The path of that file.
        device: PathBuf,
    },
    /// `KVM_GET_API_VERSION` did not return 12, which every kernel since 2007 returns.
    ApiVersion {
        /// The version that the kernel returned.
        version: i32,
    },
    /// This KVM lacks a capability that msrgate needs: the kernel is too old.
    TooOld {
        /// The first capability that was found missing.
        missing: Requirement,
    },
    /// Another hypervisor uses the CPU's virtualisation extensions (EBUSY).
    Busy {
        /// The path of the device file.
        device: PathBuf,
    },
    /// The device file could not be opened, for a reason that no other variant names.
    Open {
        /// The path of the device file.
        device: PathBuf,
        /// The operating system's message for the failed open.
        reason: String,
    },
    /// KVM refused to create a VM: `KVM_CREATE_VM` failed.
    CreateVm {
        /// The error number of `KVM_CREATE_VM`.
        errno: CallErrno,
    },
    /// KVM did not list the CPUID leaves or the MSRs that it supports for guests: the call failed.
    Lists {
        /// The error number of the call that failed.
        errno: CallErrno,
    },
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { device } => write!(f, "there is no {}", name(device)),
            Self::NoDriver { device } => {
                write!(f, "{} exists, but no driver serves it", name(device))
            }
            Self::NotPermitted { device } => {
                write!(f, "no permission to open {}", name(device))
            }
            Self::NotKvm { device } => write!(f, "{} is not a KVM device", name(device)),
            Self::ApiVersion { version } => {
                write!(
                    f,
                    "KVM reports the API version {version}, but msrgate needs 12"
                )
            }
            Self::TooOld { missing } => write!(
                f,
                "this KVM lacks {missing}, which came with Linux {}",
                missing.since()
            ),
            Self::Busy { device } => write!(f, "{} is busy", name(device)),
            Self::Open { device, reason } => {
                write!(f, "cannot open {}: {}", name(device), one_line(reason))
            }
            Self::CreateVm { errno } => write!(f, "KVM cannot create a VM: {errno}"),
            Self::Lists { errno } => {
                write!(f, "KVM does not list its CPUID leaves and MSRs: {errno}")
            }
        }
    }
}

/// Returns the path in a form that fits into one line of a message.
fn name(path: &Path) -> String {
    shown_name(&path.display().to_string())
}

impl Error for HostError {}

impl HostError {
    /// Returns advice for the owner of the host against this error, in whole sentences.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Absent { .. } => {
                "Load the module (modprobe kvm_intel or kvm_amd); if that fails, switch \
                 virtualisation on in the firmware, or nested virtualisation in the hypervisor \
                 below. In a container, pass the device (--device /dev/kvm)."
            }
            Self::NoDriver { .. } => {
                "Load the module on the host (modprobe kvm_intel or kvm_amd). In a container, the \
                 device file alone is not enough."
            }
            Self::NotPermitted { .. } => {
                "Join the group that owns the device file (usermod -aG kvm USER, then log in again), or ask for \
                 an ACL (setfacl -m u:USER:rw /dev/kvm). In a container, its device rules must \
                 allow it too."
            }
            Self::NotKvm { .. } => "Name the device file of KVM, usually /dev/kvm.",
            Self::ApiVersion { .. } | Self::TooOld { .. } => {
                "Run a newer kernel: MSR filters came with Linux 5.10, and 6.2 and later check \
                 their arguments fully."
            }
            Self::Busy { .. } => {
                "Stop the other hypervisor that uses the CPU (VirtualBox, VMware), or wait until it ends."
            }
            Self::Open { .. } | Self::CreateVm { .. } | Self::Lists { .. } => {
                "The kernel log (dmesg) may say more; limits on open files, memory or a seccomp \
                 filter can be the cause."
            }
        }
    }

    pub(crate) fn from_open(device: &Path, error: &io::Error) -> Self {
        let device = device.to_owned();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Absent { device },
            Some(libc::ENODEV | libc::ENXIO) => Self::NoDriver { device },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { device },
            Some(libc::EBUSY) => Self::Busy { device },
            _ => Self::Open {
                device,
                reason: error.to_string(),
            },
        }
    }

    pub(crate) fn from_create(device: &Path, errno: CallErrno) -> Self {
        let device = device.to_owned();
        match errno.number().get() {
            libc::EBUSY => Self::Busy { device },
            libc::ENODEV => Self::NoDriver { device },
            // EPERM and EACCES of `KVM_CREATE_VM` also become this error: the process was able to open
            // the device file, so advice about permissions to open that file would not help.
            _ => Self::CreateVm { errno },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::RawErrno;

    #[test]
    fn errnos_of_open_and_create_vm_map_to_distinct_host_errors() {
        let device = Path::new("/dev/kvm");
        let open = |number| HostError::from_open(device, &io::Error::from_raw_os_error(number));
        assert!(matches!(open(libc::ENOENT), HostError::Absent { .. }));
        assert!(matches!(open(libc::ENXIO), HostError::NoDriver { .. }));
        assert!(matches!(open(libc::EACCES), HostError::NotPermitted { .. }));
        assert!(matches!(open(libc::EBUSY), HostError::Busy { .. }));
        assert!(matches!(open(libc::EMFILE), HostError::Open { .. }));
        let create = |number| HostError::from_create(device, RawErrno::new(number).into());
        assert!(matches!(create(libc::EBUSY), HostError::Busy { .. }));
        assert!(matches!(create(libc::ENOMEM), HostError::CreateVm { .. }));
        // A seccomp filter, for example, can make `KVM_CREATE_VM` fail with EPERM. Advice to join the
        // group kvm would not help then.
        let refused = create(libc::EPERM);
        assert!(matches!(refused, HostError::CreateVm { .. }));
        assert!(refused.advice().contains("seccomp"));
    }

    #[test]
    fn missing_capability_error_names_capability_and_first_kernel() {
        let error = Requirement::MsrFilter.require(|_| 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this KVM lacks KVM_CAP_X86_MSR_FILTER (189), which came with Linux 5.10"
        );
        assert!(Requirement::MsrFilter.require(|_| 1).is_ok());
    }
}
