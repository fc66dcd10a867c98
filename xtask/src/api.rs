//! Talking to the two programs as any other client would: their pages and their feed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One sample of a metrics page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its full name.
    pub name: String,
    /// Names and values, unescaped.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty when the sample has no such label.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// A program by its base URL.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    agent: ureq::Agent,
}

impl Client {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .build();
        Self { base: base.into(), agent: config.into() }
    }

    /// The full URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The body behind a path.
    ///
    /// # Errors
    /// When there is no answer, or one of 400 and above.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.get(path)?;
        if status >= 400 {
            bail!("{}: {status}: {body}", self.url(path));
        }
        Ok(body)
    }

    /// Status and body behind a path, whatever the status.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = self.url(path);
        let mut reply = self.agent.get(&url).call().with_context(|| url.clone())?;
        Ok((reply.status().as_u16(), reply.body_mut().read_to_string().context(url)?))
    }

    /// The JSON behind a path.
    ///
    /// # Errors
    /// As [`Client::text`], and when it is not JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// Asks for an extra tick; gives its time in unix seconds.
    ///
    /// # Errors
    /// When the probe does not answer, or refuses.
    pub fn mark(&self) -> Result<f64> {
        let url = self.url("/api/v1/mark");
        let answer: Value = self.agent.post(&url).send_empty()?.body_mut().read_json().context(url)?;
        answer["time"].as_f64().context("the mark has no time")
    }

    /// Every sample of `/metrics`.
    ///
    /// # Errors
    /// As [`Client::text`].
    pub fn metrics(&self) -> Result<Vec<Sample>> {
        Ok(parse(&self.text("/metrics")?))
    }

    /// Waits until the program answers; `alive` says whether that makes sense still.
    ///
    /// # Errors
    /// When it does not answer in time, or is not alive.
    pub fn wait(&self, patience: Duration, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while self.text("/metrics").is_err() {
            alive()?;
            if start.elapsed() > patience {
                bail!("{} does not answer", self.url("/metrics"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Samples of a page in the text format; what is none is passed over.
#[must_use]
pub fn parse(page: &str) -> Vec<Sample> {
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
