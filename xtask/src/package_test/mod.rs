//! `cargo xtask package-test`: both Debian packages installed, started, upgraded, removed and
//! purged in a throw-away root.
//!
//! The packages are cargo-deb's, with the programs that the tests use. The root has the essential
//! packages of this machine and no systemd that runs; programs start as their units say, in a
//! network namespace of the test, where all ports are free.

mod root;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::root::Root;
use crate::dist::debian_packages;
use testkit::{
    api::Client,
    netns,
    program::Program,
    shell::{self, run, step, target, which},
    wait::Deadline,
};

/// What the packages depend on beside the essential packages.
const DEPENDS: [&str; 1] = ["passwd"];
const RESULT: &str = "var/lib/wattcast-analysis/result.json";
/// A link for each unit that is started at boot.
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants";

/// A package, and where its program answers.
struct Package {
    name: &'static str,
    /// With the configuration of the package.
    address: &'static str,
    /// With the configuration that the administrator of the test changed.
    changed: &'static str,
    /// Where its program keeps state.
    state: &'static str,
}

const PROBE: Package =
    Package { name: "wattcast-probe", address: "127.0.0.1:9500", changed: "127.0.0.1:9600", state: "var/lib/wattcast" };
const ANALYSIS: Package = Package {
    name: "wattcast-analysis",
    address: "127.0.0.1:9502",
    changed: "127.0.0.1:9602",
    state: "var/lib/wattcast-analysis",
};
const BOTH: [&Package; 2] = [&PROBE, &ANALYSIS];

/// Runs it.
///
/// # Errors
/// When a check fails, or the packages cannot be built.
pub fn package_test() -> Result<()> {
    if let Some(reason) = missing() {
        println!("skipped: {reason}");
        println!("0 passed, 0 failed, 1 skipped");
        return Ok(());
    }
    let programs = shell::programs()?;
    let dir = tempfile::Builder::new().prefix("package-test-").tempdir_in(target())?;
    eprintln!("Packages");
    let version = env!("CARGO_PKG_VERSION");
    let old = debian_packages(&programs, &format!("{version}-1"), &dir.path().join("old"))?;
    let new = debian_packages(&programs, &format!("{version}+upgrade-1"), &dir.path().join("new"))?;
    let root = Root::new(dir.path().join("root"), &DEPENDS)?;
    step(format!("root: {}", dir.path().display()));
    let test = Test { root, logs: dir.path() };
    let mut checks = Checks::default();
    // On a thread of its own, which alone enters the namespaces: the directory is removed where
    // nothing is mounted in it.
    let ran = thread::scope(|scope| scope.spawn(|| test.run(&old, &new, &mut checks)).join());
    let ran = ran.unwrap_or_else(|_| Err(anyhow!("the thread of the checks panicked")));
    checks.report("the test runs to its end", ran);
    println!("{} passed, {} failed, 0 skipped", checks.passed, checks.failed);
    match checks.failed {
        0 => Ok(()),
        count => bail!("{count} failed"),
    }
}

/// Why it cannot run here.
fn missing() -> Option<String> {
    if !shell::is_root() {
        return Some("needs root".to_owned());
    }
    let tools = ["dpkg", "chroot", "tar", "mount"];
    tools.iter().find(|tool| which(tool).is_none()).map(|tool| format!("{tool} is not in PATH"))
}

#[derive(Default)]
struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    fn check(&mut self, what: &str, check: impl FnOnce() -> Result<()>) {
        self.report(what, check());
    }

    fn report(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                println!("ok: {what}");
                self.passed += 1;
            }
            Err(error) => {
                println!("FAILED: {what}: {error:#}");
                self.failed += 1;
            }
        }
    }
}

struct Test<'a> {
    root: Root,
    logs: &'a Path,
}

impl Test<'_> {
    /// Everything, from a root without the packages to one without the packages.
    fn run(&self, old: &[PathBuf], new: &[PathBuf], checks: &mut Checks) -> Result<()> {
        let root = &self.root;
        root.enter()?;
        let bare = root.snapshot()?;
        self.install(old)?;
        for package in BOTH {
            let name = package.name;
            checks.check(&format!("{name}: files, owners and modes"), || self.files(package));
            checks.check(&format!("{name}: dpkg verifies every file"), || self.verified(package));
            checks.check(&format!("{name}: its unit is enabled"), || self.enabled(package, true));
            checks
                .check(&format!("{name}: starts with its own configuration"), || self.starts(package, package.address));
        }
        checks.check("wattcast-analysis: has an account and a directory for results", || self.account());

        // An administrator changes both configurations and disables a unit; a runner leaves a
        // result.
        let changed = BOTH.map(|package| self.change(package));
        let [probe, analysis] = changed;
        let (probe, analysis) = (probe?, analysis?);
        fs::remove_file(root.path(ENABLED).join("wattcast-probe.service"))?;
        fs::write(root.path(RESULT), "{}")?;
        let account = root.run(&["getent", "passwd", "wattcast"])?;

        self.install(new)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            let name = package.name;
            checks.check(&format!("{name}: an upgrade replaces the program"), || self.version(package, "+upgrade-1"));
            checks.check(&format!("{name}: an upgrade keeps a changed configuration"), || self.kept(package, config));
            checks.check(&format!("{name}: starts after the upgrade with the changed configuration"), || {
                self.starts(package, package.changed)
            });
        }
        checks.check("wattcast-probe: an upgrade leaves a disabled unit disabled", || self.enabled(&PROBE, false));
        checks.check("wattcast-analysis: an upgrade leaves an enabled unit enabled", || self.enabled(&ANALYSIS, true));
        checks.check("wattcast-analysis: an upgrade keeps the account and the results", || {
            ensure!(root.run(&["getent", "passwd", "wattcast"])? == account, "the account changed");
            self.result()
        });

        self.dpkg("--remove", &BOTH)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            let name = package.name;
            checks.check(&format!("{name}: removal takes the program and the unit"), || self.removed(package));
            checks.check(&format!("{name}: removal keeps a changed configuration"), || self.kept(package, config));
            checks.check(&format!("{name}: removal keeps its state"), || self.present(package.state, true));
        }
        self.install(new)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            checks.check(&format!("{}: starts when it is installed again", package.name), || {
                self.kept(package, config)?;
                self.unmasked(package)?;
                self.starts(package, package.changed)
            });
        }

        self.dpkg("--purge", &[&PROBE])?;
        checks.check("wattcast-probe: a purge takes configuration and state", || self.purged(&PROBE));
        checks.check("wattcast-probe: a purge leaves the other package alone", || {
            self.kept(&ANALYSIS, &analysis)?;
            self.result()?;
            self.enabled(&ANALYSIS, true)
        });
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks.check("wattcast-analysis: a purge takes the configuration", || self.present("etc/wattcast", false));
        checks.check("wattcast-analysis: a purge keeps results, and the account that owns them", || {
            root.run(&["getent", "passwd", "wattcast"])?;
            self.result()
        });

        self.install(&new[1..])?;
        fs::remove_file(root.path(RESULT))?;
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks.check("wattcast-analysis: a purge without results takes directory and account", || {
            self.purged(&ANALYSIS)?;
            self.no_account()
        });
        self.install(&new[1..])?;
        fs::remove_dir(root.path(ANALYSIS.state))?;
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks.check("wattcast-analysis: a purge takes the account where the directory is gone", || self.no_account());
        checks.check("nothing is left of either package", || {
            let now = root.snapshot()?;
            let differ = |path: &&String| bare.get(*path) != now.get(*path);
            let mut left: Vec<_> = now.keys().chain(bare.keys()).filter(differ).map(String::as_str).collect();
            left.sort_unstable();
            left.dedup();
            ensure!(left.is_empty(), "{}", left.join(" "));
            Ok(())
        });
        Ok(())
    }

    /// Installs packages from files, which are brought into the root first.
    fn install(&self, files: &[PathBuf]) -> Result<()> {
        let inside = self.root.path("tmp");
        let mut args = vec!["dpkg".to_owned(), "--install".to_owned()];
        for file in files {
            let name = file.file_name().context("a package without a name")?;
            fs::copy(file, inside.join(name))?;
            args.push(format!("/tmp/{}", name.to_string_lossy()));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args.join(" "), &mut self.root.command(&args))?;
        for file in &args[2..] {
            fs::remove_file(self.root.path(file.trim_start_matches('/')))?;
        }
        Ok(())
    }

    fn dpkg(&self, action: &str, packages: &[&Package]) -> Result<()> {
        let args: Vec<_> = ["dpkg", action].into_iter().chain(packages.iter().map(|package| package.name)).collect();
        run(&args.join(" "), &mut self.root.command(&args))
    }

    /// What a user looks for is there, and root owns every file of the package and alone may write
    /// it.
    fn files(&self, package: &Package) -> Result<()> {
        let name = package.name;
        for (path, mode) in [
            (format!("usr/bin/{name}"), 0o755),
            (format!("etc/wattcast/{name}.toml"), 0o644),
            (format!("usr/lib/systemd/system/{name}.service"), 0o644),
            (format!("usr/share/man/man1/{name}.1.gz"), 0o644),
            (format!("usr/share/bash-completion/completions/{name}"), 0o644),
            (format!("usr/share/zsh/vendor-completions/_{name}"), 0o644),
            (format!("usr/share/fish/vendor_completions.d/{name}.fish"), 0o644),
            (format!("usr/share/doc/{name}/copyright"), 0o644),
            (format!("usr/share/doc/{name}/metrics.md"), 0o644),
            (format!("usr/share/doc/{name}/examples/web.yml"), 0o644),
        ] {
            let meta = self.root.path(&path).metadata().with_context(|| format!("no {path}"))?;
            ensure!(meta.mode() & 0o7777 == mode, "{path} has mode {:o}", meta.mode() & 0o7777);
        }
        for path in self.root.run(&["dpkg", "--listfiles", name])?.lines().filter(|path| *path != "/.") {
            let meta = self.root.path(path.trim_start_matches('/')).symlink_metadata().context(path.to_owned())?;
            ensure!((meta.uid(), meta.gid()) == (0, 0), "{path} belongs to {}:{}", meta.uid(), meta.gid());
            ensure!(meta.mode() & 0o022 == 0, "{path} has mode {:o}", meta.mode() & 0o7777);
        }
        let conffiles = self.root.run(&["dpkg-query", "--show", "--showformat=${Conffiles}", name])?;
        ensure!(conffiles.contains(&format!("/etc/wattcast/{name}.toml")), "conffiles: {conffiles}");
        Ok(())
    }

    fn verified(&self, package: &Package) -> Result<()> {
        let differ = self.root.run(&["dpkg", "--verify", package.name])?;
        ensure!(differ.is_empty(), "{differ}");
        Ok(())
    }

    fn enabled(&self, package: &Package, expected: bool) -> Result<()> {
        self.present(&format!("{ENABLED}/{}.service", package.name), expected)
    }

    fn present(&self, path: &str, expected: bool) -> Result<()> {
        let found = self.root.path(path).symlink_metadata().is_ok();
        ensure!(found == expected, "{path} {}", if found { "is there" } else { "is not there" });
        Ok(())
    }

    fn version(&self, package: &Package, end: &str) -> Result<()> {
        let shown = self.root.run(&["dpkg-query", "--show", "--showformat=${Version} ${Status}", package.name])?;
        ensure!(shown.contains(&format!("{end} install ok installed")), "{shown}");
        self.verified_but_for_configuration(package)
    }

    fn verified_but_for_configuration(&self, package: &Package) -> Result<()> {
        let differ = self.root.run(&["dpkg", "--verify", package.name])?;
        let others = differ.lines().filter(|line| !line.ends_with(&format!(" c /etc/wattcast/{}.toml", package.name)));
        let others: Vec<_> = others.collect();
        ensure!(others.is_empty(), "{}", others.join("\n"));
        Ok(())
    }

    fn account(&self) -> Result<()> {
        let account = self.root.run(&["getent", "passwd", "wattcast"])?;
        let fields: Vec<&str> = account.split(':').collect();
        let [_, _, uid, gid, _, home, login] = fields[..] else { bail!("{account}") };
        ensure!((home, login) == ("/var/lib/wattcast-analysis", "/usr/sbin/nologin"), "{account}");
        let meta = self.root.path(ANALYSIS.state).metadata()?;
        ensure!(meta.mode() & 0o7777 == 0o2775, "mode {:o}", meta.mode() & 0o7777);
        ensure!((meta.uid(), meta.gid()) == (uid.parse()?, gid.parse()?), "{account} does not own the directory");
        Ok(())
    }

    fn no_account(&self) -> Result<()> {
        for database in ["passwd", "group"] {
            let found = self.root.run(&["getent", database])?;
            ensure!(!found.lines().any(|line| line.starts_with("wattcast:")), "{database} has wattcast");
        }
        Ok(())
    }

    /// Gives the program another port, as an administrator would; gives the new text of the file.
    fn change(&self, package: &Package) -> Result<String> {
        let path = self.config(package);
        let text = fs::read_to_string(&path)?;
        let setting = format!("[web]\nlisten-address = [\"{}\"]\n", package.changed);
        let changed = if text.contains("\n[web]\n") {
            text.replacen("[web]\n", &setting, 1)
        } else {
            format!("{text}\n{setting}")
        };
        fs::write(path, &changed)?;
        Ok(changed)
    }

    fn config(&self, package: &Package) -> PathBuf {
        self.root.path(&format!("etc/wattcast/{}.toml", package.name))
    }

    fn kept(&self, package: &Package, config: &str) -> Result<()> {
        ensure!(fs::read_to_string(self.config(package))? == config, "the configuration changed");
        for entry in fs::read_dir(self.root.path("etc/wattcast"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ensure!(name.ends_with(".toml"), "there is {name}");
        }
        Ok(())
    }

    fn result(&self) -> Result<()> {
        ensure!(fs::read_to_string(self.root.path(RESULT))? == "{}", "the result changed");
        Ok(())
    }

    fn removed(&self, package: &Package) -> Result<()> {
        self.present(&format!("usr/bin/{}", package.name), false)?;
        self.present(&format!("usr/lib/systemd/system/{}.service", package.name), false)
    }

    /// deb-systemd-helper masks the unit of a package that is removed but not purged.
    fn unmasked(&self, package: &Package) -> Result<()> {
        self.present(&format!("etc/systemd/system/{}.service", package.name), false)
    }

    fn purged(&self, package: &Package) -> Result<()> {
        self.removed(package)?;
        self.unmasked(package)?;
        self.enabled(package, false)?;
        self.present(&format!("etc/wattcast/{}.toml", package.name), false)?;
        self.present(package.state, false)
    }

    /// Starts the program as its unit says, waits until it says that it is ready and answers, and
    /// ends it.
    fn starts(&self, package: &Package, address: &str) -> Result<()> {
        let unit = self.root.path(&format!("usr/lib/systemd/system/{}.service", package.name));
        let unit = fs::read_to_string(unit)?;
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let (user, group) = (value("User").unwrap_or("root"), value("Group").unwrap_or("root"));
        let state = format!("/var/lib/{}", value("StateDirectory").context("no StateDirectory")?);
        let mode = value("StateDirectoryMode").unwrap_or("0755");
        self.root.run(&["install", "-d", "-o", user, "-g", group, "-m", mode, &state])?;
        let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
        let mut args = vec!["setpriv", &user, &group, "--init-groups", "--no-new-privs", "--pdeathsig=TERM"];
        args.extend(value("ExecStart").context("no ExecStart")?.split_whitespace());

        let path = self.root.path("run/notify");
        // Of a start that failed.
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        socket.set_nonblocking(true)?;
        let mut command = self.root.command(&args);
        command.env("STATE_DIRECTORY", &state).env("NOTIFY_SOCKET", "/run/notify");
        let mut program = Program::start(package.name, &mut command, self.logs)?;
        let client = Client::new(format!("http://{address}"));
        let (mut ready, mut deadline) = (false, Deadline::after(Duration::from_secs(30)));
        loop {
            program.alive()?;
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                ready |= String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1");
            }
            let page = client.text("/metrics");
            if ready && page.as_ref().is_ok_and(|page| page.contains("\nwattcast_")) {
                break;
            }
            ensure!(!deadline.passed(), "ready: {ready}, page: {page:?}, log:\n{}", program.log());
            thread::sleep(Duration::from_millis(20));
        }
        fs::remove_file(path)?;
        let status = program.stop()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// Gives the calling thread, and what it starts from here on, namespaces of the network and of
/// mounts.
fn enter_namespaces() -> Result<()> {
    netns::enter().context("cannot make a network namespace")?;
    // SAFETY: unshare takes flags alone; the namespace belongs to the calling thread and its
    // children.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make a mount namespace");
    }
    shell::output(Command::new("mount").args(["--make-rprivate", "/"]))?;
    Ok(())
}
