use super::*;

#[test]
fn thin() {
    let host = HostCaps::probe().unwrap();
    for s in crate::statements() {
        eprintln!("{s:?}: {:?}", s.measure(&host));
    }
}
