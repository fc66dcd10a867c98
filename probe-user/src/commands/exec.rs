//! `exec`: runs a command in its own cgroup and reports its energy and cost, like `perf stat` does
//! for time; with `--repeat` and `--versus` as a series, like hyperfine.
//!
//! The counters are read before the command starts, once per tick, and after the command has ended,
//! with the same collectors and the same arithmetic as in the service. The command runs with the
//! rights of the user that called sudo, or else with the caller's; the probe drops its own before
//! the first command runs.
//!
//! The command's rows are those of its cgroup and of all cgroups below it. What they lack is found
//! by two counts of the kernel, that of the cgroup and that of `wait4`, and is said in the report.

mod caller;
mod cgroup;
mod command;
mod launcher;
mod plan;
mod progress;
mod report;
mod series;
mod signals;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::ExitCode,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use caps::Capability;

use self::{
    caller::Caller,
    command::reaped_cpu,
    launcher::{Launch, Launcher, PreparedCommand},
    plan::{Purpose, schedule},
    progress::{last_report, read_progress},
    report::{CommandRun, CostReport, cost_report, nanoseconds_to_seconds},
    series::SeriesReport,
    signals::{
        CaughtSignals, EndedAtStart, end_if_signalled, expect_command, forward_signals_to, received_signal,
        stop_forwarding,
    },
};
use crate::{
    config::{Config, ExecFlags},
    host::privileges,
    sampler::Sampler,
    start,
};

/// Maximum time to wait for GPU drivers. Without a persistence daemon a driver takes a second or
/// two to open.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of checks for a signal during that time.
const DRIVER_STEP: Duration = Duration::from_millis(100);

/// A series ended early, because a command failed or a signal came.
#[derive(Debug, thiserror::Error)]
#[error("{what}; nothing is reported, because the series is incomplete")]
struct SeriesStopped {
    what: String,
    /// The exit code as in a shell.
    code: i32,
}

/// Runs the commands, reports their cost, and returns the command's exit code; 127 when it cannot
/// be started, as shells do, and 128 plus the number of the signal that came before its start. A
/// series ends with the first command that fails, and with its exit code.
#[must_use]
pub fn run(config: &Config, flags: &ExecFlags) -> ExitCode {
    run_and_report(config, flags).unwrap_or_else(|error| {
        eprintln!("wattcast-probe: {error:#}");
        let signal = error.downcast_ref::<EndedAtStart>().map(|EndedAtStart(signal)| 128 + signal);
        let code = signal.or_else(|| error.downcast_ref::<SeriesStopped>().map(|stopped| stopped.code));
        ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(127))
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

fn run_and_report(config: &Config, flags: &ExecFlags) -> Result<ExitCode> {
    let mut file = flags.output.as_deref().map(create_report).transpose()?;
    let measured = measure(&config.for_one_command(), flags)?;
    let single = if flags.is_series() { None } else { measured.iter().flatten().next() };
    let text = match single {
        Some(cost) if flags.json => cost.json(),
        Some(cost) if !flags.csv => cost.text(),
        _ => {
            let series = SeriesReport::of(&measured, flags.warmup);
            if flags.json {
                series.json()
            } else if flags.csv {
                series.csv()
            } else {
                series.text()
            }
        }
    };
    // The command has run and its exit code counts, so a report that cannot be written is printed.
    match file.as_mut().map(|file| file.write_all(text.as_bytes())) {
        Some(Ok(())) => {}
        Some(Err(error)) => eprintln!("wattcast-probe: the report cannot be written: {error}\n{text}"),
        // Programs read whole lines.
        None if flags.json || flags.csv => eprint!("{text}"),
        None => eprint!("{}", cli::terminal::View::stderr().fit(&text)),
    }
    // In a series all commands have succeeded.
    let code = single.map_or(0, |cost| cost.exit_code);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Runs the commands and measures the energy and cost of each repeat: a list per command, in the
/// order of the repeats.
///
/// # Errors
/// When no source can be opened, a cgroup cannot be created, a command cannot be started, or a
/// command of a series fails.
fn measure(config: &Config, flags: &ExecFlags) -> Result<Vec<Vec<CostReport>>> {
    let commands = flags.commands().map_err(anyhow::Error::msg)?;
    let caller = if flags.as_root { None } else { Caller::of_sudo()? };
    let other_user = caller.is_some();
    let (warmup, repeats) = (flags.warmup, flags.repeats());
    let steps = schedule(commands.len(), warmup, repeats);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let mut opened = start::open(config)?;
    // From here on a signal must not end the program before the cgroup is removed. Declared first,
    // so that the signals act again only after that.
    let _signals = CaughtSignals::new();
    let launches = steps.iter().zip(0..).map(|(step, number)| Launch {
        words: commands[step.command].to_vec(),
        number,
        cgroupfs: config.paths.cgroupfs.clone(),
        caller: caller.clone(),
    });
    let mut launcher = Launcher::start(launches)?;
    let mut next = launcher.prepare_next()?;
    // Signals are forwarded to the command, which may belong to another user.
    let kept = other_user.then_some((Capability::CAP_KILL, "the command belongs to the user that called sudo"));
    privileges::drop_all_but(kept.into_iter().collect(), opened.trial_reading())
        .context("cannot drop the privileges of the start")?;
    let mut session = Session { sampler: Sampler::new(opened.start()), config, other_user };
    session.wait_for_gpus()?;
    let mut measured = vec![Vec::new(); commands.len()];
    for step in &steps {
        let Some(prepared) = next.take() else { break };
        let cost = session.run(prepared, &commands[step.command][0])?;
        if steps.len() > 1 {
            let describe = || step.describe(commands.len(), warmup, repeats, &cost.program);
            end_if_failed(&cost, describe)?;
        }
        if matches!(step.purpose, Purpose::Repeat(_)) {
            measured[step.command].push(cost);
        }
        expect_command();
        next = launcher.prepare_next()?;
    }
    Ok(measured)
}

/// # Errors
/// When the run of a series failed, or a signal came while it ran: Ctrl-C must end the series even
/// if the command takes it as a normal end.
fn end_if_failed(cost: &CostReport, describe: impl Fn() -> String) -> Result<(), SeriesStopped> {
    if cost.exit_code != 0 {
        return Err(SeriesStopped {
            what: format!("{} ended with {}", describe(), cost.exit_code),
            code: cost.exit_code,
        });
    }
    match received_signal() {
        Some(signal) => {
            Err(SeriesStopped { what: format!("signal {signal} came in {}", describe()), code: 128 + signal })
        }
        None => Ok(()),
    }
}

/// The open sources, for one command after another.
struct Session<'a> {
    sampler: Sampler,
    config: &'a Config,
    /// True if the commands run as the user that called sudo.
    other_user: bool,
}

impl Session<'_> {
    fn wait_for_gpus(&mut self) -> Result<()> {
        let drivers = Instant::now() + DRIVER_TIMEOUT;
        while Instant::now() < drivers {
            end_if_signalled()?;
            let began = Instant::now();
            self.sampler.wait_for_gpus(DRIVER_STEP);
            if began.elapsed() < DRIVER_STEP / 2 {
                // It did not wait, so the drivers are open, or there are none.
                break;
            }
        }
        Ok(())
    }

    /// Runs a command up to its end.
    fn run(&mut self, prepared: PreparedCommand, program: &OsString) -> Result<CostReport> {
        let PreparedCommand { thread: command, location, pipe, has_own_progress } = prepared;
        // The baseline: the cgroup exists and is empty.
        let first = self.sampler.tick().unwrap_or_default();
        end_if_signalled()?;
        let reaped_before = reaped_cpu();
        let clock = Instant::now();
        let user = if self.other_user { " as the user that called sudo (as root: --as-root)" } else { "" };
        let pid = command.start().with_context(|| format!("cannot start {}{user}", Path::new(program).display()))?;
        forward_signals_to(libc::pid_t::try_from(pid)?);
        let frames = pipe.map(|(read, write)| {
            drop(write);
            let (sender, reports) = mpsc::channel();
            thread::spawn(move || read_progress(read, &sender));
            reports
        });
        let mut containers = BTreeSet::new();
        tick_until_exit(&command.exited, self.config.tick(), || {
            self.sampler.tick();
            location.add_containers(&mut containers);
        })?;
        let wall = clock.elapsed();
        // Signals must not be forwarded after the child was waited for.
        stop_forwarding();
        let status = command.wait()?;
        let reaped = reaped_cpu().zip(reaped_before).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
        location.add_containers(&mut containers);
        // Before the last tick, so that processes that still run do not make the rows look
        // incomplete.
        let cgroup_cpu = location.cpu_ns().map(nanoseconds_to_seconds);
        let last = self.sampler.tick().unwrap_or_default();
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
        let mut cost = cost_report(self.config.prices.of_command(), &self.config.prices.currency, program, &run);
        cost.notes.extend(left.note(&self.config.paths.procfs));
        if has_own_progress {
            cost.notes.push("frames are unknown because the command has its own -progress".to_owned());
        }
        add_frames(&mut cost, frames.as_ref(), wall);
        Ok(cost)
    }
}

/// Adds the last report of ffmpeg, and the energy by its frames and its media.
fn add_frames(cost: &mut CostReport, reports: Option<&Receiver<report::FrameStats>>, wall: Duration) {
    let Some(mut frames) = reports.and_then(last_report) else { return };
    let per = |unit: f64| cost.joules.filter(|_| unit > 0.0).map(|joules| joules / unit);
    #[expect(clippy::cast_precision_loss, reason = "a count, for output")]
    let count = frames.frames as f64;
    frames.fps = count / wall.as_secs_f64().max(1e-9);
    frames.joules_per_frame = per(count);
    frames.joules_per_media_second = per(frames.media_seconds);
    cost.frames = Some(frames);
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
