//! `cargo xtask bench results`: what the analysis service costs where there are many files, or many scenarios in one.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use testkit::{
    api::Client,
    program::Program,
    shell::{self, step, target},
};

const STARTS: usize = 5;
const SCRAPES: usize = 100;
/// By their place among the addresses that the service says it listens on.
const PORTS: [(usize, &str); 3] = [(0, "results, 9502"), (3, "quality, 9503"), (4, "cost, 9504")];

/// What one directory cost.
struct Cost {
    shown: Vec<Duration>,
    resident_kb: u64,
    peak_kb: u64,
    pages: Vec<(&'static str, usize, Vec<Duration>)>,
}

/// Builds the shipped binary, measures it over two directories and prints a table.
///
/// # Errors
/// When it cannot be built or does not run.
pub(crate) fn bench() -> Result<()> {
    shell::build(&["analysis"], "release")?;
    let dir = tempfile::tempdir()?;
    let (files, scenarios) = (dir.path().join("files"), dir.path().join("scenarios"));
    step("writing 10,000 files of 4 scenarios, and one of 240 with 118 sets of labels");
    fs::create_dir_all(&files)?;
    fs::create_dir_all(&scenarios)?;
    for number in 0..10_000_u32 {
        let id = format!(
            "2025{:02}{:02}_{:02}{:02}00",
            number / 1000 + 1,
            number / 40 % 25 + 1,
            number % 40 / 2,
            number % 2 * 30
        );
        fs::write(files.join(format!("test_results_{id}.json")), text(4, 4))?;
    }
    fs::write(scenarios.join("test_results_20250101_000000.json"), text(240, 118))?;
    let count = fs::read_dir(&files)?.count();
    step("measuring");
    let many = cost(&files, 40)?;
    let wide = cost(&scenarios, 240)?;
    let row =
        |what: &str, many: String, wide: String, goal: &str| println!("{what:<36} {many:>22} {wide:>22}   {goal}");
    let range = |times: &[Duration]| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!("{:.2} ms ({:.2})", ms(times[times.len() / 2]), ms(times[times.len() - 1]))
    };
    println!();
    row("median (largest)", format!("{count} files"), "240 scenarios".into(), "goal");
    row("start to the runs on the page", range(&many.shown), range(&wide.shown), "1 s");
    let mb = |kb: u64| format!("{:.1} MB", kilobytes(kb));
    row("resident memory", mb(many.resident_kb), mb(wide.resident_kb), "40 MB");
    row("  at its highest", mb(many.peak_kb), mb(wide.peak_kb), "");
    for ((name, bytes, times), (_, wide_bytes, wide_times)) in many.pages.iter().zip(&wide.pages) {
        row(&format!("a scrape of {name}"), range(times), range(wide_times), "2 ms");
        row("  its size", format!("{} kB", bytes / 1000), format!("{} kB", wide_bytes / 1000), "");
    }
    Ok(())
}

/// Connects, asks, and reads to the end, as a scraper does; no parser of ours is in the time.
fn scrape(client: &Client) -> Result<usize> {
    let url = client.url("");
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut page = Vec::with_capacity(4 << 20);
    stream.read_to_end(&mut page)?;
    if !page.starts_with(b"HTTP/1.1 200") {
        bail!("{url}: no page");
    }
    Ok(page.len())
}

fn kilobytes(kb: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for a table")]
    let mb = kb as f64 / 1000.0;
    mb
}

/// A result file whose every scenario has all that a file can have.
fn text(scenarios: u32, distinct: u32) -> String {
    let mut out = String::from("{\"scenarios\":[");
    for number in 0..scenarios {
        let kind = number % distinct;
        let samples: Vec<String> = (0..20).map(|at| format!("{}.5", 40 + (number + at) % 30)).collect();
        let _ = write!(
            out,
            "{}{{\"name\":\"{} streams @ {kind}\",\"bitrate\":\"{}k\",\"encoder_type\":\"libx264\",\"resolution\":\"1920x1080\",\
             \"duration\":100.5,\"avg_fps\":29.97,\"total_frames\":3012,\"dropped_frames\":{},\"vmaf_score\":{}.25,\"psnr_score\":41.5,\
             \"ssim_score\":0.98,\"pixels_processed\":6245683200,\"start_time\":{start},\"end_time\":{start}.5,\"step_seconds\":5,\
             \"power_watts\":[{all}],\"cpu_usage_cores\":[{all}]}}",
            if number > 0 { "," } else { "" },
            kind % 8 + 1,
            1000 + kind * 50,
            kind % 5,
            70 + kind % 29,
            start = 1_735_700_000 + number * 200,
            all = samples.join(",")
        );
    }
    out.push_str("]}");
    out
}

fn cost(dir: &Path, scenarios: usize) -> Result<Cost> {
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;
    let start = || -> Result<(Program, Client, Duration)> {
        let begun = Instant::now();
        let mut command = Command::new(target().join("release/wattcast-analysis"));
        command
            .args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url=http://127.0.0.1:1", "--results-dir"])
            .arg(dir);
        let mut program = Program::start("wattcast-analysis", &mut command, &logs)?;
        let client = program.client()?;
        let wanted = format!("results_scenarios_total {scenarios}\n");
        while !client.text("/metrics")?.contains(&wanted) {
            program.alive()?;
            if begun.elapsed() > Duration::from_secs(30) {
                bail!("{scenarios} scenarios are not on the page");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok((program, client, begun.elapsed()))
    };
    let mut shown = Vec::new();
    for _ in 0..STARTS {
        shown.push(start()?.2);
    }
    shown.sort_unstable();
    let (mut program, ..) = start()?;
    // Until the probe that is not there was asked, and the pages written again.
    std::thread::sleep(Duration::from_secs(4));
    let mut pages = Vec::new();
    for (port, name) in PORTS {
        let client = program.client_of(port)?;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..SCRAPES {
            let begun = Instant::now();
            bytes = scrape(&client)?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        pages.push((name, bytes, times));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Cost { shown, resident_kb: field("VmRSS:")?, peak_kb: field("VmHWM:")?, pages })
}
