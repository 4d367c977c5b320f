//! Writers of JSON lines that SIGKILL ends in the middle of a write.
//!
//! This test program runs itself again as the writer. Most lines that it writes are longer than a page, so
//! the kernel writes some of them only in part.

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
use msrgate_kvm::gate::events::{Event, JsonLines, LogFile, Sink};
use msrgate_policy::answer::Disposition;
use msrgate_policy::{Digest, Origin};
use serde_json::Value;

/// The environment variable that makes a process a writer. The variable's value is the writer's number.
const WRITER: &str = "MSRGATE_TEST_WRITER";
/// Two environment variables for the writer: the path of its file, and the number of lines after which
/// it ends.
const FILE: &str = "MSRGATE_TEST_FILE";
const LINES: &str = "MSRGATE_TEST_LINES";

/// Writes lines and exits if this process was started as a writer; else returns.
fn write_if_told() {
    let Ok(writer) = env::var(WRITER) else { return };
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let number = |name| number(name).expect(name);
    let path = PathBuf::from(env::var_os(FILE).expect(FILE));
    let mut sink = JsonLines::new(LogFile::append(&path).expect("a file"), "");
    let vcpu = writer.parse().expect(WRITER);
    println!("begins");
    let lines: u32 = number(LINES);
    for line in 0..lines {
        sink.event(&event(vcpu, line));
    }
    assert_eq!(sink.failed(), 0);
    std::process::exit(0);
}

/// Returns an event with the writer's number, the line's number, and text of varying size.
fn event(writer: u32, line: u32) -> Event {
    let size = line.wrapping_mul(2_654_435_761) >> 16;
    Event {
        time: UNIX_EPOCH,
        vcpu: VcpuId::new(writer),
        index: MsrIndex::new(line),
        access: Access::Write,
        reason: ExitReason::Filter,
        disposition: Disposition::Denied,
        value: None,
        rip: None,
        origin: Origin::from_bits(7 << 32 | 2),
        file: Some("x".repeat(size as usize).into()),
        digest: Digest::from_bytes([0; 32]),
        held_back: 0,
    }
}

/// A writer process, which is killed when this value is dropped.
struct Writer(Child);

impl Writer {
    fn begin(test: &str, number: u32, path: &Path, lines: u32) -> Self {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", test, "--nocapture"])
            .env(WRITER, number.to_string())
            .env(FILE, path)
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
        // Sends SIGKILL, which fails if the writer has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sleeps for a time that differs in each round.
fn moment(round: u32) {
    let part = u64::from(round.wrapping_mul(2_654_435_761) >> 19);
    thread::sleep(Duration::from_micros(part));
}

/// The number of the writer and the number of the line, as read from a line of the file; `None` if the line
/// is not valid JSON.
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

#[test]
fn killed_writer_of_log_file_cuts_only_its_last_line() {
    const NAME: &str = "killed_writer_of_log_file_cuts_only_its_last_line";
    write_if_told();
    let folder = tempfile::tempdir().unwrap();
    let mut cuts = 0;
    for file in 0..15 {
        let path = folder.path().join(file.to_string());
        let mut killed = 0;
        for round in file * 10..file * 10 + 10 {
            let writer = Writer::begin(NAME, round, &path, u32::MAX);
            moment(round);
            drop(writer);
            killed += 1;
            let lines = read(&path);
            let cut = lines.iter().filter(|line| line.is_none()).count();
            assert!(cut <= killed, "round {round}: {cut} are cut");
            follow_on(&lines);
        }
        assert!(read(&path).len() > 10, "nothing was written");
        cuts += read(&path).iter().filter(|line| line.is_none()).count();
    }
    eprintln!("lines seen that a kill had cut: {cuts}");
}

/// Checks the lines of a file. Each line must be the next line of the same writer, or the first line of a
/// later writer: a kill loses nothing but the line that it cuts.
fn follow_on(lines: &[Line]) {
    for pair in lines.windows(2) {
        match *pair {
            [Some((writer, number)), Some(now)] => assert!(
                now == (writer, number + 1) || (now.0 > writer && now.1 == 0),
                "{pair:?}"
            ),
            [None, Some((_, number))] => assert_eq!(number, 0),
            _ => {}
        }
    }
}

/// If two processes append to one file, the file has every line of each, once and in order. A process that
/// opens the file while the other writes may add one empty line.
#[test]
fn two_writers_to_one_log_file_keep_all_lines_whole() {
    const NAME: &str = "two_writers_to_one_log_file_keep_all_lines_whole";
    write_if_told();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    let writers = [0, 1].map(|number| Writer::begin(NAME, number, &path, 300));
    writers.into_iter().for_each(Writer::ends);
    let bytes = fs::read(&path).unwrap();
    let lines: Vec<_> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let empty = lines.iter().filter(|&&line| line == b"\n").count();
    assert!(empty < 2, "{empty} empty lines of two opens");
    let mut next = BTreeMap::new();
    for line in lines.into_iter().filter(|&line| line != b"\n").map(line) {
        let (writer, number) = line.expect("a whole line");
        let expected = next.entry(writer).or_insert(0);
        assert_eq!(number, *expected);
        *expected += 1;
    }
    assert_eq!(next, BTreeMap::from([(0, 300), (1, 300)]));
}
