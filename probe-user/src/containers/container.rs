//! A container, or another workload with series of its own.

use serde::{Deserialize, Deserializer, Serialize};

/// The labels of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The probe's own number; never reused.
    pub number: u32,
    /// The label `container`: the name, or the short id when there is none.
    pub name: String,
    /// The label `id`: the first 12 digits of the container's id, the path of a guest's or a
    /// scheduler's job's cgroup, or the cgroup's id.
    pub id: String,
    /// The label `image`; empty when unknown.
    pub image: String,
    /// The label `runtime`: `docker`, `libvirt`, `slurm`, …, `cgroup` for a plain cgroup.
    #[serde(deserialize_with = "runtime")]
    pub runtime: Runtime,
    /// The Kubernetes pod; empty outside of Kubernetes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The labels selected with `--container.labels`, with their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
}

impl Container {
    /// A container without pod, image and labels.
    #[must_use]
    pub fn new(number: u32, name: String, id: String, runtime: Runtime) -> Self {
        let (image, pod, namespace) = (String::new(), String::new(), String::new());
        Self { number, name, id, image, runtime, pod, namespace, labels: Vec::new() }
    }

    /// True for a container of an engine or runtime; false for guests, scheduled jobs, units, jobs
    /// and plain cgroups.
    #[must_use]
    pub fn is_of_engine(&self) -> bool {
        matches!(self.runtime, "docker" | "containerd" | "crio" | "podman" | "kata" | "unknown")
    }

    /// The labels `pod` and `namespace`; empty for a container outside of a pod.
    #[must_use]
    pub fn pod_labels(&self) -> Vec<(&'static str, &str)> {
        if self.pod.is_empty() { Vec::new() } else { vec![("pod", &self.pod), ("namespace", &self.namespace)] }
    }
}

/// The label `runtime`. An alias, because serde borrows every field with a visible `&str` from its
/// input.
pub type Runtime = &'static str;

/// All values of the label `runtime` but `unknown`.
const KNOWN_RUNTIMES: [&str; 14] = [
    "docker",
    "containerd",
    "crio",
    "podman",
    "kata",
    "libvirt",
    "nspawn",
    "lxc",
    "proxmox",
    "nomad",
    "slurm",
    "cgroup",
    "systemd",
    "process",
];

/// Reads the runtime from a recording. Unlisted values become `unknown`, which bounds the label's
/// values.
fn runtime<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    let text = String::deserialize(from)?;
    Ok(KNOWN_RUNTIMES.into_iter().find(|known| *known == text).unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::path::{Workload, classify},
        *,
    };

    /// A runtime that is missing in the list would be `unknown` in every replay.
    #[test]
    fn every_runtime_of_a_path_is_read_back_from_a_recording() {
        let hex = "0123456789abcdef".repeat(4);
        for (path, expected) in [
            (format!("/docker/{hex}"), "docker"),
            (format!("/kubepods/pod1/kata_{hex}"), "kata"),
            ("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope".to_owned(), "libvirt"),
            ("/machine.slice/machine-cam.scope".to_owned(), "nspawn"),
            ("/lxc.payload.web".to_owned(), "lxc"),
            ("/qemu.slice/101.scope".to_owned(), "proxmox"),
            ("/nomad/web".to_owned(), "nomad"),
            ("/slurm/uid_0/job_1".to_owned(), "slurm"),
        ] {
            let (Workload::Container { runtime, .. } | Workload::Guest { runtime, .. }) = classify(&path) else {
                panic!("{path}")
            };
            let container = Container::new(0, "a".into(), "b".into(), runtime);
            let json = serde_json::to_string(&container).unwrap();
            let read: Container = serde_json::from_str(&json).unwrap();
            assert_eq!((read.runtime, runtime), (expected, expected), "{path}");
        }
    }
}
