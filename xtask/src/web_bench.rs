//! `cargo xtask bench web`: 100 concurrent scrapers on a port of each program, once per second and
//! at full speed, with and without TLS and a password.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use testkit::{
    api::Client,
    certs::{Authority, PASSWORD},
    program::{Program, cpu_seconds},
    shell::{self, root, step, target},
};

const SCRAPERS: usize = 100;

/// The results of all scrapers.
struct Outcome {
    times: Vec<Duration>,
    errors: usize,
    bytes: usize,
    cpu_percent: f64,
}

/// A persistent connection of a scraper.
enum Connection {
    Plain(BufReader<TcpStream>),
    Secure(Box<Client>),
}

impl Connection {
    fn open(url: &str, ca: Option<&Path>) -> Result<Self> {
        match ca {
            Some(ca) => Ok(Self::Secure(Box::new(Client::secure(url, ca, Some(("prom", PASSWORD.0)), None)?))),
            None => {
                let stream = TcpStream::connect(url.trim_start_matches("http://"))?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                Ok(Self::Plain(BufReader::new(stream)))
            }
        }
    }

    /// Scrapes as Prometheus does; returns the number of bytes received.
    fn scrape(&mut self) -> Result<usize> {
        let stream = match self {
            Self::Secure(client) => return client.scrape(),
            Self::Plain(stream) => stream,
        };
        stream.get_mut().write_all(
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n\r\n",
        )?;
        let (mut length, mut line) = (None, String::new());
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.starts_with("http/1.1 ") && !line.starts_with("http/1.1 200") {
                bail!("{line}");
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>()?);
            }
            if line.is_empty() {
                break;
            }
        }
        let length = length.context("no content-length")?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok(length)
    }
}

/// Builds the release binaries, measures them and prints a table.
pub(crate) fn bench(seconds: u64) -> Result<()> {
    shell::build(&["probe-user", "analysis"], "release")?;
    let dir = tempfile::tempdir()?;
    let results = dir.path().join("results");
    fs::create_dir(&results)?;
    let sample = fs::read_to_string(root().join("analysis/tests/data/test_results_20240115_103000.json"))?;
    for minute in 10..20 {
        fs::write(results.join(format!("test_results_20240115_10{minute}00.json")), &sample)?;
    }
    let authority = Authority::new(dir.path())?;
    let web = match &authority {
        Some(authority) => {
            authority.issue("server", "localhost")?;
            Some((authority.web("server", "")?, authority.ca()))
        }
        None => {
            step("openssl is not in PATH: TLS is not measured");
            None
        }
    };
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;
    println!("{:<44} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9}", "", "scrapes", "errors", "median", "p99", "largest", "CPU");
    for (name, secure, fast) in [
        ("once per second", false, false),
        ("once per second, TLS and password", true, false),
        ("full speed", false, true),
    ] {
        let web = web.as_ref().filter(|_| secure);
        if secure && web.is_none() {
            continue;
        }
        for port in ["9500", "9502"] {
            let (mut program, url) = start(port, &results, web.map(|(file, _)| file), &logs)?;
            let ca = web.map(|(_, ca)| ca);
            // Until the initial reading of files and sources is complete.
            thread::sleep(Duration::from_secs(3));
            let before = invariant_rows(&url, ca)?;
            let outcome = scrape_load(&program, &url, ca, fast, Duration::from_secs(seconds))?;
            let after = invariant_rows(&url, ca)?;
            program.alive()?;
            if before != after {
                let changed: Vec<_> = before.symmetric_difference(&after).take(4).collect();
                bail!("port {port}: scrapes changed these rows: {changed:?}");
            }
            print(&format!("{port}, {name}"), &outcome);
        }
    }
    println!(
        "{SCRAPERS} scrapers for {seconds} s each. CPU: of the program, in percent of one CPU. Rows that scrapes must not change"
    );
    println!("did not change, the conservation error was 0, and no tick was missed.");
    Ok(())
}

fn print(label: &str, outcome: &Outcome) {
    let ms =
        |time: Option<&Duration>| time.map_or_else(String::new, |time| format!("{:.2} ms", time.as_secs_f64() * 1e3));
    let at = |part: usize| outcome.times.get(outcome.times.len() * part / 100);
    println!(
        "{:<44} {:>9} {:>7} {:>9} {:>9} {:>9} {:>7.2} %   {} bytes per scrape",
        label,
        outcome.times.len(),
        outcome.errors,
        ms(at(50)),
        ms(at(99)),
        ms(outcome.times.last()),
        outcome.cpu_percent,
        outcome.bytes
    );
}

fn start(port: &str, results: &Path, web: Option<&PathBuf>, logs: &Path) -> Result<(Program, String)> {
    let bin = target().join("release");
    let mut command = if port == "9500" {
        Command::new(bin.join("wattcast-probe"))
    } else {
        let mut command = Command::new(bin.join("wattcast-analysis"));
        command.args(["serve", "--probe-url=http://127.0.0.1:1", "--results-dir"]).arg(results);
        command
    };
    command.arg("--web.listen-address=127.0.0.1:0");
    if let Some(web) = web {
        command.arg("--web.config.file").arg(web);
    }
    let mut program = Program::start(&format!("web-{port}"), &mut command, logs)?;
    let url = program.address(0)?;
    Ok((program, url))
}

/// The rows that scrapes must not change: results of runs, the conservation error and missed ticks.
fn invariant_rows(url: &str, ca: Option<&PathBuf>) -> Result<BTreeSet<String>> {
    let client = match ca {
        Some(ca) => Client::secure(url, ca, Some(("prom", PASSWORD.0)), None)?,
        None => Client::new(url),
    };
    let page = client.text("/metrics")?;
    let rows = page.lines().filter(|line| {
        line.contains("run=\"")
            || line.starts_with("wattcast_conservation_error_joules{")
            || line.starts_with("wattcast_ticks_missed_total ")
    });
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    if rows.iter().any(|row| row.starts_with("wattcast_conservation") && !row.ends_with(" 0")) {
        bail!("conservation error: {rows:?}");
    }
    if rows.is_empty() { bail!("{url}: no rows to compare") } else { Ok(rows) }
}

fn scrape_load(program: &Program, url: &str, ca: Option<&PathBuf>, fast: bool, time: Duration) -> Result<Outcome> {
    let start_cpu = cpu_seconds(program.pid()).context("the program has ended")?;
    let (start, end) = (Instant::now(), Instant::now() + time);
    let all: Vec<ScraperOutcome> = thread::scope(|scope| {
        let threads: Vec<_> = (0..SCRAPERS)
            .map(|number| {
                // Scrapers are spread over the second.
                let first = start + Duration::from_millis(10) * u32::try_from(number).unwrap_or(0);
                scope.spawn(move || scraper(url, ca.map(PathBuf::as_path), (!fast).then_some(first), end))
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let cpu_percent = (cpu_seconds(program.pid()).context("the program has ended")? - start_cpu)
        / start.elapsed().as_secs_f64()
        * 100.0;
    let mut times: Vec<Duration> = all.iter().flat_map(|(times, ..)| times.iter().copied()).collect();
    times.sort_unstable();
    let errors = all.iter().map(|(_, errors, _)| errors).sum::<usize>() + (SCRAPERS - all.len());
    Ok(Outcome { times, errors, bytes: all.first().map_or(0, |(.., bytes)| *bytes), cpu_percent })
}

/// Response times, errors, and bytes of a page.
type ScraperOutcome = (Vec<Duration>, usize, usize);

/// Scrapes once per second from `first` on, or without a pause, until `end`.
fn scraper(url: &str, ca: Option<&Path>, first: Option<Instant>, end: Instant) -> ScraperOutcome {
    let (mut times, mut errors, mut bytes) = (Vec::new(), 0, 0);
    let mut connection = Connection::open(url, ca);
    let mut due = first;
    while Instant::now() < end {
        if let Some(due) = &mut due {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            *due += Duration::from_secs(1);
        }
        let request_start = Instant::now();
        match connection.as_mut().map_err(|error| anyhow::anyhow!("{error}")).and_then(Connection::scrape) {
            Ok(length) => {
                times.push(request_start.elapsed());
                bytes = length;
            }
            Err(_) => {
                errors += 1;
                connection = Connection::open(url, ca);
            }
        }
    }
    (times, errors, bytes)
}
