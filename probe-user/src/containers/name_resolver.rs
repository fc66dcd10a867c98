//! Resolves container ids to names and images: from the Docker socket, or from the files of other
//! runtimes. Each container is requested once, when it appears.
//!
//! Requests run on the service's runtime. The sampler only sends ids and collects replies, with a
//! bound on the waiting time. A socket that hangs costs one such wait; the container then has its
//! id for a name until a reply arrives.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use bollard::{Docker, errors::Error as DockerError};
use tokio::sync::{Semaphore, mpsc};

use super::runtime_files::{RuntimeFiles, RuntimeMetadata};
use crate::host::availability::{Reason, Unavailable};

/// Longest time of a single call.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
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

type SocketState = Arc<Mutex<Result<(), Unavailable>>>;

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
        let state: SocketState = Arc::new(Mutex::new(open_client(socket).map(|_| ())));
        runtime.spawn(run(socket.to_owned(), files, queue, reply, state.clone()));
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Creates a client after one test connection; the client itself is not connected yet.
fn open_client(socket: &Path) -> Result<Docker, Unavailable> {
    if let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
        let reason = match error.kind() {
            // A socket file without a listener belongs to a daemon that has stopped.
            std::io::ErrorKind::ConnectionRefused => Reason::Absent,
            _ => Reason::of(&error),
        };
        return Err(Unavailable::new(
            reason,
            format!(
                "{}: {error}. Containers are labelled with their ids; start Docker, or name its socket with --docker.socket",
                socket.display()
            ),
        ));
    }
    Docker::connect_with_unix(&socket.to_string_lossy(), CALL_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
        .map_err(|error| Unavailable::new(Reason::Broken, format!("{}: {error}", socket.display())))
}

async fn run(
    socket: PathBuf,
    files: RuntimeFiles,
    mut queue: mpsc::Receiver<NameRequest>,
    replies: std_mpsc::Sender<(String, NameReply)>,
    state: SocketState,
) {
    let set = |now: Result<(), Unavailable>| *state.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut docker: Option<Docker> = None;
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let NameRequest { id, runtime } = tokio::select! {
            request = queue.recv() => match request {
                Some(request) => request,
                None => return,
            },
            _ = check.tick() => {
                docker = match docker {
                    Some(client) => ping(client, &socket, &set).await,
                    None => connect(&socket, &set).await,
                };
                continue;
            }
        };
        // Other runtimes have no Docker socket, so their files are read first.
        if runtime != "docker" {
            // A list of many containers takes milliseconds to read, which would block this thread.
            let (blocking_files, blocking_id) = (files.clone(), id.clone());
            let metadata = tokio::task::spawn_blocking(move || blocking_files.metadata(runtime, &blocking_id)).await;
            if let Some(metadata) = metadata.ok().flatten() {
                if replies.send((id, NameReply::Found(metadata))).is_err() {
                    return;
                }
                continue;
            }
            // The socket may be Podman's, which implements Docker's API.
        }
        if docker.is_none() {
            docker = connect(&socket, &set).await;
        }
        let Some(client) = docker.clone() else {
            let reply = files.metadata("docker", &id).map_or(NameReply::Failed, NameReply::Found);
            if replies.send((id, reply)).is_err() {
                return;
            }
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (replies, state, socket) = (replies.clone(), state.clone(), socket.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let set = |now| *state.lock().unwrap_or_else(PoisonError::into_inner) = now;
            let reply = match tokio::time::timeout(CALL_TIMEOUT, client.inspect_container(&id, None)).await {
                Ok(Ok(container)) => {
                    set(Ok(()));
                    let config = container.config.unwrap_or_default();
                    let metadata = RuntimeMetadata {
                        name: container.name.unwrap_or_default().trim_start_matches('/').to_owned(),
                        image: config.image.unwrap_or_default(),
                        labels: config.labels.unwrap_or_default().into_iter().collect(),
                        ..RuntimeMetadata::default()
                    };
                    NameReply::Found(metadata.with_pod())
                }
                // The daemon works; it has no such container.
                Ok(Err(DockerError::DockerResponseServerError { status_code: 404, .. })) => {
                    set(Ok(()));
                    NameReply::NotFound
                }
                Ok(Err(error)) => {
                    set(Err(socket_error(&socket, &error.to_string())));
                    NameReply::Failed
                }
                Err(_) => {
                    set(Err(socket_error(&socket, &timeout_message())));
                    NameReply::Failed
                }
            };
            // This fails only when the sampler has stopped.
            let _ = replies.send((id, reply));
        });
    }
}

/// Opens a client and negotiates the API version with the daemon.
async fn connect(socket: &Path, set: &impl Fn(Result<(), Unavailable>)) -> Option<Docker> {
    let client = match open_client(socket) {
        Ok(client) => client,
        Err(why) => {
            set(Err(why));
            return None;
        }
    };
    match tokio::time::timeout(CALL_TIMEOUT, client.negotiate_version()).await {
        Ok(Ok(client)) => {
            set(Ok(()));
            Some(client)
        }
        Ok(Err(error)) => {
            set(Err(socket_error(socket, &error.to_string())));
            None
        }
        Err(_) => {
            set(Err(socket_error(socket, &timeout_message())));
            None
        }
    }
}

/// Returns the client if the daemon responds to a ping.
async fn ping(client: Docker, socket: &Path, set: &impl Fn(Result<(), Unavailable>)) -> Option<Docker> {
    let why = match tokio::time::timeout(CALL_TIMEOUT, client.ping()).await {
        Ok(Ok(_)) => {
            set(Ok(()));
            return Some(client);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => timeout_message(),
    };
    set(Err(socket_error(socket, &why)));
    None
}

/// The state of a socket after a failed call: absent, denied, or present and broken.
fn socket_error(socket: &Path, why: &str) -> Unavailable {
    match open_client(socket) {
        Err(unavailable) => unavailable,
        Ok(_) => Unavailable::new(Reason::Broken, format!("{}: {why}", socket.display())),
    }
}

fn timeout_message() -> String {
    format!("no answer within {} s", CALL_TIMEOUT.as_secs())
}
