//! Stream names for reports without one, by the sender's port or process id.
//!
//! The probe knows them from the command lines of the ffmpeg processes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use results::energy::jobs::{Job, Jobs};

/// The jobs that the probe reported last.
#[derive(Clone, Debug, Default)]
pub struct StreamNames(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    jobs: Arc<Jobs>,
    /// Streams by local UDP port: any number of senders may ask for theirs.
    ports: HashMap<u16, String>,
}

impl StreamNames {
    pub fn update(&self, jobs: Jobs) {
        let ports = streams_by_port(&jobs);
        *self.known() = Known { jobs: Arc::new(jobs), ports };
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn jobs(&self) -> Arc<Jobs> {
        self.known().jobs.clone()
    }

    /// The stream of the job that sends datagrams from this port. `None` if several running jobs
    /// have the port, as jobs in different network namespaces may.
    #[must_use]
    pub fn by_port(&self, port: u16) -> Option<String> {
        self.known().ports.get(&port).cloned()
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

fn streams_by_port(jobs: &Jobs) -> HashMap<u16, String> {
    let ports_of = |job: &Job| -> BTreeSet<u16> {
        let in_arguments = job.progress.as_ref().and_then(|progress| progress.port);
        job.udp_ports.iter().copied().chain(in_arguments).collect()
    };
    // `None` if several running jobs have the port, or its job has no stream.
    let mut running: HashMap<u16, Option<&String>> = HashMap::new();
    for job in jobs.jobs.iter().filter(|job| job.ended.is_none()) {
        for port in ports_of(job) {
            running.entry(port).and_modify(|stream| *stream = None).or_insert(job.streams.first());
        }
    }
    // The newest job that ended, where none runs.
    let mut all: HashMap<u16, Option<&String>> = HashMap::new();
    for job in jobs.jobs.iter().filter(|job| job.ended.is_some()) {
        all.extend(ports_of(job).into_iter().map(|port| (port, job.streams.first())));
    }
    all.extend(running);
    all.into_iter().filter_map(|(port, stream)| Some((port, stream?.clone()))).collect()
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
