//! Running other programs: what is run is said, what failed is shown, and packages come from the system's manager.

use std::{
    ffi::OsStr,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The workspace root, from where every path below is taken.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The target directory that cargo uses for this workspace.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Names the directory of the programs under test, when they were built before the tests run.
pub const PROGRAMS: &str = "WATTCAST_PROGRAMS";

/// A program under test by the path that cargo gives an integration test in `CARGO_BIN_EXE_…`, or its namesake in [`PROGRAMS`].
#[must_use]
pub fn under_test(built_by_cargo: &str) -> PathBuf {
    let path = Path::new(built_by_cargo);
    match (std::env::var_os(PROGRAMS), path.file_name()) {
        (Some(dir), Some(name)) => PathBuf::from(dir).join(name),
        _ => path.to_owned(),
    }
}

/// The packages of the programs, and of the library that stands in for NVIDIA's. They are always built together: cargo
/// chooses the features of dependencies by the packages it builds, and another set would compile many of them again.
const PACKAGES: [&str; 3] = ["probe-user", "analysis", "fake-nvml"];

/// The directory of the programs for tests: [`PROGRAMS`] where it is set, else built now by [`build_programs`].
///
/// # Errors
/// When the build fails.
pub fn programs() -> Result<PathBuf> {
    std::env::var_os(PROGRAMS).map_or_else(build_programs, |dir| Ok(PathBuf::from(dir)))
}

/// Builds the programs with the profile `e2e`; gives their directory.
///
/// # Errors
/// When the build fails.
pub fn build_programs() -> Result<PathBuf> {
    build(&PACKAGES, "e2e")
}

/// Builds programs of this workspace with a profile of the workspace; gives their directory.
///
/// # Errors
/// When the build fails.
pub fn build(packages: &[&str], profile: &str) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--profile", profile]).current_dir(root());
    if !std::io::stderr().is_terminal() {
        // On a terminal cargo shows how far it is; in a log that is a line for each crate.
        cargo.arg("--quiet");
    }
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    if !cargo.status().context("cannot run cargo")?.success() {
        bail!("the build failed");
    }
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

/// Says one step of a longer job.
pub fn step(what: impl AsRef<str>) {
    eprintln!("  {}", what.as_ref());
}

/// True when we may do anything.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Who called sudo, by user and group; `None` when nobody did.
#[must_use]
pub fn sudo_caller() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    Some((number("SUDO_UID")?, number("SUDO_GID")?)).filter(|(uid, _)| *uid != 0)
}

/// Makes something that we made readable whatever the umask is, and the property of whoever called sudo.
///
/// # Errors
/// When it is not ours to give.
pub fn give_to_caller(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // By descriptor: between two looks at a path somebody else may put another file there.
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    if let Some((uid, gid)) = sudo_caller() {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// A program in PATH.
#[must_use]
pub fn which(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Standard output of a command that must succeed, trimmed.
///
/// # Errors
/// When it cannot be run or fails, with what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.stderr(Stdio::piped()).output().with_context(|| format!("cannot run {shown}"))?;
    if !out.status.success() {
        bail!("{shown}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Runs a program on an input; gives whether it succeeded, and all that it said.
///
/// # Errors
/// When it cannot be started, or says what is no text.
pub fn feed(command: &mut Command, input: &str) -> Result<(bool, String)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok((output.status.success(), String::from_utf8([output.stdout, output.stderr].concat())?))
}

/// Runs a long command quietly: one line when it starts, its time when it ends, its whole output when it fails.
///
/// # Errors
/// When it cannot be run or fails.
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

/// True when the packages can be installed here without asking anybody.
fn can_install() -> bool {
    is_root() && which("apt-get").is_some()
}

/// Installs Debian packages, or names the one command that does.
///
/// `why` completes the sentence "… is needed to …"; `elsewhere` is what to do where there is no apt.
///
/// # Errors
/// When they cannot be installed here; the message says what to run.
pub fn packages(names: &[&str], why: &str, elsewhere: &str) -> Result<()> {
    let list = names.join(" ");
    if which("apt-get").is_none() {
        bail!("something is missing that is needed to {why}. Run: {elsewhere}");
    }
    if !can_install() {
        bail!("{list} is needed to {why}. Run: sudo apt-get install -y {list}");
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // An index that lists the packages already saves the refresh; a bare machine has none, or an old one.
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
        // The index named versions that the mirror no longer has.
        run("refreshing the package index (apt-get update)", &mut apt(&["-q", "update"]))?;
        install(&format!("installing {list}"))
    })
}
