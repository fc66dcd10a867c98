//! `cargo xtask bench hosts`: one analysis service and one database with fifty probes, of which one
//! dies, one is slow and one has a wrong clock; and the size of a database for thousands of hosts.
//!
//! The probes are real and replay a recording. Wrong pages, states, alerts or bills are errors;
//! times and sizes are printed, and written to docs/scale.md with `--write`.

mod load;
mod proxy;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::{
    load::resident,
    proxy::{Fault, Proxy},
};
use crate::marks;
use testkit::{
    api::{Client, Sample},
    databases::Database,
    program::Program,
    shell::{self, output, root, step},
    wait::Deadline,
};

/// Hosts of the benchmark.
const HOSTS: usize = 50;
/// The hosts with a fault, by number.
const DEAD: usize = 0;
const SLOW: usize = 1;
const SKEWED: usize = 2;
/// Delay of each answer of the slow host: below the time-outs of checks and scrapes.
const DELAY: Duration = Duration::from_secs(3);
/// Error of the wrong clock.
const SKEW_SECONDS: i64 = 3600;
/// Every page must answer in this time.
const REFRESH: Duration = Duration::from_secs(1);
const REQUESTS: usize = 20;
/// 300 s at the pace of its ticks, from the start of each probe.
const RECORDING: &str = "probe-user/tests/recordings/three-to-one.rec";
/// Longest measurement, which the recording outlasts.
const LONGEST: u64 = 120;

/// A run of the first part.
#[derive(Debug)]
pub struct Plan {
    /// The directory of the programs.
    pub programs: PathBuf,
    /// At least one more than those with a fault.
    pub hosts: usize,
    pub seconds: u64,
    /// The longest time that a page may take; `None` to measure it only.
    pub refresh: Option<Duration>,
}

/// Runs both parts, and prints or writes their tables.
///
/// # Errors
/// When a program does not start, or shows something wrong.
pub(crate) fn bench(seconds: u64, write: bool) -> Result<()> {
    let programs = shell::build_release()?;
    let (hosts, page) = check(&Plan { programs, hosts: HOSTS, seconds, refresh: Some(REFRESH) })?;
    let scale = load::table(&page, seconds)?;
    if write {
        marks::write("scale", "hosts", &hosts)?;
        return marks::write("scale", "load", &scale);
    }
    print!("{hosts}\n{scale}");
    Ok(())
}

/// Runs the first part; returns its table, and the page of a probe without a fault.
///
/// # Errors
/// When a program does not start, or shows something wrong.
pub fn check(plan: &Plan) -> Result<(String, Vec<Sample>)> {
    ensure!(plan.hosts > SKEWED + 1, "{} hosts are too few", plan.hosts);
    ensure!(plan.seconds <= LONGEST, "the recording of the probes is too short for {} s", plan.seconds);
    let dir = tempfile::tempdir()?;
    let mut site = Site::start(plan, dir.path())?;
    let table = site.measure(plan)?;
    Ok((table, site.clients[SKEWED + 1].metrics()?))
}

/// The probes, the database that scrapes them, and the analysis service.
struct Site {
    /// The dead host's is `None` from its end on.
    probes: Vec<Option<Program>>,
    /// Clients of the probes themselves, without faults.
    clients: Vec<Client>,
    _analysis: Program,
    /// Pages of the analysis service: 9502, 9506, 9728, 9503, 9504, 9600.
    pages: Vec<Client>,
    database: Database,
    _proxies: Vec<Proxy>,
}

fn host_name(number: usize) -> String {
    format!("host-{number:02}")
}

impl Site {
    fn start(plan: &Plan, dir: &Path) -> Result<Self> {
        step(format!("starting {} probes", plan.hosts));
        let (mut probes, mut clients, mut proxies, mut urls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 0..plan.hosts {
            let (program, client) = start_probe(&plan.programs, dir, number)?;
            let fault = match number {
                SLOW => Some(Fault::Delay(DELAY)),
                SKEWED => Some(Fault::Skew(SKEW_SECONDS)),
                _ => None,
            };
            let mut url = client.url("");
            if let Some(fault) = fault {
                let proxy = Proxy::start(&url, fault)?;
                url.clone_from(&proxy.url);
                proxies.push(proxy);
            }
            urls.push(url);
            probes.push(Some(program));
            clients.push(client);
        }
        let scrape = dir.join("scrape.yml");
        fs::write(&scrape, scrape_config(&urls))?;
        let database = Database::victoria(&[], Some(&scrape))?;
        let results = dir.join("results");
        fs::create_dir(&results)?;
        let mut command = Command::new(plan.programs.join("wattcast-analysis"));
        command.args(["serve", "--web.listen-address=127.0.0.1:0", "--health.interval=2s", "--health.timeout=5s"]);
        command.arg("--results-dir").arg(&results).arg(format!("--database.url={}", database.url));
        let named = |path: &str| -> Vec<String> {
            (0..).zip(&urls).map(|(number, url)| format!("{}={url}{path}", host_name(number))).collect()
        };
        command.arg(format!("--probe-url={}", named("").join(",")));
        command.arg(format!("--health.targets={}", named("/metrics").join(",")));
        let mut analysis = Program::start("analysis", &mut command, dir)?;
        let pages = (0..6).map(|index| analysis.client_of(index)).collect::<Result<_>>()?;
        Ok(Self { probes, clients, _analysis: analysis, pages, database, _proxies: proxies })
    }

    /// Runs for some seconds, ends one probe in the middle, and checks everything that shows it.
    fn measure(&mut self, plan: &Plan) -> Result<String> {
        let seconds = plan.seconds;
        let expect = |number: usize| if number == SKEWED { "clock" } else { "healthy" };
        self.wait_for_states(&expect)?;
        // A bill begins at a whole second, and with a sample of every host.
        thread::sleep(Duration::from_secs(6));
        let (from, before) = (now()?, self.joules()?);
        step(format!("measuring for {seconds} s"));
        thread::sleep(Duration::from_secs(seconds / 2));
        let of_dead = joules(&self.clients[DEAD].metrics()?);
        self.probes[DEAD] = None;
        thread::sleep(Duration::from_secs(seconds - seconds / 2));
        let (mut after, to) = (self.joules()?, now()?);
        after[DEAD] = of_dead;
        let expect = |number: usize| match number {
            DEAD => "down",
            SKEWED => "clock",
            _ => "healthy",
        };
        self.wait_for_states(&expect)?;
        self.check_alerts()?;
        let bill = self.check_bill(plan, [from, to], &before, &after)?;
        self.table(plan, bill)
    }

    /// Waits until the health page has the expected state of every host.
    fn wait_for_states(&self, expect: &dyn Fn(usize) -> &'static str) -> Result<()> {
        let mut deadline = Deadline::after(Duration::from_secs(60));
        loop {
            let page = self.pages[5].metrics()?;
            let wrong: Vec<String> = (0..self.clients.len())
                .filter_map(|number| {
                    let (name, expected) = (host_name(number), expect(number));
                    let is_it = |sample: &&Sample| {
                        sample.name == "wattcast_target_state" && sample.label("target") == name && sample.value > 0.5
                    };
                    let state = page.iter().find(is_it).map_or("unknown", |sample| sample.label("state"));
                    (state != expected).then(|| format!("{name} is {state} instead of {expected}"))
                })
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            ensure!(!deadline.passed(), "{}", wrong.join(", "));
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Joules of the packages of each host, which has ended if it does not answer.
    fn joules(&self) -> Result<Vec<f64>> {
        let numbered = (0..).zip(&self.clients);
        let alive = |number: usize| self.probes[number].is_some();
        numbered.map(|(number, client)| if alive(number) { Ok(joules(&client.metrics()?)) } else { Ok(0.0) }).collect()
    }

    /// The expression of WattcastTargetDown finds the dead host only, after its last sample has
    /// become old.
    fn check_alerts(&self) -> Result<()> {
        let mut deadline = Deadline::after(Duration::from_secs(30));
        loop {
            self.database.flush()?;
            let found = Client::new(&self.database.url)
                .json("/api/v1/query?query=up%7Bjob%3D%22rapl-power%22%7D%20%3D%3D%200")?;
            let all = found["data"]["result"].as_array().cloned().unwrap_or_default();
            let down: Vec<String> =
                all.iter().map(|row| row["metric"]["instance"].as_str().unwrap_or_default().to_owned()).collect();
            if down == [host_name(DEAD)] {
                return Ok(());
            }
            ensure!(!deadline.passed(), "hosts that are down: {down:?}");
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// The bill has every host and the energy of its counters, but for the time between two
    /// scrapes at both ends. Returns joules of the bill and of the counters.
    fn check_bill(&self, plan: &Plan, [from, to]: [u64; 2], before: &[f64], after: &[f64]) -> Result<[f64; 2]> {
        let mut command = Command::new(plan.programs.join("wattcast-analysis"));
        command.args(["bill", "--source=database", "--by=container", "--format=json"]);
        command.arg(format!("--database.url={}", self.database.url));
        command.arg(format!("--from={}", time_text(from)?)).arg(format!("--to={}", time_text(to)?));
        let bill: Value = serde_json::from_str(&output(&mut command)?)?;
        let hosts = bill["hosts"].as_array().map_or(0, Vec::len);
        ensure!(hosts == plan.hosts, "the bill has {hosts} hosts: {}", bill["hosts"]);
        let billed = bill["total"]["microjoules"].as_i64().context("the bill has no total")? as f64 / 1e6;
        let counted: f64 = before.iter().zip(after).map(|(before, after)| after - before).sum();
        // The bill states the energy around its edges. Pages are read within a second, and the dead
        // host's last seconds were not scraped.
        let power = counted / (to - from) as f64;
        let stated = bill["edge_microjoules"].as_f64().context("the bill states no edge")? / 1e6;
        let edge = stated + power * 2.0 + power / plan.hosts as f64 * 10.0;
        ensure!(
            (billed - counted).abs() <= edge,
            "billed {billed:.0} J of {counted:.0} J, more than {edge:.0} J apart"
        );
        Ok([billed, counted])
    }

    fn table(&self, plan: &Plan, [billed, counted]: [f64; 2]) -> Result<String> {
        let mut text = format!(
            "| {} probes, one dead, one slow by {} s, one with a clock {} h off | |\n|---|---|\n",
            plan.hosts,
            DELAY.as_secs(),
            SKEW_SECONDS / 3600
        );
        let names = ["results, 9502", "streams, 9506", "RTMP, 9728", "quality, 9503", "cost, 9504", "health, 9600"];
        for (name, client) in names.into_iter().zip(&self.pages) {
            for path in ["/", "/metrics"] {
                let mut times = (0..REQUESTS).map(|_| timed(client, path)).collect::<Result<Vec<_>>>()?;
                times.sort_unstable();
                let most = times[REQUESTS - 1];
                ensure!(
                    plan.refresh.is_none_or(|limit| most <= limit),
                    "{name}{path} took {:.2} s",
                    most.as_secs_f64()
                );
                let ms = |time: Duration| time.as_secs_f64() * 1e3;
                let _ = writeln!(
                    text,
                    "| {name}, `{path}` | {:.1} ms (largest {:.1}) |",
                    ms(times[REQUESTS / 2]),
                    ms(most)
                );
            }
        }
        let memory = |client: &Client| resident(&client.metrics()?);
        let alive: Vec<&Client> =
            (0..).zip(&self.clients).filter(|(number, _)| *number != DEAD).map(|(_, client)| client).collect();
        let of_probes = alive.iter().map(|client| memory(client)).collect::<Result<Vec<f64>>>()?;
        let mean = of_probes.iter().sum::<f64>() / of_probes.len() as f64;
        let of_analysis = memory(&self.pages[0])?;
        let _ = writeln!(text, "| resident memory of the analysis service | {:.1} MB |", of_analysis / 1e6);
        let _ = writeln!(text, "| resident memory of a probe, mean | {:.1} MB |", mean / 1e6);
        let of_database = resident(&Client::new(&self.database.url).metrics()?)?;
        let _ = writeln!(text, "| resident memory of VictoriaMetrics | {:.1} MB |", of_database / 1e6);
        let _ = writeln!(text, "| bill, counters | {billed:.0} J, {counted:.0} J |");
        Ok(text)
    }
}

/// Starts the probe of a host, which replays the recording.
fn start_probe(programs: &Path, dir: &Path, number: usize) -> Result<(Program, Client)> {
    let name = host_name(number);
    let state: PathBuf = dir.join(&name);
    fs::create_dir(&state)?;
    let mut command = Command::new(programs.join("wattcast-probe"));
    command.args(["--energy.source=replay", "--web.listen-address=127.0.0.1:0", "--no-collector.docker"]);
    command.args(["--no-collector.stats", "--no-collector.gpu", "--no-collector.ffmpeg"]);
    command.arg(format!("--replay.file={}", root().join(RECORDING).display())).arg("--state.dir").arg(&state);
    let mut program = Program::start(&name, &mut command, dir)?;
    let client = program.client()?;
    Ok((program, client))
}

fn scrape_config(urls: &[String]) -> String {
    let mut text = "global: { scrape_interval: 5s, scrape_timeout: 5s }\nscrape_configs:\n  - job_name: rapl-power\n    static_configs:\n".to_owned();
    for (number, url) in (0..).zip(urls) {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let _ = writeln!(text, "      - {{ targets: [\"{address}\"], labels: {{ instance: {} }} }}", host_name(number));
    }
    text
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn time_text(unix: u64) -> Result<String> {
    output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{unix}")]))
}

fn joules(page: &[Sample]) -> f64 {
    let rows =
        page.iter().filter(|sample| sample.name == "wattcast_energy_joules_total" && sample.label("zone") == "package");
    rows.map(|sample| sample.value).sum()
}

fn timed(client: &Client, path: &str) -> Result<Duration> {
    let start = Instant::now();
    client.text(path)?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_is_a_target_with_its_name() {
        let text = scrape_config(&["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2/".to_owned()]);
        let config: Value = serde_saphyr::from_str(&text).unwrap();
        let targets = &config["scrape_configs"][0]["static_configs"];
        assert_eq!(targets[1]["targets"][0], "127.0.0.1:2");
        assert_eq!(targets[1]["labels"]["instance"], "host-01");
    }
}
