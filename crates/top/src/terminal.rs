//! The loop that reads keys and answers, and the modes of the terminal.
//!
//! Answers come from a thread of their own, because a request to a dead probe takes seconds, in
//! which keys must work. The modes are restored at the end, after an error and after a panic; a
//! caller that ends the process otherwise calls [`restore`].

use std::{
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use cli::{colour::Colours, terminal::View};
use ratatui::{
    DefaultTerminal,
    crossterm::{
        cursor::Show,
        event::{self, Event},
        execute,
    },
};

use crate::{
    keys::{Action, press},
    now::Now,
    plain,
    source::{Source, SourceError},
    state::State,
    view,
};

/// Longest wait for a key before answers and the request to stop are looked at.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// Time after which the screen is drawn without a change: it contains times.
const REDRAW: Duration = Duration::from_secs(1);

/// Why the view ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The terminal cannot be read or written.
    #[error("cannot use the terminal: {0}; --once prints one table")]
    Terminal(#[from] io::Error),
    /// There are no answers any longer, or none when one was needed.
    #[error("{0}")]
    Source(String),
}

/// True if standard output is a terminal with cursor control, and colours are not refused.
#[must_use]
pub fn is_interactive() -> bool {
    View::stdout().colours != Colours::NONE
}

/// One answer as text, or unchanged as JSON.
///
/// # Errors
/// When there is no answer.
pub fn print_once(source: &mut dyn Source, json: bool) -> Result<String, TopError> {
    let answer = source.answer().map_err(|error| TopError::Source(format!("{}: {error}", source.place())))?;
    let now = Now::parse(&answer).map_err(|error| TopError::Source(format!("{}: {error}", source.place())))?;
    if json {
        return Ok(answer.trim_end().to_owned() + "\n");
    }
    let mut state = State::new(&source.place(), 1.0);
    state.answer(now, Duration::ZERO);
    Ok(plain::print(&state))
}

/// Shows the answers of `source`, one per `interval`, until a key quits or `stop` is set.
///
/// # Errors
/// When the terminal cannot be used, or the source has ended.
pub fn run(source: Box<dyn Source>, interval: Duration, stop: &AtomicBool) -> Result<(), TopError> {
    let mut state = State::new(&source.place(), interval.as_secs_f64());
    let (sender, answers) = mpsc::channel();
    // It is not joined, because it may be in a request. It ends when it finds the channel closed.
    thread::Builder::new().name("answers".into()).spawn(move || ask(source, interval, &sender))?;
    let mut screen = Screen::open()?;
    let (start, mut drawn) = (Instant::now(), None::<Instant>);
    while !stop.load(Ordering::Relaxed) {
        let changed = take_answers(&mut state, &answers, start.elapsed())?;
        if changed || drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            drawn = Some(Instant::now());
            screen.terminal.draw(|frame| view::draw(frame, &mut state, start.elapsed()))?;
        }
        if !event::poll(KEY_WAIT)? {
            continue;
        }
        // Keys, and a changed size, are shown at once.
        drawn = None;
        if let Event::Key(key) = event::read()? {
            match press(&mut state, key) {
                Action::Quit => break,
                Action::Redraw => {
                    let size = screen.terminal.size()?;
                    screen.terminal.resize(size.into())?;
                }
                Action::Draw => {}
            }
        }
    }
    Ok(())
}

/// Requests answers until the receiver has gone or the source has ended.
fn ask(mut source: Box<dyn Source>, interval: Duration, answers: &mpsc::Sender<Result<String, SourceError>>) {
    loop {
        let due = Instant::now() + interval;
        let answer = source.answer();
        let ended = matches!(answer, Err(SourceError::Ended(_)));
        if answers.send(answer).is_err() || ended {
            return;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Takes the answers that have come; returns whether there was one.
fn take_answers(
    state: &mut State,
    answers: &Receiver<Result<String, SourceError>>,
    at: Duration,
) -> Result<bool, TopError> {
    let mut changed = false;
    loop {
        match answers.try_recv() {
            Ok(Ok(answer)) => match Now::parse(&answer) {
                Ok(now) => state.answer(now, at),
                Err(error) => state.fail(&error.to_string()),
            },
            Ok(Err(SourceError::Unavailable(why))) => state.fail(&why),
            Ok(Err(SourceError::Ended(why))) => return Err(TopError::Source(why)),
            Err(TryRecvError::Empty) => return Ok(changed),
            Err(TryRecvError::Disconnected) => {
                return Err(TopError::Source("the thread that requests answers has ended".to_owned()));
            }
        }
        changed = true;
    }
}

/// The terminal in raw mode with the alternate screen.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> io::Result<Self> {
        // Also sets a panic hook that restores the terminal before the message is printed.
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The panic hook has done it; a second time would move the cursor into the message.
        if !thread::panicking() {
            restore();
        }
    }
}

/// Leaves the alternate screen and raw mode, and shows the cursor. For a caller that ends the
/// process while [`run`] has not returned.
pub fn restore() {
    // A terminal that has gone needs nothing.
    let _ = ratatui::try_restore();
    let _ = execute!(io::stdout(), Show);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Answers(Vec<Result<String, SourceError>>);

    impl Source for Answers {
        fn place(&self) -> String {
            "test".to_owned()
        }

        fn answer(&mut self) -> Result<String, SourceError> {
            self.0.pop().unwrap_or_else(|| Err(SourceError::Ended("the end".to_owned())))
        }
    }

    #[test]
    fn one_answer_is_printed_as_it_came_or_as_text() {
        let answer = || Ok("{\"time\": 1700000000, \"host\": \"edge-7\"}".to_owned());
        let json = print_once(&mut Answers(vec![answer()]), true).unwrap();
        assert_eq!(json, "{\"time\": 1700000000, \"host\": \"edge-7\"}\n");
        assert!(print_once(&mut Answers(vec![answer()]), false).unwrap().starts_with("edge-7  test"));
        let error = print_once(&mut Answers(vec![Ok("<html>".to_owned())]), true).unwrap_err().to_string();
        assert!(error.starts_with("test: the answer is not that of a probe"), "{error}");
        assert_eq!(print_once(&mut Answers(Vec::new()), false).unwrap_err().to_string(), "test: the end");
    }

    #[test]
    fn a_wrong_answer_is_a_failure_and_the_end_of_the_source_an_error() {
        let (sender, answers) = mpsc::channel();
        ask(Box::new(Answers(vec![Ok("{}".to_owned())])), Duration::ZERO, &sender);
        let mut state = State::new("test", 1.0);
        let error = take_answers(&mut state, &answers, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "the end");
        assert!(!state.messages(Duration::ZERO).is_empty());
    }
}
