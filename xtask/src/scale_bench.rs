//! `cargo xtask bench scale`: how the cost of the probe grows with containers, and that of the
//! analysis service with result files: tables, plots, and the exponent of each curve.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    accuracy::table::Table,
    cgroup_load::Containers,
    marks,
    plot::{self, Curve},
    results_bench,
    rounds::{self, Rounds},
    scrapers::Pace,
    stop,
    trial::{CLIENTS, Exporter, Figure, Figures, Running, SETTLE, megabytes},
};
use testkit::{
    shell::{self, root, step},
    simulator::{Simulator, Spec},
};

const CONTAINERS: [u32; 5] = [10, 100, 500, 1000, 4000];
const FILES: [u32; 3] = [100, 1000, 10_000];
/// Scenarios on the page of a directory of [`results_bench::write_files`]: of the newest ten runs.
const SCENARIOS: usize = 40;

/// Measurements of one process; the medians of them are shown.
const ROUNDS: usize = 5;
/// Times of one measurement: ticks without a client, one client, 100 clients.
const IDLE: Duration = Duration::from_secs(4);
const ONE: Duration = Duration::from_secs(1);
const MANY: Duration = Duration::from_secs(3);
/// Longest time until every container is on the page.
const APPEAR: Duration = Duration::from_secs(30);

/// A cost at each size.
struct Cost {
    label: &'static str,
    /// Size and cost, in the order of the sizes.
    points: Vec<(f64, Rounds)>,
}

impl Cost {
    fn new(label: &'static str) -> Self {
        Self { label, points: Vec::new() }
    }

    fn medians(&self) -> Vec<(f64, f64)> {
        self.points.iter().filter_map(|(size, rounds)| Some((*size, rounds.median()?))).collect()
    }

    /// Its row: the cost at each size, the exponent, and that of the last step alone, which shows
    /// what a constant part hides at small sizes.
    fn row(&self) -> Vec<String> {
        let medians = self.medians();
        let show = |exponent: Option<f64>| exponent.map_or_else(|| "–".to_owned(), |power| format!("{power:.2}"));
        let cells = self.points.iter().map(|(_, rounds)| rounds.cell());
        let last = medians.get(medians.len().saturating_sub(2)..).unwrap_or_default();
        let exponents = [show(rounds::exponent(&medians)), show(rounds::exponent(last))];
        [self.label.to_owned()].into_iter().chain(cells).chain(exponents).collect()
    }

    fn curve(&self) -> Curve {
        let points = self.medians();
        let power = rounds::exponent(&points).map_or_else(String::new, |power| format!(", n^{power:.2}"));
        Curve { label: format!("{}{power}", self.label), points }
    }
}

/// A plot of the section: its file below docs/pictures, and its text.
struct Picture {
    file: &'static str,
    title: &'static str,
    svg: String,
}

impl Picture {
    /// `None` where nothing was measured.
    fn draw(file: &'static str, title: &'static str, axes: (&str, &str), costs: &[&Cost]) -> Option<Self> {
        let curves: Vec<Curve> = costs.iter().map(|cost| cost.curve()).collect();
        Some(Self { file, title, svg: plot::log_log(title, axes.0, axes.1, &curves)? })
    }
}

/// Measures the release binaries and prints the tables, or writes them and their plots to docs/.
///
/// # Errors
/// Without cgroup v2, when a program fails, and after a signal.
pub(crate) fn bench(write: bool) -> Result<()> {
    stop::catch_signals();
    shell::build_release()?;
    let dir = tempfile::tempdir()?;
    let (probe, mut pictures) = probe(dir.path())?;
    let (analysis, more) = analysis(dir.path())?;
    pictures.extend(more);
    let mut text = probe.markdown() + &analysis.markdown();
    if !write {
        print!("{text}");
        return Ok(());
    }
    for picture in &pictures {
        let path = root().join("docs/pictures").join(picture.file);
        fs::write(&path, &picture.svg).with_context(|| path.display().to_string())?;
        text.push_str(&format!("![{}](pictures/{})\n\n", picture.title, picture.file));
    }
    marks::write("performance", "scale", &text)
}

/// The costs of the probe by containers.
struct ProbeCosts {
    shown: Cost,
    tick: Cost,
    scrape: Cost,
    median: Cost,
    one: Cost,
    many: Cost,
    page: Cost,
    compressed: Cost,
    /// Before the first client that asks more than once.
    quiet: Cost,
    resident: Cost,
    anonymous: Cost,
}

impl ProbeCosts {
    fn new() -> Self {
        Self {
            shown: Cost::new("containers on the page"),
            tick: Cost::new("CPU per tick, ms"),
            scrape: Cost::new("CPU per scrape, ms"),
            median: Cost::new("response time p50, 1 client, ms"),
            one: Cost::new("response time p99, 1 client, ms"),
            many: Cost::new("response time p99, 100 clients, ms"),
            page: Cost::new("page, MB"),
            compressed: Cost::new("page compressed, MB"),
            quiet: Cost::new("resident memory before the clients, MB"),
            resident: Cost::new("resident memory after them, MB"),
            anonymous: Cost::new("of it anonymous, MB"),
        }
    }

    fn all(&self) -> [&Cost; 11] {
        [
            &self.shown,
            &self.tick,
            &self.scrape,
            &self.median,
            &self.one,
            &self.many,
            &self.page,
            &self.compressed,
            &self.quiet,
            &self.resident,
            &self.anonymous,
        ]
    }
}

fn probe(dir: &Path) -> Result<(Table, Vec<Picture>)> {
    let simulator = Simulator::start(dir, &Spec { packages: Some(2), ..Spec::default() })?;
    let mut containers = Containers::new("wattcast-scale")?;
    let mut costs = ProbeCosts::new();
    for count in CONTAINERS {
        step(format!("{count} containers"));
        containers.grow(count)?;
        simulator.alive()?;
        measure_probe(&containers, simulator.sysfs(), dir, &mut costs)?;
    }
    let text = format!(
        "Cgroups named as Docker names them, each of which ran once; {} of them do a little work 10 times per second. \
         Median of {ROUNDS} measurements of one process (smallest to largest), ticks of 1 s. One client asks without a \
         pause, {CLIENTS} once per second. CPU time is the process' own, without its eBPF programs. Exponent: slope of \
         the straight line through the logarithms; the last column is that of the last step.",
        Containers::WORKING
    );
    let heads = ["", "10 containers", "100", "500", "1,000", "4,000", "exponent", "last step"];
    let mut table = Table::new("Probe by containers", &text, &heads);
    for cost in costs.all() {
        table.row(cost.row());
    }
    let times = [&costs.tick, &costs.scrape, &costs.one, &costs.many];
    let sizes = [&costs.page, &costs.compressed, &costs.resident, &costs.anonymous];
    let pictures = [
        Picture::draw("scale-probe-time.svg", "Probe: times by containers", ("containers", "ms"), &times),
        Picture::draw("scale-probe-size.svg", "Probe: sizes by containers", ("containers", "MB"), &sizes),
    ];
    Ok((table, pictures.into_iter().flatten().collect()))
}

/// Starts a probe, and measures it when all containers are on its page.
fn measure_probe(containers: &Containers, sysfs: &Path, dir: &Path, costs: &mut ProbeCosts) -> Result<()> {
    let count = containers.count();
    let binary = shell::release_dir().join("wattcast-probe");
    let mut command = Command::new(&binary);
    command
        .args(["--web.listen-address=127.0.0.1:0", "--tick=1s", "--no-collector.docker"])
        .arg(format!("--limit.containers={}", count + 100))
        .arg(format!("--path.sysfs={}", sysfs.display()));
    let complete = "\nwattcast_power_watts".to_owned();
    let exporter = Exporter { name: "scale-probe", binary, url: None, paths: &["/metrics"], complete };
    let (mut running, _) = Running::start(&exporter, &mut command, dir)?;
    // The programs see a cgroup when one of its tasks runs, so after they are attached.
    containers.run_all()?;
    let shown = appear(&running, count)?;
    // New rows are the most work, and the memory of the start is released after ten ticks; the next
    // ticks are as all later ones.
    stop::sleep(SETTLE);
    let size = f64::from(count);
    let page = running.page()?.len();
    // The page is replaced by that of the next tick.
    stop::sleep(Duration::from_secs(2));
    let quiet = figure(&running.memory()?, Figure::Resident);
    let mut samples: Vec<Sample> = Vec::new();
    for _ in 0..ROUNDS {
        samples.push(Sample::take(&mut running)?);
        ensure!(!stop::stopped(), "stopped");
    }
    let of = |value: fn(&Sample) -> Option<f64>| (size, samples.iter().filter_map(value).collect::<Rounds>());
    costs.shown.points.push((size, [shown as f64].into_iter().collect()));
    // Percent of a second are hundredths of it.
    costs.tick.points.push(of(|sample| sample.figure(Figure::Idle).map(|percent| percent * 10.0)));
    costs.scrape.points.push(of(|sample| sample.scrape.map(|us| us / 1e3)));
    costs.median.points.push(of(|sample| sample.median));
    costs.one.points.push(of(|sample| sample.one));
    costs.many.points.push(of(|sample| sample.many));
    costs.page.points.push((size, [megabytes(page as u64)].into_iter().collect()));
    costs.compressed.points.push(of(|sample| Some(megabytes(sample.bytes as u64))));
    costs.quiet.points.push((size, quiet.into_iter().collect()));
    costs.resident.points.push(of(|sample| sample.figure(Figure::Resident)));
    costs.anonymous.points.push(of(|sample| sample.figure(Figure::Anonymous)));
    Ok(())
}

/// One measurement of a running probe.
struct Sample {
    figures: Figures,
    /// CPU time per scrape, µs; response times, ms.
    scrape: Option<f64>,
    median: Option<f64>,
    one: Option<f64>,
    many: Option<f64>,
    /// Bytes of the compressed page.
    bytes: usize,
}

impl Sample {
    fn take(running: &mut Running) -> Result<Self> {
        // A page that was requested in each of the last two ticks is rendered in advance.
        stop::sleep(Duration::from_secs(2));
        let mut figures = running.idle(IDLE)?;
        let alone = running.scrape(1, Pace::Full, ONE)?;
        let many = running.scrape(CLIENTS, Pace::Second, MANY)?;
        figures.extend(running.memory()?);
        Ok(Self {
            figures,
            scrape: alone.cpu_microseconds(),
            median: alone.milliseconds(0.5),
            one: alone.milliseconds(0.99),
            many: many.milliseconds(0.99),
            bytes: alone.bytes,
        })
    }

    fn figure(&self, wanted: Figure) -> Option<f64> {
        figure(&self.figures, wanted)
    }
}

fn figure(figures: &Figures, wanted: Figure) -> Option<f64> {
    figures.iter().find(|(figure, _)| *figure == wanted).map(|(_, value)| *value)
}

/// Waits until the page has `count` containers; returns how many it has. Fewer are no error, but
/// their row says so.
fn appear(running: &Running, count: u32) -> Result<usize> {
    let wanted = usize::try_from(count)?;
    let start = Instant::now();
    loop {
        let shown = containers_on(&running.page()?);
        if shown >= wanted {
            return Ok(shown);
        }
        ensure!(!stop::stopped(), "stopped");
        if start.elapsed() > APPEAR {
            step(format!("the page has only {shown} of {count} containers"));
            return Ok(shown);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The containers whose CPU time a page has.
fn containers_on(page: &[u8]) -> usize {
    let page = String::from_utf8_lossy(page);
    let rows = page.lines().filter(|line| line.starts_with("wattcast_container_cpu_seconds_total{"));
    let ids = rows.filter_map(|row| row.split_once("id=\"")?.1.split('"').next());
    ids.collect::<std::collections::BTreeSet<_>>().len()
}

fn analysis(dir: &Path) -> Result<(Table, Vec<Picture>)> {
    let files = dir.join("files");
    fs::create_dir_all(&files)?;
    let [mut start, mut median, mut p99] =
        ["start to complete page, ms", "response time p50, ms", "response time p99, ms"].map(Cost::new);
    let [mut page, mut resident, mut peak] = ["page, MB", "resident memory, MB", "peak memory, MB"].map(Cost::new);
    let mut written = 0;
    for count in FILES {
        step(format!("{count} result files"));
        results_bench::write_files(&files, written..count)?;
        written = count;
        let cost = results_bench::cost(&files, SCENARIOS)?;
        ensure!(!stop::stopped(), "stopped");
        let size = f64::from(count);
        let one = |value: f64| (size, [value].into_iter().collect::<Rounds>());
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        start.points.push((size, cost.start_times.iter().map(ms).collect()));
        let (_, bytes, times) = cost.pages.first().context("no page was measured")?;
        let times: Vec<f64> = times.iter().map(ms).collect();
        let quantile = |at: f64| statistics::quantile(&times, at).context("no scrape was measured");
        median.points.push(one(quantile(0.5)?));
        p99.points.push(one(quantile(0.99)?));
        page.points.push(one(megabytes(*bytes as u64)));
        resident.points.push(one(megabytes(cost.memory.total())));
        peak.points.push(one(megabytes(cost.memory.peak)));
    }
    let text = "Result files of four scenarios. Median of five starts (smallest to largest), of 100 scrapes of port 9502, each \
                over a connection of its own.";
    let heads = ["", "100 files", "1,000", "10,000", "exponent", "last step"];
    let mut table = Table::new("Analysis service by result files", text, &heads);
    for cost in [&start, &median, &p99, &page, &resident, &peak] {
        table.row(cost.row());
    }
    let pictures = [
        Picture::draw(
            "scale-analysis-time.svg",
            "Analysis: times by result files",
            ("files", "ms"),
            &[&start, &median, &p99],
        ),
        Picture::draw(
            "scale-analysis-size.svg",
            "Analysis: sizes by result files",
            ("files", "MB"),
            &[&page, &resident, &peak],
        ),
    ];
    Ok((table, pictures.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_exponent_and_that_of_the_last_step() {
        let points = [(10.0, 1.0), (100.0, 1.0), (1000.0, 10.0)];
        let rounds = |cost: f64| [cost].into_iter().collect::<Rounds>();
        let cost = Cost { label: "a", points: points.map(|(size, cost)| (size, rounds(cost))).to_vec() };
        assert_eq!(cost.row(), ["a", "1.00", "1.00", "10.0", "0.50", "1.00"]);
        assert_eq!(cost.curve().label, "a, n^0.50");
        assert_eq!(Cost::new("b").row(), ["b", "–", "–"]);
    }

    #[test]
    fn containers_of_a_page_count_once() {
        let page = "wattcast_container_cpu_seconds_total{container=\"a\",id=\"1\",mode=\"shared\"} 1\n\
                    wattcast_container_cpu_seconds_total{container=\"a\",id=\"1\",mode=\"alone\"} 1\n\
                    wattcast_container_cpu_seconds_total{container=\"b\",id=\"2\",mode=\"alone\"} 1\n\
                    wattcast_container_memory_bytes{container=\"c\",id=\"3\"} 1\n";
        assert_eq!(containers_on(page.as_bytes()), 2);
    }
}
