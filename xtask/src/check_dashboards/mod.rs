//! `cargo xtask check-dashboards`: does every panel of every dashboard show something, and do both databases say the same?
//!
//! Three questions. Of the words: does each query name series, labels and kinds that our pages have? Of recorded data: does each query give in Prometheus what it gives
//! in VictoriaMetrics, and what it must give where we know it? Of the running stack: does each panel get an answer in both, and has each alert the series that it looks at?

mod ask;
mod known;
mod lint;
mod recorded;
mod rules;
mod stage;

use std::{
    collections::BTreeMap,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use self::{
    ask::{Database, Labels},
    stage::Stage,
};
use crate::{dashboards, generate, stop};
use testkit::{
    cgroup::busy_seconds,
    shell::{output, step, which},
    wait::Deadline,
};

/// What may be empty, by dashboard and panel, while something of others does not run: the name is one of [`Stage::missing`].
const OF_OTHERS: [(&str, &str, &str); 6] = [
    ("power-monitoring", "Memory of containers (cAdvisor)", "cadvisor"),
    ("gpu-energy", "Power by DCGM", "dcgm"),
    ("power-monitoring", "CPUs of the host (node_exporter)", "node_exporter"),
    ("power-monitoring", "Memory of the host (node_exporter)", "node_exporter"),
    ("power-monitoring", "RTMP streams", "nginx"),
    ("power-monitoring", "The container engine itself", "engine"),
];
/// The panel of which the probe knows nothing until the machine's load has varied. Where others keep all CPUs busy it does not.
const NEEDS_VARIED_LOAD: &str = "power-attribution, Idle power,";
/// Part of the CPU time from which the CPUs count as kept busy.
const BUSY: f64 = 0.9;
/// Series that rules look at and that need not be there: those of others, by the name of [`Stage::missing`], and those that only a fault makes.
/// That nothing is measured is a fault in this sense.
const SERIES: [(&str, Option<&str>); 3] = [
    ("DCGM_FI_DEV_POWER_USAGE", Some("dcgm")),
    ("wattcast_energy_rejects_total", None),
    ("wattcast_energy_joules_total{source=\"model\"}", None),
];
/// How long the stack has to show everything. Rules are evaluated every second, over counters that are scraped every second.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is said what has no answer yet.
const PROGRESS: Duration = Duration::from_secs(20);
/// How far two databases may be apart on recorded data, relatively: they add in different orders.
const APART: f64 = 1e-9;

/// Runs it.
///
/// # Errors
/// What is wrong, all of it.
pub fn check_dashboards() -> Result<()> {
    match check()? {
        Ok(()) => Ok(()),
        Err(skipped) => {
            println!("skipped: {skipped}");
            Ok(())
        }
    }
}

/// The same, with the reason where it cannot run here.
///
/// # Errors
/// What is wrong, all of it.
pub fn check() -> Result<std::result::Result<(), String>> {
    generate::fresh()?;
    words()?;
    promtool()?;
    if let Err(why) = stage::needs() {
        return Ok(Err(why));
    }
    let (stage, end) = start()?;
    let databases = [
        Database::new("Prometheus", stage.prometheus.url.clone()),
        Database::new("VictoriaMetrics", stage.victoria.url.clone()),
    ];
    let mut faults = of_recorded(&databases, end)?;
    faults.extend(of_the_stack(&databases, &stage)?);
    if !faults.is_empty() {
        bail!("{} of dashboards and rules:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(Ok(()))
}

/// The stack, and where recorded data ends.
fn start() -> Result<(Stage, u64)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("a clock before 1970")?.as_secs();
    // Far enough away that a live scrape is in no window of it.
    let end = (now - 4 * 3600) / 300 * 300;
    Ok((Stage::start(end, now)?, end))
}

/// The stack, for others to look at.
///
/// # Errors
/// When something that it needs is not there, or does not come up.
pub(crate) fn live_stage() -> Result<Stage> {
    stage::needs().map_err(|why| anyhow::anyhow!(why))?;
    Ok(start()?.0)
}

/// A query with what Grafana would put in for its variables.
fn put_values(expr: &str, rate_interval: &str, range: &str, instance: &str) -> String {
    let instance = if instance.is_empty() { ".+" } else { instance };
    let mut text = expr
        .replace("$__rate_interval", rate_interval)
        .replace("$__range", range)
        .replace("\"$instance\"", &format!("\"{instance}\""));
    for variable in ["job", "container", "stream", "run", "scenario", "currency"] {
        text = text.replace(&format!("\"${variable}\""), "\".+\"");
    }
    text
}

fn words() -> Result<()> {
    let known = known::families()?;
    let all = rules::all()?;
    let mut faults = rules::faults(&all)?;
    for rule in &all {
        for what in lint::query(&rule.expr, &known, rule.record.ends_with("_total")) {
            faults.push(format!("rule {}: {what}", rule.name()));
        }
    }
    let boards = dashboards::all();
    faults.extend(boards.iter().flat_map(|board| lint::board(board, &known)));
    let panels = boards.iter().flat_map(|board| &board.panels).filter(|panel| !panel.targets.is_empty()).count();
    let queries = boards.iter().flat_map(|board| board.queries()).count();
    if !faults.is_empty() {
        bail!("{} of dashboards and rules:\n  {}", faults.len(), faults.join("\n  "));
    }
    step(format!(
        "{} dashboards, {panels} panels, {queries} queries, {} rules: no fault in their words",
        boards.len(),
        all.len()
    ));
    Ok(())
}

/// Prometheus' own opinion of the files, and the cases of the rules.
fn promtool() -> Result<()> {
    let Some(promtool) = which("promtool") else {
        step("promtool is not in PATH: the cases of the rules were not run");
        return Ok(());
    };
    output(Command::new(&promtool).args(["check", "rules"]).args(rules::files()?))?;
    for case in ["energy.test.yml", "cost.test.yml", "alerts.test.yml"] {
        output(Command::new(&promtool).args(["test", "rules", case]).current_dir(rules::dir()))?;
    }
    if let Some(vmalert) = which("vmalert") {
        let mut command = Command::new(vmalert);
        command.arg("-dryRun").args(rules::files()?.iter().map(|file| format!("-rule={}", file.display())));
        output(&mut command)?;
    }
    step("the rules' cases hold");
    Ok(())
}

fn without_time(mut all: Vec<(Labels, f64)>) -> BTreeMap<Labels, f64> {
    // VictoriaMetrics keeps the name of a metric through functions that do not change what it is; Prometheus drops it.
    all.iter_mut().for_each(|(labels, _)| {
        labels.remove("__name__");
    });
    all.into_iter().collect()
}

/// On recorded data both say the same, and what is known.
fn of_recorded(databases: &[Database; 2], end: u64) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let (mut same, mut right) = (0, 0);
    let mut expected: Vec<_> = recorded::EXPECTED.iter().collect();
    for board in dashboards::all() {
        for panel in &board.panels {
            for (number, target) in panel.targets.iter().enumerate() {
                let place = format!("{}, {}, query {}", board.uid, panel.title, number + 1);
                let expr = put_values(&board.written(target), "20s", "600s", recorded::INSTANCE);
                let mut answers = Vec::new();
                for database in databases {
                    match database.at(&expr, end) {
                        Ok(answer) => answers.push(without_time(answer)),
                        Err(why) => faults.push(format!("{place}: {why:#}")),
                    }
                }
                let [prometheus, victoria] = &answers[..] else { continue };
                let near = |one: f64, other: f64| (one - other).abs() <= APART * one.abs().max(other.abs()).max(1.0);
                let agree = prometheus.len() == victoria.len()
                    && prometheus
                        .iter()
                        .all(|(labels, one)| victoria.get(labels).is_some_and(|other| near(*one, *other)));
                if !agree {
                    faults.push(format!("{place}: Prometheus says {prometheus:?}, VictoriaMetrics {victoria:?}"));
                }
                same += usize::from(agree && !prometheus.is_empty());
                expected.retain(|(uid, title, query, (label, of), value)| {
                    if *uid != board.uid || *title != panel.title || *query != number {
                        return true;
                    }
                    let found = prometheus
                        .iter()
                        .find(|(labels, _)| label.is_empty() || labels.get(*label).is_some_and(|is| is == of));
                    match found {
                        Some((_, is)) if near(*is, *value) => right += 1,
                        found => faults.push(format!("{place}: {found:?} in place of {value}")),
                    }
                    false
                });
            }
        }
    }
    faults.extend(
        expected.iter().map(|(uid, title, ..)| format!("no panel {title} of {uid}, of which a value is known")),
    );
    step(format!(
        "recorded data: {same} queries with the same answer in both databases, {right} values as reckoned by hand"
    ));
    Ok(faults)
}

/// The part of the machine's CPU time that was used since the start.
struct BusyPart {
    start: Instant,
    seconds: f64,
}

impl BusyPart {
    fn start() -> Self {
        Self { start: Instant::now(), seconds: busy_seconds() }
    }

    fn part(&self) -> f64 {
        let cpus = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        (busy_seconds() - self.seconds) / (self.start.elapsed().as_secs_f64() * cpus)
    }
}

/// In the running stack every panel gets an answer, and every alert has something to look at.
fn of_the_stack(databases: &[Database; 2], stage: &Stage) -> Result<Vec<String>> {
    let mut open: Vec<(String, String, Vec<&Database>)> = Vec::new();
    let mut declared = Vec::new();
    let boards = dashboards::all();
    for board in &boards {
        for panel in &board.panels {
            let empty = OF_OTHERS
                .iter()
                .find(|(uid, title, of)| *uid == board.uid && *title == panel.title && stage.missing.contains(of));
            if empty.is_some() {
                declared.push(format!("{}, {}", board.uid, panel.title));
                continue;
            }
            for (number, target) in panel.targets.iter().enumerate() {
                let place = format!("{}, {}, query {}", board.uid, panel.title, number + 1);
                open.push((place, put_values(&board.written(target), "20s", "120s", ""), databases.iter().collect()));
            }
        }
    }
    for (uid, title, _) in OF_OTHERS {
        if !boards.iter().any(|board| board.uid == uid && board.panels.iter().any(|panel| panel.title == title)) {
            bail!("no panel {title} of {uid}, which may be empty");
        }
    }
    for rule in rules::all()? {
        let query = lint::read(&rule.expr).map_err(|why| anyhow::anyhow!("rule {}: {why}", rule.name()))?;
        for selector in query.selectors {
            let need_not = SERIES
                .iter()
                .any(|(text, of)| selector.text.starts_with(text) && of.is_none_or(|of| stage.missing.contains(&of)));
            if !need_not {
                // Whether it fires is another question; whether there is anything that it could fire on is this one.
                let place = format!("rule {}, {}", rule.name(), selector.text);
                open.push((place, format!("count({})", selector.text), databases.iter().collect()));
            }
        }
        if !rule.record.is_empty() && !rule.record.starts_with("node_exporter:") {
            open.push((format!("rule {}", rule.name()), rule.record.clone(), databases.iter().collect()));
        }
    }
    let asked = open.len();
    let load = BusyPart::start();
    let (began, mut said, mut deadline) = (Instant::now(), Instant::now(), Deadline::after(PATIENCE));
    let mut last = Vec::new();
    while !open.is_empty() && !deadline.passed() && !stop::stopped() {
        stop::pause(Duration::from_secs(1));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        last.clear();
        for (place, expr, left) in &mut open {
            left.retain(|database| match database.over(expr, now - 60, now - 1, 5) {
                Ok(0) => {
                    last.push(format!("{place}: nothing in {}: {expr}", database.name));
                    true
                }
                Ok(_) => false,
                Err(why) => {
                    last.push(format!("{place}: {why:#}: {expr}"));
                    true
                }
            });
        }
        open.retain(|(.., left)| !left.is_empty());
        if open.iter().all(|(place, ..)| place.starts_with(NEEDS_VARIED_LOAD)) && load.part() > BUSY {
            declared.extend(open.drain(..).map(|(place, ..)| format!("{place} (the CPUs were busy all the time)")));
            last.clear();
        }
        if said.elapsed() > PROGRESS && !open.is_empty() {
            said = Instant::now();
            let waiting: Vec<&str> = open.iter().take(6).map(|(place, ..)| &**place).collect();
            step(format!("{} of {asked} queries have no answer yet: {}, …", open.len(), waiting.join("; ")));
        }
    }
    step(format!(
        "the running stack: {} of {asked} queries answered by both databases after {:.0} s; declared empty here: {}",
        asked - open.len(),
        began.elapsed().as_secs_f64(),
        if declared.is_empty() { "none".to_owned() } else { declared.join("; ") }
    ));
    Ok(last)
}
