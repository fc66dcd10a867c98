//! `cargo xtask dist`: archives and Debian packages of both programs for x86_64 and aarch64, with
//! checksums.
//!
//! The probe links to an old glibc, because it loads NVIDIA's library at run time, which a static
//! program cannot do. The analysis service is static, and runs in an image without other files.
//! Zig's C compiler, which cargo-zigbuild calls, has both C libraries for both architectures.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::build_ebpf;
use testkit::shell::{self, output, root, run, step, target, which};

/// The oldest supported glibc: Debian 10, RHEL 8, Ubuntu 18.10.
const GLIBC: &str = "2.28";
/// Versions of the tools, which are installed in `target/tools`.
const ZIGBUILD: &str = "0.24.1";
const CARGO_DEB: &str = "3.8.0";
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

/// Files of an archive, in addition to the programs.
const ARCHIVE_FILES: [&str; 7] =
    ["LICENSE", "README.md", "SECURITY.md", "docs", "deploy", "grafana/dashboards", "grafana/provisioning"];
/// Those of them that build from source, and are left out.
const EXCLUDED_FILES: [&str; 2] = ["deploy/compose", "deploy/docker/Dockerfile"];

/// Builds programs, archives and packages.
pub fn dist(args: &Dist) -> Result<()> {
    let arches = if args.arch.is_empty() { vec![Arch::X86_64, Arch::Aarch64] } else { args.arch.clone() };
    build_ebpf::build_ebpf()?;
    eprintln!("Programs");
    let tools = Tools::find()?;
    let out = root().join(&args.out);
    fs::create_dir_all(&out)?;
    // Dockerfile.dist copies this empty directory to a volume.
    fs::create_dir_all(out.join("state"))?;
    for arch in &arches {
        for program in &PROGRAMS {
            let binary = tools.build(*arch, program)?;
            let dir = out.join(arch.name());
            fs::create_dir_all(&dir)?;
            fs::copy(&binary, dir.join(program.name))?;
            let size = fs::metadata(&binary)?.len();
            step(format!("{}/{}: {:.1} MB", arch.name(), program.name, size as f64 / 1e6));
        }
    }
    if args.only_programs {
        return Ok(());
    }
    eprintln!("Archives and packages");
    manual_pages(&shell::build(&PROGRAMS.map(|program| program.package), "dev")?)?;
    let mut files = Vec::new();
    for arch in &arches {
        files.push(archive(*arch, &out)?);
        for program in &PROGRAMS {
            let path = debian_package(program, &target(), &out, &["--target", &arch.triple(program)])?;
            step(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
            files.push(path);
        }
    }
    checksums(&out, &files)
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
    manual_pages(programs)?;
    PROGRAMS.iter().map(|program| debian_package(program, out, out, &["--deb-version", version, "--fast"])).collect()
}

/// Builds the package of a program in the target directory; returns its path.
fn debian_package(program: &Program, target: &Path, out: &Path, args: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(tool("cargo-deb", CARGO_DEB)?);
    // The programs are already built and stripped.
    command.args(["--no-build", "--no-strip", "--no-separate-debug-symbols", "-p", program.package]).args(args);
    command.arg("--output").arg(out).current_dir(root()).env("CARGO_TARGET_DIR", target);
    let printed = output(&mut command)?;
    Ok(PathBuf::from(printed.lines().last().context("cargo-deb printed no path")?))
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
        command.env("CARGO_TARGET_DIR", target());
        run(&format!("{} for {}", program.name, arch.name()), &mut command)?;
        Ok(target().join(triple).join("release").join(program.name))
    }
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

/// Writes manual pages and completions with programs of this machine.
fn manual_pages(bin: &Path) -> Result<()> {
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
    }
    Ok(())
}

fn archive(arch: Arch, out: &Path) -> Result<PathBuf> {
    let name = format!("wattcast-{}-{}-linux", env!("CARGO_PKG_VERSION"), arch.name());
    let dir = out.join(&name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
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
    output(Command::new("tar").args(reproducible).args(["-C"]).arg(out).arg("-czf").arg(&file).arg(&name))?;
    fs::remove_dir_all(&dir)?;
    step(file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
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
