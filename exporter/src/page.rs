//! Families to bytes: the text format 0.0.4, families in the order given, each in one block.

use std::collections::HashSet;

use bytes::Bytes;
use prometheus::{Encoder as _, TextEncoder};

use crate::family::Family;

/// `Content-Type` of what [`render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders the page. Families without rows are left out. Each is gone before the next is made, where they are made as they are asked for.
///
/// # Errors
/// When a family cannot be encoded; a definition is wrong then, not the data.
pub fn render(families: impl IntoIterator<Item = Family>) -> Result<Bytes, prometheus::Error> {
    let mut out = Vec::with_capacity(16 << 10);
    let encoder = TextEncoder::new();
    for family in families.into_iter().filter(|family| !family.is_empty()) {
        encoder.encode(&[family.into_proto()], &mut out)?;
    }
    Ok(out.into())
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
    use proptest::prelude::*;

    use super::*;
    use crate::family::{Buckets, Def};

    static POWER: Def = Def::gauge("power_watts", &["container"], "Power.");
    static WAIT: Def = Def::histogram("wait_seconds", &[], "Wait.");

    #[test]
    fn a_page_has_help_type_and_full_precision() {
        let mut wait = Family::new(&WAIT);
        wait.push_buckets(&[], &Buckets { cumulative: vec![(0.5, 1)], count: 2, sum: 3.5 });
        let page = render(vec![Family::new(&POWER).with(&["a"], 0.1 + 0.2), wait]).unwrap();
        let text = std::str::from_utf8(&page).unwrap();
        assert_eq!(
            text,
            "# HELP power_watts Power.\n# TYPE power_watts gauge\npower_watts{container=\"a\"} 0.30000000000000004\n\
             # HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\nwait_seconds_bucket{le=\"0.5\"} 1\n\
             wait_seconds_bucket{le=\"+Inf\"} 2\nwait_seconds_sum 3.5\nwait_seconds_count 2\n"
        );
        assert!(faults(text).is_empty());
    }

    #[test]
    fn an_empty_family_is_left_out() {
        assert!(render(vec![Family::new(&POWER)]).unwrap().is_empty());
    }

    #[test]
    fn what_promtool_misses_is_found() {
        let page = "# TYPE a gauge\na 1\na 2\n# TYPE b gauge\nb 1\n# TYPE a gauge\nc 1\n";
        assert_eq!(faults(page), ["a stands twice", "a stands in two blocks", "c stands outside its family"]);
    }

    proptest! {
        #[test]
        fn any_label_leaves_the_page_parsable(label in any::<String>()) {
            let page = render(vec![Family::new(&POWER).with(&[&label], 1.0)]).unwrap();
            let text = std::str::from_utf8(&page).unwrap();
            prop_assert_eq!(text.split('\n').count(), 4);
            let row_is_whole = text.ends_with("\"} 1\n");
            prop_assert!(row_is_whole);
        }
    }
}
