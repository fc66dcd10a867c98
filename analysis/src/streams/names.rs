//! Stream names for reports without one, by the sender's port or process id.
//!
//! The probe knows them from the command lines of the ffmpeg processes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use results::energy::jobs::{Job, Jobs};

/// The jobs that the probe reported last.
#[derive(Clone, Debug, Default)]
pub struct StreamNames(Arc<Mutex<Arc<Jobs>>>);

impl StreamNames {
    pub fn update(&self, jobs: Jobs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(jobs);
    }

    #[must_use]
    pub fn jobs(&self) -> Arc<Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The stream of the job that sends datagrams from this port. `None` if several running jobs
    /// have the port, as jobs in different network namespaces may.
    #[must_use]
    pub fn by_port(&self, port: u16) -> Option<String> {
        let jobs = self.jobs();
        let has_port = |job: &Job| {
            let in_arguments = job.progress.as_ref().is_some_and(|progress| progress.port == Some(port));
            in_arguments || job.udp_ports.contains(&port)
        };
        let mut running = jobs.jobs.iter().filter(|job| job.ended.is_none() && has_port(job));
        let job = match running.next() {
            Some(job) => running.next().is_none().then_some(job),
            // The newest job that ended.
            None => jobs.jobs.iter().rfind(|job| job.ended.is_some() && has_port(job)),
        }?;
        job.streams.first().cloned()
    }

    /// The stream of the job with this process id.
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
    fn a_port_of_two_running_jobs_has_no_stream() {
        let names = StreamNames::default();
        let text = r#"{"probe_started": 1.5, "jobs": [
            {"job": 1, "streams": ["a"], "pid": 7, "progress": {"kind": "udp", "stream": "a", "port": 4000}, "outputs": [{"codec": "h264"}]},
            {"job": 2, "streams": ["b"], "progress": {"kind": "udp", "port": 4001}},
            {"job": 3, "streams": ["c"], "progress": {"kind": "udp", "port": 4001}}]}"#;
        names.update(serde_json::from_str(text).unwrap());
        assert_eq!((names.by_port(4000), names.by_port(4001)), (Some("a".into()), None));
        assert_eq!((names.by_process(7), names.by_process(8)), (Some("a".into()), None));
        assert_eq!(names.codecs().get("a").map(String::as_str), Some("h264"));
    }
}
