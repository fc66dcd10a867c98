//! What a scraper takes: `Accept` and `Accept-Encoding` of RFC 9110, §12.5, as far as a page of metrics needs them. Pure.
//!
//! Text 0.0.4 unless OpenMetrics is wanted more; what nobody knows is answered with text too, and never with 406, as client libraries do.

use crate::{openmetrics, page, page::Form};

/// Longest header that is looked at; a browser's has some 150 bytes.
const MAX: usize = 4096;

/// What to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The page's form.
    pub form: Form,
    /// Whether names were asked for by an escaping scheme (Prometheus 3): ours need none, whichever it is.
    escaping: bool,
}

impl Answer {
    /// Its `Content-Type`.
    #[must_use]
    pub fn content_type(&self) -> String {
        let name = if self.form.openmetrics { openmetrics::CONTENT_TYPE } else { page::CONTENT_TYPE };
        format!("{name}{}", if self.escaping { "; escaping=underscores" } else { "" })
    }
}

/// Of the two headers; an absent one is empty.
#[must_use]
pub fn negotiate(accept: &str, encoding: &str) -> Answer {
    let (mut text, mut open, mut escaping) = (0.0, 0.0, [false; 2]);
    let mut exact = 0;
    for (kind, q, parameters) in parts(accept) {
        let version = value(&parameters, "version");
        let asks = value(&parameters, "escaping").is_some();
        match &*kind {
            // 0.0.1 is a draft, which no scraper asks for alone.
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") && q > open => {
                (open, escaping[1]) = (q, asks);
            }
            // Text 1.0.0 (Prometheus 3) is 0.0.4 for names without quotes; who takes it takes ours.
            "text/plain" | "text/*" | "*/*" => {
                // What is said more exactly counts (RFC 9110, §12.5.1).
                let how = kind.len() * usize::from(!kind.contains('*')) + usize::from(kind == "text/*");
                if how > exact || how == exact && q > text {
                    (text, escaping[0], exact) = (q, asks, how);
                }
            }
            _ => {}
        }
    }
    let openmetrics = open > text || open > 0.0 && (open - text).abs() < f64::EPSILON;
    let gzip = parts(encoding).filter(|(name, ..)| matches!(&**name, "gzip" | "x-gzip" | "*"));
    // Said by name counts more than said by *.
    let gzip = gzip.max_by_key(|(name, ..)| name != "*").is_some_and(|(_, q, _)| q > 0.0);
    Answer { form: Form { openmetrics, gzip }, escaping: escaping[usize::from(openmetrics)] }
}

type Parameters = Vec<(String, String)>;

fn value<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
}

/// Name, quality and the other parameters of each part of a list.
fn parts(header: &str) -> impl Iterator<Item = (String, f64, Parameters)> {
    let end = header.len().min(MAX);
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
        negotiate(accept, "").form.openmetrics
    }

    #[test]
    fn scrapers_get_what_they_want_most() {
        // As they really ask: Prometheus 2.42, Prometheus 3, VictoriaMetrics 1.79, curl, a browser.
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
    fn quality_decides_and_nothing_is_refused() {
        assert!(!open("application/openmetrics-text;q=0.4,text/plain;q=0.5"));
        assert!(open("application/openmetrics-text,text/plain"));
        assert!(!open("application/openmetrics-text;q=0"));
        assert!(!open("application/openmetrics-text;version=2.0.0"));
        assert!(open("text/plain;q=0.2,application/openmetrics-text;q=0.5,*/*;q=0.9"));
        assert!(!open("image/png"));
        assert_eq!(negotiate("image/png", "").content_type(), page::CONTENT_TYPE);
    }

    #[test]
    fn gzip_is_sent_to_who_takes_it() {
        let gzip = |encoding: &str| negotiate("", encoding).form.gzip;
        assert!(gzip("gzip") && gzip("deflate, gzip;q=0.5") && gzip("*") && gzip("GZIP"));
        assert!(!gzip("") && !gzip("identity") && !gzip("gzip;q=0, *") && !gzip("br"));
    }

    proptest! {
        #[test]
        fn any_header_has_an_answer(accept in any::<String>(), encoding in any::<String>()) {
            let _ = negotiate(&accept, &encoding);
        }
    }
}
