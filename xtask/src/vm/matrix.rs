//! The kernels, CPU topologies and guests of `vm-test`.

use std::{path::PathBuf, sync::atomic::AtomicBool};

pub(super) struct Kernel {
    /// First part of its release.
    pub(super) version: &'static str,
    pub(super) suite: &'static str,
    /// Package that depends on the newest build.
    pub(super) package: &'static str,
    /// CPU tiers that work on it.
    pub(super) tiers: &'static [&'static str],
}

/// The oldest supported kernel, and two of Debian 12.
pub(super) const KERNELS: [Kernel; 3] = [
    // The tier `kernel` needs the cgroup iterator of Linux 6.1.
    Kernel {
        version: "5.10",
        suite: "bullseye-security",
        package: "linux-image-cloud-amd64",
        tiers: &["switch", "files"],
    },
    Kernel { version: "6.1", suite: "bookworm-security", package: "linux-image-cloud-amd64", tiers: &TIERS },
    Kernel { version: "6.12", suite: "bookworm-security", package: "linux-image-6.12-cloud-amd64", tiers: &TIERS },
];

/// CPU tiers of guests. QEMU has no hardware counters.
pub(super) const TIERS: [&str; 3] = ["switch", "kernel", "files"];

/// The CPU topology of a guest.
pub(super) struct Machine {
    pub(super) name: &'static str,
    pub(super) smp: &'static str,
    pub(super) packages: usize,
    /// True for two threads per core.
    pub(super) siblings: bool,
}

pub(super) const MACHINES: [Machine; 2] = [
    Machine { name: "two sockets", smp: "2,sockets=2", packages: 2, siblings: false },
    Machine { name: "two threads per core", smp: "2,threads=2", packages: 1, siblings: true },
];

pub(super) struct Setup {
    pub(super) dir: PathBuf,
    pub(super) initramfs: PathBuf,
    /// False after a guest hung under KVM.
    pub(super) kvm: AtomicBool,
}

/// A kernel on a machine.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) machine: &'a Machine,
    pub(super) image: PathBuf,
}
