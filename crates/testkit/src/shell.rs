//! Running other programs, with progress messages and readable errors, and installing packages.

use std::{
    ffi::OsStr,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// The target directory of the workspace.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Environment variable with the directory of programs that were built before the tests run.
pub const PROGRAMS: &str = "WATTCAST_PROGRAMS";

/// The path of a program under test: that in `CARGO_BIN_EXE_…`, or the same file name in
/// [`PROGRAMS`].
#[must_use]
pub fn under_test(built_by_cargo: &str) -> PathBuf {
    let path = Path::new(built_by_cargo);
    match (std::env::var_os(PROGRAMS), path.file_name()) {
        (Some(dir), Some(name)) => PathBuf::from(dir).join(name),
        _ => path.to_owned(),
    }
}

/// The packages of both programs and of the fake NVML library. They are always built together:
/// cargo selects features of dependencies by the set of packages, and another set would rebuild
/// many of them.
const PACKAGES: [&str; 3] = ["probe-user", "analysis", "wattcast-fake-nvml"];

/// The directory of the programs under test: [`PROGRAMS`] if it is set, otherwise that of
/// [`build_programs`].
///
/// # Errors
/// When the build fails.
pub fn programs() -> Result<PathBuf> {
    std::env::var_os(PROGRAMS).map_or_else(build_programs, |dir| Ok(PathBuf::from(dir)))
}

/// Builds the programs with the profile `e2e`; returns their directory.
///
/// # Errors
/// When the build fails.
pub fn build_programs() -> Result<PathBuf> {
    build(&PACKAGES, "e2e")
}

/// Where the programs are that benchmarks measure: [`PROGRAMS`] if it is set, otherwise the release
/// profile of this tree, after [`build_release`].
#[must_use]
pub fn release_dir() -> PathBuf {
    std::env::var_os(PROGRAMS).map_or_else(|| target().join("release"), PathBuf::from)
}

/// Builds both programs with the profile `release`, unless [`PROGRAMS`] names others; returns
/// [`release_dir`].
///
/// # Errors
/// When the build fails.
pub fn build_release() -> Result<PathBuf> {
    if std::env::var_os(PROGRAMS).is_none() {
        build(&["probe-user", "analysis"], "release")?;
    }
    Ok(release_dir())
}

/// Builds packages of this workspace with a profile; returns the directory of the programs.
///
/// # Errors
/// When the build fails.
pub fn build(packages: &[&str], profile: &str) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--profile", profile]).current_dir(root());
    if !std::io::stderr().is_terminal() {
        // Without a terminal, cargo would print a line for each crate instead of a progress bar.
        cargo.arg("--quiet");
    }
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("the build failed");
    }
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

/// Prints one step of a longer task.
pub fn step(what: impl AsRef<str>) {
    eprintln!("  {}", what.as_ref());
}

/// True for effective user 0.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// User and group ids of the user who called sudo; `None` without sudo.
#[must_use]
pub fn sudo_caller() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    Some((number("SUDO_UID")?, number("SUDO_GID")?)).filter(|(uid, _)| *uid != 0)
}

/// Sets the mode of a file independently of the umask, and its owner to the user who called sudo.
///
/// # Errors
/// Without permission to change them.
pub fn give_to_caller(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // By descriptor: another process may replace the file between two accesses by path.
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = sudo_caller() {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// The path of a program in PATH.
#[must_use]
pub fn which(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs a command; returns its trimmed standard output.
///
/// # Errors
/// When it does not start or fails, with its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.stderr(Stdio::piped()).output().with_context(|| format!("cannot run {shown}"))?;
    if !out.status.success() {
        bail!("{shown}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Runs a command with an input; returns whether it succeeded, and its output.
///
/// # Errors
/// When it does not start, or its output is not UTF-8.
pub fn feed(command: &mut Command, input: &str) -> Result<(bool, String)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok((output.status.success(), String::from_utf8([output.stdout, output.stderr].concat())?))
}

/// Runs a long command: prints one line with its duration, and its output if it fails.
///
/// # Errors
/// When it does not start or fails.
pub fn run(what: &str, command: &mut Command) -> Result<()> {
    let start = Instant::now();
    eprint!("  {what} ... ");
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", show(command)));
    let out = match out {
        Ok(out) => out,
        Err(error) => {
            eprintln!("failed");
            return Err(error);
        }
    };
    if out.status.success() {
        eprintln!("{:.1} s", start.elapsed().as_secs_f64());
        return Ok(());
    }
    eprintln!("failed");
    bail!(
        "{}: {}\n{}{}",
        show(command),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr).trim_end()
    )
}

fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// True if packages can be installed here without a password.
fn can_install() -> bool {
    is_root() && which("apt-get").is_some()
}

/// Installs Debian packages; the error has the command where that is not possible.
///
/// `why` completes the sentence "… is needed to …"; `elsewhere` is the instruction for systems
/// without apt.
///
/// # Errors
/// When they cannot be installed here.
pub fn packages(names: &[&str], why: &str, elsewhere: &str) -> Result<()> {
    let list = names.join(" ");
    if which("apt-get").is_none() {
        bail!("a package is missing that is needed to {why}. Run: {elsewhere}");
    }
    if !can_install() {
        bail!("{list} is needed to {why}. Run: sudo apt-get install -y {list}");
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // No refresh if the index has the packages; a new machine has no index.
    let known = names.iter().all(|name| {
        Command::new("apt-cache")
            .args(["show", "--no-all-versions", name])
            .output()
            .is_ok_and(|out| out.status.success() && !out.stdout.is_empty())
    });
    if !known {
        run("refreshing the package index (apt-get update)", &mut apt(&["-q", "update"]))?;
    }
    let install = |what: &str| {
        run(what, apt(&["install", "-y", "-q", "--no-install-recommends"]).args(names))
            .with_context(|| format!("{list} is needed to {why}"))
    };
    install(&format!("installing {list}")).or_else(|_| {
        // The index may have versions that the mirror no longer has.
        run("refreshing the package index (apt-get update)", &mut apt(&["-q", "update"]))?;
        install(&format!("installing {list}"))
    })
}
