//! The ports for streams with encoders, servers and hostile clients.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Instant,
};

use support::NO_SERVER;
use testkit::{
    api::{Client, Sample},
    nginx::Nginx,
    program::Program,
    requires,
    shell::{feed, which},
    wait::eventually_ok,
};

/// The service with clients of its stream ports.
struct Service {
    all: support::Service,
    ffmpeg: Client,
    nginx: Client,
    _results: tempfile::TempDir,
}

impl Service {
    fn start(flags: &[&str]) -> Self {
        let results = tempfile::tempdir().unwrap();
        let all = support::Service::start(results.path(), NO_SERVER, flags);
        let (ffmpeg, nginx) = (all.port(1), all.port(2));
        Self { all, ffmpeg, nginx, _results: results }
    }

    fn address(&self) -> SocketAddr {
        self.ffmpeg.url("").trim_start_matches("http://").parse().unwrap()
    }

    fn post(&self, path: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // A server may reject a request before it has read all of it.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    }

    fn value(&self, name: &str, stream: &str) -> Option<f64> {
        let page = self.ffmpeg.metrics().unwrap();
        page.iter().find(|sample| sample.name == name && sample.label("stream") == stream).map(|sample| sample.value)
    }

    fn eventually(&self, what: &str, mut so: impl FnMut() -> bool) {
        let state = || format!("{}\n{}", self.ffmpeg.text("/metrics").unwrap_or_default(), self.all.log());
        eventually_ok(20.0, what, || if so() { Ok(()) } else { Err(state()) });
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.all.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// True once the service has read all datagrams: `rx_queue` of /proc/net/udp is 0 (proc(5)).
    fn has_read_all_datagrams(&self) -> bool {
        let port = format!(":{:04X}", self.address().port());
        let sockets = fs::read_to_string("/proc/net/udp").unwrap();
        let mut sockets = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = sockets.find(|fields| fields.get(1).is_some_and(|address| address.ends_with(&port))).unwrap();
        own[4].ends_with(":00000000")
    }
}

fn report(frames: u64) -> String {
    format!("frame={frames}\nfps=25.0\nout_time_us={}\nspeed=1.0x\nprogress=continue\n", frames * 40_000)
}

#[test]
fn every_transport_is_received_with_its_own_label() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, fifo) = (dir.path().join("progress.sock"), dir.path().join("cam.fifo"));
    let service = Service::start(&[
        &format!("--ffmpeg.socket={}", socket.display()),
        &format!("--ffmpeg.pipe=piped={}", fifo.display()),
    ]);
    assert!(service.post("/progress/posted", report(10).as_bytes()).contains("204"));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(report(20).as_bytes(), service.address()).unwrap();
    let mut unix = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    unix.write_all(report(30).as_bytes()).unwrap();
    drop(unix);
    fs::OpenOptions::new().write(true).open(&fifo).unwrap().write_all(report(40).as_bytes()).unwrap();
    // Without a name from the probe, the label of datagrams is their address after a timeout.
    let datagrams = format!("udp-127.0.0.1-{}", udp.local_addr().unwrap().port());
    let own = format!("unix-{}", std::process::id());
    for (stream, frames) in [("posted", 10.0), (&*datagrams, 20.0), (&*own, 30.0), ("piped", 40.0)] {
        service.eventually(stream, || service.value("wattcast_stream_frames_total", stream) == Some(frames));
    }
    assert_eq!(service.value("ffmpeg_fps", "posted"), Some(25.0));
    assert_eq!(service.ffmpeg.get("/health").unwrap(), (200, "OK".to_owned()));
    assert!(service.ffmpeg.text("/").unwrap().contains("posted"));
}

#[test]
fn with_a_token_only_requests_with_it_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, "s3cret\n").unwrap();
    let service = Service::start(&[&format!("--ffmpeg.token-file={}", file.display())]);
    assert!(service.post("/progress/a", report(1).as_bytes()).contains("401"));
    assert!(service.post("/progress/a?token=wrong", report(1).as_bytes()).contains("401"));
    assert!(service.post("/progress/a?token=s3cret", report(1).as_bytes()).contains("204"));
    let _ = UdpSocket::bind("127.0.0.1:0").unwrap().send_to(report(9).as_bytes(), service.address());
    service.eventually("the accepted report", || service.value("ffmpeg_frames_total", "a") == Some(1.0));
    let page = service.ffmpeg.text("/metrics").unwrap();
    assert!(page.contains("wattcast_progress_refused_total 2") && !page.contains("stream=\"udp"), "{page}");
    assert!(!page.contains("s3cret") && !service.all.log().contains("s3cret"));
}

/// Endless lines, binary data and many names: error responses, bounded memory, a valid page.
#[test]
fn hostile_requests_need_little_memory() {
    let service = Service::start(&["--limit.streams=50"]);
    let before = service.resident();
    assert!(service.post("/progress/huge", &vec![b'x'; 32 << 20]).contains("400"));
    assert!(service.post("/progress/binary", &(0..=255u8).cycle().take(1 << 20).collect::<Vec<_>>()).contains("400"));
    assert!(service.post("/progress/nothing", b"").contains("400"));
    for number in 0..2000 {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.send_to(report(number).as_bytes(), service.address()).unwrap();
        if number % 10 == 0 {
            service.post(&format!("/progress/name-{number}"), report(1).as_bytes());
        }
    }
    let evil = "%22%0A%5C%F0%9F%8E%A5".repeat(100);
    service.post(&format!("/progress/{evil}"), report(7).as_bytes());
    service.eventually("dropped reports are counted", || {
        let page = service.ffmpeg.metrics().unwrap();
        page.iter().any(|sample| sample.name == "wattcast_progress_dropped_total" && sample.value >= 100.0)
    });
    service.eventually("all datagrams are read", || service.has_read_all_datagrams());
    let page = service.ffmpeg.metrics().unwrap();
    let streams: Vec<&Sample> = page.iter().filter(|sample| sample.name == "ffmpeg_frames_total").collect();
    assert!(streams.len() <= 50, "{}", streams.len());
    assert!(page.iter().all(|sample| sample.label("stream").chars().count() <= 128));
    let grown = service.resident().saturating_sub(before);
    println!("{} streams, {grown} kB more resident", streams.len());
    assert!(grown < 16 << 10, "{grown} kB");
    assert_eq!(service.ffmpeg.get("/health").unwrap().0, 200);
}

#[test]
fn a_stopped_service_does_not_block_an_encoder() {
    requires!(ffmpeg);
    let service = Service::start(&[]);
    let pid = libc::pid_t::try_from(service.all.pid()).unwrap();
    // SAFETY: the process is our child and was not waited for.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    let begun = Instant::now();
    let mut encoder = Command::new("ffmpeg");
    encoder.args(["-nostdin", "-loglevel", "error", "-stats_period", "0.2"]);
    encoder.args(["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=20", "-c:v", "libx264"]);
    encoder.args(["-preset", "ultrafast", "-progress", &format!("udp://{}/cam", service.address()), "-f", "null", "-"]);
    let status = encoder.status().unwrap();
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    println!("the encoder took {:.2} s", begun.elapsed().as_secs_f64());
    assert!(status.success());
    service.eventually("the last report, which the kernel buffered", || {
        service
            .ffmpeg
            .metrics()
            .unwrap()
            .iter()
            .any(|sample| sample.name == "ffmpeg_frames_total" && sample.value == 500.0)
    });
}

#[test]
fn publishers_and_players_match_the_page_of_nginx() {
    requires!(ffmpeg, nginx_rtmp);
    let nginx = Nginx::start().unwrap();
    let service = Service::start(&[&format!("--nginx.url={}/stat", nginx.stat), "--nginx.interval=500ms"]);
    let logs = tempfile::tempdir().unwrap();
    let run = |name: &str, args: &[&str]| {
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-loglevel", "error"]).args(args);
        Program::start(name, &mut command, logs.path()).unwrap()
    };
    let url = |key: &str| format!("rtmp://127.0.0.1:{}/live/{key}", nginx.rtmp);
    let (one, two) = (url("secret-key-one"), url("secret-key-two"));
    let source = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25"];
    let encode = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-f", "flv"];
    let publish = |name: &str, to: &str| run(name, &[&source[..], &encode, &[to]].concat());
    let _publishers = [publish("publisher-1", &one), publish("publisher-2", &two)];
    let page = || service.nginx.metrics().unwrap();
    let whole = |name: &str| page().iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum::<f64>();
    service.eventually("two streams", || whole("nginx_rtmp_stream_publishers") == 2.0);
    let play = |name: &str, from: &str| run(name, &["-i", from, "-f", "null", "-"]);
    let _players = [play("player-1", &one), play("player-2", &one), play("player-3", &two)];
    service.eventually("five connections and both codecs", || {
        let known = |sample: &&Sample| sample.name == "nginx_rtmp_stream_info" && sample.label("video_codec") == "H264";
        let clients = ["nginx_rtmp_connections", "nginx_rtmp_stream_clients"].map(whole);
        clients == [5.0, 5.0] && page().iter().filter(known).count() == 2
    });

    // Compared with the server's own page, read between two of ours.
    let stat = Client::new(&nginx.stat).text("/stat").unwrap();
    let tag = |name: &str| -> f64 {
        stat.split(&format!("<{name}>")).nth(1).unwrap().split('<').next().unwrap().parse().unwrap()
    };
    let of = |page: &[Sample], name: &str| page.iter().find(|sample| sample.name == name).unwrap().value;
    // Counters of a later page are not lower.
    service.eventually("the next page of the server", || {
        let page = page();
        of(&page, "nginx_rtmp_received_bytes_total") >= tag("bytes_in")
            && of(&page, "nginx_rtmp_sent_bytes_total") >= tag("bytes_out")
    });
    let samples = page();
    let get = |name: &str| of(&samples, name);
    assert_eq!(get("nginx_rtmp_streams"), 2.0);
    assert_eq!(get("nginx_rtmp_accepted_connections_total"), tag("naccepted"));
    let mut clients: Vec<f64> =
        samples.iter().filter(|sample| sample.name == "nginx_rtmp_stream_clients").map(|sample| sample.value).collect();
    clients.sort_by(f64::total_cmp);
    assert_eq!(clients, [2.0, 3.0], "including the publishers");
    if which("promtool").is_some() {
        let is_legacy = |name: &str| {
            ["nginx_rtmp_connections", "nginx_rtmp_streams", "nginx_rtmp_bandwidth"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let text = service.nginx.text("/metrics").unwrap();
        let of = |line: &str| line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line).to_owned();
        let primary: String =
            text.lines().filter(|line| !is_legacy(&of(line))).map(|line| format!("{line}\n")).collect();
        let output = feed(Command::new("promtool").args(["check", "metrics"]), &primary).unwrap();
        assert_eq!(output, (true, String::new()));
    }
    let info: Vec<&Sample> = samples.iter().filter(|sample| sample.name == "nginx_rtmp_stream_info").collect();
    println!("{info:?}");
    assert!(info.iter().all(|sample| sample.label("video_codec") == "H264" && sample.label("resolution") == "320x180"));
    for path in ["/metrics", "/"] {
        assert!(!service.nginx.text(path).unwrap().contains("secret-key"), "a stream name is secret");
    }

    // A stopped server is reported, and the page is still served.
    drop(nginx);
    service.eventually("nginx is absent", || whole("nginx_rtmp_up") == 0.0);
    assert!(page().iter().any(|sample| sample.name == "nginx_rtmp_up" && sample.label("reason") == "absent"));
    assert_eq!(service.nginx.get("/ready").unwrap().0, 503);
    assert_eq!(service.nginx.get("/health").unwrap().0, 200);
}

#[test]
fn a_hanging_or_broken_server_delays_no_page() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/stat", listener.local_addr().unwrap());
    thread::spawn(move || {
        // The first request gets no response, the others an invalid page.
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            if open.is_empty() {
                open.push(stream);
                continue;
            }
            let body = "<rtmp><server>".repeat(50);
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        }
    });
    let service = Service::start(&[&format!("--nginx.url={url}"), "--nginx.interval=200ms"]);
    let begun = Instant::now();
    let _ = service.nginx.get("/health").unwrap();
    println!("a page in {:.3} s while nginx hangs", begun.elapsed().as_secs_f64());
    service.eventually("an invalid page is broken", || {
        let page = service.nginx.metrics().unwrap_or_default();
        page.iter().any(|sample| sample.name == "nginx_rtmp_up" && sample.label("reason") == "broken")
    });
}
