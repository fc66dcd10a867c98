//! Settings of the service from flags, environment and configuration file: alerts and health
//! targets.
//!
//! Flags and environment override the file, and the file overrides the defaults.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use cli::{config_file::ProgramKeys, suggest::nearest};
use results::settings::{ClientFlags, DataFlags};
use serde::Deserialize;
use toml::Table;

use crate::{
    alerts,
    health::{
        checker::CheckPlan,
        scrape_config,
        target::{self, OwnExporters, Target, TargetConfig},
    },
};

/// Flags of the health check, shared by `serve` and `check`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Health")]
pub struct HealthFlags {
    /// Targets instead of the default ones of this host, each NAME=URL or a URL
    #[arg(
        long = "health.targets",
        visible_alias = "targets",
        value_name = "[NAME=]URL",
        env = "HEALTH_TARGETS",
        value_delimiter = ','
    )]
    pub targets: Vec<String>,

    /// Prometheus configuration whose static targets replace the default ones
    #[arg(long = "health.scrape-config", visible_alias = "scrape-config", value_name = "FILE")]
    pub scrape_config: Option<PathBuf>,

    /// Interval between checks
    #[arg(long = "health.interval", visible_alias = "interval", value_name = "DURATION", default_value = "30s", value_parser = parse_interval)]
    pub interval: Duration,

    /// Timeout of a request, up to 1m
    #[arg(long = "health.timeout", visible_alias = "timeout", value_name = "DURATION", default_value = "5s", value_parser = parse_timeout)]
    pub timeout: Duration,

    /// Age after which data is stale, for targets without max_age
    #[arg(long = "health.max-age", value_name = "DURATION", default_value = "60s", value_parser = parse_interval)]
    pub max_age: Duration,

    /// Largest clock skew of a healthy target, at least 1s
    #[arg(long = "health.max-skew", value_name = "DURATION", default_value = "5s", value_parser = parse_skew)]
    pub max_skew: Duration,

    /// Names of targets to skip
    #[arg(long = "health.skip", value_name = "NAME", value_delimiter = ',')]
    pub skip: Vec<String>,
}

/// Parses `30s`, or `30` as the legacy checker did.
///
/// # Errors
/// The text is no duration, or out of range.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map(|seconds| Duration::from_secs(seconds.into()));
    let time = match seconds {
        Ok(time) => time,
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s"))?,
    };
    let range = Duration::from_millis(100)..=Duration::from_secs(86_400);
    if range.contains(&time) { Ok(time) } else { Err("100ms to 1d".into()) }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let time = parse_interval(text)?;
    if time <= target::MAX_TIMEOUT { Ok(time) } else { Err("100ms to 1m".into()) }
}

fn parse_skew(text: &str) -> Result<Duration, String> {
    let time = parse_interval(text)?;
    if time >= Duration::from_secs(1) {
        Ok(time)
    } else {
        Err("1s to 1d, because a Date header has whole seconds".into())
    }
}

/// Keys of the configuration file that are read here; the others are flags.
pub const PROGRAM_KEYS: ProgramKeys = ProgramKeys {
    keys: &[results::settings::KEYS, &["rule", "webhook", "health.target"]],
    // Flags that the file may set too: the page of prices shows the origin of each, and all
    // settings of the database are read in one place.
    flags: &[
        "currency",
        "region",
        "energy.price",
        "energy.pue",
        "energy.scope",
        "cpu.price",
        "gpu.price",
        "node.price",
        "compute.model",
        "database.url",
        "database.write-url",
        "database.tenant",
        "carbon.intensity",
    ],
};

/// Keys of the configuration file that only the service uses.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServiceKeys {
    rule: Vec<alerts::Rule>,
    webhook: Vec<alerts::webhook::Webhook>,
    health: HealthKeys,
}

/// Alert rules, receivers and health targets of the configuration file.
#[derive(Debug)]
pub struct ServiceSettings {
    pub rules: Vec<alerts::Rule>,
    pub webhooks: Vec<alerts::webhook::Webhook>,
    pub targets: Vec<TargetConfig>,
}

/// Reads the keys of the service from the configuration file.
///
/// # Errors
/// The first invalid setting, with its name.
pub fn read_service(shared: &DataFlags, table: &Table) -> Result<ServiceSettings> {
    let keys: ServiceKeys = shared.read_keys(table, &["rule", "webhook", "health"])?;
    let mut known = BTreeSet::new();
    for rule in &keys.rule {
        rule.check().map_err(anyhow::Error::msg)?;
        if !known.insert(rule.identity()) {
            bail!("rule {:?}: duplicate name, severity and metric", rule.name);
        }
    }
    Ok(ServiceSettings { rules: keys.rule, webhooks: keys.webhook, targets: keys.health.target })
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HealthKeys {
    target: Vec<TargetConfig>,
}

/// The targets to check: of the flags, else of `[[health.target]]`, else the default ones of a
/// host.
///
/// # Errors
/// The first invalid target.
pub fn check_plan(
    flags: &HealthFlags,
    configured: &[TargetConfig],
    client: &ClientFlags,
    own: &OwnExporters,
) -> Result<CheckPlan> {
    let (access, max_age) = (client.access(), flags.max_age);
    let named: Vec<&String> = flags.targets.iter().filter(|text| !text.trim().is_empty()).collect();
    let mut skipped = Vec::new();
    let collect = |targets: &mut dyn Iterator<Item = Result<Target, String>>| -> Result<Vec<Target>> {
        targets.collect::<Result<_, _>>().map_err(anyhow::Error::msg)
    };
    let mut targets = if !named.is_empty() {
        collect(&mut named.iter().map(|text| target::parse(text, &access, max_age)))?
    } else if let Some(file) = &flags.scrape_config {
        let (targets, unsupported) = scrape_config::read(file, max_age).map_err(anyhow::Error::msg)?;
        skipped = unsupported;
        targets
    } else if configured.is_empty() {
        target::defaults(&OwnExporters { max_age, ..own.clone() })
    } else {
        collect(&mut configured.iter().map(|config| config.target(max_age)))?
    };
    for name in &flags.skip {
        let before = targets.len();
        targets.retain(|target| target.name != *name);
        if targets.len() == before {
            let known = targets.iter().map(|target| &*target.name);
            let hint = nearest(name, known).map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
            bail!("--health.skip: no target named {name}{hint}");
        }
    }
    target::check_unique(&targets).map_err(anyhow::Error::msg)?;
    let HealthFlags { interval, timeout, max_skew, .. } = *flags;
    Ok(CheckPlan { targets, interval, timeout, max_skew, skipped })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        shared: DataFlags,
    }

    #[test]
    fn an_invalid_rule_is_reported_at_startup() {
        let shared = Line::try_parse_from(["x"]).unwrap().shared;
        let table = toml::from_str("[[rule]]\nname = \"a\"\nmetric = \"vmaf\"").unwrap();
        let error = read_service(&shared, &table).unwrap_err().to_string();
        assert!(error.contains("above"), "{error}");
    }
}
