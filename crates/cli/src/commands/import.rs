//! `msrgate import`: turns files of other tools and of the kernel into a policy.

use std::fs::File;
use std::io::{self, Read, Write};

use msrgate_policy::import::{Format, Imported, LossKind, Scope, import, print};
use msrgate_policy::{one_line, shown_name};

use crate::cli::{FromArg, ImportArgs};
use crate::failure::{Answer, Failure};
use crate::load::{self, is_standard_input};
use crate::missing;
use crate::named::name;
use crate::output;
use crate::processor;

/// The largest file that can be imported: 64 MiB.
const MAX_BYTES: usize = 64 << 20;

impl FromArg {
    const fn format(self) -> Format {
        match self {
            Self::KernelLog => Format::KernelLog,
            Self::Firecracker => Format::Firecracker,
            Self::FirecrackerList => Format::FirecrackerList,
            Self::MsrSafe => Format::MsrSafe,
            Self::Compiled => Format::Compiled,
            Self::Program => Format::Program,
        }
    }
}

pub(super) fn run(args: &ImportArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let name = if is_standard_input(&args.file) {
        "standard input".to_owned()
    } else {
        name(&args.file)
    };
    let trouble = |why: String| Failure::Input {
        what: name.clone(),
        why,
    };
    let from = if is_standard_input(&args.file) {
        load::standard_input()?
    } else {
        File::open(&args.file).map_err(|error| trouble(missing::why(&args.file, &error)))?
    };
    let bytes = read(from).map_err(|error| trouble(missing::reason(&error)))?;
    if bytes.len() > MAX_BYTES {
        let limit = MAX_BYTES >> 20;
        return Err(trouble(format!(
            "the input is longer than {limit} MiB; import a part of it"
        )));
    }
    let imported = import(&bytes, args.from.map(FromArg::format))
        .map_err(|error| trouble(error.to_string()))?;
    let name = &shown_name(&name);
    remark(name, &imported);
    if imported.entries.is_empty() && !is_policy_of_default(imported.format) {
        // The command prints no policy without entries: it would deny everything or nothing, and the user
        // wants neither.
        output::say(&format_args!(
            "{}: the file is {}, but no part of it can become a policy entry\n",
            name, imported.format
        ));
        return Ok(match imported.gap {
            Some(_) => Answer::Incomplete,
            None => Answer::No,
        });
    }
    out.write_all(print(&imported, name).as_bytes())?;
    Ok(match (imported.gap, imported.scope) {
        // The missing part of a file or of a log may deny more accesses.
        (Some(_), _) => Answer::Incomplete,
        // The policy is taken from the part of a program for one processor. On all other processors the
        // policy may allow a guest more than the program does.
        (_, Scope::Like(_)) => Answer::No,
        _ => Answer::Yes,
    })
}

/// Returns true for formats in which a file states a default action. Such a file is a whole policy even if
/// it names no MSR: Hyperlight's filter for no MSRs refuses every access, and the filter of `allow-all`
/// allows every access.
const fn is_policy_of_default(format: Format) -> bool {
    matches!(format, Format::Compiled | Format::Program)
}

/// Reads a file up to one byte beyond [`MAX_BYTES`]. If the result is longer than [`MAX_BYTES`], the caller
/// knows that the file is too long.
fn read(from: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Prints to standard error which parts of the imported file the policy leaves out, and which of the
/// policy's lines are uncertain.
fn remark(name: &str, imported: &Imported) {
    let yellow = anstyle::AnsiColor::Yellow.on_default().bold();
    match &imported.scope {
        Scope::CompiledFor(cpu) => processor::note(&format!(
            "{name} was compiled for {}; on other processors the imported policy may be looser or stricter than the filter's own policy",
            one_line(cpu)
        )),
        Scope::Like(cpu) => processor::note(&format!(
            "the policy has the rules of {name} for processors such as {cpu}; on other processors it may be looser or stricter than the program"
        )),
        _ => {}
    }
    for loss in &imported.losses {
        let label = match loss.kind {
            LossKind::Note => "note",
            _ => "not imported",
        };
        let place = match loss.line {
            Some(line) => format!("{name}:{line}"),
            None => name.to_owned(),
        };
        output::say(&format_args!(
            "{yellow}{label}{yellow:#}: {place}: {}\n",
            one_line(&loss.what)
        ));
    }
}
