//! `cargo xtask bench results`: the overhead of the analysis service with many files, and with many
//! scenarios in one file.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    ops::Range,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{process::Memory, trial::megabytes};
use testkit::{
    api::Client,
    program::Program,
    shell::{self, step, target},
};

const STARTS: usize = 5;
const SCRAPES: usize = 100;
/// Index among the addresses that the service logs, and name of the page.
const PORTS: [(usize, &str); 3] = [(0, "results, 9502"), (3, "quality, 9503"), (4, "cost, 9504")];

/// Measurements with one results directory.
pub(crate) struct DirectoryCost {
    pub(crate) start_times: Vec<Duration>,
    pub(crate) memory: Memory,
    pub(crate) pages: Vec<(&'static str, usize, Vec<Duration>)>,
}

/// Builds the release binary, measures it with two directories and prints a table.
pub(crate) fn bench() -> Result<()> {
    shell::build_release()?;
    let dir = tempfile::tempdir()?;
    let (files, scenarios) = (dir.path().join("files"), dir.path().join("scenarios"));
    step("writing 10,000 files of 4 scenarios, and one file of 240 scenarios with 118 label sets");
    fs::create_dir_all(&files)?;
    fs::create_dir_all(&scenarios)?;
    write_files(&files, 0..10_000)?;
    fs::write(scenarios.join("test_results_20250101_000000.json"), text(240, 118))?;
    let count = fs::read_dir(&files)?.count();
    step("measuring");
    let many = cost(&files, 40)?;
    let wide = cost(&scenarios, 240)?;
    let row =
        |label: &str, many: String, wide: String, goal: &str| println!("{label:<36} {many:>22} {wide:>22}   {goal}");
    let range = |times: &[Duration]| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!("{:.2} ms ({:.2})", ms(times[times.len() / 2]), ms(times[times.len() - 1]))
    };
    println!();
    row("median (largest)", format!("{count} files"), "240 scenarios".into(), "goal");
    row("start to complete page", range(&many.start_times), range(&wide.start_times), "1 s");
    let mb = |bytes: u64| format!("{:.1} MB", megabytes(bytes));
    row("resident memory", mb(many.memory.total()), mb(wide.memory.total()), "40 MB");
    row("  peak", mb(many.memory.peak), mb(wide.memory.peak), "");
    for ((name, bytes, times), (_, wide_bytes, wide_times)) in many.pages.iter().zip(&wide.pages) {
        row(&format!("scrape of {name}"), range(times), range(wide_times), "2 ms");
        row("  page size", format!("{} kB", bytes / 1000), format!("{} kB", wide_bytes / 1000), "");
    }
    Ok(())
}

/// Scrapes a page without parsing it; returns its size.
fn scrape(client: &Client) -> Result<usize> {
    let url = client.url("");
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut page = Vec::with_capacity(4 << 20);
    stream.read_to_end(&mut page)?;
    if !page.starts_with(b"HTTP/1.1 200") {
        bail!("{url}: no page of metrics");
    }
    Ok(page.len())
}

/// Writes result files of four scenarios, each with another id; at most 10,000.
pub(crate) fn write_files(dir: &Path, numbers: Range<u32>) -> Result<()> {
    let text = text(4, 4);
    for number in numbers {
        let id = format!(
            "2025{:02}{:02}_{:02}{:02}00",
            number / 1000 + 1,
            number / 40 % 25 + 1,
            number % 40 / 2,
            number % 2 * 30
        );
        fs::write(dir.join(format!("test_results_{id}.json")), &text)?;
    }
    Ok(())
}

/// A result file in which every scenario has all optional fields.
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

/// Measures the service with a directory whose page has this many scenarios.
pub(crate) fn cost(dir: &Path, scenarios: usize) -> Result<DirectoryCost> {
    let logs = target().join("bench");
    fs::create_dir_all(&logs)?;
    let start_service = || -> Result<(Program, Client, Duration)> {
        let start = Instant::now();
        let mut command = Command::new(shell::release_dir().join("wattcast-analysis"));
        command
            .args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url=http://127.0.0.1:1", "--results-dir"])
            .arg(dir);
        let mut program = Program::start("wattcast-analysis", &mut command, &logs)?;
        let client = program.client()?;
        let wanted = format!("results_scenarios_total {scenarios}\n");
        while !client.text("/metrics")?.contains(&wanted) {
            program.alive()?;
            if start.elapsed() > Duration::from_secs(30) {
                bail!("the page does not show {scenarios} scenarios after 30 s");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok((program, client, start.elapsed()))
    };
    let mut start_times = Vec::new();
    for _ in 0..STARTS {
        start_times.push(start_service()?.2);
    }
    start_times.sort_unstable();
    let (mut program, ..) = start_service()?;
    // Waits until the absent probe was queried, and the pages were rendered again.
    std::thread::sleep(Duration::from_secs(4));
    let mut pages = Vec::new();
    for (port, name) in PORTS {
        let client = program.client_of(port)?;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..SCRAPES {
            let start = Instant::now();
            bytes = scrape(&client)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        pages.push((name, bytes, times));
    }
    let memory = Memory::of(program.pid())?;
    Ok(DirectoryCost { start_times, memory, pages })
}
