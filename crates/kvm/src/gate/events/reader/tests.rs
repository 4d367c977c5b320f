use msrgate_filter::ExitReason;
use msrgate_policy::{Digest, Origin};

use super::*;

const LSTAR: MsrIndex = MsrIndex::new(0xc000_0082);

fn happened(number: u64) -> EventRecord {
    EventRecord {
        time: number,
        index: LSTAR,
        access: Access::Read,
        reason: ExitReason::Filter,
        disposition: Disposition::Denied,
        value: None,
        rip: None,
        origin: Origin::from_bits(0),
        held_back: 0,
        digest: Digest::from_bytes([0; 32]),
    }
}

/// Adds a vCPU, logs five events for it, of which two do not fit its queue, and drops the vCPU. `number` is
/// the time of the events.
fn come_and_go(logs: &VcpuLogs, id: u32, number: u64) {
    let log = logs.add(VcpuId::new(id), 3);
    for _ in 0..5 {
        log.count(LSTAR, Access::Read, Disposition::Denied);
        log.tell(&happened(number));
    }
    log.hold_back();
}

fn drained(events: &mut Events) -> Vec<u64> {
    let mut times = Vec::new();
    events.drain(|event| {
        let since = event.time.duration_since(std::time::UNIX_EPOCH).unwrap();
        times.push(u64::try_from(since.as_nanos()).unwrap());
    });
    times
}

/// Of the vCPUs whose `VcpuGate`s were dropped, only the newest keep their unread events; the unread events
/// of older ones are counted as dropped. The result is the same if one vCPU is added again and again, and if
/// each vCPU that is added is new.
#[test]
fn unread_events_of_gone_vcpus_are_bounded_and_counted() {
    const VCPUS: u64 = 200;
    for ids in [1, 7, 1000] {
        let logs = Arc::new(VcpuLogs::default());
        for number in 0..VCPUS {
            come_and_go(&logs, u32::try_from(number).unwrap() % ids, number);
            assert!(logs.lock().logs.len() <= UNREAD + 1);
        }
        // This vCPU is not gone, so its log must stay.
        let live = logs.add(VcpuId::new(5000), 1);
        live.tell(&happened(5000));
        let mut events = Events::take(&logs).unwrap();
        let sum = |events: &Events| {
            let drops = events.drops();
            let dropped: u64 = drops.iter().map(|one| one.dropped).sum();
            let held_back: u64 = drops.iter().map(|one| one.held_back).sum();
            (dropped, held_back)
        };
        let unread = UNREAD as u64;
        let expected = (VCPUS * 5 - unread * 3, VCPUS);
        assert_eq!(sum(&events), expected);
        let newest = VCPUS - unread..VCPUS;
        let mut times: Vec<_> = newest.flat_map(|number| [number; 3]).collect();
        times.push(5000);
        assert_eq!(drained(&mut events), times);
        assert_eq!(sum(&events), expected);
        assert_eq!(logs.counted().counts[0].count, VCPUS * 5);
        // The logs of vCPUs that are gone are removed once their events have been read. The log of the vCPU
        // that is not gone stays.
        assert_eq!(logs.lock().logs.len(), 1);
        drop(live);
    }
}

/// If the `VcpuGate`s of all vCPUs of a large VM are dropped while a reader reads, none of their events is
/// lost.
#[test]
fn drain_loses_no_event_of_vcpus_that_end_meanwhile() {
    let logs = Arc::new(VcpuLogs::default());
    come_and_go(&logs, 0, 1);
    let mut events = Events::take(&logs).unwrap();
    let mut vcpus = Vec::new();
    events.drain(|event| {
        vcpus.push(event.vcpu.get());
        if vcpus.len() == 1 {
            let late: Vec<_> = (1..100).map(|id| logs.add(VcpuId::new(id), 1)).collect();
            for vcpu in &late {
                vcpu.tell(&happened(2));
            }
        }
    });
    assert_eq!(vcpus, [0; 3]);
    assert_eq!(drained(&mut events), [2; 99]);
}

/// The log of a vCPU that is gone and whose events were all read is removed when the next vCPU is added.
#[test]
fn log_of_gone_vcpu_without_unread_events_is_removed() {
    let logs = VcpuLogs::default();
    for id in 0..100 {
        drop(logs.add(VcpuId::new(id), 3));
        assert_eq!(logs.lock().logs.len(), 1);
    }
    assert!(logs.lock().lost.is_empty() && logs.lock().gone.is_empty());
}

/// If vCPUs are added and dropped, and each accesses MSRs that no other vCPU accesses, the counts add up to
/// all accesses, and the number of kinds is bounded.
#[test]
fn counters_of_gone_vcpus_are_bounded_in_number_and_count_all_accesses() {
    let logs = VcpuLogs::default();
    for life in 0..100 {
        let log = logs.add(VcpuId::new(0), 1);
        for index in 0..100 {
            let index = MsrIndex::new(life << 8 | index);
            log.count(index, Access::Read, Disposition::Denied);
        }
        log.count(LSTAR, Access::Read, Disposition::Denied);
    }
    drop(logs.add(VcpuId::new(0), 1));
    let Counted { counts, others } = logs.counted();
    assert!(counts.len() <= KINDS && others > 0);
    let sum: u64 = counts.iter().map(|count| count.count).sum();
    assert_eq!(sum + others, 100 * 101);
    let known = counts.iter().find(|count| count.index == LSTAR).unwrap();
    assert_eq!(known.count, 100);
}
