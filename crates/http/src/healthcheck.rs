//! The `healthcheck` command: requests `/health` of a running program, for container images without
//! another HTTP client.
//!
//! It has neither certificates nor passwords. A response that demands them counts as healthy,
//! because it proves that the program is running; a hanging sampler is only detected on a port
//! without TLS and authentication.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

/// Timeout of each step: connecting, writing, reading.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Requests `/health` of the program at `HOST:PORT`.
///
/// # Errors
/// If the program cannot be reached, or its response is not that of a healthy program.
pub fn healthcheck(address: &str) -> Result<(), String> {
    let failed = |action: &str, error: std::io::Error| failed(address, action, &error);
    let mut result = Err(format!("{address}: no such host"));
    for socket_address in address.to_socket_addrs().map_err(|error| failed("resolve the address", error))? {
        match TcpStream::connect_timeout(&socket_address, TIMEOUT) {
            Ok(stream) => return request_health(address, stream),
            Err(error) => result = Err(failed("connect", error)),
        }
    }
    result
}

fn failed(address: &str, action: &str, error: &std::io::Error) -> String {
    format!("{address}: cannot {action}: {error}")
}

fn request_health(address: &str, mut stream: TcpStream) -> Result<(), String> {
    let failed = |action: &str, error: std::io::Error| failed(address, action, &error);
    let timeouts = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    timeouts.map_err(|error| failed("set a timeout", error))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| failed("send the request", error))?;
    // The status is in the first line and the fault in the last one; both are short.
    let mut bytes = Vec::new();
    stream.take(4096).read_to_end(&mut bytes).map_err(|error| failed("read the response", error))?;
    let response = String::from_utf8_lossy(&bytes);
    let status = response.split(' ').nth(1).unwrap_or_default();
    match (response.starts_with("HTTP/1."), status) {
        (true, "200" | "401" | "403" | "429") => Ok(()),
        (true, status) => Err(format!("{address}: {status}: {}", response.lines().last().unwrap_or_default())),
        // A TLS alert (RFC 8446, section 6): the program has read the request and expects a
        // handshake.
        (false, _) if bytes.starts_with(&[0x15, 0x03]) => Ok(()),
        (false, _) => Err(format!("{address}: no HTTP response")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn check_against(response: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(response.as_bytes()).unwrap();
        });
        let result = healthcheck(&address);
        server.join().unwrap();
        result
    }

    #[test]
    fn healthy_unhealthy_and_foreign_servers_are_distinguished() {
        assert_eq!(check_against("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK"), Ok(()));
        assert!(
            check_against("HTTP/1.1 503 No\r\n\r\nthe sampler hangs").unwrap_err().ends_with("503: the sampler hangs")
        );
        assert_eq!(check_against("\u{15}\u{3}\u{3}\0\u{2}\u{2}2"), Ok(()), "behind TLS");
        assert_eq!(check_against("HTTP/1.1 401 Unauthorized\r\n\r\n"), Ok(()), "behind a password");
        assert!(check_against("SSH-2.0-x\r\n").is_err());
        assert!(check_against("").is_err());
        assert!(healthcheck("127.0.0.1:1").unwrap_err().contains("cannot connect"));
        assert!(healthcheck("nonsense").is_err());
    }
}
