//! Writers of JSON lines that are killed for real, by SIGKILL, in the middle of what they do.
//!
//! This program runs itself again as the writer. Its lines are longer than a page, mostly, so that the
//! kernel does cut some of them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use msrgate_filter::{Access, ExitReason, MsrIndex};
use msrgate_kvm::gate::VcpuId;
use msrgate_kvm::gate::events::{Event, JsonLines, Sink};
use msrgate_policy::answer::Deed;
use msrgate_policy::{Digest, Origin};
use serde_json::Value;

/// What tells a process that it is a writer: its number.
const WRITER: &str = "MSRGATE_TEST_WRITER";
/// Where to, beyond how many bytes the file is put aside, and after how many lines to end.
const FILE: &str = "MSRGATE_TEST_FILE";
const MOST: &str = "MSRGATE_TEST_MOST";
const LINES: &str = "MSRGATE_TEST_LINES";

/// If this process is to be a writer, it is one, and ends as one.
fn write_if_told() {
    let Ok(writer) = env::var(WRITER) else { return };
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let number = |name| number(name).expect(name);
    let path = PathBuf::from(env::var_os(FILE).expect(FILE));
    let mut sink = JsonLines::append(&path, number(MOST), "").expect("a file");
    let vcpu = writer.parse().expect(WRITER);
    println!("begins");
    for line in 0..number(LINES) {
        sink.event(&event(vcpu, u32::try_from(line).expect(LINES)));
    }
    assert_eq!(sink.failed(), 0);
    std::process::exit(0);
}

/// The writer's number, the line's, and something of a size that changes.
fn event(writer: u32, line: u32) -> Event {
    let size = line.wrapping_mul(2_654_435_761) >> 16;
    Event {
        time: UNIX_EPOCH,
        vcpu: VcpuId::new(writer),
        index: MsrIndex::new(line),
        access: Access::Write,
        reason: ExitReason::Filter,
        deed: Deed::Denied,
        value: None,
        rip: None,
        origin: Origin::from_bits(7 << 32 | 2),
        file: Some("x".repeat(size as usize).into()),
        digest: Digest::from_bytes([0; 32]),
        held_back: 0,
    }
}

/// A writer. However a test ends, it does not outlive it.
struct Writer(Child);

impl Writer {
    fn begin(test: &str, number: u32, path: &Path, most: u64, lines: u64) -> Self {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture"])
            .env(WRITER, number.to_string())
            .env(FILE, path)
            .env(MOST, most.to_string())
            .env(LINES, lines.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        let begins = said
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with("begins"));
        assert!(begins, "the writer has not begun");
        Self(child)
    }

    fn ends(mut self) {
        let status = self.0.wait().expect("a child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SIGKILL. It fails if the writer has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each time another moment.
fn moment(round: u32) {
    let part = u64::from(round.wrapping_mul(2_654_435_761) >> 19);
    thread::sleep(Duration::from_micros(part));
}

/// A line of a file: whose, and its number; `None` if it is no JSON.
type Line = Option<(u32, u32)>;

fn read(path: &Path) -> Vec<Line> {
    let Ok(bytes) = fs::read(path) else {
        return Vec::new();
    };
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines.map(line).collect()
}

fn line(bytes: &[u8]) -> Line {
    let value: Value = serde_json::from_slice(bytes.strip_suffix(b"\n")?).ok()?;
    let number = value["msr"].as_str()?.strip_prefix("0x")?;
    let writer = value["vcpu"].as_u64()?;
    Some((
        u32::try_from(writer).ok()?,
        u32::from_str_radix(number, 16).ok()?,
    ))
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("1")
}

/// Longer than any line.
const SMALL: u64 = 300_000;

#[test]
fn a_writer_that_is_killed_cuts_its_last_line_alone() {
    const NAME: &str = "a_writer_that_is_killed_cuts_its_last_line_alone";
    write_if_told();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut cuts = 0;
    for round in 0..150 {
        let writer = Writer::begin(NAME, round, &path, SMALL, u64::from(u32::MAX));
        moment(round);
        drop(writer);
        let before = read(&aside(&path));
        for file in [&path, &aside(&path)] {
            assert!(fs::metadata(file).map_or(0, |file| file.len()) <= SMALL);
        }
        // All that is there follows on from the line before it, from one file to the other.
        let mut last = None;
        let mut cut = 0;
        for line in before.into_iter().chain(read(&path)) {
            match (last, line) {
                (_, None) => cut += 1,
                (None, _) => {}
                // The next one's first: of the line that was cut nothing else is lost.
                (Some(None), Some((_, number))) => assert_eq!(number, 0, "round {round}"),
                (Some(Some((writer, number))), Some(now)) => assert!(
                    now == (writer, number + 1) || (now.0 > writer && now.1 == 0),
                    "round {round}: {last:?}, then {now:?}"
                ),
            }
            last = Some(line);
        }
        assert!(cut <= round + 1, "round {round}: {cut} are cut");
        cuts += cut;
    }
    eprintln!("lines seen that a kill had cut: {cuts}");
}

/// Two processes write to one file, and are killed in turn.
#[test]
fn two_writers_do_not_cut_each_other() {
    const NAME: &str = "two_writers_do_not_cut_each_other";
    write_if_told();
    let folder = tempfile::tempdir().unwrap();
    // To their end: every line of each is there, once, in its order.
    let path = folder.path().join("whole");
    let writers = [0, 1].map(|number| Writer::begin(NAME, number, &path, u64::MAX, 300));
    writers.into_iter().for_each(Writer::ends);
    let mut next = BTreeMap::new();
    for line in read(&path) {
        let (writer, number) = line.expect("a whole line");
        let expected = next.entry(writer).or_insert(0);
        assert_eq!(number, *expected);
        *expected += 1;
    }
    assert_eq!(next, BTreeMap::from([(0, 300), (1, 300)]));
    // Killed: of each one line is cut, at most.
    let path = folder.path().join("killed");
    let mut writers = Vec::new();
    for round in 0..40 {
        writers.push(Writer::begin(NAME, round, &path, u64::MAX, 100_000));
        moment(round);
        if writers.len() > 2 {
            drop(writers.remove(0));
        }
    }
    drop(writers);
    whole_but_for(40, &[read(&path)]);
    // And with a file that is put aside again and again.
    let path = folder.path().join("aside");
    let mut writers = Vec::new();
    for round in 0..40 {
        writers.push(Writer::begin(
            NAME,
            round,
            &path,
            SMALL,
            u64::from(u32::MAX),
        ));
        moment(round);
        if writers.len() > 2 {
            drop(writers.remove(0));
        }
        // As they are at one moment or another: the last line may be in the making.
        for file in [&path, &aside(&path)] {
            let mut lines = read(file);
            lines.pop();
            whole_but_for(round, &[lines]);
        }
    }
    drop(writers);
    whole_but_for(40, &[read(&aside(&path)), read(&path)]);
}

/// Of lines that were cut there are no more than writers that were killed, and those of each
/// writer are in their order, without a gap.
fn whole_but_for(killed: u32, files: &[Vec<Line>]) {
    for file in files {
        let cut = file.iter().filter(|line| line.is_none()).count();
        assert!(cut <= killed as usize, "{cut} are cut, of {killed} killed");
        let mut next = BTreeMap::new();
        for (writer, number) in file.iter().copied().flatten() {
            let expected = next.entry(writer).or_insert(number);
            assert_eq!(number, *expected, "of writer {writer}");
            *expected += 1;
        }
    }
}
