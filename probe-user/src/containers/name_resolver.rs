//! Resolves container ids to names and images: from the Docker socket, or from the files of other
//! runtimes. Each container is requested once, when it appears.
//!
//! Requests run on the service's runtime. The sampler only sends ids and collects replies, with a
//! bound on the waiting time. A socket that hangs costs one such wait; the container then has its
//! id for a name until a reply arrives.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    docker_engine::{CALL_TIMEOUT, DockerEngine, Inspection},
    runtime_files::{RuntimeFiles, RuntimeMetadata},
};
use crate::host::availability::{Reason, Unavailable};

/// Concurrent calls. A host that starts a hundred containers must not open a hundred connections.
const MAX_CALLS: usize = 8;
/// Interval between checks of the socket, with or without requests.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest queue of requests; a container beyond it keeps its id for a name.
const MAX_QUEUED: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
struct NameRequest {
    id: String,
    runtime: &'static str,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameReply {
    /// The container's metadata; the name has no leading slash.
    Found(RuntimeMetadata),
    /// Docker has no such container: it belongs to another runtime, or was removed meanwhile.
    NotFound,
    /// Docker is not available; the request can be repeated later.
    Failed,
}

/// The state of the socket, with the time for which it is known: the start of a call, or the moment
/// at which one was given up or answered after that. An earlier state does not replace it: a call
/// on a connection from before the engine stopped may be answered after a later one was refused.
#[derive(Clone)]
struct SocketState(Arc<Mutex<(Instant, Result<(), Unavailable>)>>);

impl SocketState {
    fn new(state: Result<(), Unavailable>) -> Self {
        Self(Arc::new(Mutex::new((Instant::now(), state))))
    }

    fn get(&self) -> Result<(), Unavailable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Takes over a state, unless a later one is known.
    fn set(&self, at: Instant, state: Result<(), Unavailable>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if at >= last.0 {
            *last = (at, state);
        }
    }
}

/// The sampler's handle to the resolver.
pub struct NameResolver {
    requests: mpsc::Sender<NameRequest>,
    replies: std_mpsc::Receiver<(String, NameReply)>,
    pending: usize,
    state: SocketState,
}

impl NameResolver {
    /// Starts the resolver on `runtime`.
    #[must_use]
    pub fn start(runtime: &tokio::runtime::Handle, socket: &Path, files: RuntimeFiles) -> Self {
        let (requests, queue) = mpsc::channel(MAX_QUEUED);
        let (reply, replies) = std_mpsc::channel();
        let engine = DockerEngine::new(socket);
        let state = SocketState::new(engine.try_connect());
        let resolver = Resolver { engine, files, replies: reply, state: state.clone(), failed: Arc::default() };
        runtime.spawn(resolver.run(queue));
        Self { requests, replies, pending: 0, state }
    }

    /// Requests the name of a container by its full id. [`NameResolver::collect`] returns the
    /// reply.
    pub fn request(&mut self, id: &str, runtime: &'static str) {
        if self.requests.try_send(NameRequest { id: id.to_owned(), runtime }).is_ok() {
            self.pending += 1;
        }
    }

    /// Returns the replies with their container ids. Waits at most `timeout` for replies that are
    /// still missing.
    pub fn collect(&mut self, timeout: Duration) -> Vec<(String, NameReply)> {
        let deadline = Instant::now() + timeout;
        let mut all = Vec::new();
        while self.pending > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(reply) = self.replies.recv_timeout(left) else { break };
            self.pending -= 1;
            all.push(reply);
        }
        all
    }

    /// The state of the socket.
    pub fn state(&self) -> Result<(), Unavailable> {
        self.state.get()
    }
}

/// The part of the resolver on the service's runtime.
#[derive(Clone)]
struct Resolver {
    engine: DockerEngine,
    files: RuntimeFiles,
    replies: std_mpsc::Sender<(String, NameReply)>,
    state: SocketState,
    /// Set when a call failed, for a check without delay.
    failed: Arc<Notify>,
}

impl Resolver {
    /// Answers requests, and checks the engine at intervals. While the engine does not answer, only
    /// one check waits for it; requests are answered from files, or repeated later.
    async fn run(self, mut queue: mpsc::Receiver<NameRequest>) {
        let slots = Arc::new(Semaphore::new(MAX_CALLS));
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ping: Option<JoinHandle<Result<(), Unavailable>>> = None;
        let (mut began, mut overdue) = (Instant::now(), tokio::time::Instant::now());
        let mut reported = false;
        loop {
            let check_now = tokio::select! {
                request = queue.recv() => {
                    let Some(request) = request else { return };
                    let (resolver, slots) = (self.clone(), slots.clone());
                    tokio::spawn(async move {
                        // The semaphore is never closed.
                        let _slot = slots.acquire_owned().await;
                        let reply = resolver.resolve(&request).await;
                        // This fails only when the sampler has stopped.
                        let _ = resolver.replies.send((request.id, reply));
                    });
                    false
                }
                _ = check.tick(), if ping.is_none() => true,
                () = self.failed.notified(), if ping.is_none() => true,
                outcome = finished(&mut ping), if ping.is_some() => {
                    ping = None;
                    // One that was given up before tells that the engine works again.
                    self.state.set(if reported { Instant::now() } else { began }, outcome);
                    false
                }
                () = sleep_until(overdue), if ping.is_some() && !reported => {
                    reported = true;
                    self.state.set(Instant::now(), Err(self.engine.no_answer()));
                    false
                }
            };
            if check_now {
                let engine = self.engine.clone();
                ping = Some(tokio::spawn(async move { engine.ping().await }));
                (began, overdue) = (Instant::now(), tokio::time::Instant::now() + CALL_TIMEOUT);
                reported = false;
            }
        }
    }

    async fn resolve(&self, request: &NameRequest) -> NameReply {
        let NameRequest { id, runtime } = request;
        // Other runtimes have no Docker socket, so their files are read first. The socket may be
        // Podman's, which implements Docker's API.
        if *runtime != "docker"
            && let Some(metadata) = self.read_files(runtime, id).await
        {
            return NameReply::Found(metadata);
        }
        // A stopped engine may have started meanwhile; one that does not answer is left to the
        // check.
        let usable = match self.state.get() {
            Ok(()) => true,
            Err(why) => why.reason != Reason::Broken && self.engine.try_connect().is_ok(),
        };
        if !usable {
            return self.read_files("docker", id).await.map_or(NameReply::Failed, NameReply::Found);
        }
        let began = Instant::now();
        match self.engine.inspect(id).await {
            Ok(Inspection::Found(metadata)) => {
                self.state.set(began, Ok(()));
                NameReply::Found(metadata)
            }
            Ok(Inspection::NotFound) => {
                self.state.set(began, Ok(()));
                NameReply::NotFound
            }
            Err(why) => {
                // A busy engine may answer one call late. Whether it answers at all, the check
                // shows.
                if why != self.engine.no_answer() {
                    self.state.set(began, Err(why));
                }
                self.failed.notify_one();
                NameReply::Failed
            }
        }
    }

    /// A list of many containers takes milliseconds to read, which would block this thread.
    async fn read_files(&self, runtime: &'static str, id: &str) -> Option<RuntimeMetadata> {
        let (files, id) = (self.files.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || files.metadata(runtime, &id)).await.ok().flatten()
    }
}

/// The result of a check; never, without one.
async fn finished(ping: &mut Option<JoinHandle<Result<(), Unavailable>>>) -> Result<(), Unavailable> {
    match ping {
        // A check neither panics nor is aborted.
        Some(ping) => ping.await.unwrap_or(Ok(())),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_on_an_earlier_connection_does_not_hide_that_the_engine_stopped() {
        let start = Instant::now();
        let stopped = || Err(Unavailable::new(Reason::Absent, "stopped".to_owned()));
        let state = SocketState::new(Ok(()));
        let at = |ms| start + Duration::from_millis(ms);
        state.set(at(20), stopped());
        state.set(at(10), Ok(()));
        assert_eq!(state.get(), stopped());
        state.set(at(30), Ok(()));
        assert_eq!(state.get(), Ok(()));
    }
}
