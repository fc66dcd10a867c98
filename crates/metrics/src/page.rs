//! Rendered pages of metrics. Families are encoded in the text format 0.0.4, in the order in which
//! they are written. Other formats (OpenMetrics, gzip, a selection of collectors) are derived from
//! that text on first request and cached.

use std::{
    collections::HashSet,
    io::{self, Write as _},
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
pub use prometheus::Error;
use prometheus::{Encoder as _, TextEncoder};

use crate::{
    family::{Def, Family, Layer},
    openmetrics,
};

/// `Content-Type` of a page in the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bytes of one family on a page, and its collector.
#[derive(Clone, Debug)]
struct Block {
    def: &'static Def,
    collector: &'static str,
    range: Range<usize>,
}

/// The format of a response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// OpenMetrics 1.0 instead of the text format 0.0.4.
    pub openmetrics: bool,
    /// Compressed with gzip.
    pub gzip: bool,
}

/// A rendered page. Its content never changes; only the cached formats are added later. The default
/// page is empty.
#[derive(Debug, Default)]
pub struct Page {
    text: Bytes,
    blocks: Vec<Block>,
    rendered_at: Option<SystemTime>,
    openmetrics: OnceLock<Bytes>,
    gzip: [OnceLock<Bytes>; 2],
    selections: Mutex<Vec<(String, Arc<Page>)>>,
}

/// Maximum number of selections that a page caches. Further ones are rendered for each request.
const MAX_CACHED_SELECTIONS: usize = 8;

/// Encodes families, each under the name of its collector, and builds a [`Page`].
#[derive(Debug)]
pub struct Writer {
    text: Vec<u8>,
    blocks: Vec<Block>,
    compat: bool,
}

impl Default for Writer {
    fn default() -> Self {
        Self { text: Vec::with_capacity(16 << 10), blocks: Vec::new(), compat: true }
    }
}

impl Writer {
    /// A writer that includes the legacy metric names (the compat layer) if `compat`.
    #[must_use]
    pub fn compat(compat: bool) -> Self {
        Self { compat, ..Self::default() }
    }

    /// Adds the families of a collector; empty families are left out. If `families` is lazy, each
    /// family is dropped before the next one is built, which bounds memory.
    ///
    /// # Errors
    /// If a family cannot be encoded, which means that its definition is wrong.
    pub fn write(&mut self, collector: &'static str, families: impl IntoIterator<Item = Family>) -> Result<(), Error> {
        let compat = self.compat;
        let wanted = |family: &Family| !family.is_empty() && (compat || family.def().layer == Layer::Primary);
        for family in families.into_iter().filter(wanted) {
            let (start, def) = (self.text.len(), family.def());
            encode(&family, &mut self.text)?;
            self.blocks.push(Block { def, collector, range: start..self.text.len() });
        }
        Ok(())
    }

    /// Adds all families of a rendered page.
    pub fn copy(&mut self, page: &Page) {
        self.copy_blocks(page, |_| true);
    }

    fn copy_blocks(&mut self, page: &Page, wanted: impl Fn(&Block) -> bool) {
        for block in page.blocks.iter().filter(|block| wanted(block)) {
            let start = self.text.len();
            self.text.extend_from_slice(&page.text[block.range.clone()]);
            self.blocks.push(Block { range: start..self.text.len(), ..block.clone() });
        }
    }

    /// The page, rendered at the current time.
    #[must_use]
    pub fn finish(self) -> Page {
        self.finish_at(SystemTime::now())
    }

    fn finish_at(self, at: SystemTime) -> Page {
        Page { text: self.text.into(), blocks: self.blocks, rendered_at: Some(at), ..Page::default() }
    }
}

/// Rows that are in the encoder's form at a time, in which each label has an allocation.
const ROWS: usize = 64;

/// Encodes a family part by part. The encoder writes the head of a family with each part; only that
/// of the first is kept.
fn encode(family: &Family, text: &mut Vec<u8>) -> Result<(), Error> {
    let encoder = TextEncoder::new();
    let mut head = 0;
    for first in (0..family.len()).step_by(ROWS) {
        let mut part = family.to_proto(first..family.len().min(first + ROWS));
        if first == 0 {
            part.set_help(family.def().help.to_owned());
        } else if head == 0 {
            head = format!("# TYPE {} {}\n", family.def().name, family.def().kind.as_str()).len();
        }
        encoder.encode(&[part], &mut Without { first: head, text })?;
    }
    Ok(())
}

/// Appends to a text, without the first bytes.
struct Without<'a> {
    first: usize,
    text: &'a mut Vec<u8>,
}

impl io::Write for Without<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left_out = self.first.min(bytes.len());
        self.first -= left_out;
        self.text.extend_from_slice(&bytes[left_out..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Renders the families of one collector, including the compat layer.
///
/// # Errors
/// If a family cannot be encoded, which means that its definition is wrong.
pub fn render(collector: &'static str, families: impl IntoIterator<Item = Family>) -> Result<Page, Error> {
    let mut writer = Writer::default();
    writer.write(collector, families)?;
    Ok(writer.finish())
}

impl Page {
    /// The page in the text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// The page, with `at` as its time: for a page that is rendered later than its figures were
    /// read.
    #[must_use]
    pub fn as_of(self, at: SystemTime) -> Self {
        Self { rendered_at: Some(at), ..self }
    }

    /// The time of rendering, or of [`Self::as_of`]; the unix epoch for the default page.
    #[must_use]
    pub fn rendered_at(&self) -> SystemTime {
        self.rendered_at.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The families of the page: definition and rendered text, in the order of the page.
    pub fn families(&self) -> impl Iterator<Item = (&'static Def, &[u8])> {
        self.blocks.iter().map(|block| (block.def, &self.text[block.range.clone()]))
    }

    /// The page in the requested format.
    #[must_use]
    pub fn body(&self, format: Format) -> Bytes {
        let plain = if format.openmetrics {
            self.openmetrics.get_or_init(|| openmetrics::page(self.families()))
        } else {
            &self.text
        };
        if !format.gzip {
            return plain.clone();
        }
        self.gzip[usize::from(format.openmetrics)].get_or_init(|| compressed(plain)).clone()
    }

    /// The selection that is cached under `key`, or the result of `render`, which is cached.
    #[must_use]
    pub fn cached_selection(&self, key: String, render: impl FnOnce() -> Page) -> Arc<Page> {
        let mut selections = self.selections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = selections.iter().find(|(known, _)| *known == key) {
            return page.clone();
        }
        let page = Arc::new(render());
        if selections.len() < MAX_CACHED_SELECTIONS {
            selections.push((key, page.clone()));
        }
        page
    }

    /// A page with the families of the `wanted` collectors. `pages` are pages of the same snapshot.
    #[must_use]
    pub fn select(pages: &[Arc<Page>], wanted: impl Fn(&str) -> bool) -> Page {
        let mut writer = Writer::default();
        for page in pages {
            writer.copy_blocks(page, |block| wanted(block.collector));
        }
        let at = pages.iter().map(|page| page.rendered_at()).min().unwrap_or(SystemTime::UNIX_EPOCH);
        writer.finish_at(at)
    }
}

/// Compresses with level 1: scrapes usually stay within one network, where CPU time costs more than
/// bandwidth.
fn compressed(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

/// Faults of a rendered page that no scraper reports: a family in two blocks, a duplicate series, a
/// sample without TYPE. `promtool check metrics` (2.42) finds none of the three.
#[must_use]
pub fn faults(page: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut families = HashSet::new();
    let mut series = HashSet::new();
    let mut current = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split(' ').next().unwrap_or_default();
            if !families.insert(current) {
                faults.push(format!("{current} is in two blocks"));
            }
        } else if !line.starts_with('#') && !line.is_empty() {
            let Some((id, value)) = line.rsplit_once(' ') else {
                faults.push(format!("no value: {line}"));
                continue;
            };
            if value.parse::<f64>().is_err() {
                faults.push(format!("not a number: {line}"));
            }
            if !series.insert(id) {
                faults.push(format!("{id} is a duplicate series"));
            }
            if !id.starts_with(current) || current.is_empty() {
                faults.push(format!("{id} is outside its family"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;
    use crate::family::{Buckets, Def};

    static POWER: Def = Def::gauge("power_watts", &["container"], "Power.");
    static WAIT: Def = Def::histogram("wait_seconds", &[], "Wait.");
    static BUSY: Def = Def::gauge("busy_ratio", &[], "Busy.");

    fn text(page: &Page) -> &str {
        std::str::from_utf8(page.text()).unwrap()
    }

    #[test]
    fn page_has_help_type_and_full_precision() {
        let mut wait = Family::new(&WAIT);
        wait.push_buckets(&[], &Buckets { cumulative: vec![(0.5, 1)], count: 2, sum: 3.5 });
        let page = render("t", vec![Family::new(&POWER).with(&["a"], 0.1 + 0.2), wait]).unwrap();
        assert_eq!(
            text(&page),
            "# HELP power_watts Power.\n# TYPE power_watts gauge\npower_watts{container=\"a\"} 0.30000000000000004\n\
             # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\nwait_seconds_bucket{le=\"0.5\"} 1\n\
             wait_seconds_bucket{le=\"+Inf\"} 2\nwait_seconds_sum 3.5\nwait_seconds_count 2\n"
        );
        assert!(faults(text(&page)).is_empty());
    }

    #[test]
    fn page_leaves_out_an_empty_family() {
        assert!(render("t", vec![Family::new(&POWER)]).unwrap().text().is_empty());
    }

    /// Parts of a family must read like one that is encoded as a whole.
    #[test]
    fn family_of_several_parts_is_encoded_as_a_whole() {
        static LOAD: Def = Def::histogram("load_seconds", &["container"], "Load \\ of\nall.");
        let (mut power, mut load) = (Family::new(&POWER), Family::new(&LOAD));
        for row in 0..ROWS * 2 + 1 {
            let (name, pod) = (format!("\"{row}\\"), format!("p{row}"));
            let extra: &[(&'static str, &str)] = if row.is_multiple_of(3) { &[("pod", &pod)] } else { &[] };
            power.push_with_extra(&[&name], extra, 1.0 / (1.0 + row as f64));
            let cumulative: Vec<(f64, u64)> = (0..row % 4).map(|at| (at as f64 / 2.0, at as u64)).collect();
            load.push_buckets_with_extra(
                &[&name],
                extra,
                &Buckets { cumulative, count: 9 + row as u64, sum: row as f64 / 3.0 },
            );
        }
        for rows in [0, 1, ROWS, ROWS + 1] {
            let mut few = Family::new(&POWER);
            power.rows().take(rows).for_each(|(labels, value)| few.push(&labels, value));
            assert_eq!(few.rows().count(), rows);
            let whole = if rows == 0 { String::new() } else { whole(&few) };
            assert_eq!(text(&render("t", [few]).unwrap()), whole);
        }
        let expected = whole(&power) + &whole(&load);
        assert_eq!(text(&render("t", [power, load]).unwrap()), expected);
    }

    fn whole(family: &Family) -> String {
        let mut all = family.to_proto(0..family.len());
        all.set_help(family.def().help.to_owned());
        TextEncoder::new().encode_to_string(&[all]).unwrap()
    }

    #[test]
    fn page_is_compressed_once_for_each_format() {
        let page = render("t", vec![Family::new(&POWER).with(&["a"], 1.0)]).unwrap();
        for openmetrics in [false, true] {
            let compressed = page.body(Format { openmetrics, gzip: true });
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*compressed).read_to_end(&mut plain).unwrap();
            assert_eq!(plain, page.body(Format { openmetrics, gzip: false }));
            assert_eq!(compressed.as_ptr(), page.body(Format { openmetrics, gzip: true }).as_ptr(), "cached");
        }
    }

    #[test]
    fn selection_takes_collectors_from_several_pages() {
        let mut writer = Writer::default();
        writer.write("energy", [Family::new(&POWER).with(&["a"], 1.0)]).unwrap();
        writer.write("cpu", [Family::new(&WAIT)]).unwrap();
        let mut second = Writer::default();
        second.copy(&render("cpu", [Family::new(&BUSY).with(&[], 2.0)]).unwrap());
        let pages = [Arc::new(writer.finish()), Arc::new(second.finish())];
        let rows = |wanted: &[&str]| {
            let page = Page::select(&pages, |collector| wanted.contains(&collector));
            text(&page).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(rows(&["energy"]), ["power_watts{container=\"a\"} 1"]);
        assert_eq!(rows(&["cpu"]), ["busy_ratio 2"]);
        assert_eq!(rows(&["energy", "cpu"]).len(), 2);
    }

    #[test]
    fn faults_that_promtool_misses_are_reported() {
        let page = "# TYPE a gauge\na 1\na 2\n# TYPE b gauge\nb 1\n# TYPE a gauge\nc 1\n";
        assert_eq!(faults(page), ["a is a duplicate series", "a is in two blocks", "c is outside its family"]);
    }

    proptest! {
        #[test]
        fn page_stays_parsable_with_any_label_value(label in any::<String>()) {
            let page = render("t", vec![Family::new(&POWER).with(&[&label], 1.0)]).unwrap();
            prop_assert_eq!(text(&page).split('\n').count(), 4);
            let row_is_complete = text(&page).ends_with("\"} 1\n");
            prop_assert!(row_is_complete);
        }
    }
}
