//! Docker images from programs of this machine, where no image can be pulled: a program, its shared
//! libraries, and busybox for a shell and wget.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use testkit::shell::{output, which};

/// The shared libraries of a program; none for a static one.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let Ok(text) = output(Command::new("ldd").arg(program)) else { return BTreeSet::new() };
    let words = text.lines().flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn copy_to(root: &Path, file: &Path) -> Result<()> {
    let to = root.join(file.strip_prefix("/").unwrap_or(file));
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file without a directory")?)?;
    fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

/// Creates an image with these programs and files at their own paths, and the entry point `entry`.
pub fn make(image: &str, programs: &[&Path], files: &[&Path], entry: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("root");
    fs::create_dir(&root)?;
    let busybox = which("busybox");
    for program in programs.iter().copied().chain(busybox.as_deref()) {
        copy_to(&root, program)?;
        for library in libraries(program) {
            copy_to(&root, &library)?;
        }
    }
    for file in files {
        copy_to(&root, file)?;
    }
    for dir in ["bin", "tmp", "etc", "proc", "sys", "dev", "run", "var/lib/nginx", "var/run", "var/log/nginx"] {
        fs::create_dir_all(root.join(dir))?;
    }
    if let Some(busybox) = busybox {
        for name in ["sh", "wget"] {
            let _ = symlink(&busybox, root.join("bin").join(name));
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nwww-data:x:33:33::/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\nwww-data:x:33:\n")?;
    let archive = dir.path().join("root.tar");
    output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
    let mut import = Command::new("docker");
    import.arg("import");
    if !entry.is_empty() {
        import.args(["--change", &format!("ENTRYPOINT {}", serde_json::to_string(entry)?)]);
    }
    output(import.arg(&archive).arg(image))?;
    Ok(())
}
