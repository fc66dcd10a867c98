//! Streams from end to end: real containers, real ffmpeg, both programs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{Page, Probe, ebpf};
use testkit::{
    api::Client,
    docker::{Engine, IMAGE, MOUNTS},
    program::Program,
    shell::{is_root, which},
};
use testkit::{
    eventually,
    fixture::unique,
    lock::{Resource, hold},
    or_skip, skip,
};

/// The other program, built beside this one.
struct Analysis {
    ffmpeg: Client,
    results: tempfile::TempDir,
    _program: Program,
}

impl Analysis {
    fn start(probe: &Client) -> Option<Self> {
        let program = support::binary().with_file_name("wattcast-analysis");
        if !program.exists() {
            return None;
        }
        let results = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["serve", "--web.listen-address=127.0.0.1:0", "--probe-url", &probe.url("")]);
        command.arg("--results-dir").arg(results.path());
        let mut program = Program::start("analysis", &mut command, results.path()).unwrap();
        let ffmpeg = program.client_of(1).unwrap();
        Some(Self { ffmpeg, results, _program: program })
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

fn ffmpeg() -> Option<PathBuf> {
    which("ffmpeg")
}

/// What a test of real containers and a real ffmpeg needs, or why it cannot run.
fn needs() -> Result<(Engine, PathBuf), String> {
    ebpf()?;
    let ffmpeg = ffmpeg().ok_or("ffmpeg is not in PATH")?;
    let engine = Engine::find().map_err(|error| format!("no Docker engine: {error:#}"))?;
    Ok((engine, ffmpeg))
}

/// A job of so many seconds, as fast as it is played, that reports to `target`.
fn job(seconds: u32, target: &str) -> String {
    format!(
        "ffmpeg -nostdin -hide_banner -loglevel info -stats -re -f lavfi -i testsrc2=size=640x360:rate=25:duration={seconds} -c:v libx264 -preset \
         veryfast -progress {target} -f null -"
    )
}

#[test]
fn three_containers_and_five_streams_each_have_name_image_codec_frames_and_joules() {
    const SECONDS: u32 = 12;
    let _cpus = hold(Resource::Cpus);
    let (engine, _) = match needs() {
        Ok(needs) => needs,
        Err(reason) => skip!("{reason}"),
    };
    let mut probe = Probe::start(&["--tick=500ms"]);
    let stats = probe.program.client_of(1).unwrap();
    let Some(analysis) = Analysis::start(&probe.client) else { skip!("wattcast-analysis is not built") };
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
    let containers: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(at, jobs)| {
            let script = jobs.iter().map(|job| format!("{job} 2>&1 & ")).collect::<String>() + "wait; read -r _";
            let flags = ["--interactive", "--network=host", "--label=team=live"];
            engine.start(&unique(&format!("enc{at}")), &flags, Path::new("/bin/sh"), &["-c", &script]).unwrap()
        })
        .collect();

    thread::sleep(Duration::from_secs(6));
    let (page, usage, progress) = (probe.fresh(), Page(stats.metrics().unwrap()), analysis.page());
    for client in [&stats, &analysis.ffmpeg] {
        let text = client.text("/metrics").unwrap();
        assert_eq!(exporter::page::faults(&text), Vec::<String>::new());
        assert_lints(&text);
    }
    let mut number = 0;
    for (container, jobs) in containers.iter().zip(&jobs) {
        let who = [("container", &*container.name), ("id", &container.id[..12]), ("image", IMAGE)];
        let working = usage.get("wattcast_container_memory_working_set_bytes", &who);
        let all = usage.get("wattcast_container_memory_bytes", &who);
        // The kernel's figure now, which moves while encoders run.
        let kernel = kernel_memory(container);
        println!("{}: {all} bytes, of which used {working}; the kernel {kernel}", container.name);
        assert!((all - kernel).abs() <= 0.2 * kernel + 8e6, "{all} {kernel}");
        assert!(working > 1e6 && working <= all);
        let percent = usage.get("docker_container_cpu_percent", &[("name", &container.name)]);
        assert!(percent > 0.5, "{percent}");
        for _ in jobs {
            number += 1;
            let name = stream(number);
            let labels = [("stream", &*name), ("container", &container.name), ("codec", "h264"), ("share", "process")];
            assert!(page.get("wattcast_stream_energy_joules_total", &labels) > 0.0);
            assert_eq!(page.get("wattcast_stream_jobs", &labels[..2]), 1.0);
            let fps = progress.get("ffmpeg_fps", &[("stream", &name)]);
            assert!((20.0..30.0).contains(&fps), "{name}: {fps}");
            assert_eq!(progress.get("ffmpeg_stream_active", &[("stream", &name)]), 1.0);
        }
    }

    let frames =
        |page: &Page, name: &str| page.find("wattcast_stream_frames_total", &[("stream", name)]).unwrap_or(0.0);
    eventually(60.0, "all jobs have ended", || {
        let page = analysis.page();
        (1..=5).all(|number| page.find("ffmpeg_stream_active", &[("stream", &stream(number))]) == Some(0.0))
    });
    eventually(20.0, "all jobs are in the record", || analysis.record().len() >= 5);
    let (page, progress) = (probe.fresh(), analysis.page());
    page.assert_closed();
    for (at, container) in containers.iter().enumerate() {
        // ffmpeg's own last words.
        let log = engine.call(&["logs", &container.name]).unwrap();
        let last: Vec<u64> = finals(&log);
        assert_eq!(last, vec![u64::from(SECONDS) * 25; jobs[at].len()], "{log}");
        let seconds = page.cpu(&container.name);
        let kernel = testkit::cgroup::usage_us(&container.cgroup().unwrap()).unwrap() as f64 / 1e6;
        println!("{}: {seconds:.4} CPU seconds, cpu.stat {kernel:.4}", container.name);
        assert!((seconds - kernel).abs() <= 0.01 * kernel + 0.02, "{seconds} {kernel}");
        let whole: f64 = page
            .all("wattcast_container_energy_joules_total")
            .filter(|sample| sample.label("container") == container.name)
            .map(|sample| sample.value)
            .sum();
        let streams: f64 = page
            .all("wattcast_stream_energy_joules_total")
            .filter(|sample| sample.label("container") == container.name)
            .map(|sample| sample.value)
            .sum();
        println!("{}: {whole:.3} J, its streams {streams:.3} J", container.name);
        assert!(streams <= whole + 1e-5 && streams >= 0.8 * whole, "{streams} {whole}");
    }
    for number in 1..=5 {
        let name = stream(number);
        assert_eq!(frames(&progress, &name), f64::from(SECONDS) * 25.0, "{name}");
        let labels = [("stream", &*name), ("codec", "h264")];
        let media = progress.get("wattcast_stream_media_seconds_total", &labels);
        assert!((media - f64::from(SECONDS)).abs() < 0.1, "{media}");
        let joules = page.get("wattcast_stream_energy_joules_total", &[("stream", &name)]);
        let line = analysis.record().into_iter().find(|line| line["stream"] == name.as_str()).unwrap();
        println!("{name}: {joules:.3} J, {:.6} J a frame; recorded {line}", joules / frames(&progress, &name));
        assert_eq!((line["frames"].as_u64(), line["image"].as_str()), (Some(u64::from(SECONDS) * 25), Some(IMAGE)));
        assert!((line["joules"].as_f64().unwrap() - joules).abs() < 1e-5);
    }
}

/// Holds a page without the names of the exporters that we replace against Prometheus' own rules.
fn assert_lints(page: &str) {
    let Some(promtool) = which("promtool") else { return };
    let seed = ["docker_", "ffmpeg_"];
    let ours = |line: &&str| {
        !seed.iter().any(|name| line.starts_with(name) || line.split(' ').nth(2).is_some_and(|of| of.starts_with(name)))
    };
    let primary: String = page.lines().filter(ours).map(|line| format!("{line}\n")).collect();
    let said = testkit::shell::feed(Command::new(promtool).args(["check", "metrics"]), &primary).unwrap();
    assert_eq!(said, (true, String::new()));
}

/// Memory of a container's cgroup, wherever the kernel keeps it.
fn kernel_memory(container: &testkit::docker::Container) -> f64 {
    let v2 = container.cgroup().unwrap().join("memory.current");
    let v1 = Path::new("/sys/fs/cgroup/memory/docker").join(&container.id).join("memory.usage_in_bytes");
    let text = fs::read_to_string(v2).or_else(|_| fs::read_to_string(v1)).unwrap();
    text.trim().parse().unwrap()
}

/// The last `frame=` of each ffmpeg in a log: the statistics at its end stand with `Lsize=`, or `L` before the size.
fn finals(log: &str) -> Vec<u64> {
    let number = |line: &str| line.rsplit("frame=").next()?.split_whitespace().next()?.parse().ok();
    log.split(['\n', '\r']).filter(|line| line.contains("Lsize=")).filter_map(number).collect()
}

/// A ladder of one process is divided by its pixels, and a job that is shorter than a tick is known by its command line and its time.
#[test]
fn a_job_shorter_than_a_tick_is_known_whole_and_its_outputs_are_divided() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let Some(ffmpeg) = ffmpeg() else { skip!("ffmpeg is not in PATH") };
    let probe = Probe::start(&[
        "--tick=10s",
        "--energy.source=model",
        "--energy.model.idle-watts=1",
        "--energy.model.busy-watts=20",
    ]);
    probe.client.mark().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tag = unique("l");
    let status = Command::new(&ffmpeg)
        .args(["-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=2"])
        .args(["-c:v", "libx264", "-preset", "medium", "-s", "640x360"])
        .arg(dir.path().join(format!("{tag}-hi.mp4")))
        .args(["-c:v", "libx264", "-preset", "medium", "-s", "320x180"])
        .arg(dir.path().join(format!("{tag}-lo.mp4")))
        .status()
        .unwrap();
    assert!(status.success());
    // Its joules come with the model's next reading, which counts hundredths of a second.
    thread::sleep(Duration::from_millis(300));
    let page = probe.fresh();
    page.assert_closed();
    let joules = |output: &str| {
        let stream = format!("{tag}-{output}");
        page.get("wattcast_stream_energy_joules_total", &[("stream", &stream), ("share", "pixels"), ("codec", "h264")])
    };
    let (hi, lo) = (joules("hi"), joules("lo"));
    println!("{hi} J for 640x360, {lo} J for 320x180");
    assert!(lo > 0.0 && (hi / lo - 4.0).abs() < 0.01, "four times the pixels");
    let jobs = probe.client.json("/api/v1/streams").unwrap();
    let job =
        jobs["jobs"].as_array().unwrap().iter().find(|job| job["streams"][0] == format!("{tag}-hi")).unwrap().clone();
    assert!(job["cpu_seconds"].as_f64().unwrap() > 0.05 && job["ended"].is_f64(), "{job}");
    assert_eq!((job["input"].as_str(), job["outputs"][1]["size"][0].as_u64()), (Some("lavfi"), Some(320)));
    // Not in a container: a row of its own, out of the system's, so that it is not merged with the shell that started it.
    let row = page.get("wattcast_container_energy_joules_total", &[("runtime", "process"), ("container", "ffmpeg")]);
    assert!((row - hi - lo).abs() < 1e-5, "{row}");
}

/// Jobs that were there before the probe are found, in a systemd unit and beside a shell, and their ends are seen.
#[test]
fn jobs_that_were_there_before_are_met_in_units_and_beside_shells() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let Some(ffmpeg) = ffmpeg() else { skip!("ffmpeg is not in PATH") };
    let tree = testkit::cgroup::v2().unwrap();
    let unit = format!("{}.service", unique("encode"));
    let cgroup = testkit::cgroup::Cgroup::create(&tree, &unit).unwrap();
    let tag = unique("m");
    let start = |stream: &str, inside: bool| {
        let mut command = Command::new(&ffmpeg);
        command
            .args([
                "-nostdin",
                "-loglevel",
                "quiet",
                "-re",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=size=640x360:rate=25:duration=60",
                "-c:v",
                "libx264",
            ])
            .arg("-progress")
            .arg(format!("udp://127.0.0.1:9/{stream}"))
            .args(["-f", "null", "-"])
            .stdin(Stdio::null());
        if inside {
            cgroup.enter(&mut command).unwrap();
        }
        testkit::program::die_with_us(&mut command);
        command.spawn().unwrap()
    };
    let (in_unit, plain) = (format!("{tag}-unit"), format!("{tag}-plain"));
    let mut jobs = [start(&in_unit, true), start(&plain, false)];
    thread::sleep(Duration::from_secs(2));
    let probe = Probe::start(&["--tick=500ms"]);
    thread::sleep(Duration::from_secs(3));
    let page = probe.fresh();
    page.assert_closed();
    let joules = |page: &Page, stream: &str, container: &str| {
        page.get(
            "wattcast_stream_energy_joules_total",
            &[("stream", stream), ("container", container), ("share", "process")],
        )
    };
    assert!(joules(&page, &in_unit, &unit) > 0.0 && joules(&page, &plain, &plain) > 0.0);
    let row = |runtime: &str, container: &str| {
        page.get("wattcast_container_energy_joules_total", &[("runtime", runtime), ("container", container)])
    };
    assert!(row("systemd", &unit) > 0.0 && row("process", &plain) > 0.0);
    for job in &mut jobs {
        job.kill().unwrap();
        job.wait().unwrap();
    }
    let page = probe.fresh();
    for (stream, container) in [(&in_unit, &unit), (&plain, &plain)] {
        assert_eq!(page.get("wattcast_stream_jobs", &[("stream", stream), ("container", container)]), 0.0);
    }
    // What a job ran to its end is in its row: the process is gone, and its clock with it.
    let jobs = probe.client.json("/api/v1/streams").unwrap();
    let job = jobs["jobs"].as_array().unwrap().iter().find(|job| job["streams"][0] == plain.as_str()).unwrap().clone();
    let seconds = page.cpu(&plain);
    println!("{seconds} s in its row, {} s of its own", job["cpu_seconds"]);
    assert!((job["cpu_seconds"].as_f64().unwrap() - seconds).abs() <= 0.05 * seconds + 0.01);
}

/// What ffmpeg's words hold of secrets is on no page.
#[test]
fn keys_and_passwords_of_a_command_line_are_on_no_page() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let Some(ffmpeg) = ffmpeg() else { skip!("ffmpeg is not in PATH") };
    let probe = Probe::start(&["--energy.source=model"]);
    let secret = unique("hunter");
    for _ in 0..2 {
        // Nobody listens there, and nobody needs to.
        let _ = Command::new(&ffmpeg)
            .args([
                "-nostdin",
                "-loglevel",
                "quiet",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=duration=0.1",
                "-c:v",
                "libx264",
                "-f",
                "flv",
            ])
            .arg(format!("rtmp://user:{secret}@127.0.0.1:1/live/{secret}"))
            .arg("-progress")
            .arg(format!("http://127.0.0.1:1/progress/x?token={secret}"))
            .status();
    }
    let page = probe.fresh();
    assert!(page.all("wattcast_stream_info").any(|sample| sample.label("output") == "rtmp"), "the job was seen");
    for path in ["/metrics", "/api/v1/streams", "/"] {
        assert!(!probe.client.text(path).unwrap().contains(&secret), "{path}");
    }
}

/// Two hundred containers in a minute: right names, one call for each, and no series left.
#[test]
fn containers_that_come_and_go_have_their_names_and_leave_no_series() {
    const CONTAINERS: usize = 200;
    let _cpus = hold(Resource::Cpus);
    let (engine, _) = match needs() {
        Ok(needs) => needs,
        Err(reason) => skip!("{reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let (socket, calls) = counting_socket(dir.path());
    let probe = Probe::start(&[
        "--tick=200ms",
        "--retain.dead=3s",
        "--energy.source=model",
        &format!("--docker.socket={}", socket.display()),
    ]);
    let tag = unique("churn");
    let begun = Instant::now();
    let seen: HashMap<String, String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (engine, tag) = (&engine, &tag);
                scope.spawn(move || {
                    for number in (worker..CONTAINERS).step_by(4) {
                        let name = format!("{tag}-{number}");
                        let mut run = engine.run(&name, &[], Path::new("/bin/sh"));
                        // Half a second of life, with a little work, so that it is seen to run.
                        run.args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.4"]);
                        let status = run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
                        assert!(status.success(), "{name}");
                    }
                })
            })
            .collect();
        let mut seen = HashMap::new();
        while workers.iter().any(|worker| !worker.is_finished()) {
            for sample in probe.metrics().all("wattcast_container_cpu_seconds_total") {
                if sample.label("container").starts_with(tag.as_str()) {
                    let before = seen.insert(sample.label("id").to_owned(), sample.label("container").to_owned());
                    assert!(before.is_none_or(|before| before == sample.label("container")), "a name that changed");
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
        seen
    });
    let took = begun.elapsed().as_secs_f64();
    let calls = calls.load(Ordering::Relaxed);
    println!("{CONTAINERS} containers in {took:.1} s; {} seen by their names, {calls} inspections", seen.len());
    let names: std::collections::HashSet<&String> = seen.values().collect();
    assert_eq!(names.len(), seen.len(), "each id has a name of its own");
    assert!(seen.len() >= CONTAINERS * 9 / 10, "{} of {CONTAINERS}", seen.len());
    assert!(calls as usize <= CONTAINERS, "{calls} inspections of {CONTAINERS} containers");
    eventually(30.0, "no series is left", || {
        let page = probe.metrics();
        !page.0.iter().any(|sample| seen.contains_key(sample.label("id")))
    });
    probe.fresh().assert_closed();
}

/// A socket that passes everything on to Docker's, and counts what is asked of containers.
fn counting_socket(dir: &Path) -> (PathBuf, Arc<AtomicU32>) {
    let path = dir.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { return };
            let (mut from, mut to) = (client.try_clone().unwrap(), engine.try_clone().unwrap());
            let counter = counter.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    counter.fetch_add(u32::try_from(text.matches("/containers/").count()).unwrap(), Ordering::Relaxed);
                    if to.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
            let (mut from, mut to) = (engine, client);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    (path, calls)
}

/// Podman's and containerd's own containers, run for real.
#[test]
fn podman_and_containerd_containers_have_their_names() {
    let _cpus = hold(Resource::Cpus);
    let (engine, _) = match needs() {
        Ok(needs) => needs,
        Err(reason) => skip!("{reason}"),
    };
    let probe = Probe::start(&["--energy.source=model"]);
    let burn = "while :; do :; done";
    let mut ran = 0;
    match podman(burn) {
        Ok(podman) => {
            eventually(15.0, "podman's container has its name", || {
                let page = probe.fresh();
                page.find(
                    "wattcast_container_power_watts",
                    &[("container", &podman.0), ("runtime", "podman"), ("image", "localhost/wattcast-demo:latest")],
                )
                .is_some()
            });
            ran += 1;
        }
        Err(reason) => println!("skipped: {reason}"),
    }
    match ctr(burn) {
        Ok(ctr) => {
            eventually(15.0, "containerd's container has its name", || {
                let page = probe.fresh();
                page.find("wattcast_container_power_watts", &[("container", &ctr.0), ("runtime", "containerd")])
                    .is_some_and(|watts| watts > 0.0)
            });
            ran += 1;
        }
        Err(reason) => println!("skipped: {reason}"),
    }
    println!("{ran} of 2 runtimes beside {engine:?}");
}

/// A container by its name, and what ends it.
struct Ends(String, Vec<Vec<String>>);

impl Drop for Ends {
    fn drop(&mut self) {
        for command in &self.1 {
            let _ = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            thread::sleep(Duration::from_millis(300));
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

fn podman(script: &str) -> Result<Ends, String> {
    if which("podman").is_none() || which("runc").is_none() {
        return Err("podman or runc is not in PATH".into());
    }
    // crun refuses hybrid trees; limits of the caller may be lower than Podman's defaults.
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
    let ends = Ends(
        name.clone(),
        vec![words(&format!("podman --runtime=runc --cgroup-manager=cgroupfs rm --force --time 0 {name}"))],
    );
    run(command.args(["--name", &name, IMAGE, "/bin/sh", "-c", script]))
        .map_err(|error| format!("podman run: {error}"))?;
    Ok(ends)
}

fn ctr(script: &str) -> Result<Ends, String> {
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
    let ends = Ends(
        name.clone(),
        vec![
            words(&format!("ctr -a {socket} task kill --signal 9 {name}")),
            words(&format!("ctr -a {socket} task rm {name}")),
            words(&format!("ctr -a {socket} container rm {name}")),
            words(&format!("rm -rf {}", root.display())),
        ],
    );
    run(command.arg(&root).args([&name, "/bin/sh", "-c", script])).map_err(|error| format!("ctr run: {error}"))?;
    Ok(ends)
}

/// `exec`: the command's output and exit code as they are, what it cost, and no cgroup left.
#[test]
fn exec_passes_the_command_through_and_says_what_it_cost() {
    let _cpus = hold(Resource::Cpus);
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("cost.json");
    let exec = |args: &[&str]| {
        let output = Command::new(support::binary())
            .args(["exec", "--json", "--price=0.30", "--currency=EUR"])
            .arg(format!("--output={}", report.display()))
            .arg("--")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let cost: serde_json::Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap_or_default();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
            cost,
        )
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
    let output = Command::new(support::binary()).args(["exec", "--", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot start /nonexistent"));

    if let Some(ffmpeg) = ffmpeg() {
        let ffmpeg = ffmpeg.to_str().unwrap();
        let source = "testsrc2=size=320x180:rate=25:duration=4";
        let (code, _, err, cost) = exec(&[
            ffmpeg,
            "-nostdin",
            "-loglevel",
            "error",
            "-f",
            "lavfi",
            "-i",
            source,
            "-c:v",
            "libx264",
            "-f",
            "null",
            "-",
        ]);
        assert_eq!(code, Some(0), "{err}");
        println!("{cost}");
        assert_eq!(cost["frames"]["frames"].as_u64(), Some(100));
        // ffmpeg 5.1 ends with the time of the last packet that it wrote, two frames behind for what B-frames reorder.
        let media = cost["frames"]["media_seconds"].as_f64().unwrap();
        assert!((3.8..=4.0).contains(&media), "{media}");
        let each = cost["frames"]["joules_per_frame"].as_f64().unwrap();
        assert!((each * 100.0 - cost["joules"].as_f64().unwrap()).abs() < 1e-9);
    }
    let left: Vec<_> = [testkit::cgroup::v2(), testkit::cgroup::v1_cpu()]
        .into_iter()
        .flatten()
        .flat_map(|tree| fs::read_dir(tree).unwrap().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("wattcast-exec-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A Docker that lies: names of every kind, and the pages stay what they are.
#[test]
fn names_of_quotes_newlines_and_four_kilobytes_are_bounded_labels() {
    let _cpus = hold(Resource::Cpus);
    if !is_root() {
        skip!("needs root");
    }
    or_skip!(ebpf());
    let tree = testkit::cgroup::v2().unwrap();
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
                    let asked = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let body = if asked.contains("/version") {
                        r#"{"ApiVersion":"1.41","Version":"20"}"#.to_owned()
                    } else if asked.contains("/containers/") {
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
    let cgroup = testkit::cgroup::Cgroup::create(&tree, &format!("docker-{id}.scope")).unwrap();
    let mut command = Command::new("sh");
    cgroup.enter(&mut command).unwrap();
    let mut burner = command.args(["-c", "while :; do :; done"]).spawn().unwrap();
    eventually(15.0, "the name is there", || probe.fresh().all("wattcast_container_label_info").count() == 1);
    let page = probe.fresh();
    let names: BTreeMap<&str, usize> = page
        .all("wattcast_container_power_watts")
        .flat_map(|sample| [sample.label("container"), sample.label("image")])
        .map(|label| (label, label.chars().count()))
        .collect();
    println!("{names:?}");
    assert!(names.keys().any(|name| name.starts_with("a \"b\"")), "{names:?}");
    assert!(names.iter().all(|(label, length)| *length <= 128 && !label.contains('\n')), "{names:?}");
    let text = probe.client.text("/metrics").unwrap();
    assert_eq!(exporter::page::faults(&text), Vec::<String>::new());
    assert_lints(&text);
    let _ = burner.kill();
    let _ = burner.wait();
}
