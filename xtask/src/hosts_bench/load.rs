//! The size of a database for many hosts: a real VictoriaMetrics is loaded with the series of a
//! thousand hosts, and what it needs is multiplied.

use std::{
    fmt::Write as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use testkit::{
    api::{Client, Sample},
    databases::Database,
    shell::step,
};

/// Hosts whose series are loaded, and containers of each.
const LOADED: usize = 1000;
const CONTAINERS: usize = 20;
/// Hosts in one request.
const BATCH: usize = 50;
/// Seconds between two scrapes, of which each request writes one.
const INTERVAL: u64 = 5;
/// The hosts of the table.
const SIZES: [usize; 3] = [10, 1000, 10_000];
/// Storage nodes of a cluster, and copies of each sample.
const NODES: f64 = 3.0;
const COPIES: f64 = 2.0;
const RETENTION_DAYS: f64 = 30.0;

/// Samples of a host's page on port 9500: those of the host, and those of one container.
struct PageSize {
    own: Vec<String>,
    of_container: Vec<String>,
}

impl PageSize {
    /// From a page of a probe with containers.
    fn of(page: &[Sample]) -> Result<Self> {
        let name = |sample: &Sample| sample.label("container").to_owned();
        let first =
            page.iter().find(|sample| !name(sample).is_empty()).map(name).context("a page without containers")?;
        let series = |sample: &Sample| {
            let labels: String = sample
                .labels
                .iter()
                .filter(|(label, _)| label != "container")
                .map(|(label, value)| format!(",{label}={value:?}"))
                .collect();
            format!("{}{{{{host}}{labels}}}", sample.name)
        };
        Ok(Self {
            own: page.iter().filter(|sample| name(sample).is_empty()).map(series).collect(),
            of_container: page.iter().filter(|sample| name(sample) == first).map(series).collect(),
        })
    }

    fn per_host(&self) -> usize {
        self.own.len() + CONTAINERS * self.of_container.len()
    }

    /// The samples of one scrape of a host, in the text format with a time in milliseconds. Values
    /// grow, as most of a probe's are counters, by another amount for each series.
    fn write(&self, text: &mut String, host: usize, scrape: u64, unix: u64) {
        let mut row = |series: &str, labels: &str, number: usize| {
            let value = scrape * u64::try_from(number % 97 + 1).unwrap_or(1);
            let _ =
                writeln!(text, "{} {value}.{:03} {}", series.replacen("{host}", labels, 1), number % 1000, unix * 1000);
        };
        let labels = format!("instance=\"host-{host:05}:9500\",job=\"rapl-power\"");
        for (number, series) in (0..).zip(&self.own) {
            row(series, &labels, number);
        }
        for container in 0..CONTAINERS {
            let labels = format!("{labels},container=\"encoder-{container}\"");
            for (number, series) in (container..).zip(&self.of_container) {
                row(series, &labels, number);
            }
        }
    }
}

/// What the database needed.
struct Load {
    series: f64,
    samples: f64,
    seconds: f64,
    /// Resident memory before the first sample, and what was added.
    base: f64,
    resident: f64,
    /// Bytes of the samples, and of the index, which grows with series and not with time.
    data: f64,
    index: f64,
}

/// Loads the database for some seconds, and returns the table of sizes.
///
/// # Errors
/// When VictoriaMetrics does not start, or accepts no samples.
pub(super) fn table(page: &[Sample], seconds: u64) -> Result<String> {
    let size = PageSize::of(page)?;
    step(format!("loading VictoriaMetrics with the series of {LOADED} hosts for {seconds} s"));
    let load = load(&size, Duration::from_secs(seconds))?;
    Ok(text(&size, &load))
}

fn load(size: &PageSize, time: Duration) -> Result<Load> {
    let database = Database::victoria(&[], None)?;
    let client = Client::new(&database.url);
    let base = resident(&client.metrics()?)?;
    let agent = ureq::Agent::new_with_defaults();
    let url = format!("{}/api/v1/import/prometheus", database.url);
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 12 * 3600;
    let (start, mut samples, mut text) = (Instant::now(), 0_usize, String::new());
    let mut scrape = 0;
    // Every host is loaded once, however slow the machine is.
    while scrape == 0 || start.elapsed() < time {
        for first in (0..LOADED).step_by(BATCH) {
            text.clear();
            for host in first..(first + BATCH).min(LOADED) {
                size.write(&mut text, host, scrape, began + scrape * INTERVAL);
                samples += size.per_host();
            }
            agent.post(&url).send(text.as_bytes())?;
        }
        scrape += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    database.flush()?;
    let metrics = client.metrics()?;
    let (data, index) = (on_disk(&metrics, "storage/"), on_disk(&metrics, "indexdb"));
    ensure!(data > 0.0 && index > 0.0, "VictoriaMetrics reports no vm_data_size_bytes");
    let series = (LOADED * size.per_host()) as f64;
    let resident = (resident(&metrics)? - base).max(0.0);
    Ok(Load { series, samples: samples as f64, seconds, base, resident, data, index })
}

/// Resident memory of the program with this page, in bytes.
pub(super) fn resident(page: &[Sample]) -> Result<f64> {
    let found = page.iter().find(|sample| sample.name == "process_resident_memory_bytes");
    Ok(found.context("the page has no process_resident_memory_bytes")?.value)
}

/// Bytes of the parts of the database whose type begins with `kind`.
fn on_disk(page: &[Sample], kind: &str) -> f64 {
    let parts =
        page.iter().filter(|sample| sample.name == "vm_data_size_bytes" && sample.label("type").starts_with(kind));
    parts.map(|sample| sample.value).sum()
}

fn text(size: &PageSize, load: &Load) -> String {
    let per_sample = load.data / load.samples;
    let [per_series, per_entry] = [load.resident, load.index].map(|bytes| bytes / load.series);
    let mut text = format!(
        "| one VictoriaMetrics, {LOADED} hosts of {CONTAINERS} containers | |\n|---|---|\n\
         | series of a host on port 9500, and of each container | {}, {} |\n\
         | active series | {:.0} |\n\
         | samples per second, all this machine can write and take | {:.0} |\n\
         | resident memory | {:.0} MB without series, {per_series:.0} bytes for each |\n\
         | disk, after {:.0} s | {:.0} MB: {per_sample:.2} bytes for each sample, {per_entry:.0} for each series |\n\n",
        size.own.len(),
        size.of_container.len(),
        load.series,
        load.samples / load.seconds,
        load.base / 1e6,
        load.seconds,
        (load.data + load.index) / 1e6,
    );
    text.push_str("| hosts | active series | samples/s at 5 s | one node: memory | disk for 30 days | each of three nodes, two copies: memory | disk |\n|---|---|---|---|---|---|---|\n");
    for hosts in SIZES {
        let series = (hosts * size.per_host()) as f64;
        let rate = series / INTERVAL as f64;
        let disk = (rate * 86_400.0 * RETENTION_DAYS * per_sample + series * per_entry) / 1e9;
        let memory = |part: f64| (load.base + series * per_series * part) / 1e9;
        let part = COPIES / NODES;
        let _ = writeln!(
            text,
            "| {hosts} | {series:.0} | {rate:.0} | {:.2} GB | {disk:.1} GB | {:.2} GB | {:.1} GB |",
            memory(1.0),
            memory(part),
            disk * part
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::parse::parse;

    const PAGE: &str = "up_total{zone=\"a\"} 5\nj{container=\"x\",id=\"1\",zone=\"a\"} 1\n\
        j{container=\"x\",id=\"1\",zone=\"b\"} 1\nj{container=\"y\",id=\"2\",zone=\"a\"} 1\n";

    #[test]
    fn each_host_has_the_series_of_its_containers() {
        let size = PageSize::of(&parse(PAGE).unwrap().samples).unwrap();
        assert_eq!((size.own.len(), size.of_container.len(), size.per_host()), (1, 2, 41));
        let mut text = String::new();
        size.write(&mut text, 7, 3, 1000);
        let written = parse(&text).unwrap().samples;
        assert_eq!(written.len(), size.per_host());
        let mut series: Vec<_> = written.iter().map(|sample| (&sample.name, &sample.labels)).collect();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), size.per_host(), "{text}");
        assert!(written.iter().all(|sample| sample.label("instance") == "host-00007:9500"), "{text}");
    }

    #[test]
    fn the_table_multiplies_what_was_measured() {
        let size = PageSize::of(&parse(PAGE).unwrap().samples).unwrap();
        // 30 days have 51,840 times as many samples, and the same index.
        let (series, samples) = (41_000.0, 410_000.0);
        let load = Load { series, samples, seconds: 10.0, base: 50e6, resident: 41e6, data: samples, index: 8.2e9 };
        let text = text(&size, &load);
        assert!(text.contains("| resident memory | 50 MB without series, 1000 bytes for each |\n"), "{text}");
        assert!(text.contains(" | 8200 MB: 1.00 bytes for each sample, 200000 for each series |\n"), "{text}");
        assert!(text.contains("| 1000 | 41000 | 8200 | 0.09 GB | 29.5 GB | 0.08 GB | 19.6 GB |\n"), "{text}");
    }
}
