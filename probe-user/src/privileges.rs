//! Open as root, then drop.
//!
//! What is open stays open: counters are `pread`, maps are read, programs stay attached. So after the start the probe
//! keeps uid 0 (the Docker socket is root's) and no capability, but for CAP_BPF where the kernel still asks for it.

use caps::{CapSet, Capability, CapsHashSet};

use crate::{
    cpu::{Reader, Reading},
    jobs::Jobs,
};

/// Drops every capability that the running probe does not need, for this thread and all that it starts later.
/// Returns what was kept, with its reason.
///
/// # Errors
/// When the kernel refuses to drop; the probe must not go on then.
pub fn drop_all(
    cpu: Option<&mut dyn Reader>,
    jobs: Option<&mut Jobs>,
) -> anyhow::Result<Vec<(Capability, &'static str)>> {
    let held = caps::read(None, CapSet::Permitted)?;
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut kept = Vec::new();
    if (cpu.is_some() || jobs.is_some())
        && held.contains(&Capability::CAP_BPF)
        && !reads_without_capabilities(cpu, jobs)
    {
        kept.push((Capability::CAP_BPF, "this kernel asks for it to read a map (before 5.19)"));
    }
    let keep: CapsHashSet = kept.iter().map(|(capability, _)| *capability).collect();
    keep_only(&keep)?;
    Ok(kept)
}

/// Drops all capabilities of this thread, and of what it starts later, but `keep`.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(keep: &CapsHashSet) -> anyhow::Result<()> {
    let held = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = held.intersection(keep).copied().collect();
    // Nothing that the probe might start can win anything back.
    // SAFETY: prctl with these arguments takes no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    caps::set(None, CapSet::Ambient, &CapsHashSet::new())?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    Ok(())
}

/// Tries a reading on a thread of its own that has dropped everything: capabilities are a thread's, so this one loses
/// nothing.
fn reads_without_capabilities(cpu: Option<&mut dyn Reader>, jobs: Option<&mut Jobs>) -> bool {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                caps::clear(None, CapSet::Effective).is_ok()
                    && caps::clear(None, CapSet::Permitted).is_ok()
                    && cpu.is_none_or(|cpu| cpu.read(&mut Reading::default()).is_ok())
                    && jobs.is_none_or(|jobs| jobs.reads())
            })
            .join()
            .unwrap_or(false)
    })
}
