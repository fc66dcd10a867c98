//! `healthcheck`: asks a running program whether it is alive, for images that have no other program in them.
//!
//! Without TLS and passwords, which a container that watches itself has not: a door that asks for them is answered by a program that lives, and that much is told. Whether its sampler
//! hangs, too, is seen where the port is open.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

/// Of each step: connecting, asking, reading.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks `HOST:PORT` for `/health`.
///
/// # Errors
/// Why it is not alive.
pub fn healthcheck(address: &str) -> Result<(), String> {
    let told = |what: &str, error: std::io::Error| told(address, what, &error);
    let all = address.to_socket_addrs().map_err(|error| told("find it", error))?;
    let mut last = Err(format!("{address}: no such host"));
    for at in all {
        match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(stream) => return ask(address, stream),
            Err(error) => last = Err(told("connect", error)),
        }
    }
    last
}

fn told(address: &str, what: &str, error: &std::io::Error) -> String {
    format!("{address}: cannot {what}: {error}")
}

fn ask(address: &str, mut stream: TcpStream) -> Result<(), String> {
    let told = |what: &str, error: std::io::Error| told(address, what, &error);
    let patience = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    patience.map_err(|error| told("wait", error))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| told("ask", error))?;
    // The status is in the first line, and what is wrong in the last; neither is long.
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).map_err(|error| told("read the answer", error))?;
    let bytes = answer;
    let answer = String::from_utf8_lossy(&bytes);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    match (answer.starts_with("HTTP/1."), status) {
        (true, "200" | "401" | "403" | "429") => Ok(()),
        (true, status) => Err(format!("{address}: {status}: {}", answer.lines().last().unwrap_or_default())),
        // An alert of TLS (RFC 8446, section 6): the program has read what was asked, and wants a handshake.
        (false, _) if bytes.starts_with(&[0x15, 0x03]) => Ok(()),
        (false, _) => Err(format!("{address}: no answer over HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn said(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let said = healthcheck(&address);
        server.join().unwrap();
        said
    }

    #[test]
    fn alive_sick_and_something_else_are_told_apart() {
        assert_eq!(said("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK"), Ok(()));
        assert!(said("HTTP/1.1 503 No\r\n\r\nthe sampler hangs").unwrap_err().ends_with("503: the sampler hangs"));
        assert_eq!(said("\u{15}\u{3}\u{3}\0\u{2}\u{2}2"), Ok(()), "behind TLS");
        assert_eq!(said("HTTP/1.1 401 Unauthorized\r\n\r\n"), Ok(()), "behind a password");
        assert!(said("SSH-2.0-x\r\n").is_err());
        assert!(said("").is_err());
        assert!(healthcheck("127.0.0.1:1").unwrap_err().contains("cannot connect"));
        assert!(healthcheck("nonsense").is_err());
    }
}
