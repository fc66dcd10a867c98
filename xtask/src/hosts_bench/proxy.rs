//! A proxy before a probe that makes it slow, or its clock wrong.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// Longest head of a request or response.
const MAX_HEAD: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Every answer comes this much later.
    Delay(Duration),
    /// The clock is off by seconds.
    Skew(i64),
}

/// A running proxy; its threads end after this is dropped.
pub(super) struct Proxy {
    pub url: String,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    pub(super) fn start(upstream: &str, fault: Fault) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let upstream = upstream.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::Builder::new().name("proxy".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let upstream = upstream.clone();
                // A client that goes away is no error of the measurement.
                thread::spawn(move || forward(client, &upstream, fault).ok());
            }
        })?;
        Ok(Self { url: format!("http://{address}"), address, stop })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

/// Forwards one request without a body, and closes both connections.
fn forward(mut client: TcpStream, upstream: &str, fault: Fault) -> Result<()> {
    let head = read_head(&mut client)?;
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(with_header(&head, "connection", "close").as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    if let Fault::Delay(delay) = fault {
        thread::sleep(delay);
    }
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("an answer without a head")? + 4;
    let (head, body) = answer.split_at(end);
    let mut head = String::from_utf8_lossy(head).into_owned();
    if let Fault::Skew(seconds) = fault {
        head = with_skewed_clock(&head, seconds);
    }
    client.write_all(head.as_bytes())?;
    client.write_all(body)?;
    client.shutdown(Shutdown::Write)?;
    Ok(())
}

fn read_head(stream: &mut TcpStream) -> Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head)?)
}

/// The head with a header set.
fn with_header(head: &str, name: &str, value: &str) -> String {
    let is_it = |line: &str| line.split_once(':').is_some_and(|(known, _)| known.eq_ignore_ascii_case(name));
    let kept: Vec<&str> = head.trim_end().split("\r\n").filter(|line| !is_it(line)).collect();
    format!("{}\r\n{name}: {value}\r\n\r\n", kept.join("\r\n"))
}

/// The head with the times of the host's clock off by seconds.
fn with_skewed_clock(head: &str, seconds: i64) -> String {
    ["date", "last-modified"].into_iter().fold(head.to_owned(), |head, name| {
        let value = head.split("\r\n").find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        });
        match value.and_then(|value| skewed(&value, seconds)) {
            Some(value) => with_header(&head, name, &value),
            None => head,
        }
    })
}

/// A time of HTTP later by seconds; `None` for another format.
fn skewed(time: &str, seconds: i64) -> Option<String> {
    // GNU date reads and writes the format of HTTP.
    let mut command = std::process::Command::new("date");
    command.env("LC_ALL", "C").args(["-u", "+%a, %d %b %Y %H:%M:%S GMT", "-d", &format!("{time} {seconds:+} seconds")]);
    testkit::shell::output(&mut command).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use testkit::api::Client;

    /// A server that answers every request with a page.
    fn server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = read_head(&mut stream);
                let head = "HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 23:30:00 GMT\r\nContent-Length: 4\r\n\r\n";
                let _ = stream.write_all(format!("{head}a 1\n").as_bytes());
            }
        });
        url
    }

    #[test]
    fn a_slow_answer_is_complete_and_late() {
        let proxy = Proxy::start(&server(), Fault::Delay(Duration::from_millis(300))).unwrap();
        let start = Instant::now();
        assert_eq!(Client::new(&proxy.url).text("/metrics").unwrap(), "a 1\n");
        assert!(start.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn only_the_times_of_a_skewed_answer_differ() {
        let head = "HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 23:30:00 GMT\r\nContent-Length: 4\r\n\r\n";
        let expected = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\ndate: Tue, 01 Dec 2026 00:30:00 GMT\r\n\r\n";
        assert_eq!(with_skewed_clock(head, 3600), expected);
        let proxy = Proxy::start(&server(), Fault::Skew(3600)).unwrap();
        assert_eq!(Client::new(&proxy.url).text("/metrics").unwrap(), "a 1\n");
    }
}
