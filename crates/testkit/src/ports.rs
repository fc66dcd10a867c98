//! Free ports of 127.0.0.1 for servers under test, each reserved for one process.

use std::{
    fs::File,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};

/// Below the ephemeral ports of the kernel (`ip_local_port_range`, 32768 and up).
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Lock files of the ports of this process; the kernel releases the locks when it ends.
static RESERVED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A free port, which stays reserved for this process until it ends.
///
/// # Errors
/// When no port is free, or the lock directory cannot be created.
pub fn free_port() -> Result<u16> {
    let dir = std::env::temp_dir().join("wattcast-ports");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    // Concurrent processes start at different ports, so that few attempts collide.
    let start = std::process::id().wrapping_mul(101) % u32::from(COUNT);
    let mut candidates = (0..u32::from(COUNT)).map(|step| FIRST + ((start + step) % u32::from(COUNT)) as u16);
    let found = candidates.find_map(|port| {
        let path = dir.join(port.to_string());
        let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
        // Also fails for another open file of this process: the lock belongs to the open file.
        file.try_lock().ok()?;
        TcpListener::bind(("127.0.0.1", port)).ok()?;
        Some((port, file))
    });
    let Some((port, file)) = found else { bail!("no port from {FIRST} to {} is free", FIRST + COUNT) };
    reserved.push(file);
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_reserved_once() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
