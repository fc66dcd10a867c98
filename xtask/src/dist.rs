//! `cargo xtask dist`: both programs for x86_64 and aarch64, as archives and as Debian packages, with checksums.
//!
//! The probe is linked to glibc, an old one, because NVIDIA's library is loaded at run time, which a static program cannot do; the analysis service is static, and runs
//! in an image with nothing else in it. Zig's C compiler is the one cross compiler that has both for both: cargo-zigbuild calls it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::build_ebpf;
use testkit::shell::{self, output, root, run, step, target, which};

/// The oldest glibc that the probe runs on: Debian 10, RHEL 8, Ubuntu 18.10.
const GLIBC: &str = "2.28";
/// Of the tools; they stay in `target/tools`.
const ZIGBUILD: &str = "0.24.1";
const CARGO_DEB: &str = "3.8.0";
const ZIG: &str = "0.17.1";

/// Flags of `dist`.
#[derive(Debug, clap::Args)]
pub struct Dist {
    /// For which processors; by default for both
    #[arg(long, value_name = "ARCH", value_enum)]
    arch: Vec<Arch>,

    /// Where it goes
    #[arg(long, value_name = "DIR", default_value = "target/dist")]
    out: PathBuf,

    /// Only the programs: no archives, no packages, and no tools for these
    #[arg(long)]
    only_programs: bool,
}

/// A processor.
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

    /// The target of rustc that a program is built for.
    fn triple(self, program: &Program) -> String {
        format!("{}-unknown-linux-{}", self.name(), program.libc)
    }
}

/// What is shipped.
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

/// What goes into an archive beside the programs.
const BESIDE: [&str; 7] =
    ["LICENSE", "README.md", "SECURITY.md", "docs", "deploy", "grafana/dashboards", "grafana/provisioning"];
/// What of it builds from source.
const NOT: [&str; 4] = ["deploy/compose.yaml", "deploy/compose", "deploy/deploy", "deploy/docker/Dockerfile"];

/// Builds all of it.
///
/// # Errors
/// When a tool cannot be had here, or something does not build.
pub fn dist(args: &Dist) -> Result<()> {
    let arches = if args.arch.is_empty() { vec![Arch::X86_64, Arch::Aarch64] } else { args.arch.clone() };
    build_ebpf::build_ebpf()?;
    eprintln!("Programs");
    let tools = Tools::find()?;
    let out = root().join(&args.out);
    fs::create_dir_all(&out)?;
    // Of Dockerfile.dist: an empty directory for a volume.
    fs::create_dir_all(out.join("state"))?;
    for arch in &arches {
        for program in &PROGRAMS {
            let binary = tools.build(*arch, program)?;
            let place = out.join(arch.name());
            fs::create_dir_all(&place)?;
            fs::copy(&binary, place.join(program.name))?;
            let size = fs::metadata(&binary)?.len();
            step(format!("{}/{}: {:.1} MB", arch.name(), program.name, size as f64 / 1e6));
        }
    }
    if args.only_programs {
        return Ok(());
    }
    eprintln!("Archives and packages");
    pages(&shell::build(&PROGRAMS.map(|program| program.package), "dev")?)?;
    let mut made = Vec::new();
    for arch in &arches {
        made.push(archive(*arch, &out)?);
        for program in &PROGRAMS {
            let path = debian_package(program, &target(), &out, &["--target", &arch.triple(program)])?;
            step(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
            made.push(path);
        }
    }
    sums(&out, &made)
}

/// Debian packages of both programs for this machine, from programs that are built already.
/// They come in the order of [`PROGRAMS`].
///
/// # Errors
/// When cargo-deb cannot be had here, or a package cannot be made.
pub(crate) fn debian_packages(programs: &Path, version: &str, out: &Path) -> Result<Vec<PathBuf>> {
    // cargo-deb looks for programs in the directory release of the target directory only.
    let release = out.join("release");
    fs::create_dir_all(&release)?;
    for program in &PROGRAMS {
        fs::copy(programs.join(program.name), release.join(program.name))
            .with_context(|| format!("no {} in {}", program.name, programs.display()))?;
    }
    pages(programs)?;
    PROGRAMS.iter().map(|program| debian_package(program, out, out, &["--deb-version", version, "--fast"])).collect()
}

/// The package of a program that `target` has, in a directory; gives its path.
fn debian_package(program: &Program, target: &Path, out: &Path, args: &[&str]) -> Result<PathBuf> {
    let mut command = Command::new(tool("cargo-deb", CARGO_DEB)?);
    // The programs are there already, stripped.
    command.args(["--no-build", "--no-strip", "--no-separate-debug-symbols", "-p", program.package]).args(args);
    command.arg("--output").arg(out).current_dir(root()).env("CARGO_TARGET_DIR", target);
    let printed = output(&mut command)?;
    Ok(PathBuf::from(printed.lines().last().context("cargo-deb says no path")?))
}

/// The cross compiler, as `cargo zigbuild`.
struct Tools {
    zigbuild: PathBuf,
    /// PATH, with the Python in it that has Zig.
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
            run("making a place for Zig (python3 -m venv)", Command::new("python3").args(["-m", "venv"]).arg(&venv))
                .context("Zig is needed to build for other machines: install it, or python3-venv")?;
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

/// A tool of cargo's, installed into `target/tools` where it is nowhere.
fn tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(path) = which(name) {
        return Ok(path);
    }
    let tools = target().join("tools");
    let path = tools.join("bin").join(name);
    if !path.exists() {
        let mut command = Command::new("cargo");
        // Without optimisation: that halves the time of compiling, and cargo-deb compresses no slower.
        command.args(["install", name, "--version", version, "--locked", "--debug", "--root"]).arg(&tools);
        run(&format!("installing {name} {version}"), &mut command)?;
    }
    Ok(path)
}

/// Manual pages and completions, by programs that run here.
fn pages(bin: &Path) -> Result<()> {
    for program in &PROGRAMS {
        // Where the packages' descriptions look for them, wherever cargo builds.
        let place = root().join("target/dist").join(program.short);
        let _ = fs::remove_dir_all(&place);
        let (man, completions) = (place.join("man"), place.join("completions"));
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

/// The programs, and what one wants beside them, in one directory.
fn archive(arch: Arch, out: &Path) -> Result<PathBuf> {
    let name = format!("wattcast-{}-{}-linux", env!("CARGO_PKG_VERSION"), arch.name());
    let place = out.join(&name);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    for program in &PROGRAMS {
        fs::copy(out.join(arch.name()).join(program.name), place.join(program.name))?;
        output(
            Command::new("cp")
                .arg("-r")
                .arg(root().join("target/dist").join(program.short))
                .arg(place.join(program.short)),
        )?;
    }
    for what in BESIDE {
        let to = place.join(what);
        fs::create_dir_all(to.parent().unwrap_or(&place))?;
        output(Command::new("cp").arg("-r").arg(root().join(what)).arg(&to))?;
    }
    for what in NOT {
        output(Command::new("rm").arg("-r").arg(place.join(what)))?;
    }
    let file = out.join(format!("{name}.tar.gz"));
    // The same bytes from the same tree, whoever builds it.
    let same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=u+rwX,go+rX,go-w"];
    output(Command::new("tar").args(same).args(["-C"]).arg(out).arg("-czf").arg(&file).arg(&name))?;
    fs::remove_dir_all(&place)?;
    step(file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
    Ok(file)
}

fn sums(out: &Path, made: &[PathBuf]) -> Result<()> {
    let names: Vec<_> = made.iter().filter_map(|path| path.file_name()).collect();
    ensure!(names.len() == made.len(), "a file without a name");
    let text = output(Command::new("sha256sum").args(&names).current_dir(out))?;
    fs::write(out.join("SHA256SUMS"), text + "\n")?;
    step(format!("in {}", out.display()));
    Ok(())
}
