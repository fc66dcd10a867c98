//! What a key changes.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::{
    columns::{Amount, CONTAINERS, STREAMS, Totals},
    state::{State, Tab},
};

/// Longest filter in characters.
const LONGEST_FILTER: usize = 40;

/// The keys and what they do, as the help shows them.
pub(crate) const HELP: [(&str, &str); 11] = [
    ("q, Ctrl-C", "quit"),
    ("p, space", "hold the figures; the graph goes on"),
    ("s, S", "sort by the next or previous column"),
    ("r", "reverse the order"),
    ("/", "show only names that contain a text; Esc shows all"),
    ("t", "shares of power, or of energy since the start of the probe"),
    ("Tab", "containers or streams"),
    ("arrows, PgUp, PgDn", "scroll"),
    ("Home, End", "first or last row"),
    ("Ctrl-L", "draw everything again"),
    ("?", "this help"),
];

/// What the loop must do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Draw the changed state.
    Draw,
    /// Clear the screen first.
    Redraw,
    Quit,
}

/// Changes the state.
pub(crate) fn press(state: &mut State, key: KeyEvent) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::Draw;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'd') => Action::Quit,
            KeyCode::Char('l') => Action::Redraw,
            _ => Action::Draw,
        };
    }
    if state.editing {
        edit(state, key.code);
        return Action::Draw;
    }
    if state.help {
        state.help = false;
        return if key.code == KeyCode::Char('q') { Action::Quit } else { Action::Draw };
    }
    match key.code {
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('p' | ' ') => state.toggle_pause(),
        KeyCode::Char('s') => sort_by_neighbour(state, true),
        KeyCode::Char('S') => sort_by_neighbour(state, false),
        KeyCode::Char('r') => state.table().reversed ^= true,
        KeyCode::Char('/') => state.editing = true,
        KeyCode::Char('?' | 'h') => state.help = true,
        KeyCode::Char('t') => toggle_amount(state),
        KeyCode::Esc => state.filter.clear(),
        KeyCode::Tab | KeyCode::BackTab => {
            state.tab = if state.tab == Tab::Containers { Tab::Streams } else { Tab::Containers };
        }
        code => scroll(state, code),
    }
    Action::Draw
}

fn edit(state: &mut State, code: KeyCode) {
    match code {
        KeyCode::Enter => state.editing = false,
        KeyCode::Esc => {
            state.filter.clear();
            state.editing = false;
        }
        KeyCode::Backspace => {
            state.filter.pop();
        }
        KeyCode::Char(c) if !c.is_control() && state.filter.chars().count() < LONGEST_FILTER => state.filter.push(c),
        _ => {}
    }
    state.container_table.scroll = 0;
    state.stream_table.scroll = 0;
}

fn scroll(state: &mut State, code: KeyCode) {
    let rows = if state.tab == Tab::Containers { state.containers().len() } else { state.streams().len() };
    let table = state.table();
    let page = table.page.max(1);
    let last = rows.saturating_sub(page);
    table.scroll = match code {
        KeyCode::Up | KeyCode::Char('k') => table.scroll.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => table.scroll + 1,
        KeyCode::PageUp => table.scroll.saturating_sub(page),
        KeyCode::PageDown => table.scroll + page,
        KeyCode::Home => 0,
        KeyCode::End => last,
        _ => table.scroll,
    }
    .min(last);
}

/// Sorts by the next or previous column of those that the screen shows.
fn sort_by_neighbour(state: &mut State, next: bool) {
    let width = state.table().width;
    let totals = state.now.as_ref().map(|now| Totals::of(now, state.amount)).unwrap_or_default();
    let shown: Vec<bool> = match state.tab {
        Tab::Containers => CONTAINERS.iter().map(|column| column.is_shown(width, &totals)).collect(),
        Tab::Streams => STREAMS.iter().map(|column| column.is_shown(width, &totals)).collect(),
    };
    let table = state.table();
    let count = shown.len();
    for _ in 0..count {
        table.column = (table.column + if next { 1 } else { count - 1 }) % count;
        if shown.get(table.column).copied().unwrap_or_default() {
            break;
        }
    }
    (table.reversed, table.scroll) = (false, 0);
}

/// Switches between power and energy, also as the order of both tables.
fn toggle_amount(state: &mut State) {
    let (amount, before, after) = match state.amount {
        Amount::PerSecond => (Amount::Total, "POWER", "ENERGY"),
        Amount::Total => (Amount::PerSecond, "ENERGY", "POWER"),
    };
    state.amount = amount;
    let find = |titles: &[&str], title: &str| titles.iter().position(|one| *one == title);
    let containers = CONTAINERS.each_ref().map(|column| column.title);
    let streams = STREAMS.each_ref().map(|column| column.title);
    for (table, titles) in
        [(&mut state.container_table, containers.as_slice()), (&mut state.stream_table, streams.as_slice())]
    {
        if Some(table.column) == find(titles, before) {
            table.column = find(titles, after).unwrap_or(table.column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::now::{Container, Now};

    fn press_all(state: &mut State, keys: &str) -> Action {
        let mut action = Action::Draw;
        for c in keys.chars() {
            action = press_code(state, KeyCode::Char(c));
        }
        action
    }

    fn press_code(state: &mut State, code: KeyCode) -> Action {
        press(state, KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn state() -> State {
        let mut state = State::new("", 1.0);
        let mut now = Now { time: Some(1.0), ..Now::default() };
        now.containers = vec![Container::default(); 30];
        state.answer(now, std::time::Duration::ZERO);
        (state.container_table.page, state.container_table.width) = (10, 80);
        (state.stream_table.page, state.stream_table.width) = (10, 80);
        state
    }

    #[test]
    fn q_and_ctrl_c_quit_and_a_filter_may_contain_a_q() {
        let mut state = state();
        assert_eq!(press_all(&mut state, "q"), Action::Quit);
        assert_eq!(press_all(&mut state, "/qp"), Action::Draw);
        assert_eq!((&*state.filter, state.paused), ("qp", false));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut state, ctrl_c), Action::Quit);
        press_code(&mut state, KeyCode::Backspace);
        press_code(&mut state, KeyCode::Enter);
        assert_eq!((&*state.filter, state.editing), ("q", false));
        press_code(&mut state, KeyCode::Esc);
        assert_eq!(state.filter, "");
    }

    #[test]
    fn sorting_skips_columns_that_the_screen_does_not_show() {
        let mut state = state();
        let mut titles = Vec::new();
        for _ in 0..7 {
            press_all(&mut state, "s");
            titles.push(CONTAINERS[state.container_table.column].title);
        }
        assert_eq!(titles, ["±", "SHARE", "ENERGY", "CPU", "WAIT", "NAME", "POWER"]);
        press_all(&mut state, "SS");
        assert_eq!(CONTAINERS[state.container_table.column].title, "WAIT");
    }

    #[test]
    fn scrolling_ends_at_the_last_page() {
        let mut state = state();
        press_code(&mut state, KeyCode::End);
        assert_eq!(state.container_table.scroll, 20);
        press_code(&mut state, KeyCode::Down);
        assert_eq!(state.container_table.scroll, 20);
        press_code(&mut state, KeyCode::PageUp);
        press_code(&mut state, KeyCode::Up);
        assert_eq!(state.container_table.scroll, 9);
        press_code(&mut state, KeyCode::Home);
        press_code(&mut state, KeyCode::Up);
        assert_eq!(state.container_table.scroll, 0);
    }

    #[test]
    fn totals_are_sorted_by_energy() {
        let mut state = state();
        press_all(&mut state, "t");
        assert_eq!(CONTAINERS[state.container_table.column].title, "ENERGY");
        assert_eq!(STREAMS[state.stream_table.column].title, "ENERGY");
        press_all(&mut state, "t");
        assert_eq!(state.container_table.column, 1);
        // Another order stays.
        press_all(&mut state, "st");
        assert_eq!(CONTAINERS[state.container_table.column].title, "±");
    }

    #[test]
    fn a_key_closes_the_help_and_does_nothing_else() {
        let mut state = state();
        press_all(&mut state, "?p");
        assert_eq!((state.help, state.paused), (false, false));
        press_code(&mut state, KeyCode::Tab);
        assert_eq!(state.tab, Tab::Streams);
    }
}
