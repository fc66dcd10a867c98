//! The bill as comma-separated values (RFC 4180). Names come from containers and streams, so a cell
//! that a spreadsheet would read as a formula gets an apostrophe.

use results::bill::Bill;

use super::view::{Digits, ViewRow, view};

pub(super) fn render(bill: &Bill) -> String {
    let mut out = String::new();
    let heads = [
        "kind",
        "host",
        bill.request.by.as_str(),
        "joules",
        "load_joules",
        "awake_joules",
        "idle_joules",
        "uncertainty_joules",
        "hours",
        "media_hours",
        "cost",
        "currency",
        "carbon_grams",
        "embodied_grams",
        "sci_grams_per_hour",
        "source",
    ];
    line(&mut out, heads.map(str::to_owned));
    let (rows, total) = view(bill, Digits::ALL);
    for row in rows.into_iter().chain([total]) {
        line(&mut out, cells(row, &bill.currency));
    }
    out
}

fn cells(row: ViewRow, currency: &str) -> [String; 16] {
    [
        row.kind.to_owned(),
        cell(&row.host),
        cell(&row.name),
        row.energy,
        row.load,
        row.awake,
        row.idle,
        row.uncertainty,
        row.hours,
        row.media_hours,
        row.cost,
        cell(currency),
        row.carbon,
        row.embodied,
        row.sci,
        cell(&row.source),
    ]
}

fn line(out: &mut String, cells: [String; 16]) {
    out.push_str(&cells.join(","));
    out.push_str("\r\n");
}

/// A cell of text: no formula (OWASP, CSV Injection), and quoted where it must be.
pub(super) fn cell(text: &str) -> String {
    let is_formula = text.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠'])
        || text.starts_with(['\t', '\r', '\n', '|', '%']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', ';', '\'', '\n', '\r', '\t']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}
