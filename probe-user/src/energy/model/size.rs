//! Size of the machine as far as its power depends on it: chips, cores, threads, memory, and
//! whether it is a guest.

use std::{fs, io::Read as _, path::Path};

use crate::host::topology::Topology;

/// Enough for the flags of the first CPU, and for `meminfo`.
const MAX_READ: u64 = 64 << 10;

/// Chips, cores, threads and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub chips: u32,
    pub cores: u32,
    pub threads: u32,
    /// Memory in gigabytes, rounded up; `None` when unknown.
    pub memory_gb: Option<u32>,
    /// True in a virtual machine, where the other figures are those of the guest.
    pub guest: bool,
}

impl Size {
    pub(super) fn read(topology: &Topology, sysfs: &Path, procfs: &Path) -> Self {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let threads = topology.cpus(false).count();
        // Each core with two threads is in the list twice. Without the list every CPU is a core.
        let paired = topology.siblings().map_or(0, |of| of.iter().flatten().count());
        Self {
            chips: count(topology.packages(false).len()),
            cores: count(threads.saturating_sub(paired / 2)),
            threads: count(threads),
            memory_gb: memory_gb(&text(&procfs.join("meminfo"))),
            guest: is_guest(sysfs, &text(&procfs.join("cpuinfo"))),
        }
    }
}

/// The beginning of a file; empty when it cannot be read.
fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::open(path).and_then(|file| file.take(MAX_READ).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn memory_gb(meminfo: &str) -> Option<u32> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    u32::try_from(kilobytes.div_ceil(1 << 20)).ok().filter(|gigabytes| *gigabytes > 0)
}

/// x86 hypervisors set a CPU flag. Arm has none, but the firmware names the machine: in clouds the
/// guest's type, which for a whole server is called metal.
fn is_guest(sysfs: &Path, cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    if flags.is_some_and(|line| line.split_ascii_whitespace().any(|flag| flag == "hypervisor")) {
        return true;
    }
    let of = |file: &str| text(&sysfs.join("class/dmi/id").join(file)).to_lowercase();
    let (vendor, product) = (of("sys_vendor"), of("product_name"));
    if product.contains("metal") {
        return false;
    }
    let vendors = ["qemu", "amazon ec2", "google", "openstack", "xen", "vmware", "innotek", "alibaba cloud"];
    let products = ["virtual machine", "kvm", "vserver"];
    vendors.iter().any(|name| vendor.contains(name)) || products.iter().any(|name| product.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_size_follows_from_topology_and_memory() {
        let cpu = |cpu: usize, package: &str, core: &str| {
            let dir = format!("devices/system/cpu/cpu{cpu}/topology");
            [(format!("{dir}/physical_package_id"), package.to_owned()), (format!("{dir}/core_id"), core.to_owned())]
        };
        let cpus = [cpu(0, "0", "0"), cpu(1, "0", "0"), cpu(2, "1", "0"), cpu(3, "1", "0"), cpu(4, "1", "1")].concat();
        let mut files: Vec<(&str, &str)> = cpus.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        files.push(("meminfo", "MemTotal:       131900000 kB\nMemFree: 1 kB\n"));
        let dir = tree(&files);
        let size = Size::read(&Topology::read(dir.path()), dir.path(), dir.path());
        assert_eq!(size, Size { chips: 2, cores: 3, threads: 5, memory_gb: Some(126), guest: false });
        let unknown = Size::read(&Topology::read(Path::new("/nowhere")), Path::new("/nowhere"), Path::new("/nowhere"));
        assert_eq!(unknown, Size { chips: 1, cores: 1, threads: 1, memory_gb: None, guest: false });
        assert_eq!(memory_gb("MemTotal: 0 kB"), None);
    }

    #[test]
    fn a_guest_has_the_flag_or_the_firmware_of_one() {
        let nowhere = Path::new("/nowhere");
        assert!(is_guest(nowhere, "flags\t\t: fpu sse hypervisor lm\n"));
        assert!(!is_guest(nowhere, "flags\t\t: fpu sse lm\nmodel name: hypervisor\n"));
        for (vendor, product, guest) in [
            ("Amazon EC2\n", "c7g.xlarge\n", true),
            ("Amazon EC2\n", "c7g.metal\n", false),
            ("Hetzner\n", "vServer\n", true),
            ("Microsoft Corporation\n", "Virtual Machine\n", true),
            ("Dell Inc.\n", "PowerEdge R750\n", false),
        ] {
            let dir = tree(&[("class/dmi/id/sys_vendor", vendor), ("class/dmi/id/product_name", product)]);
            assert_eq!(is_guest(dir.path(), ""), guest, "{vendor}{product}");
        }
    }
}
