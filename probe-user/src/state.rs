//! What can be said of a source: usable, or why not.
//!
//! Absent, denied and broken are three different things with three different remedies, and none of them is a zero.

use std::{fmt, io};

/// Why a source gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The hardware, kernel feature or peer is not there.
    Absent,
    /// It is there, and this process may not use it.
    Denied,
    /// It is there and open to us, but what it gives cannot be used.
    Broken,
}

impl Reason {
    /// The value of the label `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Broken => "broken",
        }
    }

    /// What an error of the operating system says about the thing that was asked.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Broken,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A source that cannot be used: the state, and one line that says what, why and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Unavailable {
    /// Which of the three.
    pub reason: Reason,
    /// What was tried, why it failed, what would help.
    pub detail: String,
}

impl Unavailable {
    /// One of the three, with its line.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// How one source stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `powercap`, `model`, `cpu`, `docker`.
    pub source: &'static str,
    /// Usable, or the reason why not.
    pub state: Result<(), Unavailable>,
    /// What a usable source offers, for people: "2 packages, 6 zones".
    pub detail: String,
    /// True when the user's configuration counts on it: `/ready` fails without it.
    pub wanted: bool,
}

impl SourceState {
    /// Why it is not usable, with its name.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        self.state.as_ref().err().map(|why| format!("{}: {why}", self.source))
    }
}

/// Puts a source into a state, and says so once when it changes.
pub fn set_state(sources: &mut [SourceState], name: &str, state: Result<(), Unavailable>) {
    let Some(source) = sources.iter_mut().find(|source| source.source == name) else { return };
    if source.state == state {
        return;
    }
    // The line may hold a figure that changes with every tick: it is said anew when the reason is another.
    let reason = |state: &Result<(), Unavailable>| state.as_ref().err().map(|why| why.reason);
    match &state {
        Ok(()) => tracing::info!("{name}: usable again"),
        Err(why) if reason(&source.state) != Some(why.reason) => tracing::warn!("{name}: {why}"),
        Err(_) => {}
    }
    source.state = state;
}

/// Brings a source up to date that is opened while the probe runs, and may be found at any time. One that was usable once is wanted.
pub fn set_found(sources: &mut Vec<SourceState>, name: &'static str, state: Result<(), Unavailable>, detail: String) {
    let at = sources.iter().position(|source| source.source == name);
    let Some(source) = at.and_then(|at| sources.get_mut(at)) else {
        match &state {
            Ok(()) => tracing::info!("{name}: usable, {detail}"),
            Err(why) => tracing::info!("{name}: {why}"),
        }
        let wanted = state.is_ok();
        sources.push(SourceState { source: name, state, detail, wanted });
        return;
    };
    source.wanted |= state.is_ok();
    source.detail = detail;
    set_state(sources, name, state);
}
