//! A probe of a host and one of a guest, as two processes: what the guest divides is what the host
//! attributes to it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

use sha2::{Digest as _, Sha256};
use support::{Page, Probe};
use testkit::{
    account,
    cgroup::{self, Cgroup},
    eventually,
    program::Burner,
    requires,
    simulator::{Simulator, Spec},
    sleep,
    wait::eventually_ok,
};

const TOKEN: &str = "hunter2-of-the-guest";

/// A guest's token as the guest has it, and as the host has it.
fn token_files(dir: &Path, name: &str) -> [String; 2] {
    let digest: String = Sha256::digest(TOKEN.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let (own, all) = (dir.join("token"), dir.join("tokens"));
    fs::write(&own, format!("{TOKEN}\n")).unwrap();
    fs::write(&all, format!("# guests\n{name} {digest}\n")).unwrap();
    [own, all].map(|path| path.display().to_string())
}

/// Microjoules of the packages in a family, of a container if it is named.
fn microjoules(page: &Page, family: &str, container: Option<&str>) -> i64 {
    let rows = page.all(family).filter(|sample| {
        sample.label("zone") == "package" && container.is_none_or(|name| sample.label("container") == name)
    });
    rows.map(|sample| account::microjoules(sample.value)).sum()
}

fn signal(burner: &Burner, name: &str) {
    let status = Command::new("kill").args([name, &burner.pid().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_guest_divides_what_the_host_attributes_to_it() {
    requires!(root, cgroup_v2);
    let dir = tempfile::tempdir().unwrap();
    let simulator = Simulator::start(dir.path(), &Spec { packages: Some(1), ..Spec::default() }).unwrap();
    let sysfs = format!("--path.sysfs={}", simulator.sysfs().display());
    // The cgroup of the virtual machine.
    let machine = Cgroup::create(&cgroup::v2().unwrap(), &format!("wattcast-guest-{}", std::process::id())).unwrap();
    let name = machine.dir.file_name().unwrap().to_str().unwrap().to_owned();
    let burner = Burner::start(0, &[&machine]).unwrap();
    let [token, tokens] = token_files(dir.path(), &name);

    let host = Probe::start(&["--energy.source=powercap", &sysfs, &format!("--guest.tokens-file={tokens}")]);
    let row = || microjoules(&host.metrics(), "wattcast_container_energy_joules_total", Some(&name));
    eventually(30.0, "the host attributes energy to the guest", || row() > 0);
    let url = format!("--energy.host.url={}", host.client.url("").trim_end_matches('/'));
    let guest = Probe::start(&["--energy.source=host", &url, &format!("--energy.host.token-file={token}"), &sysfs]);
    let total = || microjoules(&guest.metrics(), "wattcast_energy_joules_total", None);
    eventually(30.0, "the guest has energy", || total() > 0);
    let source = guest.metrics().all("wattcast_energy_joules_total").next().unwrap().label("source").to_owned();
    assert_eq!(source, "simulated", "the host's energy is not measured");

    // While the guest stands, both counters stand, and are compared exactly.
    let stand = || {
        signal(&burner, "-STOP");
        sleep(2.0);
        eventually_ok(60.0, "both stand", || {
            // Longer than a tick of the host, a request of the guest and its tick.
            let values = (row(), total());
            sleep(4.0);
            let later = (row(), total());
            if values == later { Ok(values) } else { Err(format!("{values:?} {later:?}")) }
        })
    };
    let before = stand();
    signal(&burner, "-CONT");
    // By its part of a CPU, which is small on a loaded machine.
    eventually(60.0, "a joule of the guest", || row() - before.0 > 1_000_000);
    let after = stand();
    let (on_host, in_guest) = (after.0 - before.0, after.1 - before.1);
    assert!(on_host > 1_000_000, "{on_host} µJ with a busy CPU");
    assert_eq!(on_host, in_guest, "microjoules on the host and in the guest");
    guest.metrics().assert_conserved();
    for text in [guest.client.text("/metrics").unwrap(), guest.program.log(), host.program.log()] {
        assert!(!text.contains(TOKEN), "{text}");
    }

    // Without the host the source is broken, and the energy is not zero. The guest still stands: no
    // later answer of the host has more.
    drop(host);
    eventually(30.0, "the source is broken", || guest.source("host").0 == "broken");
    assert_eq!(total(), after.1);
}

#[test]
fn a_guest_reads_no_row_without_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let [_, tokens] = token_files(dir.path(), "win10");
    let host = Probe::start(&["--energy.source=model", &format!("--guest.tokens-file={tokens}")]);
    host.first_regular_tick();
    let address = host.client.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let status = |token: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = format!("GET /api/v1/guest HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
        stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for wrong in ["", "x", "hunter2-of-the-guest2"] {
        assert!(status(wrong).starts_with("HTTP/1.1 401 "), "{wrong}: {}", status(wrong));
    }
    let answer = status(TOKEN);
    assert!(answer.contains("no_row") && answer.starts_with("HTTP/1.1 503 "), "{answer}");
    fs::write(&tokens, "win10\n").unwrap();
    let answer = status(TOKEN);
    assert!(answer.contains("\"tokens\"") && answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[test]
fn a_host_that_does_not_exist_is_absent_and_no_model_replaces_it() {
    let probe = Probe::start(&["--energy.source=host", "--energy.host.url=http://127.0.0.1:1"]);
    let (state, detail) = probe.source("host");
    assert_eq!((&*state, &*detail), ("absent", "http://127.0.0.1:1: cannot be reached"));
    let page = probe.metrics();
    let machine = page.all("wattcast_energy_joules_total").filter(|sample| sample.label("zone") != "gpu");
    assert_eq!(machine.count(), 0);
}
