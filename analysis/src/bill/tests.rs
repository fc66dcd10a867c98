//! Formats of bills.

use jiff::tz::TimeZone;
use results::{
    bill::{BillRequest, bill, period::Period},
    cost::Prices,
    energy::{
        database::usage::PeriodUsage,
        usage::{Gap, HostUsage, Slots, WorkloadUsage},
    },
};

use super::*;

/// A bill of containers with these names, which used a third of 1 J more each than the one before.
fn named(names: &[&str]) -> Bill {
    let period = Period::between("2026-11-01", "2026-11-02", &TimeZone::UTC).unwrap();
    let (start, end) = (period.start.as_microsecond(), period.end.as_microsecond());
    let workload = |(at, name): (u64, &&str)| WorkloadUsage {
        id: format!("id{at}"),
        name: (*name).to_owned(),
        dynamic: vec![at * 333_333],
        awake: vec![at],
        idle: vec![0],
        sampled_us: Some(3_600_000_000),
        sources: ["model".to_owned()].into(),
        ..WorkloadUsage::default()
    };
    let host = HostUsage {
        host: "<enc-1>".to_owned(),
        measured: vec![10_000_000],
        system: vec![1],
        idle: vec![2],
        unattributed: vec![0],
        workloads: (1..).zip(names).map(workload).collect(),
        gaps: vec![Gap { from: start, to: start + 3_600_000_000, uncounted_us: 60_000_000 }],
        sampled_us: 86_400_000_000,
        ..HostUsage::default()
    };
    let usage = PeriodUsage { hosts: vec![host], ..PeriodUsage::default() };
    bill(usage, period, &Slots::new(vec![start, end]), &Prices::defaults(), BillRequest::default())
}

/// A column of the CSV in millionths, with the total last.
fn column(text: &str, at: usize) -> Vec<i64> {
    let cells = text.lines().skip(1).map(|line| line.split(',').nth(at).unwrap_or_default().to_owned());
    cells.map(|cell| cell.replace('.', "").parse().unwrap()).collect()
}

#[test]
fn columns_of_csv_sum_to_their_totals() {
    let text = render(&named(&["a", "b", "c"]), BillFormat::Csv);
    // Joules, load, awake, idle, and cost with eight digits.
    for at in [3, 4, 5, 6, 10] {
        let mut all = column(&text, at);
        let total = all.pop().unwrap();
        assert_eq!(all.iter().sum::<i64>(), total, "column {at}\n{text}");
    }
    assert_eq!(column(&text, 3).pop(), Some(10_000_000));
    assert!(text.lines().all(|line| line.split(',').count() == 16), "{text}");
}

/// The user who may start a container names its streams, and a spreadsheet runs what looks like a
/// formula.
#[test]
fn names_are_no_formulas_no_markup_and_no_control_characters() {
    for (name, shown) in [
        ("=1+1", "\"'=1+1\""),
        (" @SUM(A1)", "\"' @SUM(A1)\""),
        ("-2", "\"'-2\""),
        ("+cmd|' /C calc'!A0", "\"'+cmd|' /C calc'!A0\""),
        ("\tx", "\"'\tx\""),
        ("a,b", "\"a,b\""),
        ("say \"hi\"", "\"say \"\"hi\"\"\""),
        ("two\nlines", "\"two\nlines\""),
        ("cam-1=x", "cam-1=x"),
    ] {
        assert_eq!(csv::cell(name), shown);
    }
    let bill = named(&["<script>alert(1)</script>", "a\u{1b}[31m\nb", "& \"quoted\""]);
    let html = render(&bill, BillFormat::Html);
    assert!(
        html.contains("&lt;script&gt;") && html.contains("&lt;enc-1&gt;") && html.contains("&amp; &quot;quoted&quot;")
    );
    assert!(!html.contains("<script") && !html.contains("<enc-1>"), "{html}");
    let table = render(&bill, BillFormat::Table);
    assert!(!table.contains('\u{1b}') && table.contains("a\u{fffd}[31m\u{fffd}b"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&render(&bill, BillFormat::Json)).unwrap();
    assert_eq!(json["rows"][2]["name"], "a\u{1b}[31m\nb");
}

#[test]
fn every_format_names_estimates_and_times_without_data() {
    let bill = named(&["a"]);
    for format in [BillFormat::Table, BillFormat::Html, BillFormat::Json] {
        let text = render(&bill, format);
        let banner = units::provenance::Unmeasured::Model.banner();
        assert!(text.contains(banner) || text.contains(&http::index_page::escape(banner)), "{text}");
        assert!(text.contains("2026-11-01 00:00:00"), "{text}");
        assert!(text.contains("no energy was counted then"), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&render(&bill, BillFormat::Json)).unwrap();
    let gap = |key: &str| json["gaps"][0][key].as_u64();
    assert_eq!((gap("seconds"), gap("uncounted_seconds")), (Some(3600), Some(60)));
    let rows = json["rows"].as_array().unwrap();
    let sum: i64 = rows.iter().map(|row| row["microjoules"].as_i64().unwrap()).sum();
    assert_eq!((Some(sum), json["measured_microjoules"].as_i64()), (json["total"]["microjoules"].as_i64(), Some(sum)));
}
