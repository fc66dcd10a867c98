//! `bill`: writes a bill as table, CSV, JSON or web page.
//!
//! All formats show the rows of one view: rounded so that each column sums to its total. CSV
//! and JSON have every microjoule.

mod csv;
pub mod flags;
mod html;
mod json;
mod table;
mod view;

use flags::BillFormat;
use results::bill::Bill;

/// The bill in a format.
#[must_use]
pub fn render(bill: &Bill, format: BillFormat) -> String {
    match format {
        BillFormat::Table => table::render(bill),
        BillFormat::Csv => csv::render(bill),
        BillFormat::Json => json::render(bill),
        BillFormat::Html => html::render(bill),
    }
}

#[cfg(test)]
mod tests;
