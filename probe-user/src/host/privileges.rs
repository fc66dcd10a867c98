//! Capabilities: the probe opens everything as root, then drops what it does not need.
//!
//! What is open stays open: counters are `pread`, maps are read, programs stay attached. After the
//! start the probe keeps uid 0 (the Docker socket is root's) and no capability, except CAP_BPF
//! where the kernel needs it.

#![allow(unsafe_code)]

use caps::{CapSet, Capability, CapsHashSet};

/// Drops every capability that the running probe does not need, for this thread and every thread
/// that it starts later. Returns the capabilities that remain, each with its reason.
/// `trial_reading` reads the eBPF maps; it is `None` where no map is in use.
///
/// # Errors
/// When the kernel refuses. The probe must not continue then.
pub fn drop_all(
    trial_reading: Option<impl FnOnce() -> bool + Send>,
) -> anyhow::Result<Vec<(Capability, &'static str)>> {
    drop_all_but(Vec::new(), trial_reading)
}

/// Like [`drop_all`], and keeps the capabilities in `remaining`, each with its reason.
///
/// # Errors
/// When the kernel refuses. The probe must not continue then.
pub fn drop_all_but(
    mut remaining: Vec<(Capability, &'static str)>,
    trial_reading: Option<impl FnOnce() -> bool + Send>,
) -> anyhow::Result<Vec<(Capability, &'static str)>> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if permitted.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(trial_reading) = trial_reading
        && permitted.contains(&Capability::CAP_BPF)
        && !succeeds_without_capabilities(trial_reading)
    {
        remaining.push((Capability::CAP_BPF, "this kernel requires it to read a map (before 5.19)"));
    }
    let keep: CapsHashSet = remaining.iter().map(|(capability, _)| *capability).collect();
    keep_only(&keep)?;
    Ok(remaining)
}

/// Drops all capabilities except `keep`, for this thread and every thread that it starts later.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(keep: &CapsHashSet) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = permitted.intersection(keep).copied().collect();
    // No program that the probe might start can regain a capability.
    // SAFETY: prctl with these arguments takes no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    caps::set(None, CapSet::Ambient, &CapsHashSet::new())?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    Ok(())
}

/// Runs `reading` on a thread that has dropped all its capabilities. Capabilities belong to a
/// thread, so the caller keeps its own.
fn succeeds_without_capabilities(reading: impl FnOnce() -> bool + Send) -> bool {
    std::thread::scope(|scope| {
        let trial = || {
            caps::clear(None, CapSet::Effective).is_ok() && caps::clear(None, CapSet::Permitted).is_ok() && reading()
        };
        scope.spawn(trial).join().unwrap_or(false)
    })
}
