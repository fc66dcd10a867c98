//! Tests of the static files: how they are served, and what a strict content policy demands of
//! their text.

use std::{collections::BTreeSet, io::Read as _};

use axum::{
    body::{Body, to_bytes},
    http::{Request, header},
};
use flate2::read::GzDecoder;
use tower::ServiceExt as _;

use super::*;

/// The answer of a program to a request with these headers.
fn answer(program: Program, path: &str, headers: &[(HeaderName, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let response = router(program).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, to_bytes(body, usize::MAX).await.unwrap().to_vec())
    })
}

fn text(path: &str) -> &'static str {
    let asset = ASSETS.iter().find(|asset| asset.path == path).unwrap_or_else(|| panic!("no file {path}"));
    std::str::from_utf8(asset.content).unwrap()
}

/// The scripts of this crate; uPlot is not ours.
fn scripts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let scripts = ASSETS.iter().filter(|asset| asset.content_type == JAVASCRIPT && !asset.path.contains("uPlot"));
    scripts.map(|asset| (asset.path, text(asset.path)))
}

/// The texts that stand between `start` and the next `end`.
fn between<'a>(text: &'a str, start: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| rest.split(end).next())
}

#[test]
fn every_file_is_served_with_its_headers() {
    for asset in &ASSETS {
        let (status, headers, body) = answer(Program::Probe, asset.path, &[]);
        assert_eq!((status, &*body), (StatusCode::OK, asset.content), "{}", asset.path);
        assert_eq!(headers[header::CONTENT_TYPE], asset.content_type);
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], CSP);
        assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
    }
    assert!(!CSP.contains("unsafe"));
}

#[test]
fn analysis_serves_only_the_shared_files() {
    assert_eq!(answer(Program::Analysis, STYLE, &[]).0, StatusCode::OK);
    assert_eq!(answer(Program::Analysis, ICON, &[]).0, StatusCode::OK);
    assert_eq!(answer(Program::Analysis, "/", &[]).0, StatusCode::NOT_FOUND);
    assert_eq!(answer(Program::Probe, "/static/../Cargo.toml", &[]).0, StatusCode::NOT_FOUND);
}

#[test]
fn an_unchanged_file_is_not_sent_again() {
    let (_, headers, _) = answer(Program::Probe, "/", &[]);
    let tag = headers[header::ETAG].to_str().unwrap();
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let (status, headers, body) = answer(Program::Probe, "/", &[(IF_NONE_MATCH, &*known)]);
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
        assert_eq!(headers[header::ETAG], tag);
    }
    assert_eq!(answer(Program::Probe, "/", &[(IF_NONE_MATCH, "\"other\"")]).0, StatusCode::OK);
    let gzip = (ACCEPT_ENCODING, "gzip");
    assert_eq!(answer(Program::Probe, "/", &[gzip, (IF_NONE_MATCH, tag)]).0, StatusCode::OK);
}

#[test]
fn compressed_files_have_the_same_content() {
    for asset in &ASSETS {
        let (_, headers, body) = answer(Program::Probe, asset.path, &[(ACCEPT_ENCODING, "gzip, br")]);
        assert_eq!(headers[header::VARY], "Accept-Encoding");
        let Some(encoding) = headers.get(header::CONTENT_ENCODING) else {
            assert_eq!(body, asset.content);
            continue;
        };
        assert_eq!(encoding, "gzip");
        let mut plain = Vec::new();
        GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, asset.content, "{}", asset.path);
    }
}

#[test]
fn the_page_has_no_inline_script_or_style() {
    let page = text("/");
    assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("javascript:"));
    for script in page.split("<script").skip(1) {
        let (attributes, rest) = script.split_once('>').unwrap();
        assert!(attributes.contains(" src=\"/static/") && rest.starts_with("</script>"), "{attributes}");
    }
    // Event handlers are attributes whose names start with "on".
    assert_eq!(between(page, " on", '=').find(|name| name.chars().all(|c| c.is_ascii_lowercase())), None);
}

#[test]
fn every_link_to_a_static_file_resolves() {
    let page = text("/");
    let links = between(page, "src=\"", '"').chain(between(page, "href=\"", '"'));
    for link in links.filter(|link| !link.starts_with('#')) {
        let known = ["/overview", "/metrics", "/api/v1/now", "/api/v1/series"].contains(&link);
        assert!(known || ASSETS.iter().any(|asset| asset.path == link), "{link}");
    }
    for (path, script) in scripts() {
        for import in between(script, " from \"./", '"') {
            assert!(ASSETS.iter().any(|asset| asset.path == format!("/static/{import}")), "{path}: {import}");
        }
    }
}

#[test]
fn scripts_never_parse_text_as_html_or_code() {
    for (path, script) in scripts() {
        for call in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!script.contains(call), "{path}: {call}");
        }
    }
}

#[test]
fn elements_that_the_script_asks_for_are_in_the_page() {
    let page: BTreeSet<&str> = between(text("/"), " id=\"", '"').collect();
    let asked: BTreeSet<&str> = between(text("/static/probe.js"), "byId(\"", '"').collect();
    assert!(asked.len() > 20, "{asked:?}");
    assert_eq!(asked.difference(&page).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn queries_name_metrics_that_exist() {
    let (script, docs) = (text("/static/probe.js"), include_str!("../../../docs/metrics.md"));
    let names: BTreeSet<&str> = between(script, "rate(\"", '"').collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(docs.contains(&format!("| `wattcast_{name}_joules_total` |")), "{name}");
    }
}

#[test]
fn swatches_of_the_script_are_in_the_style_sheet() {
    let style = text(STYLE);
    for name in ["-idle", "-awake", "-system", "-unattributed", "-retired", "-other", "-gpu", "0", "5", "6", "11"] {
        assert!(style.contains(&format!(".s{name} {{")) || style.contains(&format!(".s{name},")), "{name}");
    }
}

#[test]
fn files_stay_small() {
    let total: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
    assert!(total < 160 * 1024, "{total} bytes");
}
