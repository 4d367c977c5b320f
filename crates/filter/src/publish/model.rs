//! Model tests of publication. loom runs a few readers and writers in all interleavings and
//! reorderings that it models, with up to three preemptions each. Run these tests with:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p msrgate-filter --release --lib publish::model
//! ```
//!
//! After each of these changes at least one test here fails: leave out one of the two waits of a
//! writer, or both; weaken any ordering of `active` or of the arrival; look at a counter with a
//! plain load; arrive after the load of `active`; leave out the writers' lock. In loom a load never
//! sees a later store. So no test shows that a departure has to release and that a writer's look at
//! a counter has to acquire: only the argument in `publish.rs` does.

use super::*;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

/// Three words, which are equal whenever a reader may look.
struct Triple([AtomicU64; 3]);

impl Slot for Triple {
    type Content = u64;

    fn fill(&self, content: &u64) {
        for word in &self.0 {
            word.store(*content, Ordering::Relaxed);
        }
    }
}

type Published<const STRIPES: usize> = LeftRight<Triple, STRIPES>;

fn published<const STRIPES: usize>() -> Arc<Published<STRIPES>> {
    let zero = || Triple(core::array::from_fn(|_| AtomicU64::new(0)));
    Arc::new(LeftRight::new([zero(), zero()]))
}

/// Reads the three words of a [`Triple`] once, and fails if they come from two publications.
fn whole<const STRIPES: usize>(published: &Published<STRIPES>, reader: usize) -> u64 {
    published.read(reader, |slot| {
        let [first, second, third] = slot.0.each_ref().map(|word| word.load(Ordering::Relaxed));
        assert_eq!([first; 2], [second, third], "a mixture");
        first
    })
}

fn check(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// The second publication fills the slot in which a reader may have begun: `publish` first waits
/// until the reader has left, so the reader never sees a mixture of two contents.
#[test]
fn publish_does_not_fill_a_slot_with_a_reader() {
    check(|| {
        let published = published::<1>();
        let reader = thread::spawn({
            let published = published.clone();
            move || {
                let first = whole(&published, 0);
                let second = whole(&published, 0);
                assert!(first <= second, "back to an older content");
            }
        });
        published.publish(&1);
        published.publish(&2);
        reader.join().unwrap();
    });
}

/// Three publications use both turns and fill both slots. None of them fills the slot that a reader
/// is in, whichever turn the reader has loaded.
#[test]
fn publish_waits_for_readers_that_arrived_in_earlier_turns() {
    check(|| {
        let published = published::<1>();
        let reader = thread::spawn({
            let published = published.clone();
            move || whole(&published, 0)
        });
        for content in 1..=3 {
            published.publish(&content);
        }
        reader.join().unwrap();
    });
}

#[test]
fn read_after_publish_finds_new_content() {
    check(|| {
        let published = published::<2>();
        let returned = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (published, returned) = (published.clone(), returned.clone());
            move || {
                let before = returned.load(Ordering::Acquire);
                assert!(whole(&published, 1) >= before);
            }
        });
        for content in 1..=2 {
            published.publish(&content);
            returned.store(content, Ordering::Release);
        }
        reader.join().unwrap();
    });
}

#[test]
fn publish_waits_for_old_readers_in_all_stripes() {
    check(|| {
        let published = published::<2>();
        let readers = [0, 1].map(|reader| {
            let published = published.clone();
            thread::spawn(move || whole(&published, reader))
        });
        published.publish(&1);
        published.publish(&2);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn concurrent_publishes_run_one_after_the_other() {
    check(|| {
        let published = published::<1>();
        let writer = thread::spawn({
            let published = published.clone();
            move || published.publish(&1)
        });
        published.publish(&2);
        assert_ne!(whole(&published, 0), 0, "what was published is lost");
        writer.join().unwrap();
        assert_ne!(whole(&published, 0), 0, "both were lost");
    });
}
