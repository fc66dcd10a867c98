//! The user that called sudo, with whose rights the command runs.
//!
//! sudo leaves its caller's ids in SUDO_UID and SUDO_GID. The supplementary groups are those of
//! /etc/group: a lookup by the name service could load modules and ask a network as root, and a
//! group that only it knows is left out, which gives the command fewer rights and never more.

#![allow(unsafe_code)]

use std::{fs, io, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

/// The largest number of supplementary groups that the kernel accepts (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;
/// What to do when the caller is not known.
const REMEDY: &str = "set both as sudo does, unset both, or run the command as root with --as-root";

/// Ids of a user that is not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    uid: libc::uid_t,
    gid: libc::gid_t,
    /// Supplementary groups; the primary group is among them, as after a login.
    groups: Vec<libc::gid_t>,
}

impl Caller {
    /// The user that called sudo; `None` if this process is not root's, or was not started by a
    /// user through sudo.
    ///
    /// # Errors
    /// When SUDO_UID is set but does not name a user, or SUDO_GID no group: the command must not
    /// run as root then.
    pub(super) fn of_sudo() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self::of_ids(variable("SUDO_UID").as_deref(), variable("SUDO_GID").as_deref(), Path::new("/etc"))
    }

    /// Reads `passwd` and `group` in `etc`.
    fn of_ids(uid: Option<&str>, gid: Option<&str>, etc: &Path) -> Result<Option<Self>> {
        let Some(uid_text) = uid else { return Ok(None) };
        let uid = id(uid_text).with_context(|| format!("SUDO_UID={uid_text} is not a user id: {REMEDY}"))?;
        if uid == 0 {
            return Ok(None);
        }
        let Some(gid_text) = gid else { bail!("SUDO_UID={uid_text} is set, but SUDO_GID is not: {REMEDY}") };
        let gid = id(gid_text).with_context(|| format!("SUDO_GID={gid_text} is not a group id: {REMEDY}"))?;
        let name = read(&etc.join("passwd"))?.lines().find_map(|line| user_name(line, uid).map(str::to_owned));
        let groups = match name {
            Some(name) => groups_of(&read(&etc.join("group"))?, &name, gid),
            // A user of a directory service: only the primary group is certain.
            None => vec![gid],
        };
        if groups.len() > MAX_GROUPS {
            bail!("user {uid} is in {} groups, more than the kernel accepts; use --as-root", groups.len());
        }
        Ok(Some(Self { uid, gid, groups }))
    }

    /// Lets a command start with the rights of this user. Whatever needs the rights of root must be
    /// arranged on `command` before.
    pub(super) fn become_in(self, command: &mut Command) {
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || self.become_now());
        }
    }

    /// Gives up root for good. The groups come first, because without root's user id they cannot be
    /// changed any more; the saved ids are set too, so that nothing is left to return to.
    fn become_now(&self) -> io::Result<()> {
        let done = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: the pointer and the length are those of the vector; the kernel only reads it.
        done(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
        // SAFETY: takes no pointers.
        done(unsafe { libc::setresgid(self.gid, self.gid, self.gid) })?;
        // SAFETY: takes no pointers.
        done(unsafe { libc::setresuid(self.uid, self.uid, self.uid) })?;
        // A process with odd securebits, or a module that allows it, could still become root.
        // SAFETY: takes no pointers.
        let user_regained = unsafe { libc::setuid(0) } == 0;
        // SAFETY: takes no pointers.
        let group_regained = self.gid != 0 && unsafe { libc::setgid(0) } == 0;
        if user_regained || group_regained { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
    }
}

/// A user or group id. The largest number means "unchanged" to the kernel and is no id.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn read(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // An image may have neither file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read {} for the groups of the caller", path.display()))
        }
    }
}

/// The name in a line of passwd (`name:password:uid:gid:…`), if the line is that of `uid`.
fn user_name(line: &str, uid: u32) -> Option<&str> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    (fields.nth(1)? == uid.to_string()).then_some(name)
}

/// The groups that have `user` as a member (`name:password:gid:user,user`), after the primary one.
fn groups_of(text: &str, user: &str, primary: u32) -> Vec<u32> {
    let mut all = vec![primary];
    for line in text.lines() {
        let mut fields = line.split(':').skip(2);
        let (Some(gid), Some(members)) = (fields.next().and_then(id), fields.next()) else { continue };
        if members.split(',').any(|member| member.trim() == user) && !all.contains(&gid) {
            all.push(gid);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:100::/:/bin/sh\n";
        let group = "root:x:0:bob\nvideo:x:44:bob,ann\nrender:x:105:ann\nannex:x:7:annex\nbad:x:no:ann\n\
                     ann:x:1000:\nvideo2:x:44:ann\nall:x:4294967295:ann\nshort:x\n";
        fs::write(dir.path().join("passwd"), passwd).unwrap();
        fs::write(dir.path().join("group"), group).unwrap();
        dir
    }

    #[test]
    fn the_caller_of_sudo_has_its_groups_of_the_file() {
        let etc = etc();
        let caller = |uid, gid| Caller::of_ids(uid, gid, etc.path());
        assert_eq!(
            caller(Some("1000"), Some("1000")).unwrap(),
            Some(Caller { uid: 1000, gid: 1000, groups: vec![1000, 44, 105] })
        );
        let unknown = Caller { uid: 5000, gid: 6000, groups: vec![6000] };
        assert_eq!(caller(Some("5000"), Some("6000")).unwrap(), Some(unknown), "no user of passwd");
    }

    #[test]
    fn without_a_user_behind_sudo_nothing_changes() {
        let etc = etc();
        assert_eq!(Caller::of_ids(None, None, etc.path()).unwrap(), None);
        assert_eq!(Caller::of_ids(None, Some("1000"), etc.path()).unwrap(), None);
        assert_eq!(Caller::of_ids(Some("0"), Some("0"), etc.path()).unwrap(), None);
    }

    #[test]
    fn a_caller_that_cannot_be_read_is_an_error_and_not_root() {
        let etc = etc();
        for (uid, gid) in [
            (Some("ann"), Some("1000")),
            (Some(""), Some("1000")),
            (Some("-1"), Some("1000")),
            (Some("4294967295"), Some("1000")),
            (Some("1000"), Some("4294967295")),
            (Some("1000"), Some("x")),
            (Some("1000"), None),
        ] {
            let error = Caller::of_ids(uid, gid, etc.path()).unwrap_err();
            assert!(format!("{error:#}").contains("--as-root"), "{uid:?} {gid:?}: {error:#}");
        }
    }

    #[test]
    fn a_system_without_user_files_has_only_the_primary_group() {
        let empty = tempfile::tempdir().unwrap();
        let caller = Caller::of_ids(Some("1000"), Some("50"), empty.path()).unwrap().unwrap();
        assert_eq!(caller.groups, [50]);
    }

    /// The ids of a process that has become the caller, as `id` prints them.
    #[test]
    fn a_command_of_the_caller_has_no_way_back_to_root() {
        let may = |capability| caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false);
        if !may(caps::Capability::CAP_SETUID) || !may(caps::Capability::CAP_SETGID) {
            return;
        }
        let caller = Caller { uid: 61_234, gid: 61_235, groups: vec![61_235, 61_236] };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapAmb):' /proc/self/status"]).current_dir("/");
        caller.become_in(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let fields = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(fields("Uid:"), ["61234"; 4]);
        assert_eq!(fields("Gid:"), ["61235"; 4]);
        assert_eq!(fields("Groups:"), ["61235", "61236"]);
        for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(fields(set), ["0000000000000000"], "{set}");
        }
    }
}
