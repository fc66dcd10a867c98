//! Kernel images and modules of Debian's archive.
//!
//! apt runs with sources, index and downloads in the target directory: it can read other releases
//! than those of this machine, whose own sources stay unchanged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use testkit::shell::{output, step};

use super::matrix::{Image, Kernel};

/// The keys that sign Debian's releases.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A release that is no longer maintained moves from the first to the second.
const MIRRORS: [&str; 2] = ["http://deb.debian.org/debian-security", "http://archive.debian.org/debian-security"];

/// Downloads the kernel image that a kernel's package depends on, with its modules, once.
pub(super) fn image(kernel: &Kernel, dir: &Path) -> Result<Image> {
    let mut failure = None;
    for mirror in MIRRORS {
        match Apt::new(mirror, kernel.suite, dir).and_then(|apt| apt.image(kernel, dir)) {
            Ok(image) => return Ok(image),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.context("no mirror")?)
}

/// apt for one suite.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Refreshes the index, or uses that of an earlier run where this fails.
    fn new(mirror: &str, suite: &str, dir: &Path) -> Result<Self> {
        let apt = Self { dir: dir.join("apt").join(suite) };
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.dir.join(part))?;
        }
        fs::write(apt.dir.join("status"), "")?;
        // The signature of an archived release expires and is not renewed.
        let source = format!("deb [arch=amd64 signed-by={KEYRING} check-valid-until=no] {mirror} {suite} main\n");
        fs::write(apt.dir.join("sources.list"), source)?;
        let updated = output(apt.command("apt-get").args(["-q", "update"]));
        let has_index = fs::read_dir(apt.dir.join("lists"))?
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
        match updated {
            Err(error) if !has_index => Err(error),
            _ => Ok(apt),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: String| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| self.dir.join(name).display().to_string();
        option("Dir::Etc::SourceList", path("sources.list"));
        option("Dir::Etc::SourceParts", "/dev/null".to_owned());
        option("Dir::State", self.dir.display().to_string());
        option("Dir::State::Status", path("status"));
        option("Dir::Cache", self.dir.display().to_string());
        option("Acquire::Languages", "none".to_owned());
        // The user `_apt` may have no access to the target directory.
        option("APT::Sandbox::User", "root".to_owned());
        command
    }

    fn image(&self, kernel: &Kernel, dir: &Path) -> Result<Image> {
        let package = kernel.package;
        let depends = output(self.command("apt-cache").args(["depends", package]))?;
        let real = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .with_context(|| format!("the archive has no {package}"))?;
        let image = Image {
            file: dir.join(format!("vmlinuz-{real}")),
            modules: kernel.modules.iter().map(|module| dir.join(format!("modules-{real}")).join(module)).collect(),
        };
        if image.file.is_file() && image.modules.iter().all(|module| module.is_file()) {
            return Ok(image);
        }
        step(format!("downloading linux-image-{real}"));
        let archives = self.dir.join("archives");
        let name = format!("linux-image-{real}");
        output(self.command("apt-get").args(["-q", "download", &name]).current_dir(&archives))?;
        let package = fs::read_dir(&archives)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_"))));
        let package = package.context("apt-get downloaded no package")?;
        extract(&package, &format!("./boot/vmlinuz-{real}"), &image.file)?;
        for (module, to) in kernel.modules.iter().zip(&image.modules) {
            extract(&package, &format!("./lib/modules/{real}/kernel/{module}"), to)?;
        }
        fs::remove_file(package)?;
        Ok(image)
    }
}

/// Extracts one file of a package.
fn extract(package: &Path, member: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a path without directory")?)?;
    let draft = to.with_extension("part");
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let archive = unpack.stdout.take().context("no pipe")?;
    let status = Command::new("tar")
        .args(["--extract", "--to-stdout", "--occurrence=1", member])
        .stdin(archive)
        .stdout(fs::File::create(&draft)?)
        .status();
    // tar ends after the file, and dpkg-deb then ends with SIGPIPE.
    unpack.wait()?;
    if !status?.success() {
        bail!("{} has no {member}", package.display());
    }
    ensure!(fs::metadata(&draft)?.len() > 0, "{member} is empty");
    fs::rename(draft, to)?;
    Ok(())
}
