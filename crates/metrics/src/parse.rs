//! Strict parser for pages of metrics: the text format 0.0.4 and OpenMetrics 1.0.
//!
//! A page that a scraper would reject is an error with its line number: a line that is not a sample
//! (an HTML page of a proxy), a duplicate label, a duplicate or unknown TYPE, OpenMetrics without
//! `# EOF`. Callers limit the number of bytes.

use std::collections::BTreeMap;

/// Maximum number of samples of a page. A cAdvisor of a large host has about ten thousand.
pub const MAX_SAMPLES: usize = 1_000_000;

/// One sample of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The full name, with suffixes like `_total` and `_bucket`.
    pub name: String,
    /// Label names and unescaped values, in the order of the page.
    pub labels: Vec<(String, String)>,
    /// The value; may be infinite or NaN.
    pub value: f64,
    /// The timestamp of the page in unix seconds; absent on most pages.
    pub timestamp: Option<f64>,
}

impl Sample {
    /// The value of a label; empty if the sample has no such label.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// A parsed page.
///
/// ```
/// let text = "# TYPE power_watts gauge\npower_watts{zone=\"package\"} 12.5\n";
/// let page = metrics::parse::parse(text)?;
/// assert_eq!(page.samples[0].label("zone"), "package");
/// assert_eq!(page.kind("power_watts"), "gauge");
/// # Ok::<(), metrics::parse::ParseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    /// The `# TYPE` lines: family name and type, as written.
    pub types: BTreeMap<String, String>,
    /// All samples, in the order of the page.
    pub samples: Vec<Sample>,
}

impl Exposition {
    /// The family of a sample name: the name itself, or the name without the suffix of a histogram,
    /// a summary or an OpenMetrics counter.
    #[must_use]
    pub fn family<'a>(&self, name: &'a str) -> &'a str {
        if self.types.contains_key(name) {
            return name;
        }
        let suffixes = ["_bucket", "_count", "_sum", "_total", "_created", "_info"];
        suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| self.types.contains_key(*base))
            .unwrap_or(name)
    }

    /// The type of the family of a sample name; `untyped` if the page has no TYPE line for it.
    #[must_use]
    pub fn kind(&self, name: &str) -> &str {
        self.types.get(self.family(name)).map_or("untyped", |kind| kind)
    }
}

/// A page that is not valid in either format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    /// The fault, with the beginning of the line.
    pub message: String,
}

/// Types of both formats.
const TYPES: [&str; 9] =
    ["counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "stateset", "gaugehistogram"];

/// Parses a page; one that ends in `# EOF` is OpenMetrics. Timestamps are milliseconds in the text
/// format, and seconds in OpenMetrics.
///
/// # Errors
/// The first invalid line, or more than [`MAX_SAMPLES`] samples.
pub fn parse(page: &str) -> Result<Exposition, ParseError> {
    parse_as(page, page.trim_end().ends_with("# EOF"))
}

/// Parses a page in the format that its `Content-Type` declares.
///
/// # Errors
/// Like [`parse`]; also an OpenMetrics page without `# EOF`, which is incomplete.
pub fn parse_as(page: &str, openmetrics: bool) -> Result<Exposition, ParseError> {
    if openmetrics && !page.trim_end().ends_with("# EOF") {
        return Err(ParseError {
            line: page.lines().count().max(1),
            message: "OpenMetrics without # EOF: the page is incomplete".to_owned(),
        });
    }
    let mut exposition = Exposition::default();
    for (number, line) in page.lines().enumerate() {
        let invalid = |fault: &str| {
            let excerpt: String = line.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
            ParseError { line: number + 1, message: format!("{fault}: {excerpt}") }
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_whitespace();
            if words.next() == Some("TYPE") {
                let (Some(name), Some(kind)) = (words.next(), words.next()) else {
                    return Err(invalid("TYPE without a name or a type"));
                };
                if !TYPES.contains(&kind) {
                    return Err(invalid("unknown TYPE"));
                }
                if exposition.types.insert(name.trim_matches('"').to_owned(), kind.to_owned()).is_some() {
                    return Err(invalid("second TYPE of the same name"));
                }
            }
            continue;
        }
        if exposition.samples.len() >= MAX_SAMPLES {
            return Err(invalid("more than 1000000 samples"));
        }
        exposition.samples.push(sample(line, openmetrics).map_err(invalid)?);
    }
    Ok(exposition)
}

fn sample(line: &str, openmetrics: bool) -> Result<Sample, &'static str> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("name starts with a digit");
    }
    let mut name = name.to_owned();
    let mut labels = Vec::new();
    let mut rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = braces(inside, &mut name, &mut labels)?;
    }
    if name.is_empty() {
        return Err("no sample of metrics");
    }
    // An exemplar follows after " # " and is not checked.
    let rest = rest.split(" # ").next().unwrap_or_default();
    let mut words = rest.split_whitespace();
    let value = words.next().and_then(|word| word.parse().ok()).ok_or("no value")?;
    let timestamp = match words.next() {
        None => None,
        Some(word) => {
            let at: f64 = word.parse().map_err(|_| "timestamp is not a number")?;
            if !openmetrics && word.parse::<i64>().is_err() {
                return Err("timestamp with a fraction: the text format has whole milliseconds");
            }
            Some(if openmetrics { at } else { at / 1000.0 })
        }
    };
    if words.next().is_some() {
        return Err("more than a value and a timestamp");
    }
    Ok(Sample { name, labels, value, timestamp })
}

/// Reads labels after `{` up to the closing brace, and returns what follows it. The braces of
/// Prometheus 3 also hold the name of the metric if it is outside the legacy character set:
/// `{"name",label="value"}`.
fn braces<'a>(text: &'a str, name: &mut String, labels: &mut Vec<(String, String)>) -> Result<&'a str, &'static str> {
    let mut rest = text.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (key, after) = label_key(rest)?;
        rest = after.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            let (value, after) = quoted(value.trim_start())?;
            if key.is_empty() {
                return Err("label without a name");
            }
            if labels.iter().any(|(known, _)| *known == key) {
                return Err("duplicate label");
            }
            labels.push((key, value));
            rest = after.trim_start();
        } else if name.is_empty() {
            *name = key;
        } else {
            return Err("label without a value");
        }
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.starts_with('}') => {}
            None => return Err("labels without a closing brace"),
        }
    }
}

/// The key at the start of `text`, quoted or plain, and what follows it.
fn label_key(text: &str) -> Result<(String, &str), &'static str> {
    if text.starts_with('"') {
        return quoted(text);
    }
    let end = text.find(['=', ',', '}', ' ']).ok_or("label without a value")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !text[..end].chars().all(plain) || text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("invalid label name");
    }
    Ok((text[..end].to_owned(), &text[end..]))
}

/// The unescaped content of the quoted string at the start of `text`, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let inside = text.strip_prefix('"').ok_or("label value without quotes")?;
    let mut out = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &inside[at + 1..])),
            '\\' => match chars.next().ok_or("string without a closing quote")?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
    Err("string without a closing quote")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        family::{Def, Family},
        page::{Format, render},
    };

    #[test]
    fn samples_have_unescaped_labels() {
        let page = "# HELP a b\n# TYPE a gauge\na 1\nb{x=\"1\",y=\"a \\\"q\\\" \\\\ \\n, }\"} 2.5 1700000000500\n";
        let exposition = parse(page).unwrap();
        let a = &exposition.samples[0];
        assert_eq!((&*a.name, a.value, exposition.kind("a")), ("a", 1.0, "gauge"));
        let b = &exposition.samples[1];
        assert_eq!((b.label("x"), b.label("y"), b.label("z")), ("1", "a \"q\" \\ \n, }", ""));
        assert_eq!((b.timestamp, exposition.kind("b")), (Some(1_700_000_000.5), "untyped"));
    }

    #[test]
    fn openmetrics_and_utf_8_names_are_parsed() {
        let exposition = parse(
            "# TYPE a counter\na_total 1 1700000000.5 # {trace=\"x\"} 0.5\n{\"ü.b\",l=\"v\"} +Inf\nc{} NaN\n# EOF\n",
        )
        .unwrap();
        let samples = &exposition.samples;
        assert_eq!((exposition.family("a_total"), samples[0].timestamp), ("a", Some(1_700_000_000.5)));
        assert_eq!((&*samples[1].name, samples[1].label("l")), ("ü.b", "v"));
        assert!(samples[1].value.is_infinite() && samples[2].value.is_nan());
    }

    #[test]
    fn parse_error_names_the_line_and_the_fault() {
        for (page, line, word) in [
            ("<!doctype html>", 1, "no sample"),
            ("a 1\n{\"json\": 1}", 2, "label"),
            ("a", 1, "no value"),
            ("a x", 1, "no value"),
            ("a 1 2 3", 1, "more than"),
            ("a{b=\"c} 1", 1, "without a closing"),
            ("a{b} 1", 1, "without a value"),
            ("9a 1", 1, "digit"),
            ("a 1 soon", 1, "not a number"),
            ("a 1 1.5", 1, "fraction"),
            ("a{b=\"c\",b=\"d\"} 1", 1, "duplicate"),
            ("a{9b=\"c\"} 1", 1, "invalid label name"),
            ("# TYPE a gauge\n# TYPE a counter\n", 2, "second TYPE"),
            ("# TYPE a banana\n", 1, "unknown TYPE"),
        ] {
            let error = parse(page).unwrap_err();
            assert!(error.line == line && error.message.contains(word), "{page:?}: {error}");
        }
    }

    #[test]
    fn openmetrics_without_eof_is_an_error() {
        assert!(parse_as("a 1\n", true).unwrap_err().message.contains("EOF"));
        assert!(parse_as("a 1\n# EOF\n", true).is_ok() && parse_as("a 1\n", false).is_ok());
    }

    static POWER: Def = Def::gauge("power_watts", &["container", "more"], "Power.");

    proptest! {
        #[test]
        fn parser_terminates_on_any_text(page in any::<String>()) {
            let _ = parse(&page);
        }

        #[test]
        fn parsed_page_equals_the_rendered_page(
            one in any::<String>(),
            other in any::<String>(),
            value in any::<f64>(),
            openmetrics: bool,
        ) {
            let page = render("t", [Family::new(&POWER).with(&[&one, &other], value)]).unwrap();
            let body = page.body(Format { openmetrics, gzip: false });
            let exposition = parse(std::str::from_utf8(&body).unwrap()).unwrap();
            let sample = &exposition.samples[0];
            prop_assert_eq!((sample.label("container"), sample.label("more")), (&*one, &*other));
            prop_assert!(sample.value.to_bits() == value.to_bits() || value.is_nan() && sample.value.is_nan());
        }
    }
}
