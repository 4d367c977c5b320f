//! Events as lines of text, for people or as JSON, to whatever is an `impl Write`.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use msrgate_program::one_line;

use super::event::Event;
use super::reader::VcpuDrops;
use super::sink::Sink;

/// A writer, and how often it has failed.
#[derive(Debug)]
struct Out<W> {
    out: W,
    failed: u64,
}

impl<W: Write> Out<W> {
    const fn new(out: W) -> Self {
        Self { out, failed: 0 }
    }

    /// Writes one line by one call.
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

/// Events as text, a line each: the time in seconds since 1970, the VM, and what [`Event`] is displayed as.
/// `1700000000.123 web: vCPU 0: write of MSR 0xc0000082: deny (filter), by web.toml:12`
///
/// Each line is one [`Write::write_all`].
#[derive(Debug)]
pub struct TextLines<W> {
    out: Out<W>,
    /// The VM's name, with what sets it off from the rest.
    vm: String,
}

impl<W: Write> TextLines<W> {
    /// Writes to `out`. `vm` is what the lines call the VM; with an empty one they call it nothing.
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

/// Events as JSON, a line each, which is one [`Write::write_all`].
///
/// `{"schema":1,"time":1700000000.123456789,"vcpu":0,"msr":"0xc0000082","access":"write",
/// "reason":"filter","action":"deny","policy":"web.toml","line":12,"digest":"…"}`; with `vm`, and with
/// `value`, `rip`, `held_back` where there is something to say.
///
/// `{"schema":1,"time":1700000000.123456789,"vcpu":0,"dropped":9,"held_back":300}`: how many events of the
/// vCPU are in no line so far, as in [`VcpuDrops`]. A line with `dropped` is one of these.
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
        /// Writes to `out`. `vm` is what the lines call the VM; with an empty one they call it nothing.
        pub fn new(out: W, vm: &str) -> Self {
            Self {
                out: Out::new(out),
                vm: vm.to_owned(),
            }
        }

        fn write(&mut self, line: Map<String, Value>) {
            // A file's name or a VM's may hold what a terminal obeys.
            let json = Value::Object(line).to_string();
            self.out.line(shown_json(&json).into_owned());
        }

        fn begin(&self, time: SystemTime) -> Map<String, Value> {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut line = Map::new();
            line.insert("schema".into(), json!(1));
            line.insert("time".into(), json!(since.as_secs_f64()));
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
