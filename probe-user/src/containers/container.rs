//! A container, or another workload with series of its own.

use serde::{Deserialize, Deserializer, Serialize};

/// The labels of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The probe's own number; never reused.
    pub number: u32,
    /// The label `container`: the name, or the short id when there is none.
    pub name: String,
    /// The label `id`: the first 12 digits of the container's id, or the cgroup's id.
    pub id: String,
    /// The label `image`; empty when unknown.
    pub image: String,
    /// The label `runtime`: `docker`, `containerd`, …, `cgroup` for a plain cgroup.
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

    /// The labels `pod` and `namespace`; empty for a container outside of a pod.
    #[must_use]
    pub fn pod_labels(&self) -> Vec<(&'static str, &str)> {
        if self.pod.is_empty() { Vec::new() } else { vec![("pod", &self.pod), ("namespace", &self.namespace)] }
    }
}

/// The label `runtime`. An alias, because serde borrows every field with a visible `&str` from its
/// input.
pub type Runtime = &'static str;

/// Reads the runtime from a recording. Unlisted values become `unknown`, which bounds the label's
/// values.
fn runtime<'de, D: Deserializer<'de>>(from: D) -> Result<&'static str, D::Error> {
    let text = String::deserialize(from)?;
    let known = ["docker", "containerd", "crio", "podman", "cgroup", "systemd", "process"];
    Ok(known.into_iter().find(|known| *known == text).unwrap_or("unknown"))
}
