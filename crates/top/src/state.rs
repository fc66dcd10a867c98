//! What the view shows: the last answer, the history, and what the user chose. Pure: time comes as
//! an argument, and everything else as an answer, a failure or a key.

use std::time::Duration;

use crate::{
    columns::{Amount, CONTAINERS, Column, STREAMS, Totals},
    history::History,
    now::{Container, Now, Stream},
    number::duration,
    text::Text,
};

/// How long a restart or a clock that was set is shown.
const NOTICE_SECONDS: f64 = 60.0;

/// A table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tab {
    #[default]
    Containers,
    Streams,
}

/// How a table is sorted and scrolled.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableState {
    /// Index of the column that sorts.
    pub(crate) column: usize,
    pub(crate) reversed: bool,
    /// Rows above the first that is shown.
    pub(crate) scroll: usize,
    /// Rows that fit, as of the last drawing.
    pub(crate) page: usize,
    /// Width as of the last drawing: hidden columns are no choice for sorting.
    pub(crate) width: u16,
}

/// A line about the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The figures are not current.
    Failure(String),
    /// What happened to the figures.
    Notice(String),
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Where the answers come from.
    pub(crate) place: Text,
    /// Seconds between two requests.
    pub(crate) interval: f64,
    /// The answer that is shown.
    pub(crate) now: Option<Now>,
    /// The newest answer while the view is paused.
    newest: Option<Now>,
    pub(crate) history: History,
    /// When the last answer came.
    answered: Option<Duration>,
    /// When the last new tick came.
    ticked: Option<Duration>,
    failure: Option<Text>,
    notice: Option<(&'static str, Duration)>,
    pub(crate) paused: bool,
    pub(crate) tab: Tab,
    pub(crate) amount: Amount,
    pub(crate) container_table: TableState,
    pub(crate) stream_table: TableState,
    /// Part of the names that are shown.
    pub(crate) filter: String,
    /// True while the filter is being typed.
    pub(crate) editing: bool,
    pub(crate) help: bool,
}

impl State {
    /// The state before the first answer.
    pub(crate) fn new(place: &str, interval: f64) -> Self {
        // The second column is power.
        let by_power = TableState { column: 1, ..TableState::default() };
        Self {
            place: Text::new(place),
            interval,
            now: None,
            newest: None,
            history: History::default(),
            answered: None,
            ticked: None,
            failure: None,
            notice: None,
            paused: false,
            tab: Tab::default(),
            amount: Amount::default(),
            container_table: by_power,
            stream_table: by_power,
            filter: String::new(),
            editing: false,
            help: false,
        }
    }

    /// Takes an answer that came at `at`, a time since the start of the view.
    pub(crate) fn answer(&mut self, now: Now, at: Duration) {
        (self.answered, self.failure) = (Some(at), None);
        let before = self.newest.as_ref().or(self.now.as_ref());
        if let Some(before) = before {
            let restarted = matches!((before.started, now.started), (Some(a), Some(b)) if (a - b).abs() > 1.0);
            if restarted {
                // Those of this start begin with its first tick.
                let since = now.totals_since.zip(now.started);
                let notice = if since.is_some_and(|(since, started)| since < started - 1.0) {
                    "the probe was restarted; totals continue"
                } else {
                    "the probe was restarted; totals start from zero"
                };
                self.notice = Some((notice, at));
            } else if now.time < before.time {
                self.notice = Some(("the clock of the host was set back", at));
            } else if now.sequence == before.sequence {
                // The same tick again. Its states may be newer.
                self.show(now);
                return;
            }
        }
        self.ticked = Some(at);
        self.history.push(now.time.unwrap_or_default(), now.watts.host);
        self.show(now);
    }

    fn show(&mut self, now: Now) {
        if self.paused {
            self.newest = Some(now);
        } else {
            (self.now, self.newest) = (Some(now), None);
        }
    }

    /// Takes a failure to get an answer.
    pub(crate) fn fail(&mut self, why: &str) {
        self.failure = Some(Text::new(why));
    }

    /// Holds what is shown, or continues with the newest answer. The history goes on.
    pub(crate) fn toggle_pause(&mut self) {
        self.paused = !self.paused;
        if let Some(newest) = self.newest.take() {
            self.now = Some(newest);
        }
    }

    /// End of the graph in unix seconds, and the seconds of each of its columns. It goes on while
    /// no answer comes, so that the time without power becomes a gap.
    pub(crate) fn graph_end(&self, at: Duration) -> Option<(f64, f64)> {
        let newest = self.newest.as_ref().or(self.now.as_ref())?;
        let step = newest.tick_seconds.unwrap_or(1.0).max(self.interval).max(0.1);
        let late = at.saturating_sub(self.ticked?).as_secs_f64();
        // Between two ticks the graph stands still.
        let missed = if late > 3.0 * step { late } else { 0.0 };
        Some((newest.time? + missed, step))
    }

    /// What to say about the source, the most important first.
    pub(crate) fn messages(&self, at: Duration) -> Vec<Message> {
        let mut messages = Vec::new();
        let since = |then: Duration| duration(Some(at.saturating_sub(then).as_secs_f64()));
        let tick = self.now.as_ref().and_then(|now| now.tick_seconds).unwrap_or(1.0).max(self.interval);
        match (&self.failure, self.answered, self.ticked) {
            (Some(why), Some(answered), _) => {
                messages.push(Message::Failure(format!("no answer for {}: {}; trying again", since(answered), &**why)));
            }
            (Some(why), None, _) => messages.push(Message::Failure(format!("no answer: {}; trying again", &**why))),
            (None, _, Some(ticked)) if at.saturating_sub(ticked).as_secs_f64() > 3.0 * tick + 2.0 => {
                messages.push(Message::Failure(format!("no new tick for {}", since(ticked))));
            }
            _ => {}
        }
        if let Some((what, then)) = self.notice
            && at.saturating_sub(then).as_secs_f64() < NOTICE_SECONDS
        {
            messages.push(Message::Notice(format!("{} ago: {what}", since(then))));
        }
        if let Some(note) = self.now.as_ref().and_then(|now| now.idle_note.as_ref()) {
            messages.push(Message::Notice(note.to_string()));
        }
        messages
    }

    /// The table that keys refer to.
    pub(crate) fn table(&mut self) -> &mut TableState {
        match self.tab {
            Tab::Containers => &mut self.container_table,
            Tab::Streams => &mut self.stream_table,
        }
    }

    fn matches(&self, names: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        names.iter().any(|name| name.to_lowercase().contains(&filter))
    }

    /// The containers that are shown, in their order.
    pub(crate) fn containers(&self) -> Vec<&Container> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows: Vec<&Container> =
            now.containers.iter().filter(|row| self.matches(&[&row.name, &row.image])).collect();
        sort(&mut rows, &CONTAINERS, self.container_table, &Totals::of(now, self.amount));
        rows
    }

    /// The streams that are shown, in their order: those that ended are last.
    pub(crate) fn streams(&self) -> Vec<&Stream> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows: Vec<&Stream> =
            now.streams.iter().filter(|row| self.matches(&[&row.name, &row.container])).collect();
        sort(&mut rows, &STREAMS, self.stream_table, &Totals::of(now, self.amount));
        rows.sort_by_key(|row| row.ended());
        rows
    }
}

fn sort<R>(rows: &mut [&R], columns: &[Column<R>], table: TableState, totals: &Totals<'_>) {
    if let Some(column) = columns.get(table.column) {
        rows.sort_by(|a, b| column.order(a, b, totals, table.reversed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(sequence: u64, started: f64, watts: f64) -> Now {
        let time = Some(started + sequence as f64);
        let mut now = Now { time, sequence, started: Some(started), tick_seconds: Some(1.0), ..Now::default() };
        now.watts.host = Some(watts);
        now
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn state() -> State {
        State::new("http://127.0.0.1:9500", 1.0)
    }

    #[test]
    fn a_dead_probe_is_named_with_the_time_since_its_last_answer() {
        let mut state = state();
        state.fail("refused");
        assert_eq!(state.messages(seconds(0)), [Message::Failure("no answer: refused; trying again".into())]);
        state.answer(tick(1, 1000.0, 5.0), seconds(1));
        assert!(state.messages(seconds(2)).is_empty());
        state.fail("connection \u{1b}[31mrefused");
        let message = "no answer for 1 min 5 s: connection \u{fffd}[31mrefused; trying again";
        assert_eq!(state.messages(seconds(66)), [Message::Failure(message.into())]);
        // The graph goes on, and shows a gap.
        let (end, step) = state.graph_end(seconds(66)).unwrap();
        assert_eq!((end, step), (1066.0, 1.0));
        assert!(state.history.columns(end, step, 10).iter().all(Option::is_none));
        state.answer(tick(70, 1000.0, 6.0), seconds(70));
        assert!(state.messages(seconds(70)).is_empty());
    }

    #[test]
    fn a_restart_and_a_clock_that_was_set_are_said() {
        let mut state = state();
        state.answer(tick(9, 1000.0, 5.0), seconds(0));
        state.answer(tick(1, 2000.0, 5.0), seconds(4));
        let notice = "6 s ago: the probe was restarted; totals start from zero";
        assert!(state.messages(seconds(10)).contains(&Message::Notice(notice.into())));
        let mut back = tick(2, 2000.0, 5.0);
        back.time = Some(1500.0);
        state.answer(back, seconds(5));
        let notice = "0 s ago: the clock of the host was set back";
        assert!(state.messages(seconds(5)).contains(&Message::Notice(notice.into())));
        assert!(state.messages(seconds(66)).iter().all(|message| matches!(message, Message::Failure(_))));
    }

    #[test]
    fn totals_that_continue_do_not_start_from_zero() {
        let mut state = state();
        state.answer(tick(9, 1000.0, 5.0), seconds(0));
        state.answer(Now { totals_since: Some(1001.0), ..tick(1, 2000.0, 5.0) }, seconds(4));
        let notice = "0 s ago: the probe was restarted; totals continue";
        assert!(state.messages(seconds(4)).contains(&Message::Notice(notice.into())));
    }

    #[test]
    fn an_answer_without_a_new_tick_is_no_sample_and_gets_old() {
        let mut state = state();
        for at in 0..30 {
            state.answer(tick(3, 1000.0, 5.0), seconds(at));
        }
        assert_eq!(state.messages(seconds(30)), [Message::Failure("no new tick for 30 s".into())]);
        let samples = state.history.columns(1003.0, 1.0, 30);
        assert_eq!(samples.iter().flatten().count(), 1);
    }

    #[test]
    fn a_pause_holds_the_figures_and_not_the_history() {
        let mut state = state();
        state.answer(tick(1, 1000.0, 5.0), seconds(1));
        state.toggle_pause();
        state.answer(tick(2, 1000.0, 6.0), seconds(2));
        state.answer(tick(3, 1000.0, 7.0), seconds(3));
        assert_eq!(state.now.as_ref().unwrap().watts.host, Some(5.0));
        assert_eq!(state.history.columns(1003.0, 1.0, 3), [Some(5.0), Some(6.0), Some(7.0)]);
        state.toggle_pause();
        assert_eq!(state.now.as_ref().unwrap().watts.host, Some(7.0));
    }

    #[test]
    fn streams_that_ended_are_last_and_the_filter_ignores_case() {
        let mut state = state();
        let stream = |name: &str, ended: bool, watts: f64| Stream {
            name: Text::new(name),
            state: Text::new(if ended { "ended" } else { "running" }),
            watts: Some(watts),
            ..Stream::default()
        };
        let mut now = tick(1, 1000.0, 5.0);
        now.streams = vec![stream("News", true, 9.0), stream("news-2", false, 1.0), stream("sport", false, 2.0)];
        state.answer(now, seconds(1));
        let names = |state: &State| state.streams().iter().map(|row| row.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&state), ["sport", "news-2", "News"]);
        "NEWS".clone_into(&mut state.filter);
        assert_eq!(names(&state), ["news-2", "News"]);
    }
}
