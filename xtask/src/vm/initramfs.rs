//! The initramfs of guests.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use testkit::shell::{output, which};

/// The first process of a guest, and the scripts that it runs.
const SCRIPTS: [(&str, &str); 3] = [
    ("init", include_str!("init.sh")),
    ("tiers.sh", include_str!("tiers.sh")),
    ("energy.sh", include_str!("energy.sh")),
];

/// Writes an archive of busybox, the probe with its shared libraries, and the scripts.
pub(super) fn pack(probe: &Path, to: &Path) -> Result<()> {
    let mut out = Vec::new();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "lib64", "lib", "lib/x86_64-linux-gnu", "etc"] {
        entry(&mut out, dir, 0o040_755, &[]);
    }
    for (name, script) in SCRIPTS {
        entry(&mut out, name, 0o100_755, script.as_bytes());
    }
    let busybox = which("busybox").context("busybox is not in PATH")?;
    for (from, name) in [(&*busybox, "bin/busybox"), (probe, "probe")] {
        entry(&mut out, name, 0o100_755, &fs::read(from).with_context(|| format!("{}", from.display()))?);
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader without an arrow.
    for line in output(Command::new("ldd").arg(probe))?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let name = path.trim_start_matches('/').replacen("usr/", "", 1);
        if let Some((dir, _)) = name.rsplit_once('/') {
            entry(&mut out, dir, 0o040_755, &[]);
        }
        entry(&mut out, &name, 0o100_755, &fs::read(path)?);
    }
    finish(out, to)
}

/// Writes a copy of an archive that has further files in a directory of its root. The kernel
/// unpacks archives that follow each other into the same tree.
pub(super) fn extend(archive: &Path, dir: &str, files: &[(String, Vec<u8>)], to: &Path) -> Result<()> {
    let mut out = fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    entry(&mut out, dir, 0o040_755, &[]);
    for (name, content) in files {
        entry(&mut out, &format!("{dir}/{name}"), 0o100_600, content);
    }
    finish(out, to)
}

fn finish(mut out: Vec<u8>, to: &Path) -> Result<()> {
    entry(&mut out, "TRAILER!!!", 0, &[]);
    fs::write(to, out).with_context(|| format!("cannot write {}", to.display()))
}

/// Appends a file in the newc archive format
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(out: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let fields = [0, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_padded_header_name_and_content() {
        let mut out = Vec::new();
        entry(&mut out, "ab", 0o100_644, b"12345");
        assert_eq!(out.len(), 116 + 8);
        assert_eq!(&out[..22], b"07070100000000000081A4");
        assert_eq!(&out[110..], b"ab\x00\x00\x00\x0012345\x00\x00\x00");
    }
}
