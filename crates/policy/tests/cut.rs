//! Tests that `import` does not take a part of a file for the whole file. The files are `compile`'s
//! output, lists and logs.

use std::fs;
use std::path::Path;

use msrgate_policy::import::{Format, Gap, Imported, Loss, compiled_filter, import, print};
use msrgate_policy::{IncludeError, Includes, Program, Source, Variant, compile, emit, parse};

/// The shipped policies, which include each other by name.
struct Shipped;

impl Includes for Shipped {
    fn open(&mut self, _: &Source, path: &str) -> Result<Source, IncludeError> {
        let file = Path::new(POLICIES).join(path).with_extension("toml");
        let text =
            fs::read_to_string(file).map_err(|error| IncludeError::new(error.to_string()))?;
        Ok(Source::new(path, &text))
    }
}

const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policies");

/// Returns all outputs of `compile` for one variant.
fn emitted(variant: &Variant) -> [Vec<u8>; 4] {
    [
        emit::json(variant, None).into_bytes(),
        emit::c(variant, None).into_bytes(),
        emit::rust(variant, None).into_bytes(),
        emit::abi(variant).expect("a pointer of 64 bits holds any offset"),
    ]
}

fn compiled(text: &str) -> Program {
    let policy = parse(&Source::new("policy.toml", text), &mut Shipped).expect(text);
    compile(policy).expect(text).into_program()
}

/// Checks that the first `length` bytes cannot be imported, unless only the last line feed is
/// missing.
fn assert_cut_is_refused(whole: &[u8], length: usize) {
    let cut = &whole[..length];
    let imported = import(cut, None);
    if whole.trim_ascii_end().len() == length {
        assert_eq!(imported, import(whole, None));
        assert_eq!(compiled_filter(cut), compiled_filter(whole));
        return;
    }
    let shown = || String::from_utf8_lossy(cut);
    assert!(imported.is_err(), "{}", shown());
    assert!(compiled_filter(cut).is_err(), "{}", shown());
}

/// A compiled policy that is cut off at any byte is refused: under `default = "allow"`, a filter
/// that lacks a range would be looser. A full disk or a broken pipe may cut a file off.
#[test]
fn import_refuses_compiled_policy_cut_anywhere() {
    let program = compiled(
        "policy = 1\ndefault = 'allow'\n[msrs]\n0x277 = 'none'\n0xc0000080 = 'none'\n0x40000000 = 'r'\n",
    );
    let mut files = emitted(&program.variants()[0]).to_vec();
    files.push(program.encode());
    let template = r#"{"cpuid_modifiers":[],"msr_modifiers":[{"addr":"0x10a","bitmap":"0b0xx1"}]}"#;
    files.push(template.into());
    files.push(format!(r#"{{"guest_cpu_config":{template}}}"#).into());
    for whole in files {
        import(&whole, None).expect("a whole file");
        for length in 0..whole.len() {
            assert_cut_is_refused(&whole, length);
        }
    }
}

fn shipped() -> Vec<Program> {
    let files = fs::read_dir(POLICIES).expect("the shipped policies");
    let texts = files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text"));
    texts.map(|text| compiled(&text)).collect()
}

#[test]
fn import_refuses_cut_shipped_policy() {
    // Testing every byte would take minutes. A prime step reaches every column of a line.
    const STEP: usize = 97;
    let programs = shipped();
    assert!(programs.len() > 5);
    for program in programs {
        let variants = program.variants().iter();
        let mut files: Vec<_> = variants.flat_map(emitted).collect();
        files.push(program.encode());
        for whole in files {
            for length in (0..whole.len()).step_by(STEP) {
                assert_cut_is_refused(&whole, length);
            }
        }
    }
}

#[test]
fn import_refuses_two_filters_in_one_file() {
    let [one, other] = ["allow", "deny"].map(|default| {
        compiled(&format!(
            "policy = 1\ndefault = '{default}'\n[msrs]\n0x277 = 'r'\n"
        ))
    });
    let [one, other] = [one, other].map(|program| emitted(&program.variants()[0]));
    for (one, other) in one.into_iter().zip(other).take(3) {
        let both = [one, other].concat();
        assert!(
            import(&both, None).is_err(),
            "{}",
            String::from_utf8_lossy(&both)
        );
    }
}

/// Returns a text for each MSR that the entries name, with its actions.
fn entries(imported: &Imported) -> Vec<String> {
    let entries = imported.entries.iter();
    let said = entries.flat_map(|entry| {
        let msrs = entry
            .msrs
            .ranges()
            .iter()
            .flat_map(|range| range.first().get()..=range.last().get());
        msrs.map(|msr| format!("{msr:#x} {:?}", entry.actions))
    });
    said.collect()
}

const ALLOWLIST: &str = "# MSR # Write Mask # Comment\n0x10 0x0 # \"TSC\"\n\n0x186\t0xffffffffffffffff\n\
    0xc0000081 0xffffffff00000000 # \"STAR\"\n0xc0000082 0x1000 \r\n0x12345 0xffffffffffffffff\n";

const LOG: &str = "[    0.000000] Linux version 6.1.0\n\
    [  289.713857] kvm: kvm [3657]: ignored rdmsr: 0xc0010015 data 0x0\n\
    kvm [1]: ignored wrmsr: 0xc0011029\n\
    [12.5] kvm_intel: kvm [18663]: vcpu0, guest rIP: 0x407de7 Unhandled WRMSR(0x1d9) = 0x1\n\
    [12.6] kvm_get_msr_common: vcpu0, guest rIP: 0xfff81 unhandled rdmsr: 0x60d\r\n";

const LIST: &str = "MSR_ADDR,VALUE\n0x10,0x5d3f1e2\n0xc0000080,0xd01\r\n0x176,0xffffffff81e01580\n";

/// A file that is cut off gives no entry that the whole file does not give. The beginning of a line
/// may name another register, or a mask that allows more.
#[test]
fn import_of_cut_lines_gives_only_entries_of_whole_file() {
    for (whole, format) in [
        (ALLOWLIST, Format::MsrSafe),
        (LOG, Format::KernelLog),
        (LIST, Format::FirecrackerList),
    ] {
        let all = import(whole.as_bytes(), None).expect("a whole file");
        assert_eq!((all.format, all.gap), (format, None));
        let all = entries(&all);
        for length in 0..whole.len() {
            let cut = &whole[..length];
            let imported = import(cut.as_bytes(), Some(format)).expect("lines");
            for entry in entries(&imported) {
                assert!(all.contains(&entry), "{entry}:\n{cut}");
            }
            let last = cut.lines().count();
            let names_last = |loss: &Loss| {
                loss.line == Some(last) && loss.what.starts_with("this last line was not read")
            };
            let is_said = imported.losses.iter().any(names_last);
            assert_eq!(is_said, imported.gap == Some(Gap::CutOff), "{cut}");
            let ended = format!("{cut}\n");
            let ended = import(ended.as_bytes(), Some(format)).expect("lines");
            let is_read = entries(&imported) == entries(&ended);
            assert!(is_read || is_said, "{cut}");
        }
    }
}

#[test]
fn import_reads_last_line_without_line_feed_if_complete() {
    for (text, is_whole) in [
        ("# Write Mask\n0xc0000081 0xffffffff0", false),
        ("# Write Mask\n0xc0000081 0xffffffff00000000", false),
        ("# Write Mask\n0xc0000081 0xffffffff00000000 ", true),
        ("0xc0000081 0xffffffff00000000 # \"STAR\"", true),
        ("# Write Mask\n0x10 0x0\n0x11", false),
        ("# Write Mask\n0x10 0x0\n# end", true),
        ("kvm [1]: ignored wrmsr: 0xc001", false),
        ("kvm [1]: ignored wrmsr: 0xc0011029 data 0x", true),
        ("kvm [1]: Unhandled WRMSR(0x1d9)", true),
        (
            "kvm [1]: ignored wrmsr: 0xc0011029\nkvm [1]: ignored wrm",
            false,
        ),
        ("MSR_ADDR,VALUE\n0x1", false),
        ("MSR_ADDR,VALUE\n0x10,0x5", true),
    ] {
        let imported = import(text.as_bytes(), None).expect(text);
        assert_eq!(imported.gap, (!is_whole).then_some(Gap::CutOff), "{text}");
        let policy = print(&imported, "FILE");
        assert_eq!(
            policy.contains("# A part of the file may be missing"),
            !is_whole,
            "{policy}"
        );
        assert!(
            import(format!("{text}\n").as_bytes(), None)
                .is_ok_and(|whole| whole.gap != Some(Gap::CutOff))
        );
    }
}

#[test]
fn import_of_log_has_remark_if_messages_were_lost() {
    let message = "[1.0] kvm [1]: ignored rdmsr: 0x1c9 data 0x0\n";
    for (line, is_lossy) in [
        (
            "[1.1] kvm_msr_ignored_check: 120 callbacks suppressed",
            true,
        ),
        (
            "Nov 22 20:19:29 host kernel: __ratelimit: 3 callbacks suppressed",
            true,
        ),
        ("[1.1] svm_set_msr: 3 callbacks suppressed", true),
        (
            "Nov 22 host rsyslogd: imklog: 53 messages lost due to rate-limiting",
            true,
        ),
        (
            "Nov 22 host systemd-journald[428]: Suppressed 1234 messages from kernel",
            true,
        ),
        ("-- 12 messages suppressed --", true),
        ("printk: 12 messages suppressed.", true),
        (
            "Nov 22 host systemd-journald[428]: kmsg buffer overrun, some messages lost.",
            true,
        ),
        ("[1.1] ** 12 printk messages dropped **", true),
        (
            "Nov 22 host systemd-journald[363]: Missed 81 kernel messages",
            true,
        ),
        (
            "[1.1] systemd-journald[428]: /dev/kmsg buffer overrun, some messages lost.",
            true,
        ),
        (
            "Nov 22 kvm-host kernel: net_ratelimit: 9 callbacks suppressed",
            false,
        ),
        (
            "Nov 22 host kernel: message repeated 3 times: [ [1.0] kvm [1]: ignored rdmsr: 0x1c9 data 0x0]",
            false,
        ),
    ] {
        let text = format!("{message}{line}\n");
        let imported = import(text.as_bytes(), None).expect(line);
        assert_eq!(
            imported.gap,
            is_lossy.then_some(Gap::LostMessages),
            "{line}"
        );
        let lines: Vec<_> = imported.losses.iter().map(|loss| loss.line).collect();
        assert_eq!(lines, Vec::from_iter(is_lossy.then_some(Some(2))), "{line}");
        let policy = print(&imported, "FILE");
        assert_eq!(
            policy.contains("# The log says that it lacks messages"),
            is_lossy,
            "{policy}"
        );
        assert_eq!(imported.entries.len(), 1, "{line}");
    }
}

#[test]
fn import_counts_repeated_log_messages() {
    let message = "[1.0] kvm [1]: ignored rdmsr: 0x1c9 data 0x0";
    for (lines, times) in [
        (
            format!("{message}\nhost kernel: message repeated 3 times: [ {message}]\n"),
            "4 times",
        ),
        (
            format!("host kernel: message repeated 2 times: [ {message}]\n"),
            "twice",
        ),
        (
            format!("{message}\nhost last message repeated 2 times\n"),
            "3 times",
        ),
        (
            format!("{message}\nusb 1-2: new device\nlast message repeated 2 times\n"),
            "once",
        ),
    ] {
        let imported = import(lines.as_bytes(), None).expect(&lines);
        let why = imported.entries[0].why.as_deref();
        assert_eq!(why, Some(format!("rdmsr {times}").as_str()), "{lines}");
    }
}
