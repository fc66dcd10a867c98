//! The state as text, for a pipe and for terminals without cursor control.

use crate::{
    columns::{Amount, CONTAINERS, Column, STREAMS, Totals},
    now::Now,
    number::{UNKNOWN, clock, with_unit},
    state::{Message, State},
    text::{fit, width},
    view::{figures, gpu_line, parts, unit},
};

/// The columns that are printed are those of a screen of this width.
const WIDTH: u16 = 120;

/// The newest answer as tables. Names are not cut. Empty before the first answer.
pub(crate) fn print(state: &State) -> String {
    let Some(now) = &state.now else { return String::new() };
    let mut lines = vec![format!(
        "{}  {}  probe {}  {}",
        &*now.host,
        &*state.place,
        &*now.version,
        clock(now.time.unwrap_or_default())
    )];
    lines.extend(now.banners.iter().map(|banner| format!("{}: {}", &*banner.kind, &*banner.text)));
    for message in state.messages(std::time::Duration::ZERO) {
        let (Message::Failure(text) | Message::Notice(text)) = message;
        lines.push(text);
    }
    lines.extend([Amount::PerSecond, Amount::Total].map(|amount| host(now, amount)));
    lines.extend(now.gpus.iter().map(gpu_line));
    lines.push(String::new());
    let totals = Totals::of(now, Amount::PerSecond);
    table(&mut lines, &CONTAINERS, &state.containers(), &totals, "no containers");
    let others = &now.other_containers;
    if others.count > 0 {
        lines.push(format!("and {} more  {}", others.count, with_unit(others.watts, "W")));
    }
    lines.push(String::new());
    table(&mut lines, &STREAMS, &state.streams(), &totals, "no streams");
    lines.push(String::new());
    lines.join("\n")
}

/// The host's power or energy with its layers, in one line.
fn host(now: &Now, amount: Amount) -> String {
    let (figure, time) = figures(now, amount);
    let layers: Vec<String> = parts(now, amount)
        .into_iter()
        .map(|(name, _, _, value)| format!("{name} {}", with_unit(Some(value), unit(amount))))
        .collect();
    let mut line = format!("host {figure} {time}");
    if !layers.is_empty() {
        line = format!("{}: {}", line.trim_end(), layers.join(", "));
    }
    line.trim_end().to_owned()
}

/// A table whose columns are as wide as their longest cell.
fn table<R>(lines: &mut Vec<String>, columns: &[Column<R>], rows: &[&R], totals: &Totals<'_>, none: &str) {
    if rows.is_empty() {
        lines.push(none.to_owned());
        return;
    }
    let shown: Vec<&Column<R>> = columns.iter().filter(|column| column.is_shown(WIDTH, totals)).collect();
    let mut cells: Vec<Vec<String>> = vec![shown.iter().map(|column| column.title.to_owned()).collect()];
    for row in rows {
        let texts = shown.iter().map(|column| (column.cell)(row, totals));
        cells.push(texts.map(|text| if text.is_empty() { UNKNOWN.to_owned() } else { text }).collect());
    }
    let widest = |index: usize| cells.iter().filter_map(|row| row.get(index)).map(|text| width(text)).max();
    let widths: Vec<usize> = (0..shown.len()).map(|index| widest(index).unwrap_or_default()).collect();
    for row in &cells {
        let texts = row.iter().zip(&widths).zip(&shown);
        let texts = texts.map(|((text, columns), column)| fit(text, *columns, column.number.is_some()));
        lines.push(texts.collect::<Vec<_>>().join("  ").trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pipe_gets_whole_names_and_no_escapes() {
        let answer = r#"{
            "time": 1700000000, "sequence": 5, "window_seconds": 10, "host": "edge-7", "version": "0.2.0",
            "started": 1699999000, "banners": [{"kind": "MODELLED", "text": "Estimated."}],
            "watts": {"host": 12.34, "layers": {"idle": 4.0, "containers": 8.34, "gpu": null, "retired": 0}},
            "joules": {"measured": 1390, "layers": {"idle": 700, "containers": 690}},
            "containers": [
                {"name": "a\u001b[31m", "watts": 1.5, "uncertainty_watts": 0.2, "share": 0.1216, "joules": 90},
                {"name": "a-container-with-a-long-name", "runtime": "docker", "watts": 6.84, "joules": 600,
                 "share": 0.5543, "cpu_cores": 1.5, "wait_cores": 0.25}],
            "other_containers": {"count": 3, "watts": 0.02}, "streams": [],
            "gpus": [{"name": "H200", "watts": 85.2, "engines": {"sm": 0.5, "jpeg": 0}}]}"#;
        let mut state = State::new("http://127.0.0.1:9500", 1.0);
        state.answer(Now::parse(answer).unwrap(), Duration::ZERO);
        let expected = "\
edge-7  http://127.0.0.1:9500  probe 0.2.0  22:13:20 UTC
MODELLED: Estimated.
host 12.3 W mean of 10 s: idle 4.00 W, containers 8.34 W
host 1.39 kJ in 16 min 40 s: idle 700 J, containers 690 J
GPU H200  85.2 W  sm 50 %

NAME                           POWER     ±  SHARE  ENERGY   CPU  WAIT  GPU  RUNTIME
a-container-with-a-long-name  6.84 W     -   55 %   600 J  1.50  0.25    -  docker
a\u{fffd}[31m                        1.50 W  0.20   12 %  90.0 J     -     -    -  -
and 3 more  20.0 mW

no streams
";
        assert_eq!(print(&state), expected);
    }
}
