//! Writing of result files, and the scratch directory of a run.
//!
//! Others may be able to write to the results directory. A file with a name that they can predict
//! is therefore always a new one, or is in a directory that only this user can write to: a link
//! that was planted there would select another file.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// Prefix of the scratch directory in the results directory; the process id follows.
pub(super) const SCRATCH: &str = ".wattcast-run-";

/// Writes a file atomically and syncs it to disk. It can be read by everyone whom the umask lets.
///
/// # Errors
/// When it cannot be written.
pub fn write_atomically(file: &Path, bytes: &[u8]) -> io::Result<()> {
    cli::file::replace_with_mode(file, bytes, 0o644)?;
    // The parent of a bare file name is empty and means the current directory.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// The scratch directory of this process in the results directory `dir`, created if it does not
/// exist. Only this user can use it.
///
/// # Errors
/// When it cannot be created, or another user has created it or a link in its place.
pub(super) fn scratch_dir(dir: &Path) -> io::Result<PathBuf> {
    let scratch = dir.join(format!("{SCRATCH}{}", std::process::id()));
    match DirBuilder::new().mode(0o700).create(&scratch) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(&scratch)?;
            let user = rustix::process::geteuid().as_raw();
            if !meta.is_dir() || meta.uid() != user || meta.mode() & 0o022 != 0 {
                let why = format!("{} belongs to another user; remove it", scratch.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            Ok(scratch)
        }
        created => created.map(|()| scratch),
    }
}

/// Makes a file with a program that writes to a path, atomically: `make` gets the path of a draft
/// in the scratch directory, which becomes `file` in or below the results directory `dir`.
///
/// # Errors
/// That of `make`, or that the draft cannot be created or renamed.
pub(super) fn make_atomically(
    dir: &Path,
    file: &Path,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    let scratch = scratch_dir(dir).map_err(failed)?;
    let draft = scratch.join(file.file_name().unwrap_or_default());
    let made = make(&draft).and_then(|()| fs::rename(&draft, file).map_err(failed));
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    // It stays while the run has other files in it.
    let _ = fs::remove_dir(&scratch);
    made
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn planted_link_selects_no_file_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let (file, victim) = (dir.path().join("run.csv"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        for draft in [".run.csv.part".to_owned(), format!("run.{}.new", std::process::id())] {
            symlink(&victim, dir.path().join(draft)).unwrap();
        }
        write_atomically(&file, b"a,b").unwrap();
        assert_eq!((&*fs::read(&victim).unwrap(), &*fs::read(&file).unwrap()), (&b"precious"[..], &b"a,b"[..]));
        // A clip replaces a link at its name, and its draft is out of reach.
        let clip = dir.path().join("clip.y4m");
        symlink(&victim, &clip).unwrap();
        symlink(&victim, clip.with_extension("part")).unwrap();
        make_atomically(dir.path(), &clip, |draft| fs::write(draft, "raw").map_err(|error| error.to_string())).unwrap();
        assert_eq!((&*fs::read(&victim).unwrap(), &*fs::read(&clip).unwrap()), (&b"precious"[..], &b"raw"[..]));
    }

    #[test]
    fn scratch_directory_is_private_and_no_planted_one() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = scratch_dir(dir.path()).unwrap();
        assert_eq!(fs::metadata(&scratch).unwrap().permissions().mode() & 0o077, 0);
        assert_eq!(scratch_dir(dir.path()).unwrap(), scratch, "used again");
        fs::remove_dir(&scratch).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), &scratch).unwrap();
        assert_eq!(scratch_dir(dir.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let failed = make_atomically(dir.path(), &dir.path().join("clip.y4m"), |_| panic!("no draft")).unwrap_err();
        assert!(failed.contains("belongs to another user"), "{failed}");
    }

    #[test]
    fn failed_draft_is_removed_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let make = |draft: &Path| {
            fs::write(draft, "half").unwrap();
            Err("no codec".to_owned())
        };
        assert_eq!(make_atomically(dir.path(), &dir.path().join("clip.y4m"), make), Err("no codec".to_owned()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
