//! Habits of the command line that both programs share: exit codes, logs, who they are.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::family::{Def, Family};

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

/// A price on the command line.
///
/// # Errors
/// What is wrong with it.
pub fn price(text: &str) -> Result<f64, String> {
    let price: f64 = text.parse().map_err(|_| "give a number, for example 0.12".to_owned())?;
    if (0.0..=1e6).contains(&price) { Ok(price) } else { Err("0 to 1000000".into()) }
}

/// Parses the command line. An unknown flag or value names the nearest right one and ends with [`EX_USAGE`].
///
/// # Errors
/// The exit code to leave with, when there is nothing to run.
pub fn parse<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        // Nothing can be done about a closed terminal.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
    })
}

/// Logs go to standard error, in `level` and above; `RUST_LOG` overrides for one's own digging.
pub fn log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // A second initialisation happens in tests only, and the first one serves.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
