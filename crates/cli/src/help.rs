//! Help texts: a command shows its own flags, and all others with `--help-all`.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command, builder::StyledStr};

/// Name of the flag that shows everything.
const ALL: &str = "help-all";
const ID: &str = "help_all";

/// The shared flags that a command shows in addition to its own.
///
/// A flag is a command's own if it is in no group of flags (a heading of the help text).
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Path of the command below the program, for example `run search`. Also applies to what is
    /// below it, without an entry of its own further up in the list.
    pub command: &'static str,
    /// Headings of groups, or long names of single flags; `*` for all.
    pub flags: &'static [&'static str],
}

/// Removes the flags that belong to other commands from the help texts, and adds `--help-all`,
/// which shows them. They are parsed as before.
pub(crate) fn focused(command: Command, shown: &[Shown], line: &[OsString]) -> Command {
    let all = line.iter().take_while(|word| *word != "--").any(|word| word == OsStr::new("--help-all"));
    focus(built(command), "", shown, all)
}

/// The command as its manual page shows it. The command `help` prints these pages, so it has none.
pub(crate) fn for_manual(command: Command, shown: &[Shown]) -> Command {
    focus(built(command.disable_help_subcommand(true)), "", shown, false)
}

/// With `--help-all`, and with the global flags in all subcommands.
fn built(command: Command) -> Command {
    let flag = Arg::new(ID).long(ALL).action(ArgAction::HelpLong).help("Print help with all flags");
    let mut command = command.arg(flag.help_heading(None).global(true).hide(true));
    command.build();
    command
}

fn focus(command: Command, path: &str, shown: &[Shown], all: bool) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = names.into_iter().filter(|name| name != "help").fold(command, |command, name| {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command.mut_subcommand(name, |sub| focus(sub, &path, shown, all))
    });
    // Without a subcommand the program either has all flags or none.
    if path.is_empty() || all {
        return command;
    }
    let applies =
        |shown: &&Shown| path.strip_prefix(shown.command).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    let flags = shown.iter().find(applies).map_or(&[][..], |shown| shown.flags);
    let is_shown = |arg: &Arg| {
        let heading = arg.get_help_heading();
        heading.is_none() || arg.is_positional() || {
            let names = [heading, arg.get_long()];
            flags.iter().any(|flag| *flag == "*" || names.contains(&Some(*flag)))
        }
    };
    let hidden = command.get_arguments().any(|arg| !arg.is_hide_set() && !is_shown(arg));
    // Not `mut_arg`: it moves the flag, and the table of names of a built command stays as it was.
    let command = command.mut_args(|arg| {
        let hide = if arg.get_id() == ID { !hidden } else { arg.is_hide_set() || !is_shown(&arg) };
        arg.hide(hide)
    });
    if !hidden {
        return command;
    }
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let mut after = command.get_after_help().cloned().unwrap_or_default();
    if !after.to_string().is_empty() {
        after = StyledStr::from(format!("{}\n\n", after.ansi()));
    }
    let after = format!("{}Flags shared with other commands: {name} --{ALL}", after.ansi());
    command.after_help(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let shared = |name: &'static str, heading: &'static str| {
            Arg::new(name).long(name).global(true).help_heading(heading).action(ArgAction::SetTrue)
        };
        Command::new("x")
            .arg(shared("web.port", "Web"))
            .arg(shared("energy.source", "Energy"))
            .arg(shared("energy.price", "Prices"))
            .subcommand(
                Command::new("exec")
                    .arg(
                        Arg::new("json")
                            .long("json")
                            .action(ArgAction::SetTrue)
                            .help("short")
                            .long_help("only the long text"),
                    )
                    .after_help("Examples:\n  x exec"),
            )
            .subcommand(Command::new("serve"))
    }

    const SHOWN: &[Shown] = &[Shown { command: "exec", flags: &["Energy"] }, Shown { command: "serve", flags: &["*"] }];

    fn help(line: &[&str]) -> String {
        let line: Vec<OsString> = line.iter().map(Into::into).collect();
        focused(program(), SHOWN, &line).try_get_matches_from(&line).unwrap_err().to_string()
    }

    #[test]
    fn a_command_shows_its_own_flags() {
        let text = help(&["x", "exec", "--help"]);
        assert!(text.contains("--json") && text.contains("--energy.source"), "{text}");
        assert!(!text.contains("--web.port") && !text.contains("--energy.price"), "{text}");
        assert!(text.contains("x exec\n") && text.contains("x exec --help-all"), "{text}");
        for line in [&["x", "exec", "--help-all"][..], &["x", "serve", "--help"], &["x", "--help"]] {
            let text = help(line);
            assert!(text.contains("--web.port") && text.contains("--energy.price"), "{text}");
        }
        assert!(!help(&["x", "serve", "--help"]).contains("--help-all"));
        assert!(help(&["x", "exec", "--help"]).contains("only the long text"));
        assert!(!help(&["x", "exec", "-h"]).contains("only the long text"));
    }

    #[test]
    fn hidden_flags_are_parsed() {
        for line in [&["x", "exec", "--web.port"][..], &["x", "--web.port", "exec"]] {
            let words: Vec<OsString> = line.iter().map(Into::into).collect();
            let matches = focused(program(), SHOWN, &words).try_get_matches_from(&words).unwrap();
            assert!(matches.subcommand_matches("exec").unwrap().get_flag("web.port"), "{line:?}");
        }
    }
}
