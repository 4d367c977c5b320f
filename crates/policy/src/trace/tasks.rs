//! The tasks of a trace, counted, and the signs that they belong to several VMs.

use std::collections::{BTreeMap, BTreeSet};

use super::Task;

/// The maximum number of tasks that are remembered.
const MAX_TASKS: usize = 1 << 12;

/// The tasks that made the accesses of a trace.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// The number of accesses of each task, by name, thread, process and VM.
    counts: BTreeMap<Key, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: Option<Vec<u8>>,
    thread: Option<u32>,
    process: Option<u32>,
    vm: Option<u64>,
}

impl Tasks {
    /// Counts an access of a task.
    pub fn add(&mut self, task: &Task<'_>) {
        // Most accesses in a row are of one task, but a lookup is cheap beside the reading of a line.
        let key = Key {
            name: task.name.map(<[u8]>::to_vec),
            thread: task.thread,
            process: task.process,
            vm: task.vm,
        };
        if self.counts.len() < MAX_TASKS || self.counts.contains_key(&key) {
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// Returns the tasks with the numbers of their accesses.
    pub fn iter(&self) -> impl Iterator<Item = (Task<'_>, u64)> {
        self.counts.iter().map(|(key, count)| (key.task(), *count))
    }

    /// If the trace shows that it is of several VMs, returns one task of each VM. The signs are
    /// tasks of several processes, of several VMs in one process, or several threads with a name
    /// that stands for one vCPU. The list is empty if the trace shows one VM, or does not tell.
    #[must_use]
    pub fn of_several_vms(&self) -> Vec<Task<'_>> {
        let keys = || self.counts.keys();
        let mut by_process = BTreeMap::new();
        // Events of gates name a VM in place of a thread.
        for key in keys().filter(|key| key.process.is_some() || key.thread.is_none()) {
            let name = key.name.as_ref().filter(|_| key.thread.is_none());
            by_process.entry((key.process, key.vm, name)).or_insert(key);
        }
        if by_process.len() > 1 {
            return by_process.into_values().map(Key::task).collect();
        }
        let mut threads: BTreeMap<_, BTreeSet<&Key>> = BTreeMap::new();
        for key in keys().filter(|key| key.is_vcpu()) {
            threads.entry(&key.name).or_default().insert(key);
        }
        let most = threads.into_values().max_by_key(BTreeSet::len);
        let most = most.filter(|keys| keys.len() > 1).unwrap_or_default();
        most.into_iter().map(Key::task).collect()
    }
}

impl Key {
    fn task(&self) -> Task<'_> {
        Task {
            name: self.name.as_deref(),
            thread: self.thread,
            process: self.process,
            vm: self.vm,
        }
    }

    /// Returns true if the name is that of one vCPU of a VM: `CPU 0/KVM` of QEMU, `fc_vcpu 0` of
    /// Firecracker, `vcpu0` of Cloud Hypervisor, `crosvm_vcpu0` of crosvm.
    fn is_vcpu(&self) -> bool {
        let name = self
            .name
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let is_of_vmm = name.ends_with(b"/kvm") || memchr::memmem::find(&name, b"vcpu").is_some();
        is_of_vmm && name.iter().any(u8::is_ascii_digit)
    }
}
