//! Command-line behaviour of both programs: exit codes, version, configuration check, completions,
//! manual pages.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser};
use clap_complete::Shell;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use toml::Table;

use crate::{
    config_file::{self, ConfigError, ProgramKeys},
    help::{self, Shown},
    signals,
};
use metrics::family::{Def, Family};

/// Exit code `EX_USAGE` of sysexits.h: invalid command line or configuration.
pub const EX_USAGE: u8 = 64;

/// The release, `1.2.3`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The abbreviated commit hash of the build; `unknown` if it was built outside a repository.
pub const REVISION: &str = env!("WATTCAST_REVISION");
/// The version of the compiler of the build.
pub const RUSTC: &str = env!("WATTCAST_RUSTC");

static BUILD_INFO: Def = Def::gauge(
    "wattcast_build_info",
    &["version", "revision", "rustc"],
    "1; release, commit and compiler of this program.",
);

/// All metric definitions of this module.
pub static DEFS: &[&Def] = &[&BUILD_INFO];

/// The family `wattcast_build_info`.
#[must_use]
pub fn build_info() -> Family {
    Family::new(&BUILD_INFO).with(&[VERSION, REVISION, RUSTC], 1.0)
}

/// Version and revision for `--version`, `1.2.3 (0123456789ab)`.
#[must_use]
pub fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("WATTCAST_REVISION"), ")")
}

/// Raises the soft limit of open files to the hard limit and returns it. The default soft limit is
/// low for programs that use select(2), which these programs do not.
#[must_use]
pub fn raise_open_file_limit() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where the kernel refuses, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Parses a price of the command line, from 0 to 1000000.
///
/// # Errors
/// If `text` is not a number in that range.
pub fn price(text: &str) -> Result<f64, String> {
    let price: f64 = text.trim().parse().map_err(|_| "expected a number, for example 0.12".to_owned())?;
    if (0.0..=1e6).contains(&price) { Ok(price) } else { Err("expected 0 to 1000000".into()) }
}

/// Parses a currency code, three letters of ISO 4217, to upper case.
///
/// # Errors
/// If `text` is not a currency code.
pub fn currency(text: &str) -> Result<String, String> {
    let code = text.trim().to_ascii_uppercase();
    if code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        Ok(code)
    } else {
        Err(format!("{text:?} is not a currency; expected three letters of ISO 4217, for example EUR"))
    }
}

/// The `--config.*` flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigFileFlags {
    /// TOML configuration file; flags and environment variables override it
    ///
    /// Keys are flags without their dashes: `listen-address` below `[web]` sets
    /// --web.listen-address.
    #[arg(long = "config.file", id = "config_file_path", value_name = "FILE", env = "WATTCAST_CONFIG")]
    pub path: Option<PathBuf>,

    /// Check the configuration and the files that it names, then exit
    #[arg(long = "config.check", id = "config_check")]
    pub check: bool,
}

/// Parses command line, environment and configuration file. Also returns the keys of the file that
/// the program reads itself. `shown` lists the shared flags in the help texts of commands.
///
/// It is the first call of a program, so from here on SIGINT and SIGTERM end it, also as the first
/// process of a container ([`crate::signals`]).
///
/// # Errors
/// The exit code if there is nothing to run: success after `--help`, [`EX_USAGE`] after an error,
/// which is printed with the closest known name of an unknown flag, key or value.
pub fn parse<P: Parser>(program_keys: ProgramKeys, shown: &[Shown]) -> Result<(P, Table), ExitCode> {
    signals::end_on_signals();
    config_file::parse(program_keys, shown, std::env::args_os().collect()).map_err(|error| match error {
        ConfigError::CommandLine(error) => {
            // A closed terminal cannot be reported anywhere.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
        }
        ConfigError::File(message) => {
            print_error(&format!("error: {message}"));
            ExitCode::from(EX_USAGE)
        }
    })
}

/// Prints the result of `--config.check` and returns its exit code: success, or [`EX_USAGE`].
#[must_use]
pub fn report_check(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => {
            // A closed pipe cannot be reported anywhere.
            let _ = writeln!(io::stdout(), "the configuration is valid");
            ExitCode::SUCCESS
        }
        Err(message) => {
            print_error(&format!("error: {message}"));
            ExitCode::from(EX_USAGE)
        }
    }
}

/// Prints a line on standard error. Unlike `eprintln!` it does not panic if that is closed.
pub fn print_error(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints the completion script of a shell.
pub fn completions<P: CommandFactory>(shell: Shell) {
    let mut command = P::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    // An error means that the reader has closed the pipe.
    let _ = io::stdout().write_all(&script);
}

/// Writes the manual pages, one for each command, to a directory. Without a directory the page of
/// the program is printed.
///
/// # Errors
/// If the pages cannot be written.
pub fn manual<P: CommandFactory>(shown: &[Shown], dir: Option<&Path>) -> io::Result<()> {
    match dir {
        Some(dir) => clap_mangen::generate_to(help::for_manual(P::command(), shown), dir),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(P::command()).render(&mut page)?;
            let _ = io::stdout().write_all(&page);
            Ok(())
        }
    }
}
