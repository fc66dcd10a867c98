//! The threads of the export: one reads and encodes the pages, one for each destination sends.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use metrics::page::Page;
use tracing::{error, info, warn};

use crate::{
    counters::Destination,
    delivery::{self, Backoff},
    endpoint::Endpoint,
    flags::ExportSettings,
    message::Scope,
    otlp::OtlpEncoder,
    payload::Encode,
    queue::Queue,
    remote_write::RemoteWriteEncoder,
    rows,
};

/// Time between two looks for the first pages.
const FIRST_POLL: Duration = Duration::from_millis(20);

/// The pages of one time.
pub struct Reading {
    /// The time that their values belong to. Pages of the same time are sent once.
    pub at: SystemTime,
    /// The pages.
    pub pages: Vec<Arc<Page>>,
}

/// Reads the current pages; `None` before there are any.
pub type Source = Box<dyn Fn() -> Option<Reading> + Send>;

/// A running export. It goes on until [`Exporter::finish`].
pub struct Exporter {
    stop: mpsc::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

/// A destination with its encoder.
struct Target {
    encoder: Box<dyn Encode>,
    queue: Arc<Queue>,
}

impl Exporter {
    /// Starts the export; `None` without a destination. The threads have the privileges of the
    /// calling thread.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(settings: ExportSettings, source: Source) -> io::Result<Option<Self>> {
        Self::start_with(settings, source, Backoff::DEFAULT)
    }

    fn start_with(settings: ExportSettings, source: Source, backoff: Backoff) -> io::Result<Option<Self>> {
        let ExportSettings { warnings, interval, queue_bytes, otlp, remote_write } = settings;
        for warning in &warnings {
            warn!("{warning}");
        }
        let started_ns = unix_ns(SystemTime::now());
        let (mut targets, mut threads) = (Vec::new(), Vec::new());
        let mut add = |endpoint: Endpoint, encoder: Box<dyn Encode>| -> io::Result<()> {
            let counters = endpoint.destination.counters();
            counters.configure();
            let queue = Arc::new(Queue::new(queue_bytes, counters));
            info!("pushing metrics to {} every {} s", endpoint.display_url(), interval.as_secs_f64());
            targets.push(Target { encoder, queue: queue.clone() });
            let name = match endpoint.destination {
                Destination::Otlp => "push-otlp",
                Destination::RemoteWrite => "push-remote",
            };
            let send = move || delivery::run(&endpoint, &queue, counters, backoff);
            threads.push(thread::Builder::new().name(name.into()).spawn(send)?);
            Ok(())
        };
        if let Some(otlp) = otlp {
            for warning in &otlp.warnings {
                warn!("{}: {warning}", otlp.endpoint.display_url());
            }
            let scope = Scope { name: otlp.service.to_owned(), version: cli::program::VERSION.to_owned() };
            let encoder = OtlpEncoder::new(otlp.resource, scope, started_ns, otlp.gzip, otlp.kept);
            add(otlp.endpoint, Box::new(encoder))?;
        }
        if let Some(remote_write) = remote_write {
            add(remote_write.endpoint, Box::new(RemoteWriteEncoder::new(remote_write.labels)))?;
        }
        if targets.is_empty() {
            return Ok(None);
        }
        let (stop, stopped) = mpsc::channel();
        let collect = move || collect(&*source, targets, interval, &stopped);
        threads.push(thread::Builder::new().name("push".into()).spawn(collect)?);
        Ok(Some(Self { stop, threads }))
    }

    /// Sends the last pages and what is queued, for at most `timeout`.
    pub fn finish(self, timeout: Duration) {
        let Self { stop, threads } = self;
        drop(stop);
        let deadline = Instant::now() + timeout;
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                warn!("metrics were not delivered within {} ms; stopping without it", timeout.as_millis());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads the pages at each interval and queues them for all targets, until the sender of `stopped`
/// is gone.
fn collect(
    source: &dyn Fn() -> Option<Reading>,
    mut targets: Vec<Target>,
    interval: Duration,
    stopped: &mpsc::Receiver<()>,
) {
    let mut last = None;
    let mut due = Instant::now();
    let mut wait = Duration::ZERO;
    loop {
        let stopping = !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
        // A page of the same time was sent already.
        if let Some(reading) = source().filter(|reading| last != Some(reading.at)) {
            last = Some(reading.at);
            queue(&reading, &mut targets);
        }
        if stopping {
            break;
        }
        wait = match last {
            None => FIRST_POLL,
            Some(_) => {
                // On schedule and not from now, because delays must not accumulate.
                while due <= Instant::now() {
                    due += interval;
                }
                due.saturating_duration_since(Instant::now())
            }
        };
    }
    for Target { encoder, queue } in &mut targets {
        if let Some(at) = last {
            encoder.end(unix_ns(at)).into_iter().for_each(|payload| queue.push(payload));
        }
        queue.close();
    }
}

/// Encodes and queues the pages of one time.
fn queue(reading: &Reading, targets: &mut [Target]) {
    let families = match rows::read(reading.pages.iter().map(|page| &**page)) {
        Ok(families) => families,
        Err(why) => {
            error!("cannot read the page to push: {why}");
            return;
        }
    };
    for Target { encoder, queue } in targets {
        encoder.encode(&families, unix_ns(reading.at)).into_iter().for_each(|payload| queue.push(payload));
    }
}

fn unix_ns(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use client::{Access, Client};
    use metrics::{
        family::{Def, Family},
        page,
    };
    use prost::Message as _;
    use testkit::{eventually, receiver::Receiver};

    use super::*;
    use crate::{
        counters::Loss,
        flags::{OtlpSettings, RemoteWriteSettings},
        message::{Data, ExportRequest, Number, WriteRequest},
        series::Kept,
    };

    static ENERGY: Def = Def::counter("wattcast_container_energy_joules_total", &["container", "id"], "Energy.");
    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(10) };

    /// Pages of which each has a joule more, and is a second later.
    fn source(joules: Arc<AtomicU32>) -> Source {
        Box::new(move || {
            let now = joules.fetch_add(1, Ordering::Relaxed) + 1;
            let family = Family::new(&ENERGY).with(&["cam", "0a"], f64::from(now));
            let page = page::render("t", [family]).unwrap();
            Some(Reading { at: UNIX_EPOCH + Duration::from_secs(now.into()), pages: vec![Arc::new(page)] })
        })
    }

    fn endpoint(destination: Destination, receiver: &Receiver) -> Endpoint {
        let client = Client::new(receiver.url(), &Access::default(), Duration::from_secs(20), 1 << 20).unwrap();
        Endpoint { destination, client, headers: Vec::new(), headers_file: None }
    }

    fn settings(queue_bytes: usize) -> ExportSettings {
        let (warnings, interval) = (Vec::new(), Duration::from_millis(5));
        ExportSettings { warnings, interval, queue_bytes, otlp: None, remote_write: None }
    }

    #[test]
    fn no_joule_is_lost_while_a_receiver_fails() {
        let receiver = Receiver::start().unwrap();
        receiver.fail(503, "", 3);
        receiver.fail(429, "Retry-After: 0\r\n", 2);
        let otlp = OtlpSettings {
            endpoint: endpoint(Destination::Otlp, &receiver),
            warnings: Vec::new(),
            service: "test",
            resource: Default::default(),
            gzip: false,
            kept: Kept::Changes,
        };
        let joules = Arc::new(AtomicU32::new(0));
        let settings = ExportSettings { otlp: Some(otlp), ..settings(1 << 20) };
        let exporter = Exporter::start_with(settings, source(joules.clone()), BACKOFF).unwrap().unwrap();
        eventually(20.0, "requests after the failures", || receiver.accepted().len() >= 10);
        exporter.finish(Duration::from_secs(20));

        let mut received = 0.0;
        let mut ends = Vec::new();
        for posted in receiver.accepted() {
            let request = ExportRequest::decode(&*posted.body).unwrap();
            let metric = &request.resource_metrics[0].scope_metrics[0].metrics[0];
            let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
            let Some(Number::Double(change)) = sum.data_points[0].value else { panic!("{metric:?}") };
            received += change;
            ends.push(sum.data_points[0].time_unix_nano);
        }
        assert_eq!(received, f64::from(joules.load(Ordering::Relaxed)));
        assert!(ends.is_sorted(), "{ends:?}");
        let counters = Destination::Otlp.counters();
        assert_eq!((counters.failed_requests(), counters.lost(Loss::QueueFull)), (5, 0));
        assert_eq!(counters.delivered(), u64::from(joules.load(Ordering::Relaxed)));
    }

    #[test]
    fn samples_beyond_the_limit_of_the_queue_are_counted() {
        let receiver = Receiver::start().unwrap();
        receiver.fail(503, "", 5000);
        let endpoint = endpoint(Destination::RemoteWrite, &receiver);
        let remote_write = RemoteWriteSettings { endpoint, labels: Default::default() };
        let joules = Arc::new(AtomicU32::new(0));
        let settings = ExportSettings { remote_write: Some(remote_write), ..settings(500) };
        let exporter = Exporter::start_with(settings, source(joules.clone()), BACKOFF).unwrap().unwrap();
        let counters = Destination::RemoteWrite.counters();
        eventually(20.0, "a full queue", || counters.lost(Loss::QueueFull) >= 10);
        receiver.recover();
        eventually(20.0, "a delivery", || !receiver.accepted().is_empty());
        exporter.finish(Duration::from_secs(20));

        let samples = |body: &[u8]| {
            let plain = snap::raw::Decoder::new().decompress_vec(body).unwrap();
            WriteRequest::decode(&*plain).unwrap().timeseries.len()
        };
        let accepted: usize = receiver.accepted().iter().map(|posted| samples(&posted.body)).sum();
        assert_eq!(counters.delivered(), u64::try_from(accepted).unwrap());
        // One for each page, and the mark of the end.
        let made = u64::from(joules.load(Ordering::Relaxed)) + 1;
        assert_eq!(counters.delivered() + counters.lost(Loss::QueueFull) + counters.lost(Loss::Shutdown), made);
    }
}
