//! The static files of the pages of both programs, embedded in the binary: the live page of the
//! probe, the style sheet of every page, and uPlot 1.6.32 (MIT), which draws axes and zooms.
//!
//! | path | probe | analysis |
//! |---|---|---|
//! | `/` | the live page | none: the analysis service renders its own |
//! | `/static/NAME` | style sheet, scripts, icon, licence | style sheet, icon |
//!
//! The pages have no inline script or style and load nothing from other hosts, so that [`CSP`]
//! needs no exception. There is no build step: the files in `assets` are served as they are.
//!
//! Browsers ask for every file again and mostly get 304: a page and its scripts are always of one
//! version, also after an update of the program.

#![forbid(unsafe_code)]

use std::{io::Write as _, sync::OnceLock};

use axum::{
    Router,
    body::Bytes,
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
            IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

/// The path of the style sheet. Its first lines list the classes for other pages.
pub const STYLE: &str = "/static/style.css";

/// The path of the icon.
pub const ICON: &str = "/static/icon.svg";

/// The `Content-Security-Policy` of the static files and of the live page.
pub const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A program that serves static files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `wattcast-probe`, with the live page at `/`.
    Probe,
    /// `wattcast-analysis`, with pages of its own.
    Analysis,
}

/// Routes of the static files of a program; for the probe also `/`.
pub fn router(program: Program) -> Router {
    let mut router = Router::new();
    for asset in ASSETS.iter().filter(|asset| asset.shared || program == Program::Probe) {
        router = router.route(asset.path, get(move |headers: HeaderMap| async move { respond(asset, &headers) }));
    }
    router
}

/// An embedded file.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    /// True if both programs serve the file, false if only the probe does.
    shared: bool,
    content: &'static [u8],
    /// Made at the first request, because most programs that run never serve a page.
    encoded: OnceLock<Encoded>,
}

/// What is computed from the content of a file.
struct Encoded {
    /// Start of the SHA-256 digest, hexadecimal.
    digest: String,
    /// Compressed content, if that is shorter.
    gzip: Option<Bytes>,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

static ASSETS: [Asset; 12] = [
    Asset::new("/", HTML, false, include_bytes!("../assets/probe.html")),
    Asset::new(STYLE, CSS, true, include_bytes!("../assets/style.css")),
    Asset::new(ICON, "image/svg+xml", true, include_bytes!("../assets/icon.svg")),
    Asset::new("/static/probe.js", JAVASCRIPT, false, include_bytes!("../assets/probe.js")),
    Asset::new("/static/feed.js", JAVASCRIPT, false, include_bytes!("../assets/feed.js")),
    Asset::new("/static/history.js", JAVASCRIPT, false, include_bytes!("../assets/history.js")),
    Asset::new("/static/chart.js", JAVASCRIPT, false, include_bytes!("../assets/chart.js")),
    Asset::new("/static/table.js", JAVASCRIPT, false, include_bytes!("../assets/table.js")),
    Asset::new("/static/format.js", JAVASCRIPT, false, include_bytes!("../assets/format.js")),
    Asset::new("/static/uPlot.iife.min.js", JAVASCRIPT, false, include_bytes!("../assets/uPlot.iife.min.js")),
    Asset::new("/static/uPlot.LICENSE.txt", TEXT, false, include_bytes!("../assets/uPlot.LICENSE.txt")),
    Asset::new("/static/uPlot.min.css", CSS, false, include_bytes!("../assets/uPlot.min.css")),
];

impl Asset {
    const fn new(path: &'static str, content_type: &'static str, shared: bool, content: &'static [u8]) -> Self {
        Self { path, content_type, shared, content, encoded: OnceLock::new() }
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| Encoded {
            digest: Sha256::digest(self.content).iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
            gzip: gzip(self.content),
        })
    }
}

/// Compressed content; `None` if it would be longer.
fn gzip(content: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() < content.len()).then(|| compressed.into())
}

fn respond(asset: &'static Asset, request: &HeaderMap) -> Response {
    let header = |name: HeaderName| request.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let encoded = asset.encoded();
    let accepted = http::negotiate::negotiate("", header(ACCEPT_ENCODING)).format.gzip;
    let compressed = encoded.gzip.clone().filter(|_| accepted);
    // The two encodings are different representations, with different tags (RFC 9110, §8.8.3).
    let tag = format!("\"{}{}\"", encoded.digest, if compressed.is_some() { "-gzip" } else { "" });
    let headers = [
        (CONTENT_TYPE, asset.content_type),
        (ETAG, tag.as_str()),
        (CACHE_CONTROL, "no-cache"),
        (VARY, "Accept-Encoding"),
        (CONTENT_SECURITY_POLICY, CSP),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    if has_tag(header(IF_NONE_MATCH), &tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    match compressed {
        Some(body) => (headers, [(CONTENT_ENCODING, "gzip")], body).into_response(),
        None => (headers, Bytes::from_static(asset.content)).into_response(),
    }
}

/// True if a value of `If-None-Match` contains the tag; compared weakly (RFC 9110, §13.1.2).
fn has_tag(value: &str, tag: &str) -> bool {
    value.split(',').map(str::trim).any(|listed| listed == "*" || listed.strip_prefix("W/").unwrap_or(listed) == tag)
}

#[cfg(test)]
mod tests;
