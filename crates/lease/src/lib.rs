//! Cgroup leases: cgroups that the probe creates for an experiment runner that lacks the rights to
//! create its own. This crate defines the protocol and implements the runner's side.
//!
//! A request is one line and a response is one line. `hold` leases one cgroup for the lifetime of
//! the connection; the response is `ok NAME`, where NAME is the label `container`. `enter NAME`
//! moves the requesting process, and only that process, into a cgroup that its user has leased; the
//! response is `ok NAME`. Any other response is an error message.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::fd::AsRawFd as _,
    os::unix::{ffi::OsStrExt as _, net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Request for a lease.
pub const HOLD: &str = "hold";
/// Request to move the requesting process into a leased cgroup; its name follows.
pub const ENTER: &str = "enter";
/// First word of a successful response.
pub const OK: &str = "ok";
/// Maximum length of a request or response line in bytes.
pub const MAX_LINE: usize = 256;
/// A request line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Lease a cgroup.
    Hold,
    /// Move the requesting process into the cgroup of this name.
    Enter(&'a str),
}

/// Parses a request line of at most [`MAX_LINE`] bytes; `None` if it is none.
#[must_use]
pub fn parse_request(line: &[u8]) -> Option<Request<'_>> {
    if line.len() > MAX_LINE {
        return None;
    }
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(HOLD), None, None) => Some(Request::Hold),
        (Some(ENTER), Some(name), None) => Some(Request::Enter(name)),
        _ => None,
    }
}

/// How long to wait for a response of the probe.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A leased cgroup. Dropping it ends the lease.
#[derive(Debug)]
pub struct Lease {
    /// The cgroup's name, as in the label `container`.
    pub name: String,
    socket: PathBuf,
    connection: UnixStream,
}

impl Lease {
    /// Requests a lease from the probe at `socket`.
    ///
    /// # Errors
    /// When the probe cannot be reached or refuses.
    pub fn acquire(socket: &Path) -> io::Result<Self> {
        let connection = UnixStream::connect(socket)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        (&connection).write_all(format!("{HOLD}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new((&connection).take(u64::try_from(MAX_LINE).unwrap_or(u64::MAX))).read_line(&mut line)?;
        match line.trim().split_once(' ') {
            Some((OK, name)) => Ok(Self { name: name.to_owned(), socket: socket.to_owned(), connection }),
            _ => Err(io::Error::other(line.trim().to_owned())),
        }
    }

    /// True while the probe holds the lease. It ends when the probe restarts.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let mut byte = [0u8];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer has room for one byte; MSG_PEEK leaves the byte in the socket.
        let read = unsafe { libc::recv(self.connection.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
        // The connection is open as long as there is nothing to read and no end of file.
        read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// Lets a command start in the leased cgroup. The child requests the move itself between fork
    /// and exec; exec does not happen if the probe refuses.
    ///
    /// # Errors
    /// When the path is too long for a socket address.
    pub fn enter(&self, command: &mut Command) -> io::Result<()> {
        // SAFETY: an all-zero sockaddr_un is valid.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
        let path = self.socket.as_os_str().as_bytes();
        if path.len() >= address.sun_path.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long for a socket address"));
        }
        for (to, byte) in address.sun_path.iter_mut().zip(path) {
            *to = libc::c_char::from_ne_bytes([*byte]);
        }
        let line = format!("{ENTER} {}\n", self.name).into_bytes();
        // SAFETY: request_move uses only async-signal-safe calls (socket, setsockopt, connect,
        // write, read) and does not allocate.
        unsafe {
            command.pre_exec(move || request_move(&address, &line));
        }
        Ok(())
    }
}

/// Ends the lease and waits for the probe's confirmation. After that no process of ours can enter
/// the cgroup, and processes left in it have been killed. The wait has the same timeout as a
/// response.
impl Drop for Lease {
    fn drop(&mut self) {
        // shutdown instead of close: until its exec, a child of another thread may have a copy of
        // the descriptor.
        if self.connection.shutdown(Shutdown::Write).is_ok() {
            let _ = (&self.connection).read(&mut [0]);
        }
    }
}

/// Sends an `enter` request and waits for the response, without allocating.
fn request_move(address: &libc::sockaddr_un, line: &[u8]) -> io::Result<()> {
    let check = |success: bool| if success { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the arguments are plain integers. SOCK_CLOEXEC closes the descriptor at exec.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(socket >= 0)?;
    // Without a timeout a stopped probe would block the spawn for ever.
    let timeout = libc::timeval { tv_sec: TIMEOUT.as_secs().cast_signed(), tv_usec: 0 };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let length = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
        check(
            // SAFETY: the pointer and the length describe `timeout`.
            unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const timeout).cast(), length) } == 0,
        )?;
    }
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or(0);
    // SAFETY: the pointer and the length describe `address`.
    check(unsafe { libc::connect(socket, std::ptr::from_ref(address).cast(), length) } == 0)?;
    // SAFETY: the pointer and the length describe `line`, which outlives the call.
    let written = unsafe { libc::write(socket, line.as_ptr().cast(), line.len()) };
    check(written == line.len().cast_signed())?;
    let mut response = [0u8; 2];
    // SAFETY: the buffer has room for two bytes. A successful response begins with both bytes in
    // one segment.
    let read = unsafe { libc::read(socket, response.as_mut_ptr().cast(), response.len()) };
    check(read >= 0)?;
    if response == *OK.as_bytes() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_requests_are_accepted() {
        assert_eq!(parse_request(b"hold\n"), Some(Request::Hold));
        assert_eq!(parse_request(b"enter wattcast/scope-1\n"), Some(Request::Enter("wattcast/scope-1")));
        for line in [&b""[..], b"hold now\n", b"enter\n", b"enter a b\n", b"\xff\n", &[b'x'; MAX_LINE + 1]] {
            assert_eq!(parse_request(line), None, "{line:?}");
        }
    }
}
