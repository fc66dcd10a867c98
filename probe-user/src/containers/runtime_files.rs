//! Container names from the files of the runtimes: containerd, Podman, CRI-O, and Docker when its
//! socket is not available.
//!
//! Root's files are readable without a capability because the probe keeps uid 0. Rootless Podman
//! keeps its files in a home directory that the probe cannot read; those containers are labelled
//! with their ids.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Largest file that is read. Podman lists all its containers in one file, with some 700 bytes for
/// each.
const MAX_FILE: u64 = 8 << 20;
/// Maximum number of labels of a container.
const MAX_LABELS: usize = 256;
/// State directories of containerd: its own, Docker's, k3s' and k0s'. Below [`TASK_SUBDIR`] each
/// has a directory for each namespace, and in that a directory for each task.
const TASK_DIRS: [&str; 4] =
    ["run/containerd", "run/docker/containerd/daemon", "run/k3s/containerd", "run/k0s/containerd"];
const TASK_SUBDIR: &str = "io.containerd.runtime.v2.task";

/// Name, image and labels of a container, as its runtime reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeMetadata {
    pub name: String,
    /// The image reference that was used to create the container.
    pub image: String,
    /// The Kubernetes pod; empty outside of Kubernetes.
    pub pod: String,
    pub namespace: String,
    /// Labels, or OCI annotations.
    pub labels: BTreeMap<String, String>,
}

impl RuntimeMetadata {
    /// Reads the pod from the labels. Every Kubernetes runtime sets them, under different names.
    #[must_use]
    pub fn with_pod(mut self) -> Self {
        let find = |names: &[&str]| names.iter().find_map(|name| self.labels.get(*name)).cloned();
        let (container, pod, namespace, image) = (
            find(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name"]),
            find(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
            find(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]),
            find(&["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]),
        );
        if let Some(pod) = pod {
            // The container that holds the pod's network namespace has no name.
            self.name = container.unwrap_or_else(|| "pause".to_owned());
            (self.pod, self.namespace) = (pod, namespace.unwrap_or_default());
        }
        if self.image.is_empty() {
            self.image = image.unwrap_or_default();
        }
        self
    }
}

/// The files of the host's container runtimes.
#[derive(Clone, Debug)]
pub struct RuntimeFiles {
    root: PathBuf,
}

#[derive(Deserialize)]
struct OciBundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct StoredContainer {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    metadata: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StorageMetadata {
    #[serde(rename = "image-name")]
    image: String,
    name: String,
    #[serde(rename = "pod-name")]
    pod: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerFile {
    name: String,
    config: DockerConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerConfig {
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

impl RuntimeFiles {
    /// Files below `root`, the host's root directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Looks a container up in the files of its runtime; in those of all runtimes where it is
    /// `unknown`.
    #[must_use]
    pub fn metadata(&self, runtime: &str, id: &str) -> Option<RuntimeMetadata> {
        // The id comes from a cgroup's name and becomes a directory name: it must not lead to
        // another directory.
        if id.is_empty() || id.contains(['/', '\0']) || id.starts_with('.') {
            return None;
        }
        match runtime {
            "docker" => self.docker(id),
            "containerd" => self.containerd(id),
            "podman" => self.storage(id),
            "crio" => self.crio(id).or_else(|| self.storage(id)),
            _ => self.containerd(id).or_else(|| self.crio(id)).or_else(|| self.storage(id)),
        }
    }

    /// Whether containerd has a task with this id in this namespace; see [`task_of`].
    #[must_use]
    pub fn has_task(&self, namespace: &str, id: &str) -> bool {
        TASK_DIRS.iter().any(|dir| self.root.join(dir).join(TASK_SUBDIR).join(namespace).join(id).is_dir())
    }

    fn containerd(&self, id: &str) -> Option<RuntimeMetadata> {
        TASK_DIRS.iter().find_map(|dir| {
            let namespaces = std::fs::read_dir(self.root.join(dir).join(TASK_SUBDIR)).ok()?;
            namespaces.flatten().take(MAX_LABELS).find_map(|namespace| {
                let bytes = read(&namespace.path().join(id).join("config.json"))?;
                let metadata = parse_oci_bundle(&bytes)?;
                // Docker's tasks are in the namespace `moby`; their bundles contain no names.
                (namespace.file_name() != "moby").then_some(metadata)
            })
        })
    }

    fn crio(&self, id: &str) -> Option<RuntimeMetadata> {
        let dir = self.root.join("run/containers/storage/overlay-containers").join(id);
        parse_oci_bundle(&read(&dir.join("userdata/config.json"))?).filter(|metadata| !metadata.pod.is_empty())
    }

    /// The storage list that Podman and CRI-O share, for any storage driver.
    fn storage(&self, id: &str) -> Option<RuntimeMetadata> {
        let drivers = ["overlay", "vfs", "btrfs", "zfs"];
        drivers.iter().find_map(|driver| {
            let file = format!("var/lib/containers/storage/{driver}-containers/containers.json");
            parse_storage_list(&read(&self.root.join(file))?, id)
        })
    }

    fn docker(&self, id: &str) -> Option<RuntimeMetadata> {
        parse_docker_config(&read(&self.root.join("var/lib/docker/containers").join(id).join("config.v2.json"))?)
    }
}

/// Namespace and id of the containerd task that a cgroup with this path would belong to, as created
/// by `ctr`. Both are names of directories that lead nowhere else.
#[must_use]
pub fn task_of(path: &str) -> Option<(&str, &str)> {
    let (namespace, id) = path.trim_start_matches('/').split_once('/')?;
    let id = id.split('/').next()?;
    let leads_away = |name: &str| name.is_empty() || name.starts_with('.') || name.contains('\0');
    (!leads_away(namespace) && !leads_away(id)).then_some((namespace, id))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Parses a container's `config.json` (OCI runtime specification).
#[must_use]
pub fn parse_oci_bundle(bytes: &[u8]) -> Option<RuntimeMetadata> {
    let OciBundle { annotations } = serde_json::from_slice(bytes).ok()?;
    let labels: BTreeMap<String, String> = annotations.into_iter().take(MAX_LABELS).collect();
    let name = labels.get("nerdctl/name").cloned().unwrap_or_default();
    Some(RuntimeMetadata { name, labels, ..RuntimeMetadata::default() }.with_pod())
}

/// Finds one container in the `containers.json` of containers/storage.
#[must_use]
pub fn parse_storage_list(bytes: &[u8], id: &str) -> Option<RuntimeMetadata> {
    let all: Vec<StoredContainer> = serde_json::from_slice(bytes).ok()?;
    let StoredContainer { names, metadata, .. } = all.into_iter().find(|stored| stored.id == id)?;
    let metadata: StorageMetadata = serde_json::from_str(&metadata).unwrap_or_default();
    let name = names.into_iter().next().unwrap_or(metadata.name);
    Some(RuntimeMetadata { name, image: metadata.image, pod: metadata.pod, ..RuntimeMetadata::default() })
}

/// Parses Docker's `config.v2.json` of a container.
#[must_use]
pub fn parse_docker_config(bytes: &[u8]) -> Option<RuntimeMetadata> {
    let DockerFile { name, config } = serde_json::from_slice(bytes).ok()?;
    let labels = config.labels.unwrap_or_default().into_iter().take(MAX_LABELS).collect();
    let name = name.trim_start_matches('/').to_owned();
    Some(RuntimeMetadata { name, image: config.image, labels, ..RuntimeMetadata::default() }.with_pod())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "eed2fabdb155f371709055cd0c07757a08c9c1a7904a5339814108dd9560b3d0";

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, RuntimeFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file.replace("ID", ID));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.replace("ID", ID)).unwrap();
        }
        let files = RuntimeFiles::new(dir.path());
        (dir, files)
    }

    /// With the annotation names of containerd's CRI plugin and of CRI-O; not tested against a
    /// running Kubernetes.
    #[test]
    fn pod_and_namespace_are_read_from_the_annotations() {
        let cri = r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.container-name":"encoder","io.kubernetes.cri.sandbox-name":"live-0",
            "io.kubernetes.cri.sandbox-namespace":"video","io.kubernetes.cri.image-name":"ffmpeg:7"}}"#;
        let crio = r#"{"annotations":{"io.kubernetes.container.name":"encoder","io.kubernetes.pod.name":"live-0","io.kubernetes.pod.namespace":"video",
            "io.kubernetes.cri-o.ImageName":"ffmpeg:7"}}"#;
        for (file, text, runtime) in [
            ("run/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json", cri, "containerd"),
            ("run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/ID/config.json", cri, "unknown"),
            ("run/containers/storage/overlay-containers/ID/userdata/config.json", crio, "crio"),
            ("run/containers/storage/overlay-containers/ID/userdata/config.json", crio, "unknown"),
        ] {
            let (_dir, files) = host(&[(file, text)]);
            let metadata = files.metadata(runtime, ID).unwrap();
            assert_eq!(
                (&*metadata.name, &*metadata.pod, &*metadata.namespace, &*metadata.image),
                ("encoder", "live-0", "video", "ffmpeg:7"),
                "{runtime}"
            );
        }
    }

    #[test]
    fn the_podman_list_and_the_docker_config_are_read() {
        let list = r#"[{"id":"other","names":["x"]},{"id":"ID","names":["podtest"],"image":"d5a","metadata":"{\"image-name\":\"localhost/a:latest\",\"name\":\"podtest\"}"}]"#;
        let (_dir, files) = host(&[("var/lib/containers/storage/overlay-containers/containers.json", list)]);
        let metadata = files.metadata("podman", ID).unwrap();
        assert_eq!((&*metadata.name, &*metadata.image), ("podtest", "localhost/a:latest"));
        assert_eq!(files.metadata("podman", "missing"), None);
        let docker = r#"{"ID":"ID","Name":"/cam","Config":{"Image":"ffmpeg:7","Labels":{"team":"live"}}}"#;
        let (_dir, files) = host(&[("var/lib/docker/containers/ID/config.v2.json", docker)]);
        let metadata = files.metadata("docker", ID).unwrap();
        assert_eq!(
            (&*metadata.name, &*metadata.image, metadata.labels.get("team").map(String::as_str)),
            ("cam", "ffmpeg:7", Some("live"))
        );
    }

    #[test]
    fn containerd_tasks_are_distinguished_from_plain_cgroups() {
        let (_dir, files) = host(&[("run/containerd/io.containerd.runtime.v2.task/default/enc/config.json", "{}")]);
        let task = |path| task_of(path).filter(|(namespace, id)| files.has_task(namespace, id));
        assert_eq!(task("/default/enc"), Some(("default", "enc")));
        assert_eq!(task("/default/enc/below"), Some(("default", "enc")));
        for path in ["/default", "/default/other", "/default/..", "/../default/enc", "/", ""] {
            assert_eq!(task(path), None, "{path}");
        }
    }

    #[test]
    fn no_id_leads_out_of_its_directory() {
        let (_dir, files) = host(&[("secret/config.json", r#"{"annotations":{"nerdctl/name":"x"}}"#)]);
        for id in ["../../../../../secret", "..", "", "/secret", "a\0b"] {
            assert_eq!(files.metadata("containerd", id), None, "{id}");
        }
    }

    proptest! {
        #[test]
        fn no_file_causes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse_oci_bundle(&bytes), parse_storage_list(&bytes, ID), parse_docker_config(&bytes));
        }
    }
}
