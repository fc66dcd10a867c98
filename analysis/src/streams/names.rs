//! Whose reports come without a name: asks the probe, which sees the command lines, by the sender's port or process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;

/// One job as the probe tells of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Job {
    /// The probe's number for it.
    pub job: u64,
    /// Its streams.
    pub streams: Vec<String>,
    /// How they share it.
    pub share: String,
    /// Where it runs.
    pub container: String,
    /// Of the container.
    pub image: String,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// What its datagrams may come from.
    pub udp_ports: Vec<u16>,
    /// Unix seconds.
    pub started: f64,
    /// Unix seconds; absent while it runs.
    pub ended: Option<f64>,
    /// Of all its threads.
    pub cpu_seconds: f64,
    /// Given to it since it began.
    pub joules: f64,
    /// How they were obtained.
    pub source: String,
    /// True when its input comes no faster than it is played.
    pub paced: bool,
    /// Where it reports.
    pub progress: Option<Progress>,
    /// What it delivers.
    pub outputs: Vec<Output>,
}

/// Where a job reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `udp`, `http`, `unix`, …
    pub kind: String,
    /// The port that its datagrams come from, where that is known.
    pub port: Option<u16>,
}

/// One output.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Output {
    /// `h264`, …
    pub codec: String,
    /// As it was asked for.
    pub encoder: String,
    /// As it was asked for.
    pub preset: String,
    /// Pixels.
    pub size: Option<(u32, u32)>,
}

impl Job {
    /// Its codec, as far as known.
    #[must_use]
    pub fn codec(&self) -> &str {
        self.outputs.iter().map(|output| &*output.codec).find(|codec| !codec.is_empty()).unwrap_or_default()
    }
}

/// All jobs that the probe knows.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Jobs {
    /// When that probe was started, unix seconds: numbers of jobs are its own.
    pub probe_started: f64,
    /// Running, and ended lately.
    pub jobs: Vec<Job>,
}

impl Jobs {
    /// How many run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.jobs.iter().filter(|job| job.ended.is_none()).count()
    }
}

/// What was learnt last, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Arc<Jobs>>>);

impl Known {
    /// Takes what the probe said.
    pub fn learn(&self, jobs: Jobs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(jobs);
    }

    /// What it said last.
    #[must_use]
    pub fn jobs(&self) -> Arc<Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The stream of the job whose datagrams come from this port. A port that several claim is nobody's: jobs in networks of their own may have the
    /// same.
    #[must_use]
    pub fn by_port(&self, port: u16) -> Option<String> {
        let jobs = self.jobs();
        let said = |job: &Job| job.progress.as_ref().is_some_and(|progress| progress.port == Some(port));
        let of = |ended: bool| {
            let mut of = jobs
                .jobs
                .iter()
                .filter(|job| job.ended.is_some() == ended && (job.udp_ports.contains(&port) || said(job)));
            // Of those that ended the newest; of those that run there must be one.
            if ended { of.next_back() } else { of.next().filter(|_| of.next().is_none()) }
        };
        let running = jobs.jobs.iter().any(|job| job.ended.is_none() && (job.udp_ports.contains(&port) || said(job)));
        let only = if running { of(false) } else { of(true) }?;
        only.streams.first().cloned()
    }

    /// The stream of the job of this process.
    #[must_use]
    pub fn by_process(&self, pid: u32) -> Option<String> {
        let jobs = self.jobs();
        jobs.jobs.iter().find(|job| job.pid == Some(pid)).and_then(|job| job.streams.first().cloned())
    }

    /// The codec of each stream.
    #[must_use]
    pub fn codecs(&self) -> HashMap<String, String> {
        let jobs = self.jobs();
        let all =
            jobs.jobs.iter().flat_map(|job| job.streams.iter().map(|stream| (stream.clone(), job.codec().to_owned())));
        all.filter(|(_, codec)| !codec.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_two_claim_is_nobodys() {
        let known = Known::default();
        let text = r#"{"probe_started": 1.5, "jobs": [
            {"job": 1, "streams": ["a"], "pid": 7, "progress": {"kind": "udp", "stream": "a", "port": 4000}, "outputs": [{"codec": "h264"}]},
            {"job": 2, "streams": ["b"], "progress": {"kind": "udp", "port": 4001}},
            {"job": 3, "streams": ["c"], "progress": {"kind": "udp", "port": 4001}}]}"#;
        known.learn(serde_json::from_str(text).unwrap());
        assert_eq!((known.by_port(4000), known.by_port(4001)), (Some("a".into()), None));
        assert_eq!((known.by_process(7), known.by_process(8)), (Some("a".into()), None));
        assert_eq!(known.codecs().get("a").map(String::as_str), Some("h264"));
    }
}
