//! `cargo xtask bench web`: 100 concurrent scrapers on a port of each program, once per second and
//! at full speed, with and without TLS and a password.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::scrapers::{self, Outcome, Pace, Target};
use testkit::{
    api::Client,
    certs::{Authority, PASSWORD},
    program::Program,
    shell::{self, root, step, target},
};

const SCRAPERS: usize = 100;

/// Builds the release binaries, measures them and prints a table.
pub(crate) fn bench(seconds: u64) -> Result<()> {
    shell::build_release()?;
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
            let page = Target { url: url.clone(), path: "/metrics", ca: ca.cloned() };
            let pace = if fast { Pace::Full } else { Pace::Second };
            let outcome = scrapers::load(program.pid(), &page, SCRAPERS, pace, Duration::from_secs(seconds))?;
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
        outcome.cpu_percent(),
        outcome.bytes
    );
}

fn start(port: &str, results: &Path, web: Option<&PathBuf>, logs: &Path) -> Result<(Program, String)> {
    let bin = shell::release_dir();
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
