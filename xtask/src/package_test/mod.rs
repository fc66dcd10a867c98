//! `cargo xtask package-test`: installs, starts, upgrades, removes and purges both Debian packages
//! in a temporary root directory.
//!
//! cargo-deb builds the packages from the programs that the tests use. The root has the essential
//! packages of this machine and no running systemd; programs start as in their units, in a network
//! namespace of the test, where all ports are free.

mod root;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::root::Root;
use crate::dist::debian_packages;
use testkit::{
    api::Client,
    program::Program,
    shell::{self, run, step, target, which},
    wait::Deadline,
};

/// Dependencies of the packages that are not essential packages.
const DEPENDS: [&str; 1] = ["passwd"];
const RESULT: &str = "var/lib/wattcast-analysis/result.json";
/// A file that the probe could have written.
const PROBE_STATE: &str = "var/lib/wattcast/kept";
/// A link for each unit that is started at boot.
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants";

struct Package {
    name: &'static str,
    /// Listen address in the configuration of the package.
    address: &'static str,
    /// Listen address in the configuration that the test changed.
    changed_address: &'static str,
    /// State directory of its program.
    state: &'static str,
}

const PROBE: Package = Package {
    name: "wattcast-probe",
    address: "127.0.0.1:9500",
    changed_address: "127.0.0.1:9600",
    state: "var/lib/wattcast",
};
const ANALYSIS: Package = Package {
    name: "wattcast-analysis",
    address: "127.0.0.1:9502",
    changed_address: "127.0.0.1:9602",
    state: "var/lib/wattcast-analysis",
};
const BOTH: [&Package; 2] = [&PROBE, &ANALYSIS];

/// Runs all checks.
pub fn package_test() -> Result<()> {
    if let Some(reason) = missing_requirement() {
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
    let test = PackageTest { root, logs: dir.path() };
    let mut checks = Checks::default();
    // Only this thread enters the namespaces: the directory is removed by a thread that sees no
    // mounts in it.
    let ran = thread::scope(|scope| scope.spawn(|| test.run(&old, &new, &mut checks)).join());
    let ran = ran.unwrap_or_else(|_| Err(anyhow!("the thread of the checks panicked")));
    checks.report("the test completes", ran);
    println!("{} passed, {} failed, 0 skipped", checks.passed, checks.failed);
    match checks.failed {
        0 => Ok(()),
        count => bail!("{count} failed"),
    }
}

/// The reason why it cannot run here.
fn missing_requirement() -> Option<String> {
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
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        self.report(name, check());
    }

    fn report(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                println!("ok: {name}");
                self.passed += 1;
            }
            Err(error) => {
                println!("FAILED: {name}: {error:#}");
                self.failed += 1;
            }
        }
    }
}

struct PackageTest<'a> {
    root: Root,
    logs: &'a Path,
}

impl PackageTest<'_> {
    /// Runs all checks; the root has no package of ours at the beginning and at the end.
    fn run(&self, old: &[PathBuf], new: &[PathBuf], checks: &mut Checks) -> Result<()> {
        let root = &self.root;
        root.enter()?;
        let bare = root.snapshot()?;
        self.install(old)?;
        for package in BOTH {
            let name = package.name;
            checks.check(&format!("{name}: files, owners and modes"), || self.check_files(package));
            checks.check(&format!("{name}: dpkg verifies every file"), || self.verify_files(package));
            checks.check(&format!("{name}: its unit is enabled"), || self.check_enabled(package, true));
            checks.check(&format!("{name}: starts with the default configuration"), || {
                self.check_start(package, package.address)
            });
        }
        checks.check("wattcast-analysis: has an account and a directory for results", || self.check_account());

        // An administrator changes both configurations and disables a unit; an experiment writes a
        // result.
        let (probe, analysis) = (self.change_port(&PROBE)?, self.change_port(&ANALYSIS)?);
        fs::remove_file(root.path(ENABLED).join("wattcast-probe.service"))?;
        fs::write(root.path(RESULT), "{}")?;
        fs::write(root.path(PROBE_STATE), "learnt")?;
        let account = root.run(&["getent", "passwd", "wattcast"])?;

        self.install(new)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            let name = package.name;
            checks.check(&format!("{name}: an upgrade replaces the program"), || {
                self.check_version(package, "+upgrade-1")
            });
            checks.check(&format!("{name}: an upgrade keeps a changed configuration"), || {
                self.check_config(package, config)
            });
            checks.check(&format!("{name}: starts after the upgrade with the changed configuration"), || {
                self.check_start(package, package.changed_address)
            });
        }
        checks
            .check("wattcast-probe: an upgrade leaves a disabled unit disabled", || self.check_enabled(&PROBE, false));
        checks.check("wattcast-analysis: an upgrade leaves an enabled unit enabled", || {
            self.check_enabled(&ANALYSIS, true)
        });
        checks.check("wattcast-probe: an upgrade keeps its state", || {
            ensure!(fs::read_to_string(root.path(PROBE_STATE))? == "learnt", "the state changed");
            Ok(())
        });
        checks.check("wattcast-analysis: an upgrade keeps the account and the results", || {
            ensure!(root.run(&["getent", "passwd", "wattcast"])? == account, "the account changed");
            self.check_result()
        });

        self.dpkg("--remove", &BOTH)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            let name = package.name;
            checks.check(&format!("{name}: removal deletes the program and the unit"), || self.check_removed(package));
            checks.check(&format!("{name}: removal keeps a changed configuration"), || {
                self.check_config(package, config)
            });
            checks.check(&format!("{name}: removal keeps its state"), || self.check_exists(package.state, true));
        }
        self.install(new)?;
        for (package, config) in [(&PROBE, &probe), (&ANALYSIS, &analysis)] {
            checks.check(&format!("{}: starts when it is installed again", package.name), || {
                self.check_config(package, config)?;
                self.check_unmasked(package)?;
                self.check_start(package, package.changed_address)
            });
        }

        self.dpkg("--purge", &[&PROBE])?;
        checks.check("wattcast-probe: a purge deletes configuration and state", || self.check_purged(&PROBE));
        checks.check("wattcast-probe: a purge does not affect the other package", || {
            self.check_config(&ANALYSIS, &analysis)?;
            self.check_result()?;
            self.check_enabled(&ANALYSIS, true)
        });
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks
            .check("wattcast-analysis: a purge deletes the configuration", || self.check_exists("etc/wattcast", false));
        checks.check("wattcast-analysis: a purge keeps results, and the account that owns them", || {
            root.run(&["getent", "passwd", "wattcast"])?;
            self.check_result()
        });

        self.install(&new[1..])?;
        fs::remove_file(root.path(RESULT))?;
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks.check("wattcast-analysis: a purge without results deletes directory and account", || {
            self.check_purged(&ANALYSIS)?;
            self.check_no_account()
        });
        self.install(&new[1..])?;
        fs::remove_dir(root.path(ANALYSIS.state))?;
        self.dpkg("--purge", &[&ANALYSIS])?;
        checks.check("wattcast-analysis: a purge deletes the account if the directory is missing", || {
            self.check_no_account()
        });
        checks.check("no file of either package remains", || {
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

    /// Copies packages into the root and installs them.
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

    /// Checks that the main files exist, and that root owns every file and no other user can write
    /// it.
    fn check_files(&self, package: &Package) -> Result<()> {
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

    fn verify_files(&self, package: &Package) -> Result<()> {
        let differ = self.root.run(&["dpkg", "--verify", package.name])?;
        ensure!(differ.is_empty(), "{differ}");
        Ok(())
    }

    fn check_enabled(&self, package: &Package, expected: bool) -> Result<()> {
        self.check_exists(&format!("{ENABLED}/{}.service", package.name), expected)
    }

    fn check_exists(&self, path: &str, expected: bool) -> Result<()> {
        let found = self.root.path(path).symlink_metadata().is_ok();
        ensure!(found == expected, "{path} {}", if found { "exists" } else { "does not exist" });
        Ok(())
    }

    fn check_version(&self, package: &Package, end: &str) -> Result<()> {
        let shown = self.root.run(&["dpkg-query", "--show", "--showformat=${Version} ${Status}", package.name])?;
        ensure!(shown.contains(&format!("{end} install ok installed")), "{shown}");
        self.verify_files_except_configuration(package)
    }

    fn verify_files_except_configuration(&self, package: &Package) -> Result<()> {
        let differ = self.root.run(&["dpkg", "--verify", package.name])?;
        let others = differ.lines().filter(|line| !line.ends_with(&format!(" c /etc/wattcast/{}.toml", package.name)));
        let others: Vec<_> = others.collect();
        ensure!(others.is_empty(), "{}", others.join("\n"));
        Ok(())
    }

    fn check_account(&self) -> Result<()> {
        let account = self.root.run(&["getent", "passwd", "wattcast"])?;
        let fields: Vec<&str> = account.split(':').collect();
        let [_, _, uid, gid, _, home, login] = fields[..] else { bail!("{account}") };
        ensure!((home, login) == ("/var/lib/wattcast-analysis", "/usr/sbin/nologin"), "{account}");
        let meta = self.root.path(ANALYSIS.state).metadata()?;
        ensure!(meta.mode() & 0o7777 == 0o2775, "mode {:o}", meta.mode() & 0o7777);
        ensure!((meta.uid(), meta.gid()) == (uid.parse()?, gid.parse()?), "{account} does not own the directory");
        Ok(())
    }

    fn check_no_account(&self) -> Result<()> {
        for database in ["passwd", "group"] {
            let found = self.root.run(&["getent", database])?;
            ensure!(!found.lines().any(|line| line.starts_with("wattcast:")), "{database} has wattcast");
        }
        Ok(())
    }

    /// Changes the port in the configuration; returns the new content of the file.
    fn change_port(&self, package: &Package) -> Result<String> {
        let path = self.config(package);
        let text = fs::read_to_string(&path)?;
        let setting = format!("[web]\nlisten-address = [\"{}\"]\n", package.changed_address);
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

    fn check_config(&self, package: &Package, config: &str) -> Result<()> {
        ensure!(fs::read_to_string(self.config(package))? == config, "the configuration changed");
        for entry in fs::read_dir(self.root.path("etc/wattcast"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ensure!(name.ends_with(".toml"), "unexpected file {name}");
        }
        Ok(())
    }

    fn check_result(&self) -> Result<()> {
        ensure!(fs::read_to_string(self.root.path(RESULT))? == "{}", "the result changed");
        Ok(())
    }

    fn check_removed(&self, package: &Package) -> Result<()> {
        self.check_exists(&format!("usr/bin/{}", package.name), false)?;
        self.check_exists(&format!("usr/lib/systemd/system/{}.service", package.name), false)
    }

    /// deb-systemd-helper masks the unit of a package that is removed but not purged.
    fn check_unmasked(&self, package: &Package) -> Result<()> {
        self.check_exists(&format!("etc/systemd/system/{}.service", package.name), false)
    }

    fn check_purged(&self, package: &Package) -> Result<()> {
        self.check_removed(package)?;
        self.check_unmasked(package)?;
        self.check_enabled(package, false)?;
        self.check_exists(&format!("etc/wattcast/{}.toml", package.name), false)?;
        self.check_exists(package.state, false)
    }

    /// Starts the program as in its unit, waits until it is ready and serves metrics, and stops it.
    fn check_start(&self, package: &Package, address: &str) -> Result<()> {
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
        // Left by a failed start.
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
