//! Ports of 127.0.0.1 for servers under test, each given to one process at a time.

use std::{
    fs::File,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};

/// Below the ports that the kernel gives to connections (`ip_local_port_range`, 32768 and up).
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Locked files of the ports that this process was given; the kernel releases them when it ends.
static GIVEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A free port. It stays reserved for this process against all others that ask here, until this process ends.
///
/// # Errors
/// When there is none, or the directory of locks cannot be made.
pub fn free_port() -> Result<u16> {
    let dir = std::env::temp_dir().join("wattcast-ports");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes that run at once begin elsewhere each, so that few of their attempts meet.
    let start = std::process::id().wrapping_mul(101) % u32::from(COUNT);
    let mut candidates = (0..u32::from(COUNT)).map(|step| FIRST + ((start + step) % u32::from(COUNT)) as u16);
    let found = candidates.find_map(|port| {
        let path = dir.join(port.to_string());
        let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
        // A second open file of this process is refused as well: the lock belongs to the first.
        file.try_lock().ok()?;
        TcpListener::bind(("127.0.0.1", port)).ok()?;
        Some((port, file))
    });
    let Some((port, file)) = found else { bail!("no port from {FIRST} to {} is free", FIRST + COUNT) };
    given.push(file);
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
