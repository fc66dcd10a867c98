//! `cargo xtask bench peers`: the probe next to other exporters of energy, on one simulated
//! powercap tree of two packages, in turn, several rounds each.
//!
//! node_exporter comes from the distribution. Scaphandre and Rezolus are measured where their
//! binary is in PATH. The legacy Go exporter does not run here: its figures are constants.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    accuracy::table::Table,
    marks, process,
    rounds::{Ratio, Rounds},
    stop,
    trial::{self, Exporter, Figure, Plan, Series},
};
use testkit::{
    ports::free_port,
    shell::{self, step, which},
    simulator::{Simulator, Spec},
};

const ROUNDS: usize = 5;
/// 23 s per program and round: with two programs, about four minutes.
const PLAN: Plan = Plan {
    settle: trial::SETTLE,
    idle: Duration::from_secs(5),
    one: Duration::from_secs(2),
    many: Duration::from_secs(6),
};
/// The machine without any of the programs, once per round.
const ALONE: Duration = Duration::from_secs(3);

/// The exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Probe,
    NodeExporter,
    Scaphandre,
    Rezolus,
}

impl Kind {
    const PEERS: [Self; 3] = [Self::NodeExporter, Self::Scaphandre, Self::Rezolus];

    /// Head of its column.
    fn name(self) -> &'static str {
        match self {
            Self::Probe => "wattcast-probe",
            Self::NodeExporter => "node_exporter",
            Self::Scaphandre => "Scaphandre",
            Self::Rezolus => "Rezolus",
        }
    }

    /// Head of the column of ratios.
    fn ratio(self) -> &'static str {
        match self {
            Self::Probe => "1",
            Self::NodeExporter => "probe / node_exporter",
            Self::Scaphandre => "probe / Scaphandre",
            Self::Rezolus => "probe / Rezolus",
        }
    }

    /// Its binary; `None` where it is not installed.
    fn binary(self) -> Option<PathBuf> {
        match self {
            Self::Probe => Some(shell::release_dir().join("wattcast-probe")),
            Self::NodeExporter => which("prometheus-node-exporter").or_else(|| which("node_exporter")),
            Self::Scaphandre => which("scaphandre"),
            Self::Rezolus => which("rezolus"),
        }
    }

    /// Paths of its page, and text that a complete page has.
    fn page(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Probe => (&["/metrics"], "\nwattcast_power_watts"),
            Self::NodeExporter => (&["/metrics"], "\nnode_rapl_"),
            Self::Scaphandre => (&["/metrics"], "scaph_host_power_microwatts"),
            // Since version 5 the page for Prometheus comes from a second process.
            Self::Rezolus => (&["/metrics", "/metrics/json"], "cpu_usage"),
        }
    }

    /// The command that starts it with only its energy collector, where it has that choice.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    fn command(self, binary: &Path, sysfs: &Path, port: u16, dir: &Path) -> Result<Command> {
        let mut command = Command::new(binary);
        match self {
            Self::Probe => {
                command.arg("--web.listen-address=127.0.0.1:0").arg(format!("--path.sysfs={}", sysfs.display()));
            }
            Self::NodeExporter => {
                // Above 40 concurrent requests it answers 503, unless that limit is off.
                command
                    .args(["--collector.disable-defaults", "--collector.rapl", "--web.disable-exporter-metrics"])
                    .arg("--web.max-requests=0")
                    .arg(format!("--path.sysfs={}", sysfs.display()))
                    .arg(format!("--web.listen-address=127.0.0.1:{port}"));
            }
            Self::Scaphandre => {
                // The mode for virtual machines is the one that reads a tree at another path
                // (src/sensors/powercap_rapl.rs).
                command.args(["--vm", "prometheus", "--address", "127.0.0.1", "--port", &port.to_string()]);
                command.env("SCAPHANDRE_POWERCAP_PATH", sysfs.join("class/powercap"));
            }
            Self::Rezolus => {
                let config = dir.join("rezolus.toml");
                let text = format!("[general]\nlisten = \"127.0.0.1:{port}\"\n[defaults]\nenabled = true\n");
                fs::write(&config, text)?;
                command.arg(config);
            }
        }
        Ok(command)
    }
}

/// An exporter with its figures.
struct Peer {
    kind: Kind,
    exporter: Exporter,
    port: u16,
    series: Series,
    /// Why it is left out from some round on.
    fault: Option<String>,
}

impl Peer {
    fn new(kind: Kind, binary: PathBuf) -> Result<Self> {
        let (paths, complete) = kind.page();
        let port = free_port()?;
        let url = (kind != Kind::Probe).then(|| format!("http://127.0.0.1:{port}"));
        let exporter = Exporter { name: kind.name(), binary, url, paths, complete: complete.to_owned() };
        Ok(Self { kind, exporter, port, series: Series::default(), fault: None })
    }

    /// One more round. A peer that fails is left out; the probe must not fail.
    fn measure(&mut self, sysfs: &Path, dir: &Path) -> Result<()> {
        if self.fault.is_some() {
            return Ok(());
        }
        let mut command = self.kind.command(&self.exporter.binary, sysfs, self.port, dir)?;
        match trial::trial(&self.exporter, &mut command, &PLAN, dir) {
            Ok(figures) => self.series.add(figures),
            Err(error) if self.kind == Kind::Probe || stop::stopped() => return Err(error),
            Err(error) => {
                step(format!("{} is left out: {error:#}", self.kind.name()));
                // Without the end of its log, which may follow.
                self.fault = Some(error.to_string().lines().next().unwrap_or("failed").to_owned());
            }
        }
        Ok(())
    }
}

/// Measures the release binaries, which are built, and prints the table, or writes it to
/// docs/performance.md.
///
/// # Errors
/// Without node_exporter, when the probe fails, and after a signal.
pub(crate) fn bench(write: bool) -> Result<()> {
    stop::catch_signals();
    shell::build_release()?;
    ensure!(
        Kind::NodeExporter.binary().is_some(),
        "node_exporter is not in PATH (Debian: apt-get install prometheus-node-exporter)"
    );
    let dir = tempfile::tempdir()?;
    let simulator = Simulator::start(dir.path(), &Spec { packages: Some(2), ..Spec::default() })?;
    let mut peers = Vec::new();
    for kind in [Kind::Probe].into_iter().chain(Kind::PEERS) {
        match kind.binary() {
            Some(binary) => peers.push(Peer::new(kind, binary)?),
            None => step(format!("{} is not in PATH", kind.name())),
        }
    }
    let mut awake = Rounds::default();
    for round in 0..ROUNDS {
        step(format!("round {} of {ROUNDS}", round + 1));
        awake.extend(alone(ALONE)?);
        // Every second round in the opposite order, so that none always follows the same other.
        let mut order: Vec<&mut Peer> = peers.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for peer in order {
            simulator.alive()?;
            peer.measure(simulator.sysfs(), dir.path())?;
        }
    }
    let text = report(&peers, &awake)?;
    if write {
        return marks::write("performance", "peers", &text);
    }
    print!("{text}");
    Ok(())
}

/// Percent of the CPUs' time outside their deepest idle state, without any exporter.
fn alone(time: Duration) -> Result<Option<f64>> {
    let (start, before) = (Instant::now(), process::deepest_idle());
    stop::sleep(time);
    ensure!(!stop::stopped(), "stopped");
    trial::awake(before, process::deepest_idle(), start.elapsed().as_secs_f64())
}

fn report(peers: &[Peer], awake: &Rounds) -> Result<String> {
    let (probe, others) = peers.split_first().context("the probe was not measured")?;
    let others: Vec<&Peer> = others.iter().filter(|peer| peer.fault.is_none()).collect();
    let mut heads = vec!["median of the rounds (smallest to largest)", probe.kind.name()];
    heads.extend(others.iter().flat_map(|peer| [peer.kind.name(), peer.kind.ratio()]));
    heads.push("legacy Go exporter");
    let missing: Vec<String> = Kind::PEERS.into_iter().filter_map(|kind| left_out(kind, peers)).collect();
    let mut text = format!(
        "{ROUNDS} rounds of {} s each, in turn, on one simulated powercap tree of two packages. The probe runs with all \
         its collectors and eBPF programs, node_exporter with its rapl collector alone. One client asks without a pause, \
         100 once per second. Memory is that of a program that has answered twice and is idle. Ratio: geometric mean with its 95 % interval; below 1 the probe needs less. The last \
         column is the documentation of the Go exporter or, with *measured*, one run next to the probe on two CPUs.",
        (PLAN.settle + PLAN.idle + PLAN.one + PLAN.many).as_secs()
    );
    if !missing.is_empty() {
        text.push_str(&format!(" Left out: {}.", missing.join(", ")));
    }
    if awake.median().is_some() {
        text.push_str(&format!(" Without any of them, {} % of the CPUs' time is outside that state.", awake.cell()));
    }
    let mut table = Table::new("Next to other exporters", &text, &heads);
    for figure in Figure::ALL {
        let Some(own) = probe.series.rounds(figure) else { continue };
        let mut row = vec![figure.label().to_owned(), own.cell()];
        for peer in &others {
            let rounds = peer.series.rounds(figure);
            let ratio = rounds.and_then(|rounds| Ratio::paired(rounds, own));
            row.push(rounds.map_or_else(|| "–".to_owned(), Rounds::cell));
            row.push(ratio.map_or_else(|| "–".to_owned(), Ratio::cell));
        }
        row.push(legacy(figure).to_owned());
        table.row(row);
    }
    Ok(table.markdown())
}

/// A peer without figures, with the reason.
fn left_out(kind: Kind, peers: &[Peer]) -> Option<String> {
    match peers.iter().find(|peer| peer.kind == kind) {
        None => Some(format!("{} (not installed)", kind.name())),
        Some(peer) => peer.fault.as_ref().map(|fault| format!("{} ({fault})", kind.name())),
    }
}

/// What the documentation of the legacy Go exporter claims, and what one run of it showed.
fn legacy(figure: Figure) -> &'static str {
    match figure {
        Figure::Start => "< 500",
        Figure::Binary => "5.3; 4.6 measured",
        Figure::Resident => "8; 11 measured",
        Figure::Idle => "0.8 with 8 streams",
        Figure::Scrape => "65 measured",
        Figure::One => "0.364 measured",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(kind: Kind, values: &[f64]) -> Peer {
        let mut peer = Peer::new(kind, PathBuf::from("/bin/true")).unwrap();
        for value in values {
            peer.series.add(vec![(Figure::Scrape, *value)]);
        }
        peer
    }

    #[test]
    fn the_table_has_the_ratio_to_each_peer_that_ran() {
        let mut broken = peer(Kind::Scaphandre, &[]);
        broken.fault = Some("no page".to_owned());
        let peers = [peer(Kind::Probe, &[20.0, 21.0]), peer(Kind::NodeExporter, &[200.0, 210.0]), broken];
        let text = report(&peers, &Rounds::default()).unwrap();
        let row = "| CPU per scrape, µs | 20.5 (20.0 to 21.0) | 205 (200 to 210) | 0.10";
        assert!(text.contains(row), "{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        assert!(text.contains("Left out: Scaphandre (no page), Rezolus (not installed)."), "{text}");
        assert!(
            text.contains("65 measured |") && !text.contains("probe / Scaphandre") && !text.contains("Without any")
        );
    }

    #[test]
    fn peers_read_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let command = |kind: Kind| {
            let command = kind.command(Path::new("/bin/x"), Path::new("/tree"), 1, dir.path()).unwrap();
            format!("{command:?}")
        };
        for kind in [Kind::Probe, Kind::NodeExporter] {
            assert!(command(kind).contains("--path.sysfs=/tree"), "{}", command(kind));
        }
        assert!(command(Kind::Scaphandre).contains("/tree/class/powercap"));
        command(Kind::Rezolus);
        assert!(fs::read_to_string(dir.path().join("rezolus.toml")).unwrap().contains("127.0.0.1:1"));
    }
}
