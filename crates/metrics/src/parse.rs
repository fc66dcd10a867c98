//! Strict parser for pages of metrics: the text format 0.0.4 and OpenMetrics 1.0.
//!
//! A page that a scraper would reject is an error with its line number: a line that is not a sample
//! (an HTML page of a proxy), a duplicate label, an unknown TYPE, OpenMetrics without `# EOF`. What
//! Prometheus accepts although the format forbids it (its `model/textparse`) is a warning: a second
//! TYPE, a line break in a label value. Callers limit the number of bytes.

use std::{borrow::Cow, collections::BTreeMap};

/// Maximum number of samples of a page. A cAdvisor of a large host has about ten thousand.
pub const MAX_SAMPLES: usize = 1_000_000;
/// Number of warnings that are kept; a page may have one for each line.
const MAX_WARNINGS: usize = 8;
/// Longest sample with line breaks in its label values, in lines.
const MAX_SAMPLE_LINES: usize = 16;

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
    /// The first violations of the format that Prometheus accepts.
    pub warnings: Vec<ParseError>,
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

/// A violation of the format; as an error, the page is not valid in either format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    /// The fault, with the beginning of the line.
    pub message: String,
}

/// The fault of a quoted string without its end.
const OPEN_STRING: &str = "string without a closing quote";
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
    let (mut rest, mut number) = (page, 0);
    while !rest.is_empty() {
        let line = rest.split_inclusive('\n').next().unwrap_or(rest);
        let fault_at = |fault: &str| {
            let excerpt: String = line.trim().chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
            ParseError { line: number + 1, message: format!("{fault}: {excerpt}") }
        };
        let (bytes, lines, warning) = entry(rest, line, openmetrics, &mut exposition).map_err(&fault_at)?;
        if let Some(warning) = warning.filter(|_| exposition.warnings.len() < MAX_WARNINGS) {
            exposition.warnings.push(fault_at(warning));
        }
        rest = &rest[bytes..];
        number += lines;
    }
    Ok(exposition)
}

/// The text of a page. Bytes that are not UTF-8 may be in comments, which no scraper reads.
///
/// # Errors
/// The first other line that is not UTF-8.
pub fn decode(page: &[u8]) -> Result<Cow<'_, str>, ParseError> {
    if let Ok(text) = std::str::from_utf8(page) {
        return Ok(Cow::Borrowed(text));
    }
    let mut text = String::with_capacity(page.len());
    for (number, line) in page.split(|byte| *byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) => text.push_str(line),
            Err(_) if is_comment(line) => {}
            Err(_) => return Err(ParseError { line: number + 1, message: "not UTF-8".to_owned() }),
        }
        text.push('\n');
    }
    Ok(Cow::Owned(text))
}

/// True for a line that starts with `#` and describes no family.
fn is_comment(line: &[u8]) -> bool {
    let Some(comment) = line.trim_ascii().strip_prefix(b"#") else { return false };
    let comment = comment.trim_ascii_start();
    ![&b"HELP"[..], b"TYPE", b"UNIT"].iter().any(|keyword| comment.starts_with(keyword))
}

/// Reads the line at the start of `rest`: a sample, a comment or nothing. Returns the bytes and the
/// lines that were read, and a warning.
fn entry(
    rest: &str,
    line: &str,
    openmetrics: bool,
    exposition: &mut Exposition,
) -> Result<(usize, usize, Option<&'static str>), &'static str> {
    let text = line.trim();
    if text.is_empty() {
        return Ok((line.len(), 1, None));
    }
    if let Some(comment) = text.strip_prefix('#') {
        return Ok((line.len(), 1, type_line(comment, openmetrics, &mut exposition.types)?));
    }
    if exposition.samples.len() >= MAX_SAMPLES {
        return Err("more than 1000000 samples");
    }
    let fault = match sample(text, openmetrics) {
        Ok(sample) => {
            exposition.samples.push(sample);
            return Ok((line.len(), 1, None));
        }
        Err(fault) => fault,
    };
    if fault != OPEN_STRING || openmetrics {
        return Err(fault);
    }
    // Prometheus' lexer of the text format ends a label value at the next quote only.
    let mut end = line.len();
    for (more, line) in rest[end..].split_inclusive('\n').take(MAX_SAMPLE_LINES).enumerate() {
        end += line.len();
        match sample(rest[..end].trim(), openmetrics) {
            Ok(sample) => {
                exposition.samples.push(sample);
                return Ok((end, more + 2, Some("line break in a label value")));
            }
            Err(OPEN_STRING) => {}
            Err(fault) => return Err(fault),
        }
    }
    Err(fault)
}

/// Reads a comment, which may be a TYPE line; returns a warning.
fn type_line(
    comment: &str,
    openmetrics: bool,
    types: &mut BTreeMap<String, String>,
) -> Result<Option<&'static str>, &'static str> {
    // `#TYPE` is a comment like any other.
    let mut words = comment.strip_prefix([' ', '\t']).unwrap_or_default().split_whitespace();
    if words.next() != Some("TYPE") {
        return Ok(None);
    }
    let (name, kind) = match (words.next(), words.next()) {
        (Some(name), Some(kind)) => (name, kind),
        (None, _) if !openmetrics => return Ok(Some("TYPE without a name")),
        _ => return Err("TYPE without a name or a type"),
    };
    if !TYPES.contains(&kind) {
        return Err("unknown TYPE");
    }
    // As for Prometheus, the last one is valid.
    let before = types.insert(name.trim_matches('"').to_owned(), kind.to_owned());
    Ok(before.map(|_| "second TYPE of the same name"))
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
    let end = text.find(['=', ',', '}', ' ', '\t']).ok_or("label without a value")?;
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
            '\\' => match chars.next().ok_or(OPEN_STRING)?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
    Err(OPEN_STRING)
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
            ("# TYPE a\n", 1, "without a name or a type"),
            ("a{b=\"\nc 1\n", 1, "without a closing"),
            ("# TYPE a banana\n", 1, "unknown TYPE"),
        ] {
            let error = parse(page).unwrap_err();
            assert!(error.line == line && error.message.contains(word), "{page:?}: {error}");
        }
    }

    #[test]
    fn what_prometheus_accepts_is_a_warning() {
        for (page, line, word) in [
            ("# TYPE a gauge\na{gpu=\"0\"} 1\n# TYPE a gauge\na{gpu=\"1\"} 2\n", 3, "second TYPE"),
            ("# TYPE a gauge\n# TYPE a counter\na 1\na{b=\"2\"} 2\n", 2, "second TYPE"),
            ("a 1\na{b=\"two\nlines\"} 2\n", 2, "line break"),
            ("a 1\n# TYPE\na{b=\"2\"} 2", 2, "without a name"),
        ] {
            let exposition = parse(page).unwrap();
            let [warning] = &*exposition.warnings else { panic!("{page:?}: {:?}", exposition.warnings) };
            assert!(warning.line == line && warning.message.contains(word), "{page:?}: {warning}");
            assert_eq!(exposition.samples.len(), 2, "{page:?}");
        }
        for page in ["#TYPE a banana\na 1\n", "# TYPES\na 1\n", "\ta{\tb\t=\t\"c\"\t}\t1\n", "a 1"] {
            assert_eq!(parse(page).unwrap().warnings, [], "{page:?}");
        }
        let many = "# TYPE a gauge\n".repeat(1000);
        assert_eq!(parse(&many).unwrap().warnings.len(), MAX_WARNINGS);
    }

    #[test]
    fn only_comments_may_be_in_another_encoding() {
        assert_eq!(decode(b"# caf\xe9\na 1\n").unwrap().trim_end(), "\na 1");
        for page in [&b"\xff"[..], b"# HELP a caf\xe9\n", b"a{b=\"\xe9\"} 1\n"] {
            assert!(decode(page).unwrap_err().message.contains("UTF-8"));
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
