//! Detection of what this host's KVM can do, by calls to KVM instead of by its version number.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kvm_bindings::KVM_API_VERSION;
use msrgate_filter::{Errno, ExitReason, ReasonMask, Revision};

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::host::{HostError, Requirement};
use crate::sys::calls::{self, enable_reasons};
use crate::sys::raw::{RawFilter, set_filter_raw};

const DEVICE: &str = "/dev/kvm";
const MODULES: &str = "/sys/module";
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// A host whose KVM can filter MSRs, and the properties of that KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCaps {
    device: PathBuf,
    reasons: RawReasons,
    unknown_bits: UnknownBits,
    ignore_msrs: IgnoreMsrs,
    module: Module,
    release: String,
    cpu: Option<CpuSignature>,
}

/// The identification of the processor that guests of this host get, from CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSignature {
    /// The name of the processor's vendor: EBX, EDX and ECX of CPUID leaf 0, in this order.
    pub vendor: [u32; 3],
    /// The processor's family, model and stepping: EAX of CPUID leaf 1.
    pub signature: u32,
}

impl CpuSignature {
    /// Asks `/dev/kvm` for the processor that guests get, without creating a VM. The result is `None` if KVM
    /// does not return leaves 0 and 1.
    ///
    /// # Errors
    /// Returns an error if the device does not exist, if this process may not open it, or if no KVM is
    /// behind it.
    pub fn of_host() -> Result<Option<Self>, HostError> {
        Ok(cpu_signature(&open(Path::new(DEVICE))?))
    }
}

/// The kernel's reaction to undefined flag bits of a filter (S1.9, S2.2, S9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownBits {
    /// The kernel returns EINVAL: Linux 6.2 and later.
    Rejected,
    /// The kernel ignores the bits silently: Linux before 6.2.
    Ignored,
}

/// The value of the host's module parameter `kvm.ignore_msrs` (S10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreMsrs {
    /// On: an access to an MSR that KVM does not know succeeds, and never exits with the reason UNKNOWN.
    On,
    /// Off: an access to an MSR that KVM does not know fails, with an exit or a #GP.
    Off,
    /// Unknown: the probe could not read the parameter.
    NotSeen,
}

/// The kernel module with the vendor-specific part of KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// The module `kvm_intel`, for VMX.
    Intel,
    /// The module `kvm_amd`, for SVM.
    Amd,
    /// Another module whose name begins with `kvm_`.
    Other(String),
    /// No module was found: KVM is built into the kernel, or sysfs is not mounted.
    NotSeen,
}

impl HostCaps {
    /// Probes the KVM behind `/dev/kvm`. The probe creates a VM and destroys it before it returns.
    ///
    /// # Errors
    /// Returns an error if the device does not exist or may not be opened, if no KVM is behind it, or if
    /// that KVM is too old or busy.
    pub fn probe() -> Result<Self, HostError> {
        Self::probe_at(Path::new(DEVICE))
    }

    /// Probes the KVM behind another device file, as [`Self::probe`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Self::probe`].
    pub fn probe_at(device: &Path) -> Result<Self, HostError> {
        let kvm = open(device)?;
        Self::probe_by(&kvm, device)
    }

    /// Probes the KVM behind `/dev/kvm` without creating a VM, because creating and destroying a VM
    /// takes milliseconds. The result assumes all exit reasons that came with the capability; if this KVM
    /// accepts fewer, the installation of a policy in a VM fails. The result also assumes that the kernel
    /// ignores undefined flag bits.
    ///
    /// # Errors
    /// Returns the errors of [`Self::probe`], except those of making a VM.
    pub fn probe_without_vm() -> Result<Self, HostError> {
        let kvm = open(Path::new(DEVICE))?;
        for needed in Requirement::ALL {
            needed.require(|number| calls::check_extension(&kvm, number))?;
        }
        let reasons = ReasonMask::of(Revision::Mainline, &ExitReason::ALL);
        Ok(Self {
            module: module(Path::new(MODULES)),
            release: release(Path::new(RELEASE)),
            cpu: cpu_signature(&kvm),
            ..Self::known(
                RawReasons::new(reasons.bits()),
                ignore_msrs(Path::new(MODULES)),
            )
        })
    }

    /// Probes the KVM whose device file the VMM has open as `kvm`, as [`Self::probe`] does. This works under
    /// Landlock or in a jail without the device file, where [`Self::probe`] fails.
    ///
    /// # Errors
    /// Returns the errors of [`Self::probe`], except those of opening the device file.
    pub fn probe_with(kvm: &impl AsRawFd) -> Result<Self, HostError> {
        check_version(kvm, Path::new(DEVICE))?;
        Self::probe_by(kvm, Path::new(DEVICE))
    }

    /// Describes a host from facts that the VMM knows already, for example from a probe in another process.
    /// The call opens no file and creates no VM. All other properties of the host count as unknown.
    #[must_use]
    pub fn known(reasons: RawReasons, ignore_msrs: IgnoreMsrs) -> Self {
        Self {
            device: DEVICE.into(),
            reasons,
            unknown_bits: UnknownBits::Ignored,
            ignore_msrs,
            module: Module::NotSeen,
            release: String::new(),
            cpu: None,
        }
    }

    /// Returns the properties of this host with another value of `kvm.ignore_msrs`. This is for a VMM that
    /// knows the parameter on a host where the probe could not read it.
    #[must_use]
    pub fn with_ignore_msrs(self, ignore_msrs: IgnoreMsrs) -> Self {
        Self {
            ignore_msrs,
            ..self
        }
    }

    fn probe_by(kvm: &impl AsRawFd, device: &Path) -> Result<Self, HostError> {
        for needed in Requirement::ALL {
            needed.require(|number| calls::check_extension(kvm, number))?;
        }
        let vm = create_vm(kvm, device)?;
        for needed in Requirement::ALL {
            needed.require(|number| calls::check_extension(&vm, number))?;
        }
        Ok(Self {
            device: device.to_owned(),
            reasons: accepted_reasons(&vm),
            unknown_bits: unknown_bits(&vm),
            ignore_msrs: ignore_msrs(Path::new(MODULES)),
            module: module(Path::new(MODULES)),
            release: release(Path::new(RELEASE)),
            cpu: cpu_signature(kvm),
        })
    }

    /// Probes this host for a test; returns `None` and prints why the test is skipped if there is no
    /// usable KVM.
    ///
    /// # Panics
    /// Panics if there is no usable KVM and `MSRGATE_REQUIRE` contains `kvm`.
    #[cfg(test)]
    pub(crate) fn for_test() -> Option<Self> {
        use std::io::Write;
        match Self::probe() {
            Ok(host) => Some(host),
            Err(error) => {
                let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|word| word == "kvm"), "{error}");
                // This does not use `eprintln`, because the test harness hides its output if the test
                // passes.
                let line = format!("SKIPPED: {error}. {}\n", error.advice());
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    /// Describes a host that supports everything, for tests on the model. The function makes no call to KVM.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn on_paper() -> Self {
        Self {
            device: DEVICE.into(),
            reasons: RawReasons::new(7),
            unknown_bits: UnknownBits::Rejected,
            ignore_msrs: IgnoreMsrs::Off,
            module: Module::NotSeen,
            release: String::new(),
            cpu: None,
        }
    }

    /// The path of the device file that was probed.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The exit reasons that this KVM accepts in a mask; the probe has tried each bit alone.
    #[must_use]
    pub const fn reasons(&self) -> RawReasons {
        self.reasons
    }

    /// The kernel's reaction to undefined flag bits of a filter.
    #[must_use]
    pub const fn unknown_bits(&self) -> UnknownBits {
        self.unknown_bits
    }

    /// The value of the host's module parameter `kvm.ignore_msrs`.
    #[must_use]
    pub const fn ignore_msrs(&self) -> IgnoreMsrs {
        self.ignore_msrs
    }

    /// The kernel module with the vendor-specific part of KVM.
    #[must_use]
    pub const fn module(&self) -> &Module {
        &self.module
    }

    /// The identification of the processor that guests get; `None` if KVM does not return leaves 0 and 1
    /// of CPUID.
    #[must_use]
    pub const fn cpu(&self) -> Option<CpuSignature> {
        self.cpu
    }

    /// The kernel's release, as `uname -r` prints it; empty if it could not be read.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }
}

/// Reads CPUID leaves 0 and 1 from `KVM_GET_SUPPORTED_CPUID`.
fn cpu_signature(kvm: &impl AsRawFd) -> Option<CpuSignature> {
    let cpuid = calls::supported_cpuid(kvm)?;
    let leaf = |number| cpuid.as_slice().iter().find(|leaf| leaf.function == number);
    let (name, features) = (leaf(0)?, leaf(1)?);
    Some(CpuSignature {
        vendor: [name.ebx, name.edx, name.ecx],
        signature: features.eax,
    })
}

/// Opens a device file and checks that KVM's API behind it has the version 12.
pub(crate) fn open(device: &Path) -> Result<OwnedFd, HostError> {
    let kvm = OpenOptions::new().read(true).write(true).open(device);
    let kvm = OwnedFd::from(kvm.map_err(|error| HostError::from_open(device, &error))?);
    check_version(&kvm, device)?;
    Ok(kvm)
}

fn check_version(kvm: &impl AsRawFd, device: &Path) -> Result<(), HostError> {
    match calls::api_version(kvm) {
        version if version == KVM_API_VERSION.cast_signed() => Ok(()),
        -1 => Err(HostError::NotKvm {
            device: device.to_owned(),
        }),
        version => Err(HostError::ApiVersion { version }),
    }
}

/// Creates a VM through `kvm`, an open device file. `device` is the path of that file, for error messages.
pub(crate) fn create_vm(kvm: &impl AsRawFd, device: &Path) -> Result<OwnedFd, HostError> {
    calls::create_vm(kvm).map_err(|errno| HostError::from_create(device, errno))
}

fn accepted_reasons(vm: &OwnedFd) -> RawReasons {
    (0..u64::BITS)
        .map(|bit| RawReasons::new(1 << bit))
        .filter(|&mask| enable_reasons(vm, mask).is_ok())
        .fold(RawReasons::NONE, RawReasons::union)
}

fn unknown_bits(vm: &OwnedFd) -> UnknownBits {
    let request = RawFilter {
        flags: 1 << 31,
        ..RawFilter::default()
    };
    match set_filter_raw(vm, &request) {
        Err(CallErrno::Known(Errno::Einval)) => UnknownBits::Rejected,
        _ => UnknownBits::Ignored,
    }
}

fn ignore_msrs(modules: &Path) -> IgnoreMsrs {
    match fs::read_to_string(modules.join("kvm/parameters/ignore_msrs")).as_deref() {
        Ok(text) if text.starts_with(['Y', '1']) => IgnoreMsrs::On,
        Ok(text) if text.starts_with(['N', '0']) => IgnoreMsrs::Off,
        _ => IgnoreMsrs::NotSeen,
    }
}

fn module(modules: &Path) -> Module {
    let Ok(entries) = fs::read_dir(modules) else {
        return Module::NotSeen;
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    names.sort_unstable();
    match names.iter().find(|name| VENDORS.contains(&name.as_str())) {
        Some(name) if name == "kvm_intel" => Module::Intel,
        Some(_) => Module::Amd,
        None => names
            .into_iter()
            .next()
            .map_or(Module::NotSeen, Module::Other),
    }
}

const VENDORS: [&str; 2] = ["kvm_intel", "kvm_amd"];

fn release(file: &Path) -> String {
    fs::read_to_string(file).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        root
    }

    #[test]
    fn s10_1_probe_reads_ignore_msrs_from_sysfs() {
        for (text, wanted) in [
            ("Y\n", IgnoreMsrs::On),
            ("N\n", IgnoreMsrs::Off),
            ("", IgnoreMsrs::NotSeen),
        ] {
            let root = modules(&[("kvm/parameters/ignore_msrs", text)]);
            assert_eq!(ignore_msrs(root.path()), wanted);
        }
        assert_eq!(ignore_msrs(Path::new("/nonexistent")), IgnoreMsrs::NotSeen);
    }

    #[test]
    fn probe_finds_vendor_module_among_other_modules() {
        let root = modules(&[("kvm_aaa/x", ""), ("kvm_amd/x", ""), ("kvm/x", "")]);
        assert_eq!(module(root.path()), Module::Amd);
        let root = modules(&[("kvm_other/x", ""), ("ext4/x", "")]);
        assert_eq!(module(root.path()), Module::Other("kvm_other".to_owned()));
        let root = modules(&[("kvm/x", "")]);
        assert_eq!(module(root.path()), Module::NotSeen);
    }

    #[test]
    fn probe_of_missing_device_returns_absent_error() {
        let seen = HostCaps::probe_at(Path::new("/nonexistent/kvm"));
        assert!(matches!(seen, Err(HostError::Absent { .. })), "{seen:?}");
        let seen = HostCaps::probe_at(Path::new("/dev/nul\0l"));
        assert!(matches!(seen, Err(HostError::Open { .. })), "{seen:?}");
    }

    #[test]
    fn probe_with_open_device_returns_same_host_as_probe() {
        let Some(host) = HostCaps::for_test() else {
            return;
        };
        let kvm = open(Path::new(DEVICE)).unwrap();
        assert_eq!(HostCaps::probe_with(&kvm), Ok(host));
        let other = fs::File::open("/dev/null").unwrap();
        let seen = HostCaps::probe_with(&other);
        assert!(matches!(seen, Err(HostError::NotKvm { .. })), "{seen:?}");
    }

    #[test]
    fn probe_without_vm_returns_same_exit_reasons_and_ignore_msrs_as_probe() {
        let Some(host) = HostCaps::for_test() else {
            return;
        };
        let seen = HostCaps::probe_without_vm().unwrap();
        assert_eq!(
            (seen.reasons(), seen.ignore_msrs(), seen.module()),
            (host.reasons(), host.ignore_msrs(), host.module())
        );
    }

    #[test]
    fn probe_of_other_device_returns_not_kvm_error() {
        let seen = HostCaps::probe_at(Path::new("/dev/null"));
        assert!(matches!(seen, Err(HostError::NotKvm { .. })), "{seen:?}");
    }
}
