//! The HTML pages and a report in Chromium: no errors, no overflow at 1280 and 375 pixels, readable
//! by assistive technology.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use serde_json::{Value, json};
use support::{NO_SERVER, Service, write};
use testkit::{browser, requires};

const OLD: &str = include_str!("data/test_results_20240115_103000.json");
const NEW: &str = include_str!("data/test_results_20261120_120000.json");
const HOSTILE: &str = r#"{"host":"<script>alert(1)</script>","scenarios":[{"name":"<script>alert(2)</script> with a name that is very long and has no end and still goes on and on for a while",
    "duration":10,"total_frames":300,"energy_joules":30,"vmaf_score":90}]}"#;
const PAGES: [&str; 9] = [
    "/",
    "/results",
    "/quality",
    "/cost",
    "/streams",
    "/exporters",
    "/runbooks",
    "/compare?baseline=20240115_103000&candidate=20261120_120000",
    "/results/20261120_120000/report",
];

#[test]
fn every_page_is_readable_on_a_desk_and_on_a_phone() {
    requires!(browser);
    let dir = tempfile::tempdir().unwrap();
    let runs = [("20240115_103000", OLD), ("20261120_120000", NEW), ("20240116_000000", HOSTILE)];
    for (id, text) in runs {
        write(dir.path(), id, text);
    }
    let service = Service::start(dir.path(), NO_SERVER, &[]);
    service.eventually("all runs", |page| runs.iter().all(|(id, _)| page.contains(&format!("run=\"{id}\""))));
    let pages = PAGES.into_iter().flat_map(|path| {
        let url = service.client.url(path);
        // Its policy is a sandbox without scripts.
        let sandboxed = path.ends_with("/report");
        [(1280, "light"), (375, "dark")].map(|(width, scheme)| {
            json!({ "name": format!("{path} {width}"), "url": url, "width": width, "scheme": scheme, "sandboxed": sandboxed, "shot": false })
        })
    });
    let pages: Vec<Value> = pages.collect();
    let found = browser::open(&pages, None).unwrap();
    let faults: Vec<String> = found.iter().flat_map(browser::faults).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(found.iter().all(|page| page["status"] == 200), "{found:#?}");
}
