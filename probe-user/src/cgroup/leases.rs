//! Cgroup leases (scopes): cgroups that the probe provides to runners without the permission to
//! create their own. The protocol is defined in [`lease`].
//!
//! The cgroups are created and `cgroup.procs` is opened as root, before the privileges are dropped.
//! Moving a process later needs no privileges, because the kernel checks the permissions of the
//! file's opener (`cgroup_procs_write`, `of->file->f_cred`, kernel/cgroup/cgroup.c, since 5.16).
//!
//! A process with access to the socket can lease a cgroup and can move itself, but no other
//! process: the process is the peer of the connection (`SO_PEERCRED`). A connection can outlive the
//! process that opened it, and the pid may then belong to another process. The probe therefore
//! opens a pidfd when a process connects, and moves the process only if it is still running and
//! belongs to the user of the connection.

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lease::{MAX_LINE, OK, Request, parse_request};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tracing::warn;

use crate::{
    cgroup::{hierarchy, tree::Trees},
    host::availability::{Reason, Unavailable},
};

/// The parent cgroup of all leased cgroups, below the root of the tree that counts CPU time.
const PARENT: &str = "wattcast";
/// Maximum number of cgroups.
pub const MAX_LEASES: usize = 64;
/// Maximum number of concurrent connections: one for each lease, and several `enter` requests at
/// the same time.
const MAX_CONNECTIONS: usize = 256;
/// Time for which the end of killed processes is awaited.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of a request and of a response.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// One cgroup that can be leased.
struct LeaseSlot {
    name: String,
    dir: PathBuf,
    procs: File,
    /// `cgroup.kill`, where the kernel has it (v2, since 5.14).
    kill: Option<File>,
    /// The user id of the current lease.
    holder: Mutex<Option<u32>>,
}

/// The cgroups and the socket.
pub struct LeaseServer {
    slots: Arc<[LeaseSlot]>,
    listener: UnixListener,
    path: PathBuf,
    /// The parent cgroup, locked so that only one probe of the host uses it.
    _parent: File,
}

impl LeaseServer {
    /// Creates the socket and `count` cgroups below `cgroupfs`, or takes over those of an earlier
    /// probe.
    ///
    /// # Errors
    /// The failed path, the reason and a remedy.
    pub fn open(cgroupfs: &Path, path: &Path, group: Option<&str>, count: usize) -> Result<Self, Unavailable> {
        let of = |what: &Path, error: &io::Error, remedy: &str| {
            Unavailable::new(Reason::of(error), format!("{}: {error}. {remedy}", what.display()))
        };
        let trees =
            Trees::find(cgroupfs).map_err(|error| of(cgroupfs, &error, "Set the mount point with --path.cgroupfs"))?;
        // CPU time is counted by v2 leaf; v1 is used only without v2.
        let root = trees
            .root(hierarchy::V2)
            .or_else(|| trees.root(hierarchy::V1_CPU))
            .ok_or_else(|| Unavailable::new(Reason::Absent, "no cgroup tree counts CPU time here"))?;
        let parent = root.join(PARENT);
        let writable = "The probe needs write access to the cgroup tree at its start: run it as root, under systemd with ProtectControlGroups=no, in a container \
                        with the host's tree mounted read-write";
        let create = |dir: &Path| match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(of(dir, &error, writable)),
            _ => Ok(()),
        };
        create(&parent)?;
        // Lock before processes are killed: they may belong to leases of another running probe.
        let locked = File::open(&parent).map_err(|error| of(&parent, &error, writable))?;
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = format!("{}: another probe uses the scopes of this host; run only one", parent.display());
                return Err(Unavailable::new(Reason::Broken, why));
            }
            Err(TryLockError::Error(error)) => return Err(of(&parent, &error, writable)),
        }
        let mut slots = Vec::new();
        for number in 1..=count {
            // The path, which is also the label `container`.
            let name = format!("{PARENT}/scope-{number}");
            let dir = root.join(&name);
            create(&dir)?;
            let file = dir.join("cgroup.procs");
            let procs = OpenOptions::new().write(true).open(&file).map_err(|error| of(&file, &error, writable))?;
            let kill = OpenOptions::new().write(true).open(dir.join("cgroup.kill")).ok();
            // Processes of leases of an earlier probe.
            if let Some(kill) = &kill {
                let _ = (&*kill).write_all(b"1");
            }
            slots.push(LeaseSlot { name, dir, procs, kill, holder: Mutex::new(None) });
        }
        let listener = bind_socket(path, group)
            .map_err(|error| of(path, &error, "Set --scope.socket to a path that the probe can write"))?;
        Ok(Self { slots: slots.into(), listener, path: path.to_owned(), _parent: locked })
    }

    /// A summary for users.
    #[must_use]
    pub fn detail(&self) -> String {
        format!("{} scopes at {}", self.slots.len(), self.path.display())
    }

    /// Starts to serve. Call this after the privileges are dropped.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn start(self) -> io::Result<()> {
        let served = Arc::new(AtomicUsize::new(0));
        thread::Builder::new().name("scopes".into()).spawn(move || {
            // The thread owns everything, including the lock.
            let this = self;
            for stream in this.listener.incoming() {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        warn!("scopes: {error}");
                        thread::sleep(Duration::from_secs(1));
                        continue;
                    }
                };
                if served.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                    served.fetch_sub(1, Ordering::Relaxed);
                    let _ = (&stream).write_all(b"too many connections; try again in a second\n");
                    continue;
                }
                let (slots, count) = (this.slots.clone(), served.clone());
                let spawned = thread::Builder::new().name("scope".into()).spawn(move || {
                    // An error ends only this connection.
                    let _ = serve(&slots, &stream);
                    count.fetch_sub(1, Ordering::Relaxed);
                });
                if spawned.is_err() {
                    served.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })?;
        Ok(())
    }
}

/// Creates the socket with access for root, and for a group if one is configured.
fn bind_socket(path: &Path, group: Option<&str>) -> io::Result<UnixListener> {
    let group = group.map(group_id).transpose()?;
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another probe uses this socket"));
        }
        fs::remove_file(path)?;
    }
    let socket = bind_private(path)?;
    if let Some(group) = group {
        grant_access(path, group)?;
    }
    // The queue of the standard library.
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from(socket))
}

/// Binds a socket that only its owner can connect to, whatever the umask: the file gets the mode
/// that the socket has before (`unix_bind_bsd`, net/unix/af_unix.c). Changed afterwards, the file
/// would have the mode that the umask leaves for a moment.
fn bind_private(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Lets a group connect to the socket at `path`. Where others may write to the directory, another
/// file may be there by now: it is opened without following a link, and only a socket is changed.
fn grant_access(path: &Path, group: u32) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("another program has replaced the socket"));
    }
    // A descriptor of O_PATH is changed by its name in procfs (man 2 open).
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::os::unix::fs::chown(&file, None, Some(group))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o660))
}

/// The id of a group, given by name or number.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = CString::new(name)?;
    // SAFETY: the string is NUL-terminated; no other thread calls getgrnam during the start, and
    // the result is copied at once.
    let found = unsafe { libc::getgrnam(text.as_ptr()) };
    if found.is_null() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name:?}")));
    }
    // SAFETY: the pointer is not null, and its data is valid until the next call of getgrnam.
    Ok(unsafe { (*found).gr_gid })
}

/// Process and user at the other end of the connection.
fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `found`.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

/// Opens a pidfd, which always refers to this process even if its pid is reused.
fn open_pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are integers.
    let found = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let found = libc::c_int::try_from(found).map_err(io::Error::other)?;
    if found < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// True while the process of a pidfd is running.
fn is_running(process: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which is ours. A pidfd is readable once its process has ended.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 0 }
}

/// Reads the request line, with one timeout for the whole line.
fn read_line(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (end, mut bytes) = (Instant::now() + IO_TIMEOUT, Vec::new());
    while !bytes.ends_with(b"\n") && bytes.len() < MAX_LINE {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    Ok(bytes)
}

/// Serves one connection. A lease ends with its connection.
fn serve(slots: &[LeaseSlot], stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    let peer = peer(stream)?;
    // Open the pidfd as early as possible: if the pid is reused later, the pidfd shows that the
    // process has ended.
    let process = open_pidfd(peer.pid);
    let line = read_line(stream)?;
    match parse_request(&line) {
        Some(Request::Hold) => {
            let Some(slot) = slots.iter().find(|slot| slot.try_lease(peer.uid)) else {
                return respond(
                    stream,
                    "every scope is leased or has processes in it; start the probe with a larger --scope.count",
                );
            };
            let lease = ActiveLease(slot);
            respond(stream, &format!("{OK} {}", slot.name))?;
            stream.set_read_timeout(None)?;
            // Wait for the end of the connection. More input is a protocol error and ends the
            // lease, too.
            let mut stream = stream;
            let _ = stream.read(&mut [0]);
            // Before the connection is closed, because the runner waits for that to know that the
            // cgroup is free.
            drop(lease);
            Ok(())
        }
        Some(Request::Enter(name)) => match slots.iter().find(|slot| slot.name == name) {
            Some(slot) => match process.and_then(|process| slot.enter(&process, &peer)) {
                Ok(()) => respond(stream, &format!("{OK} {name}")),
                Err(error) => respond(stream, &format!("cannot enter {name}: {error}")),
            },
            None => respond(stream, "there is no scope of this name"),
        },
        None => respond(stream, "unknown request; send hold or enter NAME"),
    }
}

fn respond(mut stream: &UnixStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}

impl LeaseSlot {
    fn holder(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
    }

    /// Leases the cgroup to a user. Returns false if it is leased or has processes in it, whose
    /// energy the new holder would be charged for.
    fn try_lease(&self, user: u32) -> bool {
        let mut holder = self.holder();
        let free = holder.is_none() && self.is_empty();
        if free {
            *holder = Some(user);
        }
        free
    }

    /// Moves the connected process into the cgroup if its user holds the lease. The lock keeps the
    /// lease unchanged meanwhile.
    fn enter(&self, process: &OwnedFd, peer: &libc::ucred) -> io::Result<()> {
        let denied = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
        let holder = self.holder();
        if *holder != Some(peer.uid) {
            return denied("your user does not hold this scope");
        }
        // The kernel reports 0 for a process outside of our pid namespace, and writing 0 would move
        // the probe itself.
        if peer.pid <= 0 {
            return denied("the process is not in the probe's process namespace");
        }
        // The process with this pid must belong to the user, and must still be the one that
        // connected.
        let owner = fs::metadata(format!("/proc/{}", peer.pid))?.uid();
        if owner != peer.uid || !is_running(process) {
            return denied("the connected process has ended");
        }
        (&self.procs).write_all(peer.pid.to_string().as_bytes())
    }
}

/// An active lease. When it ends, the processes left in the cgroup are killed.
struct ActiveLease<'a>(&'a LeaseSlot);

impl Drop for ActiveLease<'_> {
    fn drop(&mut self) {
        let mut holder = self.0.holder();
        if let Some(mut kill) = self.0.kill.as_ref() {
            let _ = kill.write_all(b"1");
            let end = Instant::now() + KILL_TIMEOUT;
            while !self.0.is_empty() && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
            }
        }
        *holder = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn socket_is_private_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scopes.sock");
        let socket = bind_private(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(socket);
        // A socket without a listener is replaced.
        let listener = bind_socket(&path, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(bind_socket(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let own = fs::metadata(dir.path()).unwrap().gid().to_string();
        let _listener = bind_socket(&path, Some(&own)).unwrap();
        assert_eq!(mode(&path), 0o660);
    }

    #[test]
    fn access_is_granted_to_no_file_behind_a_planted_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("scopes.sock"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let group = fs::metadata(dir.path()).unwrap().gid();
        assert!(grant_access(&path, group).is_err() && grant_access(&victim, group).is_err());
        assert!(bind_socket(&path, None).is_err(), "no other file is replaced");
        assert_eq!(mode(&victim), 0o600);
    }
}
