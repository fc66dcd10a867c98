//! Port 9728: the page of nginx's RTMP module under its own names, and the streams of all media
//! servers under common ones. Each server is read by a thread of its own, so one that hangs delays
//! no other.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use tracing::info;

use super::{
    ingest::{
        Ingest,
        server::{ServerError, ServerStats},
        sources::MediaServer,
    },
    names::StreamNames,
    nginx::{self, Nginx, Stat, StatError, StreamLabel},
    nginx_workers::Workers,
};
use crate::rendered_page::RenderedPage;

/// The label `server` of nginx.
const NGINX: &str = "nginx";

/// What the threads share.
pub struct MediaPage {
    page: Arc<RenderedPage>,
    /// The jobs of the probe, for the energy of encoders.
    names: StreamNames,
    label: StreamLabel,
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    /// `None` before the first answer of nginx, and then nothing is shown yet.
    nginx: Option<Result<Stat, StatError>>,
    ingest: Ingest,
    /// Servers that the user has named.
    wanted: BTreeSet<&'static str>,
}

impl MediaPage {
    /// Without an answer yet; `interval` is that between readings.
    #[must_use]
    pub fn new(page: Arc<RenderedPage>, names: StreamNames, label: StreamLabel, interval: Duration) -> Self {
        let state = State { nginx: None, ingest: Ingest::new(label, interval), wanted: BTreeSet::new() };
        Self { page, names, label, interval, state: Mutex::new(state) }
    }

    /// Reads nginx until `stop` is dropped.
    pub fn run_nginx(&self, server: &Nginx, stop: &mpsc::Receiver<()>) {
        let (mut was_ok, mut workers): (Option<bool>, Workers) = (None, Workers::new(self.label, self.interval));
        loop {
            let stat = server.stat().map(|page| workers.add(page, Instant::now()));
            if was_ok.replace(stat.is_ok()) != Some(stat.is_ok()) {
                match &stat {
                    Ok(stat) => info!("nginx: {} streams", stat.streams.len()),
                    Err(error) => info!("nginx: {error}"),
                }
            }
            let stats = match &stat {
                Ok(stat) => Ok(ServerStats::of_nginx(stat, self.label)),
                Err(StatError::Unreachable(why)) => Err(ServerError::Absent(why.clone())),
                Err(StatError::Invalid(why)) => Err(ServerError::Broken(why.clone())),
            };
            self.publish(NGINX, stats, |state| state.nginx = Some(stat));
            if !matches!(stop.recv_timeout(self.interval), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Reads another server until `stop` is dropped.
    pub fn run_server(&self, server: &MediaServer, stop: &mpsc::Receiver<()>) {
        let (name, wanted) = (server.name, server.wanted);
        // Without a setting the server usually does not exist, which is nothing to report.
        let mut was_ok = (!wanted).then_some(false);
        loop {
            let stats = server.read();
            if was_ok.replace(stats.is_ok()) != Some(stats.is_ok()) {
                match &stats {
                    Ok(stats) => info!("{name}: {} streams", stats.streams.len()),
                    Err(error) => info!("{name}: {error}"),
                }
            }
            self.publish(name, stats, |state| {
                if wanted {
                    state.wanted.insert(name);
                }
            });
            if !matches!(stop.recv_timeout(self.interval), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Takes the answer of a server, and renders the page with those of all.
    fn publish(&self, server: &'static str, stats: Result<ServerStats, ServerError>, update: impl FnOnce(&mut State)) {
        let (jobs, now) = (self.names.jobs(), Instant::now());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        update(&mut state);
        state.ingest.observe(server, stats.as_ref().map_err(Clone::clone), &jobs, now);
        let Some(stat) = &state.nginx else { return };
        let mut families = nginx::families(stat, self.label);
        families.extend(state.ingest.families(now));
        let of_nginx = stat.as_ref().err().map(ToString::to_string);
        let of_others = state.wanted.iter().filter_map(|name| state.ingest.problem(name));
        let missing = of_nginx.into_iter().chain(of_others).collect();
        self.page.write(families, vec![self.table(stat)], missing);
    }

    /// The streams of nginx, for people.
    fn table(&self, stat: &Result<Stat, StatError>) -> (String, Vec<String>, Vec<Vec<String>>) {
        let rows = stat.as_ref().map(|stat| stat.streams.iter()).into_iter().flatten().map(|stream| {
            vec![
                stream.application.clone(),
                nginx::stream_label(&stream.application, &stream.name, self.label),
                stream.clients.to_string(),
                stream.video.clone(),
                format!("{}x{}", stream.width, stream.height),
            ]
        });
        let heads = ["application", "stream", "clients", "video", "size"].map(str::to_owned).to_vec();
        ("Streams".to_owned(), heads, rows.collect())
    }
}
