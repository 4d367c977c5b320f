//! What this host's KVM can do, asked of it rather than read from its version.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kvm_bindings::KVM_API_VERSION;
use msrgate_filter::Errno;

use crate::errno::CallErrno;
use crate::exit::RawReasons;
use crate::host::{HostError, Requirement};
use crate::sys::calls::{self, enable_reasons};
use crate::sys::raw::{RawFilter, set_filter_raw};

const DEVICE: &str = "/dev/kvm";
const MODULES: &str = "/sys/module";

/// A host whose KVM can filter MSRs, and how it goes about it.
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

/// What CPUID says of the processor that guests of this host get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSignature {
    /// EBX, EDX and ECX of leaf 0: the vendor's name, in this order.
    pub vendor: [u32; 3],
    /// EAX of leaf 1: family, model and stepping.
    pub signature: u32,
}

impl CpuSignature {
    /// Asks `/dev/kvm`, of which it needs no VM; `None` if KVM does not say.
    ///
    /// # Errors
    /// There is no such device, no permission, or no KVM behind it.
    pub fn of_host() -> Result<Option<Self>, HostError> {
        Ok(cpu_signature(&open(Path::new(DEVICE))?))
    }
}

/// What happens to flag bits that mean nothing (S1.9, S2.2, S9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownBits {
    /// EINVAL, as since 6.2.
    Rejected,
    /// Taken without a word, as before.
    Ignored,
}

/// The host's `kvm.ignore_msrs` (S10.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreMsrs {
    /// An access to an MSR that KVM does not know succeeds, and is never reported as UNKNOWN.
    On,
    /// It faults.
    Off,
    /// The parameter could not be read.
    NotSeen,
}

/// Which kernel module does the vendor's part of KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// `kvm_intel`: VMX.
    Intel,
    /// `kvm_amd`: SVM.
    Amd,
    /// Another one, by its name.
    Other(String),
    /// None can be seen: built in, or no sysfs.
    NotSeen,
}

impl HostCaps {
    /// Asks `/dev/kvm`, on a VM that is gone when this returns.
    ///
    /// # Errors
    /// There is no such device, no permission, no KVM behind it, or one that is too old or busy.
    pub fn probe() -> Result<Self, HostError> {
        Self::probe_at(Path::new(DEVICE))
    }

    /// Asks the KVM behind another device file.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub fn probe_at(device: &Path) -> Result<Self, HostError> {
        let kvm = open(device)?;
        Self::probe_by(&kvm, device)
    }

    /// Asks the KVM behind `/dev/kvm`, which the VMM has open as `kvm`, on a VM that is gone when this returns.
    /// Under Landlock or in a jail without the device file, this works where [`Self::probe`] cannot.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub fn probe_with(kvm: &impl AsRawFd) -> Result<Self, HostError> {
        check_version(kvm, Path::new(DEVICE))?;
        Self::probe_by(kvm, Path::new(DEVICE))
    }

    /// A host of which a VMM knows already what a gate goes by, from a probe of another process say. No file
    /// is opened and no VM is made; what else there is to know counts as not seen.
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

    /// This host with `kvm.ignore_msrs` as the VMM knows it, where the parameter could not be read.
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
            release: release(Path::new("/proc/sys/kernel/osrelease")),
            cpu: cpu_signature(kvm),
        })
    }

    /// This host, or `None` with a word about why the test is skipped.
    ///
    /// # Panics
    /// There is no usable KVM, and `MSRGATE_REQUIRE` says that there must be.
    #[cfg(test)]
    pub(crate) fn for_test() -> Option<Self> {
        use std::io::Write;
        match Self::probe() {
            Ok(host) => Some(host),
            Err(error) => {
                let required = std::env::var("MSRGATE_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|word| word == "kvm"), "{error}");
                // Not by eprintln: a passing test's prints are kept back.
                let line = format!("SKIPPED: {error}. {}\n", error.advice());
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    /// A host that nobody asked, whose KVM takes all there is: the model's.
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

    /// The device file that was asked.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The bits of [`RawReasons`] that it accepts, each tried alone.
    #[must_use]
    pub const fn reasons(&self) -> RawReasons {
        self.reasons
    }

    /// What it does with unknown flags of a filter.
    #[must_use]
    pub const fn unknown_bits(&self) -> UnknownBits {
        self.unknown_bits
    }

    /// Whether it hides unknown MSRs.
    #[must_use]
    pub const fn ignore_msrs(&self) -> IgnoreMsrs {
        self.ignore_msrs
    }

    /// The vendor's module.
    #[must_use]
    pub const fn module(&self) -> &Module {
        &self.module
    }

    /// The processor that guests get; `None` if KVM does not say.
    #[must_use]
    pub const fn cpu(&self) -> Option<CpuSignature> {
        self.cpu
    }

    /// The kernel's release, as `uname -r` prints it; empty where it cannot be read.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }
}

/// Leaves 0 and 1 of `KVM_GET_SUPPORTED_CPUID`.
fn cpu_signature(kvm: &impl AsRawFd) -> Option<CpuSignature> {
    let cpuid = calls::supported_cpuid(kvm)?;
    let leaf = |number| cpuid.as_slice().iter().find(|leaf| leaf.function == number);
    let (name, features) = (leaf(0)?, leaf(1)?);
    Some(CpuSignature {
        vendor: [name.ebx, name.edx, name.ecx],
        signature: features.eax,
    })
}

/// Opens a device file and asks the version of the interface behind it.
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

/// Makes a new VM by the device file that was opened as `device`.
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
    fn s10_1_ignore_msrs_is_read_from_sysfs() {
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
    fn the_vendor_module_is_found_among_others() {
        let root = modules(&[("kvm_aaa/x", ""), ("kvm_amd/x", ""), ("kvm/x", "")]);
        assert_eq!(module(root.path()), Module::Amd);
        let root = modules(&[("kvm_other/x", ""), ("ext4/x", "")]);
        assert_eq!(module(root.path()), Module::Other("kvm_other".to_owned()));
        let root = modules(&[("kvm/x", "")]);
        assert_eq!(module(root.path()), Module::NotSeen);
    }

    #[test]
    fn a_device_that_is_not_there_is_absent() {
        let seen = HostCaps::probe_at(Path::new("/nonexistent/kvm"));
        assert!(matches!(seen, Err(HostError::Absent { .. })), "{seen:?}");
        let seen = HostCaps::probe_at(Path::new("/dev/nul\0l"));
        assert!(matches!(seen, Err(HostError::Open { .. })), "{seen:?}");
    }

    #[test]
    fn probe_with_open_device_sees_what_probe_sees() {
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
    fn a_device_that_is_another_is_not_kvm() {
        let seen = HostCaps::probe_at(Path::new("/dev/null"));
        assert!(matches!(seen, Err(HostError::NotKvm { .. })), "{seen:?}");
    }
}
