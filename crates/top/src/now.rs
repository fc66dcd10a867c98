//! The answer of `/api/v1/now`, as far as the view shows it.
//!
//! Every value may be `null`, which is unknown and not zero. Fields that an older or newer probe
//! lacks are unknown too.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer};

use crate::text::Text;

/// One tick of a probe.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Now {
    /// End of the tick in unix seconds.
    pub(crate) time: Option<f64>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) sequence: u64,
    pub(crate) tick_seconds: Option<f64>,
    /// The watts are means over this time.
    pub(crate) window_seconds: Option<f64>,
    pub(crate) host: Text,
    pub(crate) version: Text,
    /// Start of the probe in unix seconds.
    pub(crate) started: Option<f64>,
    /// Start of `joules` in unix seconds; absent from older probes, where it is that of the probe.
    pub(crate) totals_since: Option<f64>,
    pub(crate) currency: Option<Text>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) banners: Vec<Banner>,
    /// Why idle power is not known.
    pub(crate) idle_note: Option<Text>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) watts: Watts,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) joules: Joules,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) containers: Vec<Container>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) other_containers: Others,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) streams: Vec<Stream>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) gpus: Vec<Gpu>,
}

/// What must not be overlooked: energy that was not measured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Banner {
    pub(crate) kind: Text,
    pub(crate) text: Text,
}

/// Power of the host, and of its layers, which add up to it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Watts {
    pub(crate) host: Option<f64>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) layers: BTreeMap<String, Option<f64>>,
}

/// Energy of the host since the start of the totals, and of its layers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Joules {
    pub(crate) measured: Option<f64>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) layers: BTreeMap<String, Option<f64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    pub(crate) name: Text,
    pub(crate) image: Text,
    pub(crate) runtime: Text,
    pub(crate) watts: Option<f64>,
    pub(crate) uncertainty_watts: Option<f64>,
    pub(crate) share: Option<f64>,
    pub(crate) joules: Option<f64>,
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) wait_cores: Option<f64>,
    pub(crate) gpu_watts: Option<f64>,
}

/// The containers that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Others {
    #[serde(deserialize_with = "or_empty")]
    pub(crate) count: u64,
    pub(crate) watts: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Stream {
    pub(crate) name: Text,
    pub(crate) container: Text,
    pub(crate) state: Text,
    pub(crate) codec: Text,
    pub(crate) watts: Option<f64>,
    pub(crate) joules: Option<f64>,
    pub(crate) joules_per_frame: Option<f64>,
    pub(crate) fps: Option<f64>,
    pub(crate) speed: Option<f64>,
    pub(crate) media_seconds: Option<f64>,
    pub(crate) vmaf: Option<f64>,
    pub(crate) cost_per_hour: Option<f64>,
    pub(crate) cpu_cores: Option<f64>,
    pub(crate) wait_cores: Option<f64>,
}

impl Stream {
    /// True for a stream that is listed only because it ended recently.
    pub(crate) fn ended(&self) -> bool {
        &*self.state == "ended"
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Gpu {
    pub(crate) name: Text,
    pub(crate) watts: Option<f64>,
    /// Use of each engine, 0 to 1.
    #[serde(deserialize_with = "or_empty")]
    pub(crate) engines: BTreeMap<String, Option<f64>>,
}

/// An answer that is not that of a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAnAnswer(String);

impl fmt::Display for NotAnAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer is not that of a probe: {}", self.0)
    }
}

impl Now {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is no JSON of that form, or has no time.
    pub(crate) fn parse(answer: &str) -> Result<Self, NotAnAnswer> {
        let now: Self = serde_json::from_str(answer).map_err(|error| NotAnAnswer(error.to_string()))?;
        match now.time {
            Some(time) if time.is_finite() && time > 0.0 => Ok(now),
            _ => Err(NotAnAnswer("it has no time".to_owned())),
        }
    }
}

/// `null` as the empty value.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_lack_everything_except_its_time() {
        let now = Now::parse(r#"{"time": 1.5, "new": {}, "gpus": null, "watts": {"host": null}}"#).unwrap();
        assert_eq!((now.watts.host, now.gpus.len(), now.time), (None, 0, Some(1.5)));
        for wrong in ["", "{}", "[]", r#"{"time": null}"#, r#"{"time": -1}"#, "<html>", r#"{"time": 1, "gpus": 1}"#] {
            assert!(Now::parse(wrong).unwrap_err().to_string().contains("not that of a probe"), "{wrong}");
        }
    }

    #[test]
    fn hostile_names_are_cleaned_when_they_are_read() {
        let now = Now::parse(r#"{"time": 1, "containers": [{"name": "a\u001b[31m", "image": null}]}"#).unwrap();
        assert_eq!(&*now.containers[0].name, "a\u{fffd}[31m");
        assert_eq!(&*now.containers[0].image, "");
    }
}
