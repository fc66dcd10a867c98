//! Draws the state into a screen of any size.
//!
//! Every text is cut to its place by the columns that it takes; the layers of power differ in
//! symbol and not only in colour.

use std::time::Duration;

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use crate::{
    columns::{Amount, BAR, BAR_FROM, CONTAINERS, Column, STREAMS, Totals},
    keys::HELP,
    now::{Gpu, Now},
    number::{clock, duration, percent, with_unit},
    state::{Message, State, Tab, TableState},
    text::{clean, cut, fit, width},
};

/// The smallest screen with room for both tables.
const LEAST: (u16, u16) = (60, 14);
/// Width of the figures left of the graph.
const FIGURES: u16 = 26;
/// Height of the tables from which both are shown.
const BOTH: u16 = 24;

/// A layer of the host's power: key of the answer, name, symbol and colour. The colours are those
/// of the terminal; the symbols make them readable without.
pub(crate) const LAYERS: [(&str, &str, char, Color); 7] = [
    ("idle", "idle", '░', Color::Reset),
    ("awake", "awake", '▒', Color::Blue),
    ("system", "system", '▓', Color::Cyan),
    ("containers", "containers", '█', Color::Green),
    ("gpu", "GPU", '▞', Color::Magenta),
    ("retired", "retired", '▪', Color::Yellow),
    ("unattributed", "unattributed", '·', Color::Red),
];

const PLAIN: Style = Style::new();
const BOLD: Style = PLAIN.add_modifier(Modifier::BOLD);
const DIM: Style = PLAIN.add_modifier(Modifier::DIM);
const INVERSE: Style = PLAIN.add_modifier(Modifier::REVERSED).add_modifier(Modifier::BOLD);

/// Draws everything. `at` is the time since the start of the view.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &mut State, at: Duration) {
    let area = frame.area();
    let buffer = frame.buffer_mut();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (columns, rows) = LEAST;
        let words = [
            "The terminal is too small:".to_owned(),
            format!("{}x{} instead of {columns}x{rows}", area.width, area.height),
            "q quits".to_owned(),
        ];
        for (line, y) in words.iter().zip(area.y..area.bottom()) {
            put(buffer, area.x, y, line, area.width, PLAIN);
        }
        return;
    }
    let mut rest = area;
    title(buffer, take(&mut rest, 1), state);
    let last = take_last(&mut rest, 1);
    messages(buffer, &mut rest, state, at);
    if let Some(now) = &state.now {
        let rows = match area.height {
            40.. => 8,
            30.. => 5,
            _ => 3,
        };
        let graph_area = take(&mut rest, rows);
        host(buffer, graph_area, state, now, at);
        layers(buffer, &mut rest, now, state.amount);
        gpus(buffer, &mut rest, &now.gpus, if area.height >= 30 { 4 } else { 2 });
        tables(buffer, rest, state);
    } else if state.messages(at).is_empty() {
        put(buffer, rest.x, rest.y, &format!("waiting for {}", &*state.place), rest.width, PLAIN);
    }
    // Over what had no room above.
    keys(buffer, last, state);
    if state.help {
        help(buffer, area);
    }
}

/// The first rows of an area, which are taken from it.
fn take(rest: &mut Rect, rows: u16) -> Rect {
    let taken = Rect { height: rows.min(rest.height), ..*rest };
    rest.y += taken.height;
    rest.height -= taken.height;
    taken
}

/// The last rows of an area, which are taken from it.
fn take_last(rest: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(rest.height);
    rest.height -= rows;
    Rect { y: rest.y + rest.height, height: rows, ..*rest }
}

/// Writes a text in at most so many columns; returns the column after it.
fn put(buffer: &mut Buffer, x: u16, y: u16, text: &str, columns: u16, style: Style) -> u16 {
    if y >= buffer.area().bottom() || x >= buffer.area().right() {
        return x;
    }
    buffer.set_stringn(x, y, cut(text, columns.into()), columns.into(), style).0
}

/// Writes a text that ends at the right edge.
fn put_right(buffer: &mut Buffer, line: Rect, text: &str, style: Style) {
    let columns = columns_of(text).min(line.width);
    put(buffer, line.right() - columns, line.y, text, columns, style);
}

fn columns_of(text: &str) -> u16 {
    u16::try_from(width(text)).unwrap_or(u16::MAX)
}

fn title(buffer: &mut Buffer, line: Rect, state: &State) {
    let mut right = 0;
    if let Some(now) = &state.now {
        let time = clock(now.time.unwrap_or_default());
        put_right(buffer, line, &time, PLAIN);
        right = columns_of(&time) + 2;
    }
    let mut left = Rect { width: line.width.saturating_sub(right), ..line };
    if state.paused {
        put_right(buffer, left, " PAUSED ", INVERSE);
        left.width = left.width.saturating_sub(10);
    }
    let mut text = "wattcast top".to_owned();
    if let Some(now) = &state.now {
        text = format!("{text}  {}", &*now.host);
    }
    let end = put(buffer, left.x, left.y, &text, left.width, BOLD);
    let mut place = format!("  {}", &*state.place);
    if let Some(now) = &state.now
        && !now.version.is_empty()
    {
        place = format!("{place}  probe {}", &*now.version);
    }
    put(buffer, end, left.y, &place, left.right().saturating_sub(end), PLAIN);
}

fn keys(buffer: &mut Buffer, line: Rect, state: &State) {
    let amount = if state.amount == Amount::PerSecond { "energy" } else { "power" };
    let other = if state.tab == Tab::Containers { "streams" } else { "containers" };
    let text = if state.editing {
        "Enter keeps the filter  Esc shows all".to_owned()
    } else {
        format!("q quit  ? help  p pause  s sort  r reverse  / filter  t {amount}  Tab {other}")
    };
    put(buffer, line.x, line.y, &fit(&text, line.width.into(), false), line.width, DIM);
}

/// Banners in inverse, then failures and notices.
fn messages(buffer: &mut Buffer, rest: &mut Rect, state: &State, at: Duration) {
    for banner in state.now.iter().flat_map(|now| &now.banners).take(3) {
        let line = take(rest, 1);
        let end = put(buffer, line.x, line.y, &format!(" {} ", &*banner.kind), line.width, INVERSE);
        put(buffer, end, line.y, &format!(" {}", &*banner.text), line.right().saturating_sub(end), PLAIN);
    }
    for message in state.messages(at).iter().take(2) {
        let line = take(rest, 1);
        let (text, style) = match message {
            Message::Failure(text) => (text, INVERSE.fg(Color::Red)),
            Message::Notice(text) => (text, BOLD),
        };
        put(buffer, line.x, line.y, text, line.width, style);
    }
}

/// The host's power or energy, and the time that it refers to; empty if that is unknown.
pub(crate) fn figures(now: &Now, amount: Amount) -> (String, String) {
    match amount {
        Amount::PerSecond => {
            let window = now.window_seconds.map(|window| format!("mean of {}", duration(Some(window))));
            (with_unit(now.watts.host, "W"), window.unwrap_or_default())
        }
        Amount::Total => {
            let length = now.time.zip(now.totals_since.or(now.started)).map(|(time, since)| time - since);
            let length = length.map(|length| format!("in {}", duration(Some(length))));
            (with_unit(now.joules.measured, "J"), length.unwrap_or_default())
        }
    }
}

/// The host's power or energy, and the graph of its power.
fn host(buffer: &mut Buffer, area: Rect, state: &State, now: &Now, at: Duration) {
    let (figure, time) = figures(now, state.amount);
    put(buffer, area.x, area.y, &format!("Host {figure}"), FIGURES, BOLD);
    put(buffer, area.x, area.y + 1, &time, FIGURES, PLAIN);
    let graph_area = Rect { x: area.x + FIGURES + 1, width: area.width - FIGURES - 1, ..area };
    let Some((end, step)) = state.graph_end(at) else { return };
    let columns = state.history.columns(end, step, graph_area.width.into());
    let most = columns.iter().flatten().copied().fold(0.0, f64::max);
    if most > 0.0 {
        let length = duration(Some(step * f64::from(graph_area.width)));
        let scale = format!("0 to {}, {length}", with_unit(Some(most), "W"));
        put(buffer, area.x, area.y + 2, &scale, FIGURES, DIM);
    }
    graph(buffer, graph_area, &columns, most);
}

/// A column per value, in eighths of a row. A known value has at least one eighth; a gap is empty.
fn graph(buffer: &mut Buffer, area: Rect, columns: &[Option<f64>], most: f64) {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let steps = f64::from(area.height) * 8.0;
    for (x, watts) in (area.x..area.right()).zip(columns) {
        let Some(watts) = watts else { continue };
        let part = if most > 0.0 { watts / most } else { 0.0 };
        let mut filled = (part * steps).round().clamp(1.0, steps) as usize;
        for y in (area.y..area.bottom()).rev() {
            let Some(symbol) = EIGHTHS.get(filled.min(8).wrapping_sub(1)) else { break };
            if let Some(cell) = buffer.cell_mut((x, y)) {
                cell.set_char(*symbol).set_style(PLAIN.fg(Color::Green));
            }
            filled -= filled.min(8);
        }
    }
}

/// The layers that have energy, with their name, symbol, colour and value.
pub(crate) fn parts(now: &Now, amount: Amount) -> Vec<(&'static str, char, Color, f64)> {
    let values = match amount {
        Amount::PerSecond => &now.watts.layers,
        Amount::Total => &now.joules.layers,
    };
    let part = |(key, name, symbol, color): (&str, &'static str, char, Color)| {
        let value = values.get(key).copied().flatten().filter(|value| *value > 0.0)?;
        Some((name, symbol, color, value))
    };
    LAYERS.into_iter().filter_map(part).collect()
}

/// The unit of an amount.
pub(crate) fn unit(amount: Amount) -> &'static str {
    if amount == Amount::PerSecond { "W" } else { "J" }
}

/// A bar of all layers, and a legend of at most two rows.
fn layers(buffer: &mut Buffer, rest: &mut Rect, now: &Now, amount: Amount) {
    let parts = parts(now, amount);
    let total: f64 = parts.iter().map(|part| part.3).sum();
    let bar = take(rest, 1);
    if parts.is_empty() {
        put(buffer, bar.x, bar.y, "no energy is known", bar.width, DIM);
        return;
    }
    let (mut x, mut sum) = (bar.x, 0.0);
    for (_, symbol, color, value) in &parts {
        sum += value;
        let end = bar.x + (sum / total * f64::from(bar.width)).round().min(f64::from(bar.width)) as u16;
        while x < end {
            if let Some(cell) = buffer.cell_mut((x, bar.y)) {
                cell.set_char(*symbol).set_style(PLAIN.fg(*color));
            }
            x += 1;
        }
    }
    let mut line = take(rest, 1);
    let mut x = line.x;
    let mut rows = 1;
    for (name, symbol, color, value) in parts {
        let text = format!("{symbol} {name} {}", with_unit(Some(value), unit(amount)));
        let columns = columns_of(&text);
        if x > line.x && x + columns > line.right() {
            if rows == 2 {
                break;
            }
            rows += 1;
            line = take(rest, 1);
            x = line.x;
        }
        let end = put(buffer, x, line.y, &text, line.right().saturating_sub(x), PLAIN);
        if let Some(cell) = buffer.cell_mut((x, line.y)) {
            cell.set_style(PLAIN.fg(color));
        }
        x = end + 2;
    }
}

/// A line about a GPU: its power, and the engines that are in use.
pub(crate) fn gpu_line(gpu: &Gpu) -> String {
    let mut line = format!("GPU {}  {}", &*gpu.name, with_unit(gpu.watts, "W"));
    for (engine, used) in &gpu.engines {
        // Engines that a GPU lacks are not listed, and idle ones say nothing.
        if used.is_some_and(|used| used > 0.0) {
            line = format!("{line}  {} {}", clean(engine), percent(*used));
        }
    }
    line
}

fn gpus(buffer: &mut Buffer, rest: &mut Rect, gpus: &[Gpu], most: usize) {
    let shown = if gpus.len() > most { most - 1 } else { gpus.len() };
    for gpu in gpus.iter().take(shown) {
        let line = take(rest, 1);
        put(buffer, line.x, line.y, &gpu_line(gpu), line.width, PLAIN);
    }
    if let Some(others) = gpus.get(shown..).filter(|others| !others.is_empty()) {
        let line = take(rest, 1);
        // A sum without one of them is no sum.
        let watts: Option<f64> = others.iter().map(|gpu| gpu.watts).sum();
        let text = format!("GPU and {} more  {}", others.len(), with_unit(watts, "W"));
        put(buffer, line.x, line.y, &text, line.width, PLAIN);
    }
}

/// Both tables if there is room, else the active one.
fn tables(buffer: &mut Buffer, mut rest: Rect, state: &mut State) {
    if rest.height < BOTH {
        let line = take(&mut rest, 1);
        heading(buffer, line, state, &[Tab::Containers, Tab::Streams], true);
        match state.tab {
            Tab::Containers => containers(buffer, rest, state),
            Tab::Streams => streams(buffer, rest, state),
        }
        return;
    }
    let line = take(&mut rest, 1);
    heading(buffer, line, state, &[Tab::Containers], true);
    let rows = |count: usize, most: u16| u16::try_from(count.max(1)).unwrap_or(most).min(most);
    let below = rows(state.streams().len(), 10) + 3;
    // The titles, the rows, and the sum of the others.
    let above = rows(state.containers().len() + 2, rest.height - below);
    let upper = take(&mut rest, above);
    containers(buffer, upper, state);
    take(&mut rest, 1);
    let line = take(&mut rest, 1);
    heading(buffer, line, state, &[Tab::Streams], false);
    streams(buffer, rest, state);
}

/// Names of the tables, the active one in inverse; with `options`, what applies to both.
fn heading(buffer: &mut Buffer, line: Rect, state: &State, tabs: &[Tab], options: bool) {
    let Some(now) = &state.now else { return };
    let mut x = line.x;
    for tab in tabs {
        let text = match tab {
            Tab::Containers => {
                let count = (now.containers.len() as u64).saturating_add(now.other_containers.count);
                format!(" Containers {count} ")
            }
            Tab::Streams => format!(" Streams {} ", now.streams.iter().filter(|stream| !stream.ended()).count()),
        };
        let style = if *tab == state.tab { INVERSE } else { BOLD };
        x = put(buffer, x, line.y, &text, line.right().saturating_sub(x), style) + 1;
    }
    if !options {
        return;
    }
    let mut text = match state.amount {
        Amount::PerSecond => "shares of power".to_owned(),
        Amount::Total => "shares of energy".to_owned(),
    };
    if state.editing || !state.filter.is_empty() {
        let cursor = if state.editing { "_" } else { "" };
        text = format!("filter: {}{cursor}  {text}", clean(&state.filter));
    }
    let free = Rect { x, width: line.right().saturating_sub(x), ..line };
    put_right(buffer, free, &text, DIM);
}

fn containers(buffer: &mut Buffer, mut area: Rect, state: &mut State) {
    let Some(now) = &state.now else { return };
    let others = &now.other_containers;
    let rows = state.containers();
    if others.count > 0 && state.filter.is_empty() {
        let line = take_last(&mut area, 1);
        let text = format!("and {} more  {}", others.count, with_unit(others.watts, "W"));
        let after_rows = u16::try_from(rows.len()).map_or(line.y, |rows| area.y.saturating_add(rows).saturating_add(1));
        put(buffer, line.x, line.y.min(after_rows), &text, line.width, DIM);
    }
    if rows.is_empty() {
        let why = if state.filter.is_empty() { "no containers" } else { "no name contains the filter" };
        put(buffer, area.x, area.y + 1, why, area.width, DIM);
    }
    let totals = Totals::of(now, state.amount);
    state.container_table = table(buffer, area, &CONTAINERS, &rows, &totals, state.container_table, |_| false);
}

fn streams(buffer: &mut Buffer, area: Rect, state: &mut State) {
    let Some(now) = &state.now else { return };
    let rows = state.streams();
    if rows.is_empty() {
        let why = if state.filter.is_empty() { "no streams" } else { "no name contains the filter" };
        put(buffer, area.x, area.y + 1, why, area.width, DIM);
    }
    let totals = Totals::of(now, state.amount);
    state.stream_table = table(buffer, area, &STREAMS, &rows, &totals, state.stream_table, |row| row.ended());
}

/// Draws a table; returns its state with what fits.
fn table<R>(
    buffer: &mut Buffer,
    area: Rect,
    columns: &[Column<R>],
    rows: &[&R],
    totals: &Totals<'_>,
    state: TableState,
    dim: fn(&R) -> bool,
) -> TableState {
    let page = usize::from(area.height.saturating_sub(1));
    let scroll = state.scroll.min(rows.len().saturating_sub(page));
    let shown = widths(columns, area.width, totals);
    let mut x = area.x;
    for (index, column, columns) in &shown {
        let (title, style) = if *index == state.column {
            (format!("{}{}", column.title, if state.reversed { "▲" } else { "▼" }), BOLD)
        } else {
            (column.title.to_owned(), DIM)
        };
        let title = fit(&title, usize::from(*columns), column.number.is_some());
        put(buffer, x, area.y, &title, *columns, style);
        x += columns + 1 + bar_columns(column, area.width);
    }
    for (row, y) in rows.iter().skip(scroll).zip(area.y + 1..area.bottom()) {
        let style = if dim(row) { DIM } else { PLAIN };
        let mut x = area.x;
        for (_, column, columns) in &shown {
            let text = fit(&(column.cell)(row, totals), usize::from(*columns), column.number.is_some());
            put(buffer, x, y, &text, *columns, style);
            x += columns + 1;
            if bar_columns(column, area.width) > 0 {
                let share = column.number.and_then(|number| number(row, totals));
                put(buffer, x, y, &bar(share, BAR), BAR, PLAIN.fg(Color::Green));
                x += BAR + 1;
            }
        }
    }
    TableState { scroll, page, width: area.width, ..state }
}

fn bar_columns<R>(column: &Column<R>, width: u16) -> u16 {
    if column.bar && width >= BAR_FROM { BAR + 1 } else { 0 }
}

/// The columns that a screen shows: index, column and width. The first takes what is left.
fn widths<'c, R>(columns: &'c [Column<R>], width: u16, totals: &Totals<'_>) -> Vec<(usize, &'c Column<R>, u16)> {
    let shown = columns.iter().enumerate().filter(|(_, column)| column.is_shown(width, totals));
    let taken: u16 = shown
        .clone()
        .filter(|(_, column)| column.width > 0)
        .map(|(_, column)| column.width + 1 + bar_columns(column, width))
        .sum();
    let left = width.saturating_sub(taken);
    shown.map(|(index, column)| (index, column, if column.width > 0 { column.width } else { left })).collect()
}

/// A bar of a share of one, in eighths of a column. A share above zero has at least one eighth.
fn bar(share: Option<f64>, columns: u16) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = share.filter(|share| share.is_finite() && *share > 0.0).unwrap_or_default().min(1.0);
    let steps = f64::from(columns) * 8.0;
    let filled = (share * steps).round() as usize;
    let filled = if share > 0.0 { filled.max(1) } else { 0 };
    "█".repeat(filled / 8) + EIGHTHS.get(filled % 8).copied().unwrap_or_default()
}

/// The keys, in a frame.
fn help(buffer: &mut Buffer, area: Rect) {
    let lines: Vec<String> = HELP.iter().map(|(key, what)| format!(" {}  {what} ", fit(key, 18, false))).collect();
    let inner = lines.iter().map(|line| width(line)).max().unwrap_or_default();
    let mut framed = vec![format!("┌{}┐", "─".repeat(inner))];
    framed.extend(lines.iter().map(|line| format!("│{}│", fit(line, inner, false))));
    framed.push(format!("└{}┘", "─".repeat(inner)));
    let columns = u16::try_from(inner + 2).unwrap_or(area.width).min(area.width);
    let rows = u16::try_from(framed.len()).unwrap_or(area.height).min(area.height);
    let (x, y) = (area.x + (area.width - columns) / 2, area.y + (area.height - rows) / 2);
    for (line, y) in framed.iter().zip(y..y + rows) {
        put(buffer, x, y, line, columns, Style::reset());
    }
}

#[cfg(test)]
mod tests;
