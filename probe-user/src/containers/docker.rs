//! Names and images from the Docker socket, asked once per container, when it appears.
//!
//! Asking happens on the service's runtime; the sampler only hands over ids and collects answers, with a bound on how
//! long it waits. A socket that hangs costs one wait, then the container goes by its id until an answer comes.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use bollard::{Docker, errors::Error as DockerError};
use tokio::sync::{Semaphore, mpsc};

use crate::state::{Reason, Unavailable};

/// Longest a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls under way at once; a host that starts a hundred containers must not open a hundred connections.
const MAX_CALLS: usize = 8;
/// While the socket is not usable, how often it is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Most ids that wait to be asked; beyond it a container keeps its id for a name.
const MAX_WAITING: usize = 1024;

/// What Docker says of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The full id that was asked.
    pub id: String,
    /// Name without its leading slash, and image as it was asked for; `None` when Docker knows no such container.
    pub found: Option<(String, String)>,
}

type State = Arc<Mutex<Result<(), Unavailable>>>;

/// The sampler's side.
pub struct Names {
    ask: mpsc::Sender<String>,
    answers: std_mpsc::Receiver<Named>,
    waiting: usize,
    state: State,
}

impl Names {
    /// Starts asking on `runtime`.
    #[must_use]
    pub fn start(runtime: &tokio::runtime::Handle, socket: &Path) -> Self {
        let (ask, asked) = mpsc::channel(MAX_WAITING);
        let (answer, answers) = std_mpsc::channel();
        let state: State = Arc::new(Mutex::new(reach(socket).map(|_| ())));
        runtime.spawn(work(socket.to_owned(), asked, answer, state.clone()));
        Self { ask, answers, waiting: 0, state }
    }

    /// Asks for a container. The answer comes through [`Names::collect`].
    pub fn request(&mut self, id: &str) {
        if self.ask.try_send(id.to_owned()).is_ok() {
            self.waiting += 1;
        }
    }

    /// Takes the answers that are there, and waits for those on their way until `patience` is over.
    pub fn collect(&mut self, patience: Duration) -> Vec<Named> {
        let deadline = Instant::now() + patience;
        let mut all = Vec::new();
        while self.waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(named) = self.answers.recv_timeout(left) else { break };
            self.waiting -= 1;
            all.push(named);
        }
        all
    }

    /// How the socket stands.
    pub fn state(&self) -> Result<(), Unavailable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A client for the socket, or why there is none. Connects to nothing yet.
fn reach(socket: &Path) -> Result<Docker, Unavailable> {
    if let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
        let reason = match error.kind() {
            // A socket file without a listener is a daemon that stopped.
            std::io::ErrorKind::ConnectionRefused => Reason::Absent,
            _ => Reason::of(&error),
        };
        return Err(Unavailable::new(
            reason,
            format!(
                "{}: {error}. Containers go by their ids; start Docker, or name its socket with --docker.socket",
                socket.display()
            ),
        ));
    }
    Docker::connect_with_unix(&socket.to_string_lossy(), CALL_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
        .map_err(|error| Unavailable::new(Reason::Broken, format!("{}: {error}", socket.display())))
}

async fn work(socket: PathBuf, mut asked: mpsc::Receiver<String>, answer: std_mpsc::Sender<Named>, state: State) {
    let set = |now: Result<(), Unavailable>| *state.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut docker: Option<Docker> = None;
    loop {
        let id = tokio::select! {
            id = asked.recv() => match id {
                Some(id) => id,
                None => return,
            },
            () = tokio::time::sleep(RETRY), if docker.is_none() => {
                docker = connect(&socket, &set).await;
                continue;
            }
        };
        if docker.is_none() {
            docker = connect(&socket, &set).await;
        }
        let Some(client) = docker.clone() else {
            // Unknown for now, and not for ever: nothing is remembered on this side.
            if answer.send(Named { id, found: None }).is_err() {
                return;
            }
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (answer, state, socket) = (answer.clone(), state.clone(), socket.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let call = client.inspect_container(&id, None);
            let found = match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(Ok(reply)) => reply.name.map(|name| {
                    let image = reply.config.and_then(|config| config.image).unwrap_or_default();
                    (name.trim_start_matches('/').to_owned(), image)
                }),
                // The container is another runtime's, or went meanwhile; the socket works.
                Ok(Err(DockerError::DockerResponseServerError { status_code: 404, .. })) => None,
                Ok(Err(error)) => {
                    let why = Unavailable::new(Reason::Broken, format!("{}: {error}", socket.display()));
                    *state.lock().unwrap_or_else(PoisonError::into_inner) = Err(why);
                    None
                }
                Err(_) => {
                    let why = Unavailable::new(
                        Reason::Broken,
                        format!("{}: no answer within {} s", socket.display(), CALL_TIMEOUT.as_secs()),
                    );
                    *state.lock().unwrap_or_else(PoisonError::into_inner) = Err(why);
                    None
                }
            };
            // The sampler is gone: nobody wants to know.
            let _ = answer.send(Named { id, found });
        });
    }
}

/// A client that speaks the daemon's version of the protocol, and the state that goes with it.
async fn connect(socket: &Path, set: &impl Fn(Result<(), Unavailable>)) -> Option<Docker> {
    let client = match reach(socket) {
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
            set(Err(Unavailable::new(Reason::Broken, format!("{}: {error}", socket.display()))));
            None
        }
        Err(_) => {
            set(Err(Unavailable::new(
                Reason::Broken,
                format!("{}: no answer within {} s", socket.display(), CALL_TIMEOUT.as_secs()),
            )));
            None
        }
    }
}
