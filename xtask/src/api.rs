//! Talking to the two programs as any other client would: their pages and their feed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One sample of a metrics page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// A program by its base URL.
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    agent: ureq::Agent,
}

impl Client {
    pub(crate) fn new(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
        Self { base: base.into(), agent: config.into() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let url = self.url(path);
        self.agent.get(&url).call().and_then(|mut reply| reply.body_mut().read_to_string()).context(url)
    }

    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// Asks for an extra tick; gives its time in unix seconds.
    pub(crate) fn mark(&self) -> Result<f64> {
        let url = self.url("/api/v1/mark");
        let answer: Value = self.agent.post(&url).send_empty()?.body_mut().read_json().context(url)?;
        answer["time"].as_f64().context("the mark has no time")
    }

    pub(crate) fn metrics(&self) -> Result<Vec<Sample>> {
        Ok(parse(&self.text("/metrics")?))
    }

    /// Waits until the program answers.
    pub(crate) fn wait(&self, patience: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while self.text("/metrics").is_err() {
            alive()?;
            if start.elapsed() > patience {
                bail!("{} does not answer", self.url("/metrics"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Samples of a page in the text format; what is none is passed over.
pub(crate) fn parse(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (id, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = id.split_once('{') else {
        return Some(Sample { name: id.to_owned(), labels: Vec::new(), value });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (label, tail) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => text.push(other),
            }
        };
        all.push((label.to_owned(), text));
        rest = tail[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels: all, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels_unescaped() {
        let all = parse("# HELP a b\na 1\nb{x=\"1\",y=\"a \\\"q\\\" \\\\ \\n, }\"} 2.5\nnonsense\n");
        assert_eq!(all.len(), 2);
        assert_eq!((&*all[0].name, all[0].value), ("a", 1.0));
        assert_eq!((all[1].label("x"), all[1].label("y"), all[1].label("z")), ("1", "a \"q\" \\ \n, }", ""));
    }
}
