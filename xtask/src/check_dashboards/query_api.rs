//! A client of the Prometheus HTTP API.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub(super) type Labels = BTreeMap<String, String>;

/// The query API of a Prometheus or VictoriaMetrics.
#[derive(Debug)]
pub(super) struct QueryApi {
    pub name: &'static str,
    pub url: String,
    agent: ureq::Agent,
}

impl QueryApi {
    pub(super) fn new(name: &'static str, url: String) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(20)))
            .http_status_as_error(false)
            .build();
        Self { name, url, agent: config.into() }
    }

    /// The result of an instant query.
    pub(super) fn instant(&self, expr: &str, unix: u64) -> Result<Vec<(Labels, f64)>> {
        let time = unix.to_string();
        let data = self.request("query", &[("query", expr), ("time", &time), ("nocache", "1")])?;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        if data["resultType"] == "scalar" {
            return Ok(vec![(Labels::new(), number(&data["result"][1])?)]);
        }
        series.iter().map(|series| Ok((labels(&series["metric"]), number(&series["value"][1])?))).collect()
    }

    /// The number of series with a value in a time range.
    pub(super) fn count_in_range(&self, expr: &str, from: u64, to: u64, step: u64) -> Result<usize> {
        let [from, to, step] = [from, to, step].map(|number| number.to_string());
        let range = [("query", expr), ("start", &*from), ("end", &*to), ("step", &*step), ("nocache", "1")];
        let data = self.request("query_range", &range)?;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        Ok(series.iter().filter(|series| series["values"].as_array().is_some_and(|all| !all.is_empty())).count())
    }

    fn request(&self, endpoint: &str, query: &[(&str, &str)]) -> Result<Value> {
        let url = format!("{}/api/v1/{endpoint}", self.url);
        let mut reply = self
            .agent
            .get(&url)
            .query_pairs(query.iter().copied())
            .call()
            .with_context(|| format!("{} does not answer", self.name))?;
        let body = reply.body_mut().read_to_string()?;
        let json: Value =
            serde_json::from_str(&body).with_context(|| format!("{}: {}: {body}", self.name, reply.status()))?;
        if json["status"] != "success" {
            bail!("{}: {}", self.name, json["error"].as_str().unwrap_or(&body));
        }
        Ok(json["data"].clone())
    }
}

fn labels(metric: &Value) -> Labels {
    let all = metric.as_object().into_iter().flatten();
    all.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn number(value: &Value) -> Result<f64> {
    value.as_str().context("a sample value is not a string")?.parse().context("a sample value is not a number")
}
