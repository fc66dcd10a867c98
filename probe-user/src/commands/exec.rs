//! `exec`: runs a command in its own cgroup and reports its energy and cost, like `perf stat` does
//! for time.
//!
//! The counters are read before the command starts, once per tick, and after the command has ended,
//! with the same collectors and the same arithmetic as in the service. The command keeps the
//! caller's privileges; the probe drops its own as soon as the command runs.

#![allow(unsafe_code)]

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::{
        atomic::{AtomicI32, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ffmpeg::Parser;
use rustix::{
    io::retry_on_intr,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};
use serde::Serialize;

use crate::{
    cgroup::{hierarchy, tree::Trees},
    config::Config,
    host::privileges,
    sampler::Sampler,
    snapshot::{Snapshot, history::seconds},
    start,
};

/// Maximum time to wait for GPU drivers. Without a persistence daemon a driver takes a second or
/// two to open.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);

/// The command to run, and the price of its energy.
#[derive(Clone, Debug)]
pub struct ExecRequest<'a> {
    /// The program and its arguments.
    pub command: &'a [OsString],
    /// Price of a kilowatt hour.
    pub price: f64,
    /// ISO 4217.
    pub currency: &'a str,
}

/// The energy of the command in one zone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZoneCost {
    /// Package index; `all` for the machine.
    pub package: String,
    /// `package`, `dram`, …
    pub zone: &'static str,
    /// Energy source; `model` is not a measurement.
    pub source: &'static str,
    /// Dynamic energy of the command.
    pub joules: f64,
    /// Uncertainty of `joules`; absent if unknown.
    pub uncertainty_joules: Option<f64>,
    /// Total energy of the zone.
    pub machine_joules: f64,
    /// Idle energy of the zone.
    pub idle_joules: f64,
}

/// Statistics from ffmpeg's progress reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FrameStats {
    /// Frames of the first video stream.
    pub frames: u64,
    /// Frames per second of wall-clock time.
    pub fps: f64,
    pub dropped: u64,
    pub duplicated: u64,
    /// Length of the output.
    pub media_seconds: f64,
    /// Energy of all zones per frame; absent without energy or frames.
    pub joules_per_frame: Option<f64>,
    pub joules_per_media_second: Option<f64>,
}

/// Energy and cost of a command.
#[derive(Clone, Debug, Serialize)]
pub struct CostReport {
    /// The program without arguments, which may contain secrets.
    pub program: String,
    /// The exit code as in a shell: 128 plus the number of the signal that ended the command.
    pub exit_code: i32,
    /// Wall-clock time.
    pub seconds: f64,
    /// CPU time of all processes of the command.
    pub cpu_seconds: f64,
    /// Absent if the tier does not count it.
    pub runqueue_wait_seconds: Option<f64>,
    /// Empty without an energy source.
    pub zones: Vec<ZoneCost>,
    /// Sum of all accounting roots.
    pub joules: Option<f64>,
    pub uncertainty_joules: Option<f64>,
    /// Mean dynamic power.
    pub watts: Option<f64>,
    pub watt_hours: Option<f64>,
    /// Cost of `watt_hours`.
    pub money: Option<f64>,
    /// ISO 4217.
    pub currency: String,
    pub price_per_kwh: f64,
    /// Present if the command was ffmpeg and reported to the probe.
    pub frames: Option<FrameStats>,
    /// Limitations of the values above.
    pub notes: Vec<String>,
}

/// Runs the command, reports its cost, and returns its exit code; 127 when it cannot be started, as
/// shells do.
#[must_use]
pub fn run(config: &Config, request: &ExecRequest<'_>, json: bool, output: Option<&Path>) -> ExitCode {
    run_and_report(config, request, json, output).unwrap_or_else(|error| {
        eprintln!("wattcast-probe: {error:#}");
        ExitCode::from(127)
    })
}

fn run_and_report(config: &Config, request: &ExecRequest<'_>, json: bool, output: Option<&Path>) -> Result<ExitCode> {
    let mut file = output.map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()?;
    let cost = measure(&config.for_one_command(), request)?;
    let text = if json { cost.json() } else { cost.text() };
    // The command has run and its exit code counts, so a report that cannot be written is printed.
    match file.as_mut().map(|file| file.write_all(text.as_bytes())) {
        Some(Ok(())) => {}
        Some(Err(error)) => eprintln!("wattcast-probe: the report cannot be written: {error}\n{text}"),
        None => eprint!("{text}"),
    }
    Ok(ExitCode::from(u8::try_from(cost.exit_code).unwrap_or(1)))
}

/// Runs the command and measures its energy and cost.
///
/// # Errors
/// When no source can be opened, the cgroup cannot be created, or the command cannot be started.
fn measure(config: &Config, request: &ExecRequest<'_>) -> Result<CostReport> {
    let (program, arguments) = request.command.split_first().context("no command; pass it after --")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let mut opened = start::open(config)?;
    let cgroup = CommandCgroup::create(&config.paths.cgroupfs)?;
    let (name, dirs) = (cgroup.name.clone(), cgroup.dirs.clone());

    let ffmpeg = Path::new(program).file_name().is_some_and(|name| is_ffmpeg(&name.to_string_lossy()));
    let reports = arguments.iter().any(|word| word == "-progress");
    let mut command = Command::new(program);
    let pipe = if ffmpeg && !reports { Some(report_to_pipe(&mut command)?) } else { None };
    command.args(arguments);
    cgroup.enter(&mut command)?;
    let command = CommandThread::new(command, cgroup)?;
    privileges::drop_all(opened.trial_reading()).context("cannot drop the privileges of the start")?;
    let mut sampler = Sampler::new(opened.start());
    sampler.wait_for_gpus(DRIVER_TIMEOUT);
    // The baseline: the cgroup exists and is empty.
    let first = sampler.tick().unwrap_or_default();
    ignore_interrupts();
    install_forwarding_handlers();
    let clock = Instant::now();
    let pid = command.start().with_context(|| format!("cannot start {}", Path::new(program).display()))?;
    forward_signals_to(libc::pid_t::try_from(pid)?);
    let frames = pipe.map(|(read, write)| {
        drop(write);
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || read_progress(read, &sender));
        reports
    });
    tick_until_exit(&command.exited, config.tick(), &mut sampler)?;
    let wall = clock.elapsed();
    // Signals must not be forwarded after the child was waited for.
    stop_forwarding();
    let status = command.wait()?;
    let last = sampler.tick().unwrap_or_default();
    let left = count_processes(&dirs);
    command.remove_cgroup();
    let mut cost = cost_report(request, program, status, wall, &first, &last, &name);
    if left > 0 {
        cost.notes.push(format!("{left} processes of the command still run; their further use is not included"));
    }
    if ffmpeg && reports {
        cost.notes.push("frames are unknown because the command has its own -progress".to_owned());
    }
    cost.frames = frames.and_then(|reports| last_report(&reports)).map(|mut frames| {
        let per = |unit: f64| cost.joules.filter(|_| unit > 0.0).map(|joules| joules / unit);
        #[expect(clippy::cast_precision_loss, reason = "a count, for output")]
        let count = frames.frames as f64;
        frames.fps = count / wall.as_secs_f64().max(1e-9);
        frames.joules_per_frame = per(count);
        frames.joules_per_media_second = per(frames.media_seconds);
        frames
    });
    Ok(cost)
}

/// Lets ffmpeg write its reports to a pipe, whose ends are returned.
fn report_to_pipe(command: &mut Command) -> Result<(PipeReader, PipeWriter)> {
    let (read, write) = io::pipe().context("cannot create a pipe")?;
    let descriptor = write.as_raw_fd();
    command.arg("-progress").arg(format!("pipe:{descriptor}"));
    // SAFETY: fcntl is async-signal-safe; the descriptor stays open until the child has its own
    // copy.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(descriptor, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    Ok((read, write))
}

/// The last report of ffmpeg. A process that inherited the pipe may keep it open for ever, so the
/// wait has a timeout.
fn last_report(reports: &Receiver<FrameStats>) -> Option<FrameStats> {
    let mut last = None;
    while let Ok(frames) = reports.recv_timeout(Duration::from_millis(200)) {
        last = Some(frames);
    }
    last
}

/// The thread that starts the command. Capabilities belong to a thread: this one keeps them until
/// the command has started, while the main thread has dropped its own.
struct CommandThread {
    next_step: Sender<()>,
    started: Receiver<io::Result<u32>>,
    exited: Receiver<io::Result<()>>,
    status: Receiver<io::Result<ExitStatus>>,
    thread: JoinHandle<()>,
}

impl CommandThread {
    fn new(mut command: Command, cgroup: CommandCgroup) -> io::Result<Self> {
        let (proceed, next_step) = mpsc::channel::<()>();
        let (exit_sender, exited) = mpsc::channel();
        let (pid_sender, started) = mpsc::channel();
        let (status_sender, status) = mpsc::channel();
        let thread = thread::Builder::new().name("command".into()).spawn(move || {
            if next_step.recv().is_err() {
                return;
            }
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = pid_sender.send(Err(error));
                    return;
                }
            };
            drop(command);
            // This thread still has to remove the cgroup. The root of the tree is read-only even
            // for its owner.
            let dropped = privileges::keep_only(&[caps::Capability::CAP_DAC_OVERRIDE].into()).map_err(io::Error::other);
            let _ = pid_sender.send(dropped.map(|()| child.id()));
            let _ = exit_sender.send(wait_for_exit(Pid::from_child(&child)));
            // The pid is not reused before the child is waited for, so a signal in flight cannot
            // reach another process.
            let _ = next_step.recv();
            let _ = status_sender.send(child.wait());
            // The cgroup is removed after the last reading, or when the main thread has failed.
            let _ = next_step.recv();
            drop(cgroup);
        })?;
        Ok(Self { next_step: proceed, started, exited, status, thread })
    }

    /// Starts the command; returns its pid.
    fn start(&self) -> Result<u32> {
        let _ = self.next_step.send(());
        Ok(self.started.recv()??)
    }

    /// Waits for the command, which has exited.
    fn wait(&self) -> Result<ExitStatus> {
        let _ = self.next_step.send(());
        Ok(self.status.recv()??)
    }

    fn remove_cgroup(self) {
        drop(self.next_step);
        let _ = self.thread.join();
    }
}

/// Ignores Ctrl-C, which the terminal also sends to the command, so that the cost is reported. Call
/// this before the command starts; exec resets the handlers for the command.
fn ignore_interrupts() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the handler does nothing. It is a handler instead of SIG_IGN because exec would
        // keep the latter.
        unsafe { libc::signal(signal, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Waits until the child has ended, without reaping it.
fn wait_for_exit(pid: Pid) -> io::Result<()> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(pid), options))?;
    Ok(())
}

/// Ticks until the command has ended.
fn tick_until_exit(exited: &Receiver<io::Result<()>>, tick: Duration, sampler: &mut Sampler) -> Result<()> {
    let mut due = Instant::now() + tick;
    loop {
        match exited.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(result) => return Ok(result?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                sampler.tick();
                due = (due + tick).max(Instant::now());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the thread that waits for the command has ended"),
        }
    }
}

/// True for `ffmpeg`, `ffmpeg7`, `ffmpeg-7.1`; false for `ffmpegthumbnailer`, which does not
/// support `-progress`.
fn is_ffmpeg(name: &str) -> bool {
    let rest = name.strip_prefix("ffmpeg").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    rest.is_some_and(|rest| {
        rest.is_empty() && !name.ends_with('-')
            || !rest.is_empty() && rest.chars().all(|character| character.is_ascii_digit() || character == '.')
    })
}

static COMMAND_PID: AtomicI32 = AtomicI32::new(0);
/// The last signal received; it may have arrived before the command was started.
static PENDING_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Forwards SIGTERM and SIGHUP to the command; the probe ends when the command does.
fn install_forwarding_handlers() {
    extern "C" fn pass(signal: libc::c_int) {
        PENDING_SIGNAL.store(signal, Ordering::SeqCst);
        let command = COMMAND_PID.load(Ordering::SeqCst);
        if command > 0 {
            // SAFETY: kill is async-signal-safe; the pid is our child's, which is not reaped while
            // COMMAND_PID is set.
            unsafe { libc::kill(command, signal) };
        }
    }
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler uses only async-signal-safe operations.
        unsafe { libc::signal(signal, pass as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Sets the pid of the command, and forwards a signal that arrived before.
fn forward_signals_to(pid: libc::pid_t) {
    COMMAND_PID.store(pid, Ordering::SeqCst);
    let pending = PENDING_SIGNAL.load(Ordering::SeqCst);
    if pending != 0 {
        // SAFETY: the pid is our child's, which is not reaped yet.
        unsafe { libc::kill(pid, pending) };
    }
}

/// Restores the default signal handling after the command has ended.
fn stop_forwarding() {
    COMMAND_PID.store(0, Ordering::SeqCst);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_DFL is a valid handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn cost_report(
    request: &ExecRequest<'_>,
    program: &OsString,
    status: ExitStatus,
    wall: Duration,
    first: &Snapshot,
    last: &Snapshot,
    name: &str,
) -> CostReport {
    let row = last.containers.iter().find(|row| row.container.name == name);
    let cpu_ns = row.map_or(0, |row| row.cpu.iter().fold(0, |sum: u64, share| sum.saturating_add(share.ns())));
    let wait_ns = row.and_then(|row| row.queue).map(|queue| queue.wait_ns);
    let in_seconds = |ns: u64| seconds(i64::try_from(ns).unwrap_or(i64::MAX));
    let mut notes = Vec::new();
    let zones = match last.ring.window(seconds(first.unix_ns), seconds(last.unix_ns)) {
        Ok(window) => {
            let own = window.containers.iter().find(|container| container.container == name);
            window
                .accounts
                .iter()
                .map(|account| {
                    let energy = own.into_iter().flat_map(|own| &own.energy);
                    let energy =
                        energy.into_iter().find(|sum| sum.package == account.package && sum.zone == account.zone);
                    ZoneCost {
                        package: account.package.clone(),
                        zone: account.zone,
                        source: account.source,
                        joules: energy.map_or(0.0, |sum| sum.joules),
                        uncertainty_joules: energy
                            .map_or(Some(0.0), |sum| sum.uncertainty_joules)
                            .filter(|_| account.source != "model"),
                        machine_joules: account.measured_joules,
                        idle_joules: account.idle_joules,
                    }
                })
                .collect()
        }
        Err(error) => {
            notes.push(format!("no energy: {error}"));
            Vec::new()
        }
    };
    let mut cost = CostReport {
        program: Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        exit_code: status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1),
        seconds: wall.as_secs_f64(),
        cpu_seconds: in_seconds(cpu_ns),
        runqueue_wait_seconds: wait_ns.map(in_seconds),
        joules: (!zones.is_empty()).then(|| zones.iter().map(|zone: &ZoneCost| zone.joules).sum()),
        uncertainty_joules: zones.iter().map(|zone: &ZoneCost| zone.uncertainty_joules).sum(),
        zones,
        watts: None,
        watt_hours: None,
        money: None,
        currency: request.currency.to_owned(),
        price_per_kwh: request.price,
        frames: None,
        notes,
    };
    if cost.zones.is_empty() {
        cost.uncertainty_joules = None;
    }
    cost.watts = cost.joules.map(|joules| joules / cost.seconds.max(1e-9));
    cost.watt_hours = cost.joules.map(|joules| joules / 3600.0);
    cost.money = cost.watt_hours.map(|hours| hours / 1000.0 * request.price);
    let is_gpu = |zone: &&ZoneCost| zone.zone == "gpu";
    let machine_zones = cost.zones.iter().filter(|zone| !is_gpu(zone));
    if cost.zones.iter().any(|zone| zone.source == "fake") {
        cost.notes.push("the GPU is FAKE: its energy was not measured".to_owned());
    }
    if cost.zones.iter().filter(is_gpu).any(|zone| zone.joules > 0.0 && zone.idle_joules == 0.0) {
        cost.notes.push(
            "the idle power of the GPU is unknown, so its idle energy is included; a probe that runs for a while learns it"
                .to_owned(),
        );
    }
    if cost.zones.iter().any(|zone| zone.source == "model") {
        cost.notes
            .push("the package's energy is modelled from CPU use, not measured: see wattcast-probe doctor".to_owned());
    } else if machine_zones.clone().next().is_some() && machine_zones.clone().all(|zone| zone.idle_joules == 0.0) {
        cost.notes.push(
            "the idle power of this machine is unknown, so idle energy is shared by all running workloads; a probe that runs for a while learns it (--state.dir)"
                .to_owned(),
        );
    }
    if row.is_none() {
        cost.notes.push("no CPU time was counted: the command was too short, or no tier is available".to_owned());
    }
    cost
}

impl CostReport {
    /// The report for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines =
            vec![format!("\nwattcast: {} ended with {} after {:.3} s\n", self.program, self.exit_code, self.seconds)];
        let mut line = |head: &str, text: String| lines.push(format!("  {head:<8}{text}\n"));
        // GPUs that the command did not use are left out.
        for zone in self.zones.iter().filter(|zone| zone.zone != "gpu" || zone.joules > 0.0) {
            let off = zone.uncertainty_joules.map_or_else(String::new, |off| format!(" ± {off:.3}"));
            let how = match zone.source {
                "model" => "modelled".to_owned(),
                "fake" => "FAKE".to_owned(),
                source => format!("by {source}"),
            };
            let (all, idle) = (zone.machine_joules, zone.idle_joules);
            line(
                "energy",
                format!(
                    "{:.3} J{off}  {} {}, {how}; {} {all:.3} J, of which idle {idle:.3} J",
                    zone.joules,
                    zone.zone,
                    zone.package,
                    if zone.zone == "gpu" { "GPU" } else { "machine" },
                ),
            );
        }
        if let (Some(watts), Some(hours), Some(money)) = (self.watts, self.watt_hours, self.money) {
            let (price, currency) = (self.price_per_kwh, &self.currency);
            line("cost", format!("{watts:.2} W mean, {hours:.6} Wh, {money:.8} {currency} at {price} {currency}/kWh"));
        }
        let wait = self.runqueue_wait_seconds.map_or_else(String::new, |wait| format!("; run-queue wait {wait:.3} s"));
        line(
            "CPU",
            format!("{:.3} s, {:.2} CPUs busy{wait}", self.cpu_seconds, self.cpu_seconds / self.seconds.max(1e-9)),
        );
        if let Some(frames) = &self.frames {
            line(
                "frames",
                format!(
                    "{}, {:.1} fps, {} dropped, {} duplicated, {:.3} s of media",
                    frames.frames, frames.fps, frames.dropped, frames.duplicated, frames.media_seconds
                ),
            );
            if let (Some(frame), Some(second)) = (frames.joules_per_frame, frames.joules_per_media_second) {
                line("", format!("{frame:.6} J/frame, {second:.3} J per second of media"));
            }
        }
        for note in &self.notes {
            line("note", note.clone());
        }
        lines.concat()
    }

    /// The report for programs: one line.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// The command's cgroup. It is removed on drop unless processes are left in it.
struct CommandCgroup {
    name: String,
    dirs: Vec<PathBuf>,
}

impl CommandCgroup {
    fn create(cgroupfs: &Path) -> Result<Self> {
        let trees = Trees::find(cgroupfs).context("cannot create a cgroup for the command")?;
        let mut this = Self { name: format!("wattcast-exec-{}", std::process::id()), dirs: Vec::new() };
        // CPU time is counted by v2 leaf; v1 is used only without v2.
        let root = trees.root(hierarchy::V2).or_else(|| trees.root(hierarchy::V1_CPU)).context("no cgroup tree")?;
        let dir = root.join(&this.name);
        fs::create_dir(&dir).with_context(|| {
            format!(
                "cannot create the cgroup {}; run as root, in a container with the host's cgroup tree mounted read-write",
                dir.display()
            )
        })?;
        this.dirs.push(dir);
        Ok(this)
    }

    fn enter(&self, command: &mut Command) -> Result<()> {
        for dir in &self.dirs {
            let procs = OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
            // SAFETY: write is async-signal-safe; the descriptor was opened before the fork.
            unsafe {
                command.pre_exec(move || (&procs).write_all(b"0"));
            }
        }
        Ok(())
    }
}

/// Number of processes in a cgroup.
fn count_processes(dirs: &[PathBuf]) -> usize {
    let procs = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count();
    dirs.iter().map(procs).max().unwrap_or(0)
}

impl Drop for CommandCgroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // EBUSY means that a process of the command still runs; it keeps its cgroup.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Reads ffmpeg's reports up to the end and sends each. Nothing here blocks, so ffmpeg is never
/// delayed.
fn read_progress(mut pipe: PipeReader, sender: &Sender<FrameStats>) {
    let (mut parser, mut frames) = (Parser::default(), FrameStats::default());
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        parser.feed(&buffer[..length], |report| {
            // A value that is missing in a report has not changed.
            frames.frames = report.frames.unwrap_or(frames.frames);
            frames.dropped = report.dropped.unwrap_or(frames.dropped);
            frames.duplicated = report.duplicated.unwrap_or(frames.duplicated);
            if let Some(us) = report.out_time_us {
                frames.media_seconds = seconds(i64::try_from(us.saturating_mul(1000)).unwrap_or(i64::MAX));
            }
            // This fails only when the report is already printed.
            let _ = sender.send(frames.clone());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ffmpeg_gets_a_progress_option() {
        assert!(["ffmpeg", "ffmpeg7", "ffmpeg-7.1"].into_iter().all(is_ffmpeg));
        assert!(
            !["ffmpegthumbnailer", "ffmpeg-normalize", "ffmpeg-", "ffmpeg2theora", "ffprobe", ""]
                .into_iter()
                .any(is_ffmpeg)
        );
    }
}
