//! Responses of the site.

use arc_swap::ArcSwapOption;
use axum::body::to_bytes;
use results::{
    cost::Prices,
    energy::{EnergyLookup, EnergySources},
    model::Model,
};

use super::*;
use crate::web::view::{
    summaries,
    tests::{file, row, view},
};

const ID: &str = "20260101_000000";

/// Pages with a table of hostile names.
struct Hostile;

impl Pages for Hostile {
    fn page(&self) -> Option<Arc<Page>> {
        None
    }

    fn collectors(&self) -> Vec<&'static str> {
        vec!["runs"]
    }

    fn unhealthy(&self) -> Option<String> {
        Some("broken".to_owned())
    }

    fn unready(&self) -> Vec<String> {
        vec!["missing".to_owned()]
    }

    fn index_page(&self) -> IndexPage {
        let hostile = "<script>alert(1)</script>\"><img src=x>".to_owned();
        let rows = vec![vec![hostile.clone(), hostile.clone()]];
        IndexPage {
            about: hostile.clone(),
            banners: vec![hostile.clone()],
            tables: vec![(hostile, vec!["a".to_owned(), "state".to_owned()], rows)],
            ..IndexPage::default()
        }
    }
}

fn site(view: Option<ResultsView>) -> Arc<Site> {
    let pages = || -> Arc<dyn Pages> { Arc::new(Hostile) };
    Arc::new(Site {
        view: Arc::new(ArcSwapOption::from_pointee(view)),
        pages: SectionPages {
            results: pages(),
            quality: pages(),
            cost: pages(),
            health: pages(),
            streams: [pages(), pages()],
        },
        probes: vec![ProbeLink { name: "probe".to_owned(), url: public_url("http://127.0.0.1:9500") }],
        results_dir: PathBuf::from("/srv/results"),
        scope: Scope::Host,
        telemetry_path: "/metrics".to_owned(),
        external_url: "http://enc-1:9502/".to_owned(),
        work: Arc::new(Semaphore::new(1)),
    })
}

/// The view of a directory with one result file.
fn view_of(dir: &std::path::Path) -> ResultsView {
    let files = store::list(dir).unwrap();
    let run = Arc::new(store::read(&files[0]).unwrap());
    let lookups: Vec<EnergyLookup> = run.scenarios.iter().map(EnergySources::from_file).collect();
    let prices = Prices::defaults();
    let model = Model::new(&[(run.clone(), lookups)], Scope::Host, &prices);
    let runs = summaries(&model, &[(files[0].clone(), run)]);
    ResultsView { model: Arc::new(model), runs: Arc::new(runs), prices: Arc::new(prices), ..view(&[]) }
}

async fn text(response: Response) -> (StatusCode, HeaderMap, String) {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 24).await.unwrap();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn written(rows: &[String]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("test_results_{ID}.json"));
    std::fs::write(&path, file(rows)).unwrap();
    (dir, path)
}

#[tokio::test]
async fn every_section_has_navigation_policy_and_escaped_names() {
    for view in [None, Some(view(&[])), Some(view(&[(ID, file(&[row("<script>", 30.0, 90.0)]).as_str())]))] {
        let site = site(view);
        for one in Section::ALL {
            let (status, headers, page) = text(section(State(site.clone()), one).await).await;
            assert_eq!(status, StatusCode::OK, "{one:?}");
            assert_eq!(headers[CONTENT_SECURITY_POLICY], POLICY, "{one:?}");
            assert!(Section::ALL.iter().all(|other| page.contains(&format!("href=\"{}\"", other.path()))), "{page}");
            for inline in ["<script", "<img", " style=", "<style"] {
                assert!(!page.contains(inline), "{one:?}: {inline}\n{page}");
            }
        }
    }
}

#[tokio::test]
async fn only_known_runs_are_served() {
    let (dir, _) = written(&[row("a", 30.0, 90.0)]);
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let site = site(Some(view_of(dir.path())));
    for id in ["", "..", "../secret", "/etc/passwd", "secret", "20260102_000000", "20260101_000000/../secret", "*"] {
        let responses = [
            result_file(State(site.clone()), UrlPath(id.to_owned())).await,
            report_page(State(site.clone()), UrlPath(id.to_owned())).await,
        ];
        for response in responses {
            let (status, _, page) = text(response).await;
            assert!(status == StatusCode::NOT_FOUND && !page.contains("secret"), "{id}: {status} {page}");
        }
    }
}

#[tokio::test]
async fn files_and_reports_are_sent_in_a_sandbox() {
    let (dir, _) = written(&[row("<script>alert(1)</script>", 30.0, 90.0)]);
    let site = site(Some(view_of(dir.path())));
    let (status, headers, page) = text(report_page(State(site.clone()), UrlPath(ID.to_owned())).await).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    assert_eq!(headers[CONTENT_SECURITY_POLICY], REPORT_POLICY.as_str());
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"), "{page}");
    let style = page.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).unwrap();
    let hash = BASE64_STANDARD.encode(Sha256::digest(style).as_slice());
    assert!(REPORT_POLICY.contains(&format!("style-src 'sha256-{hash}';")) && !REPORT_POLICY.contains("unsafe"));
    let (status, headers, json) = text(result_file(State(site), UrlPath(ID.to_owned())).await).await;
    assert_eq!(status, StatusCode::OK, "{json}");
    assert_eq!(headers[CONTENT_SECURITY_POLICY], FILE_POLICY);
    assert_eq!(headers[CONTENT_DISPOSITION], format!("attachment; filename=\"test_results_{ID}.json\"").as_str());
    assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert!(json.contains("energy_joules"), "{json}");
}

/// Every connection that did not read its file kept it in memory.
#[tokio::test]
async fn a_body_counts_until_it_was_sent() {
    static LIMIT: Semaphore = Semaphore::const_new(1);
    let unsent = counted("{}".to_owned(), LIMIT.try_acquire().unwrap());
    assert!(LIMIT.try_acquire().is_err());
    drop(unsent);
    let sent = counted("{}".to_owned(), LIMIT.try_acquire().unwrap());
    assert_eq!(&to_bytes(sent, 1 << 10).await.unwrap()[..], b"{}");
    assert_eq!(LIMIT.available_permits(), 1);
}

#[tokio::test]
async fn a_file_that_changed_since_it_was_read_is_not_sent() {
    let (dir, path) = written(&[row("a", 30.0, 90.0)]);
    let site = site(Some(view_of(dir.path())));
    std::fs::write(&path, file(&[row("a", 31.0, 90.0)])).unwrap();
    let (status, _, page) = text(result_file(State(site.clone()), UrlPath(ID.to_owned())).await).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && page.contains("has changed"), "{page}");
    let other = dir.path().join("other");
    std::fs::write(&other, "secret").unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    let (status, _, page) = text(result_file(State(site), UrlPath(ID.to_owned())).await).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && !page.contains("secret"), "{page}");
}

#[tokio::test]
async fn a_comparison_needs_two_known_runs() {
    let (old, new) = (file(&[row("a", 30.0, 90.0)]), file(&[row("a", 15.0, 90.0)]));
    let site = site(Some(view(&[("20260102_000000", new.as_str()), (ID, old.as_str())])));
    let compared = |baseline: &str, candidate: &str| {
        let query = CompareQuery { baseline: baseline.to_owned(), candidate: candidate.to_owned() };
        compare_page(State(site.clone()), Ok(Query(query)))
    };
    for (baseline, candidate, expected) in [
        ("", "", StatusCode::BAD_REQUEST),
        (ID, "", StatusCode::BAD_REQUEST),
        (ID, ID, StatusCode::BAD_REQUEST),
        (ID, "<script>", StatusCode::NOT_FOUND),
        (ID, "20260102_000000", StatusCode::OK),
    ] {
        let (status, _, page) = text(compared(baseline, candidate).await).await;
        assert_eq!(status, expected, "{page}");
        assert!(!page.contains("<script>"), "{page}");
    }
}

#[test]
fn ports_without_all_pages_link_to_the_one_with_them() {
    let site = site(Some(view(&[])));
    let page = site.document(Section::Streams, &site.outer_frame(&HeaderMap::new()));
    assert!(
        page.contains("href=\"http://enc-1:9502/results\"") && page.contains("aria-current=\"page\">Streams"),
        "{page}"
    );
    assert!(site.document(Section::Streams, &site.own_frame()).contains("href=\"/results\""));
}

/// Behind `--web.listen-address=:9502` the navigation led to `http://[::]:9502`.
#[test]
fn links_to_every_interface_lead_to_the_host_of_the_request() {
    let request = |host: &str| -> HeaderMap { HeaderMap::from_iter([(HOST, host.parse().unwrap())]) };
    for (url, host, base) in [
        ("http://[::]:9502/", "enc-1:9506", "http://enc-1:9502"),
        ("https://0.0.0.0:9502/", "[2001:db8::1]:9506", "https://[2001:db8::1]:9502"),
        ("http://[::]:9502/", "user@10.0.0.7", "http://10.0.0.7:9502"),
        ("http://[::]:9502/", "\"><b>", "http://[::]:9502"),
        ("http://127.0.0.1:9502/", "enc-1:9506", "http://127.0.0.1:9502"),
        ("http://enc-1:9502/", "other:9506", "http://enc-1:9502"),
    ] {
        let own = Site { external_url: url.to_owned(), ..Arc::into_inner(site(None)).unwrap() };
        assert_eq!(own.outer_frame(&request(host)).base, base, "{url} {host}");
    }
    let own = Site { external_url: "http://[::]:9502/".to_owned(), ..Arc::into_inner(site(None)).unwrap() };
    assert_eq!(own.outer_frame(&HeaderMap::new()).base, "http://[::]:9502", "without a host");
}

#[test]
fn a_port_keeps_its_state_and_its_index_page() {
    let pages = SitePages(Arc::new(Hostile));
    assert_eq!((pages.unhealthy().as_deref(), pages.unready().len()), (Some("broken"), 1));
    assert_eq!((pages.collectors(), pages.index_path(), pages.page().is_none()), (vec!["runs"], "/index", true));
    assert_eq!(pages.index_page().tables.len(), 1);
}

/// Two routes of one path would panic.
#[test]
fn metrics_may_have_the_path_of_a_page() {
    for path in ["/", "/results", "/overview", "/runbooks", "/results/x/report"] {
        let mut own = Arc::into_inner(site(None)).unwrap();
        own.telemetry_path = path.to_owned();
        let metrics: Router = Router::new().route(path, get(|| async { "metrics" }));
        let _all: Router = metrics.merge(routes(&Arc::new(own), Section::Overview));
    }
}

#[test]
fn only_plain_addresses_of_probes_are_shown() {
    for (url, shown) in [
        ("http://127.0.0.1:9500", Some("http://127.0.0.1:9500/")),
        ("https://user:secret@enc-1:9500/", Some("https://enc-1:9500/")),
        ("http://[::1]:9500", Some("http://[::1]:9500/")),
        ("https://gateway/secret/probe", None),
        ("http://enc-1:9500/?token=secret", None),
        ("javascript:alert(1)", None),
        ("", None),
    ] {
        assert_eq!(public_url(url).as_deref(), shown, "{url}");
    }
}
