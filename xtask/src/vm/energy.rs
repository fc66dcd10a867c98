//! The energy of a guest: the probe of its host attributes energy to it, and the probe in the guest
//! reads that and divides it.
//!
//! Over HTTPS, the host is this machine: its probe attributes simulated energy to the cgroup of
//! QEMU. Vsock from this machine would need a module of its kernel (vhost_vsock), so there both
//! probes run in the guest, and use the loopback of vsock; a process with the arguments of QEMU
//! stands for the guest.
//!
//! Both accounts are compared to the microjoule. That needs no moment at which both are read: the
//! probe of the host has long ticks, and ticks where the guest's script asks for them, so the row
//! of the guest has few values, all of which are read. Whatever the guest has counted since its
//! first page must be the difference of two of them.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use testkit::{
    account,
    api::{Client, Sample},
    certs::{Authority, PASSWORD},
    cgroup::{self, Cgroup},
    program::Program,
    require,
    shell::output,
    simulator::{Simulator, Spec},
};

use super::{
    guest, initramfs,
    matrix::{Guest, Setup},
    verify::{self, CGROUPS},
};

/// The name of this machine in its certificate and in the guest.
const HOST: &str = "host";
/// Pages of the guest's script: the first one, and one after each mark.
const PAGES: usize = 5;
/// Least energy in microjoules between the first and the last page, so that equal sums say
/// something.
const LEAST: i64 = 1_000_000;

/// What guests need of this machine that read its energy.
///
/// # Errors
/// What is missing.
pub(super) fn requirements() -> Result<(), String> {
    require::root()?;
    require::cgroup_v2()
}

/// Runs a guest with both probes; the inner result is that of their figures.
///
/// # Errors
/// When the guest makes no progress.
pub(super) fn over_vsock(guest: &Guest<'_>, setup: &Setup, kvm: bool, log: &Path) -> Result<Result<Vec<String>>> {
    let dir = tempfile::tempdir()?;
    let initramfs = dir.path().join("initramfs.cpio");
    initramfs::extend(&setup.initramfs, "energy", &modules(guest)?, &initramfs)?;
    let console = guest::run(&mut guest::command(guest, &initramfs, kvm, ""), log, |_| Ok(()))?;
    Ok(printed_rows(&console, guest).and_then(|rows| verify(&console, &rows, "model", guest)))
}

/// The row of the process that stands for a guest, before and after each mark.
fn printed_rows(console: &str, guest: &Guest<'_>) -> Result<Vec<i64>> {
    let script = verify::script(console, guest.kernel)?;
    let row = |number| Ok(of_container(&page(&script, "row", number)?, "machine"));
    (0..2 * (PAGES + 1)).map(row).filter_map(Result::transpose).collect()
}

/// Runs a guest next to a probe of this machine; the inner result is that of their figures.
///
/// # Errors
/// When one of them does not start, or the guest makes no progress.
pub(super) fn over_https(guest: &Guest<'_>, setup: &Setup, kvm: bool, log: &Path) -> Result<Result<Vec<String>>> {
    let name = format!("wattcast-vm-{}-{}", std::process::id(), guest.machine.name.replace(' ', "-"));
    let mut host = Host::start(&setup.probe, &name)?;
    let initramfs = host.dir.path().join("initramfs.cpio");
    let files = [modules(guest)?, host.guest_files()?].concat();
    initramfs::extend(&setup.initramfs, "energy", &files, &initramfs)?;
    let mut command = guest::command(guest, &initramfs, kvm, &format!("host_port={}", host.port));
    command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    host.cgroup.enter(&mut command)?;
    let mut rows = Vec::new();
    let mut marks = 0;
    let console = guest::run(&mut command, log, |console| {
        host.program.alive()?;
        host.read_row(&mut rows)?;
        let asked = console.lines().filter(|line| line.starts_with("VM mark ")).count();
        // The guest has no row until a tick has seen its cgroup.
        if asked > marks || rows.is_empty() {
            marks = asked;
            host.client.mark()?;
            host.read_row(&mut rows)?;
        }
        Ok(())
    })?;
    Ok(verify(&console, &rows, "simulated", guest))
}

/// A file in the guest's directory `energy`.
type File = (String, Vec<u8>);

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The modules of a guest, with names in the order to load them.
fn modules(guest: &Guest<'_>) -> Result<Vec<File>> {
    let modules = guest.image.modules.iter().enumerate();
    modules.map(|(at, path)| Ok((format!("{at:02}.ko"), read(path)?))).collect()
}

/// A probe of this machine with simulated energy.
struct Host {
    program: Program,
    client: Client,
    port: String,
    authority: Authority,
    /// That of QEMU, and the name of its row.
    cgroup: Cgroup,
    name: String,
    _simulator: Simulator,
    dir: tempfile::TempDir,
}

impl Host {
    /// The set-up of docs/guests.md.
    fn start(probe: &Path, name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let simulator = Simulator::start(dir.path(), &Spec { packages: Some(1), ..Spec::default() })?;
        let cgroup = Cgroup::create(&cgroup::v2().context("no cgroup v2 tree is mounted")?, name)?;
        let authority = Authority::new(dir.path())?.context("openssl is not in PATH")?;
        authority.issue("web", HOST)?;
        let web = authority.web("web", "")?;
        let script = "(umask 077; head -c 32 /dev/urandom | base64 > token)
            echo \"$0 $(tr -d '\\n' < token | sha256sum | cut -d' ' -f1)\" >> guests";
        output(Command::new("sh").args(["-c", script, name]).current_dir(dir.path()))?;
        let mut command = Command::new(probe);
        command
            .args(["--web.listen-address=127.0.0.1:0", "--energy.source=powercap", "--tick=30s"])
            .args(["--docker.socket=/none", "--no-collector.stats"])
            .arg(format!("--path.sysfs={}", simulator.sysfs().display()))
            .arg(format!("--web.config.file={}", web.display()))
            .arg(format!("--guest.tokens-file={}", dir.path().join("guests").display()));
        let mut program = Program::start_with_state("probe", &mut command, dir.path())?;
        let url = program.address(0)?;
        let port = url.rsplit_once(':').map(|(_, port)| port.to_owned()).context("an address without port")?;
        let client = Client::secure(&url, &authority.ca(), Some(("prom", PASSWORD.0)), None)?;
        client.wait("/metrics", Duration::from_secs(20), || program.alive())?;
        let name = name.to_owned();
        Ok(Self { program, client, port, authority, cgroup, name, _simulator: simulator, dir })
    }

    /// What the guest needs to ask this probe.
    fn guest_files(&self) -> Result<Vec<File>> {
        let files = [("token", self.dir.path().join("token")), ("ca.pem", self.authority.ca())];
        files.into_iter().map(|(name, path)| Ok((name.to_owned(), read(&path)?))).collect()
    }

    /// Appends the microjoules of the guest's row, if there is one and it has changed.
    fn read_row(&self, rows: &mut Vec<i64>) -> Result<()> {
        let page = self.client.metrics()?;
        conserved(&page).context("the account of the host")?;
        if let Some(row) = of_container(&page, &self.name)
            && rows.last() != Some(&row)
        {
            rows.push(row);
        }
        Ok(())
    }
}

/// Checks the pages of the guest against the values of its row on the host, and their source.
fn verify(console: &str, rows: &[i64], source: &str, guest: &Guest<'_>) -> Result<Vec<String>> {
    let script = verify::script(console, guest.kernel)?;
    let mut totals = Vec::new();
    let mut parts = [0, 0];
    for number in 0..PAGES {
        let page = page(&script, "page", number)?;
        conserved(&page).with_context(|| format!("page {number} of the guest"))?;
        let zone = page.iter().find(|sample| sample.name == "wattcast_energy_joules_total").context("no energy")?;
        let package = if guest.machine.packages > 1 { "all" } else { "0" };
        let labels = [("source", source), ("zone", "package"), ("package", package)];
        ensure!(labels.iter().all(|(label, value)| zone.label(label) == *value), "{labels:?} in {zone:?}");
        totals.push(microjoules(zone));
        parts = CGROUPS.map(|name| of_container(&page, name).unwrap_or(0));
    }
    let since_first: Vec<i64> = totals.iter().map(|total| total - totals[0]).collect();
    let is_row = |base: &i64| since_first.iter().all(|energy| rows.contains(&(base + energy)));
    ensure!(rows.iter().any(is_row), "microjoules of the guest {totals:?}, of its row on the host {rows:?}");
    let energy = since_first.last().copied().unwrap_or(0);
    ensure!(energy >= LEAST, "only {energy} microjoules between the first and the last page");
    ensure!(parts.iter().all(|part| *part > 0), "microjoules of the cgroups {CGROUPS:?}: {parts:?}");
    let counted = format!("{energy} microjoules in {PAGES} pages, all as the host's row; {parts:?} in {CGROUPS:?}");
    Ok(vec![verify::stages(&script), counted])
}

/// The samples that the script printed as `KIND NUMBER SAMPLE`.
fn page(script: &[&str], kind: &str, number: usize) -> Result<Vec<Sample>> {
    let prefix = format!("{kind} {number} ");
    let lines = script.iter().filter_map(|line| line.strip_prefix(&*prefix));
    let page: String = lines.flat_map(|line| [line, "\n"]).collect();
    Ok(metrics::parse::parse(&page).with_context(|| prefix)?.samples)
}

/// Checks that the parts of each root sum to its energy, to the microjoule.
fn conserved(page: &[Sample]) -> Result<()> {
    let roots: Vec<&Sample> = page.iter().filter(|sample| sample.name == "wattcast_energy_joules_total").collect();
    for root in roots {
        let same = |sample: &&Sample| ["package", "zone"].iter().all(|label| sample.label(label) == root.label(label));
        let part = |(name, sign): (&str, i64)| -> i64 {
            let samples = page.iter().filter(|sample| sample.name == name).filter(same);
            samples.map(|sample| sign * microjoules(sample)).sum()
        };
        let error: i64 = account::PARTS.into_iter().map(part).sum();
        ensure!(error == 0, "{error} microjoules of {root:?}");
    }
    Ok(())
}

/// The row of a container in microjoules of the package.
fn of_container(page: &[Sample], name: &str) -> Option<i64> {
    let is_row = |sample: &&Sample| {
        sample.name == "wattcast_container_energy_joules_total"
            && sample.label("container") == name
            && sample.label("zone") == "package"
    };
    let rows: Vec<i64> = page.iter().filter(is_row).map(microjoules).collect();
    (!rows.is_empty()).then(|| rows.iter().sum())
}

fn microjoules(sample: &Sample) -> i64 {
    account::microjoules(sample.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::matrix::{Image, KERNELS, MACHINES, Machine, Script};

    fn guest(machine: &Machine) -> Guest<'_> {
        let image = Image { file: "vmlinuz".into(), modules: Vec::new() };
        Guest { kernel: &KERNELS[1], machine, script: Script::Https, image }
    }

    fn printed(number: usize, energy: &str, part: &str) -> String {
        let labels = "package=\"all\",zone=\"package\"";
        let container = |name: &str| {
            format!(
                "VM page {number} wattcast_container_energy_joules_total{{container=\"{name}\",{labels}}} {part}\r\n"
            )
        };
        format!(
            "VM page {number} wattcast_energy_joules_total{{{labels},source=\"simulated\"}} {energy}\r\n{}{}",
            container("one"),
            container("two")
        )
    }

    #[test]
    fn energy_of_a_guest_is_that_of_its_row_to_the_microjoule() {
        let pages = [
            printed(0, "1.000002", "0.500001"),
            printed(1, "3", "1.5"),
            printed(2, "5", "2.5"),
            printed(3, "7", "3.5"),
        ];
        let console =
            format!("VM kernel 6.1.0\r\n{}{}VM end\r\n", pages.concat(), printed(4, "31.000002", "15.500001"));
        let [sockets, threads] = MACHINES.each_ref().map(guest);
        let verify = |rows: &[i64]| verify(&console, rows, "simulated", &sockets);
        let rows = [40_000_000, 50_000_002, 52_000_000, 54_000_000, 56_000_000, 80_000_002];
        let findings = verify(&rows).unwrap();
        assert!(findings[1].starts_with("30000000 microjoules"), "{findings:?}");
        for at in 1..rows.len() {
            let mut wrong = rows;
            wrong[at] += 1;
            assert!(verify(&wrong).is_err(), "{wrong:?}");
        }
        let open = console.replace("} 1.5\r", "} 1.4\r");
        assert!(super::verify(&open, &rows, "simulated", &sockets).is_err(), "parts sum to less");
        assert!(super::verify(&console, &rows, "simulated", &threads).is_err(), "one package has a number");
        assert!(super::verify(&console, &rows, "model", &sockets).is_err(), "another source");
    }
}
