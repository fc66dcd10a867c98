//! `cargo xtask check-dashboards`: checks that every panel of every dashboard shows data, in
//! Prometheus and in VictoriaMetrics.
//!
//! Three checks:
//! - lint: every query uses series, labels and metric types that our pages have;
//! - recorded data: every query has the same result in both databases, and the expected result
//!   where it is known;
//! - running stack: every panel has data in both databases, and every alert has the series of its
//!   expression.

mod families;
mod lint;
mod query_api;
mod recorded;
pub(crate) mod rules;
mod stack;

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

pub(crate) use self::stack::Load;
use self::{
    query_api::{Labels, QueryApi},
    stack::Stack,
};
use crate::{dashboards, generate, stop};
use testkit::{
    cgroup::busy_seconds,
    shell::{output, root, step, which},
    wait::Deadline,
};

/// Panels that may be empty while an external component does not run: dashboard, panel, and the
/// name of the component in [`Stack::missing`].
const OPTIONAL_PANELS: [(&str, &str, &str); 8] = [
    ("power-attribution", "Wall power", "meter"),
    ("power-attribution", "Residual of the wall meter", "meter"),
    ("power-monitoring", "Container memory usage (cAdvisor)", "cadvisor"),
    ("gpu-energy", "Power (DCGM)", "dcgm"),
    ("power-monitoring", "Host CPU usage (node_exporter)", "node_exporter"),
    ("power-monitoring", "Available host memory (node_exporter)", "node_exporter"),
    ("power-monitoring", "RTMP streams", "nginx"),
    ("power-monitoring", "Container engine CPU usage", "engine"),
];
/// The panels, and columns of a table, that stay empty until the load of the machine has varied,
/// which it does not while other processes keep all CPUs busy.
const NEEDS_VARIED_LOAD: [&str; 4] = [
    "power-attribution, Idle power,",
    "power-attribution, Attribution uncertainty,",
    "power-attribution, Containers, query 4",
    "wattcast-overview, Attribution uncertainty,",
];
/// Ratio of used CPU time above which the CPUs count as busy.
const BUSY_THRESHOLD: f64 = 0.9;
/// Series of rules that may be absent: those of external components, by the name in
/// [`Stack::missing`], those that only a fault creates (modelled energy counts as one here), and
/// those of a meter, which needs hours of load.
const OPTIONAL_SERIES: [(&str, Option<&str>); 4] = [
    ("DCGM_FI_DEV_POWER_USAGE", Some("dcgm")),
    ("wattcast_energy_rejects_total", None),
    ("wattcast_reference_residual_interval_ratio", None),
    ("wattcast_energy_joules_total{source=\"model\"}", None),
];
/// Time limit for all panels to have data. Scrapes and rule evaluations happen every second.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Interval of progress messages.
const PROGRESS: Duration = Duration::from_secs(20);
/// Relative difference allowed between the databases on recorded data: they add in different
/// orders.
const TOLERANCE: f64 = 1e-9;

/// Runs all checks, and prints the reason where they cannot run here.
///
/// # Errors
/// With all faults.
pub fn check_dashboards() -> Result<()> {
    match check()? {
        Ok(()) => Ok(()),
        Err(skipped) => {
            println!("skipped: {skipped}");
            Ok(())
        }
    }
}

/// Runs all checks; returns the reason where they cannot run here.
///
/// # Errors
/// With all faults.
pub fn check() -> Result<std::result::Result<(), String>> {
    generate::fresh()?;
    lint_queries()?;
    promtool()?;
    if let Err(why) = stack::needs() {
        return Ok(Err(why));
    }
    let (stack, end) = start()?;
    let databases = [
        QueryApi::new("Prometheus", stack.prometheus.url.clone()),
        QueryApi::new("VictoriaMetrics", stack.victoria.url.clone()),
    ];
    let mut faults = check_recorded_data(&databases, end)?;
    faults.extend(check_running_stack(&databases, &stack)?);
    if !faults.is_empty() {
        bail!("{} faults in dashboards and rules:\n  {}", faults.len(), faults.join("\n  "));
    }
    Ok(Ok(()))
}

/// Starts the stack; returns it with the end of the recorded data in Unix seconds.
fn start() -> Result<(Stack, u64)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the system clock is before 1970")?.as_secs();
    // Old enough that no query window over recorded data contains a live scrape.
    let end = (now - 4 * 3600) / 300 * 300;
    Ok((Stack::start(end, now)?, end))
}

/// Starts the stack for other commands.
pub(crate) fn live_stack() -> Result<Stack> {
    stack::needs().map_err(|why| anyhow::anyhow!(why))?;
    Ok(start()?.0)
}

fn lint_queries() -> Result<()> {
    let known = families::read()?;
    let all = rules::all()?;
    let mut faults = rules::faults(&all)?;
    for rule in &all {
        for message in lint::check_query(&rule.expr, &known, rule.record.ends_with("_total")) {
            faults.push(format!("rule {}: {message}", rule.name()));
        }
    }
    let dashboards = dashboards::all();
    faults.extend(dashboards.iter().flat_map(|dashboard| lint::dashboard(dashboard, &known)));
    faults.extend(lint::across(&dashboards));
    let renderer = root().join("grafana/render/src");
    let read = |name: &str| {
        let path = renderer.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (kinds, steps) = (read("panels/index.ts")?, read("transformations.ts")?);
    faults.extend(dashboards.iter().flat_map(|dashboard| lint::not_drawn(&dashboard.json(), &kinds, &steps)));
    let panels =
        dashboards.iter().flat_map(|dashboard| &dashboard.panels).filter(|panel| !panel.targets.is_empty()).count();
    let queries = dashboards.iter().flat_map(|dashboard| dashboard.queries()).count();
    if !faults.is_empty() {
        bail!("{} faults in dashboards and rules:\n  {}", faults.len(), faults.join("\n  "));
    }
    step(format!(
        "{} dashboards, {panels} panels, {queries} queries, {} rules: lint passed",
        dashboards.len(),
        all.len()
    ));
    Ok(())
}

/// Checks the rule files with promtool and vmalert, and runs their test cases.
fn promtool() -> Result<()> {
    let Some(promtool) = which("promtool") else {
        step("promtool is not in PATH: the test cases of the rules were not run");
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
    step("the test cases of the rules passed");
    Ok(())
}

fn without_metric_name(mut all: Vec<(Labels, f64)>) -> BTreeMap<Labels, f64> {
    // VictoriaMetrics keeps the metric name through functions that keep the unit; Prometheus drops
    // it.
    all.iter_mut().for_each(|(labels, _)| {
        labels.remove("__name__");
    });
    all.into_iter().collect()
}

/// Without the series for budgets, which only one of the databases has.
fn without_history(mut answer: BTreeMap<Labels, f64>) -> BTreeMap<Labels, f64> {
    answer.retain(|labels, _| labels.get("instance").is_none_or(|instance| instance != recorded::HISTORY));
    answer
}

/// Compares both databases with each other and with expected values, on recorded data.
fn check_recorded_data(databases: &[QueryApi; 2], end: u64) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let (mut equal_results, mut expected_values) = (0, 0);
    let mut expected: Vec<_> = recorded::EXPECTED.iter().collect();
    for dashboard in dashboards::all() {
        for panel in &dashboard.panels {
            for (number, target) in panel.targets.iter().enumerate() {
                let location = format!("{}, {}, query {}", dashboard.uid, panel.title, number + 1);
                let expr = lint::substitute_variables(&target.query(), "20s", "600s", recorded::INSTANCE);
                let mut answers = Vec::new();
                for database in databases {
                    match database.instant(&expr, end) {
                        Ok(answer) => answers.push(without_history(without_metric_name(answer))),
                        Err(why) => faults.push(format!("{location}: {why:#}")),
                    }
                }
                let [prometheus, victoria] = &answers[..] else { continue };
                let near =
                    |one: f64, other: f64| (one - other).abs() <= TOLERANCE * one.abs().max(other.abs()).max(1.0);
                let agree = prometheus.len() == victoria.len()
                    && prometheus
                        .iter()
                        .all(|(labels, one)| victoria.get(labels).is_some_and(|other| near(*one, *other)));
                if !agree {
                    faults.push(format!("{location}: Prometheus returns {prometheus:?}, VictoriaMetrics {victoria:?}"));
                }
                equal_results += usize::from(agree && !prometheus.is_empty());
                expected.retain(|(uid, title, query, (label, of), value)| {
                    if *uid != dashboard.uid || *title != panel.title || *query != number {
                        return true;
                    }
                    let found = prometheus
                        .iter()
                        .find(|(labels, _)| label.is_empty() || labels.get(*label).is_some_and(|is| is == of));
                    match found {
                        Some((_, is)) if near(*is, *value) => expected_values += 1,
                        found => faults.push(format!("{location}: {found:?} instead of {value}")),
                    }
                    false
                });
            }
        }
    }
    faults.extend(
        expected.iter().map(|(uid, title, ..)| format!("no panel {title} in {uid}, for which a value is expected")),
    );
    step(format!(
        "recorded data: {equal_results} queries with equal results in both databases, {expected_values} expected values"
    ));
    Ok(faults)
}

/// The ratio of the machine's CPU time used since the start.
struct CpuLoad {
    start: Instant,
    seconds: f64,
}

impl CpuLoad {
    fn start() -> Self {
        Self { start: Instant::now(), seconds: busy_seconds() }
    }

    fn ratio(&self) -> f64 {
        let cpus = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        (busy_seconds() - self.seconds) / (self.start.elapsed().as_secs_f64() * cpus)
    }
}

/// Waits until every panel has data in the running stack, and every alert the series of its
/// expression.
fn check_running_stack(databases: &[QueryApi; 2], stack: &Stack) -> Result<Vec<String>> {
    let mut open: Vec<(String, String, Vec<&QueryApi>)> = Vec::new();
    let mut skipped = Vec::new();
    let dashboards = dashboards::all();
    for dashboard in &dashboards {
        for panel in &dashboard.panels {
            let empty = OPTIONAL_PANELS
                .iter()
                .find(|(uid, title, of)| *uid == dashboard.uid && *title == panel.title && stack.missing.contains(of));
            if empty.is_some() {
                skipped.push(format!("{}, {}", dashboard.uid, panel.title));
                continue;
            }
            for (number, target) in panel.targets.iter().enumerate() {
                let location = format!("{}, {}, query {}", dashboard.uid, panel.title, number + 1);
                open.push((
                    location,
                    lint::substitute_variables(&target.query(), "20s", "120s", ""),
                    databases.iter().collect(),
                ));
            }
        }
        // Alerts need not fire.
        for event in dashboard.annotations().iter().filter(|event| !event.expr.contains("ALERTS")) {
            let location = format!("{}, events {}", dashboard.uid, event.name);
            open.push((location, event.expr.to_owned(), databases.iter().collect()));
        }
    }
    for (uid, title, _) in OPTIONAL_PANELS {
        if !dashboards
            .iter()
            .any(|dashboard| dashboard.uid == uid && dashboard.panels.iter().any(|panel| panel.title == title))
        {
            bail!("no panel {title} in {uid}, although it is listed as optional");
        }
    }
    for rule in rules::all()? {
        let query = lint::parse(&rule.expr).map_err(|why| anyhow::anyhow!("rule {}: {why}", rule.name()))?;
        for selector in query.selectors {
            let is_optional = OPTIONAL_SERIES
                .iter()
                .any(|(text, of)| selector.text.starts_with(text) && of.is_none_or(|of| stack.missing.contains(&of)));
            if !is_optional {
                // The alert need not fire, but its series must exist.
                let location = format!("rule {}, {}", rule.name(), selector.text);
                open.push((location, format!("count({})", selector.text), databases.iter().collect()));
            }
        }
        if !rule.record.is_empty() && !rule.record.starts_with("node_exporter:") {
            open.push((format!("rule {}", rule.name()), rule.record.clone(), databases.iter().collect()));
        }
    }
    let total = open.len();
    let load = CpuLoad::start();
    let (start, mut last_message, mut deadline) = (Instant::now(), Instant::now(), Deadline::after(TIMEOUT));
    let mut last = Vec::new();
    while !open.is_empty() && !deadline.passed() && !stop::stopped() {
        stop::sleep(Duration::from_secs(1));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        last.clear();
        for (location, expr, left) in &mut open {
            left.retain(|database| match database.count_in_range(expr, now - 60, now - 1, 5) {
                Ok(0) => {
                    last.push(format!("{location}: no data in {}: {expr}", database.name));
                    true
                }
                Ok(_) => false,
                Err(why) => {
                    last.push(format!("{location}: {why:#}: {expr}"));
                    true
                }
            });
        }
        open.retain(|(.., left)| !left.is_empty());
        let needs_load = |location: &str| NEEDS_VARIED_LOAD.iter().any(|panel| location.starts_with(panel));
        if open.iter().all(|(location, ..)| needs_load(location)) && load.ratio() > BUSY_THRESHOLD {
            skipped.extend(open.drain(..).map(|(location, ..)| format!("{location} (all CPUs were busy)")));
            last.clear();
        }
        if last_message.elapsed() > PROGRESS && !open.is_empty() {
            last_message = Instant::now();
            let waiting: Vec<&str> = open.iter().take(6).map(|(location, ..)| &**location).collect();
            step(format!("{} of {total} queries have no data yet: {}, …", open.len(), waiting.join("; ")));
        }
    }
    step(format!(
        "running stack: {} of {total} queries have data in both databases after {:.0} s; skipped: {}",
        total - open.len(),
        start.elapsed().as_secs_f64(),
        if skipped.is_empty() { "none".to_owned() } else { skipped.join("; ") }
    ));
    Ok(last)
}
