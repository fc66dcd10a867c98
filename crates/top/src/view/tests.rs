//! The view at common sizes, against files, and with hostile answers.

use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

use super::*;
use crate::{
    keys::press,
    now::{Container, Stream},
    text::Text,
};

const ANSWER: &str = include_str!("answer.json");

/// The screen as lines without spaces at their ends.
fn screen(size: (u16, u16), state: &mut State, at: Duration) -> String {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| draw(frame, state, at)).unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..size.1 {
        let line: String = (0..size.0).map(|x| buffer[(x, y)].symbol()).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn line(screen: &str, number: usize) -> String {
    screen.lines().nth(number).unwrap_or_default().to_owned()
}

/// The answer of the file, after 40 s of history with a gap of ten seconds.
fn state() -> State {
    let mut state = State::new("http://127.0.0.1:9500", 1.0);
    let now = Now::parse(ANSWER).unwrap();
    let end = now.time.unwrap();
    for age in (1..40_u8).rev().filter(|age| !(10..20).contains(age)) {
        state.history.push(end - f64::from(age), Some(if age < 10 { 142.4 } else { 71.2 }));
    }
    state.answer(now, Duration::ZERO);
    state
}

fn press_keys(state: &mut State, keys: &[KeyCode]) {
    for key in keys {
        press(state, (*key).into());
    }
}

#[test]
fn containers_on_80_columns() {
    assert_eq!(screen((80, 24), &mut state(), Duration::ZERO), include_str!("containers-80x24.txt"));
}

#[test]
fn streams_on_80_columns() {
    let mut state = state();
    press_keys(&mut state, &[KeyCode::Tab]);
    assert_eq!(screen((80, 24), &mut state, Duration::ZERO), include_str!("streams-80x24.txt"));
}

#[test]
fn both_tables_on_160_columns() {
    assert_eq!(screen((160, 50), &mut state(), Duration::ZERO), include_str!("both-160x50.txt"));
}

#[test]
fn totals_show_energy_since_the_start() {
    let mut state = state();
    press_keys(&mut state, &[KeyCode::Char('t')]);
    let screen = screen((80, 24), &mut state, Duration::ZERO);
    assert!(line(&screen, 3).starts_with("Host 1.24 MJ"), "{screen}");
    assert!(line(&screen, 4).starts_with("in 2 h 46 min"), "{screen}");
    assert!(line(&screen, 7).starts_with("░ idle 400 kJ  ▒ awake 40.0 kJ"), "{screen}");
    assert!(line(&screen, 11).contains("ENERGY▼"), "{screen}");
    assert!(line(&screen, 12).contains("32 % ██▌"), "{screen}");
}

#[test]
fn a_small_screen_says_what_it_needs() {
    let text = screen((40, 10), &mut state(), Duration::ZERO);
    assert!(text.starts_with("The terminal is too small:\n40x10 instead of 60x14\nq quits\n"), "{text}");
    // No size panics, with the help open and both tables.
    for width in (1..170).step_by(13) {
        for height in (1..60).step_by(7) {
            let mut state = state();
            state.help = true;
            screen((width, height), &mut state, Duration::from_secs(90));
        }
    }
}

#[test]
fn before_the_first_answer_the_view_says_what_it_waits_for() {
    let mut state = State::new("http://127.0.0.1:9500", 1.0);
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("waiting for http://127.0.0.1:9500"));
    state.fail("connection refused");
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("no answer: connection refused; trying again"));
}

#[test]
fn a_dead_probe_leaves_its_figures_with_their_age() {
    let mut state = state();
    state.fail("connection refused");
    let screen = screen((80, 24), &mut state, Duration::from_secs(75));
    assert_eq!(line(&screen, 2), "no answer for 1 min 15 s: connection refused; trying again");
    assert!(screen.contains("live-origin"), "{screen}");
    // The graph shows a gap for that time, which is longer than its 53 columns.
    assert!(!line(&screen, 6).contains('█'), "{screen}");
}

#[test]
fn a_name_cannot_leave_its_column() {
    let mut state = state();
    let mut now = Now::parse(ANSWER).unwrap();
    let hostile =
        ["\u{1b}[2J\u{1b}[Hhacked", "配信サーバー配信サーバー配信サーバー", "a\u{202e}b\u{200d}c", "<script>"];
    now.containers = hostile
        .iter()
        .map(|name| Container { name: Text::new(name), watts: Some(1.0), ..Container::default() })
        .collect();
    now.streams = vec![Stream { name: Text::new(&"x".repeat(500)), ..Stream::default() }];
    now.banners[0].text = Text::new("a\r\nb");
    now.sequence += 1;
    state.answer(now, Duration::ZERO);
    let text = screen((80, 24), &mut state, Duration::ZERO);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    for name in ["\u{fffd}[2J\u{fffd}[Hhacked", "abc", "<script>"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    // Figures are in their columns whatever the width of the name.
    for number in 12..16 {
        assert!(line(&text, number).ends_with("   1.00 W      -      -                 -     -     -"), "{text}");
    }
    press_keys(&mut state, &[KeyCode::Tab]);
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("xxx…"));
}

#[test]
fn a_filter_is_shown_and_hides_other_names() {
    let mut state = state();
    press_keys(&mut state, &[KeyCode::Char('/'), KeyCode::Char('P'), KeyCode::Char('r'), KeyCode::Char('o')]);
    let text = screen((80, 24), &mut state, Duration::ZERO);
    assert!(text.contains("filter: Pro_  shares of power") && text.contains("prometheus"), "{text}");
    assert!(!text.contains("live-origin") && !text.contains("and 4 more"), "{text}");
    press_keys(&mut state, &[KeyCode::Char('x'), KeyCode::Enter]);
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("no name contains the filter"));
}

#[test]
fn the_help_and_a_pause_are_visible() {
    let mut state = state();
    press_keys(&mut state, &[KeyCode::Char('p'), KeyCode::Char('?')]);
    let text = screen((80, 24), &mut state, Duration::ZERO);
    assert!(text.contains(" PAUSED ") && text.contains("│ s, S                sort by the next"), "{text}");
}

#[test]
fn unknown_power_is_no_zero() {
    let mut state = State::new("probe", 1.0);
    state.answer(Now::parse(r#"{"time": 1, "watts": null, "containers": [{"name": "a"}]}"#).unwrap(), Duration::ZERO);
    let text = screen((80, 24), &mut state, Duration::ZERO);
    assert!(text.contains("Host -") && text.contains("no energy is known"), "{text}");
    assert!(!text.contains("0 W"), "{text}");
}

#[test]
fn the_keys_stay_where_nothing_else_has_room() {
    let mut state = state();
    let mut now = Now::parse(ANSWER).unwrap();
    (now.banners, now.gpus) = (vec![now.banners[0].clone(); 3], vec![now.gpus[0].clone(); 2]);
    state.answer(now, Duration::ZERO);
    state.fail("connection refused");
    let text = screen((60, 14), &mut state, Duration::ZERO);
    assert!(line(&text, 13).starts_with("q quit  ? help  p pause"), "{text}");
}

#[test]
fn many_gpus_are_summed_up() {
    let mut state = state();
    let mut now = Now::parse(ANSWER).unwrap();
    now.gpus = vec![now.gpus[0].clone(); 8];
    now.sequence += 1;
    state.answer(now.clone(), Duration::ZERO);
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("GPU and 7 more  196 W"));
    now.gpus[7].watts = None;
    state.answer(now, Duration::ZERO);
    assert!(screen((80, 24), &mut state, Duration::ZERO).contains("GPU and 7 more  -"));
}
