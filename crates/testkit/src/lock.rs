//! Locks for resources that only one test can use at a time.
//!
//! With cargo-nextest every test is a process, with `cargo test` a thread; a file lock works for
//! both. nextest's test groups (`.config/nextest.toml`) prevent that waiting tests occupy a slot;
//! without nextest, this lock alone ensures exclusive use.

use std::fs::File;

/// A resource that only one test at a time can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The CPUs of the machine, for tests that measure CPU time under load.
    Cpus,
    /// The default ports of the stack, 9090 to 9728.
    StandardPorts,
    /// The lock of the experiment runner, of which one runs per host, and its calibration.
    Runner,
    /// `/proc/sys/kernel/bpf_stats_enabled`.
    BpfStats,
    /// The scopes of the host, which one probe at a time manages.
    Scopes,
    /// `node_modules` of the browser tests.
    BrowserPackages,
}

/// The lock, held until it is dropped or the process ends.
#[derive(Debug)]
#[must_use = "dropping this releases the resource"]
pub struct Lock(#[expect(dead_code, reason = "holds the file lock")] File);

/// Waits until no other test uses the resource, and locks it.
///
/// # Panics
/// When the lock file cannot be created.
pub fn hold(resource: Resource) -> Lock {
    hold_file(&format!("{resource:?}"))
}

#[expect(clippy::panic, reason = "how a test fails")]
fn hold_file(name: &str) -> Lock {
    let path = std::env::temp_dir().join(format!("wattcast-test-{name}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    match file.and_then(|file| file.lock().map(|()| file)) {
        Ok(file) => Lock(file),
        Err(error) => panic!("cannot lock {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_is_locked_once_and_independently_of_others() {
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
