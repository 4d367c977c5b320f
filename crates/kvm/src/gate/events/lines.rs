//! Sinks that write events as lines, of text or of JSON, to any `impl Write`.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use msrgate_program::one_line;

use super::event::Event;
use super::reader::VcpuDrops;
use super::sink::Sink;

/// A writer for lines, and the number of its writes that have failed.
#[derive(Debug)]
struct Out<W> {
    out: W,
    failed: u64,
}

impl<W: Write> Out<W> {
    const fn new(out: W) -> Self {
        Self { out, failed: 0 }
    }

    /// Writes one line by one call of the writer.
    fn line(&mut self, mut text: String) {
        text.push('\n');
        if self.out.write_all(text.as_bytes()).is_err() {
            self.failed += 1;
        }
    }

    fn flush(&mut self) {
        if self.out.flush().is_err() {
            self.failed += 1;
        }
    }
}

/// The sink that writes each event as a line of text: the time in seconds since 1970, the VM, and the
/// text of [`Event`]'s `Display`.
/// `1700000000.123 web: vCPU 0: write of MSR 0xc0000082: deny (filter), by web.toml:12`
///
/// Each line is one [`Write::write_all`].
#[derive(Debug)]
pub struct TextLines<W> {
    out: Out<W>,
    /// The VM's name and the separator after it.
    vm: String,
}

impl<W: Write> TextLines<W> {
    /// Makes a sink that writes to `out`. `vm` is the VM's name in the lines; if it is empty, the lines
    /// have no name.
    pub fn new(out: W, vm: &str) -> Self {
        let vm = if vm.is_empty() {
            String::new()
        } else {
            format!("{}: ", one_line(vm))
        };
        Self {
            out: Out::new(out),
            vm,
        }
    }

    fn line(&mut self, time: SystemTime, what: &dyn std::fmt::Display) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, millis) = (since.as_secs(), since.subsec_millis());
        let vm = &self.vm;
        self.out.line(format!("{seconds}.{millis:03} {vm}{what}"));
    }
}

impl<W: Write + Send> Sink for TextLines<W> {
    fn event(&mut self, event: &Event) {
        self.line(event.time, event);
    }

    fn dropped(&mut self, drops: VcpuDrops) {
        self.line(SystemTime::now(), &drops);
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn failed(&self) -> u64 {
        self.out.failed
    }
}

/// The sink that writes each event as a line of JSON, by one [`Write::write_all`].
///
/// `{"schema":1,"time_ns":1700000000123456789,"vcpu":0,"msr":"0xc0000082","access":"write",
/// "reason":"filter","action":"deny","policy":"web.toml","line":12,"digest":"…"}`; with `vm` if the VM has a
/// name, and with `value`, `rip` and `held_back` if the event has them. `time_ns` is in nanoseconds since 1970.
///
/// `{"schema":1,"time_ns":1700000000123456789,"vcpu":0,"dropped":9,"held_back":300}`: the number of events of
/// the vCPU that are in no line so far, as in [`VcpuDrops`]. Only a line with this report has the field
/// `dropped`.
#[cfg(feature = "json")]
#[derive(Debug)]
pub struct JsonLines<W> {
    out: Out<W>,
    vm: String,
}

#[cfg(feature = "json")]
mod json {
    use std::io::Write;
    use std::time::{SystemTime, UNIX_EPOCH};

    use msrgate_program::{Origin, shown_json};
    use serde_json::{Map, Value, json};

    use super::{Event, JsonLines, Out, Sink, VcpuDrops};

    impl<W: Write> JsonLines<W> {
        /// Makes a sink that writes to `out`. `vm` is the VM's name in the lines; if it is empty, the
        /// lines have no name.
        pub fn new(out: W, vm: &str) -> Self {
            Self {
                out: Out::new(out),
                vm: vm.to_owned(),
            }
        }

        fn write(&mut self, line: Map<String, Value>) {
            // The name of a file or a VM may hold characters that control a terminal.
            let json = Value::Object(line).to_string();
            self.out.line(shown_json(&json).into_owned());
        }

        fn begin(&self, time: SystemTime) -> Map<String, Value> {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut line = Map::new();
            line.insert("schema".into(), json!(1));
            // Nanoseconds since 1970, as an integer: a floating-point number would lose the last three digits.
            let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            line.insert("time_ns".into(), json!(nanoseconds));
            if !self.vm.is_empty() {
                line.insert("vm".into(), json!(self.vm));
            }
            line
        }
    }

    impl<W: Write + Send> Sink for JsonLines<W> {
        fn event(&mut self, event: &Event) {
            let mut line = self.begin(event.time);
            let mut put = |key: &str, value: Value| line.insert(key.into(), value);
            put("vcpu", json!(event.vcpu.get()));
            put("msr", json!(event.index.to_string()));
            put("access", json!(event.access.to_string()));
            put("reason", json!(event.reason.to_string()));
            put("action", json!(event.disposition.to_string()));
            if let Some(value) = event.value {
                put("value", json!(format!("{value:#x}")));
            }
            if let Some(rip) = event.rip {
                put("rip", json!(format!("{rip:#x}")));
            }
            if let Origin::Line(at) = event.origin {
                put("policy", json!(event.file));
                put("line", json!(at.number));
            }
            put("digest", json!(event.digest.to_string()));
            if event.held_back > 0 {
                put("held_back", json!(event.held_back));
            }
            self.write(line);
        }

        fn dropped(&mut self, drops: VcpuDrops) {
            let mut line = self.begin(SystemTime::now());
            line.insert("vcpu".into(), json!(drops.vcpu.get()));
            line.insert("dropped".into(), json!(drops.dropped));
            line.insert("held_back".into(), json!(drops.held_back));
            self.write(line);
        }

        fn flush(&mut self) {
            self.out.flush();
        }

        fn failed(&self) -> u64 {
            self.out.failed
        }
    }
}

#[cfg(test)]
mod tests;
