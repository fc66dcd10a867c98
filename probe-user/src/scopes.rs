//! Scopes: cgroups that the probe keeps for runners which may make none. Made and opened as root, before the privileges go; what is done with them later needs
//! none, because the kernel asks whether the one who opened `cgroup.procs` might write it (`cgroup_procs_write`, `of->file->f_cred`, kernel/cgroup/cgroup.c, since 5.16).
//!
//! Who may connect to the socket may hold a scope, and may move itself, never another: the process is the one that the kernel names as the peer (`SO_PEERCRED`). Its number may be
//! another's by the time that it asks, for a connection outlives who made it: so it is held by a pidfd from the moment that it connects, must be of the user who connected, and
//! must live when it is moved. The words are those of [`exporter::scope`].

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
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

use exporter::scope::{ENTER, HOLD, MAX_LINE, OK};
use tracing::warn;

use crate::{
    containers::tree::Trees,
    cpu::hierarchy,
    state::{Reason, Unavailable},
};

/// The directory of all scopes, below the root of the tree that counts CPU time.
const HOME: &str = "wattcast";
/// Most scopes.
pub const MOST: usize = 64;
/// Connections at once: every scope may be held, and entered by some at the same moment.
const CONNECTIONS: usize = 256;
/// How long those who were left in a scope may take to be gone; a kill is only a signal.
const GONE: Duration = Duration::from_secs(2);
/// How long somebody who has connected may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// One scope.
struct Slot {
    name: String,
    dir: PathBuf,
    procs: File,
    /// `cgroup.kill`, where the kernel has it (v2, since 5.14).
    kill: Option<File>,
    /// Whose it is now, by user.
    holder: Mutex<Option<u32>>,
}

/// All of them, and where one asks for them.
pub struct Scopes {
    slots: Arc<[Slot]>,
    listener: UnixListener,
    path: PathBuf,
    /// The directory of all, which one probe keeps at a time.
    _home: File,
}

impl Scopes {
    /// Makes `count` cgroups below `cgroupfs`, or takes those of an earlier probe, and the socket.
    ///
    /// # Errors
    /// What is missing, denied or broken, with what to do.
    pub fn open(cgroupfs: &Path, path: &Path, group: Option<&str>, count: usize) -> Result<Self, Unavailable> {
        let of = |what: &Path, error: &io::Error, remedy: &str| {
            Unavailable::new(Reason::of(error), format!("{}: {error}. {remedy}", what.display()))
        };
        let trees =
            Trees::find(cgroupfs).map_err(|error| of(cgroupfs, &error, "Name the mount with --path.cgroupfs"))?;
        // The v2 leaf is who is counted; v1 only where there is no v2.
        let root = trees
            .root(hierarchy::V2)
            .or_else(|| trees.root(hierarchy::V1_CPU))
            .ok_or_else(|| Unavailable::new(Reason::Absent, "no cgroup tree counts CPU time here"))?;
        let home = root.join(HOME);
        let writable = "The probe must be able to write the cgroup tree at its start: as root, under systemd with ProtectControlGroups=no, in a container with the \
                        host's tree mounted to write";
        let made = |dir: &Path| match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(of(dir, &error, writable)),
            _ => Ok(()),
        };
        made(&home)?;
        // Before anybody is ended in them: another probe's holders are not ours.
        let kept = File::open(&home).map_err(|error| of(&home, &error, writable))?;
        match kept.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = format!("{}: another probe keeps the scopes of this host; one is enough", home.display());
                return Err(Unavailable::new(Reason::Broken, why));
            }
            Err(TryLockError::Error(error)) => return Err(of(&home, &error, writable)),
        }
        let mut slots = Vec::new();
        for number in 1..=count {
            // As a cgroup is called on the page: by its path.
            let name = format!("{HOME}/scope-{number}");
            let dir = root.join(&name);
            made(&dir)?;
            let file = dir.join("cgroup.procs");
            let procs = OpenOptions::new().write(true).open(&file).map_err(|error| of(&file, &error, writable))?;
            let kill = OpenOptions::new().write(true).open(dir.join("cgroup.kill")).ok();
            // What an earlier probe left in it is nobody's now.
            if let Some(kill) = &kill {
                let _ = (&*kill).write_all(b"1");
            }
            slots.push(Slot { name, dir, procs, kill, holder: Mutex::new(None) });
        }
        let listener = socket(path, group)
            .map_err(|error| of(path, &error, "Name a place that the probe may write with --scope.socket"))?;
        Ok(Self { slots: slots.into(), listener, path: path.to_owned(), _home: kept })
    }

    /// For people.
    #[must_use]
    pub fn detail(&self) -> String {
        format!("{} scopes at {}", self.slots.len(), self.path.display())
    }

    /// Serves from now on. Only after the privileges are gone.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(self) -> io::Result<()> {
        let served = Arc::new(AtomicUsize::new(0));
        thread::Builder::new().name("scopes".into()).spawn(move || {
            // All of it lives as long as this thread, the lock too.
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
                if served.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                    served.fetch_sub(1, Ordering::Relaxed);
                    let _ = (&stream).write_all(b"too many ask at once; try again in a second\n");
                    continue;
                }
                let (slots, count) = (this.slots.clone(), served.clone());
                let spawned = thread::Builder::new().name("scope".into()).spawn(move || {
                    // Somebody who goes away takes nobody with it.
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

/// The socket, for root, and for a group where one is named.
fn socket(path: &Path, group: Option<&str>) -> io::Result<UnixListener> {
    let group = group.map(group_id).transpose()?;
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another probe serves it"));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
    Ok(listener)
}

/// A group by its name, or by its number.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = CString::new(name)?;
    // SAFETY: a text with its end; nobody else asks for groups at the start, and the answer is copied at once.
    let found = unsafe { libc::getgrnam(text.as_ptr()) };
    if found.is_null() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no group {name:?}")));
    }
    // SAFETY: not null, and of the C library until it is asked again.
    Ok(unsafe { (*found).gr_gid })
}

/// Who has connected: process and user, as the kernel says.
fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, which is what there is room for.
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

/// A process that is held: its number stands for it alone.
fn held(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let found = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let found = libc::c_int::try_from(found).map_err(io::Error::other)?;
    if found < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// True while a held process lives.
fn lives(process: &OwnedFd) -> bool {
    let mut asked = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which is ours. A pidfd is readable once its process has ended.
    unsafe { libc::poll(&raw mut asked, 1, 0) == 0 }
}

/// The line that is asked with, within one time-out for all of it.
fn line(mut stream: &UnixStream) -> io::Result<String> {
    let (end, mut bytes) = (Instant::now() + PATIENCE, Vec::new());
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
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Answers one who has connected. A scope that it holds is free again when it goes.
fn serve(slots: &[Slot], stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = peer(stream)?;
    // As soon as can be: a number is another's only after this process has ended, and then it does not live.
    let process = held(peer.pid);
    let line = line(stream)?;
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(HOLD), None, None) => {
            let Some(slot) = slots.iter().find(|slot| slot.take(peer.uid)) else {
                return say(
                    stream,
                    "every scope is held, or has processes in it; start the probe with more: --scope.count",
                );
            };
            let held = Held(slot);
            say(stream, &format!("{OK} {}", slot.name))?;
            stream.set_read_timeout(None)?;
            // Until it goes. Who says more has not understood, and is let go.
            let mut stream = stream;
            let _ = stream.read(&mut [0]);
            // Before the connection ends, by which who gave it back knows that it is free.
            drop(held);
            Ok(())
        }
        (Some(ENTER), Some(name), None) => match slots.iter().find(|slot| slot.name == name) {
            Some(slot) => match process.and_then(|process| slot.enter(&process, &peer)) {
                Ok(()) => say(stream, &format!("{OK} {name}")),
                Err(error) => say(stream, &format!("cannot enter {name}: {error}")),
            },
            None => say(stream, "there is no scope of this name"),
        },
        _ => say(stream, "say hold, or enter NAME"),
    }
}

fn say(mut stream: &UnixStream, what: &str) -> io::Result<()> {
    stream.write_all(format!("{what}\n").as_bytes())
}

impl Slot {
    fn holder(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
    }

    /// Gives it to a user, unless somebody has it, or is still in it: its joules would be theirs.
    fn take(&self, user: u32) -> bool {
        let mut holder = self.holder();
        let free = holder.is_none() && self.is_empty();
        if free {
            *holder = Some(user);
        }
        free
    }

    /// Moves a process that connected, if its user holds this. The scope cannot change hands meanwhile.
    fn enter(&self, process: &OwnedFd, peer: &libc::ucred) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
        let holder = self.holder();
        if *holder != Some(peer.uid) {
            return refused("your user does not hold this scope");
        }
        // 0 would be ourselves; the kernel says it of who is in no process namespace of ours.
        if peer.pid <= 0 {
            return refused("the process is not in the probe's process namespace");
        }
        // Whoever has the number now must be of that user; and then it must still be the one that connected.
        let owner = fs::metadata(format!("/proc/{}", peer.pid))?.uid();
        if owner != peer.uid || !lives(process) {
            return refused("who connected is not there any more");
        }
        (&self.procs).write_all(peer.pid.to_string().as_bytes())
    }
}

/// A scope while somebody holds it. Nobody is left in it afterwards: what ran there belonged to its holder.
struct Held<'a>(&'a Slot);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut holder = self.0.holder();
        if let Some(mut kill) = self.0.kill.as_ref() {
            let _ = kill.write_all(b"1");
            let end = Instant::now() + GONE;
            while !self.0.is_empty() && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
            }
        }
        *holder = None;
    }
}
