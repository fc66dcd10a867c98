//! Calls to a container engine with Docker's API on a Unix socket: bounded in time, in size and in
//! number, and never blocking the thread.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::{
    Request, StatusCode,
    header::{CONNECTION, HOST},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use super::runtime_files::{RuntimeMetadata, parse_docker_config};
use crate::host::availability::{Reason, Unavailable};

/// Longest time of a single call.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of an answer. A description of a container has some kilobytes.
const MAX_ANSWER: usize = 4 << 20;

/// The engine behind a socket.
#[derive(Clone, Debug)]
pub(super) struct DockerEngine {
    socket: PathBuf,
}

/// The answer to a question for a container.
#[derive(Debug)]
pub(super) enum Inspection {
    Found(RuntimeMetadata),
    /// The engine works, and has no such container.
    NotFound,
}

impl DockerEngine {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Whether the socket accepts a connection now. A full queue of the engine is an error and does
    /// not block.
    pub(super) fn try_connect(&self) -> Result<(), Unavailable> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let connected = (|| -> rustix::io::Result<OwnedFd> {
            let descriptor = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&descriptor, &SocketAddrUnix::new(&self.socket)?)?;
            Ok(descriptor)
        })();
        connected.map(drop).map_err(|error| docker_error(&self.socket, &error.into()))
    }

    /// Waits until the engine responds, for as long as it takes: while it is blocked, one
    /// connection waits in its queue and no further ones are made.
    pub(super) async fn ping(&self) -> Result<(), Unavailable> {
        self.get("/_ping").await.map(drop)
    }

    /// Requests the metadata of a container by its full id.
    ///
    /// # Errors
    /// When the engine does not answer in time, or with something else than a container.
    pub(super) async fn inspect(&self, id: &str) -> Result<Inspection, Unavailable> {
        let (status, body) = match timeout(CALL_TIMEOUT, self.get(&format!("/containers/{id}/json"))).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.no_answer()),
        };
        match (status, parse_docker_config(&body)) {
            (StatusCode::NOT_FOUND, _) => Ok(Inspection::NotFound),
            (StatusCode::OK, Some(metadata)) => Ok(Inspection::Found(metadata)),
            (StatusCode::OK, None) => Err(self.broken("the answer describes no container")),
            (status, _) => Err(self.broken(format!("it answers {status}"))),
        }
    }

    /// The state of an engine that does not answer in time.
    pub(super) fn no_answer(&self) -> Unavailable {
        self.broken(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))
    }

    fn broken(&self, why: impl fmt::Display) -> Unavailable {
        Unavailable::new(Reason::Broken, format!("{}: {why}", self.socket.display()))
    }

    /// One request on a connection of its own, which is closed with the answer.
    async fn get(&self, path: &str) -> Result<(StatusCode, Vec<u8>), Unavailable> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| docker_error(&self.socket, &error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let _driver = AbortOnDrop(tokio::spawn(async move {
            // Its error is reported by the request.
            let _ = connection.await;
        }));
        let request = Request::get(path).header(HOST, "docker").header(CONNECTION, "close").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| self.broken(error))?;
        Ok((status, body.to_bytes().to_vec()))
    }
}

/// Closes the connection when the call ends, or is given up.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether the socket of an engine accepts a connection now.
///
/// # Errors
/// Why not, with the remedy.
pub fn docker_state(socket: &Path) -> Result<(), Unavailable> {
    DockerEngine::new(socket).try_connect()
}

/// The state of a socket that refuses a connection: what, why, and what to do.
fn docker_error(socket: &Path, error: &io::Error) -> Unavailable {
    let (reason, remedy) = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            (Reason::Denied, "run the probe as root, or allow its user to use the socket")
        }
        io::ErrorKind::NotFound => (Reason::Absent, "start Docker, or set the socket with --docker.socket"),
        // A socket file without a listener belongs to an engine that has stopped.
        io::ErrorKind::ConnectionRefused => (Reason::Absent, "start Docker, which has stopped"),
        // A non-blocking connection to a listener with a full queue.
        io::ErrorKind::WouldBlock => (Reason::Broken, "its queue of connections is full; restart Docker"),
        _ => (Reason::Broken, "restart Docker, or set the socket with --docker.socket"),
    };
    Unavailable::new(reason, format!("{}: {error}. Containers are labelled with their ids; {remedy}", socket.display()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// An engine that gives one answer to each connection.
    fn engine(answer: Vec<u8>) -> (tempfile::TempDir, DockerEngine) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(&answer);
            }
        });
        (dir, DockerEngine::new(&socket))
    }

    fn answer(status: &str, body: &[u8]) -> Vec<u8> {
        let mut all = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        all.extend(body);
        all
    }

    #[test]
    fn containers_are_found_missing_or_refused() {
        let text = br#"{"Name":"/cam","Config":{"Image":"ffmpeg:7","Labels":{"team":"live"}}}"#;
        let inspect = |answer: Vec<u8>| {
            let (_dir, engine) = engine(answer);
            runtime().block_on(engine.inspect("abc"))
        };
        match inspect(answer("200 OK", text)) {
            Ok(Inspection::Found(metadata)) => assert_eq!((&*metadata.name, &*metadata.image), ("cam", "ffmpeg:7")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(inspect(answer("404 Not Found", b"{}")), Ok(Inspection::NotFound)));
        for broken in [answer("500 No", b""), answer("200 OK", b"[]"), b"no HTTP\r\n".to_vec(), Vec::new()] {
            assert_eq!(inspect(broken).unwrap_err().reason, Reason::Broken);
        }
    }

    #[test]
    fn a_huge_answer_is_refused_before_it_is_in_memory() {
        let mut endless = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000000\r\n\r\n".to_vec();
        endless.resize(MAX_ANSWER + (1 << 20), b' ');
        let (_dir, engine) = engine(endless);
        let why = runtime().block_on(engine.inspect("abc")).unwrap_err();
        assert!(why.detail.contains("length limit exceeded"), "{why}");
    }

    #[test]
    fn an_engine_with_a_full_queue_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // A queue of one, which two connections fill: nothing is accepted.
        rustix::net::listen(&listener, 1).unwrap();
        let engine = DockerEngine::new(&socket);
        let (_first, _second) = (engine.try_connect(), engine.try_connect());
        let why = (0..100).find_map(|_| engine.try_connect().err()).unwrap();
        assert_eq!(why.reason, Reason::Broken);
        assert!(why.detail.contains("its queue of connections is full"), "{why}");
        assert_eq!(runtime().block_on(engine.inspect("abc")).unwrap_err().reason, Reason::Broken);
    }

    #[test]
    fn an_engine_that_accepts_and_never_answers_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let why = runtime().block_on(DockerEngine::new(&socket).inspect("abc")).unwrap_err();
        assert!(why.detail.contains("no answer within 2 s"), "{why}");
    }

    /// A denied socket said "start Docker".
    #[test]
    fn each_state_of_the_socket_has_its_remedy() {
        let text = |kind: io::ErrorKind| docker_error(Path::new("/run/docker.sock"), &kind.into()).to_string();
        assert_eq!(
            text(io::ErrorKind::PermissionDenied),
            "denied: /run/docker.sock: permission denied. Containers are labelled with their ids; run the probe as root, or allow its user to use the socket"
        );
        assert_eq!(
            text(io::ErrorKind::NotFound),
            "absent: /run/docker.sock: entity not found. Containers are labelled with their ids; start Docker, or set the socket with --docker.socket"
        );
    }
}
