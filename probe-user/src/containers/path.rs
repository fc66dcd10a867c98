//! Classifies a cgroup by its path.
//!
//! Container runtimes put the 64 hex digits of the container's id into the name of its cgroup. The
//! deepest match wins because Docker in Docker and kind nest containers (Kepler #923).

/// The kind of workload in a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload<'a> {
    /// The root cgroup, and systemd's slices, services and scopes.
    System,
    Container {
        /// `docker`, `containerd`, `crio`, `podman`, or `unknown` where the path does not contain
        /// it.
        runtime: &'static str,
        /// 64 hex digits.
        id: &'a str,
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
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    for (depth, segment) in segments.iter().enumerate().rev() {
        if let Some((prefix, id)) = container_id(segment) {
            // conmon is the container's monitor and runs outside of the container.
            if prefix.contains("conmon") {
                return Workload::System;
            }
            return Workload::Container { runtime: runtime(prefix, &segments[..depth]), id };
        }
    }
    match segments.first() {
        None => Workload::System,
        Some(first) if UNITS.iter().any(|unit| first.ends_with(unit)) => Workload::System,
        Some(_) => Workload::Plain,
    }
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

/// The prefix and the id in `docker-<id>.scope`, `cri-containerd:<id>`, `<id>`.
fn container_id(segment: &str) -> Option<(&str, &str)> {
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    let at = bare.len().checked_sub(ID_LENGTH)?;
    if !bare.is_char_boundary(at) {
        return None;
    }
    let (prefix, id) = bare.split_at(at);
    let hex = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (hex && (prefix.is_empty() || prefix.ends_with(['-', ':']))).then_some((prefix, id))
}

fn runtime(prefix: &str, parents: &[&str]) -> &'static str {
    let named = |text: &str| -> Option<&'static str> {
        Some(match text {
            _ if text.contains("docker") => "docker",
            _ if text.contains("crio") => "crio",
            _ if text.contains("libpod") => "podman",
            _ if text.contains("containerd") => "containerd",
            _ => return None,
        })
    };
    named(prefix).or_else(|| parents.iter().rev().find_map(|parent| named(parent))).unwrap_or("unknown")
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
        ] {
            assert_eq!(container(&path), (runtime, A.to_owned()), "{path}");
        }
    }

    #[test]
    fn the_deepest_container_wins() {
        assert_eq!(container(&format!("/docker/{A}/docker/{B}")), ("docker", B.to_owned()));
        assert_eq!(container(&format!("/docker/{A}/kubelet/kubepods/pod1/cri-containerd-{B}.scope")).1, B);
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
        }
    }
}
