//! The bill as one web page without scripts or external resources.

use std::fmt::Write as _;

use http::index_page::escape;
use results::bill::{Bill, hours, time_text};

use super::{
    table::{heads, long_gaps},
    view::{Digits, view},
};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}\
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}\
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .55rem;border-bottom:1px solid #dfe4ea;text-align:right}td.t,th.t{text-align:left}\
tr:last-child td{font-weight:600;border-top:2px solid #1c2430}.wide{overflow-x:auto}\
.banner{border-left:5px solid #d55e00;background:#fdf1e8;padding:.7rem 1rem;margin:1rem 0}.note{color:#5a6675}";

pub(super) fn render(bill: &Bill) -> String {
    let title = format!("Bill of {}, by {}", bill.period.name, bill.request.by.as_str());
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>",
        escape(&title)
    );
    let _ = write!(
        page,
        "<p class=\"note\">{} to {}. Hosts: {}</p>",
        escape(&bill.period.start.to_zoned(bill.period.zone.clone()).to_string()),
        escape(&bill.period.end.to_zoned(bill.period.zone.clone()).to_string()),
        escape(&bill.hosts.join(", "))
    );
    for note in &bill.notes {
        let _ = write!(page, "<div class=\"banner\">{}</div>", escape(note));
    }
    let heads = heads(bill);
    let class = |is_text: bool| if is_text { " class=\"t\"" } else { "" };
    page += "<div class=\"wide\"><table><tr>";
    for (head, _, is_text) in &heads {
        let _ = write!(page, "<th{}>{}</th>", class(*is_text), escape(head));
    }
    page += "</tr>";
    let (rows, total) = view(bill, Digits::for_people(bill));
    for row in rows.iter().chain([&total]) {
        page += "<tr>";
        for (_, cell, is_text) in &heads {
            let _ = write!(page, "<td{}>{}</td>", class(*is_text), escape(cell(row)));
        }
        page += "</tr>";
    }
    page += "</table></div>";
    if long_gaps(bill).next().is_some() {
        page += "<h2>Times without data</h2><div class=\"wide\"><table><tr><th class=\"t\">host</th><th class=\"t\">from</th><th class=\"t\">to</th><th>not counted</th></tr>";
        for (host, gap) in long_gaps(bill) {
            let _ = write!(
                page,
                "<tr><td class=\"t\">{}</td><td class=\"t\">{}</td><td class=\"t\">{}</td><td>{}</td></tr>",
                escape(host),
                time_text(gap.from, &bill.period),
                time_text(gap.to, &bill.period),
                hours(gap.uncounted_us)
            );
        }
        page += "</table></div>";
    }
    page += "<h2>How to read this</h2><p class=\"note\">The rows of each column sum to its total, and the total of J is the energy that the hosts measured. \
             Load is energy by CPU and GPU time, awake that of keeping packages awake, idle what the policy attributes. \
             ± is the bound of the attribution of load and awake energy, as if all errors had the same sign; hardware bias is not part of it. \
             SCI is ((E · I) + M) / R of ISO/IEC 21031, where R is the hours of the row.</p></body></html>\n";
    page
}
