//! Container images of static programs, written without a container engine: one layer with the
//! program, in the format of `docker load`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use testkit::shell::output;

/// Docker's unit of time.
const SECOND: u64 = 1_000_000_000;
/// Options with which tar writes the same bytes for the same files.
const REPRODUCIBLE: [&str; 5] =
    ["--format=ustar", "--sort=name", "--numeric-owner", "--mtime=@0", "--mode=u+rwX,go+rX,go-w"];

/// What an image runs, as in Dockerfile.dist.
struct Settings {
    user: &'static str,
    ports: &'static [&'static str],
    arguments: &'static [&'static str],
}

fn settings(name: &str) -> Settings {
    if name == "wattcast-analysis" {
        Settings {
            user: "65534:65534",
            ports: &["9502", "9503", "9504", "9506", "9506/udp", "9600", "9728"],
            arguments: &["serve", "--web.listen-address=:9502", "--results-dir=/results"],
        }
    } else {
        Settings {
            user: "0:0",
            ports: &["9500", "9501", "9505"],
            arguments: &[
                "--web.listen-address=:9500",
                "--path.sysfs=/host/sys",
                "--path.procfs=/host/proc",
                "--path.cgroupfs=/host/sys/fs/cgroup",
                "--path.rootfs=/host",
                "--state.dir=/var/lib/wattcast",
            ],
        }
    }
}

/// Writes the image `name` with a static program to `out`; returns its path.
///
/// # Errors
/// Without tar, gzip or sha256sum.
pub(super) fn write(name: &str, program: &Path, architecture: &str, out: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let dir = tempfile::tempdir()?;
    let (files, parts) = (dir.path().join("files"), dir.path().join("parts"));
    fs::create_dir_all(files.join("usr/bin"))?;
    fs::create_dir_all(&parts)?;
    fs::copy(program, files.join("usr/bin").join(name)).with_context(|| format!("no {}", program.display()))?;
    let layer = dir.path().join("layer.tar");
    let tar = |action: &str, owner: &str, what: &str| -> Result<()> {
        let mut command = Command::new("tar");
        command.args(REPRODUCIBLE).arg(format!("--owner={owner}")).arg(format!("--group={owner}"));
        output(command.arg("-C").arg(&files).arg(action).arg(&layer).arg(what)).map(drop)
    };
    tar("-cf", "0", "usr")?;
    if name == "wattcast-analysis" {
        // An empty volume that is mounted here gets its owner from this directory.
        fs::create_dir(files.join("state"))?;
        tar("-rf", "65534", "state")?;
    }
    let layer_sum = sha256(&layer)?;
    let layer_name = format!("{layer_sum}.tar");
    fs::rename(&layer, parts.join(&layer_name))?;
    let config = configuration(name, architecture, &layer_sum).to_string();
    let config_file = parts.join("config.json");
    fs::write(&config_file, config)?;
    let config_name = format!("{}.json", sha256(&config_file)?);
    fs::rename(&config_file, parts.join(&config_name))?;
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [format!("{name}:{version}")], "Layers": [layer_name] }]);
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    let path = out.join(format!("{name}-image-{version}-{architecture}.tar.gz"));
    let mut command = Command::new("tar");
    command.args(REPRODUCIBLE).args(["--owner=0", "--group=0", "--use-compress-program=gzip -n9", "-C"]);
    output(command.arg(&parts).arg("-cf").arg(&path).arg("."))?;
    Ok(path)
}

/// The configuration of an image (OCI image specification, config.md, and Docker's health check).
fn configuration(name: &str, architecture: &str, layer_sum: &str) -> Value {
    let settings = settings(name);
    let program = format!("/usr/bin/{name}");
    let protocol = |port: &str| if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
    let ports: serde_json::Map<String, Value> = settings.ports.iter().map(|port| (protocol(port), json!({}))).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": settings.user,
            "ExposedPorts": ports,
            "Entrypoint": [program],
            "Cmd": settings.arguments,
            "Healthcheck": {
                "Test": ["CMD", program, "healthcheck"],
                "Interval": 10 * SECOND,
                "Timeout": 5 * SECOND,
                "StartPeriod": 10 * SECOND,
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_sum}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask dist" }],
    })
}

fn sha256(path: &Path) -> Result<String> {
    let printed = output(Command::new("sha256sum").arg(path))?;
    Ok(printed.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::shell::root;

    #[test]
    fn an_image_has_the_digests_of_its_parts_and_is_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "static").unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let out = dir.path().join(name);
            fs::create_dir(&out).unwrap();
            write("wattcast-analysis", &program, "amd64", &out).unwrap()
        });
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "two images of one program differ");

        let parts = dir.path().join("parts");
        fs::create_dir(&parts).unwrap();
        output(Command::new("tar").arg("-C").arg(&parts).arg("-xzf").arg(&one)).unwrap();
        let read =
            |name: &str| -> Value { serde_json::from_str(&fs::read_to_string(parts.join(name)).unwrap()).unwrap() };
        let manifest = read("manifest.json")[0].clone();
        let (config, layer) = (manifest["Config"].as_str().unwrap(), manifest["Layers"][0].as_str().unwrap());
        assert_eq!(sha256(&parts.join(config)).unwrap() + ".json", config);
        let sum = sha256(&parts.join(layer)).unwrap();
        assert_eq!(read(config)["rootfs"]["diff_ids"][0], format!("sha256:{sum}"));
        let listed = output(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(parts.join(layer))).unwrap();
        assert!(listed.lines().any(|line| line.contains(" 65534/65534 ") && line.ends_with(" state/")), "{listed}");
        assert!(
            listed.lines().any(|line| line.contains(" 0/0 ") && line.ends_with("usr/bin/wattcast-analysis")),
            "{listed}"
        );
    }

    #[test]
    fn images_run_what_the_dockerfile_runs() {
        let dockerfile = fs::read_to_string(root().join("deploy/docker/Dockerfile.dist")).unwrap();
        for name in ["wattcast-analysis", "wattcast-probe"] {
            let settings = settings(name);
            let quoted: Vec<String> = settings.arguments.iter().map(|argument| format!("\"{argument}\"")).collect();
            let lines = [
                format!("ENTRYPOINT [\"/usr/bin/{name}\"]"),
                format!("CMD [{}]", quoted.join(", ")),
                format!("USER {}", settings.user),
                format!("EXPOSE {}", settings.ports.join(" ")),
            ];
            for line in lines {
                assert!(dockerfile.lines().any(|known| known == line), "Dockerfile.dist has no {line}");
            }
        }
    }
}
