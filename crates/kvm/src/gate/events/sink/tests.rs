use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use msrgate_filter::{Access, ExitReason, MsrIndex};
use msrgate_policy::Digest;
use msrgate_policy::answer::Deed;

use super::*;
use crate::gate::VcpuId;

fn event(index: u32) -> Event {
    Event {
        time: UNIX_EPOCH + Duration::from_millis(1500),
        vcpu: VcpuId::new(1),
        index: MsrIndex::new(index),
        access: Access::Write,
        reason: ExitReason::Filter,
        deed: Deed::Denied,
        value: Some(5),
        rip: None,
        origin: Origin::from_bits(7 << 32 | 2),
        file: Some("a.toml".into()),
        digest: Digest::from_bytes([0; 32]),
        held_back: 0,
    }
}

#[test]
fn an_event_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut sink = JsonLines::append(&path, u64::MAX, "web").unwrap();
    sink.event(&event(0x10));
    sink.dropped(VcpuDrops {
        vcpu: VcpuId::new(2),
        dropped: 9,
        held_back: 300,
    });
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        json!({
            "schema": 1, "time": 1.5, "vm": "web", "vcpu": 1, "msr": "0x10", "access": "write",
            "reason": "filter", "action": "deny", "value": "0x5", "policy": "a.toml", "line": 7,
            "digest": "0".repeat(64),
        })
    );
    let time = &lines[1]["time"];
    assert_eq!(
        lines[1],
        json!({ "schema": 1, "time": time, "vm": "web", "vcpu": 2, "dropped": 9, "held_back": 300 })
    );
}

/// Whoever reads the log with `cat` sees it as it is.
#[test]
fn a_line_has_no_character_that_a_terminal_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let name = "a\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2028}\u{e0041}\nb.toml";
    let mut sink = JsonLines::append(&path, u64::MAX, name).unwrap();
    sink.event(&Event {
        file: Some(name.into()),
        ..event(0x10)
    });
    let text = fs::read_to_string(&path).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(line.chars().all(msrgate_policy::is_shown), "{line:?}");
    let read: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&read["vm"], &read["policy"]), (&json!(name), &json!(name)));
}

/// Values and RIP may be in it.
#[test]
fn a_new_file_is_its_owners_alone_and_an_old_one_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let mut sink = JsonLines::append(&path, 500, "").unwrap();
    sink.event(&event(0));
    assert_eq!(mode(&path), 0o640);
    (1..3).for_each(|index| sink.event(&event(index)));
    assert_eq!(mode(&folder.path().join("events.1")), 0o640);
    assert_eq!(mode(&path), 0o600);
}

/// A daemon changes its directory, and its file stays where it is.
#[test]
fn a_path_is_meant_from_where_it_was_given() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let relative = Path::new(folder.path().file_name().unwrap()).join("events");
    let sink = JsonLines::append(&relative, 1000, "").unwrap();
    assert_eq!(sink.path, std::env::current_dir().unwrap().join(relative));
}

#[test]
fn a_full_file_is_put_aside_between_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut sink = JsonLines::append(&path, 1000, "").unwrap();
    (0..20).for_each(|index| sink.event(&event(index)));
    for name in ["events", "events.1"] {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.len() <= 1000 && text.ends_with('\n'), "{name}");
        for line in text.lines() {
            serde_json::from_str::<Value>(line).unwrap();
        }
    }
    assert_eq!(sink.failed(), 0);
}

/// What a kill has cut short stays one broken line, and no line of ours is lost in it.
#[test]
fn a_line_that_was_cut_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    fs::write(&path, "{\"schema\":1}\n{\"sche").unwrap();
    JsonLines::append(&path, u64::MAX, "")
        .unwrap()
        .event(&event(1));
    let text = fs::read_to_string(&path).unwrap();
    let whole = text
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok());
    assert_eq!((text.lines().count(), whole.count()), (3, 2));
}

/// A file that was put aside between a writer's lines, by another or by hand, is not written to again.
#[test]
fn who_comes_after_the_file_was_put_aside_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let append = || JsonLines::append(&path, 1000, "").unwrap();
    let (mut one, mut other) = (append(), append());
    other.event(&event(0));
    (1..10).for_each(|index| one.event(&event(index)));
    other.event(&event(10));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().last().unwrap().contains("\"0xa\""), "{text}");
    assert!(text.len() <= 1000);
    fs::remove_file(&path).unwrap();
    other.event(&event(11));
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1);
    // The path is no more: the file that it was goes on.
    fs::remove_dir_all(folder.path()).unwrap();
    other.event(&event(12));
    assert_eq!((one.failed(), other.failed()), (0, 0));
}

/// Somebody keeps the lock: lines come all the same.
#[test]
fn a_lock_that_is_kept_holds_nothing_up_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut sink = JsonLines::append(&path, 1000, "").unwrap();
    let keeper = open(&path).unwrap();
    calls::try_lock(&keeper).unwrap();
    (0..3).for_each(|index| sink.event(&event(index)));
    assert_eq!(sink.patience, 1);
    drop(keeper);
    sink.event(&event(3));
    assert_eq!((sink.patience, sink.failed()), (PATIENCE, 0));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
}

/// What is no file has no length, and is not put aside.
#[test]
fn a_device_stays_where_it_is() {
    let mut sink = JsonLines::append(Path::new("/dev/null"), 1, "").unwrap();
    (0..3).for_each(|index| sink.event(&event(index)));
    assert_eq!(sink.failed(), 0);
    assert!(!Path::new("/dev/null.1").exists());
}

/// Full disk: counted, and not a panic.
#[test]
fn what_cannot_be_written_is_counted() {
    let Ok(mut sink) = JsonLines::append(Path::new("/dev/full"), u64::MAX, "") else {
        return;
    };
    sink.event(&event(1));
    assert_eq!(sink.failed(), 1);
}

/// In a file that is put aside at once, it stays as it is, and the new one begins with a line.
#[test]
fn a_line_that_was_cut_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    fs::write(&path, "{\"sche").unwrap();
    let mut sink = JsonLines::append(&path, 100, "").unwrap();
    sink.event(&event(1));
    let aside = fs::read_to_string(folder.path().join("events.1")).unwrap();
    assert_eq!(aside, "{\"sche");
    assert!(fs::read_to_string(&path).unwrap().starts_with('{'));
}

/// Also in a file that has come in the place of another, where that one's last line ended.
#[test]
fn a_cut_line_of_another_file_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut sink = JsonLines::append(&path, u64::MAX, "").unwrap();
    sink.event(&event(1));
    let length = fs::metadata(&path).unwrap().len();
    fs::rename(&path, folder.path().join("other")).unwrap();
    fs::write(&path, "x".repeat(usize::try_from(length).unwrap())).unwrap();
    sink.event(&event(2));
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
}

/// After a write that failed in the middle of a line, too.
#[test]
fn a_line_that_a_full_disk_cut_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut sink = JsonLines::append(&path, u64::MAX, "").unwrap();
    sink.event(&event(1));
    sink.file.write_all(b"{\"sche").unwrap();
    sink.event(&event(2));
    sink.event(&event(3));
    let text = fs::read_to_string(&path).unwrap();
    let whole = text
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok());
    assert_eq!((text.lines().count(), whole.count()), (4, 3));
}

/// What a subscriber of `tracing` gets: target, level and fields, in a line each.
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
    fn an_event_is_a_tracing_event() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            let mut sink = TracingSink;
            sink.event(&event(0x10));
            sink.event(&Event {
                deed: Deed::Allowed,
                value: None,
                ..event(0x11)
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

/// `/dev/stderr` is a link: a VMM that runs as root must not put it aside for everyone.
#[test]
fn what_is_no_file_is_not_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut sink = JsonLines::append(&link, 100, "").unwrap();
    (0..5).for_each(|index| sink.event(&event(index)));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 5);
}
