#![cfg(any(feature = "tracing", feature = "log"))]

use msrgate_program::answer::Disposition;

use super::*;
use crate::gate::id::VcpuId;

/// A `tracing` subscriber gets the target, the level and the fields, on one line for each event.
#[cfg(feature = "tracing")]
mod tracing_sink {
    use std::fmt::{Debug, Write as _};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Metadata, Subscriber};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<String>>);

    struct Line<'l>(&'l mut String);

    impl Visit for Line<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, " {field}={value:?}").unwrap();
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut lines = self.0.lock().unwrap();
            let of = event.metadata();
            write!(lines, "{} {}", of.target(), of.level()).unwrap();
            event.record(&mut Line(&mut lines));
            lines.push('\n');
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn tracing_sink_emits_level_and_fields() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            let mut sink = TracingSink;
            sink.event(&Event::example(0x10));
            sink.event(&Event {
                disposition: Disposition::Allowed,
                value: None,
                ..Event::example(0x11)
            });
            sink.dropped(VcpuDrops {
                vcpu: VcpuId::new(2),
                dropped: 9,
                held_back: 300,
            });
        });
        assert_eq!(
            *lines.0.lock().unwrap(),
            "msrgate WARN message=refused vcpu=1 msr=0x10 access=write reason=filter action=deny value=5 held_back=0\n\
             msrgate INFO message=seen vcpu=1 msr=0x11 access=write reason=filter action=allow held_back=0\n\
             msrgate WARN message=events lost vcpu=2 dropped=9 held_back=300\n"
        );
    }
}

/// A logger of the `log` crate gets the event as text, with its target and level.
#[cfg(feature = "log")]
#[test]
fn log_sink_emits_level_and_text() {
    use std::sync::Mutex;

    struct Lines(Mutex<String>);

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let line = format!("{} {} {}\n", record.target(), record.level(), record.args());
            self.0.lock().unwrap().push_str(&line);
        }
        fn flush(&self) {}
    }

    static LINES: Lines = Lines(Mutex::new(String::new()));

    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut sink = LogSink;
    sink.event(&Event::example(0x10));
    sink.event(&Event {
        disposition: Disposition::Allowed,
        ..Event::example(0x11)
    });
    sink.dropped(VcpuDrops {
        vcpu: VcpuId::new(2),
        dropped: 9,
        held_back: 300,
    });
    let lines = LINES.0.lock().unwrap();
    let ours: Vec<_> = lines
        .lines()
        .filter(|line| line.starts_with("msrgate "))
        .collect();
    assert_eq!(
        ours,
        [
            "msrgate WARN vCPU 1: write of MSR 0x10: deny (filter), value 0x5, by a.toml:7",
            "msrgate INFO vCPU 1: write of MSR 0x11: allow (filter), value 0x5, by a.toml:7",
            "msrgate WARN vCPU 2: events lost so far: 9 dropped, 300 held back",
        ]
    );
}
