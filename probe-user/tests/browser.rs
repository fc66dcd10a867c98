//! The live page in Chromium: no errors, no overflow, readable by assistive technology, and the
//! numbers of `/metrics`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use serde_json::{Value, json};
use support::{Page, Probe};
use testkit::{
    browser,
    cgroup::{self, Cgroup},
    program::Burner,
    requires,
    simulator::{Simulator, Spec},
};

/// True once the page shows a tick.
const READY: &str = "Number(document.querySelector('#main')?.dataset.sequence) > 0";
/// Waits for a tick that the page, `/metrics` and `/api/v1/now` agree on, and returns all of it.
const ONE_TICK: &str = r##"(async () => {
  const json = async (path) => (await fetch(path)).json();
  for (let attempt = 0; attempt < 100; attempt++) {
    const before = await json("/api/v1/now?containers=500");
    const metrics = await (await fetch("/metrics")).text();
    await new Promise((resolve) => setTimeout(resolve, 300));
    const after = await json("/api/v1/now?containers=500");
    const shown = Number(document.querySelector("#main").dataset.sequence);
    if (before.sequence === after.sequence && shown === after.sequence) {
      const cells = [...document.querySelectorAll("#containers tbody tr")].map((row) => ({
        name: row.querySelector("button")?.textContent ?? row.cells[0].textContent,
        values: [...row.querySelectorAll("[data-value]")].map((cell) => [cell.dataset.value, cell.textContent]),
      }));
      const [tile, cost] = ["#cost", "#tile-cost"].map((id) => document.querySelector(id));
      return { now: after, metrics, cells, cost: tile.hidden ? null : Number(cost.dataset.value), images: document.querySelectorAll("#main img").length };
    }
  }
  return null;
})()"##;
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

#[test]
fn the_live_page_shows_the_numbers_of_the_metrics() {
    requires!(root, browser);
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let simulator = Simulator::start(dir.path(), &Spec { packages: Some(1), ..Spec::default() }).unwrap();
    let sysfs = format!("--path.sysfs={}", simulator.sysfs().display());
    let tree = cgroup::v2().unwrap();
    let parent = format!("browser-{}", std::process::id());
    let name = format!("{parent}/{HOSTILE}");
    let _parent = Cgroup::create(&tree, &parent).unwrap();
    let hostile = Cgroup::create(&tree, &name).unwrap();
    let _burner = Burner::start(0, &[&hostile]).unwrap();
    let price = ["--energy.price=0.30", "--currency=EUR"];
    let probe = Probe::start(&[&[&*sysfs, "--no-collector.gpu", "--docker.socket=/nowhere"][..], &price].concat());
    let url = probe.client.url("/");
    let page = |name: &str, width: u32, scheme: &str| json!({ "name": name, "url": url, "width": width, "scheme": scheme, "ready": READY, "settle_ms": 2500 });
    let mut first = page("light", 1280, "light");
    first["evaluate"] = ONE_TICK.into();
    let pages = [first, page("dark", 1280, "dark"), page("phone", 375, "light")];
    let found = browser::open(&pages, Some(out.path())).unwrap();
    let faults: Vec<String> = found.iter().flat_map(browser::faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    for one in &found {
        println!("{}: first tick shown after {} ms", one["name"], one["ready_ms"]);
    }

    let value = &found[0]["value"];
    assert_eq!(value["images"], 0, "a name became an element");
    // 0.30 EUR per kilowatt hour; hidden without a price.
    let (watts, cost) = (value["now"]["watts"]["host"].as_f64().unwrap(), value["cost"].as_f64().unwrap());
    assert!((cost - watts / 1000.0 * 0.30).abs() < 1e-9, "{cost} for {watts} W");
    let rows = value["cells"].as_array().unwrap();
    let row =
        rows.iter().find(|row| row["name"].as_str().unwrap().contains(&name)).unwrap_or_else(|| panic!("{rows:?}"));
    let now = &value["now"];
    let all = now["containers"].as_array().unwrap();
    let container = all.iter().find(|one| one["name"].as_str().unwrap().contains(&name)).unwrap();
    // What the row shows is what the API says, which is what the metrics say.
    let shown = |wanted: &Value| {
        let wanted = wanted.as_f64().unwrap();
        let values = row["values"].as_array().unwrap();
        values
            .iter()
            .any(|value| value[0].as_str().unwrap().parse::<f64>().is_ok_and(|value| (value - wanted).abs() < 1e-6))
    };
    assert!(shown(&container["joules"]) && shown(&container["watts"]), "{row} {container}");
    let page = Page(metrics::parse::parse(value["metrics"].as_str().unwrap()).unwrap().samples);
    let of_metrics: f64 = page
        .all("wattcast_container_energy_joules_total")
        .filter(|row| row.label("container").contains(&name) && ["package", "dram"].contains(&row.label("zone")))
        .map(|row| row.value)
        .sum();
    let joules = container["joules"].as_f64().unwrap();
    assert!((of_metrics - joules).abs() < 1e-5, "{of_metrics} {joules}");
    let measured: f64 = page
        .all("wattcast_energy_joules_total")
        .filter(|row| ["package", "dram"].contains(&row.label("zone")))
        .map(|row| row.value)
        .sum();
    let layers = now["joules"]["layers"].as_object().unwrap();
    let sum: f64 = layers.values().filter_map(Value::as_f64).sum();
    let host = now["joules"]["measured"].as_f64().unwrap();
    assert!((measured - host).abs() < 1e-5 && (sum - host).abs() < 1e-5, "{measured} {host} {sum}");
}
