//! Habits of the command line that both programs share: exit codes, logs, who they are.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser};
use clap_complete::Shell;
use toml::Table;

use crate::{
    family::{Def, Family},
    layers::{self, Own, Stopped},
};

/// EX_USAGE of sysexits.h: the command line or the configuration is wrong.
pub const EX_USAGE: u8 = 64;

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit this was built from.
pub const REVISION: &str = env!("WATTCAST_REVISION");
/// The compiler this was built with.
pub const RUSTC: &str = env!("WATTCAST_RUSTC");

static BUILD_INFO: Def = Def::gauge(
    "wattcast_build_info",
    &["version", "revision", "rustc"],
    "1; which release, commit and compiler this program is.",
);

/// Every metric of this module.
pub static DEFS: &[&Def] = &[&BUILD_INFO];

/// `wattcast_build_info`.
#[must_use]
pub fn build_info() -> Family {
    Family::new(&BUILD_INFO).with(&[VERSION, REVISION, RUSTC], 1.0)
}

/// Version and revision for people.
#[must_use]
pub fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("WATTCAST_REVISION"), ")")
}

/// Raises the limit of open files to what it may be raised to; gives what it is then. It is low for the sake of programs that use select(2), which we do not.
#[must_use]
pub fn raise_open_files() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 0;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// A price on the command line.
///
/// # Errors
/// What is wrong with it.
pub fn price(text: &str) -> Result<f64, String> {
    let price: f64 = text.parse().map_err(|_| "give a number, for example 0.12".to_owned())?;
    if (0.0..=1e6).contains(&price) { Ok(price) } else { Err("0 to 1000000".into()) }
}

/// The configuration file, and whether only to look at it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct FileFlags {
    /// TOML file. Its keys are the flags without their dashes: `listen-address` below `[web]` is --web.listen-address. Flags and environment win over it
    #[arg(long = "config.file", id = "config_file_path", value_name = "FILE", env = "WATTCAST_CONFIG")]
    pub path: Option<PathBuf>,

    /// Read the configuration, with all that it names, say what is wrong with it, and end
    #[arg(long = "config.check", id = "config_check")]
    pub check: bool,
}

/// Parses command line, environment and configuration file. An unknown flag, key or value names the nearest right one and ends with [`EX_USAGE`].
/// Gives what of the file the program reads itself, too.
///
/// # Errors
/// The exit code to leave with, when there is nothing to run.
pub fn parse<P: Parser>(own: Own) -> Result<(P, Table), ExitCode> {
    layers::parse(own, std::env::args_os().collect()).map_err(|stopped| match stopped {
        Stopped::Line(error) => {
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
        }
        Stopped::File(why) => {
            eprintln!("error: {why}");
            ExitCode::from(EX_USAGE)
        }
    })
}

/// What a configuration that was looked at came to: [`EX_USAGE`] and the reason, or success.
#[must_use]
pub fn checked(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => {
            println!("the configuration is right");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(EX_USAGE)
        }
    }
}

/// Prints what a shell needs to complete the command line.
pub fn completions<P: CommandFactory>(shell: Shell) {
    let mut command = P::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    // A reader that went away has read enough.
    let _ = io::stdout().write_all(&script);
}

/// Writes the manual pages, one for each command, into a directory; without one the first goes to standard output.
///
/// # Errors
/// When they cannot be written.
pub fn manual<P: CommandFactory>(dir: Option<&Path>) -> io::Result<()> {
    match dir {
        Some(dir) => clap_mangen::generate_to(P::command(), dir),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(P::command()).render(&mut page)?;
            let _ = io::stdout().write_all(&page);
            Ok(())
        }
    }
}
