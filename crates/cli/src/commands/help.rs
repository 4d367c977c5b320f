//! `msrgate help`: prints the help of commands, and texts about topics such as the policy language.

use std::io::Write;

use clap::CommandFactory as _;
use msrgate_policy::one_line;

use crate::cli::{Cli, HelpArgs};
use crate::failure::{Answer, Failure};

/// A topic of `msrgate help` that is not a command: the topic's name, and its text, which is built into
/// `msrgate`.
struct Topic {
    name: &'static str,
    text: &'static str,
}

const TOPICS: [Topic; 2] = [
    Topic {
        name: "policy",
        text: include_str!("../../policy-reference.md"),
    },
    Topic {
        name: "schema",
        text: include_str!("../../policy.schema.json"),
    },
];

pub(super) fn run(args: &HelpArgs, out: &mut dyn Write) -> Result<Answer, Failure> {
    let mut program = Cli::command();
    // The usage lines of the commands begin with the program's name only after this call.
    program.build();
    let Some(topic) = &args.topic else {
        write!(out, "{}", program.render_long_help().ansi())?;
        return Ok(Answer::Yes);
    };
    if let Some(command) = program.find_subcommand_mut(topic) {
        write!(out, "{}", command.render_long_help().ansi())?;
    } else if let Some(topic) = TOPICS.iter().find(|one| one.name == topic) {
        out.write_all(topic.text.as_bytes())?;
    } else {
        let commands = program.get_subcommands().map(clap::Command::get_name);
        let topics = TOPICS.iter().map(|topic| topic.name);
        let all: Vec<_> = commands.chain(topics).collect();
        return Err(Failure::Usage(format!(
            "there is no help about `{}`; the topics are {}",
            one_line(topic),
            all.join(", ")
        )));
    }
    Ok(Answer::Yes)
}
