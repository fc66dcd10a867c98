//! Classifies a cgroup by its path.
//!
//! Container runtimes put the 64 hex digits of the container's id into the name of its cgroup.
//! Guests (virtual machines, system containers) and the jobs of schedulers have their name in it.
//! The deepest match wins because Docker in Docker and kind nest containers (Kepler #923), and
//! guests contain both systemd's units and containers.

use std::borrow::Cow;

/// The kind of workload in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workload<'a> {
    /// The root cgroup, and systemd's slices, services and scopes.
    System,
    Container {
        /// `docker`, `containerd`, `crio`, `podman`, `kata`, or `unknown` where the path does not
        /// contain it.
        runtime: &'static str,
        /// 64 hex digits.
        id: &'a str,
    },
    /// A guest, or a job of a scheduler, with a name in its path.
    Guest {
        /// `libvirt`, `nspawn`, `proxmox`, `lxc`, `kata`, `nomad` or `slurm`.
        runtime: &'static str,
        /// The name of the machine, the task or the job.
        name: Cow<'a, str>,
        /// The path of its topmost cgroup, which identifies it.
        top: &'a str,
    },
    /// Any other cgroup, created by a user or another tool; its path is its name.
    Plain,
}

const ID_LENGTH: usize = 64;

/// Suffixes of systemd units that have cgroups.
const UNITS: [&str; 3] = [".slice", ".service", ".scope"];

/// Classifies the cgroup at `path` (from the root of its tree, with a leading slash).
#[must_use]
pub fn classify(path: &str) -> Workload<'_> {
    let mut end = 0;
    let segments: Vec<Segment<'_>> = path
        .split('/')
        .map(|name| {
            let segment = Segment { name, end: end + name.len() };
            end = segment.end + 1;
            segment
        })
        .filter(|segment| !segment.name.is_empty())
        .collect();
    let mut monitor = false;
    for (depth, segment) in segments.iter().enumerate().rev() {
        let parents = &segments[..depth];
        if is_monitor(segment.name, parents) {
            monitor = true;
        } else if let Some((prefix, id)) = container_id(segment.name) {
            return Workload::Container { runtime: runtime(prefix, parents), id };
        } else if let Some((runtime, name)) = named(segment.name, parents) {
            return Workload::Guest { runtime, name, top: &path[..segment.end] };
        }
    }
    match segments.first() {
        None => Workload::System,
        Some(_) if monitor => Workload::System,
        Some(first) if UNITS.iter().any(|unit| first.name.ends_with(unit)) => Workload::System,
        Some(_) => Workload::Plain,
    }
}

/// A component of a path, and where it ends.
#[derive(Clone, Copy, Debug)]
struct Segment<'a> {
    name: &'a str,
    end: usize,
}

/// True for the monitor of a container, which runs outside of the container: conmon, and LXC's.
fn is_monitor(segment: &str, parents: &[Segment<'_>]) -> bool {
    container_id(segment).is_some_and(|(prefix, _)| prefix.contains("conmon"))
        || segment.starts_with("lxc.monitor.")
        || is_below(parents, "lxc.monitor")
}

fn is_below(parents: &[Segment<'_>], name: &str) -> bool {
    parents.last().is_some_and(|parent| parent.name == name)
}

/// Runtime and name of a guest or a scheduler's job whose topmost cgroup this is.
///
/// - systemd-machined: `machine-NAME.scope` and `systemd-nspawn@NAME.service`, escaped (man 5
///   systemd.unit). libvirt calls its machines `DRIVER-NUMBER-NAME`
///   (`virDomainDriverGenerateMachineName`, src/hypervisor/domain_driver.c), and without systemd
///   its cgroups `DRIVER-NUMBER-NAME.libvirt-qemu`.
/// - Proxmox: `qemu.slice/NUMBER.scope`, and LXC below `lxc` (PVE/QemuServer.pm, PVE/LXC.pm).
/// - LXC: `lxc.payload.NAME`, before 4.0 `lxc.payload/NAME` and `lxc/NAME` (man 5
///   lxc.container.conf).
/// - Kata: `kata_NAME`, `kata_overhead/NAME` (src/runtime/pkg/resourcecontrol).
/// - Nomad: `nomad.slice/share.slice/ALLOCATION.TASK.scope`, on v1 `nomad/ALLOCATION.TASK`
///   (client/lib/cgroupslib).
/// - Slurm: `slurmstepd.scope/job_NUMBER`, with the node's name before it where a host has several;
///   on v1 `slurm/uid_NUMBER/job_NUMBER` (man 5 cgroup.conf).
fn named<'a>(segment: &'a str, parents: &[Segment<'_>]) -> Option<(&'static str, Cow<'a, str>)> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let whole = |name: &'a str| (!name.is_empty()).then_some(Cow::Borrowed(name));
    if let Some(machine) = segment.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope")) {
        let machine = unescape(machine);
        return match domain(&machine) {
            Some(domain) => Some(("libvirt", Cow::Owned(domain.to_owned()))),
            None => (!machine.is_empty()).then_some(("nspawn", machine)),
        };
    }
    if let Some(machine) = segment.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service")) {
        return (!machine.is_empty()).then(|| ("nspawn", unescape(machine)));
    }
    for suffix in [".libvirt-qemu", ".libvirt-lxc"] {
        if let Some(machine) = segment.strip_suffix(suffix) {
            return Some(("libvirt", whole(domain(machine).unwrap_or(machine))?));
        }
    }
    if is_below(parents, "qemu.slice") && is_number(bare) {
        return Some(("proxmox", Cow::Borrowed(bare)));
    }
    if let Some(name) = segment.strip_prefix("lxc.payload.") {
        return Some(("lxc", whole(name)?));
    }
    if is_below(parents, "lxc.payload") || is_below(parents, "lxc") {
        return Some(("lxc", Cow::Borrowed(segment)));
    }
    if is_below(parents, "kata_overhead") {
        return Some(("kata", Cow::Borrowed(bare)));
    }
    if let Some((prefix, name)) = bare.split_once("kata_")
        && is_prefix(prefix)
        && name != "overhead"
    {
        return Some(("kata", whole(name)?));
    }
    if parents.iter().any(|parent| parent.name == "nomad" || parent.name == "nomad.slice")
        && let Some((allocation, task)) = bare.split_once('.')
        && is_uuid(allocation)
        && !task.is_empty()
    {
        return Some(("nomad", unescape(task)));
    }
    if is_below(parents, "nomad") && !["share", "shared", "reserve", "reserved"].contains(&segment) {
        return Some(("nomad", Cow::Borrowed(bare)));
    }
    let in_slurm = |parent: &Segment<'_>| parent.name.starts_with("slurm") || parent.name.ends_with("slurmstepd.scope");
    if segment.strip_prefix("job_").is_some_and(is_number) && parents.iter().any(in_slurm) {
        return Some(("slurm", Cow::Borrowed(segment)));
    }
    None
}

/// The domain of a libvirt machine: `web` of `qemu-1-web`.
fn domain(machine: &str) -> Option<&str> {
    let (driver, rest) = machine.split_once('-')?;
    let (number, name) = rest.split_once('-')?;
    (["qemu", "lxc", "xen", "ch"].contains(&driver) && is_number(number) && !name.is_empty()).then_some(name)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_uuid(text: &str) -> bool {
    let part = |(length, part): (usize, &str)| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let lengths = [8, 4, 4, 4, 12];
    text.split('-').count() == lengths.len() && lengths.into_iter().zip(text.split('-')).all(part)
}

/// Resolves the `\xNN` of a systemd unit's name (man 5 systemd.unit, "String escaping").
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains("\\x") {
        return Cow::Borrowed(text);
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let [b'\\', b'x', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            bytes.push((high << 4) | low);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The path of a container's topmost cgroup. `path` is that cgroup or one below it, and contains
/// the container's id.
#[must_use]
pub fn topmost<'a>(path: &'a str, id: &str) -> &'a str {
    let Some(at) = path.rfind(id) else { return path };
    let rest = &path[at + id.len()..];
    &path[..path.len() - rest.len() + rest.find('/').unwrap_or(rest.len())]
}

/// The systemd service or transient scope of a cgroup; `None` for slices and for login sessions.
#[must_use]
pub fn unit(path: &str) -> Option<&str> {
    let last = path.rsplit('/').next()?;
    let login = last.starts_with("session-") || last.starts_with("user@") || last == "init.scope";
    let unit = last.ends_with(".service") || last.ends_with(".scope");
    (unit && !login && !last.contains("conmon") && container_id(last).is_none()).then_some(last)
}

/// The prefix and the id in `docker-<id>.scope`, `cri-containerd:<id>`, `kata_<id>`, `<id>`.
fn container_id(segment: &str) -> Option<(&str, &str)> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let at = bare.len().checked_sub(ID_LENGTH)?;
    if !bare.is_char_boundary(at) {
        return None;
    }
    let (prefix, id) = bare.split_at(at);
    let hex = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (hex && (is_prefix(prefix) || prefix.strip_suffix("kata_").is_some_and(is_prefix))).then_some((prefix, id))
}

/// True for what a runtime puts before an id.
fn is_prefix(text: &str) -> bool {
    text.is_empty() || text.ends_with(['-', ':'])
}

fn runtime(prefix: &str, parents: &[Segment<'_>]) -> &'static str {
    let named = |text: &str| -> Option<&'static str> {
        Some(match text {
            _ if text.ends_with("kata_") || text == "kata_overhead" => "kata",
            _ if text.contains("docker") => "docker",
            _ if text.contains("crio") => "crio",
            _ if text.contains("libpod") => "podman",
            _ if text.contains("containerd") => "containerd",
            _ => return None,
        })
    };
    named(prefix).or_else(|| parents.iter().rev().find_map(|parent| named(parent.name))).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "ffff456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn container(path: &str) -> (&'static str, String) {
        match classify(path) {
            Workload::Container { runtime, id } => (runtime, id.to_owned()),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn every_supported_runtime_is_recognised_by_its_path() {
        for (path, runtime) in [
            (format!("/docker/{A}"), "docker"),
            (format!("/system.slice/docker-{A}.scope"), "docker"),
            (format!("/docker/{A}/init"), "docker"),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{A}.scope"), "containerd"),
            (format!("/kubepods/besteffort/pod1/{A}"), "unknown"),
            (format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{A}"), "containerd"),
            (format!("/kubepods.slice/crio-{A}.scope"), "crio"),
            (format!("/machine.slice/libpod-{A}.scope/container"), "podman"),
            (format!("/libpod_parent/libpod-{A}"), "podman"),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"), "podman"),
            (format!("/kubepods/burstable/pod1/kata_{A}"), "kata"),
            (format!("/kata_overhead/{A}"), "kata"),
            (format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-kata_{A}.scope"), "kata"),
        ] {
            assert_eq!(container(&path), (runtime, A.to_owned()), "{path}");
        }
    }

    #[test]
    fn the_deepest_container_wins() {
        assert_eq!(container(&format!("/docker/{A}/docker/{B}")), ("docker", B.to_owned()));
        assert_eq!(container(&format!("/docker/{A}/kubelet/kubepods/pod1/cri-containerd-{B}.scope")).1, B);
    }

    /// Paths of libvirt, Proxmox, systemd-nspawn, LXC, Nomad and Slurm: all of them counted as
    /// system.
    #[test]
    fn guests_and_scheduled_jobs_are_named_by_their_path() {
        let allocation = "3f2a1b4c-0d5e-6f70-8192-a3b4c5d6e7f8";
        let nomad = format!("/nomad.slice/share.slice/{allocation}.encode.scope");
        for (top, below, runtime, name) in [
            ("/machine.slice/machine-qemu\\x2d1\\x2dwin10.scope", "/libvirt/vcpu0", "libvirt", "win10"),
            ("/machine.slice/machine-qemu\\x2d12\\x2dmy\\x2dvm.scope", "", "libvirt", "my-vm"),
            ("/machine.slice/machine-lxc\\x2d7\\x2dbox.scope", "/init.scope", "libvirt", "box"),
            ("/machine/qemu-3-web.libvirt-qemu", "/vcpu0", "libvirt", "web"),
            ("/machine/old.libvirt-lxc", "", "libvirt", "old"),
            ("/qemu.slice/101.scope", "", "proxmox", "101"),
            ("/lxc/101", "/ns/system.slice/cron.service", "lxc", "101"),
            ("/lxc.payload.web", "/system.slice/nginx.service", "lxc", "web"),
            ("/lxc.payload/web", "/init.scope", "lxc", "web"),
            ("/user.slice/user-1000.slice/user@1000.service/lxc.payload.web", "", "lxc", "web"),
            ("/machine.slice/systemd-nspawn@cam.service", "/payload", "nspawn", "cam"),
            ("/machine.slice/systemd-nspawn@my\\x2dcam.service", "/supervisor", "nspawn", "my-cam"),
            ("/machine.slice/machine-cam.scope", "/payload/system.slice/a.service", "nspawn", "cam"),
            ("/default/kata_enc", "", "kata", "enc"),
            ("/kata_overhead/enc", "", "kata", "enc"),
            (&*nomad, "", "nomad", "encode"),
            ("/nomad/web", "/x", "nomad", "web"),
            ("/system.slice/slurmstepd.scope/job_123", "/step_0/user/task_0", "slurm", "job_123"),
            ("/system.slice/node1_slurmstepd.scope/job_4", "", "slurm", "job_4"),
            ("/slurm/uid_0/job_123", "/step_batch", "slurm", "job_123"),
        ] {
            let path = format!("{top}{below}");
            assert_eq!(classify(&path), Workload::Guest { runtime, name: name.into(), top }, "{path}");
        }
    }

    #[test]
    fn a_container_in_a_guest_wins_over_the_guest() {
        let path = format!("/lxc.payload.web/system.slice/docker-{A}.scope");
        assert_eq!(container(&path), ("docker", A.to_owned()));
        let path = format!("/docker/{A}/lxc.payload.web/x");
        let top = format!("/docker/{A}/lxc.payload.web");
        assert_eq!(classify(&path), Workload::Guest { runtime: "lxc", name: "web".into(), top: &top });
    }

    #[test]
    fn names_without_a_guest_are_none() {
        for path in ["/job_1", "/uid_0/job_1", "/lxc", "/lxc.payload", "/kata_overhead", "/nomad", "/nomad/share"] {
            assert_eq!(classify(path), Workload::Plain, "{path}");
        }
        for path in [
            "/machine.slice",
            "/machine.slice/machine-.scope",
            "/machine.slice/systemd-nspawn@.service",
            "/qemu.slice/x.scope",
            "/nomad.slice/share.slice",
            "/nomad.slice/share.slice/x.scope",
            "/system.slice/slurmstepd.scope/system",
            "/lxc.monitor.web",
            "/lxc.monitor/web",
            "/lxc.monitor/web/x",
        ] {
            assert_eq!(classify(path), Workload::System, "{path}");
        }
    }

    /// A monitor belongs to what surrounds it.
    #[test]
    fn a_monitor_inside_a_container_is_part_of_it() {
        assert_eq!(container(&format!("/docker/{A}/libpod-conmon-{B}.scope")).1, A);
    }

    #[test]
    fn monitors_units_and_the_root_are_system() {
        for path in [
            "/".to_owned(),
            String::new(),
            "/system.slice/ssh.service".to_owned(),
            "/user.slice/user-0.slice/session-1.scope".to_owned(),
            "/init.scope".to_owned(),
            format!("/machine.slice/libpod-conmon-{A}.scope"),
        ] {
            assert_eq!(classify(&path), Workload::System, "{path}");
        }
    }

    #[test]
    fn a_containers_topmost_cgroup_is_the_one_with_its_id() {
        for (path, top) in [
            (format!("/docker/{A}"), format!("/docker/{A}")),
            (format!("/docker/{A}/init/x"), format!("/docker/{A}")),
            (format!("/machine.slice/libpod-{A}.scope/container"), format!("/machine.slice/libpod-{A}.scope")),
        ] {
            assert_eq!(topmost(&path, A), top);
        }
    }

    #[test]
    fn services_and_transient_scopes_are_units_and_logins_are_not() {
        assert_eq!(unit("/system.slice/encode@cam1.service"), Some("encode@cam1.service"));
        assert_eq!(unit("/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.scope"), Some("run-u7.scope"));
        for path in [
            "/",
            "/system.slice",
            "/user.slice/user-0.slice/session-1.scope",
            "/user.slice/user-0.slice/user@0.service",
            "/init.scope",
        ] {
            assert_eq!(unit(path), None, "{path}");
        }
    }

    #[test]
    fn other_cgroups_are_plain() {
        for path in ["/encode", "/encode/job-1", "/docker", &format!("/x{A}")] {
            assert_eq!(classify(path), Workload::Plain, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_causes_a_panic(path in any::<String>()) {
            let _ = classify(&path);
            let _ = classify(&format!("/{path}{A}.scope"));
            let _ = classify(&format!("/machine.slice/machine-{path}.scope"));
            let _ = unescape(&format!("{path}\\x{path}"));
        }

        #[test]
        fn the_topmost_cgroup_of_a_guest_is_in_its_path(
            path in "(/(lxc|kata_a|job_1|slurm|nomad|machine-a.scope|x)){1,6}",
        ) {
            if let Workload::Guest { top, .. } = classify(&path) {
                prop_assert!(path == top || path[top.len()..].starts_with('/'), "{path}: {top}");
                let again = classify(top);
                prop_assert!(matches!(again, Workload::Guest { top: again, .. } if again == top), "{path}: {top}");
            }
        }
    }
}
