//! Locks between test processes, one per resource that only one test can use at a time.
//!
//! Under cargo-nextest every test is a process, under `cargo test` a thread; a locked file serves
//! both. nextest's test groups (`.config/nextest.toml`) keep tests that would wait here from taking
//! a slot; the lock keeps them right without nextest.

use std::fs::File;

/// What only one test at a time can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The CPUs of the machine: for tests that keep them busy and measure what they did.
    Cpus,
    /// The ports 9090 to 9728 that the stack has where it is installed.
    StandardPorts,
    /// The lock that one experiment runner per host holds, and the calibration that belongs to it.
    Runner,
    /// `/proc/sys/kernel/bpf_stats_enabled`.
    BpfStats,
    /// The scopes of the host, which one probe keeps at a time.
    Scopes,
}

/// Held until dropped, or until the process ends.
#[derive(Debug)]
#[must_use = "the resource is free again when this is dropped"]
pub struct Held(#[expect(dead_code, reason = "its lock is what counts")] File);

/// Waits until no other test uses the resource.
///
/// # Panics
/// When the file of the lock cannot be made.
pub fn hold(resource: Resource) -> Held {
    hold_file(&format!("{resource:?}"))
}

#[expect(clippy::panic, reason = "how a test fails")]
fn hold_file(name: &str) -> Held {
    let path = std::env::temp_dir().join(format!("wattcast-test-{name}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    match file.and_then(|file| file.lock().map(|()| file)) {
        Ok(file) => Held(file),
        Err(error) => panic!("cannot lock {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_resource_is_held_once_and_another_independently() {
        let [this, other] = ["this", "other"].map(|name| format!("unit-{name}-{}", std::process::id()));
        let first = hold_file(&this);
        let _other = hold_file(&other);
        let waiting = std::thread::spawn(move || drop(hold_file(&this)));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(first);
        waiting.join().unwrap();
    }
}
