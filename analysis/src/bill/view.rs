//! The rows of a bill as text.

use results::bill::{
    Bill, BillRow, GroupBy, HOUR_US, RowKind,
    rounding::{joules, rounded},
};
use rust_decimal::Decimal;

/// Digits after the point of each kind of figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digits {
    pub(super) joules: u32,
    pub(super) cost: u32,
    pub(super) grams: u32,
    pub(super) hours: u32,
}

impl Digits {
    /// Every microjoule, and more digits of an amount than any currency has.
    pub(super) const ALL: Self = Self { joules: 6, cost: 8, grams: 6, hours: 6 };

    /// Enough for people to read the total of a bill to four digits.
    pub(super) fn for_people(bill: &Bill) -> Self {
        let after_point = |value: Option<Decimal>, most: u32| {
            let value = value.unwrap_or_default().abs();
            (0..most).find(|digits| value >= Decimal::from(1000) / Decimal::from(10u64.pow(*digits))).unwrap_or(most)
        };
        Self {
            joules: after_point(joules(bill.total.energy()), 6),
            cost: after_point(bill.total.cost, 8).max(2),
            grams: after_point(bill.total.carbon.or(bill.total.embodied), 6),
            hours: 1,
        }
    }
}

/// One row as text; empty where a figure is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ViewRow {
    pub(super) kind: &'static str,
    pub(super) host: String,
    pub(super) name: String,
    pub(super) energy: String,
    pub(super) load: String,
    pub(super) awake: String,
    pub(super) idle: String,
    pub(super) uncertainty: String,
    pub(super) hours: String,
    pub(super) media_hours: String,
    pub(super) cost: String,
    pub(super) carbon: String,
    pub(super) embodied: String,
    pub(super) sci: String,
    pub(super) source: String,
}

/// The rows, and their sum.
pub(super) fn view(bill: &Bill, digits: Digits) -> (Vec<ViewRow>, ViewRow) {
    let column = |value: &dyn Fn(&BillRow) -> Option<Decimal>, digits: u32| column(bill, value, digits);
    let columns = [
        column(&|row| joules(row.energy()), digits.joules),
        column(&|row| joules(row.load), digits.joules),
        column(&|row| joules(row.awake), digits.joules),
        column(&|row| joules(row.idle), digits.joules),
        column(&|row| row.cost, digits.cost),
        column(&|row| row.carbon, digits.grams),
        column(&|row| row.embodied, digits.grams),
    ];
    let row = |at: usize, row: &BillRow| {
        let [energy, load, awake, idle, cost, carbon, embodied] =
            columns.each_ref().map(|column| column.get(at).cloned().unwrap_or_default());
        ViewRow {
            kind: row.kind.as_str(),
            host: row.host.clone(),
            name: name(row, bill.request.by),
            energy,
            load,
            awake,
            idle,
            uncertainty: text(row.bound.and_then(|bound| joules(i128::from(bound))), digits.joules),
            hours: text(row.time_us.and_then(hours), digits.hours),
            media_hours: text(row.media_us.and_then(hours), digits.hours),
            cost,
            carbon,
            embodied,
            sci: text(row.sci(), digits.grams.max(3)),
            source: row.sources.iter().cloned().collect::<Vec<_>>().join("+"),
        }
    };
    let rows = bill.rows.iter().enumerate().map(|(at, one)| row(at, one)).collect();
    let total = ViewRow { kind: "total", name: "total".to_owned(), ..row(bill.rows.len(), &bill.total) };
    (rows, total)
}

/// One column, with the total last. If a row is unknown there is no total, and the others are
/// rounded by themselves.
fn column(bill: &Bill, value: &dyn Fn(&BillRow) -> Option<Decimal>, digits: u32) -> Vec<String> {
    let values: Vec<Option<Decimal>> = bill.rows.iter().map(value).collect();
    let known: Option<Vec<Decimal>> = values.iter().copied().collect();
    match known.and_then(|known| rounded(&known, digits)) {
        Some((rows, total)) => rows.into_iter().chain([total]).map(|value| value.to_string()).collect(),
        None => values.into_iter().chain([None]).map(|value| text(value, digits)).collect(),
    }
}

fn text(value: Option<Decimal>, digits: u32) -> String {
    value.map_or_else(String::new, |value| {
        let mut value = value.round_dp(digits);
        value.rescale(digits);
        value.to_string()
    })
}

fn hours(us: u64) -> Option<Decimal> {
    Decimal::from(us).checked_div(Decimal::from(HOUR_US))
}

fn name(row: &BillRow, by: GroupBy) -> String {
    match row.kind {
        RowKind::Named => row.name.clone(),
        RowKind::Unnamed => format!("(no {})", by.as_str()),
        RowKind::System => "(system)".to_owned(),
        RowKind::Idle => "(idle)".to_owned(),
        RowKind::Unattributed => "(not attributed)".to_owned(),
        RowKind::Ended => "(ended between samples)".to_owned(),
    }
}
