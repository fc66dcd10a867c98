//! `cargo xtask bench web`: a hundred scrapers at once on a port of each program, once a second and as fast as they can, in the clear and behind TLS with a password.

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
    program::Program,
    shell::{self, root, step, target},
};

const SCRAPERS: usize = 100;

/// What came of a hundred scrapers.
struct Outcome {
    times: Vec<Duration>,
    errors: usize,
    bytes: usize,
    cpu_percent: f64,
}

/// One way to ask again and again.
enum Way {
    Plain(BufReader<TcpStream>),
    Secure(Box<Client>),
}

impl Way {
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

    /// Scrapes as Prometheus does; gives the bytes that came.
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

/// Builds the shipped binaries, measures them and prints a table.
///
/// # Errors
/// When they cannot be built or do not run.
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
            step("no openssl: TLS is not measured");
            None
        }
    };
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;
    println!("{:<44} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9}", "", "scrapes", "errors", "median", "p99", "largest", "CPU");
    for (name, secure, fast) in [
        ("once a second", false, false),
        ("once a second, TLS and password", true, false),
        ("as fast as they can", false, true),
    ] {
        let web = web.as_ref().filter(|_| secure);
        if secure && web.is_none() {
            continue;
        }
        for port in ["9500", "9502"] {
            let (mut program, url) = start(port, &results, web.map(|(file, _)| file), &logs)?;
            let ca = web.map(|(_, ca)| ca);
            // Both have read and asked all that they read and ask at the start.
            thread::sleep(Duration::from_secs(3));
            let before = steady(&url, ca)?;
            let outcome = hundred(&program, &url, ca, fast, Duration::from_secs(seconds))?;
            let after = steady(&url, ca)?;
            program.alive()?;
            if before != after {
                let other: Vec<_> = before.symmetric_difference(&after).take(4).collect();
                bail!("port {port}: numbers changed by being asked for: {other:?}");
            }
            print(&format!("{port}, {name}"), &outcome);
        }
    }
    println!(
        "{SCRAPERS} scrapers for {seconds} s each; CPU is the program's, of one CPU. Rows that do not change by themselves were the same before and after,"
    );
    println!("the account closed to the microjoule, and no tick was missed.");
    Ok(())
}

fn print(what: &str, outcome: &Outcome) {
    let ms =
        |time: Option<&Duration>| time.map_or_else(String::new, |time| format!("{:.2} ms", time.as_secs_f64() * 1e3));
    let at = |part: usize| outcome.times.get(outcome.times.len() * part / 100);
    println!(
        "{:<44} {:>9} {:>7} {:>9} {:>9} {:>9} {:>7.2} %   {} bytes each",
        what,
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

/// What must not change by being asked for: of the results the rows of runs, of the probe that the account closes and no tick is missed.
fn steady(url: &str, ca: Option<&PathBuf>) -> Result<BTreeSet<String>> {
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
        bail!("the account does not close: {rows:?}");
    }
    if rows.is_empty() { bail!("{url}: nothing to compare") } else { Ok(rows) }
}

fn hundred(program: &Program, url: &str, ca: Option<&PathBuf>, fast: bool, time: Duration) -> Result<Outcome> {
    let start_cpu = cpu(program.pid())?;
    let (begun, end) = (Instant::now(), Instant::now() + time);
    let all: Vec<(Vec<Duration>, usize, usize)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..SCRAPERS)
            .map(|number| {
                scope.spawn(move || {
                    let (mut times, mut errors, mut bytes) = (Vec::new(), 0, 0);
                    let ca = ca.map(PathBuf::as_path);
                    let mut way = Way::open(url, ca);
                    // Spread over the second, as scrapers are.
                    let mut due = begun + Duration::from_millis(10) * u32::try_from(number).unwrap_or(0);
                    while Instant::now() < end {
                        if !fast {
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                            due += Duration::from_secs(1);
                        }
                        let asked = Instant::now();
                        match way.as_mut().map_err(|error| anyhow::anyhow!("{error}")).and_then(Way::scrape) {
                            Ok(length) => {
                                times.push(asked.elapsed());
                                bytes = length;
                            }
                            Err(_) => {
                                errors += 1;
                                way = Way::open(url, ca);
                            }
                        }
                    }
                    (times, errors, bytes)
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let cpu_percent = (cpu(program.pid())? - start_cpu) / begun.elapsed().as_secs_f64() * 100.0;
    let mut times: Vec<Duration> = all.iter().flat_map(|(times, ..)| times.iter().copied()).collect();
    times.sort_unstable();
    let errors = all.iter().map(|(_, errors, _)| errors).sum::<usize>() + (SCRAPERS - all.len());
    Ok(Outcome { times, errors, bytes: all.first().map_or(0, |(.., bytes)| *bytes), cpu_percent })
}

/// CPU seconds of a process: fields 14 and 15 of its `stat`, in hundredths (proc(5)).
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("no stat")?.1;
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
