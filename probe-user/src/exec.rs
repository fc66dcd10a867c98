//! `exec`: runs a command in a cgroup of its own, and says what it cost. What `perf stat` is for time.
//!
//! The counters are read before the command begins and after it has ended, and once a tick meanwhile, by the same instruments and the
//! same arithmetic as the service. The command keeps the caller's rights; the probe drops its own as soon as the command runs.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        atomic::{AtomicI32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use exporter::progress::Parser;
use serde::Serialize;

use crate::{
    config::Config, containers::tree::Trees, cpu::hierarchy, privileges, sampler::Sampler, snapshot::Snapshot, start,
    window::seconds,
};

/// Without a daemon that keeps it awake, a GPU's driver takes a second or two to open.
const DRIVERS_OPEN: Duration = Duration::from_secs(5);

/// What a command is asked for.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The program and its arguments.
    pub command: &'a [OsString],
    /// Money for a kilowatt hour, and in what.
    pub price: f64,
    /// ISO 4217.
    pub currency: &'a str,
}

/// What one zone's joules came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZoneCost {
    /// Package index; `all` for the machine.
    pub package: String,
    /// `package`, `dram`, …
    pub zone: &'static str,
    /// How they were obtained; `model` is no measurement.
    pub source: &'static str,
    /// Dynamic joules of the command.
    pub joules: f64,
    /// By how much they may be off; absent where nobody can say.
    pub uncertainty_joules: Option<f64>,
    /// What the machine used altogether, and what of it was idle.
    pub machine_joules: f64,
    /// As above.
    pub idle_joules: f64,
}

/// What ffmpeg said of itself at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Frames {
    /// Frames of its first video stream.
    pub frames: u64,
    /// Frames a second of the clock on the wall.
    pub fps: f64,
    /// Left out.
    pub dropped: u64,
    /// Shown twice.
    pub duplicated: u64,
    /// Length of what it made.
    pub media_seconds: f64,
    /// Joules of all zones for each frame; absent without joules or frames.
    pub joules_per_frame: Option<f64>,
    /// For each second of media.
    pub joules_per_media_second: Option<f64>,
}

/// What a command cost.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Its program, without arguments: those may hold secrets.
    pub program: String,
    /// As a shell would say it.
    pub exit_code: i32,
    /// On the wall.
    pub seconds: f64,
    /// Of all its processes.
    pub cpu_seconds: f64,
    /// Runnable and not running; absent where it is not counted.
    pub runqueue_wait_seconds: Option<f64>,
    /// By zone; empty where nothing gives joules.
    pub zones: Vec<ZoneCost>,
    /// Of all accounting roots.
    pub joules: Option<f64>,
    /// As above.
    pub uncertainty_joules: Option<f64>,
    /// Mean, dynamic.
    pub watts: Option<f64>,
    /// Watt hours.
    pub watt_hours: Option<f64>,
    /// At the price.
    pub money: Option<f64>,
    /// ISO 4217, and for how much a kilowatt hour.
    pub currency: String,
    /// As above.
    pub price_per_kwh: f64,
    /// Of ffmpeg, when it reported to us.
    pub frames: Option<Frames>,
    /// What the reader must know of the figures.
    pub notes: Vec<String>,
}

/// Runs the command, and gives what it cost.
///
/// # Errors
/// When nothing can be opened, no cgroup made, or the command not started.
pub fn run(config: &Config, asked: &Asked<'_>) -> Result<Cost> {
    let (program, arguments) = asked.command.split_first().context("give a command after --")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let mut opened = start::open(config)?;
    let home = Home::create(&config.paths.cgroupfs)?;

    let ffmpeg = Path::new(program).file_name().is_some_and(|name| is_ffmpeg(&name.to_string_lossy()));
    let reports = arguments.iter().any(|word| word == "-progress");
    let pipe = if ffmpeg && !reports { Some(pipe()?) } else { None };
    let mut command = Command::new(program);
    if let Some((_, write)) = &pipe {
        let descriptor = write.as_raw_fd();
        command.arg("-progress").arg(format!("pipe:{descriptor}"));
        // SAFETY: fcntl with numbers, between fork and exec; the descriptor is open until the child has its own copy.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
    }
    command.args(arguments);
    home.enter(&mut command)?;

    // Capabilities are a thread's: the one that will start the command keeps them until it has, while this one drops its own.
    let (start, told) = mpsc::channel::<()>();
    let (ended, waits) = mpsc::channel();
    let (begun, began) = mpsc::channel();
    let (waited, status) = mpsc::channel();
    let (name, left) = (home.name.clone(), home.dirs.clone());
    let waiter = thread::Builder::new().name("command".into()).spawn(move || {
        if told.recv().is_err() {
            return;
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = begun.send(Err(error));
                return;
            }
        };
        drop(command);
        // What is left to this thread is to wait, and to remove the cgroup: nobody may write to the root of the tree, its owner included.
        let dropped = privileges::keep_only(&[caps::Capability::CAP_DAC_OVERRIDE].into()).map_err(io::Error::other);
        let _ = begun.send(dropped.map(|()| child.id()));
        let _ = ended.send(has_ended(child.id()));
        // Until it is waited for its number is nobody else's: a signal that is on its way finds it, or nobody.
        let _ = told.recv();
        let _ = waited.send(child.wait());
        // After the last reading, or when there is nobody to read.
        let _ = told.recv();
        drop(home);
    })?;
    let (cpu, jobs) = opened.kernel_side();
    privileges::drop_all(cpu, jobs).context("cannot drop the privileges of the start")?;
    let mut sampler = Sampler::new(opened.start());
    sampler.settle(DRIVERS_OPEN);
    // The point that everything counts from: the cgroup is there, and empty.
    let first = sampler.tick().unwrap_or_default();
    stay();
    pass_on_termination();
    let clock = Instant::now();
    let _ = start.send(());
    let pid = began.recv()?.with_context(|| format!("cannot start {}", Path::new(program).display()))?;
    pass_on_to(libc::pid_t::try_from(pid)?);
    let frames = pipe.map(|(read, write)| {
        drop(write);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || progress(read, &tell));
        told
    });
    watch(&waits, config.tick(), &mut sampler)?;
    let wall = clock.elapsed();
    // Before it is waited for.
    pass_no_more();
    let _ = start.send(());
    let status = status.recv()??;
    let last = sampler.tick().unwrap_or_default();
    let left = processes(&left);
    drop(start);
    let _ = waiter.join();
    // Whoever has inherited the pipe may hold it for ever: what was said up to now is what ffmpeg said at its end.
    let frames = frames.and_then(|told| {
        let mut last = None;
        while let Ok(frames) = told.recv_timeout(Duration::from_millis(200)) {
            last = Some(frames);
        }
        last
    });
    let mut cost = cost(asked, program, status, wall, &first, &last, &name);
    if left > 0 {
        cost.notes.push(format!("{left} of its processes still run; what they use from now on is not in here"));
    }
    if ffmpeg && reports {
        cost.notes.push("its -progress goes elsewhere, so its frames are not known here".to_owned());
    }
    cost.frames = frames.map(|mut frames| {
        let per = |of: f64| cost.joules.filter(|_| of > 0.0).map(|joules| joules / of);
        #[expect(clippy::cast_precision_loss, reason = "a count, for output")]
        let count = frames.frames as f64;
        frames.fps = count / wall.as_secs_f64().max(1e-9);
        frames.joules_per_frame = per(count);
        frames.joules_per_media_second = per(frames.media_seconds);
        frames
    });
    Ok(cost)
}

/// The terminal sends Ctrl-C to the command too; we stay to tell what it cost. Before the command begins, which gets the default back.
fn stay() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the handler does nothing. A handler, and not SIG_IGN, because exec resets handlers and keeps what is ignored.
        unsafe { libc::signal(signal, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// Waits until our child has ended, and leaves it to be waited for.
fn has_ended(pid: u32) -> io::Result<()> {
    loop {
        // SAFETY: all zero is a valid one.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: our child's number, and ours to be written.
        if unsafe { libc::waitid(libc::P_PID, pid, &raw mut found, libc::WEXITED | libc::WNOWAIT) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Ticks until the command has ended.
fn watch(waits: &mpsc::Receiver<io::Result<()>>, tick: Duration, sampler: &mut Sampler) -> Result<()> {
    let mut due = Instant::now() + tick;
    loop {
        match waits.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(ended) => return Ok(ended?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                sampler.tick();
                due = (due + tick).max(Instant::now());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("nobody waits for the command any more"),
        }
    }
}

/// `ffmpeg`, `ffmpeg7`, `ffmpeg-7.1`; not `ffmpegthumbnailer`, which knows no `-progress`.
fn is_ffmpeg(name: &str) -> bool {
    let rest = name.strip_prefix("ffmpeg").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    rest.is_some_and(|rest| {
        rest.is_empty() && !name.ends_with('-')
            || !rest.is_empty() && rest.chars().all(|character| character.is_ascii_digit() || character == '.')
    })
}

static COMMAND: AtomicI32 = AtomicI32::new(0);
/// A signal that came before there was a command.
static EARLY: AtomicI32 = AtomicI32::new(0);

/// SIGTERM and SIGHUP go to the command; we end when it does.
fn pass_on_termination() {
    extern "C" fn pass(signal: libc::c_int) {
        EARLY.store(signal, Ordering::SeqCst);
        let command = COMMAND.load(Ordering::SeqCst);
        if command > 0 {
            // SAFETY: kill may be called in a handler; the command is our child, and not waited for while it stands there.
            unsafe { libc::kill(command, signal) };
        }
    }
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only calls what may be called in one.
        unsafe { libc::signal(signal, pass as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// The command is there; it gets what came before, too.
fn pass_on_to(pid: libc::pid_t) {
    COMMAND.store(pid, Ordering::SeqCst);
    let early = EARLY.load(Ordering::SeqCst);
    if early != 0 {
        // SAFETY: our child, which is not waited for.
        unsafe { libc::kill(pid, early) };
    }
}

/// The command has ended: signals are for us again.
fn pass_no_more() {
    COMMAND.store(0, Ordering::SeqCst);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the default is no handler of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn cost(
    asked: &Asked<'_>,
    program: &OsString,
    status: ExitStatus,
    wall: Duration,
    first: &Snapshot,
    last: &Snapshot,
    name: &str,
) -> Cost {
    let row = last.containers.iter().find(|row| row.container.name == name);
    let cpu_ns = row.map_or(0, |row| row.cpu.iter().fold(0, |sum: u64, share| sum.saturating_add(share.ns())));
    let wait_ns = row.and_then(|row| row.queue).map(|queue| queue.wait_ns);
    let in_seconds = |ns: u64| seconds(i64::try_from(ns).unwrap_or(i64::MAX));
    let mut notes = Vec::new();
    let zones = match last.ring.window(seconds(first.unix_ns), seconds(last.unix_ns)) {
        Ok(answer) => {
            let own = answer.containers.iter().find(|container| container.container == name);
            answer
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
        Err(refusal) => {
            notes.push(format!("no joules: {refusal}"));
            Vec::new()
        }
    };
    let mut cost = Cost {
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
        currency: asked.currency.to_owned(),
        price_per_kwh: asked.price,
        frames: None,
        notes,
    };
    if cost.zones.is_empty() {
        cost.uncertainty_joules = None;
    }
    cost.watts = cost.joules.map(|joules| joules / cost.seconds.max(1e-9));
    cost.watt_hours = cost.joules.map(|joules| joules / 3600.0);
    cost.money = cost.watt_hours.map(|hours| hours / 1000.0 * asked.price);
    let of_gpus = |zone: &&ZoneCost| zone.zone == "gpu";
    let of_machine = cost.zones.iter().filter(|zone| !of_gpus(zone));
    if cost.zones.iter().any(|zone| zone.source == "fake") {
        cost.notes.push("the GPU is FAKE: nothing of its joules was measured".to_owned());
    }
    if cost.zones.iter().filter(of_gpus).any(|zone| zone.joules > 0.0 && zone.idle_joules == 0.0) {
        cost.notes.push(
            "what the GPU uses at rest is not known yet, so it is in the joules of who used it; a probe that runs for a while learns it"
                .to_owned(),
        );
    }
    if cost.zones.iter().any(|zone| zone.source == "model") {
        cost.notes.push(
            "the package's joules are calculated from CPU use, not measured: see wattcast-probe doctor".to_owned(),
        );
    } else if of_machine.clone().next().is_some() && of_machine.clone().all(|zone| zone.idle_joules == 0.0) {
        cost.notes.push(
            "the idle power of this machine is not known yet, so idle is shared among all who ran; a probe that runs for a while learns it (--state.dir)"
                .to_owned(),
        );
    }
    if row.is_none() {
        cost.notes.push("it ran too short to be seen, or CPU time is not counted here".to_owned());
    }
    cost
}

impl Cost {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines =
            vec![format!("\nwattcast: {} ended with {} after {:.3} s\n", self.program, self.exit_code, self.seconds)];
        let mut line = |head: &str, text: String| lines.push(format!("  {head:<8}{text}\n"));
        // A GPU that it did not use says nothing of it.
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
                    if zone.zone == "gpu" { "all of it" } else { "the machine" },
                ),
            );
        }
        if let (Some(watts), Some(hours), Some(money)) = (self.watts, self.watt_hours, self.money) {
            let (price, currency) = (self.price_per_kwh, &self.currency);
            line(
                "cost",
                format!("{watts:.2} W mean, {hours:.6} Wh, {money:.8} {currency} at {price} {currency} a kWh"),
            );
        }
        let wait =
            self.runqueue_wait_seconds.map_or_else(String::new, |wait| format!("; waited {wait:.3} s for a CPU"));
        line(
            "CPU",
            format!("{:.3} s, {:.2} CPUs busy{wait}", self.cpu_seconds, self.cpu_seconds / self.seconds.max(1e-9)),
        );
        if let Some(frames) = &self.frames {
            line(
                "frames",
                format!(
                    "{}, {:.1} a second, {} dropped, {} duplicated, {:.3} s of media",
                    frames.frames, frames.fps, frames.dropped, frames.duplicated, frames.media_seconds
                ),
            );
            if let (Some(frame), Some(second)) = (frames.joules_per_frame, frames.joules_per_media_second) {
                line("", format!("{frame:.6} J a frame, {second:.3} J a second of media"));
            }
        }
        for note in &self.notes {
            line("note", note.clone());
        }
        lines.concat()
    }

    /// For programs: one line.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// The command's cgroup, in every tree that counts CPU time. It goes when this is dropped, unless somebody is left in it.
struct Home {
    name: String,
    dirs: Vec<PathBuf>,
}

impl Home {
    fn create(cgroupfs: &Path) -> Result<Self> {
        let trees = Trees::find(cgroupfs).context("a command needs a cgroup of its own")?;
        let mut this = Self { name: format!("wattcast-exec-{}", std::process::id()), dirs: Vec::new() };
        // The v2 leaf is who is counted; v1 only where there is no v2.
        let root = trees.root(hierarchy::V2).or_else(|| trees.root(hierarchy::V1_CPU)).context("no cgroup tree")?;
        let dir = root.join(&this.name);
        fs::create_dir(&dir).with_context(|| {
            format!(
                "cannot make the cgroup {}. Run as root; in a container, with the host's cgroup tree mounted to write",
                dir.display()
            )
        })?;
        this.dirs.push(dir);
        Ok(this)
    }

    fn enter(&self, command: &mut Command) -> Result<()> {
        for dir in &self.dirs {
            let procs = OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
            // SAFETY: one write of a literal to a descriptor that was opened before the fork.
            unsafe {
                command.pre_exec(move || (&procs).write_all(b"0"));
            }
        }
        Ok(())
    }
}

/// How many processes are left in a cgroup.
fn processes(dirs: &[PathBuf]) -> usize {
    let procs = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count();
    dirs.iter().map(procs).max().unwrap_or(0)
}

impl Drop for Home {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // Busy means that a process of the command lives on; it keeps its cgroup.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error()).context("no pipe");
    }
    // SAFETY: the kernel just gave them to us, and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Reads ffmpeg's reports to their end, and tells each. Reading never waits for anything, so ffmpeg never waits for us.
fn progress(read: OwnedFd, tell: &mpsc::Sender<Frames>) {
    let (mut pipe, mut parser, mut frames) = (File::from(read), Parser::default(), Frames::default());
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        parser.feed(&buffer[..length], |report| {
            // What one report leaves out has not gone back.
            frames.frames = report.frames.unwrap_or(frames.frames);
            frames.dropped = report.dropped.unwrap_or(frames.dropped);
            frames.duplicated = report.duplicated.unwrap_or(frames.duplicated);
            if let Some(us) = report.out_time_us {
                frames.media_seconds = seconds(i64::try_from(us.saturating_mul(1000)).unwrap_or(i64::MAX));
            }
            // Nobody to tell means that our report is out.
            let _ = tell.send(frames.clone());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ffmpeg_is_asked_to_report() {
        assert!(["ffmpeg", "ffmpeg7", "ffmpeg-7.1"].into_iter().all(is_ffmpeg));
        assert!(
            !["ffmpegthumbnailer", "ffmpeg-normalize", "ffmpeg-", "ffmpeg2theora", "ffprobe", ""]
                .into_iter()
                .any(is_ffmpeg)
        );
    }
}
