//! The thread that keeps port 9506 (ffmpeg) up to date, and the empty pages of both stream ports.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime},
};

use tracing::{info, warn};

use super::{
    headroom::Headroom,
    job_log::{JobLog, PendingLines},
    page,
    receive::ProgressReceiver,
    table::Stream,
};
use crate::rendered_page::RenderedPage;
use results::energy::{jobs::Jobs, probe::Probe};

/// Interval between updates of port 9506.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Updates per request of the probe's jobs: after a success, and after a failure.
const UPDATES_PER_REQUEST: (u32, u32) = (1, 5);

/// Keeps port 9506 up to date.
pub struct StreamUpdater {
    receiver: ProgressReceiver,
    probe: Probe,
    log: Option<JobLog>,
    codecs: HashMap<String, String>,
    headroom: Headroom,
    /// A clock for the headroom.
    began: Instant,
    probe_error: Option<String>,
    log_error: Option<String>,
}

impl StreamUpdater {
    /// The probe provides the jobs; ended ones are logged if there is a job log.
    #[must_use]
    pub fn new(receiver: ProgressReceiver, probe: Probe, log: Option<JobLog>) -> Self {
        Self {
            receiver,
            probe,
            log,
            codecs: HashMap::new(),
            headroom: Headroom::default(),
            began: Instant::now(),
            probe_error: None,
            log_error: None,
        }
    }

    /// Updates the page until `stop` is dropped.
    pub fn run(mut self, page: &RenderedPage, stop: &mpsc::Receiver<()>) {
        let mut wait = 0;
        loop {
            if wait == 0 {
                wait = if self.update_jobs() { UPDATES_PER_REQUEST.0 } else { UPDATES_PER_REQUEST.1 };
            }
            wait -= 1;
            self.write(page);
            if !matches!(stop.recv_timeout(WRITE_EVERY), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Requests the jobs of the probe and logs the ended ones; returns false if the probe does not
    /// answer.
    fn update_jobs(&mut self) -> bool {
        let jobs: Jobs = match self.probe.jobs() {
            Ok(jobs) => jobs,
            Err(error) => {
                let error = format!("streams have neither energy nor codecs: {error}");
                log_change(&mut self.probe_error, Some(error), "the probe answers");
                self.headroom.forget();
                self.write_log(PendingLines::default());
                return false;
            }
        };
        log_change(&mut self.probe_error, None, "the probe answers");
        let pending = self.log.as_ref().map(|log| log.pending(&jobs, &mut self.receiver.table(), SystemTime::now()));
        self.write_log(pending.unwrap_or_default());
        self.headroom.observe(&jobs, &self.receiver.table(), self.began.elapsed().as_secs_f64());
        self.receiver.names().update(jobs);
        true
    }

    /// Writes lines, and those that wait since an earlier failure.
    fn write_log(&mut self, pending: PendingLines) {
        let Some(log) = &mut self.log else { return };
        let error = log.write(pending).err().map(|error| {
            format!("cannot write the job log: {error}; its lines wait. Free space, or choose another --streams.record")
        });
        log_change(&mut self.log_error, error, "the job log is written");
    }

    fn write(&mut self, page: &RenderedPage) {
        let now = Instant::now();
        self.receiver.table().remove_expired(now);
        self.codecs.extend(self.receiver.names().codecs());
        let rows: Vec<Vec<String>> = {
            let table = self.receiver.table();
            self.codecs.retain(|name, _| table.streams().any(|(known, _)| known == name));
            table.streams().map(|(name, stream)| index_row(name, stream, now)).collect()
        };
        let jobs = self.receiver.names().jobs();
        let job_log = self.log.as_ref().map(JobLog::counts);
        let context = page::Context { jobs: &jobs, codecs: &self.codecs, job_log, headroom: &self.headroom, now };
        let families = page::families(&self.receiver, &context);
        let heads = ["stream", "state", "frames", "fps", "speed", "dropped", "stalls"].map(str::to_owned).to_vec();
        page.write(families, vec![("Streams".to_owned(), heads, rows)], Vec::new());
    }
}

/// Logs an error, or its end, once.
fn log_change(error: &mut Option<String>, now: Option<String>, resolved: &str) {
    if *error != now {
        match &now {
            Some(error) => warn!("{error}"),
            None => info!("{resolved}"),
        }
        *error = now;
    }
}

/// A row of the index page.
fn index_row(name: &str, stream: &Stream, now: Instant) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    vec![
        name.to_owned(),
        if stream.is_active(now) { "active" } else { "ended" }.to_owned(),
        stream.known.frames.map_or_else(|| "–".to_owned(), |_| stream.frames.to_string()),
        number(stream.last_report.fps),
        number(stream.last_report.speed),
        stream.dropped.to_string(),
        stream.stalls.to_string(),
    ]
}

/// The empty pages of both ports.
#[must_use]
pub fn pages(nginx_interval: Duration, compat: bool) -> [Arc<RenderedPage>; 2] {
    [
        Arc::new(RenderedPage::new(
            "wattcast-analysis: ffmpeg",
            "Progress of ffmpeg streams.",
            &["streams"],
            compat,
            WRITE_EVERY * 60,
        )),
        Arc::new(RenderedPage::new(
            "wattcast-analysis: nginx-rtmp",
            "Streams of media servers: nginx's RTMP module, MediaMTX, SRS.",
            &["nginx"],
            compat,
            (nginx_interval * 3).max(Duration::from_secs(120)),
        )),
    ]
}
