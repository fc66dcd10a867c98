//! Flags over environment over file over defaults.
//!
//! A TOML file says what flags say, under the flags' names: `--energy.model.idle-watts=3` is `idle-watts = 3` below `[energy.model]`. What nobody said on the
//! command line or in the environment is put on the command line from the file, so that every value has one parser and one check.

use std::{ffi::OsString, path::Path};

use clap::{ArgMatches, Command, Parser, parser::ValueSource};
use toml::{Table, Value};

use crate::{file::read_whole, nearest::nearest};

/// Largest configuration file, in bytes.
const MAX: u64 = 1 << 20;
/// The flag that names the file.
const FILE: &str = "config.file";
/// Flags that mean nothing in a file.
const NOT_THERE: [&str; 4] = [FILE, "config.check", "help", "version"];

/// What of a file the program reads by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    /// Keys that stay as they are, with all that is below them; with dots, where they are not of the top level.
    pub keys: &'static [&'static str],
    /// Flags that stay among those too: the program wants to know who said them.
    pub flags: &'static [&'static str],
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The command line: help too.
    Line(clap::Error),
    /// The file.
    File(String),
}

/// Reads command line, environment, and the file that they name. Gives what the file says besides, too.
pub(crate) fn parse<P: Parser>(own: Own, line: Vec<OsString>) -> Result<(P, Table), Stopped> {
    let command = || without_empty(P::command());
    let mut matches = command().try_get_matches_from(&line).map_err(Stopped::Line)?;
    let mut rest = Table::new();
    if let Some(file) = file_of(&matches) {
        let in_file = |why: String| Stopped::File(format!("{}: {why}", Path::new(&file).display()));
        let text = read_whole(Path::new(&file), MAX).map_err(|error| in_file(error.to_string()))?;
        let all = command();
        let settings;
        (settings, rest) = split(&all, own, &text).map_err(in_file)?;
        let line = layered(&all, &matches, line, &settings);
        matches = command().try_get_matches_from(line).map_err(|error| {
            // The line alone was right, so this is the file's.
            let text = error.to_string();
            in_file(
                text.trim_start_matches("error: ").split("\n\nFor more").next().unwrap_or_default().trim().to_owned(),
            )
        })?;
    }
    let parsed = P::from_arg_matches_mut(&mut matches).map_err(Stopped::Line)?;
    Ok((parsed, rest))
}

/// An environment variable without a value says nothing: compose files have them so.
fn without_empty(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| {
        let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if empty { arg.env(None::<&'static str>) } else { arg }
    });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// A flag and its values, as the file has them.
#[derive(Debug, PartialEq)]
struct Setting {
    flag: String,
    values: Vec<String>,
}

fn file_of(matches: &ArgMatches) -> Option<OsString> {
    let here = matches.try_get_raw(FILE_ID).ok().flatten().and_then(|mut values| values.next().map(ToOwned::to_owned));
    here.or_else(|| matches.subcommand().and_then(|(_, below)| file_of(below)))
}

/// The id of the flag's argument in both programs' definitions.
const FILE_ID: &str = "config_file_path";

fn flags(command: &Command) -> Vec<&str> {
    let own = command.get_arguments().filter_map(clap::Arg::get_long);
    let below = command.get_subcommands().flat_map(flags);
    own.chain(below).filter(|flag| !NOT_THERE.contains(flag)).collect()
}

/// Divides a file into what are flags, and what the program reads itself.
///
/// # Errors
/// What is wrong, with the nearest right name of a wrong one.
fn split(command: &Command, own: Own, text: &str) -> Result<(Vec<Setting>, Table), String> {
    let mut table: Table =
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    let known = flags(command);
    let mut settings = Vec::new();
    take(&mut table, "", &known, own, &mut settings)?;
    Ok((settings, table))
}

fn take(table: &mut Table, above: &str, known: &[&str], own: Own, out: &mut Vec<Setting>) -> Result<(), String> {
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        // Both are usual in TOML; flags have dashes.
        let path = format!("{above}{}", key.replace('_', "-"));
        let Some(value) = table.get_mut(&key) else { continue };
        let is_table = value.is_table();
        if known.contains(&&*path) && !own.flags.contains(&&*path) && !is_table {
            let values = scalars(value).ok_or_else(|| format!("{path}: a value, or a list of values"))?;
            out.push(Setting { flag: path, values });
            table.remove(&key);
            continue;
        }
        let is_below = |name: &str, above: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('.'));
        let owned: Vec<String> = own.keys.iter().map(|key| key.replace('_', "-")).collect();
        let is_own = owned.iter().any(|name| path == *name || is_below(&path, name));
        let mut names = owned.iter().map(String::as_str).chain(known.iter().copied());
        let leads_on = is_table && names.any(|name| is_below(name, &path));
        if !is_own && !leads_on {
            return Err(unknown(&path, known, own));
        }
        if let Value::Table(inner) = value {
            take(inner, &format!("{path}."), known, own, out)?;
            if inner.is_empty() {
                table.remove(&key);
            }
        }
    }
    Ok(())
}

fn unknown(path: &str, known: &[&str], own: Own) -> String {
    // Of a table alone, too: [webb] means [web].
    let depth = path.split('.').count();
    let as_deep = known.iter().map(|flag| flag.split('.').take(depth).collect::<Vec<_>>().join("."));
    let as_deep: Vec<String> = as_deep.chain(own.keys.iter().map(|key| (*key).to_owned())).collect();
    let found = nearest(path, as_deep.iter().map(String::as_str)).or_else(|| nearest(path, known.iter().copied()));
    match found {
        Some(nearest) => format!("{path} is nothing that can be set; did you mean {nearest}?"),
        None => format!("{path} is nothing that can be set; keys are the flags without their dashes (--help)"),
    }
}

fn scalars(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(vec![value.to_string()]),
        Value::Array(all) => {
            all.iter().map(|one| scalars(one).filter(|_| !one.is_array()).and_then(|mut one| one.pop())).collect()
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// The command line with what the file adds, before what the user wrote.
fn layered(command: &Command, matches: &ArgMatches, line: Vec<OsString>, settings: &[Setting]) -> Vec<OsString> {
    let mut line = line;
    let name = matches.subcommand_name().unwrap_or_default();
    let below = command.find_subcommand(name);
    let below_at = place(command, &line, name).filter(|_| below.is_some());
    // From the back, so that the place at the front stays right.
    if let (Some(below), Some(at), Some((_, matches))) = (below, below_at, matches.subcommand()) {
        line.splice(at + 1..at + 1, words(below, matches, settings));
    }
    line.splice(1..1, words(command, matches, settings));
    line
}

/// Where a command's subcommand stands: the first word of its name that is no flag's value.
fn place(command: &Command, line: &[OsString], name: &str) -> Option<usize> {
    let takes_value = |word: &OsString| {
        let long = word.to_str().and_then(|word| word.strip_prefix("--"));
        let arg = long.and_then(|long| command.get_arguments().find(|arg| arg.get_long() == Some(long)));
        arg.is_some_and(|arg| arg.get_action().takes_values())
    };
    (1..line.len()).find(|at| line[*at] == *name && !takes_value(&line[at - 1]))
}

/// Flags of a file that another says too, when it is said nearer by: the seeds' `--port` is an address.
const SAID_BY: [(&str, &str); 1] = [("web.listen-address", "port")];

/// The words for one command: what it has as a flag, and nobody said nearer by.
fn words(command: &Command, matches: &ArgMatches, settings: &[Setting]) -> Vec<OsString> {
    let find = |long: &str| command.get_arguments().find(|arg| arg.get_long() == Some(long));
    let said = |arg: &clap::Arg| {
        let source = matches
            .try_contains_id(arg.get_id().as_str())
            .ok()
            .and_then(|_| matches.value_source(arg.get_id().as_str()));
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let mut all = Vec::new();
    for Setting { flag, values } in settings {
        let Some(arg) = find(flag) else { continue };
        let opposite = find(&format!("no-{flag}"));
        let other = SAID_BY.iter().find(|(known, _)| known == flag).and_then(|(_, other)| find(other));
        if said(arg) || opposite.is_some_and(said) || other.is_some_and(said) {
            continue;
        }
        if arg.get_action().takes_values() {
            all.extend(values.iter().map(|value| OsString::from(format!("--{flag}={value}"))));
        } else {
            match (values.last().map(String::as_str), opposite) {
                (Some("true"), _) => all.push(format!("--{flag}").into()),
                (Some("false"), Some(_)) => all.push(format!("--no-{flag}").into()),
                (Some("false"), None) => {}
                // Neither: clap says what is wrong with it.
                (value, _) => all.push(format!("--{flag}={}", value.unwrap_or_default()).into()),
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use clap::Subcommand;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "x", mut_args(|arg| arg.global(true)))]
    struct Line {
        #[arg(long = "config.file", id = "config_file_path")]
        _file: Option<std::path::PathBuf>,
        #[arg(long = "web.listen-address")]
        listen: Vec<String>,
        #[arg(long, env = "LAYERS_TEST_TICK", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=60))]
        tick: u8,
        #[arg(long = "collector.cpu", overrides_with = "without_cpu")]
        with_cpu: bool,
        #[arg(long = "no-collector.cpu", overrides_with = "with_cpu")]
        without_cpu: bool,
        #[arg(long, default_value_t = 1)]
        port: u16,
        #[arg(long)]
        plain: bool,
        #[command(subcommand)]
        job: Option<Job>,
    }

    #[derive(Debug, PartialEq, Subcommand)]
    enum Job {
        Run {
            #[arg(long, default_value_t = 0)]
            times: u8,
        },
    }

    const OWN: Own = Own { keys: &["price", "rule"], flags: &[] };

    fn run(file: &str, line: &[&str]) -> Result<(Line, Table), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).unwrap();
        let mut all: Vec<OsString> = vec!["x".into(), "--config.file".into(), path.into()];
        all.extend(line.iter().map(Into::into));
        parse(OWN, all).map_err(|stopped| match stopped {
            Stopped::Line(error) => error.to_string(),
            Stopped::File(why) => why,
        })
    }

    #[test]
    fn a_file_says_what_nobody_said_nearer_by() {
        let file = "tick = 5\nplain = true\nprice = 0.5\n[web]\nlisten_address = [\":1\", \":2\"]\n[collector]\ncpu = false\n[[rule]]\nname = \"a\"";
        let (line, rest) = run(file, &[]).unwrap();
        assert_eq!((line.tick, line.plain, line.with_cpu, line.without_cpu), (5, true, false, true));
        assert_eq!(line.listen, [":1", ":2"]);
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["price", "rule"]);
        let (line, _) = run(file, &["--tick=6", "--web.listen-address=:3", "--collector.cpu"]).unwrap();
        assert_eq!((line.tick, line.with_cpu, line.without_cpu), (6, true, false));
        assert_eq!(line.listen, [":3"], "not those of the file besides");
        let (line, _) = run(file, &["--port=7"]).unwrap();
        assert_eq!((line.port, line.listen), (7, Vec::new()), "a port is an address");
        let (line, _) = run("times = 3\ntick = 7", &["run"]).unwrap();
        assert_eq!((line.job, line.tick), (Some(Job::Run { times: 3 }), 7));
        let (line, _) = run("times = 3\ntick = 7", &["run", "--times=4", "--tick=8"]).unwrap();
        assert_eq!((line.job, line.tick), (Some(Job::Run { times: 4 }), 8));
        assert!(run("times = 3", &[]).is_ok(), "another command's");
        let (line, _) = run("times = 3", &["--web.listen-address", "run", "run"]).unwrap();
        assert_eq!((line.job, &*line.listen), (Some(Job::Run { times: 3 }), &["run".to_owned()][..]));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_nearest_name() {
        for (file, words) in [
            ("tik = 5", &["x.toml", "did you mean tick?"][..]),
            ("[web]\nlisten-adress = \":1\"", &["did you mean web.listen-address?"]),
            ("[webb]\nlisten-address = \":1\"", &["webb", "did you mean web?"]),
            ("[web.listen-address]\na = 1", &["web.listen-address"]),
            ("tick = 500", &["x.toml", "1..=60", "--tick"]),
            ("tick = [[1]]", &["tick"]),
            ("plain = 3", &["x.toml", "--plain"]),
            ("prize = 3", &["did you mean price?"]),
            ("zzz = 3", &["--help"]),
            ("tick = ", &["line 1"]),
        ] {
            let error = run(file, &[]).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{file}: {error}");
        }
    }
}
