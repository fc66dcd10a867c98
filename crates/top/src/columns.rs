//! Columns of the tables of containers and streams, for the view and the printed table.

use std::cmp::Ordering;

use crate::{
    now::{Container, Now, Stream},
    number::{bound, duration, money, percent, plain, with_unit},
};

/// Columns of a screen that the bar of a share takes.
pub(crate) const BAR: u16 = 8;
/// Least width of the screen that shows the bar.
pub(crate) const BAR_FROM: u16 = 76;

/// What shares and layers refer to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Amount {
    /// Power, as a mean over the last seconds.
    #[default]
    PerSecond,
    /// Energy since the start of the probe.
    Total,
}

/// What the cells of a table need in addition to their row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals<'a> {
    amount: Amount,
    joules: Option<f64>,
    currency: &'a str,
}

impl<'a> Totals<'a> {
    pub(crate) fn of(now: &'a Now, amount: Amount) -> Self {
        Self { amount, joules: now.joules.measured, currency: now.currency.as_deref().unwrap_or_default() }
    }
}

/// The text of a cell.
type Cell<R> = fn(&R, &Totals<'_>) -> String;
/// The value by which rows are sorted; of a share, that of its bar.
type Number<R> = fn(&R, &Totals<'_>) -> Option<f64>;

/// A column of rows `R`.
pub(crate) struct Column<R> {
    pub(crate) title: &'static str,
    /// Width on a screen; 0 takes what the others leave.
    pub(crate) width: u16,
    /// Least width of the screen that shows the column.
    pub(crate) from: u16,
    pub(crate) cell: Cell<R>,
    /// Set for figures, which are aligned to the right and sorted by size.
    pub(crate) number: Option<Number<R>>,
    /// True if a bar follows the figure.
    pub(crate) bar: bool,
    /// True for an amount of money, which is known only with a price.
    priced: bool,
}

impl<R> Column<R> {
    const fn text(title: &'static str, width: u16, from: u16, cell: Cell<R>) -> Self {
        Self { title, width, from, cell, number: None, bar: false, priced: false }
    }

    const fn figure(title: &'static str, width: u16, from: u16, cell: Cell<R>, number: Number<R>) -> Self {
        Self { title, width, from, cell, number: Some(number), bar: false, priced: false }
    }

    const fn share(title: &'static str, width: u16, from: u16, cell: Cell<R>, number: Number<R>) -> Self {
        Self { title, width, from, cell, number: Some(number), bar: true, priced: false }
    }

    const fn money(title: &'static str, width: u16, from: u16, cell: Cell<R>, number: Number<R>) -> Self {
        Self { title, width, from, cell, number: Some(number), bar: false, priced: true }
    }

    /// True if a screen of this width shows the column.
    pub(crate) fn is_shown(&self, width: u16, totals: &Totals<'_>) -> bool {
        self.from <= width && (!self.priced || !totals.currency.is_empty())
    }

    /// The order of two rows: figures from the largest, texts by the alphabet, unknown values last
    /// in both directions.
    pub(crate) fn order(&self, a: &R, b: &R, totals: &Totals<'_>, reversed: bool) -> Ordering {
        let turn = |order: Ordering| if reversed { order.reverse() } else { order };
        let Some(number) = self.number else {
            let name = |row: &R| (self.cell)(row, totals).to_lowercase();
            return turn(name(a).cmp(&name(b)));
        };
        match (number(a, totals), number(b, totals)) {
            (Some(a), Some(b)) => turn(b.total_cmp(&a)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }
}

/// The part of the host's power or energy.
fn share(container: &Container, totals: &Totals<'_>) -> Option<f64> {
    match totals.amount {
        Amount::PerSecond => container.share,
        Amount::Total => Some(container.joules? / totals.joules.filter(|joules| *joules > 0.0)?),
    }
}

fn cost(stream: &Stream, totals: &Totals<'_>) -> String {
    money(stream.cost_per_hour, totals.currency)
}

pub(crate) static CONTAINERS: [Column<Container>; 10] = [
    Column::text("NAME", 0, 0, |row: &Container, _| row.name.to_string()),
    Column::figure("POWER", 8, 0, |row: &Container, _| with_unit(row.watts, "W"), |row: &Container, _| row.watts),
    Column::figure(
        "±",
        6,
        0,
        |row: &Container, _| bound(row.watts, row.uncertainty_watts),
        |row: &Container, _| row.uncertainty_watts,
    ),
    Column::share("SHARE", 6, 0, |row: &Container, totals| percent(share(row, totals)), share),
    Column::figure("ENERGY", 8, 0, |row: &Container, _| with_unit(row.joules, "J"), |row: &Container, _| row.joules),
    Column::figure("CPU", 5, 0, |row: &Container, _| plain(row.cpu_cores), |row: &Container, _| row.cpu_cores),
    Column::figure("WAIT", 5, 0, |row: &Container, _| plain(row.wait_cores), |row: &Container, _| row.wait_cores),
    Column::figure(
        "GPU",
        8,
        90,
        |row: &Container, _| with_unit(row.gpu_watts, "W"),
        |row: &Container, _| row.gpu_watts,
    ),
    Column::text("RUNTIME", 11, 110, |row: &Container, _| row.runtime.to_string()),
    Column::text("IMAGE", 30, 140, |row: &Container, _| row.image.to_string()),
];

pub(crate) static STREAMS: [Column<Stream>; 14] = [
    Column::text("NAME", 0, 0, |row: &Stream, _| row.name.to_string()),
    Column::figure("POWER", 8, 0, |row: &Stream, _| with_unit(row.watts, "W"), |row: &Stream, _| row.watts),
    Column::figure(
        "J/FRAME",
        9,
        0,
        |row: &Stream, _| with_unit(row.joules_per_frame, "J"),
        |row: &Stream, _| row.joules_per_frame,
    ),
    Column::figure("FPS", 5, 0, |row: &Stream, _| plain(row.fps), |row: &Stream, _| row.fps),
    Column::figure("SPEED", 6, 0, |row: &Stream, _| plain(row.speed), |row: &Stream, _| row.speed),
    Column::figure("ENERGY", 8, 70, |row: &Stream, _| with_unit(row.joules, "J"), |row: &Stream, _| row.joules),
    Column::figure("CPU", 5, 0, |row: &Stream, _| plain(row.cpu_cores), |row: &Stream, _| row.cpu_cores),
    Column::figure("WAIT", 5, 76, |row: &Stream, _| plain(row.wait_cores), |row: &Stream, _| row.wait_cores),
    Column::text("STATE", 7, 100, |row: &Stream, _| row.state.to_string()),
    Column::figure("VMAF", 5, 110, |row: &Stream, _| plain(row.vmaf), |row: &Stream, _| row.vmaf),
    Column::figure(
        "MEDIA",
        11,
        120,
        |row: &Stream, _| duration(row.media_seconds),
        |row: &Stream, _| row.media_seconds,
    ),
    Column::money("COST/H", 11, 130, cost, |row: &Stream, _| row.cost_per_hour),
    Column::text("CODEC", 10, 140, |row: &Stream, _| row.codec.to_string()),
    Column::text("CONTAINER", 18, 150, |row: &Stream, _| row.container.to_string()),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    fn container(watts: Option<f64>) -> Container {
        Container { watts, ..Container::default() }
    }

    #[test]
    fn unknown_values_are_last_in_both_directions() {
        let rows = [container(None), container(Some(1.0)), container(Some(2.0))];
        for (reversed, expected) in [(false, [Some(2.0), Some(1.0), None]), (true, [Some(1.0), Some(2.0), None])] {
            let mut sorted: Vec<&Container> = rows.iter().collect();
            sorted.sort_by(|a, b| CONTAINERS[1].order(a, b, &Totals::default(), reversed));
            assert_eq!(sorted.iter().map(|row| row.watts).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn every_title_fits_its_column() {
        let title_and_arrow = |title: &str| title.chars().count() + 1;
        for column in &CONTAINERS {
            assert!(
                column.width == 0 || usize::from(column.width) >= title_and_arrow(column.title),
                "{}",
                column.title
            );
        }
        for column in &STREAMS {
            assert!(
                column.width == 0 || usize::from(column.width) >= title_and_arrow(column.title),
                "{}",
                column.title
            );
        }
    }

    #[test]
    fn the_cost_is_shown_only_with_a_price() {
        let cost = STREAMS.iter().find(|column| column.title == "COST/H").unwrap();
        let without = Now::default();
        let with = Now { currency: Some(Text::new("EUR")), ..Now::default() };
        let is_shown = |now: &Now, width: u16| cost.is_shown(width, &Totals::of(now, Amount::PerSecond));
        assert_eq!((is_shown(&without, 160), is_shown(&with, 160), is_shown(&with, 80)), (false, true, false));
    }

    #[test]
    fn names_have_room_on_a_narrow_screen() {
        let shown = |from: u16, width: u16| if from <= 60 && width > 0 { width + 1 } else { 0 };
        let containers: u16 = CONTAINERS.iter().map(|column| shown(column.from, column.width)).sum();
        let streams: u16 = STREAMS.iter().map(|column| shown(column.from, column.width)).sum();
        assert_eq!((60 - containers, 60 - streams), (16, 22));
    }
}
