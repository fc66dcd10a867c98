//! Scopes: cgroups that the probe keeps for a runner, which may make none. Here is what both say, and the runner's side of it.
//!
//! One line to ask, one line to answer. `hold` makes one scope the asker's for as long as the connection lasts; the answer is `ok NAME`, the name as in the
//! label `container`. `enter NAME` moves the asking process itself, and nobody else, into a scope that its user holds; the answer is `ok NAME`. Anything else
//! is the reason why not.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::fd::AsRawFd as _,
    os::unix::{ffi::OsStrExt as _, net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Asks for a scope.
pub const HOLD: &str = "hold";
/// Asks to be moved into one; a name follows.
pub const ENTER: &str = "enter";
/// Begins an answer that grants.
pub const OK: &str = "ok";
/// Longest line.
pub const MAX_LINE: usize = 256;
/// How long the probe may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A scope that is ours until this is dropped.
#[derive(Debug)]
pub struct Scope {
    /// Its name, as in the label `container`.
    pub name: String,
    socket: PathBuf,
    held: UnixStream,
}

impl Scope {
    /// Asks the probe at `socket` for one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn hold(socket: &Path) -> io::Result<Self> {
        let held = UnixStream::connect(socket)?;
        held.set_read_timeout(Some(PATIENCE))?;
        (&held).write_all(format!("{HOLD}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new((&held).take(u64::try_from(MAX_LINE).unwrap_or(u64::MAX))).read_line(&mut line)?;
        match line.trim().split_once(' ') {
            Some((OK, name)) => Ok(Self { name: name.to_owned(), socket: socket.to_owned(), held }),
            _ => Err(io::Error::other(line.trim().to_owned())),
        }
    }

    /// True while the probe that gave it still holds it for us: not after it was started anew.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let mut byte = [0u8];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: room for one byte, which stays where it is.
        let read = unsafe { libc::recv(self.held.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
        // Nothing said, and not gone.
        read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    /// Lets a command begin its life in the scope: it asks for that itself, between fork and exec, and is not run where it is refused.
    ///
    /// # Errors
    /// When the path is too long for a socket's.
    pub fn enter(&self, command: &mut Command) -> io::Result<()> {
        // SAFETY: all zero is a valid address of no family.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
        let path = self.socket.as_os_str().as_bytes();
        if path.len() >= address.sun_path.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too long for the path of a socket"));
        }
        for (to, byte) in address.sun_path.iter_mut().zip(path) {
            *to = libc::c_char::from_ne_bytes([*byte]);
        }
        let line = format!("{ENTER} {}\n", self.name).into_bytes();
        // SAFETY: only calls that may stand between fork and exec: socket, connect, write, read; nothing is allocated.
        unsafe {
            command.pre_exec(move || ask(&address, &line));
        }
        Ok(())
    }
}

/// Given back, and not on its way: afterwards nobody of ours is let in any more, and whoever was left in it has been ended. A probe that does not answer is
/// waited for as long as for an answer.
impl Drop for Scope {
    fn drop(&mut self) {
        // Not by closing: a child of another thread may have a copy of the descriptor until its exec.
        if self.held.shutdown(Shutdown::Write).is_ok() {
            let _ = (&self.held).read(&mut [0]);
        }
    }
}

/// Asks, and waits for the answer, without the heap.
fn ask(address: &libc::sockaddr_un, line: &[u8]) -> io::Result<()> {
    let failed = |done: bool| if done { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: plain numbers. The descriptor goes with the exec.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    failed(socket >= 0)?;
    // A probe that was stopped would be waited for, for ever, in the middle of a spawn.
    let patience = libc::timeval { tv_sec: PATIENCE.as_secs().cast_signed(), tv_usec: 0 };
    for which in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let length = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
        failed(
            // SAFETY: a time of its own length.
            unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, which, (&raw const patience).cast(), length) } == 0,
        )?;
    }
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or(0);
    // SAFETY: an address of its own length.
    failed(unsafe { libc::connect(socket, std::ptr::from_ref(address).cast(), length) } == 0)?;
    // SAFETY: bytes that live as long as the call.
    let written = unsafe { libc::write(socket, line.as_ptr().cast(), line.len()) };
    failed(written == line.len().cast_signed())?;
    let mut answer = [0u8; 2];
    // SAFETY: room for two bytes. Both come at once, or the answer is no.
    let read = unsafe { libc::read(socket, answer.as_mut_ptr().cast(), answer.len()) };
    failed(read >= 0)?;
    if answer == *OK.as_bytes() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}
