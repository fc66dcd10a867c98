//! A small Debian in a directory: the essential packages of this machine and what ours depend on,
//! copied from it with their part of dpkg's database. No network, a second or two, and dpkg's own
//! database is only read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use testkit::shell::output;

const DATABASE: &str = "/var/lib/dpkg";
/// Of the merged /usr, where directories of `/` are links into it.
const LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What base-passwd and libc-bin copy from their own files when they are configured.
const COPIED: [(&str, &str); 3] = [
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
];
/// Mounted from this machine in the namespace of the test.
const MOUNTED: [&str; 3] = ["proc", "sys", "dev"];
/// Logs and backups that dpkg and the tools for accounts write, whatever they install.
const THEIRS: [&str; 6] = ["var/lib/dpkg", "var/log", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"];

/// The directory.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// Copies the packages into a new directory.
    pub(super) fn new(path: PathBuf, also: &[&str]) -> Result<Self> {
        fs::create_dir(&path)?;
        // A user without privileges starts a program in it.
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

    /// A path in it, without a / at its beginning.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A command in it.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.0).args(args).current_dir("/").env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs a command in it; gives its standard output.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    /// Gives the calling thread a mount namespace with what programs need in the root, and an empty
    /// network namespace.
    pub(super) fn enter(&self) -> Result<()> {
        super::enter_namespaces()?;
        for name in MOUNTED {
            output(Command::new("mount").arg("--rbind").arg(Path::new("/").join(name)).arg(self.path(name)))?;
        }
        Ok(())
    }

    /// Every path with its kind, mode, owner and size, and in /etc with its content.
    pub(super) fn snapshot(&self) -> Result<BTreeMap<String, String>> {
        let (mut found, mut todo) = (BTreeMap::new(), vec![PathBuf::new()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.0.join(&dir))? {
                let entry = entry?;
                let (path, meta) = (dir.join(entry.file_name()), entry.metadata()?);
                let name = path.to_string_lossy().into_owned();
                if MOUNTED.contains(&&*name) || THEIRS.contains(&&*name) {
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
        // An image of a container may lack documents that the list has.
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

/// What dpkg has installed on this machine.
struct Installed {
    /// By name without an architecture.
    packages: BTreeMap<String, Package>,
    /// Names that a package provides.
    provided: BTreeMap<String, String>,
}

struct Package {
    /// As its files in the database are named: with an architecture where packages of several can
    /// be installed.
    name: String,
    essential: bool,
    /// Each with its alternatives.
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
            let value = Package { name: name.to_owned(), essential: essential == "yes", depends: depends.collect() };
            // Of a second architecture is what the first has already.
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

/// The names in a list of relations, without versions and architectures: `a (>= 1), b:any` has `a`
/// and `b`.
fn names(list: &str, separator: char) -> Vec<String> {
    let relations = list.split(separator).map(|relation| relation.trim().split([' ', '(', ':']).next());
    relations.flatten().filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relations_come_without_versions_and_architectures() {
        assert_eq!(names("libc6 (>= 2.28), perl:any, mawk", ','), ["libc6", "perl", "mawk"]);
        assert_eq!(names("debconf (>= 0.5) | debconf-2.0", '|'), ["debconf", "debconf-2.0"]);
        assert!(names(" ", ',').is_empty());
    }
}
