use super::*;
use crate::backend::{Backend as _, KvmBackend, Outcome, Reply, Step};

#[test]
fn thin() {
    let host = HostCaps::probe().unwrap();
    eprintln!("{host:#?}");
    let mut b = KvmBackend::new(&host).unwrap();
    let step = |i, access| Step {
        index: MsrIndex::new(i),
        access,
        value: 0x1234_5678_9abc,
        reply: Reply::Value(7),
    };
    for o in b
        .run(&[
            step(0x10, Access::Read),
            step(0xc000_0102, Access::Write),
            step(0xc000_0102, Access::Read),
            step(0x1234_5678, Access::Read),
            step(0x1234_5678, Access::Write),
            step(0x277, Access::Read),
        ])
        .unwrap()
    {
        eprintln!("{o:x?}");
    }
    let n = 100_000;
    let s = vec![step(0xc000_0102, Access::Read); n];
    let t = std::time::Instant::now();
    b.run(&s).unwrap();
    eprintln!("{} /s", n as f64 / t.elapsed().as_secs_f64());
    let mut b = Guest::new(&host, Apic::X2apic).unwrap();
    for o in b
        .run(&[step(0x802, Access::Read), step(0x803, Access::Read)])
        .unwrap()
    {
        eprintln!("{o:x?}");
    }
}
