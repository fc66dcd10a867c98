//! Families to bytes: the text format 0.0.4, families in the order given, each in one block. Other forms of a page (OpenMetrics, gzip, some of its
//! collectors) are made of those bytes when somebody asks for them first, and kept.

use std::{
    collections::HashSet,
    io::Write as _,
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

/// `Content-Type` of a page as text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where a family stands on a page, and which collector it is of.
#[derive(Clone, Debug)]
struct Block {
    def: &'static Def,
    collector: &'static str,
    range: Range<usize>,
}

/// What a scraper may have the page as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// OpenMetrics 1.0 instead of text 0.0.4.
    pub openmetrics: bool,
    /// Compressed.
    pub gzip: bool,
}

/// A rendered page, or none of anything. It never changes; making a form of it that was not asked for before is its only work.
#[derive(Debug, Default)]
pub struct Page {
    text: Bytes,
    blocks: Vec<Block>,
    at: Option<SystemTime>,
    openmetrics: OnceLock<Bytes>,
    gzip: [OnceLock<Bytes>; 2],
    selected: Mutex<Vec<(String, Arc<Page>)>>,
}

/// Choices of collectors that a page keeps; others are made anew for each who asks.
const KEPT: usize = 8;

/// Collects families, each under the name of its collector.
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
    /// With the names of the exporters that we replace, or without.
    #[must_use]
    pub fn compat(compat: bool) -> Self {
        Self { compat, ..Self::default() }
    }

    /// Adds families of a collector. Those without rows are left out. Each is gone before the next is made, where they are made as they are asked for.
    ///
    /// # Errors
    /// When a family cannot be encoded; a definition is wrong then, not the data.
    pub fn write(&mut self, collector: &'static str, families: impl IntoIterator<Item = Family>) -> Result<(), Error> {
        let encoder = TextEncoder::new();
        let compat = self.compat;
        let wanted = |family: &Family| !family.is_empty() && (compat || family.def().layer == Layer::Primary);
        for family in families.into_iter().filter(wanted) {
            let (start, def) = (self.text.len(), family.def());
            encoder.encode(&[family.into_proto()], &mut self.text)?;
            self.blocks.push(Block { def, collector, range: start..self.text.len() });
        }
        Ok(())
    }

    /// Adds what was rendered before.
    pub fn copy(&mut self, page: &Page) {
        self.take(page, |_| true);
    }

    fn take(&mut self, page: &Page, wanted: impl Fn(&Block) -> bool) {
        for block in page.blocks.iter().filter(|block| wanted(block)) {
            let start = self.text.len();
            self.text.extend_from_slice(&page.text[block.range.clone()]);
            self.blocks.push(Block { range: start..self.text.len(), ..block.clone() });
        }
    }

    /// The page, as of now.
    #[must_use]
    pub fn finish(self) -> Page {
        self.finish_at(SystemTime::now())
    }

    fn finish_at(self, at: SystemTime) -> Page {
        Page { text: self.text.into(), blocks: self.blocks, at: Some(at), ..Page::default() }
    }
}

/// Renders the families of one collector.
///
/// # Errors
/// When a family cannot be encoded; a definition is wrong then, not the data.
pub fn render(collector: &'static str, families: impl IntoIterator<Item = Family>) -> Result<Page, Error> {
    let mut writer = Writer::default();
    writer.write(collector, families)?;
    Ok(writer.finish())
}

impl Page {
    /// In the text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// When it was rendered.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        self.at.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// In the form that a scraper asked for.
    #[must_use]
    pub fn body(&self, form: Form) -> Bytes {
        let plain = if form.openmetrics {
            self.openmetrics.get_or_init(|| {
                openmetrics::page(self.blocks.iter().map(|block| (block.def, &self.text[block.range.clone()])))
            })
        } else {
            &self.text
        };
        if !form.gzip {
            return plain.clone();
        }
        self.gzip[usize::from(form.openmetrics)].get_or_init(|| compressed(plain)).clone()
    }

    /// What somebody chose of this page and those beside it, under the words of the choice; made once.
    #[must_use]
    pub fn selected(&self, words: String, make: impl FnOnce() -> Page) -> Arc<Page> {
        let mut all = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = all.iter().find(|(known, _)| *known == words) {
            return page.clone();
        }
        let page = Arc::new(make());
        if all.len() < KEPT {
            all.push((words, page.clone()));
        }
        page
    }

    /// The families of some collectors, of several pages that were rendered together.
    #[must_use]
    pub fn select(pages: &[Arc<Page>], wanted: impl Fn(&str) -> bool) -> Page {
        let mut writer = Writer::default();
        for page in pages {
            writer.take(page, |block| wanted(block.collector));
        }
        let at = pages.iter().map(|page| page.at()).min().unwrap_or(SystemTime::UNIX_EPOCH);
        writer.finish_at(at)
    }
}

/// Level 1: between machines of one room time counts for more than bytes.
fn compressed(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

/// Faults of a rendered page that no scraper reports: a family in two blocks, a series twice, a sample without TYPE.
/// `promtool check metrics` (2.42) finds none of the three.
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
                faults.push(format!("{current} stands in two blocks"));
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
                faults.push(format!("{id} stands twice"));
            }
            if !id.starts_with(current) || current.is_empty() {
                faults.push(format!("{id} stands outside its family"));
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
    fn a_page_has_help_type_and_full_precision() {
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
    fn an_empty_family_is_left_out() {
        assert!(render("t", vec![Family::new(&POWER)]).unwrap().text().is_empty());
    }

    #[test]
    fn a_page_is_compressed_whole_and_once() {
        let page = render("t", vec![Family::new(&POWER).with(&["a"], 1.0)]).unwrap();
        for openmetrics in [false, true] {
            let small = page.body(Form { openmetrics, gzip: true });
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*small).read_to_end(&mut plain).unwrap();
            assert_eq!(plain, page.body(Form { openmetrics, gzip: false }));
            assert_eq!(small.as_ptr(), page.body(Form { openmetrics, gzip: true }).as_ptr(), "kept");
        }
    }

    #[test]
    fn collectors_are_taken_from_pages_that_belong_together() {
        let mut writer = Writer::default();
        writer.write("energy", [Family::new(&POWER).with(&["a"], 1.0)]).unwrap();
        writer.write("cpu", [Family::new(&WAIT)]).unwrap();
        let mut second = Writer::default();
        second.copy(&render("cpu", [Family::new(&BUSY).with(&[], 2.0)]).unwrap());
        let pages = [Arc::new(writer.finish()), Arc::new(second.finish())];
        let of = |wanted: &[&str]| {
            let page = Page::select(&pages, |collector| wanted.contains(&collector));
            text(&page).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of(&["energy"]), ["power_watts{container=\"a\"} 1"]);
        assert_eq!(of(&["cpu"]), ["busy_ratio 2"]);
        assert_eq!(of(&["energy", "cpu"]).len(), 2);
    }

    #[test]
    fn what_promtool_misses_is_found() {
        let page = "# TYPE a gauge\na 1\na 2\n# TYPE b gauge\nb 1\n# TYPE a gauge\nc 1\n";
        assert_eq!(faults(page), ["a stands twice", "a stands in two blocks", "c stands outside its family"]);
    }

    proptest! {
        #[test]
        fn any_label_leaves_the_page_parsable(label in any::<String>()) {
            let page = render("t", vec![Family::new(&POWER).with(&[&label], 1.0)]).unwrap();
            prop_assert_eq!(text(&page).split('\n').count(), 4);
            let row_is_whole = text(&page).ends_with("\"} 1\n");
            prop_assert!(row_is_whole);
        }
    }
}
