//! The bill as JSON. Energy is whole microjoules; amounts are text, because a double would round
//! them.

use results::bill::{Bill, time_text};
use serde_json::{Value, json};

use super::view::{Digits, ViewRow, view};

pub(super) fn render(bill: &Bill) -> String {
    let (rows, total) = view(bill, Digits::ALL);
    let energies = bill.rows.iter().chain([&bill.total]).map(|row| [row.energy(), row.load, row.awake, row.idle]);
    let mut all: Vec<Value> = rows.iter().chain([&total]).zip(energies).map(|(row, uj)| value(row, uj)).collect();
    let total = all.pop().unwrap_or_default();
    let gaps = bill.gaps.iter().map(|(host, gap)| {
        json!({
            "host": host,
            "from": time_text(gap.from, &bill.period),
            "to": time_text(gap.to, &bill.period),
            "seconds": gap.length_us() / 1_000_000,
            "uncounted_seconds": gap.uncounted_us.div_ceil(1_000_000),
        })
    });
    let page = json!({
        "schema": "wattcast/bill/1",
        "period": {
            "name": bill.period.name,
            "start": bill.period.start.to_string(),
            "end": bill.period.end.to_string(),
            "time_zone": bill.period.zone.iana_name(),
        },
        "by": bill.request.by.as_str(),
        "label": Some(&bill.request.label).filter(|label| !label.is_empty()),
        "currency": bill.currency,
        "hosts": bill.hosts,
        "measured_microjoules": bill.measured,
        "edge_microjoules": bill.edge,
        "rows": all,
        "total": total,
        "gaps": gaps.collect::<Vec<_>>(),
        "notes": bill.notes,
    });
    let mut text = serde_json::to_string_pretty(&page).unwrap_or_default();
    text.push('\n');
    text
}

fn value(row: &ViewRow, [energy, load, awake, idle]: [i128; 4]) -> Value {
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    // Below 2^63 µJ, which are 2.6 GWh.
    let whole = |microjoules: i128| i64::try_from(microjoules).ok();
    json!({
        "kind": row.kind,
        "host": known(&row.host),
        "name": row.name,
        "microjoules": whole(energy),
        "load_microjoules": whole(load),
        "awake_microjoules": whole(awake),
        "idle_microjoules": whole(idle),
        "uncertainty_joules": known(&row.uncertainty),
        "hours": known(&row.hours),
        "media_hours": known(&row.media_hours),
        "cost": known(&row.cost),
        "carbon_grams": known(&row.carbon),
        "embodied_grams": known(&row.embodied),
        "sci_grams_per_hour": known(&row.sci),
        "source": known(&row.source),
    })
}
