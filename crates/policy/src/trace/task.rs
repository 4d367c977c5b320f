//! The task that made an access: the thread of a vCPU, as the tools name it at the start of a line.

use std::fmt;

use memchr::memmem;

use super::mail;
use super::text::decimal;

/// The task that a line of a trace names. Tools differ in the parts of a task that they print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Task<'t> {
    /// The name of the thread, such as `CPU 0/KVM`, or of the VM, in events of gates: any bytes.
    /// `None`: the line has no name.
    pub name: Option<&'t [u8]>,
    /// The number of the thread.
    pub thread: Option<u32>,
    /// The number of the process.
    pub process: Option<u32>,
    /// The number of the VM in its process, in events of `msrgate exec`.
    pub vm: Option<u64>,
}

impl Task<'_> {
    /// Returns true if `wanted` is the name of the task, the number of its thread or process, or the
    /// task as it is displayed: `NAME-NUMBER`, as in tracefs, or `NUMBER VM NUMBER`.
    #[must_use]
    pub fn is(&self, wanted: &[u8]) -> bool {
        let number = match decimal(wanted) {
            Some((number, b"")) => u32::try_from(number).ok(),
            _ => None,
        };
        self.name == Some(wanted)
            || number.is_some() && (self.thread == number || self.process == number)
            || self.to_string().as_bytes() == wanted
    }
}

impl fmt::Display for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.map(String::from_utf8_lossy);
        match (name, self.thread.or(self.process)) {
            (Some(name), Some(number)) => write!(f, "{name}-{number}")?,
            (Some(name), None) => f.write_str(&name)?,
            (None, Some(number)) => write!(f, "{number}")?,
            (None, None) => f.write_str("?")?,
        }
        match self.vm {
            Some(vm) => write!(f, " VM {vm}"),
            None => Ok(()),
        }
    }
}

/// The keys of an event that name its task.
#[derive(serde::Deserialize)]
struct Keys<'l> {
    pid: Option<u32>,
    #[serde(borrow)]
    vm: Option<Vm<'l>>,
}

/// The VM of an event: its number in its process, or the name that its VMM gave it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Vm<'l> {
    Number(u64),
    Name(&'l str),
}

/// Returns the task that a line of an access names.
pub(super) fn of_line(line: &[u8]) -> Option<Task<'_>> {
    let line = mail::unquoted(line.trim_ascii());
    if line.starts_with(b"{") {
        let keys: Keys<'_> = serde_json::from_slice(line).ok()?;
        let (name, vm) = match keys.vm {
            Some(Vm::Name(name)) => (Some(name.as_bytes()), None),
            Some(Vm::Number(vm)) => (None, Some(vm)),
            None => (None, None),
        };
        let task = Task {
            name,
            thread: None,
            process: keys.pid,
            vm,
        };
        return (task.process.is_some() || name.is_some() || vm.is_some()).then_some(task);
    }
    let event =
        memmem::find(line, b"kvm_msr").or_else(|| memmem::find(line, b"kvm_userspace_exit"))?;
    let head = &line[..event];
    match processor(head) {
        Some(end) => before_processor(head[..end].trim_ascii()),
        None => of_perf_trace(head),
    }
}

/// Returns the place of `[007]`, the processor.
fn processor(head: &[u8]) -> Option<usize> {
    let mut places = memchr::memchr_iter(b'[', head);
    places.find(|at| matches!(decimal(&head[at + 1..]), Some((_, rest)) if rest.starts_with(b"]")))
}

/// Parses `CPU 0/KVM-16856`, `CPU 0/KVM-16856 (16850)`, `CPU 0/KVM 16856` or `CPU 0/KVM 16850/16856`.
fn before_processor(head: &[u8]) -> Option<Task<'_>> {
    let (head, process) = match head.strip_suffix(b")") {
        Some(open) => {
            let at = open.iter().rposition(|byte| *byte == b'(')?;
            (
                head[..at].trim_ascii(),
                last_of(open[at + 1..].trim_ascii()),
            )
        }
        None => (head, None),
    };
    let at = head.iter().rposition(|byte| !byte.is_ascii_digit())?;
    let thread = last_of(&head[at + 1..])?;
    let (name, process) = match head[at] {
        b'-' | b' ' | b'\t' => (&head[..at], process),
        b'/' => {
            let start = head[..at].iter().rposition(|byte| !byte.is_ascii_digit())?;
            (&head[..start], Some(last_of(&head[start + 1..at])?))
        }
        _ => return None,
    };
    Some(task(name, thread, process))
}

/// Parses `0.000 CPU 0/KVM/12345 kvm:` and `0.000 (         ): CPU 0/KVM/12345 kvm:`.
fn of_perf_trace(head: &[u8]) -> Option<Task<'_>> {
    let head = head.strip_suffix(b"kvm:").unwrap_or(head).trim_ascii();
    let start = head
        .iter()
        .position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
    let head = head[start..].trim_ascii();
    let head = match memmem::find(head, b"): ") {
        Some(at) if head.starts_with(b"(") => &head[at + 3..],
        _ => head,
    };
    let at = head.iter().rposition(|byte| *byte == b'/')?;
    Some(task(&head[..at], last_of(&head[at + 1..])?, None))
}

/// Returns the name of a task without the name of the file and the number of the line that `grep -Hn`
/// puts before it. The kernel cuts the name of a task after 15 bytes.
fn without_file(name: &[u8]) -> &[u8] {
    let name = name.trim_ascii();
    let Some(colon) = memchr::memchr(b':', name) else {
        return name;
    };
    let (file, rest) = (&name[..colon], &name[colon + 1..]);
    let is_file =
        name.len() > 15 || rest.starts_with(b" ") || file.contains(&b'.') && !file.contains(&b' ');
    if !is_file {
        return name;
    }
    let rest = rest.trim_ascii();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match rest[digits..].strip_prefix(b":") {
        Some(after) if digits > 0 => after.trim_ascii(),
        _ => rest,
    }
}

fn task(name: &[u8], thread: u32, process: Option<u32>) -> Task<'_> {
    let name = without_file(name);
    Task {
        // tracefs prints `<...>` for a task whose name it has forgotten.
        name: (!name.is_empty() && name != b"<...>").then_some(name),
        thread: Some(thread),
        process,
        vm: None,
    }
}

/// Returns the number in a text that consists of digits alone.
fn last_of(digits: &[u8]) -> Option<u32> {
    match decimal(digits)? {
        (number, b"") => u32::try_from(number).ok(),
        _ => None,
    }
}
