//! Tests that the C and the Rust that `emit` writes compile by themselves, and hold the filter that
//! was compiled.

#![expect(
    clippy::unwrap_used,
    reason = "a failed assumption is the result of a test"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use msrgate_filter::abi::{CallerWidth, Segment, UserAddress};
use msrgate_filter::{DefaultAction, Filter, Revision, SetCall};
use msrgate_policy::{NoIncludes, Program, Source, Variant, compile, emit, parse};

/// A C program that prints the struct in the format of [`shown`].
const C_MAIN: &str = r#"
#include <stdio.h>
#include "filter.h"

int main(void)
{
	struct kvm_msr_filter filter;

	msrgate_fill(&filter);
	printf("%u %llx\n", filter.flags, (unsigned long long)MSRGATE_EXIT_REASONS);
	for (int slot = 0; slot < KVM_MSR_FILTER_MAX_RANGES; slot++) {
		const struct kvm_msr_filter_range *range = &filter.ranges[slot];

		if (range->nmsrs == 0)
			continue;
		printf("%u %x %u ", range->flags, range->base, range->nmsrs);
		for (unsigned int byte = 0; byte < (range->nmsrs + 63) / 64 * 8; byte++)
			printf("%02x", range->bitmap[byte]);
		printf("\n");
	}
	return 0;
}
"#;

const RUST_MAIN: &str = r#"
mod filter;

fn main() {
    println!("{} {:x}", u32::from(filter::DEFAULT_DENY), filter::EXIT_REASONS);
    for range in filter::RANGES {
        print!("{} {:x} {} ", range.flags, range.base, range.nmsrs);
        range.bitmap.iter().for_each(|byte| print!("{byte:02x}"));
        println!();
    }
}
"#;

const POLICIES: [&str; 3] = [
    "policy = 1\ndefault = 'allow'\nlog = 'none'",
    "policy = 1\ndefault = 'deny'",
    "policy = 1\ndefault = 'deny'\n[msrs]\n'0x10..=0x99' = 'r'\n0x20 = 'w'\n0x1d9 = 'rw'\n'0xc0000080..=0xc0000084' = 'rw'\n0xc0000102 = 'w'",
];

fn program(text: &str) -> Program {
    let policy = parse(&Source::new("policy.toml", text), &mut NoIncludes).unwrap();
    compile(policy).unwrap().into_program()
}

fn shown(variant: &Variant) -> String {
    let filter = variant.filter();
    let flags = u32::from(filter.default_action() == DefaultAction::Deny);
    let mut text = format!("{flags} {:x}\n", variant.reasons().bits());
    for range in filter.ranges() {
        let (flags, base) = (range.accesses().bits(), range.base().get());
        text += &format!("{flags} {base:x} {} ", range.bitmap().count());
        for word in range.bitmap().words() {
            text.extend(word.to_le_bytes().map(|byte| format!("{byte:02x}")));
        }
        text.push('\n');
    }
    text
}

/// Returns an empty folder for this test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && talk.is_empty(),
        "{command:?}: {talk}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Returns true if the compiler exists. Without the compiler, the test is skipped, or fails if
/// `MSRGATE_REQUIRE` names `cc`.
fn has(compiler: &str) -> bool {
    let found = Command::new(compiler).arg("--version").output().is_ok();
    let required = env::var("MSRGATE_REQUIRE").unwrap_or_default();
    assert!(
        found || !required.split(',').any(|one| one == "cc"),
        "no {compiler}"
    );
    if !found {
        eprintln!("SKIPPED: no {compiler}");
    }
    found
}

#[test]
fn emitted_c_header_compiles_and_holds_filter() {
    if !has("cc") {
        return;
    }
    let folder = folder("emit-c");
    fs::write(folder.join("main.c"), C_MAIN).unwrap();
    for text in POLICIES {
        let program = program(text);
        let variant = &program.variants()[0];
        fs::write(folder.join("filter.h"), emit::c(variant, None)).unwrap();
        let flags = [
            "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", "main", "main.c",
        ];
        output(Command::new("cc").args(flags).current_dir(&folder));
        assert_eq!(
            output(&mut Command::new(folder.join("main"))),
            shown(variant)
        );
    }
}

#[test]
fn emitted_rust_module_compiles_and_holds_filter() {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    if !has(&rustc) {
        return;
    }
    let folder = folder("emit-rust");
    fs::write(folder.join("main.rs"), RUST_MAIN).unwrap();
    for text in POLICIES {
        let program = program(text);
        let variant = &program.variants()[0];
        fs::write(folder.join("filter.rs"), emit::rust(variant, None)).unwrap();
        let flags = [
            "--edition",
            "2021",
            "-D",
            "warnings",
            "-o",
            "main",
            "main.rs",
        ];
        output(Command::new(&rustc).args(flags).current_dir(&folder));
        assert_eq!(
            output(&mut Command::new(folder.join("main"))),
            shown(variant)
        );
    }
}

/// If the bytes that `emit` writes lie in memory from address 0 on, the ioctl that sets a filter
/// reads the variant's filter from them.
#[test]
fn ioctl_that_sets_filter_reads_same_filter_from_emitted_abi_bytes() {
    for text in POLICIES {
        let program = program(text);
        let variant = &program.variants()[0];
        let bytes = emit::abi(variant).unwrap();
        let memory = Segment {
            start: UserAddress::NULL,
            bytes: &bytes,
        };
        let width = CallerWidth::Bits64;
        let call = SetCall::read(Revision::Mainline, width, &memory, UserAddress::NULL);
        assert_eq!(
            call.published().last().map(Filter::ranges),
            Some(variant.filter().ranges())
        );
        assert!(call.published().last() == Some(variant.filter()));
    }
}

#[test]
fn emitted_json_is_one_line_with_exit_reasons() {
    let program =
        program("policy = 1\ndefault = 'deny'\n[msrs]\n'0x10..=0x12' = 'rw'\n0x11 = 'none'");
    assert_eq!(
        emit::json(&program.variants()[0], None),
        "{\"schema\":1,\"default\":\"deny\",\"ranges\":[{\"access\":\"rw\",\"base\":\"0x10\",\"count\":3,\"bitmap\":\"0500000000000000\"}],\"reasons\":[\"filter\"]}\n"
    );
}

#[test]
fn emit_lists_parts_of_policy_that_filter_alone_cannot_express() {
    let of = |text: &str| {
        let program = program(text);
        let losses = emit::losses(&program, &program.variants()[0]);
        losses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert_eq!(POLICIES.map(of), ["", "", ""]);
    assert_eq!(
        of(
            "policy = 1\ndefault = 'allow'\nmode = 'audit'\nunknown = 'ignore'\nlog = 'first'\n[msrs]\n0x10 = { read = { value = 1 }, write = 'deny' }"
        ),
        "answers from user space; answers for MSRs that KVM does not know; the mode audit, which refuses no access; a log of accesses that are allowed"
    );
    for (policy, lost) in [
        (
            "default = 'kill'",
            "`default = \"kill\"`, which ends the guest",
        ),
        (
            "default = 'kill'\n[msrs]\n0x10 = { read = 'kill', write = 'deny' }",
            "`default = \"kill\"`, which ends the guest",
        ),
        (
            "default = 'kill'\n[msrs]\n0x10 = { read = { value = 1 }, write = 'ignore' }",
            "`default = \"kill\"`, which ends the guest; answers from user space",
        ),
        (
            "default = 'deny'\n[msrs]\n'0x900..=0xfffffffe' = { read = 'kill', write = 'kill' }",
            "the action `kill`, which ends the guest",
        ),
        (
            "default = 'deny'\n[msrs]\n0x10 = { read = { value = 1 }, write = 'kill' }",
            "the action `kill`, which ends the guest; answers from user space",
        ),
    ] {
        assert_eq!(of(&format!("policy = 1\n{policy}")), lost, "{policy}");
    }
    // In audit mode `kill` is no answer: it ends no guest.
    let kills = |mode| {
        of(&format!(
            "policy = 1\ndefault = 'deny'\nmode = '{mode}'\n[msrs]\n0x10 = {{ read = 'kill', write = 'deny' }}"
        ))
    };
    assert_eq!(kills("enforce"), "the action `kill`, which ends the guest");
    assert_eq!(kills("audit"), "the mode audit, which refuses no access");
}
