//! End-to-end tests of streams with real containers, real ffmpeg and both programs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{Page, Probe, Workload, ebpf, ebpf_and_docker};
use testkit::{
    api::Client,
    cgroup::{self, Cgroup},
    docker::{IMAGE, MOUNTS},
    eventually,
    fixture::unique,
    or_skip,
    program::{Program, kill_on_parent_exit},
    requires,
    shell::{output, programs, which},
    wait::eventually_ok,
};

/// A running analysis service with its own directories.
struct Analysis {
    ffmpeg: Client,
    results: tempfile::TempDir,
    _program: Program,
}

impl Analysis {
    fn start(probe: &Client) -> Self {
        let results = tempfile::tempdir().unwrap();
        let mut command = Command::new(programs().unwrap().join("wattcast-analysis"));
        command.args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url", &probe.url("")]);
        command.arg("--results-dir").arg(results.path());
        let mut program = Program::start("analysis", &mut command, results.path()).unwrap();
        let ffmpeg = program.client_of(1).unwrap();
        Self { ffmpeg, results, _program: program }
    }

    fn port(&self) -> String {
        self.ffmpeg.url("").trim_end_matches('/').rsplit(':').next().unwrap().to_owned()
    }

    fn page(&self) -> Page {
        Page(self.ffmpeg.metrics().unwrap())
    }

    fn record(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.results.path().join("streams.ndjson")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An ffmpeg command line that encodes `seconds` of video in real time and reports to `target`.
fn job(seconds: u32, target: &str) -> String {
    format!(
        "ffmpeg -nostdin -hide_banner -loglevel info -stats -re -f lavfi -i testsrc2=size=640x360:rate=25:duration={seconds} -c:v libx264 -preset \
         veryfast -progress {target} -f null -"
    )
}

#[test]
fn five_streams_in_three_containers_have_labels_and_energy() {
    const SECONDS: u32 = 10;
    let engine = or_skip!(ebpf_and_docker());
    requires!(ffmpeg);
    let mut probe = Probe::start(&["--tick=500ms"]);
    let stats = probe.program.client_of(1).unwrap();
    let analysis = Analysis::start(&probe.client);
    let port = analysis.port();
    let udp = |stream: &str| format!("udp://127.0.0.1:{port}/{stream}");
    let http = |stream: &str| format!("http://127.0.0.1:{port}/progress/{stream}");
    let tag = unique("s");
    let stream = |number: u32| format!("{tag}-{number}");
    let jobs: [Vec<String>; 3] = [
        vec![job(SECONDS, &udp(&stream(1)))],
        vec![job(SECONDS, &udp(&stream(2))), job(SECONDS, &http(&stream(3)))],
        vec![job(SECONDS, &http(&stream(4))), job(SECONDS, &udp(&stream(5)))],
    ];
    // The jobs start together: each container waits for a line from the pipe.
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    output(Command::new("mkfifo").arg(&go)).unwrap();
    let mut go = fs::OpenOptions::new().read(true).write(true).open(&go).unwrap();
    let volume = format!("--volume={}:/go:ro", dir.path().display());
    let containers: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(at, jobs)| {
            let jobs: String = jobs.iter().map(|job| format!("{job} 2>&1 & ")).collect();
            let script = format!("read -r _ </go/go; {jobs}wait; read -r _");
            let flags = ["--interactive", "--network=host", "--label=team=live", &volume];
            engine.start(&unique(&format!("enc{at}")), &flags, Path::new("/bin/sh"), &["-c", &script]).unwrap()
        })
        .collect();
    go.write_all(b"\n\n\n").unwrap();

    let names = || (1..=5).map(stream);
    let memory: Vec<PathBuf> = containers.iter().map(memory_file).collect();
    let kernel = || -> Vec<f64> {
        memory.iter().map(|file| fs::read_to_string(file).unwrap().trim().parse().unwrap()).collect()
    };
    let encode = |page: &Page, progress: &Page| {
        names().all(|stream| {
            let joules = page.find("wattcast_stream_energy_joules_total", &[("stream", &stream)]);
            let fps = progress.find("ffmpeg_fps", &[("stream", &stream)]);
            joules.is_some_and(|joules| joules > 0.0) && fps.is_some_and(|fps| fps > 0.0)
        })
    };
    let busy = |usage: &Page| {
        containers.iter().all(|container| {
            let percent = usage.find("docker_container_cpu_percent", &[("name", &container.name)]);
            percent.is_some_and(|percent| percent > 0.5)
        })
    };
    // Regular ticks only: a process's clock lags behind its container's, and the tick of a mark may
    // be so short that the lag matters.
    let ticks = || probe.metrics().get("wattcast_tick_jitter_seconds_count", &[]);
    let (page, usage, progress, kernel) = eventually_ok(40.0, "all containers are busy", || {
        let (before, tick) = (kernel(), ticks());
        eventually(10.0, "the next tick", || ticks() > tick);
        let (page, usage, progress) = (probe.metrics(), Page(stats.metrics().unwrap()), analysis.page());
        let kernel = [before, kernel()];
        if busy(&usage) && encode(&page, &progress) { Ok((page, usage, progress, kernel)) } else { Err("some are not") }
    });
    for client in [&stats, &analysis.ffmpeg] {
        let text = client.text("/metrics").unwrap();
        assert_eq!(metrics::page::faults(&text), Vec::<String>::new());
        assert_lints(&text);
    }
    let mut page_fps = Vec::new();
    for (at, (container, jobs)) in containers.iter().zip(&jobs).enumerate() {
        let labels = [("container", &*container.name), ("id", &container.id[..12]), ("image", IMAGE)];
        let working = usage.get("wattcast_container_memory_working_set_bytes", &labels);
        let all = usage.get("wattcast_container_memory_bytes", &labels);
        // The kernel's values before and after the scrape, because memory changes while encoders
        // run.
        let [before, after] = [kernel[0][at], kernel[1][at]];
        println!("{}: {all} bytes, working set {working}; kernel {before} to {after}", container.name);
        let expected = 0.8 * before.min(after) - 8e6..1.2 * before.max(after) + 8e6;
        assert!(expected.contains(&all), "{all}: {expected:?}");
        assert!(working > 1e6 && working <= all);
        for _ in jobs {
            let name = stream(u32::try_from(page_fps.len()).unwrap() + 1);
            let labels = [("stream", &*name), ("container", &container.name), ("codec", "h264"), ("share", "process")];
            assert!(page.get("wattcast_stream_energy_joules_total", &labels) > 0.0);
            assert_eq!(page.get("wattcast_stream_jobs", &labels[..2]), 1.0);
            assert_eq!(progress.get("ffmpeg_stream_active", &[("stream", &name)]), 1.0);
            page_fps.push(progress.get("ffmpeg_fps", &[("stream", &name)]));
        }
    }

    let frames =
        |page: &Page, name: &str| page.find("wattcast_stream_frames_total", &[("stream", name)]).unwrap_or(0.0);
    eventually(60.0, "all jobs have ended", || {
        let page = analysis.page();
        names().all(|stream| page.find("ffmpeg_stream_active", &[("stream", &stream)]) == Some(0.0))
    });
    eventually(20.0, "all jobs are in the record", || {
        let record = analysis.record();
        names().all(|name| record.iter().any(|line| line["stream"] == name.as_str()))
    });
    let (page, progress) = (probe.fresh(), analysis.page());
    page.assert_conserved();
    let mut page_fps = page_fps.into_iter();
    for (at, container) in containers.iter().enumerate() {
        // ffmpeg's log: the final statistics, and the frame rates in between.
        let log = engine.call(&["logs", &container.name]).unwrap();
        assert_eq!(final_frames(&log), vec![u64::from(SECONDS) * 25; jobs[at].len()], "{log}");
        for fps in page_fps.by_ref().take(jobs[at].len()) {
            assert!(
                fps_values(&log).iter().any(|logged| (logged - fps).abs() <= 0.5),
                "{fps} is not in {:?}",
                fps_values(&log)
            );
        }
        let seconds = page.cpu(&container.name);
        let kernel = cgroup::usage_us(&container.cgroup().unwrap()).unwrap() as f64 / 1e6;
        println!("{}: {seconds:.4} CPU seconds, cpu.stat {kernel:.4}", container.name);
        assert!((seconds - kernel).abs() <= 0.01 * kernel + 0.02, "{seconds} {kernel}");
        let joules = |name: &str| -> f64 {
            let of_container = |sample: &&testkit::api::Sample| sample.label("container") == container.name;
            page.all(name).filter(of_container).map(|sample| sample.value).sum()
        };
        let whole = joules("wattcast_container_energy_joules_total");
        let streams = joules("wattcast_stream_energy_joules_total");
        println!("{}: {whole:.3} J, its streams {streams:.3} J", container.name);
        assert!(streams <= whole + 1e-5 && streams >= 0.8 * whole, "{streams} {whole}");
    }
    for name in names() {
        assert_eq!(frames(&progress, &name), f64::from(SECONDS) * 25.0, "{name}");
        let labels = [("stream", &*name), ("codec", "h264")];
        let media = progress.get("wattcast_stream_media_seconds_total", &labels);
        assert!((media - f64::from(SECONDS)).abs() < 0.1, "{media}");
        let joules = page.get("wattcast_stream_energy_joules_total", &[("stream", &name)]);
        let line = analysis.record().into_iter().find(|line| line["stream"] == name.as_str()).unwrap();
        println!("{name}: {joules:.3} J, {:.6} J/frame; recorded {line}", joules / frames(&progress, &name));
        assert_eq!((line["frames"].as_u64(), line["image"].as_str()), (Some(u64::from(SECONDS) * 25), Some(IMAGE)));
        assert!((line["joules"].as_f64().unwrap() - joules).abs() < 1e-5);
    }
}

/// Checks a page without the legacy metric names with promtool.
fn assert_lints(page: &str) {
    let Some(promtool) = which("promtool") else { return };
    let legacy = ["docker_", "ffmpeg_"];
    let is_primary = |line: &&str| {
        !legacy
            .iter()
            .any(|name| line.starts_with(name) || line.split(' ').nth(2).is_some_and(|of| of.starts_with(name)))
    };
    let primary: String = page.lines().filter(is_primary).map(|line| format!("{line}\n")).collect();
    let result = testkit::shell::feed(Command::new(promtool).args(["check", "metrics"]), &primary).unwrap();
    assert_eq!(result, (true, String::new()));
}

/// The kernel's file with the memory usage of a container's cgroup.
fn memory_file(container: &testkit::docker::Container) -> PathBuf {
    let v2 = container.cgroup().unwrap().join("memory.current");
    let v1 = Path::new("/sys/fs/cgroup/memory/docker").join(&container.id).join("memory.usage_in_bytes");
    if v2.exists() { v2 } else { v1 }
}

/// The final `frame=` of each ffmpeg in a log. The line with the final statistics contains
/// `Lsize=`.
fn final_frames(log: &str) -> Vec<u64> {
    let number = |line: &str| line.rsplit("frame=").next()?.split_whitespace().next()?.parse().ok();
    log.split(['\n', '\r']).filter(|line| line.contains("Lsize=")).filter_map(number).collect()
}

/// Every `fps=` of a log; ffmpeg rounds values of 10 and more to integers.
fn fps_values(log: &str) -> Vec<f64> {
    let number = |line: &str| line.rsplit("fps=").next()?.split_whitespace().next()?.parse().ok();
    log.split(['\n', '\r']).filter(|line| line.contains("fps=")).filter_map(number).collect()
}

/// The energy of a ladder in one process is divided by the pixels of its outputs.
#[test]
fn a_job_shorter_than_a_tick_is_divided_among_its_outputs() {
    or_skip!(ebpf());
    requires!(ffmpeg);
    let probe = Probe::start(&[
        "--tick=30s",
        "--energy.source=model",
        "--energy.model.idle-watts=1",
        "--energy.model.busy-watts=20",
    ]);
    probe.client.mark().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tag = unique("l");
    let (hi, lo) = (format!("{tag}-hi"), format!("{tag}-lo"));
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args("-nostdin -loglevel error -y -f lavfi -i testsrc2=size=640x360:rate=25:duration=2".split(' '));
    for (output, size) in [(&hi, "640x360"), (&lo, "320x180")] {
        ffmpeg.args(["-c:v", "libx264", "-preset", "medium", "-s", size]);
        ffmpeg.arg(dir.path().join(format!("{output}.mp4")));
    }
    assert!(ffmpeg.status().unwrap().success());
    let find = |page: &Page, stream: &str| {
        let labels = [("stream", stream), ("share", "pixels"), ("codec", "h264")];
        page.find("wattcast_stream_energy_joules_total", &labels)
    };
    // The model has a resolution of 10 ms, so the energy may appear only with its next reading.
    let page = eventually_ok(10.0, "the job has energy", || {
        let page = probe.fresh();
        let joules = find(&page, &lo).unwrap_or(0.0);
        if joules > 0.0 { Ok(page) } else { Err("none") }
    });
    page.assert_conserved();
    let [hi_joules, lo_joules] = [&hi, &lo].map(|stream| find(&page, stream).unwrap());
    println!("{hi_joules} J for 640x360, {lo_joules} J for 320x180");
    assert!((hi_joules / lo_joules - 4.0).abs() < 0.01, "four times the pixels");
    let job = job_of(&probe, &hi).unwrap();
    assert!(job["cpu_seconds"].as_f64().unwrap() > 0.05 && job["ended"].is_f64(), "{job}");
    assert_eq!((job["input"].as_str(), job["outputs"][1]["size"][0].as_u64()), (Some("lavfi"), Some(320)));
    // A job outside of a container has a row of its own, so that it is not merged with the shell
    // that started it.
    let id = format!("job:{}", job["job"]);
    let labels = [("runtime", "process"), ("container", "ffmpeg"), ("id", &id)];
    let row = page.get("wattcast_container_energy_joules_total", &labels);
    assert!((row - hi_joules - lo_joules).abs() < 1e-5, "{row}");
}

/// The job of a stream on /api/v1/streams.
fn job_of(probe: &Probe, stream: &str) -> Option<serde_json::Value> {
    let jobs = probe.client.json("/api/v1/streams").unwrap();
    jobs["jobs"].as_array().unwrap().iter().find(|job| job["streams"][0] == stream).cloned()
}

/// One job runs in a systemd unit, the other in the cgroup of a shell; the ends of both are
/// detected.
#[test]
fn jobs_started_before_the_probe_are_found() {
    or_skip!(ebpf());
    requires!(ffmpeg);
    let unit = format!("{}.service", unique("encode"));
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unit).unwrap();
    let tag = unique("m");
    let (in_unit, plain) = (format!("{tag}-unit"), format!("{tag}-plain"));
    let mut jobs = [FfmpegProcess::start(&in_unit, Some(&cgroup)), FfmpegProcess::start(&plain, None)];
    let ran = |job: &FfmpegProcess| probe_user::host::process::process_clock_ns(job.0.id()).unwrap();
    eventually(30.0, "both encode", || jobs.iter().all(|job| ran(job) > 100_000_000));
    let probe = Probe::start(&["--tick=500ms"]);
    let joules = |page: &Page, stream: &str, container: &str| {
        let labels = [("stream", stream), ("container", container), ("share", "process")];
        page.find("wattcast_stream_energy_joules_total", &labels).unwrap_or(0.0)
    };
    let row = |page: &Page, runtime: &str, container: &str| {
        let labels = [("runtime", runtime), ("container", container)];
        page.find("wattcast_container_energy_joules_total", &labels).unwrap_or(0.0)
    };
    eventually(30.0, "both have energy, rows and half a second of CPU time", || {
        let page = probe.fresh();
        page.assert_conserved();
        joules(&page, &in_unit, &unit) > 0.0
            && joules(&page, &plain, &plain) > 0.0
            && row(&page, "systemd", &unit) > 0.0
            && row(&page, "process", &plain) > 0.0
            && page.cpu(&plain) > 0.5
    });
    for job in &mut jobs {
        job.0.kill().unwrap();
        job.0.wait().unwrap();
    }
    let page = probe.fresh();
    for (stream, container) in [(&in_unit, &unit), (&plain, &plain)] {
        assert_eq!(page.get("wattcast_stream_jobs", &[("stream", stream), ("container", container)]), 0.0);
    }
    // The row contains the CPU time up to the job's end, although the process's clock is gone.
    let job = job_of(&probe, &plain).unwrap();
    let seconds = page.cpu(&plain);
    println!("row: {seconds} s; job: {} s", job["cpu_seconds"]);
    assert!((job["cpu_seconds"].as_f64().unwrap() - seconds).abs() <= 0.05 * seconds + 0.01);
}

/// An ffmpeg process that is killed on drop.
struct FfmpegProcess(Child);

impl FfmpegProcess {
    fn start(stream: &str, cgroup: Option<&Cgroup>) -> Self {
        let source = "testsrc2=size=640x360:rate=25:duration=600";
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-loglevel", "quiet", "-re", "-f", "lavfi", "-i", source, "-c:v", "libx264"]);
        command.arg("-progress").arg(format!("udp://127.0.0.1:9/{stream}")).args(["-f", "null", "-"]);
        if let Some(cgroup) = cgroup {
            cgroup.enter(&mut command).unwrap();
        }
        kill_on_parent_exit(&mut command);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for FfmpegProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn secrets_of_a_command_line_are_on_no_page() {
    or_skip!(ebpf());
    requires!(ffmpeg);
    let probe = Probe::start(&["--energy.source=model"]);
    let secret = unique("hunter");
    let cgroup = Cgroup::create(&cgroup::v2().unwrap(), &unique("secret")).unwrap();
    for _ in 0..2 {
        // No server listens at these addresses, and none is needed.
        let mut command = Command::new("ffmpeg");
        command.args("-nostdin -loglevel quiet -f lavfi -i testsrc2=duration=0.1 -c:v libx264 -f flv".split(' '));
        command.arg(format!("rtmp://user:{secret}@127.0.0.1:1/live/{secret}"));
        command.arg("-progress").arg(format!("http://127.0.0.1:1/progress/x?token={secret}"));
        cgroup.enter(&mut command).unwrap();
        let _ = command.status();
    }
    let page = probe.fresh();
    let container = cgroup.dir.file_name().unwrap().to_str().unwrap();
    let mut info = page.all("wattcast_stream_info").filter(|sample| sample.label("container") == container);
    assert!(info.any(|sample| sample.label("output") == "rtmp"), "the job was found");
    for path in ["/metrics", "/api/v1/streams", "/overview", "/api/v1/now", "/api/v1/series"] {
        assert!(!probe.client.text(path).unwrap().contains(&secret), "{path}");
    }
}

/// 200 containers in a minute: correct names, one inspection for each, and no series left.
#[test]
fn containers_that_come_and_go_are_named_and_leave_no_series() {
    const CONTAINERS: usize = 200;
    let engine = or_skip!(ebpf_and_docker());
    let dir = tempfile::tempdir().unwrap();
    let (socket, answered) = recording_socket(dir.path());
    let probe = Probe::start(&[
        "--tick=200ms",
        "--retain.dead=3s",
        "--energy.source=model",
        &format!("--docker.socket={}", socket.display()),
    ]);
    let tag = unique("churn");
    let start = Instant::now();
    let ticks = AtomicU64::new(0);
    let (exported, ids) = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (engine, tag, dir, ticks) = (&engine, &tag, dir.path(), &ticks);
                scope.spawn(move || -> Vec<String> {
                    let run = |number| {
                        let name = format!("{tag}-{number}");
                        let id = dir.join(&name);
                        let flag = format!("--cidfile={}", id.display());
                        let mut run = engine.run(&name, &["--interactive", &flag], Path::new("/bin/sh"));
                        // It uses some CPU time, so that the probe charges it, and lives for three
                        // ticks of the probe, however long they take on a busy machine.
                        run.args(["-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo; read line"]);
                        run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                        let mut run = run.spawn().unwrap();
                        assert_eq!(run.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1, "{name}");
                        let last = ticks.load(Ordering::Relaxed) + 3;
                        while ticks.load(Ordering::Relaxed) < last {
                            thread::sleep(Duration::from_millis(20));
                        }
                        run.stdin.take().unwrap().write_all(b"\n").unwrap();
                        assert!(run.wait().unwrap().success(), "{name}");
                        fs::read_to_string(id).unwrap()
                    };
                    (worker..CONTAINERS).step_by(4).map(run).collect()
                })
            })
            .collect();
        let mut exported: HashMap<String, String> = HashMap::new();
        while workers.iter().any(|worker| !worker.is_finished()) {
            let page = probe.metrics();
            ticks.store(page.get("wattcast_tick_jitter_seconds_count", &[]) as u64, Ordering::Relaxed);
            for sample in page.all("wattcast_container_cpu_seconds_total") {
                if sample.label("container").starts_with(tag.as_str()) {
                    let before = exported.insert(sample.label("id").to_owned(), sample.label("container").to_owned());
                    assert!(before.is_none_or(|before| before == sample.label("container")), "a name that changed");
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        let ids: HashSet<String> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        (exported, ids)
    });
    let took = start.elapsed().as_secs_f64();
    // Only the containers of this test: the probe inspects others of the machine as well.
    let answered: Vec<Answer> = answered.lock().unwrap().iter().filter(|one| ids.contains(&one.id)).cloned().collect();
    let calls = answered.len();
    println!("{CONTAINERS} containers in {took:.1} s; {} named, {calls} inspections", exported.len());
    assert_eq!(ids.len(), CONTAINERS);
    assert!(
        exported.keys().all(|exported| ids.iter().any(|id| id.starts_with(exported))),
        "an id of another container under a name of this test"
    );
    let names: HashSet<&String> = exported.values().collect();
    assert_eq!(names.len(), exported.len(), "each id has a name of its own");
    assert!(exported.len() >= CONTAINERS * 9 / 10, "{} of {CONTAINERS}", exported.len());
    // The probe waits two seconds for an answer and then repeats the request.
    let prompt: Vec<&String> =
        answered.iter().filter(|one| one.time < Duration::from_secs(1)).map(|one| &one.id).collect();
    assert_eq!(prompt.iter().collect::<HashSet<_>>().len(), prompt.len(), "each was inspected once at most");
    assert!(calls >= exported.len(), "{calls} inspections, {} names", exported.len());
    eventually(30.0, "no series is left", || {
        let page = probe.metrics();
        !page.0.iter().any(|sample| exported.contains_key(sample.label("id")))
    });
    probe.fresh().assert_conserved();
}

/// An answered inspection: the container, and how long Docker took.
#[derive(Clone)]
struct Answer {
    id: String,
    time: Duration,
}

/// A proxy of the Docker socket, with the ids of the containers whose inspection was answered.
/// Unanswered requests do not count, because the probe repeats them when the engine is busy.
fn recording_socket(dir: &Path) -> (PathBuf, Arc<Mutex<Vec<Answer>>>) {
    let path = dir.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let answered = Arc::new(Mutex::new(Vec::new()));
    let all = answered.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { return };
            let (from, to) = (client.try_clone().unwrap(), engine.try_clone().unwrap());
            // A connection has one request at a time.
            let pending = Arc::new(Mutex::new(None));
            let (request, all) = (pending.clone(), all.clone());
            thread::spawn(move || {
                let note = |text: &str| {
                    let id = text.split_once("/containers/").and_then(|(_, rest)| rest.split('/').next());
                    *request.lock().unwrap() = id.map(|id| (id.to_owned(), Instant::now()));
                };
                copy_until_end(&from, &to, note, || ());
                // The client has closed the connection.
                let _ = to.shutdown(Shutdown::Both);
            });
            let answer = move || {
                let request: Option<(String, Instant)> = pending.lock().unwrap().take();
                all.lock().unwrap().extend(request.map(|(id, start)| Answer { id, time: start.elapsed() }));
            };
            thread::spawn(move || copy_until_end(&engine, &client, |_| (), answer));
        }
    });
    (path, answered)
}

/// Copies from one socket to the other until either ends. Calls `before` with each piece that was
/// read, and `after` when it was written.
fn copy_until_end(mut from: &UnixStream, mut to: &UnixStream, before: impl Fn(&str), after: impl Fn()) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        before(&String::from_utf8_lossy(&buffer[..length]));
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
        after();
    }
}

/// A shell script that uses some CPU time repeatedly.
const WORKLOAD: &str = "while :; do sleep 0.1; done";

#[test]
fn podman_containers_have_their_names() {
    or_skip!(ebpf());
    let podman = or_skip!(podman(WORKLOAD));
    let probe = Probe::start(&["--energy.source=model"]);
    eventually(15.0, "podman's container has its name", || {
        let labels = [("container", &*podman.0), ("runtime", "podman"), ("image", "localhost/wattcast-demo:latest")];
        probe.fresh().find("wattcast_container_power_watts", &labels).is_some()
    });
}

#[test]
fn containerd_containers_have_their_names() {
    or_skip!(ebpf());
    let ctr = or_skip!(ctr(WORKLOAD));
    let probe = Probe::start(&["--energy.source=model"]);
    eventually(15.0, "containerd's container has its name", || {
        let labels = [("container", &*ctr.0), ("runtime", "containerd")];
        probe.fresh().find("wattcast_container_power_watts", &labels).is_some_and(|watts| watts > 0.0)
    });
}

/// The name of a container, and the commands that remove it.
struct RunningContainer(String, Vec<Vec<String>>);

impl Drop for RunningContainer {
    fn drop(&mut self) {
        for command in &self.1 {
            // A killed task can be removed only after a moment.
            for _ in 0..50 {
                if run(Command::new(&command[0]).args(&command[1..])).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "))
    }
}

fn podman(script: &str) -> Result<RunningContainer, String> {
    if which("podman").is_none() || which("runc").is_none() {
        return Err("podman or runc is not in PATH".into());
    }
    // crun does not support hybrid trees; the caller's limits may be lower than Podman's defaults.
    let global = ["--runtime=runc", "--cgroup-manager=cgroupfs"];
    let exists = Command::new("podman").args(["image", "exists", IMAGE]).status().is_ok_and(|status| status.success());
    if !exists {
        let script = format!("tar -cf - --files-from /dev/null | podman import - {IMAGE}");
        run(Command::new("sh").args(["-c", &script])).map_err(|error| format!("podman import: {error}"))?;
    }
    let name = unique("podman");
    let mut command = Command::new("podman");
    command.args(global).args([
        "run",
        "--detach",
        "--rm",
        "--network=none",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=4096:4096",
    ]);
    for dir in MOUNTS.iter().filter(|dir| Path::new(dir).exists()) {
        command.args(["--volume", &format!("{dir}:{dir}:ro")]);
    }
    let container = RunningContainer(
        name.clone(),
        vec![words(&format!("podman --runtime=runc --cgroup-manager=cgroupfs rm --force --time 0 {name}"))],
    );
    run(command.args(["--name", &name, IMAGE, "/bin/sh", "-c", script]))
        .map_err(|error| format!("podman run: {error}"))?;
    Ok(container)
}

fn ctr(script: &str) -> Result<RunningContainer, String> {
    if which("ctr").is_none() {
        return Err("ctr is not in PATH".into());
    }
    let sockets = ["/run/containerd/containerd.sock", "/var/run/docker/containerd/containerd.sock"];
    let socket = sockets.into_iter().find(|socket| Path::new(socket).exists()).ok_or("no containerd runs")?;
    let root = tempfile::tempdir().unwrap().keep();
    for dir in MOUNTS.iter().chain(&["/proc", "/dev", "/sys", "/tmp"]) {
        fs::create_dir_all(root.join(dir.trim_start_matches('/'))).unwrap();
    }
    let name = unique("ctr");
    let mut command = Command::new("ctr");
    command.args(["-a", socket, "run", "--detach", "--rootfs"]);
    for dir in MOUNTS.iter().filter(|dir| Path::new(dir).exists()) {
        command.args(["--mount", &format!("type=bind,src={dir},dst={dir},options=rbind:ro")]);
    }
    let container = RunningContainer(
        name.clone(),
        vec![
            words(&format!("ctr -a {socket} task kill --signal 9 {name}")),
            words(&format!("ctr -a {socket} task rm {name}")),
            words(&format!("ctr -a {socket} container rm {name}")),
            words(&format!("rm -rf {}", root.display())),
        ],
    );
    run(command.arg(&root).args([&name, "/bin/sh", "-c", script])).map_err(|error| format!("ctr run: {error}"))?;
    Ok(container)
}

#[test]
fn exec_preserves_output_and_exit_code_and_reports_cost() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("cost.json");
    let mut pids = Vec::new();
    let mut run = |command: &mut Command| -> Output {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        pids.push(child.id());
        child.wait_with_output().unwrap()
    };
    let mut exec = |args: &[&str]| {
        let mut command = Command::new(support::binary());
        command.args(["exec", "--json", "--as-root", "--energy.price=0.30", "--currency=EUR"]);
        command.arg(format!("--output={}", report.display())).arg("--").args(args);
        let output = run(&mut command);
        let cost: serde_json::Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap_or_default();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out, err, cost)
    };
    let (code, out, err, cost) =
        exec(&["sh", "-c", "echo out; echo err >&2; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; exit 7"]);
    assert_eq!((code, &*out, &*err), (Some(7), "out\n", "err\n"));
    println!("{cost}");
    let number = |key: &str| cost[key].as_f64().unwrap_or_else(|| panic!("no {key} in {cost}"));
    assert!(number("cpu_seconds") > 0.05 && number("cpu_seconds") <= number("seconds") * 1.05, "{cost}");
    assert!((number("watt_hours") - number("joules") / 3600.0).abs() < 1e-12);
    assert!((number("money") - number("watt_hours") / 1000.0 * 0.30).abs() < 1e-12 && cost["currency"] == "EUR");
    let zone = &cost["zones"][0];
    assert!(
        zone["joules"].as_f64().unwrap() + zone["idle_joules"].as_f64().unwrap()
            <= zone["machine_joules"].as_f64().unwrap() + 1e-6
    );

    let (code, ..) = exec(&["sh", "-c", "kill -TERM $$"]);
    assert_eq!(code, Some(128 + 15));

    if which("ffmpeg").is_some() {
        let source = "testsrc2=size=320x180:rate=25:duration=4";
        let encode =
            ["-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-f", "null", "-"];
        let (code, _, err, cost) = exec(&[&["ffmpeg"][..], &encode].concat());
        assert_eq!(code, Some(0), "{err}");
        println!("{cost}");
        assert_eq!(cost["frames"]["frames"].as_u64(), Some(100));
        // The final time of ffmpeg 5.1 is that of the last packet: two frames behind because of
        // B-frame reordering.
        let media = cost["frames"]["media_seconds"].as_f64().unwrap();
        assert!((3.8..=4.0).contains(&media), "{media}");
        let each = cost["frames"]["joules_per_frame"].as_f64().unwrap();
        assert!((each * 100.0 - cost["joules"].as_f64().unwrap()).abs() < 1e-9);
    }
    let output = run(Command::new(support::binary()).args(["exec", "--", "/nonexistent"]));
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot start /nonexistent"));
    let trees = || [cgroup::v2(), cgroup::v1_cpu()].into_iter().flatten();
    let left: Vec<PathBuf> = trees()
        .flat_map(|tree| pids.iter().map(move |pid| tree.join(format!("wattcast-exec-{pid}"))))
        .filter(|dir| dir.exists())
        .collect();
    assert!(left.is_empty() && pids.len() >= 3, "{left:?}");
}

/// Names with quotes, newlines and four kilobytes, from a fake Docker daemon.
#[test]
fn hostile_container_names_become_bounded_labels() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let bad = format!("a \"b\"\\\\\n{}", "\u{1f3a5}ü".repeat(1000));
    let name = bad.clone();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = client.read(&mut buffer) {
                    let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let body = if request.contains("/version") {
                        r#"{"ApiVersion":"1.41","Version":"20"}"#.to_owned()
                    } else if request.contains("/containers/") {
                        serde_json::json!({ "Name": format!("/{name}"), "Config": { "Image": name, "Labels": { "team": name } } }).to_string()
                    } else {
                        "OK".to_owned()
                    };
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    if client.write_all((head + &body).as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let probe = Probe::start(&[
        "--no-compat-metrics",
        "--container.labels=team",
        &format!("--docker.socket={}", socket.display()),
    ]);
    let id = format!("{:012x}{:052x}", std::process::id(), 2);
    let _workload = Workload::start(&format!("docker-{id}.scope"));
    let own = [("id", &id[..12])];
    eventually(15.0, "the container has its name", || {
        probe.fresh().find("wattcast_container_label_info", &own) == Some(1.0)
    });
    let page = probe.fresh();
    let names: BTreeMap<&str, usize> = page
        .all("wattcast_container_power_watts")
        .flat_map(|sample| [sample.label("container"), sample.label("image")])
        .map(|label| (label, label.chars().count()))
        .collect();
    println!("{names:?}");
    let named = page.all("wattcast_container_power_watts").find(|sample| sample.label("id") == &id[..12]).unwrap();
    assert!(named.label("container").starts_with("a \"b\""), "{names:?}");
    assert!(names.iter().all(|(label, length)| *length <= 128 && !label.contains('\n')), "{names:?}");
    let text = probe.client.text("/metrics").unwrap();
    assert_eq!(metrics::page::faults(&text), Vec::<String>::new());
    assert_lints(&text);
}
