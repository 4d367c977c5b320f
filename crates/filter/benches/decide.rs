//! Scratch.
use msrgate_filter::*;
use std::hint::black_box;
use std::time::Instant;

#[derive(Clone)]
struct Lin {
    flags: u32,
    nmsrs: u32,
    base: u32,
    bitmap: Vec<u64>,
}
#[inline]
fn linear(default: bool, ranges: &[Lin], index: u32, ac: Access) -> bool {
    let ty = 1 << ac as u32;
    if (0x800..=0x8ff).contains(&index) {
        return true;
    }
    let mut r = default;
    for x in ranges {
        let start = x.base;
        let end = start.wrapping_add(x.nmsrs);
        if index >= start && index < end && x.flags & ty != 0 {
            r = x.bitmap[((index - start) / 64) as usize] >> ((index - start) % 64) & 1 == 1;
            break;
        }
    }
    r
}
#[inline]
fn ours(f: &Filter, index: u32, a: Access) -> bool {
    f.decide(MsrIndex::new(index), a).verdict == Verdict::Allow
}
fn rng(s: &mut u64) -> u64 {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    *s
}
fn main() {
    for (name, n, pick) in [
        ("1-range", 1, 0),
        ("16-last", 16, 1),
        ("16-miss", 16, 2),
        ("16-mixed", 16, 3),
    ] {
        let mut s = 88172645463325252u64;
        let lin: Vec<Lin> = (0..n)
            .map(|i| Lin {
                flags: if pick == 3 { [1, 2, 3][i % 3] } else { 3 },
                nmsrs: 0x800 + 64 * (i as u32),
                base: 0x1000_0000 * (i as u32) + 0x1234,
                bitmap: (0..192).map(|_| rng(&mut s)).collect(),
            })
            .collect();
        let ranges = lin
            .iter()
            .map(|l| {
                Range::new(
                    Accesses::from_bits(l.flags).unwrap(),
                    MsrIndex::new(l.base),
                    Bitmap::from_words(l.nmsrs, l.bitmap.clone()).unwrap(),
                )
            })
            .collect();
        let t = Instant::now();
        let f = Filter::new(Revision::Mainline, Fallback::Deny, ranges).unwrap();
        println!("build {:?} {}", t.elapsed(), f.footprint());
        let pts: Vec<(u32, Access)> = (0..65536)
            .map(|_| {
                let r = match pick {
                    0 | 1 => n - 1,
                    2 => 99,
                    _ => (rng(&mut s) % 16) as usize,
                };
                let idx = if r == 99 {
                    rng(&mut s) as u32
                } else {
                    lin[r].base + (rng(&mut s) % u64::from(lin[r].nmsrs)) as u32
                };
                (
                    idx,
                    if pick == 3 && rng(&mut s) & 1 == 1 {
                        Access::Write
                    } else {
                        Access::Read
                    },
                )
            })
            .collect();
        let time = |g: &dyn Fn() -> u32| {
            let mut best = f64::MAX;
            for _ in 0..50 {
                let t = Instant::now();
                black_box(g());
                best = best.min(t.elapsed().as_nanos() as f64 / 65536.0);
            }
            best
        };
        let a = time(&|| {
            pts.iter()
                .map(|p| u32::from(linear(false, &lin, p.0, p.1)))
                .sum()
        });
        let b = time(&|| pts.iter().map(|p| u32::from(ours(&f, p.0, p.1))).sum());
        println!("{name}: linear {a:.2} ours {b:.2} ratio {:.2}", a / b);
    }
}
