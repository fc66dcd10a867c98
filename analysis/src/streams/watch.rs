//! The two threads that keep the pages of streams: one asks the probe and writes port 9506, one asks nginx and writes port 9728.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime},
};

use tracing::{info, warn};

use super::{
    names::Jobs,
    nginx::{self, Nginx, StreamLabel},
    page,
    receive::Inlet,
    record::Record,
};
use crate::{energy::probe::Probe, sheet::Sheet};

/// How often port 9506 is written.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How often the probe is asked for its jobs; after it did not answer, this times the second.
const ASK_EVERY: (u32, u32) = (1, 5);

/// Keeps port 9506.
pub struct Watch {
    inlet: Inlet,
    probe: Probe,
    record: Option<Record>,
    codecs: HashMap<String, String>,
    trouble: [Option<String>; 2],
}

impl Watch {
    /// Asks this probe, and keeps a record of ended jobs where one is wanted.
    #[must_use]
    pub fn new(inlet: Inlet, probe: Probe, record: Option<Record>) -> Self {
        Self { inlet, probe, record, codecs: HashMap::new(), trouble: [None, None] }
    }

    /// Writes the page, until `stop` says so.
    pub fn run(mut self, sheet: &Sheet, stop: &mpsc::Receiver<()>) {
        let mut wait = 0;
        loop {
            if wait == 0 {
                let asked = self.ask();
                wait = if asked { ASK_EVERY.0 } else { ASK_EVERY.1 };
            }
            wait -= 1;
            self.write(sheet);
            if !matches!(stop.recv_timeout(WRITE_EVERY), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Asks the probe for its jobs; false when it does not answer.
    fn ask(&mut self) -> bool {
        let jobs: Jobs = match self.probe.jobs() {
            Ok(jobs) => jobs,
            Err(error) => {
                self.say(0, Some(format!("streams have neither joules nor codecs: {error}")));
                return false;
            }
        };
        self.say(0, None);
        if let Some(record) = &mut self.record {
            let due = record.due(&jobs, &mut self.inlet.book(), SystemTime::now());
            let failed = record.write(due).err();
            let failed = failed.map(|error| {
                format!("cannot keep the record of ended jobs: {error}. Name another with --streams.record")
            });
            self.say(1, failed);
        }
        self.inlet.known().learn(jobs);
        true
    }

    /// Logs what is wrong, once.
    fn say(&mut self, what: usize, now: Option<String>) {
        if self.trouble[what] != now {
            match &now {
                Some(trouble) => warn!("{trouble}"),
                None => info!("{}", ["the probe answers", "the record of ended jobs is written"][what]),
            }
            self.trouble[what] = now;
        }
    }

    fn write(&mut self, sheet: &Sheet) {
        let now = Instant::now();
        self.inlet.book().tidy(now);
        self.codecs.extend(self.inlet.known().codecs());
        let rows: Vec<Vec<String>> = {
            let book = self.inlet.book();
            self.codecs.retain(|name, _| book.streams().any(|(known, _)| known == name));
            let row = |(name, stream): (&str, &super::book::Stream)| {
                let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
                vec![
                    name.to_owned(),
                    if stream.is_active(now) { "active" } else { "ended" }.to_owned(),
                    stream.frames.to_string(),
                    number(stream.last.fps),
                    number(stream.last.speed),
                    stream.dropped.to_string(),
                    stream.stalls.to_string(),
                ]
            };
            book.streams().map(row).collect()
        };
        let jobs = self.inlet.known().jobs();
        let context = page::Context { jobs: &jobs, codecs: &self.codecs, now };
        let families = page::families(&self.inlet, &context);
        let heads = ["stream", "", "frames", "fps", "speed", "dropped", "stalls"].map(str::to_owned).to_vec();
        sheet.write(families, vec![("Streams".to_owned(), heads, rows)], Vec::new());
    }
}

/// Keeps port 9728 until `stop` says so.
pub fn nginx(server: &Nginx, shown: StreamLabel, every: Duration, sheet: &Sheet, stop: &mpsc::Receiver<()>) {
    let mut before: Option<bool> = None;
    loop {
        let stat = server.stat();
        if before.replace(stat.is_ok()) != Some(stat.is_ok()) {
            match &stat {
                Ok(stat) => info!("nginx: {} streams", stat.streams.len()),
                Err(why) => info!("nginx: {why}"),
            }
        }
        let missing = stat.as_ref().err().map(ToString::to_string);
        let rows = stat.as_ref().map(|stat| stat.streams.iter()).into_iter().flatten().map(|stream| {
            vec![
                stream.application.clone(),
                nginx::stream_label(&stream.application, &stream.name, shown),
                stream.clients.to_string(),
                stream.video.clone(),
                format!("{}x{}", stream.width, stream.height),
            ]
        });
        let heads = ["application", "stream", "clients", "video", "size"].map(str::to_owned).to_vec();
        let table = ("Streams".to_owned(), heads, rows.collect());
        sheet.write(nginx::families(&stat, shown), vec![table], missing.into_iter().collect());
        if !matches!(stop.recv_timeout(every), Err(mpsc::RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

/// A sheet for each of the two ports.
#[must_use]
pub fn sheets(nginx_every: Duration, compat: bool) -> [Arc<Sheet>; 2] {
    [
        Arc::new(Sheet::new(
            "wattcast-analysis: ffmpeg",
            "What each ffmpeg stream delivers, as it reports itself.",
            &["streams"],
            compat,
            WRITE_EVERY * 60,
        )),
        Arc::new(Sheet::new(
            "wattcast-analysis: nginx-rtmp",
            "What nginx's RTMP module says of its streams.",
            &["nginx"],
            compat,
            (nginx_every * 3).max(Duration::from_secs(120)),
        )),
    ]
}
