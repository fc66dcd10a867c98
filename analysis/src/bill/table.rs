//! The bill as a table for terminals.

use std::fmt::Write as _;

use cli::terminal::{self, Cell, Table, View, printable};
use results::bill::{Bill, GroupBy, hours, time_text};

use super::view::{Digits, ViewRow, view};

/// Number of gaps that are listed.
const SHOWN_GAPS: usize = 20;

pub(super) fn render(bill: &Bill) -> String {
    let (rows, total) = view(bill, Digits::for_people(bill));
    let heads = heads(bill);
    let column = |(head, _, is_text): &Column| {
        if *is_text { terminal::Column::left(head) } else { terminal::Column::right(head) }
    };
    let mut table = Table::new(heads.iter().map(column));
    for row in rows.iter().chain([&total]) {
        table.push(heads.iter().map(|(_, cell, _)| Cell::from(cell(row))));
    }
    let mut out = format!("Bill of {}, by {}\n", bill.period.name, bill.request.by.as_str());
    let _ = writeln!(out, "Hosts: {}\n", printable(&bill.hosts.join(", ")));
    // One line for each row, however long, as a bill is also a file.
    out += &table.text(View { columns: usize::MAX, ..View::PLAIN });
    for note in &bill.notes {
        let _ = write!(out, "\n{note}");
    }
    for (host, gap) in long_gaps(bill).take(SHOWN_GAPS) {
        let _ = write!(
            out,
            "\nno data of {}: {} to {} ({} not counted)",
            printable(host),
            time_text(gap.from, &bill.period),
            time_text(gap.to, &bill.period),
            hours(gap.uncounted_us)
        );
    }
    let more = long_gaps(bill).count().saturating_sub(SHOWN_GAPS);
    if more > 0 {
        let _ = write!(out, "\nand {more} more times without data; JSON has them all");
    }
    out.push('\n');
    out
}

/// Gaps that are worth a line; the notes have the sum of all.
pub(super) fn long_gaps(bill: &Bill) -> impl Iterator<Item = (&str, &results::energy::usage::Gap)> {
    bill.gaps.iter().filter(|(_, gap)| gap.is_long()).map(|(host, gap)| (&**host, gap))
}

type Column = (String, fn(&ViewRow) -> &str, bool);

/// The columns that have content: heading, cell, and whether it is text.
pub(super) fn heads(bill: &Bill) -> Vec<Column> {
    let total = &bill.total;
    let has = |is: bool, column: Column| is.then_some(column);
    let by_host = matches!(bill.request.by, GroupBy::Stream | GroupBy::Container) && bill.hosts.len() > 1;
    [
        has(by_host, ("host".to_owned(), |row| row.host.as_str(), true)),
        has(true, (bill.request.by.as_str().to_owned(), |row| row.name.as_str(), true)),
        has(true, ("J".to_owned(), |row| row.energy.as_str(), false)),
        has(true, ("load J".to_owned(), |row| row.load.as_str(), false)),
        has(total.awake != 0, ("awake J".to_owned(), |row| row.awake.as_str(), false)),
        has(total.idle != 0, ("idle J".to_owned(), |row| row.idle.as_str(), false)),
        has(bill.rows.iter().any(|row| row.bound.is_some()), ("± J".to_owned(), |row| row.uncertainty.as_str(), false)),
        has(true, ("hours".to_owned(), |row| row.hours.as_str(), false)),
        has(total.media_us.is_some(), ("media hours".to_owned(), |row| row.media_hours.as_str(), false)),
        has(true, (format!("cost {}", bill.currency), |row| row.cost.as_str(), false)),
        has(total.carbon.is_some(), ("g CO2".to_owned(), |row| row.carbon.as_str(), false)),
        has(total.embodied.is_some(), ("embodied g".to_owned(), |row| row.embodied.as_str(), false)),
        has(total.sci().is_some(), ("SCI g/h".to_owned(), |row| row.sci.as_str(), false)),
        has(true, ("source".to_owned(), |row| row.source.as_str(), true)),
    ]
    .into_iter()
    .flatten()
    .collect()
}
