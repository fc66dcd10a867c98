//! Layered configuration: flags override environment variables, which override the file, which
//! overrides defaults.
//!
//! The TOML file uses the names of the flags: `--energy.model.idle-watts=3` is `idle-watts = 3`
//! below `[energy.model]`. Values of the file that neither the command line nor the environment
//! sets are inserted into the command line, so that every value has one parser and one check.

use std::{ffi::OsString, path::Path};

use clap::{ArgMatches, Command, Parser, parser::ValueSource};
use toml::{Table, Value};

use crate::{
    file::read_limited,
    help::{self, Shown},
    suggest::nearest,
};

/// Maximum size of the configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Flags without a meaning in the file.
const COMMAND_LINE_ONLY: [&str; 4] = ["config.file", "config.check", "help", "version"];

/// Keys of the file that the program reads itself instead of through flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramKeys {
    /// Groups of keys that are passed to the program with everything below them, `tariff` or
    /// `health.target`.
    pub keys: &'static [&'static [&'static str]],
    /// Flags that are also passed to the program as keys, because it distinguishes a flag from a
    /// key.
    pub flags: &'static [&'static str],
}

/// A command line or configuration file that cannot be run.
#[derive(Debug)]
pub(crate) enum ConfigError {
    /// An error of clap, which includes the output of `--help` and `--version`.
    CommandLine(clap::Error),
    /// An error in the file, with the file's name.
    File(String),
}

/// Parses command line, environment, and the configuration file that they name. Also returns the
/// keys of the file that belong to `program_keys`.
pub(crate) fn parse<P: Parser>(
    program_keys: ProgramKeys,
    shown: &[Shown],
    line: Vec<OsString>,
) -> Result<(P, Table), ConfigError> {
    let command = || without_empty(P::command());
    let mut matches =
        help::focused(command(), shown, &line).try_get_matches_from(&line).map_err(ConfigError::CommandLine)?;
    let mut program_table = Table::new();
    if let Some(file) = file_of(&matches) {
        let in_file = |message: String| ConfigError::File(format!("{}: {message}", Path::new(&file).display()));
        let text = read_limited(Path::new(&file), MAX_BYTES).map_err(|error| in_file(error.to_string()))?;
        let definition = command();
        let settings;
        (settings, program_table) = split(&definition, program_keys, &text).map_err(in_file)?;
        let line = with_settings(&definition, &matches, line, &settings);
        matches = help::focused(command(), shown, &line).try_get_matches_from(line).map_err(|error| {
            // The command line alone was valid, so the error is in the file.
            let text = error.to_string();
            in_file(
                text.trim_start_matches("error: ").split("\n\nFor more").next().unwrap_or_default().trim().to_owned(),
            )
        })?;
    }
    let parsed = P::from_arg_matches_mut(&mut matches).map_err(ConfigError::CommandLine)?;
    Ok((parsed, program_table))
}

/// Ignores environment variables with an empty value, which compose files set for unset ones.
fn without_empty(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| {
        let empty = arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if empty { arg.env(None::<&'static str>) } else { arg }
    });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// A flag and its values in the file.
#[derive(Debug, PartialEq)]
struct Setting {
    flag: String,
    values: Vec<String>,
}

fn file_of(matches: &ArgMatches) -> Option<OsString> {
    let file = matches.try_get_raw(FILE_ID).ok().flatten().and_then(|mut values| values.next().map(ToOwned::to_owned));
    file.or_else(|| matches.subcommand().and_then(|(_, sub)| file_of(sub)))
}

/// The clap id of `--config.file` in both programs.
const FILE_ID: &str = "config_file_path";

fn flags(command: &Command) -> Vec<&str> {
    let own = command.get_arguments().filter_map(clap::Arg::get_long);
    let subcommands = command.get_subcommands().flat_map(flags);
    own.chain(subcommands).filter(|flag| !COMMAND_LINE_ONLY.contains(flag)).collect()
}

/// Splits the file into settings of flags and the table that the program reads itself.
///
/// # Errors
/// The first fault; an unknown key comes with the closest known one.
fn split(command: &Command, program_keys: ProgramKeys, text: &str) -> Result<(Vec<Setting>, Table), String> {
    let mut table: Table =
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
    let known = flags(command);
    let mut settings = Vec::new();
    take_settings(&mut table, "", &known, program_keys, &mut settings)?;
    Ok((settings, table))
}

/// Moves the settings of flags from `table`, which is below the key `prefix`, to `out`.
fn take_settings(
    table: &mut Table,
    prefix: &str,
    known: &[&str],
    program_keys: ProgramKeys,
    out: &mut Vec<Setting>,
) -> Result<(), String> {
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        // TOML keys use dashes or underscores; flags use dashes.
        let path = format!("{prefix}{}", key.replace('_', "-"));
        let Some(value) = table.get_mut(&key) else { continue };
        let is_table = value.is_table();
        if known.contains(&&*path) && !program_keys.flags.contains(&&*path) && !is_table {
            let values = scalars(value).ok_or_else(|| format!("{path}: expected a value or a list of values"))?;
            out.push(Setting { flag: path, values });
            table.remove(&key);
            continue;
        }
        let is_below = |name: &str, parent: &str| name.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'));
        let program: Vec<String> =
            program_keys.keys.iter().copied().flatten().map(|key| key.replace('_', "-")).collect();
        let is_program_key = program.iter().any(|name| path == *name || is_below(&path, name));
        let mut names = program.iter().map(String::as_str).chain(known.iter().copied());
        let is_parent = is_table && names.any(|name| is_below(name, &path));
        if !is_program_key && !is_parent {
            return Err(unknown(&path, known, program_keys));
        }
        if let Value::Table(inner) = value {
            take_settings(inner, &format!("{path}."), known, program_keys, out)?;
            if inner.is_empty() {
                table.remove(&key);
            }
        }
    }
    Ok(())
}

fn unknown(path: &str, known: &[&str], program_keys: ProgramKeys) -> String {
    // Prefixes of the same depth also suggest the name of a table: [web] for [webb].
    let depth = path.split('.').count();
    let prefixes = known.iter().map(|flag| flag.split('.').take(depth).collect::<Vec<_>>().join("."));
    let prefixes: Vec<String> =
        prefixes.chain(program_keys.keys.iter().copied().flatten().map(|key| (*key).to_owned())).collect();
    let suggestion =
        nearest(path, prefixes.iter().map(String::as_str)).or_else(|| nearest(path, known.iter().copied()));
    match suggestion {
        Some(name) => format!("unknown setting {path}; did you mean {name}?"),
        None => format!("unknown setting {path}; keys are the flags without their dashes (--help)"),
    }
}

fn scalars(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(vec![value.to_string()]),
        Value::Array(items) => items
            .iter()
            .map(|item| scalars(item).filter(|_| !item.is_array()).and_then(|mut values| values.pop()))
            .collect(),
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// The command line with the settings of the file inserted before the arguments of the user.
fn with_settings(
    command: &Command,
    matches: &ArgMatches,
    mut line: Vec<OsString>,
    settings: &[Setting],
) -> Vec<OsString> {
    let name = matches.subcommand_name().unwrap_or_default();
    let subcommand = command.find_subcommand(name);
    let index = subcommand_index(command, &line, name).filter(|_| subcommand.is_some());
    // Inserted from the back, so that the indices in front stay valid.
    if let (Some(subcommand), Some(index), Some((_, matches))) = (subcommand, index, matches.subcommand()) {
        line.splice(index + 1..index + 1, arguments(subcommand, matches, settings));
    }
    line.splice(1..1, arguments(command, matches, settings));
    line
}

/// The index of the subcommand on the command line: the first word equal to its name that is not
/// the value of a flag.
fn subcommand_index(command: &Command, line: &[OsString], name: &str) -> Option<usize> {
    let takes_value = |word: &OsString| {
        let long = word.to_str().and_then(|word| word.strip_prefix("--"));
        let arg = long.and_then(|long| command.get_arguments().find(|arg| arg.get_long() == Some(long)));
        arg.is_some_and(|arg| arg.get_action().takes_values())
    };
    (1..line.len()).find(|index| line[*index] == *name && !takes_value(&line[index - 1]))
}

/// Flags, and another flag that overrides each: `--port` of the legacy exporters is a listen
/// address too, and there is one OTLP receiver.
const OVERRIDDEN_BY: [(&str, &str); 3] = [
    ("web.listen-address", "port"),
    ("otlp.endpoint", "otlp.metrics-endpoint"),
    ("otlp.metrics-endpoint", "otlp.endpoint"),
];

/// The settings of the file as arguments of one command, without those that the command line or the
/// environment sets.
fn arguments(command: &Command, matches: &ArgMatches, settings: &[Setting]) -> Vec<OsString> {
    let find = |long: &str| command.get_arguments().find(|arg| arg.get_long() == Some(long));
    let is_set = |arg: &clap::Arg| {
        let source = matches
            .try_contains_id(arg.get_id().as_str())
            .ok()
            .and_then(|_| matches.value_source(arg.get_id().as_str()));
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let mut arguments = Vec::new();
    for Setting { flag, values } in settings {
        let Some(arg) = find(flag) else { continue };
        let opposite = find(&format!("no-{flag}"));
        let other = OVERRIDDEN_BY.iter().find(|(known, _)| known == flag).and_then(|(_, other)| find(other));
        if is_set(arg) || opposite.is_some_and(is_set) || other.is_some_and(is_set) {
            continue;
        }
        if arg.get_action().takes_values() {
            arguments.extend(values.iter().map(|value| OsString::from(format!("--{flag}={value}"))));
        } else {
            match (values.last().map(String::as_str), opposite) {
                (Some("true"), _) => arguments.push(format!("--{flag}").into()),
                (Some("false"), Some(_)) => arguments.push(format!("--no-{flag}").into()),
                (Some("false"), None) => {}
                // Any other value is left to clap, which reports the error.
                (value, _) => arguments.push(format!("--{flag}={}", value.unwrap_or_default()).into()),
            }
        }
    }
    arguments
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
        #[arg(long = "otlp.endpoint")]
        otlp: Option<String>,
        #[arg(long = "otlp.metrics-endpoint")]
        otlp_metrics: Option<String>,
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

    const PROGRAM_KEYS: ProgramKeys = ProgramKeys { keys: &[&["price", "rule"]], flags: &[] };

    fn run(file: &str, line: &[&str]) -> Result<(Line, Table), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).unwrap();
        let mut args: Vec<OsString> = vec!["x".into(), "--config.file".into(), path.into()];
        args.extend(line.iter().map(Into::into));
        parse(PROGRAM_KEYS, &[], args).map_err(|error| match error {
            ConfigError::CommandLine(error) => error.to_string(),
            ConfigError::File(message) => message,
        })
    }

    #[test]
    fn flags_and_environment_override_the_file() {
        let file = "tick = 5\nplain = true\nprice = 0.5\n[web]\nlisten_address = [\":1\", \":2\"]\n[collector]\ncpu = false\n[[rule]]\nname = \"a\"";
        let (line, rest) = run(file, &[]).unwrap();
        assert_eq!((line.tick, line.plain, line.with_cpu, line.without_cpu), (5, true, false, true));
        assert_eq!(line.listen, [":1", ":2"]);
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["price", "rule"]);
        let (line, _) = run(file, &["--tick=6", "--web.listen-address=:3", "--collector.cpu"]).unwrap();
        assert_eq!((line.tick, line.with_cpu, line.without_cpu), (6, true, false));
        assert_eq!(line.listen, [":3"], "replaces the list of the file");
        let (line, _) = run(file, &["--port=7"]).unwrap();
        assert_eq!((line.port, line.listen), (7, Vec::new()), "--port overrides the address");
        let (line, _) = run("times = 3\ntick = 7", &["run"]).unwrap();
        assert_eq!((line.job, line.tick), (Some(Job::Run { times: 3 }), 7));
        let (line, _) = run("times = 3\ntick = 7", &["run", "--times=4", "--tick=8"]).unwrap();
        assert_eq!((line.job, line.tick), (Some(Job::Run { times: 4 }), 8));
        assert!(run("times = 3", &[]).is_ok(), "a flag of another command");
        let (line, _) = run("times = 3", &["--web.listen-address", "run", "run"]).unwrap();
        assert_eq!((line.job, &*line.listen), (Some(Job::Run { times: 3 }), &["run".to_owned()][..]));
    }

    /// The file's receiver got the metrics, because its flag is the more specific one.
    #[test]
    fn a_receiver_of_the_command_line_overrides_that_of_the_file() {
        let receivers = |file: &str, line: &[&str]| {
            let (line, _) = run(file, line).unwrap();
            (line.otlp, line.otlp_metrics)
        };
        let file = "[otlp]\nmetrics-endpoint = \"http://a/\"";
        assert_eq!(receivers(file, &["--otlp.endpoint=http://b"]), (Some("http://b".to_owned()), None));
        let file = "[otlp]\nendpoint = \"http://a\"";
        assert_eq!(receivers(file, &["--otlp.metrics-endpoint=http://b/"]), (None, Some("http://b/".to_owned())));
        assert_eq!(receivers(file, &[]), (Some("http://a".to_owned()), None));
    }

    #[test]
    fn errors_name_the_file_and_the_closest_setting() {
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
