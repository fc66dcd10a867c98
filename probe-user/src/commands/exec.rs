//! `exec`: runs a command in its own cgroup and reports its energy and cost, like `perf stat` does
//! for time.
//!
//! The counters are read before the command starts, once per tick, and after the command has ended,
//! with the same collectors and the same arithmetic as in the service. The command keeps the
//! caller's privileges; the probe drops its own as soon as the command runs.
//!
//! The command's rows are those of its cgroup and of all cgroups below it. What they lack is found
//! by two counts of the kernel, that of the cgroup and that of `wait4`, and is said in the report.

mod cgroup;
mod command;
mod progress;
mod report;
mod signals;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, ExitCode},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    cgroup::CommandCgroup,
    command::{CommandThread, reaped_cpu},
    progress::{is_ffmpeg, last_report, read_progress, report_to_pipe},
    report::{CommandRun, CostReport, cost_report, nanoseconds_to_seconds},
    signals::{CaughtSignals, EndedAtStart, end_if_signalled, forward_signals_to, stop_forwarding},
};
use crate::{config::Config, host::privileges, sampler::Sampler, start};

/// Maximum time to wait for GPU drivers. Without a persistence daemon a driver takes a second or
/// two to open.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of checks for a signal during that time.
const DRIVER_STEP: Duration = Duration::from_millis(100);

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
    stop_forwarding();
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
    let mut cost = cost_report(request.price, request.currency, program, &run);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

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
}
