//! `wattcast-analysis bill`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use analysis::bill::{
    flags::{Bill, UsageSource},
    render,
};
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use results::{
    bill::{BillRequest, GroupBy, bill, job_log, period::Period, probes},
    energy::{
        database::usage::{PeriodUsage, without_port},
        usage::Slots,
    },
    settings::DataSettings,
};
use toml::Table;

use super::{exit_code, log_errors, print, read_settings, report_check};

/// Time after which progress is shown.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);
/// Interval between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) fn run(config: &Bill, file: &Table) -> ExitCode {
    if config.shared.file.check {
        return report_check(read_settings(&config.shared, file).map(|_| ()));
    }
    log_errors();
    exit_code(print_bill(config, file))
}

fn print_bill(config: &Bill, file: &Table) -> Result<()> {
    let (data, _) = read_settings(&config.shared, file)?;
    let zone = data.prices.tariff.time_zone();
    let now = Timestamp::now();
    let mut period = match (&config.month, &config.from) {
        (Some(month), _) => Period::month(month, zone),
        (None, Some(from)) => Period::between(from, &config.to.clone().unwrap_or_else(|| format!("{now:.0}")), zone),
        (None, None) => bail!("no period; name one with --month=2026-11, or with --from and --to"),
    }
    .map_err(anyhow::Error::msg)?;
    let is_open = period.end_by(now);
    if period.start >= period.end {
        bail!("the period {} has not begun", period.name);
    }
    let slots = period.slots(&data.prices.tariff);
    let (usage, notes) = usage(config, &data, &slots)?;
    let request = BillRequest {
        by: config.by,
        label: config.label.clone().unwrap_or_default(),
        idle: config.idle,
        embodied_per_hour: config.embodied,
    };
    let mut bill = bill(usage, period, &slots, &data.prices, request);
    bill.notes.extend(notes);
    if is_open {
        bill.notes.push("the period is not over: this is what it has so far".to_owned());
    }
    let text = render(&bill, config.format);
    match &config.output {
        Some(path) => cli::file::replace_with_mode(path, text.as_bytes(), 0o640)
            .with_context(|| format!("cannot write {}", path.display())),
        None => {
            print(&text);
            Ok(())
        }
    }
}

/// The usage of the period, and what is to be said about its source.
fn usage(config: &Bill, data: &DataSettings, slots: &Slots) -> Result<(PeriodUsage, Vec<String>)> {
    let source = match config.source {
        UsageSource::Auto if data.sources.database.is_some() => UsageSource::Database,
        UsageSource::Auto if data.probe_is_configured => UsageSource::Probes,
        UsageSource::Auto => UsageSource::Log,
        source => source,
    };
    let is_by_name = matches!(config.by, GroupBy::Stream | GroupBy::Container);
    if source != UsageSource::Database && !config.hosts.is_empty() {
        bail!("--host chooses hosts of the database; it has no effect on probes and the job log");
    }
    match source {
        UsageSource::Database | UsageSource::Auto => {
            let Some(database) = &data.sources.database else {
                bail!("no database is configured; set --database.url (PROMETHEUS_URL), or choose another --source");
            };
            let mut progress = Progress::new();
            let usage = database.usage(slots.clone(), &config.hosts, &mut |part| progress.show(part));
            progress.clear();
            let usage = usage.map_err(|error| anyhow::anyhow!("{error}"))?;
            if usage.hosts.is_empty() {
                bail!(
                    "{} has no wattcast_energy_joules_total in the period; name another period, host (--host) or \
                     --source log",
                    database.url()
                );
            }
            let missing = config.hosts.iter().filter(|named| {
                let is_named = |host: &str| host == *named || without_port(host) == *named;
                !usage.hosts.iter().any(|host| is_named(&host.host))
            });
            let notes = missing.map(|host| format!("{host} has no data in the period: it is in no row")).collect();
            Ok((usage, notes))
        }
        UsageSource::Log => {
            if !is_by_name {
                bail!("the job log has no labels and namespaces; use --by stream or container, or --source database");
            }
            let path = config.record.clone().unwrap_or_else(|| config.shared.results_dir.join("streams.ndjson"));
            let log = job_log::read(&path, slots, config.by == GroupBy::Container)
                .with_context(|| format!("cannot read {}; name the log with --streams.record", path.display()))?;
            let mut notes = vec![format!(
                "from {} ended jobs of {}: dynamic energy only, without running jobs and what is not ffmpeg",
                log.jobs,
                path.display()
            )];
            if log.invalid > 0 {
                notes.push(format!("{} lines of the log are no jobs, and are left out", log.invalid));
            }
            Ok((log.usage, notes))
        }
        UsageSource::Probes => {
            if config.by != GroupBy::Container {
                bail!("windows of probes have containers only; use --by container, or --source database");
            }
            let usage = probes::usage(&data.sources.probes, slots).map_err(|(host, error)| {
                anyhow::anyhow!("{host}: {error}. A probe keeps some hours; longer periods need --database.url")
            })?;
            let note = "from the windows of the probes: energy is spread evenly over the period, and system and idle \
                        energy are in the row of ended workloads";
            Ok((usage, vec![note.to_owned()]))
        }
    }
}

/// Progress on a terminal, for readings that take longer than two seconds.
struct Progress {
    began: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { began: Instant::now(), shown: None, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, part: f64) {
        let is_due = self.shown.map_or(self.began.elapsed() >= PROGRESS_AFTER, |at| at.elapsed() >= PROGRESS_EVERY);
        if self.is_terminal && is_due {
            self.shown = Some(Instant::now());
            let _ = write!(std::io::stderr(), "\rreading the database: {:3.0} %", part * 100.0);
        }
    }

    /// Removes the line of progress.
    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
