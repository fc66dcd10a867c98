//! CPU time and energy of ffmpeg jobs by stage and output, by the names of real threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use support::{Page, Probe, ebpf};
use testkit::{fixture::unique, or_skip, require::python, requires, skip, sleep, wait::eventually_ok};

/// Threads with the names and creators that ffmpeg 9 gives them. Each runs for a number of seconds.
/// An encoder's workers have the name of the filter thread that created them, or one of their own.
const PROGRAM: &str = r#"
import ctypes, os, threading, time

def start(name, seconds, workers=()):
    def run():
        if name:
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
        started = [start(*worker) for worker in workers]
        while time.thread_time() < seconds:
            pass
        for worker in started:
            worker.join()
    thread = threading.Thread(target=run)
    thread.start()
    return thread

threads = [
    start("enc0:0:libx264", 0.1),
    start("enc1:0:libvpx-v", 0.1),
    start("vf#0:0", 0.2, [(None, 0.6)]),
    start("vf#1:0", 0.1, [("vpx tile worker", 0.2)]),
    start("dec0:0:h264", 0.2),
    start("dmx0:mov,mp4,m4", 0.1),
]
for thread in threads:
    thread.join()
os._exit(0)
"#;

/// Seconds of CPU time by stage and output.
fn stages(page: &Page, stream: &str) -> BTreeMap<(String, String), f64> {
    let rows = page.all("wattcast_stream_stage_cpu_seconds_total").filter(|row| row.label("stream") == stream);
    rows.map(|row| ((row.label("stage").to_owned(), row.label("output").to_owned()), row.value)).collect()
}

/// Joules of a stream in a family, all its series.
fn joules(page: &Page, name: &str, stream: &str, share: &str) -> f64 {
    let rows = page.all(name).filter(|row| row.label("stream") == stream && row.label("share") == share);
    rows.map(|row| row.value).sum()
}

/// The probe, with a model that gives every CPU second energy.
fn probe(tick: &str) -> Probe {
    Probe::start(&[tick, "--energy.source=model", "--energy.model.idle-watts=1", "--energy.model.busy-watts=20"])
}

/// A page after the end of the job with this stream, and the CPU seconds of the job.
fn page_after_end(probe: &Probe, stream: &str) -> (Page, f64) {
    let (page, job) = job_after_end(probe, stream, &["stages", "process"]);
    (page, job["cpu_seconds"].as_f64().unwrap())
}

/// A page after the end of the job with this stream, whose energy has one of these shares, and the
/// job as the API has it.
fn job_after_end(probe: &Probe, stream: &str, shares: &[&str]) -> (Page, serde_json::Value) {
    let job_now = || -> Option<serde_json::Value> {
        let jobs = probe.client.json("/api/v1/streams").unwrap();
        let is_it = |job: &&serde_json::Value| job["streams"].as_array().unwrap().iter().any(|name| name == stream);
        jobs["jobs"].as_array().unwrap().iter().find(is_it).cloned()
    };
    eventually_ok(30.0, "the job has ended and has energy", || {
        let before = job_now();
        let page = probe.fresh();
        let (Some(before), Some(job)) = (before, job_now()) else { return Err("no job") };
        // A regular tick may come between the page and the answers.
        if ["ended", "cpu_seconds", "joules"].iter().any(|field| before[*field] != job[*field]) {
            return Err("it has changed");
        }
        let of_share = |share: &&str| joules(&page, "wattcast_stream_energy_joules_total", stream, share);
        let energy: f64 = shares.iter().map(of_share).sum();
        if job["ended"].is_f64() && energy > 0.0 { Ok((page, job)) } else { Err("it runs, or has no energy") }
    })
}

/// The major version of an ffmpeg; `None` where it cannot be told, as of a build from a commit.
fn major_version(ffmpeg: &str) -> Option<u32> {
    let output = Command::new(ffmpeg).arg("-version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.strip_prefix("ffmpeg version ")?.split(['.', '-', ' ']).next()?.parse().ok()
}

/// An ffmpeg that names no thread: two outputs are divided by their pixels or evenly, with that
/// label, and what is known of stages is not more than the job.
#[test]
fn outputs_of_an_ffmpeg_without_thread_names_are_divided_by_pixels() {
    or_skip!(ebpf());
    requires!(ffmpeg);
    match major_version("ffmpeg") {
        Some(major) if major < 7 => {}
        version => skip!("ffmpeg {version:?} names its threads, or may"),
    }
    let dir = tempfile::tempdir().unwrap();
    let probe = probe("--tick=500ms");
    for (sizes, share, expected) in
        [(["-r 25 -s 640x360", "-r 25 -s 320x180"], "pixels", 0.8), ([""; 2], "outputs", 0.5)]
    {
        let [hi, lo] = ["hi", "lo"].map(unique);
        let outputs = [&hi, &lo].into_iter().zip(sizes).map(|(name, size)| {
            format!("{size} -c:v libx264 -preset veryfast {}", dir.path().join(format!("{name}.mp4")).display())
        });
        let source = "-nostdin -loglevel error -y -f lavfi -i testsrc2=size=640x360:rate=25:duration=6";
        let line = std::iter::once(source.to_owned()).chain(outputs).collect::<Vec<_>>().join(" ");
        let mut command = Command::new("ffmpeg");
        let status = command.args(line.split_whitespace()).stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "{line}");
        let (page, job) = job_after_end(&probe, &hi, &[share]);
        let name = "wattcast_stream_energy_joules_total";
        let energy = [&hi, &lo].map(|stream| joules(&page, name, stream, share));
        println!("{share}: {energy:?} J; {job}");
        assert_eq!(job["share"], share, "{job}");
        for stream in [&hi, &lo] {
            let labels: Vec<&str> =
                page.all(name).filter(|row| row.label("stream") == stream).map(|row| row.label("share")).collect();
            assert!(labels.iter().all(|label| *label == share), "{stream}: {labels:?}");
        }
        let [of_hi, sum] = [energy[0], energy.iter().sum::<f64>()];
        assert!((of_hi / sum - expected).abs() < 1e-3, "{of_hi} of {sum} J, {expected} is the part");
        assert!((sum - job["joules"].as_f64().unwrap()).abs() < 1e-5, "{sum} J, the job {job}");
        // No thread tells its stage, so all that is known is the whole.
        let parts = [&hi, &lo].map(|stream| stages(&page, stream));
        assert!(parts.iter().flat_map(BTreeMap::keys).all(|(stage, _)| stage == "other"), "{parts:?}");
        let (known, ran) = (parts.iter().flat_map(BTreeMap::values).sum::<f64>(), job["cpu_seconds"].as_f64().unwrap());
        assert!(known == 0.0 || (known - ran).abs() < 1e-3, "{known} s by stage, {ran} s of the job");
        let by_stage: f64 = [&hi, &lo]
            .map(|stream| joules(&page, "wattcast_stream_stage_energy_joules_total", stream, share))
            .iter()
            .sum();
        assert!(by_stage == 0.0 || (by_stage - sum).abs() < 1e-5, "{by_stage} J by stage, {sum} J");
        page.assert_conserved();
    }
}

/// Ended threads alone, in a tick that is longer than the job, and threads that are read as they
/// run.
#[test]
fn named_threads_have_their_stage_and_output() {
    or_skip!(ebpf());
    let Some((_, python)) = python("import ctypes, os, sys; print(os.path.realpath(sys.executable))") else {
        skip!("no python3 with ctypes");
    };
    let dir = tempfile::tempdir().unwrap();
    let (program, ffmpeg) = (dir.path().join("threads.py"), dir.path().join("ffmpeg"));
    fs::write(&program, PROGRAM).unwrap();
    symlink(python.trim(), &ffmpeg).unwrap();
    for tick in ["--tick=30s", "--tick=200ms"] {
        let probe = probe(tick);
        // No tick of the start may end in the job: with a long tick, all of it is in one.
        probe.first_regular_tick();
        probe.client.mark().unwrap();
        let [hi, lo] = ["hi", "lo"].map(unique);
        let mut command = Command::new(&ffmpeg);
        command.arg("-i").arg(&program).args(["-s", "1280x720", &format!("{hi}.mp4"), "-s", "640x360"]);
        let status = command.arg(format!("{lo}.mp4")).stdin(Stdio::null()).status().unwrap();
        assert!(status.success());
        let (page, job_seconds) = page_after_end(&probe, &hi);
        let [of_hi, of_lo] = [&hi, &lo].map(|stream| stages(&page, stream));
        println!("{tick}: {job_seconds} s; {of_hi:?} {of_lo:?}");
        let seconds = |stages: &BTreeMap<(String, String), f64>, stage: &str, output: &str| {
            stages.get(&(stage.to_owned(), output.to_owned())).copied().unwrap_or(0.0)
        };
        for (found, expected) in [
            (seconds(&of_hi, "encode", "0"), 0.7),
            (seconds(&of_hi, "filter", "0"), 0.2),
            (seconds(&of_lo, "encode", "1"), 0.3),
            (seconds(&of_lo, "filter", "1"), 0.1),
            (seconds(&of_hi, "decode", "") + seconds(&of_lo, "decode", ""), 0.2),
            (seconds(&of_hi, "demux", "") + seconds(&of_lo, "demux", ""), 0.1),
        ] {
            assert!((found - expected).abs() < 0.03 + 0.05 * expected, "{tick}: {found} s, {expected} s were run");
        }
        // Within a tick by what the encoders ran in it; in several ticks it depends on their order.
        let [of_hi_decode, of_lo_decode] = [&of_hi, &of_lo].map(|stages| seconds(stages, "decode", ""));
        assert!(tick != "--tick=30s" || of_hi_decode > 2.0 * of_lo_decode, "{of_hi_decode} s, {of_lo_decode} s");
        let of_both: f64 = of_hi.values().chain(of_lo.values()).sum();
        // With short ticks the start of the process, without threads yet, may be in the series
        // that are divided by pixels.
        let startup = if tick == "--tick=30s" { 1e-6 } else { 0.2 };
        assert!(of_both <= job_seconds + 1e-6 && of_both >= job_seconds - startup, "{of_both} s of {job_seconds} s");
        for stream in [&hi, &lo] {
            let whole = joules(&page, "wattcast_stream_energy_joules_total", stream, "stages");
            let parts = joules(&page, "wattcast_stream_stage_energy_joules_total", stream, "stages");
            assert!(whole > 0.0 && (whole - parts).abs() < 1e-6, "{stream}: {whole} J, its parts {parts} J");
        }
        page.assert_conserved();
    }
}

/// Measures CPU time, which other tests change through caches and hyperthreads.
mod whole_machine {
    use testkit::lock::{Resource, hold};

    use super::*;

    /// The newer ffmpeg of Python's imageio-ffmpeg under the name `ffmpeg`, which names its
    /// threads, if there is one.
    fn newer_ffmpeg(dir: &Path) -> Option<PathBuf> {
        let (_, path) = python("import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")?;
        let ffmpeg = dir.join("ffmpeg");
        symlink(path.trim(), &ffmpeg).unwrap();
        Some(ffmpeg)
    }

    fn start(ffmpeg: &Path, arguments: &str) -> Child {
        let mut command = Command::new(ffmpeg);
        command.args("-nostdin -loglevel error -y".split(' ')).args(arguments.split(' '));
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    fn run(ffmpeg: &Path, arguments: &str) {
        assert!(start(ffmpeg, arguments).wait().unwrap().success(), "{arguments}");
    }

    /// Runs a job to its end and returns the CPU seconds of the threads that have the number of
    /// each of two outputs in their name, by the kernel.
    fn run_and_read_threads(ffmpeg: &Path, arguments: &str) -> [f64; 2] {
        let mut child = start(ffmpeg, arguments);
        let tasks = format!("/proc/{}/task", child.id());
        let mut last = BTreeMap::new();
        while child.try_wait().unwrap().is_none() {
            for task in fs::read_dir(&tasks).into_iter().flatten().flatten().map(|task| task.path()) {
                let read = |name: &str| fs::read_to_string(task.join(name)).ok();
                let ran = |text: String| text.split(' ').next()?.parse::<u64>().ok();
                if let (Some(name), Some(ns)) = (read("comm"), read("schedstat").and_then(ran)) {
                    last.insert(task, (name, ns));
                }
            }
            sleep(0.01);
        }
        let of = |output: u8| {
            let names = ["enc", "vf#", "mux"].map(|kind| format!("{kind}{output}:"));
            let own = last.values().filter(|(name, _)| names.iter().any(|start| name.starts_with(start)));
            Duration::from_nanos(own.map(|(_, ns)| ns).sum()).as_secs_f64()
        };
        [of(0), of(1)]
    }

    /// One process with two outputs is divided as the kernel's times of its threads are, near to
    /// two processes with one output each. By pixels it was 80 to 20, whatever the codecs.
    #[test]
    fn outputs_of_one_ffmpeg_divide_as_their_threads_do() {
        let _cpus = hold(Resource::Cpus);
        or_skip!(ebpf());
        let dir = tempfile::tempdir().unwrap();
        let Some(ffmpeg) = newer_ffmpeg(dir.path()) else { skip!("no imageio-ffmpeg (pip install imageio-ffmpeg)") };
        let path = |name: &str| dir.path().join(name).display().to_string();
        let source = path("source.mp4");
        run(
            &ffmpeg,
            &format!("-f lavfi -i testsrc2=size=1280x720:rate=25:duration=6 -c:v libx264 -preset ultrafast {source}"),
        );
        let probe = probe("--tick=500ms");
        let [hi, lo, only_hi, only_lo] = ["hi", "lo", "only-hi", "only-lo"].map(unique);
        let output = |name: &str, options: &str| format!("{options} {}", path(&format!("{name}.mp4")));
        let x264 = "-s 1280x720 -c:v libx264 -preset medium";
        let x265 = "-s 640x360 -c:v libx265 -preset medium -x265-params log-level=none";
        // The CPU time of an output's own threads, and of all threads, in the part of the stream.
        let own = |stream: &str| -> [f64; 2] {
            let (page, job_seconds) = page_after_end(&probe, stream);
            let stages = stages(&page, stream);
            println!("{stream}: {job_seconds:.3} s; {stages:.3?}");
            let of_output = stages.iter().filter(|((_, output), _)| !output.is_empty());
            [of_output.map(|(_, seconds)| seconds).sum(), stages.values().sum()]
        };
        // At the same time, as in one process: an encoder takes less CPU time with the caches to
        // itself.
        let separate = [(&only_hi, x264), (&only_lo, x265)]
            .map(|(stream, options)| start(&ffmpeg, &format!("-i {source} {}", output(stream, options))));
        separate.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
        let of_threads =
            run_and_read_threads(&ffmpeg, &format!("-i {source} {} {}", output(&hi, x264), output(&lo, x265)));
        let share = |[a, b]: [f64; 2]| 100.0 * a / (a + b);
        let [separate_hi, separate_lo, one_hi, one_lo] = [&only_hi, &only_lo, &hi, &lo].map(|stream| own(stream));
        let separate = share([separate_hi[0], separate_lo[0]]);
        let (of_own, of_all) = (share([one_hi[0], one_lo[0]]), share([one_hi[1], one_lo[1]]));
        let of_threads = share(of_threads);
        println!("separate runs {separate:.1} %, one process {of_own:.1} % of own threads, {of_all:.1} % of all");
        println!("by the kernel {of_threads:.1} % of own threads");
        assert!((of_threads - of_own).abs() < 1.0, "{of_threads} % by the kernel, {of_own} %");
        // The encoders themselves take other CPU time in one process, by the kernel's figures too.
        let by_pixels = share([1280.0 * 720.0, 640.0 * 360.0]);
        assert!(
            (separate - of_own).abs() < (separate - by_pixels).abs() / 2.0,
            "{separate} % in separate runs, {of_own} %"
        );
        assert!((of_own - of_all).abs() < 3.0, "the common threads follow the encoders: {of_own} %, {of_all} %");
        let page = probe.fresh();
        let energy = [&hi, &lo].map(|stream| joules(&page, "wattcast_stream_energy_joules_total", stream, "stages"));
        assert!((share(energy) - of_all).abs() < 3.0, "{energy:?} J, {of_all} % of CPU time");
        page.assert_conserved();
    }
}
