//! `exec`: runs a command in its own cgroup and reports its energy and cost, like `perf stat` does
//! for time.
//!
//! The counters are read before the command starts, once per tick, and after the command has ended,
//! with the same collectors and the same arithmetic as in the service. The command keeps the
//! caller's privileges; the probe drops its own as soon as the command runs.
//!
//! The command's rows are those of its cgroup and of all cgroups below it. What they lack is found
//! by two counts of the kernel, that of the cgroup and that of `wait4`, and is said in the report.

#![allow(unsafe_code)]

mod cgroup;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::OpenOptionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
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

use self::cgroup::{CommandCgroup, Leftover};
use crate::{
    config::Config,
    host::{availability::SourceState, privileges},
    sampler::Sampler,
    snapshot::{
        ContainerRow, Snapshot,
        history::{AccountSum, ContainerSum, EnergySum, seconds},
    },
    start,
};

/// Maximum time to wait for GPU drivers. Without a persistence daemon a driver takes a second or
/// two to open.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of checks for a signal during that time.
const DRIVER_STEP: Duration = Duration::from_millis(100);

/// Two counts of CPU time differ by the run of the command before it is in its cgroup, and by what
/// runs between two readings: up to this many seconds, or this part of the time.
const CPU_TOLERANCE: (f64, f64) = (0.05, 0.02);

/// Programs that let others run their work, outside of the command's cgroup.
const CLIENTS: [&str; 8] = ["docker", "podman", "nerdctl", "ctr", "crictl", "kubectl", "systemd-run", "machinectl"];

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
    /// True if the counter is simulated: nothing was measured.
    pub simulated: bool,
    /// Dynamic energy of the command; absent if its cgroup has no row.
    pub joules: Option<f64>,
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
    /// CPU time of the command's cgroup and of all cgroups below it, as the kernel counts it.
    pub cpu_seconds: f64,
    /// The part of `cpu_seconds` that is in no row, so that `joules` lacks its energy; absent if
    /// the kernel's count cannot be read.
    pub unattributed_cpu_seconds: Option<f64>,
    /// CPU time of processes that left the cgroup, at least; it is in neither figure above.
    pub outside_cpu_seconds: Option<f64>,
    /// Absent if the tier does not count it.
    pub runqueue_wait_seconds: Option<f64>,
    /// Empty without an energy source.
    pub zones: Vec<ZoneCost>,
    /// Sum of all accounting roots; absent if it is unknown, with the reason in `notes`.
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

/// A signal ended the program before its command started.
#[derive(Debug, thiserror::Error)]
#[error("ended by signal {0} before the command started")]
struct EndedAtStart(libc::c_int);

/// Runs the command, reports its cost, and returns its exit code; 127 when it cannot be started, as
/// shells do, and 128 plus the number of the signal that came before its start.
#[must_use]
pub fn run(config: &Config, request: &ExecRequest<'_>, json: bool, output: Option<&Path>) -> ExitCode {
    run_and_report(config, request, json, output).unwrap_or_else(|error| {
        eprintln!("wattcast-probe: {error:#}");
        let signal = error.downcast_ref::<EndedAtStart>().map(|EndedAtStart(signal)| 128 + signal);
        ExitCode::from(signal.and_then(|code| u8::try_from(code).ok()).unwrap_or(127))
    })
}

/// Creates or truncates the file of the report.
///
/// It is written as root, often in a directory where others may write: a link there must not select
/// another file. The names of the shell's own descriptors are links by nature.
fn create_report(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let descriptor = ["/dev/stdout", "/dev/stderr"].iter().any(|name| path == Path::new(name))
        || ["/dev/fd", "/proc/self/fd"].iter().any(|dir| path.parent() == Some(Path::new(dir)));
    if !descriptor {
        options.custom_flags(libc::O_NOFOLLOW);
    }
    options.open(path).map_err(|error| {
        if error.raw_os_error() == Some(libc::ELOOP) {
            anyhow::anyhow!("{} is a symbolic link, which is not followed; name the file itself", path.display())
        } else {
            anyhow::anyhow!("cannot write {}: {error}; name another file with --output", path.display())
        }
    })
}

fn run_and_report(config: &Config, request: &ExecRequest<'_>, json: bool, output: Option<&Path>) -> Result<ExitCode> {
    let mut file = output.map(create_report).transpose()?;
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
    // From here on a signal must not end the program before the cgroup is removed. Declared first,
    // so that the signals act again only after that.
    let _signals = CaughtSignals::new();
    let cgroup = CommandCgroup::create(&config.paths.cgroupfs)?;
    let location = cgroup.location().clone();

    let ffmpeg = Path::new(program).file_name().is_some_and(|name| is_ffmpeg(&name.to_string_lossy()));
    let reports = arguments.iter().any(|word| word == "-progress");
    let mut command = Command::new(program);
    let pipe = if ffmpeg && !reports { Some(report_to_pipe(&mut command)?) } else { None };
    command.args(arguments);
    cgroup.enter(&mut command)?;
    let command = CommandThread::new(command, cgroup)?;
    privileges::drop_all(opened.trial_reading()).context("cannot drop the privileges of the start")?;
    let mut sampler = Sampler::new(opened.start());
    let drivers = Instant::now() + DRIVER_TIMEOUT;
    while Instant::now() < drivers {
        end_if_signalled()?;
        let began = Instant::now();
        sampler.wait_for_gpus(DRIVER_STEP);
        if began.elapsed() < DRIVER_STEP / 2 {
            // It did not wait, so the drivers are open, or there are none.
            break;
        }
    }
    // The baseline: the cgroup exists and is empty.
    let first = sampler.tick().unwrap_or_default();
    end_if_signalled()?;
    let reaped_before = reaped_cpu();
    let clock = Instant::now();
    let pid = command.start().with_context(|| format!("cannot start {}", Path::new(program).display()))?;
    forward_signals_to(libc::pid_t::try_from(pid)?);
    let frames = pipe.map(|(read, write)| {
        drop(write);
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || read_progress(read, &sender));
        reports
    });
    let mut containers = BTreeSet::new();
    tick_until_exit(&command.exited, config.tick(), || {
        sampler.tick();
        location.add_containers(&mut containers);
    })?;
    let wall = clock.elapsed();
    // Signals must not be forwarded after the child was waited for.
    COMMAND_PID.store(ENDED, Ordering::SeqCst);
    let status = command.wait()?;
    let reaped = reaped_cpu().zip(reaped_before).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
    location.add_containers(&mut containers);
    // Before the last tick, so that processes that still run do not make the rows look incomplete.
    let cgroup_cpu = location.cpu_ns().map(nanoseconds_to_seconds);
    let last = sampler.tick().unwrap_or_default();
    let left = command.finish();
    let run = CommandRun {
        status,
        wall,
        first: &first,
        last: &last,
        cgroup: &location.name,
        containers: &containers,
        cgroup_cpu,
        reaped_cpu: reaped,
    };
    let mut cost = cost_report(request, program, &run);
    cost.notes.extend(left.note(&config.paths.procfs));
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
    /// Absent once the thread has to end.
    next_step: Option<Sender<()>>,
    started: Receiver<io::Result<u32>>,
    exited: Receiver<io::Result<()>>,
    status: Receiver<io::Result<ExitStatus>>,
    left: Receiver<Leftover>,
    thread: Option<JoinHandle<()>>,
}

impl CommandThread {
    fn new(mut command: Command, cgroup: CommandCgroup) -> io::Result<Self> {
        let (proceed, next_step) = mpsc::channel::<()>();
        let (exit_sender, exited) = mpsc::channel();
        let (pid_sender, started) = mpsc::channel();
        let (status_sender, status) = mpsc::channel();
        let (left_sender, left) = mpsc::channel();
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
            let _ = left_sender.send(cgroup.remove());
        })?;
        Ok(Self { next_step: Some(proceed), started, exited, status, left, thread: Some(thread) })
    }

    fn proceed(&self) {
        if let Some(next_step) = &self.next_step {
            let _ = next_step.send(());
        }
    }

    /// Starts the command; returns its pid.
    fn start(&self) -> Result<u32> {
        self.proceed();
        Ok(self.started.recv()??)
    }

    /// Waits for the command, which has exited.
    fn wait(&self) -> Result<ExitStatus> {
        self.proceed();
        Ok(self.status.recv()??)
    }

    /// Removes the cgroup; returns what is left of the command.
    fn finish(mut self) -> Leftover {
        self.next_step = None;
        self.left.recv().unwrap_or_default()
    }
}

/// Waits for the thread, so that the program does not end before the cgroup is removed, whatever
/// has failed.
impl Drop for CommandThread {
    fn drop(&mut self) {
        self.next_step = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// CPU time of the children that this process has waited for, and of those that they have waited
/// for, as `wait4` reports it.
fn reaped_cpu() -> Option<Duration> {
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage, which is ours.
    let done = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let time = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_usec).ok()?);
        Some(Duration::from_secs(seconds) + Duration::from_micros(micros))
    };
    if done == 0 { Some(time(usage.ru_utime)? + time(usage.ru_stime)?) } else { None }
}

/// Waits until the child has ended, without reaping it.
fn wait_for_exit(pid: Pid) -> io::Result<()> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    retry_on_intr(|| waitid(WaitId::Pid(pid), options))?;
    Ok(())
}

/// Takes a tick per interval until the command has ended.
fn tick_until_exit(exited: &Receiver<io::Result<()>>, tick: Duration, mut take_tick: impl FnMut()) -> Result<()> {
    let mut due = Instant::now() + tick;
    loop {
        match exited.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(result) => return Ok(result?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                take_tick();
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

/// The process id of the command; 0 before its start.
static COMMAND_PID: AtomicI32 = AtomicI32::new(0);
/// The value of [`COMMAND_PID`] after the end of the command.
const ENDED: libc::pid_t = -1;
/// The last signal received before the command was started.
static PENDING_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The handlers of signals, from before the cgroup is created until after it is removed.
///
/// SIGTERM and SIGHUP are forwarded to the command; the probe ends when the command does. Ctrl-C,
/// which the terminal also sends to the command, is not forwarded. Before the command has started
/// each of them ends the probe, which then removes the cgroup; see [`end_if_signalled`].
struct CaughtSignals;

impl CaughtSignals {
    fn new() -> Self {
        type Handler = extern "C" fn(libc::c_int);
        extern "C" fn pass(signal: libc::c_int) {
            let command = COMMAND_PID.load(Ordering::SeqCst);
            if command > 0 {
                // SAFETY: kill is async-signal-safe; the pid is our child's, which is not reaped
                // while COMMAND_PID is set.
                unsafe { libc::kill(command, signal) };
            } else {
                PENDING_SIGNAL.store(signal, Ordering::SeqCst);
            }
        }
        extern "C" fn interrupted(signal: libc::c_int) {
            if COMMAND_PID.load(Ordering::SeqCst) == 0 {
                PENDING_SIGNAL.store(signal, Ordering::SeqCst);
            }
        }
        let (pass, interrupted) = (pass as Handler, interrupted as Handler);
        for (signal, handler) in
            [(libc::SIGTERM, pass), (libc::SIGHUP, pass), (libc::SIGINT, interrupted), (libc::SIGQUIT, interrupted)]
        {
            // SAFETY: the handlers use only async-signal-safe operations. They are handlers instead
            // of SIG_IGN because exec would keep the latter for the command.
            unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        }
        Self
    }
}

impl Drop for CaughtSignals {
    fn drop(&mut self) {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: SIG_DFL is a valid handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// # Errors
/// When a signal has arrived and the command has not started.
fn end_if_signalled() -> Result<(), EndedAtStart> {
    match PENDING_SIGNAL.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(EndedAtStart(signal)),
    }
}

/// Sets the pid of the command, and forwards a signal that arrived while it was started.
fn forward_signals_to(pid: libc::pid_t) {
    COMMAND_PID.store(pid, Ordering::SeqCst);
    let pending = PENDING_SIGNAL.load(Ordering::SeqCst);
    if pending != 0 {
        // SAFETY: the pid is our child's, which is not reaped yet.
        unsafe { libc::kill(pid, pending) };
    }
}

fn nanoseconds_to_seconds(ns: u64) -> f64 {
    seconds(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// A run of the command.
struct CommandRun<'a> {
    status: ExitStatus,
    wall: Duration,
    /// The tick before the command.
    first: &'a Snapshot,
    /// The tick after it.
    last: &'a Snapshot,
    /// Path of its cgroup from the root of the tree, without the leading slash.
    cgroup: &'a str,
    /// Short ids of the containers below that cgroup.
    containers: &'a BTreeSet<String>,
    /// CPU seconds that the kernel counts for the cgroup and those below it.
    cgroup_cpu: Option<f64>,
    /// CPU seconds of the command and of the descendants that were waited for, in any cgroup.
    reaped_cpu: Option<f64>,
}

impl CommandRun<'_> {
    /// True for the row of the command's cgroup, and for those of cgroups and containers below it.
    fn owns(&self, name: &str, id: &str) -> bool {
        let below = name.strip_prefix(self.cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below || self.containers.contains(id)
    }

    /// Why rows are missing.
    fn missing_reason(&self) -> String {
        let last = self.last;
        let needed = |source: &&SourceState| ["cpu", "cgroups"].contains(&source.source);
        if let Some(problem) = last.sources.iter().filter(needed).find_map(SourceState::problem) {
            problem
        } else if last.cpu.is_none() {
            "CPU time is not counted (--no-collector.cpu)".to_owned()
        } else if last.containers_dropped > 0 {
            format!(
                "the table of containers is full and lacks {} of them (--limit.containers)",
                last.containers_dropped
            )
        } else if last.cpu_overflow_ns > 0 {
            "the kernel's table of cgroups is full".to_owned()
        } else if last.cgroups_unnamed > 0 {
            format!("{} cgroups ended before a tick found their path (--tick)", last.cgroups_unnamed)
        } else if self.cgroup_cpu.is_some_and(|used| used < 0.001) {
            "it used less than a millisecond of CPU time".to_owned()
        } else {
            "no tick found its cgroup".to_owned()
        }
    }
}

/// By how much one count of CPU seconds exceeds another, if by more than counts differ anyway.
fn excess(more: f64, less: f64) -> Option<f64> {
    let (absolute, relative) = CPU_TOLERANCE;
    let by = more - less;
    (by > absolute.max(more * relative)).then_some(by)
}

/// What the rows lack: `counted` are the CPU seconds of all rows, absent without a row.
fn cpu_notes(counted: Option<f64>, cgroup: Option<f64>, reaped: Option<f64>, reason: &str) -> Vec<String> {
    let mut notes = Vec::new();
    match (counted, cgroup) {
        (None, _) => notes.push(format!("the command's energy is unknown, because its cgroup has no row: {reason}")),
        (Some(_), None) => {
            notes.push("the kernel's count of its cgroup cannot be read, so the CPU time may be incomplete".to_owned());
        }
        (Some(counted), Some(cgroup)) => {
            if let Some(by) = excess(cgroup, counted) {
                notes.push(format!(
                    "{by:.3} s of the {cgroup:.3} s of CPU time of its cgroup are in no row, and their energy is not included: {reason}"
                ));
            }
        }
    }
    if let (Some(reaped), Some(cgroup)) = (reaped, cgroup)
        && let Some(by) = excess(reaped, cgroup)
    {
        notes.push(format!(
            "{by:.3} s of CPU time ran outside of its cgroup, because processes of the command moved to another cgroup; their energy is not included"
        ));
    }
    notes
}

/// Energy of the command by zone. `own` are the sums of its rows.
fn zone_costs(accounts: &[AccountSum], own: &[&ContainerSum], simulated: bool) -> Vec<ZoneCost> {
    accounts
        .iter()
        .map(|account| {
            let energy: Vec<&EnergySum> = own
                .iter()
                .flat_map(|own| own.energy.iter())
                .filter(|sum| sum.package == account.package && sum.zone == account.zone)
                .collect();
            let has_row = !own.is_empty();
            ZoneCost {
                package: account.package.clone(),
                zone: account.zone,
                source: account.source,
                simulated: simulated && account.source == "powercap",
                joules: has_row.then(|| energy.iter().map(|sum| sum.joules).sum()),
                // The rows share the counter's error, so their bounds add up.
                uncertainty_joules: energy
                    .iter()
                    .map(|sum| sum.uncertainty_joules)
                    .sum::<Option<f64>>()
                    .filter(|_| has_row && account.source != "model"),
                machine_joules: account.measured_joules,
                idle_joules: account.idle_joules,
            }
        })
        .collect()
}

fn cost_report(request: &ExecRequest<'_>, program: &OsString, run: &CommandRun<'_>) -> CostReport {
    let (first, last) = (run.first, run.last);
    let rows: Vec<&ContainerRow> =
        last.containers.iter().filter(|row| run.owns(&row.container.name, &row.container.id)).collect();
    let waits: Vec<u64> = rows.iter().filter_map(|row| row.queue.map(|queue| queue.wait_ns)).collect();
    let add = |sum: u64, ns: u64| sum.saturating_add(ns);
    let simulated = last.sources.iter().any(|source| source.detail.contains("SIMULATED"));
    let mut notes = Vec::new();
    let (zones, counted) = match last.ring.window(seconds(first.unix_ns), seconds(last.unix_ns)) {
        Ok(window) => {
            let own: Vec<&ContainerSum> =
                window.containers.iter().filter(|sum| run.owns(&sum.container, &sum.id)).collect();
            let counted = own.iter().flat_map(|own| own.cpu.iter()).map(|cpu| cpu.seconds).sum::<f64>();
            for account in window.accounts.iter().filter(|account| account.zone != "gpu") {
                if account.missing_seconds > 0.001 {
                    notes.push(format!(
                        "the {} of package {} gave no energy for {:.3} s, which is not included",
                        account.zone, account.package, account.missing_seconds
                    ));
                }
            }
            if window.accounts.is_empty() {
                notes.push("no energy: no source of energy works here; see wattcast-probe doctor".to_owned());
            }
            (zone_costs(&window.accounts, &own, simulated), (!own.is_empty()).then_some(counted))
        }
        Err(error) => {
            notes.push(format!("no energy: {error}"));
            let ns = rows.iter().flat_map(|row| row.cpu.iter()).map(|share| share.ns()).fold(0, add);
            (Vec::new(), (!rows.is_empty()).then(|| nanoseconds_to_seconds(ns)))
        }
    };
    notes.extend(cpu_notes(counted, run.cgroup_cpu, run.reaped_cpu, &run.missing_reason()));
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if CLIENTS.contains(&&*name) {
        notes.push(format!(
            "what {name} starts outside of the command's cgroup is not included; a running probe shows it by container"
        ));
    }
    let above = |more: Option<f64>, less: Option<f64>| more.zip(less).map(|(more, less)| (more - less).max(0.0));
    let mut cost = CostReport {
        program: name,
        exit_code: run.status.code().or_else(|| run.status.signal().map(|signal| 128 + signal)).unwrap_or(1),
        seconds: run.wall.as_secs_f64(),
        cpu_seconds: run.cgroup_cpu.or(counted).unwrap_or(0.0),
        unattributed_cpu_seconds: above(run.cgroup_cpu, Some(counted.unwrap_or(0.0))),
        outside_cpu_seconds: above(run.reaped_cpu, run.cgroup_cpu),
        runqueue_wait_seconds: (!waits.is_empty()).then(|| nanoseconds_to_seconds(waits.into_iter().fold(0, add))),
        joules: zones.iter().map(|zone| zone.joules).sum::<Option<f64>>().filter(|_| !zones.is_empty()),
        uncertainty_joules: zones.iter().map(|zone| zone.uncertainty_joules).sum(),
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
    if cost.zones.iter().any(|zone| zone.simulated) {
        cost.notes.push("the package's energy is SIMULATED: nothing of it was measured".to_owned());
    }
    let used = |zone: &ZoneCost| zone.joules.is_some_and(|joules| joules > 0.0);
    if cost.zones.iter().filter(is_gpu).any(|zone| used(zone) && zone.idle_joules == 0.0) {
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
        for zone in
            self.zones.iter().filter(|zone| zone.zone != "gpu" || zone.joules.is_some_and(|joules| joules > 0.0))
        {
            let joules = zone.joules.map_or_else(|| "unknown".to_owned(), |joules| format!("{joules:.3} J"));
            let off = zone.uncertainty_joules.map_or_else(String::new, |off| format!(" ± {off:.3}"));
            let how = match zone.source {
                "model" => "modelled".to_owned(),
                "fake" => "FAKE".to_owned(),
                _ if zone.simulated => "SIMULATED".to_owned(),
                source => format!("by {source}"),
            };
            let (all, idle) = (zone.machine_joules, zone.idle_joules);
            line(
                "energy",
                format!(
                    "{joules}{off}  {} {}, {how}; {} {all:.3} J, of which idle {idle:.3} J",
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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::snapshot::history::CpuSum;

    fn sum(container: &str, id: &str, joules: f64, uncertainty_joules: Option<f64>) -> ContainerSum {
        let (package, image) = ("0".to_owned(), String::new());
        ContainerSum {
            container: container.to_owned(),
            id: id.to_owned(),
            image,
            runtime: "cgroup",
            energy: vec![EnergySum {
                package: package.clone(),
                zone: "package",
                source: "powercap",
                joules,
                idle_joules: 0.0,
                edge_error_joules: 0.0,
                uncertainty_joules,
            }],
            cpu: vec![CpuSum { package, seconds: 1.0 }],
        }
    }

    fn account(source: &'static str) -> AccountSum {
        AccountSum {
            package: "0".to_owned(),
            zone: "package",
            source,
            measured_joules: 100.0,
            containers_joules: 0.0,
            retired_joules: 0.0,
            system_joules: 0.0,
            idle_joules: 10.0,
            unattributed_joules: 0.0,
            unsettled_joules: 0.0,
            idle_known: true,
            idle_known_seconds: 1.0,
            edge_error_joules: 0.0,
            missing_seconds: 0.0,
            uncertainty_joules: None,
        }
    }

    #[test]
    fn child_cgroups_and_containers_below_belong_to_the_command() {
        let (first, last) = (Snapshot::default(), Snapshot::default());
        let containers = BTreeSet::from(["0123456789ab".to_owned()]);
        let run = CommandRun {
            status: ExitStatus::from_raw(0),
            wall: Duration::from_secs(1),
            first: &first,
            last: &last,
            cgroup: "wattcast-exec-1",
            containers: &containers,
            cgroup_cpu: Some(0.0),
            reaped_cpu: Some(0.0),
        };
        assert!(run.owns("wattcast-exec-1", "cgroup2:7") && run.owns("wattcast-exec-1/inner/deeper", "cgroup2:8"));
        assert!(run.owns("0123456789ab", "0123456789ab"));
        assert!(!run.owns("wattcast-exec-12", "cgroup2:9") && !run.owns("cam", "ba9876543210"));
    }

    #[test]
    fn energy_of_all_rows_is_summed() {
        let (own, inner) = (sum("a", "1", 1.5, Some(0.25)), sum("a/inner", "2", 2.0, Some(0.5)));
        let zones = zone_costs(&[account("powercap")], &[&own, &inner], false);
        assert_eq!((zones[0].joules, zones[0].uncertainty_joules), (Some(3.5), Some(0.75)));
        let unsure = sum("a/unsure", "3", 2.0, None);
        assert_eq!(zone_costs(&[account("powercap")], &[&own, &unsure], false)[0].uncertainty_joules, None);
    }

    #[test]
    fn energy_without_a_row_is_unknown_and_not_zero() {
        let zones = zone_costs(&[account("powercap")], &[], true);
        assert_eq!((zones[0].joules, zones[0].uncertainty_joules), (None, None));
        let total: Option<f64> = zones.iter().map(|zone| zone.joules).sum();
        assert_eq!(total, None);
        assert_eq!(
            cpu_notes(None, Some(2.0), Some(2.0), "no tick found its cgroup"),
            ["the command's energy is unknown, because its cgroup has no row: no tick found its cgroup"]
        );
    }

    #[test]
    fn missing_cpu_time_is_said_with_its_seconds() {
        assert!(cpu_notes(Some(2.0), Some(2.01), Some(2.03), "").is_empty(), "within the tolerance");
        assert_eq!(
            cpu_notes(Some(0.5), Some(2.0), Some(2.0), "the kernel's table of cgroups is full"),
            [
                "1.500 s of the 2.000 s of CPU time of its cgroup are in no row, and their energy is not included: the kernel's table of cgroups is full"
            ]
        );
        assert_eq!(
            cpu_notes(Some(0.0), Some(0.001), Some(2.0), ""),
            [
                "1.999 s of CPU time ran outside of its cgroup, because processes of the command moved to another cgroup; their energy is not included"
            ]
        );
        assert_eq!(
            cpu_notes(Some(1.0), None, Some(1.0), ""),
            ["the kernel's count of its cgroup cannot be read, so the CPU time may be incomplete"]
        );
    }

    #[test]
    fn simulated_energy_is_labelled() {
        let zones = zone_costs(&[account("powercap"), account("fake")], &[&sum("a", "1", 1.0, None)], true);
        assert!(zones[0].simulated && !zones[1].simulated);
    }

    #[test]
    fn a_report_is_not_written_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, link) = (dir.path().join("precious"), dir.path().join("cost.json"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        assert_eq!(
            create_report(&link).unwrap_err().to_string(),
            format!("{} is a symbolic link, which is not followed; name the file itself", link.display())
        );
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        std::fs::remove_file(&link).unwrap();
        let mode = create_report(&link).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

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
