//! An HTTP server that keeps what is posted to it, and fails as a test demands.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Result;

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Posted {
    /// The path with its query.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body as it was sent.
    pub body: Vec<u8>,
    /// The status of the answer.
    pub status: u16,
}

#[derive(Default)]
struct State {
    /// Status and headers of the next answers.
    answers: VecDeque<(u16, String)>,
    posted: Vec<Posted>,
}

/// A running server on a free port. It answers with status 200 unless [`Receiver::fail`] sets
/// another, and runs until the process ends.
pub struct Receiver {
    url: String,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    /// Starts the server.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || answer(&stream, &shared));
            }
        });
        Ok(Self { url, state })
    }

    /// The base URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next `times` requests with this status, and with header lines that end in CRLF.
    pub fn fail(&self, status: u16, headers: &str, times: usize) {
        lock(&self.state).answers.extend(std::iter::repeat_n((status, headers.to_owned()), times));
    }

    /// Answers with status 200 from now on.
    pub fn recover(&self) {
        lock(&self.state).answers.clear();
    }

    /// All requests so far.
    #[must_use]
    pub fn posted(&self) -> Vec<Posted> {
        lock(&self.state).posted.clone()
    }

    /// The requests that were answered with status 200.
    #[must_use]
    pub fn accepted(&self) -> Vec<Posted> {
        self.posted().into_iter().filter(|posted| posted.status == 200).collect()
    }
}

/// Reads one request, answers it, and closes the connection.
fn answer(mut stream: &TcpStream, state: &Mutex<State>) {
    let Some((path, headers, body)) = read(stream) else { return };
    let (status, extra) = {
        let mut state = lock(state);
        let (status, extra) = state.answers.pop_front().unwrap_or((200, String::new()));
        state.posted.push(Posted { path, headers, body, status });
        (status, extra)
    };
    let head = format!("HTTP/1.1 {status} Status\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n");
    // The client may have gone.
    let _ = stream.write_all(head.as_bytes());
}

type Request = (String, BTreeMap<String, String>, Vec<u8>);

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse()).ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, headers, body))
}
