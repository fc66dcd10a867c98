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
    /// Modules of the ways to a host in the order to load them; none where no guest reads energy.
    pub(super) modules: &'static [&'static str],
}

/// The files of a kernel, from the archive.
#[derive(Clone)]
pub(super) struct Image {
    /// `vmlinuz-RELEASE`.
    pub(super) file: PathBuf,
    pub(super) modules: Vec<PathBuf>,
}

/// The oldest supported kernel, and two of Debian 12.
pub(super) static KERNELS: [Kernel; 3] = [
    // The tier `kernel` needs the cgroup iterator of Linux 6.1.
    Kernel {
        version: "5.10",
        suite: "bullseye-security",
        package: "linux-image-cloud-amd64",
        tiers: &["switch", "files"],
        modules: &[],
    },
    Kernel {
        version: "6.1",
        suite: "bookworm-security",
        package: "linux-image-cloud-amd64",
        tiers: &TIERS,
        modules: &MODULES,
    },
    Kernel {
        version: "6.12",
        suite: "bookworm-security",
        package: "linux-image-6.12-cloud-amd64",
        tiers: &TIERS,
        modules: &[],
    },
];

/// QEMU's network device and vsock, below the directory of a kernel's modules.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vsock_loopback.ko",
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

pub(super) static MACHINES: [Machine; 2] = [
    Machine { name: "two sockets", smp: "2,sockets=2", packages: 2, siblings: false },
    Machine { name: "two threads per core", smp: "2,threads=2", packages: 1, siblings: true },
];

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Probes of all tiers count CPU time.
    Tiers,
    /// A probe divides the energy that the probe of this machine attributes to the guest.
    Https,
    /// A probe divides the energy that another one in the same guest attributes to a cgroup, which
    /// it reads over the loopback of vsock.
    Vsock,
}

impl Script {
    /// Words of the kernel's command line.
    pub(super) fn parameters(self) -> &'static str {
        match self {
            Self::Tiers => "script=tiers",
            Self::Https => "script=energy way=https",
            Self::Vsock => "script=energy way=vsock",
        }
    }

    /// What follows in the name of a guest.
    fn suffix(self) -> &'static str {
        match self {
            Self::Tiers => "",
            Self::Https => ", energy over HTTPS",
            Self::Vsock => ", energy over vsock",
        }
    }
}

impl Kernel {
    /// What runs on it.
    pub(super) fn tests(&self) -> impl Iterator<Item = (&'static Machine, Script)> {
        let with_energy = !self.modules.is_empty();
        let scripts = [Script::Tiers, Script::Https, Script::Vsock].into_iter();
        let scripts = scripts.filter(move |script| with_energy || *script == Script::Tiers);
        scripts.flat_map(|script| MACHINES.iter().map(move |machine| (machine, script)))
    }
}

/// The name of a test on a kernel, by its version or release.
pub(super) fn name(kernel: &str, machine: &Machine, script: Script) -> String {
    format!("{kernel}, {}{}", machine.name, script.suffix())
}

pub(super) struct Setup {
    pub(super) dir: PathBuf,
    pub(super) probe: PathBuf,
    pub(super) initramfs: PathBuf,
    /// False after a guest hung under KVM.
    pub(super) kvm: AtomicBool,
}

/// A kernel on a machine.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) machine: &'a Machine,
    pub(super) script: Script,
    pub(super) image: Image,
}
