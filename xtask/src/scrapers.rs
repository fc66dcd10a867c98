//! Concurrent scrapers of one page: response times and errors, and the CPU time of the program
//! that answers.
//!
//! A scraper keeps its connection, as Prometheus does, and does not parse the page.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use statistics::quantile;
use testkit::{api::Client, certs::PASSWORD};

use crate::process;

/// Longer than any response takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest body that is read: a wrong length must not take all memory.
const LONGEST: usize = 256 << 20;

/// The page that is scraped.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Scheme, host and port, without a trailing slash.
    pub(crate) url: String,
    /// Path of the page; with TLS always `/metrics`.
    pub(crate) path: &'static str,
    /// The authority of its certificate, with TLS and a password.
    pub(crate) ca: Option<PathBuf>,
}

/// How often a scraper asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Once per second; the scrapers are spread over the second.
    Second,
    /// Again as soon as the last response is complete.
    Full,
}

/// The results of all scrapers.
pub(crate) struct Outcome {
    /// Response times, sorted.
    pub(crate) times: Vec<Duration>,
    pub(crate) errors: usize,
    /// Bytes of one response body, compressed.
    pub(crate) bytes: usize,
    /// CPU time of the program.
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
}

impl Outcome {
    /// Quantile of the response times in milliseconds; `None` without a response.
    pub(crate) fn milliseconds(&self, at: f64) -> Option<f64> {
        let times: Vec<f64> = self.times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        quantile(&times, at)
    }

    /// CPU time of the program per response in microseconds; `None` without a response.
    pub(crate) fn cpu_microseconds(&self) -> Option<f64> {
        (!self.times.is_empty()).then(|| self.cpu.as_secs_f64() * 1e6 / self.times.len() as f64)
    }

    /// CPU time of the program, in percent of one CPU.
    pub(crate) fn cpu_percent(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64() * 100.0
    }
}

/// Scrapes with `count` connections for `time`; `pid` is the program that answers.
///
/// # Errors
/// When the program ends. Failed requests are counted instead.
pub(crate) fn load(pid: u32, target: &Target, count: usize, pace: Pace, time: Duration) -> Result<Outcome> {
    let cpu = process::cpu_time(pid)?;
    let start = Instant::now();
    let gap = Duration::from_secs(1) / u32::try_from(count.max(1))?;
    let all: Vec<Scraped> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let first = start + gap * u32::try_from(number).unwrap_or(0);
                scope.spawn(move || scraper(target, (pace == Pace::Second).then_some(first), start + time))
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let cpu = process::cpu_time(pid)?.saturating_sub(cpu);
    let mut times: Vec<Duration> = all.iter().flat_map(|scraped| scraped.times.iter().copied()).collect();
    times.sort_unstable();
    let errors = all.iter().map(|scraped| scraped.errors).sum::<usize>() + (count - all.len());
    let bytes = all.first().map_or(0, |scraped| scraped.bytes);
    Ok(Outcome { times, errors, bytes, cpu, wall: start.elapsed() })
}

/// The results of one scraper.
#[derive(Default)]
struct Scraped {
    times: Vec<Duration>,
    errors: usize,
    bytes: usize,
}

/// Scrapes once per second from `first` on, or without a pause, until `end`.
fn scraper(target: &Target, first: Option<Instant>, end: Instant) -> Scraped {
    let mut scraped = Scraped::default();
    let mut connection = Connection::open(target);
    let mut due = first;
    while Instant::now() < end {
        if let Some(due) = &mut due {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            *due += Duration::from_secs(1);
        }
        let request_start = Instant::now();
        match connection.as_mut().map_err(|error| anyhow::anyhow!("{error}")).and_then(Connection::scrape) {
            Ok(length) => {
                scraped.times.push(request_start.elapsed());
                scraped.bytes = length;
            }
            Err(_) => {
                scraped.errors += 1;
                connection = Connection::open(target);
            }
        }
    }
    scraped
}

/// A persistent connection of a scraper.
enum Connection {
    Plain { stream: BufReader<TcpStream>, request: String },
    Secure(Box<Client>),
}

impl Connection {
    fn open(target: &Target) -> Result<Self> {
        if let Some(ca) = &target.ca {
            let client = Client::secure(&target.url, ca, Some(("prom", PASSWORD.0)), None)?;
            return Ok(Self::Secure(Box::new(client)));
        }
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n\r\n",
            target.path
        );
        Ok(Self::Plain { stream: BufReader::new(connect(&target.url)?), request })
    }

    /// Scrapes as Prometheus does; returns the number of bytes received.
    fn scrape(&mut self) -> Result<usize> {
        match self {
            Self::Secure(client) => client.scrape(),
            Self::Plain { stream, request } => {
                stream.get_mut().write_all(request.as_bytes())?;
                Ok(response(stream)?.len())
            }
        }
    }
}

fn connect(url: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// The body of a page over a connection of its own, without compression.
///
/// # Errors
/// When it does not answer, or with another status than 200.
pub(crate) fn page(url: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = BufReader::new(connect(url)?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    response(&mut stream).with_context(|| format!("{url}{path}"))
}

/// Reads a response; returns its body.
///
/// Go's server sends short bodies with a length and long ones in chunks (RFC 9112, section 7.1).
fn response(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let (mut length, mut chunked, mut line) = (None, false, String::new());
    loop {
        read_line(stream, &mut line)?;
        if line.is_empty() {
            break;
        }
        if line.starts_with("http/1.1 ") && !line.starts_with("http/1.1 200") {
            bail!("{line}");
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
        chunked |= line.strip_prefix("transfer-encoding:").is_some_and(|value| value.contains("chunked"));
    }
    let mut body = Vec::new();
    if !chunked {
        read_body(stream, length.context("no content-length")?, &mut body)?;
        return Ok(body);
    }
    loop {
        read_line(stream, &mut line)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
        if size > 0 {
            read_body(stream, size, &mut body)?;
        }
        // The end of the chunk; after the last one, the end of the trailers, which are empty.
        read_line(stream, &mut line)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Reads a line without its end, in lower case.
fn read_line(stream: &mut impl BufRead, line: &mut String) -> Result<()> {
    line.clear();
    if stream.read_line(line)? == 0 {
        bail!("the connection was closed");
    }
    *line = line.trim().to_ascii_lowercase();
    Ok(())
}

/// Appends `length` bytes to the body.
fn read_body(stream: &mut impl BufRead, length: usize, body: &mut Vec<u8>) -> Result<()> {
    let start = body.len();
    if start + length > LONGEST {
        bail!("a page of more than {LONGEST} bytes");
    }
    body.resize(start + length, 0);
    stream.read_exact(&mut body[start..])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_with_a_length_and_in_chunks_are_read() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1";
        assert_eq!(response(&mut &sized[..]).unwrap(), b"abc");
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        let mut rest = &chunked[..];
        assert_eq!(response(&mut rest).unwrap(), b"ab0123456789");
        assert!(rest.is_empty(), "the next response starts where this one ends");
    }

    #[test]
    fn another_status_and_a_closed_connection_are_errors() {
        let busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        assert!(response(&mut &busy[..]).unwrap_err().to_string().contains("503"));
        assert!(response(&mut &b"HTTP/1.1 200 OK\r\n"[..]).unwrap_err().to_string().contains("closed"));
        assert!(response(&mut &b"HTTP/1.1 200 OK\r\n\r\n"[..]).unwrap_err().to_string().contains("content-length"));
    }
}
