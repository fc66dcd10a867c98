//! `cargo xtask build-ebpf`: finds or installs a compiler and a linker for the BPF target, and
//! builds the object that the probe embeds.
//!
//! The BPF target has no prebuilt `core`, so the compiler must build it from rust-src with unstable
//! cargo flags, and its LLVM bitcode must be linked by a bpf-linker whose LLVM is not older than
//! the compiler's.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use testkit::shell::{output, packages, root, run, step, target, which};

/// LLVM versions of bpf-linker 0.13. The newest comes first: it reads the bitcode of older
/// versions.
const LLVM_VERSIONS: [u32; 3] = [22, 21, 20];
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Path of the built object, which the build script of the probe reads.
#[must_use]
pub fn object() -> PathBuf {
    target().join("bpf").join("wattcast.bpf.o")
}

/// Builds the object, and installs missing tools; returns its path.
pub fn build_ebpf() -> Result<PathBuf> {
    Toolchain::find()?.build()
}

pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

impl Toolchain {
    /// Finds the compiler and the linker, and installs what is missing.
    ///
    /// # Errors
    /// When a tool is not available here, which is no fault of the sources.
    pub fn find() -> Result<Self> {
        eprintln!("eBPF programs");
        let compiler = Compiler::find()?;
        step(format!("compiler: {}", compiler.description));
        let linker = linker(compiler.llvm)?;
        step(format!("linker: {}", linker.display()));
        Ok(Self { compiler, linker })
    }

    /// Builds the object; returns its path.
    ///
    /// # Errors
    /// When the sources do not compile or link.
    pub fn build(&self) -> Result<PathBuf> {
        build(&self.compiler, &self.linker)
    }
}

/// A rustc that can build `core` for the BPF target.
pub(crate) struct Compiler {
    description: String,
    /// `cargo`, with arguments that select this rustc.
    cargo: Vec<String>,
    bootstrap: bool,
    llvm: u32,
}

impl Compiler {
    /// Tries in this order: rustup's nightly with rust-src, a rustc in PATH with rust-src, and
    /// Debian's rustc-web with rust-web-src. The latter two are stable compilers and need
    /// RUSTC_BOOTSTRAP=1.
    fn find() -> Result<Self> {
        let reason = match Self::nightly() {
            // A user-installed bpf-linker may support a newer LLVM.
            Ok(compiler) if compiler.llvm <= LLVM_VERSIONS[0] || which("bpf-linker").is_some() => return Ok(compiler),
            Ok(compiler) => anyhow!(
                "{} uses LLVM {}; bpf-linker {BPF_LINKER_VERSION} supports up to {}",
                compiler.description,
                compiler.llvm,
                LLVM_VERSIONS[0]
            ),
            Err(reason) => reason,
        };
        step(format!("no usable nightly: {reason:#}"));
        if let Some(compiler) = Self::stable("rustc", "cargo") {
            return Ok(compiler);
        }
        if let Some(compiler) = Self::stable("/usr/bin/rustc", "/usr/bin/cargo") {
            return Ok(compiler);
        }
        packages(
            &["rustc-web", "rust-web-src", "cargo-web"],
            "compile for the kernel without rustup's nightly (rustup toolchain install nightly -c rust-src would do too)",
            "rustup toolchain install nightly -c rust-src",
        )?;
        Self::stable("/usr/bin/rustc", "/usr/bin/cargo")
            .context("/usr/bin/rustc was installed, but its library source is not in its sysroot")
    }

    /// rustup's nightly with rust-src, which is added if it is missing.
    pub(crate) fn nightly() -> Result<Self> {
        let rustup = which("rustup").context("rustup is not in PATH")?;
        let list = output(Command::new(&rustup).args(["toolchain", "list"]))?;
        let Some(name) =
            list.lines().filter_map(|line| line.split(' ').next()).find(|name| name.starts_with("nightly"))
        else {
            bail!("rustup has no nightly toolchain (rustup toolchain install nightly -c rust-src)");
        };
        let rustc = || {
            let mut command = Command::new(&rustup);
            command.args(["run", name, "rustc"]);
            command
        };
        if !has_source(&output(rustc().args(["--print", "sysroot"]))?) {
            run(
                &format!("adding rust-src to {name}"),
                Command::new(&rustup).args(["component", "add", "rust-src", "--toolchain", name]),
            )?;
        }
        let verbose = output(rustc().arg("-vV"))?;
        Ok(Self {
            description: format!("{} (rustup, {name})", first_line(&verbose)),
            cargo: [&*rustup.to_string_lossy(), "run", name, "cargo"].map(str::to_owned).to_vec(),
            bootstrap: false,
            llvm: llvm_of(&verbose)?,
        })
    }

    fn stable(rustc: &str, cargo: &str) -> Option<Self> {
        let sysroot = output(Command::new(rustc).args(["--print", "sysroot"])).ok()?;
        if !has_source(&sysroot) {
            return None;
        }
        let verbose = output(Command::new(rustc).arg("-vV")).ok()?;
        Some(Self {
            description: format!("{} with RUSTC_BOOTSTRAP=1 ({sysroot})", first_line(&verbose)),
            cargo: vec![cargo.to_owned()],
            bootstrap: true,
            llvm: llvm_of(&verbose).ok()?,
        })
    }

    /// `cargo` with this compiler.
    pub(crate) fn cargo(&self) -> Command {
        let (program, args) = self.cargo.split_first().map_or(("cargo", &[][..]), |(program, args)| (program, args));
        let mut cargo = Command::new(program);
        cargo.args(args);
        if self.bootstrap {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        cargo
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn has_source(sysroot: &str) -> bool {
    Path::new(sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

/// The major LLVM version in `rustc -vV`.
fn llvm_of(verbose: &str) -> Result<u32> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|version| version.split('.').next()?.parse().ok())
        .context("rustc -vV reports no LLVM version")
}

/// bpf-linker from PATH or from an earlier run; otherwise builds it.
fn linker(llvm: u32) -> Result<PathBuf> {
    if let Some(path) = which("bpf-linker") {
        return Ok(path);
    }
    let home = target().join("tools");
    let path = home.join("bin/bpf-linker");
    if path.is_file() {
        return Ok(path);
    }
    let version = match installed_llvm(llvm) {
        Some(version) => version,
        None => {
            let newest = LLVM_VERSIONS[0];
            if newest < llvm {
                bail!(
                    "this rustc uses LLVM {llvm}; bpf-linker {BPF_LINKER_VERSION} supports up to {newest}. Use an older nightly"
                );
            }
            packages(
                &[&format!("llvm-{newest}-dev"), &format!("libpolly-{newest}-dev"), "libzstd-dev", "zlib1g-dev"],
                "build bpf-linker",
                &format!(
                    "your package manager for the development files of LLVM {newest}, then again with LLVM_PREFIX=/path/to/llvm"
                ),
            )?;
            newest
        }
    };
    let prefix = llvm_prefix(version).context("LLVM is installed, but llvm-config is not in its prefix")?;
    // A debug build is enough: LLVM does the work of linking.
    run(
        &format!("building bpf-linker {BPF_LINKER_VERSION} against LLVM {version} (once, under a minute)"),
        Command::new("cargo")
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--debug"])
            .args(["--no-default-features", "--features", &format!("llvm-{version}"), "--root"])
            .arg(&home)
            .env("LLVM_PREFIX", prefix),
    )?;
    Ok(path)
}

/// Removes debug information, which is 80 % of the object, and of the rest the half that maps
/// instructions to source lines, which the loader does not pass to the kernel. BTF stays: it
/// describes the maps. Returns the object unchanged where llvm-objcopy is not available.
fn stripped(built: PathBuf) -> PathBuf {
    let tools = LLVM_VERSIONS.iter().filter_map(|version| Some(llvm_prefix(*version)?.join("bin/llvm-objcopy")));
    let Some(tool) = tools.into_iter().find(|tool| tool.is_file()).or_else(|| which("llvm-objcopy")) else {
        return built;
    };
    let to = built.with_extension("stripped.o");
    let arguments = ["--strip-debug", "--remove-section=.BTF.ext", "--remove-section=.rel.BTF.ext"];
    match output(Command::new(tool).args(arguments).arg(&built).arg(&to)) {
        Ok(_) => to,
        Err(_) => built,
    }
}

fn installed_llvm(at_least: u32) -> Option<u32> {
    LLVM_VERSIONS.into_iter().filter(|version| *version >= at_least).find(|version| llvm_prefix(*version).is_some())
}

/// The prefix of an LLVM with development files: LLVM_PREFIX, or Debian's path for that version.
fn llvm_prefix(version: u32) -> Option<PathBuf> {
    let fits = |prefix: &PathBuf| {
        prefix.join("include/llvm-c/Core.h").exists()
            && output(Command::new(prefix.join("bin/llvm-config")).arg("--version"))
                .is_ok_and(|found| found.split('.').next() == Some(&version.to_string()))
    };
    std::env::var_os("LLVM_PREFIX")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from(format!("/usr/lib/llvm-{version}"))])
        .find(fits)
}

fn build(compiler: &Compiler, linker: &Path) -> Result<PathBuf> {
    let endian = if cfg!(target_endian = "big") { "bpfeb" } else { "bpfel" };
    let triple = format!("{endian}-unknown-none");
    let dir = target().join("bpf");
    let mut cargo = compiler.cargo();
    cargo
        .args(["build", "--profile", "ebpf", "--package", "probe-ebpf"])
        .args(["--features", "programs", "--bin", "wattcast-bpf"])
        .args(["--target", &triple, "-Z", "build-std=core", "--target-dir"])
        .arg(&dir)
        .current_dir(root())
        // Settings of the outer cargo do not apply to another target and compiler.
        .env_remove("RUSTC")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_TARGET_DIR", &dir)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                format!("-Clinker={}", linker.display()),
                format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
                "-Cdebuginfo=2".to_owned(),
                "-Clink-arg=--btf".to_owned(),
            ]
            .join("\x1f"),
        );
    run("building probe-ebpf", &mut cargo)?;
    let built = dir.join(&triple).join("ebpf/wattcast-bpf");
    let object = object();
    let built = stripped(built);
    let bytes = std::fs::read(&built).with_context(|| format!("no object at {}", built.display()))?;
    // An unchanged object keeps its modification time, so that the probe is not rebuilt.
    if std::fs::read(&object).ok().as_deref() != Some(&*bytes) {
        std::fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    step(format!("{} ({} bytes)", object.display(), bytes.len()));
    Ok(object)
}
