//! A minimal Debian in a directory: the essential packages of this machine and our dependencies,
//! copied with their part of dpkg's database. It needs no network and a second or two; dpkg's own
//! database is only read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use testkit::{netns, shell::output};

const DATABASE: &str = "/var/lib/dpkg";
/// Directories of `/` that are links into a merged /usr.
const LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Files that base-passwd and libc-bin copy when they are configured.
const COPIED: [(&str, &str); 3] = [
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
];
/// Directories of this machine that are mounted in the namespace of the test.
const MOUNTED: [&str; 3] = ["proc", "sys", "dev"];
/// Logs and backups that dpkg and the account tools write at every installation.
const IGNORED: [&str; 6] = ["var/lib/dpkg", "var/log", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"];

/// The root directory.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// Copies the packages into a new directory.
    pub(super) fn new(path: PathBuf, also: &[&str]) -> Result<Self> {
        fs::create_dir(&path)?;
        // An unprivileged user must be able to start programs in it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let this = Self(path);
        let packages = Installed::read()?.with_dependencies(also)?;
        this.copy_files(&packages)?;
        this.copy_database(&packages)?;
        for (from, to) in COPIED {
            fs::copy(this.path(from), this.path(to)).with_context(|| format!("no {from}"))?;
        }
        this.run(&["ldconfig"])?;
        this.run(&["pwconv"])?;
        this.run(&["grpconv"])?;
        Ok(this)
    }

    /// A path in the root, given without a leading slash.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A command in the root.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.0).args(args).current_dir("/").env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a command in the root; returns its standard output.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    /// Moves the calling thread to a mount namespace with the mounts that programs need in the
    /// root, and to an empty network namespace.
    pub(super) fn enter(&self) -> Result<()> {
        enter_namespaces()?;
        for name in MOUNTED {
            output(Command::new("mount").arg("--rbind").arg(Path::new("/").join(name)).arg(self.path(name)))?;
        }
        Ok(())
    }

    /// Every path with its type, mode, owner and size, and in /etc its content.
    pub(super) fn snapshot(&self) -> Result<BTreeMap<String, String>> {
        let (mut found, mut todo) = (BTreeMap::new(), vec![PathBuf::new()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.0.join(&dir))? {
                let entry = entry?;
                let (path, meta) = (dir.join(entry.file_name()), entry.metadata()?);
                let name = path.to_string_lossy().into_owned();
                if MOUNTED.contains(&&*name) || IGNORED.contains(&&*name) {
                    continue;
                }
                let mut facts = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
                if meta.is_dir() {
                    todo.push(path);
                } else if meta.is_symlink() {
                    facts += &format!(" -> {}", fs::read_link(entry.path())?.display());
                } else if name.starts_with("etc/") {
                    facts += &format!(" {}", String::from_utf8_lossy(&fs::read(entry.path())?));
                } else {
                    facts += &format!(" {} bytes", meta.len());
                }
                found.insert(name, facts);
            }
        }
        Ok(found)
    }

    fn copy_files(&self, packages: &[String]) -> Result<()> {
        for name in LINKS {
            if let Ok(to) = fs::read_link(Path::new("/").join(name)) {
                fs::create_dir_all(self.0.join(&to))?;
                symlink(to, self.path(name))?;
            }
        }
        let mut files = BTreeSet::new();
        for package in packages {
            let list = fs::read_to_string(format!("{DATABASE}/info/{package}.list"))?;
            files.extend(list.lines().map(|line| line.trim_start_matches('/').to_owned()));
        }
        files.retain(|file| !LINKS.contains(&&**file) && file != "." && !file.is_empty());
        let list = self.path("files");
        fs::write(&list, files.into_iter().collect::<Vec<_>>().join("\n"))?;
        // A container image may lack documentation files of the list.
        let mut read = Command::new("tar")
            .args(["-C", "/", "--no-recursion", "--ignore-failed-read", "-cf", "-", "-T"])
            .arg(&list)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let archive = read.stdout.take().context("no pipe")?;
        output(Command::new("tar").arg("-C").arg(&self.0).args(["-xpf", "-"]).stdin(archive))?;
        ensure!(read.wait()?.success(), "tar cannot read the files of the essential packages");
        fs::remove_file(list)?;
        Ok(())
    }

    fn copy_database(&self, packages: &[String]) -> Result<()> {
        let to = self.path("var/lib/dpkg");
        for dir in ["info", "updates", "triggers"] {
            fs::create_dir_all(to.join(dir))?;
        }
        fs::write(to.join("status"), output(Command::new("dpkg-query").arg("--status").args(packages))? + "\n")?;
        for entry in fs::read_dir(format!("{DATABASE}/info"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let package = name.rsplit_once('.').map_or(&*name, |(package, _)| package);
            if name == "format" || packages.iter().any(|other| other == package) {
                fs::copy(entry.path(), to.join("info").join(&name))?;
            }
        }
        Ok(())
    }
}

/// Moves the calling thread and its future child processes to new network and mount namespaces.
fn enter_namespaces() -> Result<()> {
    netns::enter().context("cannot create a network namespace")?;
    // SAFETY: unshare takes flags alone; the namespace belongs to the calling thread and its
    // children.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot create a mount namespace");
    }
    output(Command::new("mount").args(["--make-rprivate", "/"]))?;
    Ok(())
}

/// The packages installed on this machine.
struct Installed {
    /// By name without an architecture.
    packages: BTreeMap<String, PackageRecord>,
    /// Names that a package provides.
    provided: BTreeMap<String, String>,
}

struct PackageRecord {
    /// Name of its files in the database, with the architecture for multi-arch packages.
    name: String,
    essential: bool,
    /// Each dependency with its alternatives.
    depends: Vec<Vec<String>>,
}

impl Installed {
    fn read() -> Result<Self> {
        const FORMAT: &str = "${Package}\t${binary:Package}\t${db:Status-Abbrev}\t${Essential}\t${Provides}\t${Pre-Depends}, ${Depends}\n";
        let list = output(Command::new("dpkg-query").args(["--show", "--showformat", FORMAT]))?;
        let (mut packages, mut provided) = (BTreeMap::new(), BTreeMap::new());
        for line in list.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [package, name, status, essential, provides, depends] = fields[..] else {
                bail!("dpkg-query printed {line:?}");
            };
            if !status.starts_with("ii") {
                continue;
            }
            for other in names(provides, ',') {
                provided.entry(other).or_insert_with(|| package.to_owned());
            }
            let depends = depends.split(',').map(|depend| names(depend, '|')).filter(|names| !names.is_empty());
            let value =
                PackageRecord { name: name.to_owned(), essential: essential == "yes", depends: depends.collect() };
            // A second architecture has the same dependencies.
            packages.entry(package.to_owned()).or_insert(value);
        }
        Ok(Self { packages, provided })
    }

    /// The essential packages, the named ones and all that these depend on.
    fn with_dependencies(&self, also: &[&str]) -> Result<Vec<String>> {
        let essential = self.packages.iter().filter(|(_, package)| package.essential).map(|(name, _)| &**name);
        let mut todo: Vec<&str> = essential.chain(also.iter().copied()).collect();
        let mut chosen = BTreeSet::new();
        while let Some(name) = todo.pop() {
            let Some(package) = self.packages.get(name) else { bail!("the package {name} is not installed") };
            if chosen.insert(&package.name) {
                for alternatives in &package.depends {
                    let installed = |name: &String| {
                        let found = self.packages.get_key_value(name).map(|(name, _)| name);
                        found.or_else(|| self.provided.get(name)).map(String::as_str)
                    };
                    todo.push(alternatives.iter().find_map(installed).with_context(|| {
                        format!("{name} depends on {}, which is not installed", alternatives.join(" | "))
                    })?);
                }
            }
        }
        Ok(chosen.into_iter().cloned().collect())
    }
}

/// The package names in a dependency list: `a` and `b` in `a (>= 1), b:any`.
fn names(list: &str, separator: char) -> Vec<String> {
    let relations = list.split(separator).map(|relation| relation.trim().split([' ', '(', ':']).next());
    relations.flatten().filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_names_have_no_version_and_architecture() {
        assert_eq!(names("libc6 (>= 2.28), perl:any, mawk", ','), ["libc6", "perl", "mawk"]);
        assert_eq!(names("debconf (>= 0.5) | debconf-2.0", '|'), ["debconf", "debconf-2.0"]);
        assert!(names(" ", ',').is_empty());
    }
}
