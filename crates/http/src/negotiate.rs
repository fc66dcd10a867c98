//! Content negotiation for pages of metrics: `Accept` and `Accept-Encoding` (RFC 9110, §12.5).
//!
//! The response is text 0.0.4 unless the scraper prefers OpenMetrics. Like Prometheus client
//! libraries, unknown media types get text as well, never 406.

use metrics::{
    openmetrics,
    page::{self, Format},
};

/// Maximum length of a header, in bytes; the rest of a longer one is ignored. Headers of browsers
/// have about 150 bytes.
const MAX_BYTES: usize = 4096;

/// The negotiated response format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFormat {
    /// The format of the body.
    pub format: Format,
    /// True if the scraper requests an escaping scheme for names (Prometheus 3). Wattcast's names
    /// need no escaping, so any scheme is answered with `underscores`.
    escaping: bool,
}

impl ResponseFormat {
    /// The value of the `Content-Type` header.
    #[must_use]
    pub fn content_type(&self) -> String {
        let name = if self.format.openmetrics { openmetrics::CONTENT_TYPE } else { page::CONTENT_TYPE };
        format!("{name}{}", if self.escaping { "; escaping=underscores" } else { "" })
    }
}

/// The response format for the values of the `Accept` and `Accept-Encoding` headers; an absent
/// header is empty.
///
/// ```
/// let response = http::negotiate::negotiate("application/openmetrics-text;version=1.0.0", "gzip");
/// assert!(response.format.openmetrics && response.format.gzip);
/// ```
#[must_use]
pub fn negotiate(accept: &str, encoding: &str) -> ResponseFormat {
    // Quality of text and of OpenMetrics; for each, whether an escaping scheme is requested.
    let (mut text, mut open, mut escaping) = (0.0, 0.0, [false; 2]);
    let mut best_specificity = 0;
    for (kind, q, parameters) in parts(accept) {
        let version = value(&parameters, "version");
        let requests_escaping = value(&parameters, "escaping").is_some();
        match &*kind {
            // 0.0.1 is a draft that no scraper requests alone.
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") && q > open => {
                (open, escaping[1]) = (q, requests_escaping);
            }
            // Text 1.0.0 (Prometheus 3) equals 0.0.4 for names without quotes.
            "text/plain" | "text/*" | "*/*" => {
                // The most specific media range has precedence (RFC 9110, §12.5.1).
                let specificity = kind.len() * usize::from(!kind.contains('*')) + usize::from(kind == "text/*");
                if specificity > best_specificity || specificity == best_specificity && q > text {
                    (text, escaping[0], best_specificity) = (q, requests_escaping, specificity);
                }
            }
            _ => {}
        }
    }
    let openmetrics = open > text || open > 0.0 && (open - text).abs() < f64::EPSILON;
    let gzip = parts(encoding).filter(|(name, ..)| matches!(&**name, "gzip" | "x-gzip" | "*"));
    // A coding listed by name has precedence over `*`.
    let gzip = gzip.max_by_key(|(name, ..)| name != "*").is_some_and(|(_, q, _)| q > 0.0);
    ResponseFormat { format: Format { openmetrics, gzip }, escaping: escaping[usize::from(openmetrics)] }
}

type Parameters = Vec<(String, String)>;

fn value<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
}

/// Name, quality and other parameters of each element of a header list.
fn parts(header: &str) -> impl Iterator<Item = (String, f64, Parameters)> {
    let end = header.len().min(MAX_BYTES);
    header.get(..end).unwrap_or_default().split(',').map(|part| {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default().to_ascii_lowercase();
        let mut q = 1.0;
        let mut others = Vec::new();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
            if key == "q" {
                q = value.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
            } else {
                others.push((key, value.to_owned()));
            }
        }
        (name, q, others)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(accept: &str) -> bool {
        negotiate(accept, "").format.openmetrics
    }

    #[test]
    fn scrapers_get_their_preferred_format() {
        // Headers as sent by Prometheus 2.42, Prometheus 3, VictoriaMetrics 1.79, curl, a browser.
        assert!(open(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                     text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(
            negotiate(three, "gzip").content_type(),
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
        );
        assert!(!open("text/plain;version=0.0.4;q=1,*/*;q=0.1"));
        assert!(!open("*/*"));
        assert!(!open("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!open(""));
    }

    #[test]
    fn quality_decides_and_unknown_types_get_text() {
        assert!(!open("application/openmetrics-text;q=0.4,text/plain;q=0.5"));
        assert!(open("application/openmetrics-text,text/plain"));
        assert!(!open("application/openmetrics-text;q=0"));
        assert!(!open("application/openmetrics-text;version=2.0.0"));
        assert!(open("text/plain;q=0.2,application/openmetrics-text;q=0.5,*/*;q=0.9"));
        assert!(!open("image/png"));
        assert_eq!(negotiate("image/png", "").content_type(), page::CONTENT_TYPE);
    }

    #[test]
    fn gzip_is_sent_if_accepted() {
        let gzip = |encoding: &str| negotiate("", encoding).format.gzip;
        assert!(gzip("gzip") && gzip("deflate, gzip;q=0.5") && gzip("*") && gzip("GZIP"));
        assert!(!gzip("") && !gzip("identity") && !gzip("gzip;q=0, *") && !gzip("br"));
    }

    proptest! {
        #[test]
        fn negotiation_succeeds_for_any_header(accept in any::<String>(), encoding in any::<String>()) {
            let _ = negotiate(&accept, &encoding);
        }
    }
}
