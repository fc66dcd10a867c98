//! Names and images from the Docker socket, or from the files of other runtimes, asked once per container, when it appears.
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

use super::files::{Files, Told};
use crate::state::{Reason, Unavailable};

/// Longest a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls under way at once; a host that starts a hundred containers must not open a hundred connections.
const MAX_CALLS: usize = 8;
/// How often the socket is looked at, whether anybody asks or not.
const LOOK: Duration = Duration::from_secs(10);
/// Most ids that wait to be asked; beyond it a container keeps its id for a name.
const MAX_WAITING: usize = 1024;

/// Who is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ask {
    id: String,
    runtime: &'static str,
}

/// What is said of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Its name without the leading slash, its image as it was asked for, and more.
    Named(Told),
    /// No such container: it is another runtime's, or went meanwhile.
    Unknown,
    /// Docker could not be asked; try again later.
    Nothing,
}

type State = Arc<Mutex<Result<(), Unavailable>>>;

/// The sampler's side.
pub struct Names {
    ask: mpsc::Sender<Ask>,
    answers: std_mpsc::Receiver<(String, Said)>,
    waiting: usize,
    state: State,
}

impl Names {
    /// Starts asking on `runtime`.
    #[must_use]
    pub fn start(runtime: &tokio::runtime::Handle, socket: &Path, files: Files) -> Self {
        let (ask, asked) = mpsc::channel(MAX_WAITING);
        let (answer, answers) = std_mpsc::channel();
        let state: State = Arc::new(Mutex::new(reach(socket).map(|_| ())));
        runtime.spawn(work(socket.to_owned(), files, asked, answer, state.clone()));
        Self { ask, answers, waiting: 0, state }
    }

    /// Asks for a container by its full id. The answer comes through [`Names::collect`].
    pub fn request(&mut self, id: &str, runtime: &'static str) {
        if self.ask.try_send(Ask { id: id.to_owned(), runtime }).is_ok() {
            self.waiting += 1;
        }
    }

    /// Takes the answers that are there, with the ids they are for, and waits up to `patience` for those that are not.
    pub fn collect(&mut self, patience: Duration) -> Vec<(String, Said)> {
        let deadline = Instant::now() + patience;
        let mut all = Vec::new();
        while self.waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(answer) = self.answers.recv_timeout(left) else { break };
            self.waiting -= 1;
            all.push(answer);
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

async fn work(
    socket: PathBuf,
    files: Files,
    mut asked: mpsc::Receiver<Ask>,
    answer: std_mpsc::Sender<(String, Said)>,
    state: State,
) {
    let set = |now: Result<(), Unavailable>| *state.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut docker: Option<Docker> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Ask { id, runtime } = tokio::select! {
            ask = asked.recv() => match ask {
                Some(ask) => ask,
                None => return,
            },
            _ = look.tick() => {
                docker = match docker {
                    Some(client) => still(client, &socket, &set).await,
                    None => connect(&socket, &set).await,
                };
                continue;
            }
        };
        // The files of a runtime that has no socket of Docker's kind; of one that is not known, before Docker is troubled.
        if runtime != "docker" {
            // A list of many containers takes milliseconds to read, in which this thread serves nobody.
            let (looked, wanted) = (files.clone(), id.clone());
            let told = tokio::task::spawn_blocking(move || looked.told(runtime, &wanted)).await.ok().flatten();
            if let Some(told) = told {
                if answer.send((id, Said::Named(told))).is_err() {
                    return;
                }
                continue;
            }
            // The socket may be Podman's, which speaks Docker's language.
        }
        if docker.is_none() {
            docker = connect(&socket, &set).await;
        }
        let Some(client) = docker.clone() else {
            let said = files.told("docker", &id).map_or(Said::Nothing, Said::Named);
            if answer.send((id, said)).is_err() {
                return;
            }
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (answer, state, socket) = (answer.clone(), state.clone(), socket.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let set = |now| *state.lock().unwrap_or_else(PoisonError::into_inner) = now;
            let said = match tokio::time::timeout(CALL_TIMEOUT, client.inspect_container(&id, None)).await {
                Ok(Ok(reply)) => {
                    set(Ok(()));
                    let config = reply.config.unwrap_or_default();
                    let told = Told {
                        name: reply.name.unwrap_or_default().trim_start_matches('/').to_owned(),
                        image: config.image.unwrap_or_default(),
                        labels: config.labels.unwrap_or_default().into_iter().collect(),
                        ..Told::default()
                    };
                    Said::Named(told.with_pod())
                }
                // An answer is an answer.
                Ok(Err(DockerError::DockerResponseServerError { status_code: 404, .. })) => {
                    set(Ok(()));
                    Said::Unknown
                }
                Ok(Err(error)) => {
                    set(Err(lost(&socket, &error.to_string())));
                    Said::Nothing
                }
                Err(_) => {
                    set(Err(lost(&socket, &silent())));
                    Said::Nothing
                }
            };
            // The sampler is gone: nobody wants to know.
            let _ = answer.send((id, said));
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
            set(Err(lost(socket, &error.to_string())));
            None
        }
        Err(_) => {
            set(Err(lost(socket, &silent())));
            None
        }
    }
}

/// The client while the daemon answers it.
async fn still(client: Docker, socket: &Path, set: &impl Fn(Result<(), Unavailable>)) -> Option<Docker> {
    let why = match tokio::time::timeout(CALL_TIMEOUT, client.ping()).await {
        Ok(Ok(_)) => {
            set(Ok(()));
            return Some(client);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => silent(),
    };
    set(Err(lost(socket, &why)));
    None
}

/// The state of a socket that failed us: gone, closed to us, or there and not working.
fn lost(socket: &Path, why: &str) -> Unavailable {
    match reach(socket) {
        Err(gone) => gone,
        Ok(_) => Unavailable::new(Reason::Broken, format!("{}: {why}", socket.display())),
    }
}

fn silent() -> String {
    format!("no answer within {} s", CALL_TIMEOUT.as_secs())
}
