//! `cargo xtask dist`: archives, Debian and RPM packages, container images and lists of components
//! of both programs for x86_64 and aarch64, with checksums.
//!
//! The probe links to an old glibc, because it loads NVIDIA's library at run time, which a static
//! program cannot do. A static probe without NVIDIA's GPUs is in the archive too, and in an
//! image. The analysis service is static, and runs in an image without other files. Zig's C
//! compiler, which cargo-zigbuild calls, has both C libraries for both architectures.
//!
//! The same commit gives the same bytes: times are those of the commit or 0, and the programs
//! contain no path of this machine.

mod image;
mod sbom;
mod sizes;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{build_ebpf, marks};
use sizes::Artefact;
use testkit::shell::{self, output, root, run, step, target, which};

/// The oldest supported glibc: Debian 10, RHEL 8, Ubuntu 18.10.
const GLIBC: &str = "2.28";
/// The maintainer of the packages, as in their manifests.
const MAINTAINER: &str = "the Wattcast authors <wattcast@example.org>";
/// Versions of the tools, which are installed in `target/tools`.
const ZIGBUILD: &str = "0.24.1";
const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";
const CARGO_CYCLONEDX: &str = "0.5.9";
const ZIG: &str = "0.17.1";

#[derive(Debug, clap::Args)]
pub struct Dist {
    /// Architectures to build for [default: both]
    #[arg(long, value_name = "ARCH", value_enum)]
    arch: Vec<Arch>,

    /// Output directory
    #[arg(long, value_name = "DIR", default_value = "target/dist")]
    out: PathBuf,

    /// Build the programs only, without archives and packages
    #[arg(long)]
    only_programs: bool,

    /// Write the table of sizes to docs/performance.md
    #[arg(long)]
    write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arch {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The name in container images and Debian packages.
    fn image_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    fn triple(self, program: &Program) -> String {
        format!("{}-unknown-linux-{}", self.name(), program.libc)
    }
}

struct Program {
    package: &'static str,
    name: &'static str,
    short: &'static str,
    libc: &'static str,
}

const PROGRAMS: [Program; 2] = [
    Program { package: "probe-user", name: "wattcast-probe", short: "probe", libc: "gnu" },
    Program { package: "analysis", name: "wattcast-analysis", short: "analysis", libc: "musl" },
];

/// The probe for hosts without a glibc of that age, and for images: it cannot load NVIDIA's
/// library, and reports so.
const STATIC_PROBE: Program = Program { package: "probe-user", name: "wattcast-probe", short: "probe", libc: "musl" };
/// Its file name.
const STATIC_PROBE_FILE: &str = "wattcast-probe-static";

/// Files of an archive, in addition to the programs.
const ARCHIVE_FILES: [&str; 8] = [
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs",
    "deploy",
    "grafana/dashboards",
    "grafana/dashboards-legacy",
    "grafana/provisioning",
];
/// Those of them that build from source, and are left out.
const EXCLUDED_FILES: [&str; 2] = ["deploy/compose", "deploy/docker/Dockerfile"];

/// Builds programs, archives and packages.
pub fn dist(args: &Dist) -> Result<()> {
    if args.write {
        // A missing mark is found before the build, not after it.
        marks::check("performance", &["sizes"])?;
    }
    let arches = if args.arch.is_empty() { vec![Arch::X86_64, Arch::Aarch64] } else { args.arch.clone() };
    build_ebpf::build_ebpf()?;
    eprintln!("Programs");
    let tools = Tools::find()?;
    let out = root().join(&args.out);
    fs::create_dir_all(&out)?;
    // Dockerfile.dist copies this empty directory to a volume.
    fs::create_dir_all(out.join("state"))?;
    let mut all = Vec::new();
    for arch in &arches {
        let dir = out.join(arch.name());
        fs::create_dir_all(&dir)?;
        let mut build = |program: &Program, name: &str| -> Result<()> {
            let path = dir.join(name);
            fs::copy(tools.build(*arch, program)?, &path)?;
            all.push(Artefact::new(&path, format!("{name}, {}", arch.name()))?);
            Ok(())
        };
        for program in &PROGRAMS {
            build(program, program.name)?;
        }
        // Images that are built from source have the other one.
        if !args.only_programs {
            build(&STATIC_PROBE, STATIC_PROBE_FILE)?;
        }
    }
    if args.only_programs {
        return Ok(());
    }
    eprintln!("Archives, packages and images");
    package_files(&shell::build(&PROGRAMS.map(|program| program.package), "dev")?)?;
    let cyclonedx = tool("cargo-cyclonedx", CARGO_CYCLONEDX)?;
    let programs = PROGRAMS.map(|program| (program.package, program.name));
    let mut files = sbom::write(&cyclonedx, &programs, &out, &commit_time()?)?;
    for arch in &arches {
        let made = packages(*arch, &out)?;
        all.extend(made.iter().map(|path| Artefact::of_file(path)).collect::<Result<Vec<_>>>()?);
        files.extend(made);
    }
    checksums(&out, &files)?;
    sizes::report(&all, args.write)
}

/// Writes the archive, packages and images of an architecture; returns their paths.
fn packages(arch: Arch, out: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![archive(arch, out)?];
    for program in &PROGRAMS {
        files.push(debian_package(program, &target(), out, &["--target", &arch.triple(program)])?);
        files.push(rpm_package(program, arch, out)?);
    }
    let dir = out.join(arch.name());
    let programs = [("wattcast-analysis", "wattcast-analysis"), ("wattcast-probe", STATIC_PROBE_FILE)];
    for (name, file) in programs {
        files.push(image::write(name, &dir.join(file), arch.image_name(), out)?);
    }
    for path in &files {
        step(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
    }
    Ok(files)
}

/// The time of the commit in Unix seconds, which all files in archives and packages get; 0 outside
/// of a repository.
fn commit_time() -> Result<String> {
    let time = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()));
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(given) => Ok(given.parse::<u64>().context("SOURCE_DATE_EPOCH is no number")?.to_string()),
        Err(_) => Ok(time.ok().filter(|time| time.parse::<u64>().is_ok()).unwrap_or_else(|| "0".to_owned())),
    }
}

/// Builds Debian packages for this machine from existing programs; returns them in the order of
/// [`PROGRAMS`].
pub(crate) fn debian_packages(programs: &Path, version: &str, out: &Path) -> Result<Vec<PathBuf>> {
    // cargo-deb looks for programs in the directory release of the target directory only.
    let release = out.join("release");
    fs::create_dir_all(&release)?;
    for program in &PROGRAMS {
        fs::copy(programs.join(program.name), release.join(program.name))
            .with_context(|| format!("no {} in {}", program.name, programs.display()))?;
    }
    package_files(programs)?;
    PROGRAMS.iter().map(|program| debian_package(program, out, out, &["--deb-version", version, "--fast"])).collect()
}

/// Builds the package of a program in the target directory; returns its path.
fn debian_package(program: &Program, target: &Path, out: &Path, args: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(tool("cargo-deb", CARGO_DEB)?);
    // The programs are already built and stripped.
    command.args(["--no-build", "--no-strip", "--no-separate-debug-symbols", "-p", program.package]).args(args);
    command.arg("--output").arg(out).current_dir(root()).env("CARGO_TARGET_DIR", target);
    let printed = output(command.env("SOURCE_DATE_EPOCH", commit_time()?))?;
    Ok(PathBuf::from(printed.lines().last().context("cargo-deb printed no path")?))
}

/// Builds the RPM package of a program; returns its path. The dependencies are those of Cargo.toml:
/// the tools of RPM, which find others, are not needed here.
fn rpm_package(program: &Program, arch: Arch, out: &Path) -> Result<PathBuf> {
    let path = out.join(format!("{}-{}-1.{}.rpm", program.name, env!("CARGO_PKG_VERSION"), arch.name()));
    let mut command = Command::new(tool("cargo-generate-rpm", CARGO_GENERATE_RPM)?);
    command.args(["generate-rpm", "--package", program.package, "--auto-req", "disabled"]);
    command.args(["--target", &arch.triple(program), "--arch", arch.name()]).arg("--target-dir").arg(target());
    command.arg("--output").arg(&path).current_dir(root());
    output(command.env("SOURCE_DATE_EPOCH", commit_time()?))?;
    Ok(path)
}

/// The cross compiler.
struct Tools {
    zigbuild: PathBuf,
    /// PATH that includes the Python environment with Zig.
    path: std::ffi::OsString,
}

impl Tools {
    fn find() -> Result<Self> {
        let tools = target().join("tools");
        let mut path = vec![tools.join("zig/bin")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let path = std::env::join_paths(path)?;
        if which("zig").is_none() && !tools.join("zig/bin/python3").exists() {
            let venv = tools.join("zig");
            run(
                "creating a Python environment for Zig (python3 -m venv)",
                Command::new("python3").args(["-m", "venv"]).arg(&venv),
            )
            .context("cross compilation needs Zig: install it, or python3-venv")?;
            run(
                "installing Zig (pip install ziglang)",
                Command::new(venv.join("bin/pip")).args(["install", "-q", &format!("ziglang=={ZIG}")]),
            )?;
        }
        Ok(Self { zigbuild: tool("cargo-zigbuild", ZIGBUILD)?, path })
    }

    fn build(&self, arch: Arch, program: &Program) -> Result<PathBuf> {
        let triple = arch.triple(program);
        if which("rustup").is_some() {
            output(Command::new("rustup").args(["target", "add", &triple]).current_dir(root()))?;
        }
        let floor = if program.libc == "gnu" { format!(".{GLIBC}") } else { String::new() };
        let mut command = Command::new(&self.zigbuild);
        command.args(["zigbuild", "--release", "--locked", "--package", program.package]);
        command.args(["--target", &format!("{triple}{floor}")]).current_dir(root()).env("PATH", &self.path);
        command.env("CARGO_TARGET_DIR", target()).env("SOURCE_DATE_EPOCH", commit_time()?);
        command.env("RUSTFLAGS", rust_flags());
        run(&format!("{} for {}, {}", program.name, arch.name(), program.libc), &mut command)?;
        Ok(target().join(triple).join("release").join(program.name))
    }
}

/// Compiler flags of released programs, after those of the environment: no paths of this machine,
/// so that another directory gives the same bytes.
fn rust_flags() -> String {
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
    let mut flags = vec![given];
    let paths = [(root().to_string_lossy().into_owned(), "wattcast"), (home.unwrap_or_default(), "cargo")];
    // Spaces separate flags.
    let paths = paths.into_iter().filter(|(path, _)| !path.is_empty() && !path.contains(' '));
    flags.extend(paths.map(|(path, name)| format!("--remap-path-prefix={path}={name}")));
    flags.join(" ").trim().to_owned()
}

/// A cargo tool from PATH or `target/tools`, where it is installed if it is missing.
fn tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(path) = which(name) {
        return Ok(path);
    }
    let tools = target().join("tools");
    let path = tools.join("bin").join(name);
    if !path.exists() {
        let mut command = Command::new("cargo");
        // A debug build halves the compile time, and cargo-deb compresses at the same speed.
        command.args(["install", name, "--version", version, "--locked", "--debug", "--root"]).arg(&tools);
        run(&format!("installing {name} {version}"), &mut command)?;
    }
    Ok(path)
}

/// Writes manual pages, completions and changelogs of the packages, with programs of this machine.
fn package_files(bin: &Path) -> Result<()> {
    for program in &PROGRAMS {
        // The package manifests contain this path, also with another target directory.
        let dir = root().join("target/dist").join(program.short);
        let _ = fs::remove_dir_all(&dir);
        let (man, completions) = (dir.join("man"), dir.join("completions"));
        fs::create_dir_all(&man)?;
        fs::create_dir_all(&completions)?;
        output(Command::new(bin.join(program.name)).arg("man").arg(&man))?;
        for (shell, file) in [
            ("bash", format!("{}.bash", program.name)),
            ("zsh", format!("_{}", program.name)),
            ("fish", format!("{}.fish", program.name)),
        ] {
            let text = output(Command::new(bin.join(program.name)).args(["completions", shell]))?;
            fs::write(completions.join(file), text + "\n")?;
        }
        fs::write(dir.join("changelog"), debian_changelog(program.name)?)?;
    }
    Ok(())
}

/// The changelog of a Debian package, which refers to the whole one: Debian's format has one line
/// for each change, and the date of the release.
fn debian_changelog(name: &str) -> Result<String> {
    let date = output(Command::new("date").args(["-u", "-R", "-d", &format!("@{}", commit_time()?)]))?;
    Ok(format!(
        "{name} ({}-1) unstable; urgency=medium\n\n  * All changes are in CHANGELOG.md of the source.\n\n -- {MAINTAINER}  {date}\n",
        env!("CARGO_PKG_VERSION")
    ))
}

fn archive(arch: Arch, out: &Path) -> Result<PathBuf> {
    let name = format!("wattcast-{}-{}-linux", env!("CARGO_PKG_VERSION"), arch.name());
    let dir = out.join(&name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    fs::copy(out.join(arch.name()).join(STATIC_PROBE_FILE), dir.join(STATIC_PROBE_FILE))?;
    for program in &PROGRAMS {
        fs::copy(out.join(arch.name()).join(program.name), dir.join(program.name))?;
        output(
            Command::new("cp")
                .arg("-r")
                .arg(root().join("target/dist").join(program.short))
                .arg(dir.join(program.short)),
        )?;
    }
    for path in ARCHIVE_FILES {
        let to = dir.join(path);
        fs::create_dir_all(to.parent().unwrap_or(&dir))?;
        output(Command::new("cp").arg("-r").arg(root().join(path)).arg(&to))?;
    }
    for path in EXCLUDED_FILES {
        output(Command::new("rm").arg("-r").arg(dir.join(path)))?;
    }
    let file = out.join(format!("{name}.tar.gz"));
    // Reproducible: the same tree gives the same bytes.
    let reproducible =
        ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=u+rwX,go+rX,go-w"];
    let mut command = Command::new("tar");
    // gzip would write its own time.
    command
        .args(reproducible)
        .args(["--use-compress-program=gzip -n9", "-C"])
        .arg(out)
        .arg("-cf")
        .arg(&file)
        .arg(&name);
    output(&mut command)?;
    fs::remove_dir_all(&dir)?;
    Ok(file)
}

fn checksums(out: &Path, files: &[PathBuf]) -> Result<()> {
    let names: Vec<_> = files.iter().filter_map(|path| path.file_name()).collect();
    ensure!(names.len() == files.len(), "a file without a name");
    let text = output(Command::new("sha256sum").args(&names).current_dir(out))?;
    fs::write(out.join("SHA256SUMS"), text + "\n")?;
    step(format!("in {}", out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_changelogs_name_the_same_maintainer() {
        for program in &PROGRAMS {
            let manifest = fs::read_to_string(root().join(program.package).join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("maintainer = \"{MAINTAINER}\"")), "{}", program.package);
            let changelog = debian_changelog(program.name).unwrap();
            assert!(
                changelog.starts_with(&format!("{} ({}-1) ", program.name, env!("CARGO_PKG_VERSION"))),
                "{changelog}"
            );
            assert!(changelog.contains(&format!("\n -- {MAINTAINER}  ")), "{changelog}");
        }
    }

    #[test]
    fn released_programs_contain_no_path_of_this_machine() {
        let flags = rust_flags();
        let path = root().to_string_lossy().into_owned();
        assert!(path.contains(' ') || flags.contains(&format!("--remap-path-prefix={path}=wattcast")), "{flags}");
    }
}
