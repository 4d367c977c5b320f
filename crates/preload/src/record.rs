//! Writes the answers of a VM's gate into the state page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use msrgate_kvm::gate::{Told, Watcher};
use msrgate_program::Log;
use msrgate_program::answer::Disposition;
use msrgate_state::{Kind, Limited, Page, Seen};

/// An observer of one VM's gate that writes the gate's answers into the state page.
pub(crate) struct Recorder {
    page: Page<'static>,
    pid: u32,
    vm: u32,
    limit: Limit,
}

impl Recorder {
    /// Makes a recorder for a new VM of this process, and adds the VM to the state page.
    pub(crate) fn of_new_vm(page: Page<'static>, pid: u32) -> Self {
        Self {
            page,
            pid,
            vm: page.add_vm(pid, now()),
            limit: Limit::default(),
        }
    }
}

impl Watcher for Recorder {
    fn told(&self, told: &Told) {
        let (exit, time) = (told.exit, now());
        let limit = match (told.disposition, told.log) {
            (Disposition::Killed, _) => Limited::Passes,
            // What an audit would refuse is an event at any level.
            (Disposition::WouldDeny | Disposition::WouldKill, _) => self.limit.ask(time),
            (_, Log::None) => Limited::Silent,
            _ => self.limit.ask(time),
        };
        let seen = Seen {
            kind: Kind {
                index: exit.index,
                access: exit.access,
                disposition: told.disposition,
                reason: exit.reason,
            },
            value: exit.data,
            vcpu: told.vcpu.get(),
            pid: self.pid,
            vm: self.vm,
            origin: told.origin,
            time,
        };
        self.page.note(&seen, limit);
    }
}

/// A limit of 1000 events per second for one VM. The command reads the VM's ring ten times a second, and the
/// ring has room for the events of two seconds. Events of the action `kill` do not count toward the limit.
#[derive(Default)]
struct Limit {
    second: AtomicU64,
    count: AtomicU64,
}

const PER_SECOND: u64 = 1000;

impl Limit {
    /// Counts an event at this time, in nanoseconds, and returns whether the event is within the limit. If
    /// two vCPUs make the first events of a second at once, both may set the count to zero, and a few events
    /// more than the limit pass.
    fn ask(&self, time: u64) -> Limited {
        let second = time / 1_000_000_000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.count.store(0, Ordering::Relaxed);
        }
        if self.count.fetch_add(1, Ordering::Relaxed) < PER_SECOND {
            Limited::Passes
        } else {
            Limited::HeldBack
        }
    }
}

/// Returns the time in nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_events_lets_1000_events_pass_in_each_second() {
        let limit = Limit::default();
        let passed = |time: u64| {
            let asked = (0..3000).filter(|_| limit.ask(time) == Limited::Passes);
            asked.count()
        };
        assert_eq!([passed(5), passed(999_999_999)], [1000, 0]);
        assert_eq!([passed(1_000_000_000), passed(7_000_000_000)], [1000, 1000]);
    }
}
