//! Names from the files that runtimes keep of their containers: containerd, Podman, CRI-O, and Docker when its socket is shut.
//!
//! Root's files are read with no capability, for the probe keeps uid 0. A user's own containers (rootless Podman) have theirs in a home that others
//! may not read; those go by their ids.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Largest file that is read: Podman keeps all its containers in one, with some 700 bytes for each.
const MAX_FILE: u64 = 8 << 20;
/// Most labels of a container that are kept.
const MAX_LABELS: usize = 256;
/// Where containerd keeps a directory for each namespace, with one for each task in it: its own, Docker's, k3s' and k0s'.
const TASKS: [&str; 4] = ["run/containerd", "run/docker/containerd/daemon", "run/k3s/containerd", "run/k0s/containerd"];
const TASKS_IN: &str = "io.containerd.runtime.v2.task";

/// What is said of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// The image as it was asked for.
    pub image: String,
    /// The pod that it is in; empty outside of Kubernetes.
    pub pod: String,
    /// That pod's namespace.
    pub namespace: String,
    /// Labels, or what stands for them.
    pub labels: BTreeMap<String, String>,
}

impl Told {
    /// Takes the pod out of the labels, which every runtime that serves Kubernetes sets, each by names of its own.
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
            // What holds a pod's network has no name of its own.
            self.name = container.unwrap_or_else(|| "pause".to_owned());
            (self.pod, self.namespace) = (pod, namespace.unwrap_or_default());
        }
        if self.image.is_empty() {
            self.image = image.unwrap_or_default();
        }
        self
    }
}

/// The files of this host's runtimes, below its root.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    metadata: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
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

impl Files {
    /// Below this root.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// What the files of a runtime say of a container; of any runtime, where it is `unknown`.
    #[must_use]
    pub fn told(&self, runtime: &str, id: &str) -> Option<Told> {
        // A name of a directory, from a cgroup's name: it must not lead anywhere else.
        if id.is_empty() || id.contains(['/', '\0']) || id.starts_with('.') {
            return None;
        }
        match runtime {
            "docker" => self.of_docker(id),
            "containerd" => self.of_containerd(id),
            "podman" => self.of_storage(id),
            "crio" => self.of_crio(id).or_else(|| self.of_storage(id)),
            _ => self.of_containerd(id).or_else(|| self.of_crio(id)).or_else(|| self.of_storage(id)),
        }
    }

    /// The task that a cgroup of this path belongs to, as `ctr` names them: namespace and id.
    #[must_use]
    pub fn task<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str)> {
        let (namespace, id) = path.trim_start_matches('/').split_once('/')?;
        let id = id.split('/').next()?;
        if [namespace, id].iter().any(|name| name.is_empty() || name.starts_with('.') || name.contains('\0')) {
            return None;
        }
        let there = TASKS.iter().any(|dir| self.root.join(dir).join(TASKS_IN).join(namespace).join(id).is_dir());
        there.then_some((namespace, id))
    }

    fn of_containerd(&self, id: &str) -> Option<Told> {
        TASKS.iter().find_map(|dir| {
            let namespaces = std::fs::read_dir(self.root.join(dir).join(TASKS_IN)).ok()?;
            namespaces.flatten().take(MAX_LABELS).find_map(|namespace| {
                let bytes = read(&namespace.path().join(id).join("config.json"))?;
                let told = bundle(&bytes)?;
                // Docker's own tasks are in a namespace of this name, and say nothing of names.
                (namespace.file_name() != "moby").then_some(told)
            })
        })
    }

    fn of_crio(&self, id: &str) -> Option<Told> {
        let dir = self.root.join("run/containers/storage/overlay-containers").join(id);
        bundle(&read(&dir.join("userdata/config.json"))?).filter(|told| !told.pod.is_empty())
    }

    /// The storage that Podman and CRI-O share, whatever driver keeps the layers.
    fn of_storage(&self, id: &str) -> Option<Told> {
        let drivers = ["overlay", "vfs", "btrfs", "zfs"];
        drivers.iter().find_map(|driver| {
            let file = format!("var/lib/containers/storage/{driver}-containers/containers.json");
            storage(&read(&self.root.join(file))?, id)
        })
    }

    fn of_docker(&self, id: &str) -> Option<Told> {
        docker(&read(&self.root.join("var/lib/docker/containers").join(id).join("config.v2.json"))?)
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The bundle that a container was started from (OCI runtime specification, `config.json`).
#[must_use]
pub fn bundle(bytes: &[u8]) -> Option<Told> {
    let Bundle { annotations } = serde_json::from_slice(bytes).ok()?;
    let labels: BTreeMap<String, String> = annotations.into_iter().take(MAX_LABELS).collect();
    let name = labels.get("nerdctl/name").cloned().unwrap_or_default();
    Some(Told { name, labels, ..Told::default() }.with_pod())
}

/// One container of containers/storage' list.
#[must_use]
pub fn storage(bytes: &[u8], id: &str) -> Option<Told> {
    let all: Vec<Stored> = serde_json::from_slice(bytes).ok()?;
    let Stored { names, metadata, .. } = all.into_iter().find(|stored| stored.id == id)?;
    let metadata: Metadata = serde_json::from_str(&metadata).unwrap_or_default();
    let name = names.into_iter().next().unwrap_or(metadata.name);
    Some(Told { name, image: metadata.image, pod: metadata.pod, ..Told::default() })
}

/// Docker's own file of a container.
#[must_use]
pub fn docker(bytes: &[u8]) -> Option<Told> {
    let DockerFile { name, config } = serde_json::from_slice(bytes).ok()?;
    let labels = config.labels.unwrap_or_default().into_iter().take(MAX_LABELS).collect();
    let name = name.trim_start_matches('/').to_owned();
    Some(Told { name, image: config.image, labels, ..Told::default() }.with_pod())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "eed2fabdb155f371709055cd0c07757a08c9c1a7904a5339814108dd9560b3d0";

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file.replace("ID", ID));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.replace("ID", ID)).unwrap();
        }
        let files = Files::new(dir.path());
        (dir, files)
    }

    /// By the names that containerd's CRI plugin and CRI-O give to annotations; no Kubernetes ran for this.
    #[test]
    fn pods_are_told_with_their_containers() {
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
            let told = files.told(runtime, ID).unwrap();
            assert_eq!(
                (&*told.name, &*told.pod, &*told.namespace, &*told.image),
                ("encoder", "live-0", "video", "ffmpeg:7"),
                "{runtime}"
            );
        }
    }

    #[test]
    fn podmans_list_and_dockers_file_are_read() {
        let list = r#"[{"id":"other","names":["x"]},{"id":"ID","names":["podtest"],"image":"d5a","metadata":"{\"image-name\":\"localhost/a:latest\",\"name\":\"podtest\"}"}]"#;
        let (_dir, files) = host(&[("var/lib/containers/storage/overlay-containers/containers.json", list)]);
        let told = files.told("podman", ID).unwrap();
        assert_eq!((&*told.name, &*told.image), ("podtest", "localhost/a:latest"));
        assert_eq!(files.told("podman", "nobody"), None);
        let docker = r#"{"ID":"ID","Name":"/cam","Config":{"Image":"ffmpeg:7","Labels":{"team":"live"}}}"#;
        let (_dir, files) = host(&[("var/lib/docker/containers/ID/config.v2.json", docker)]);
        let told = files.told("docker", ID).unwrap();
        assert_eq!(
            (&*told.name, &*told.image, told.labels.get("team").map(String::as_str)),
            ("cam", "ffmpeg:7", Some("live"))
        );
    }

    #[test]
    fn a_task_of_containerd_is_told_from_a_cgroup_made_by_hand() {
        let (_dir, files) = host(&[("run/containerd/io.containerd.runtime.v2.task/default/enc/config.json", "{}")]);
        assert_eq!(files.task("/default/enc"), Some(("default", "enc")));
        assert_eq!(files.task("/default/enc/below"), Some(("default", "enc")));
        for path in ["/default", "/default/other", "/default/..", "/../default/enc", "/", ""] {
            assert_eq!(files.task(path), None, "{path}");
        }
    }

    #[test]
    fn no_id_leads_out_of_its_place() {
        let (_dir, files) = host(&[("secret/config.json", r#"{"annotations":{"nerdctl/name":"x"}}"#)]);
        for id in ["../../../../../secret", "..", "", "/secret", "a\0b"] {
            assert_eq!(files.told("containerd", id), None, "{id}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (bundle(&bytes), storage(&bytes, ID), docker(&bytes));
        }
    }
}
