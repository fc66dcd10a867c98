//! The state of a source: available, absent, denied or broken.
//!
//! The last three have different remedies, and none of them is a reading of zero.

use std::{fmt, io};

/// Detail of a source whose first reading has not ended.
pub const NOT_READ: &str = "not read yet";

/// Why a source is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The hardware, kernel feature or peer does not exist.
    Absent,
    /// It exists, and this process may not use it.
    Denied,
    /// It exists and is accessible, but its data cannot be used.
    Broken,
}

impl Reason {
    /// Value of the label `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Broken => "broken",
        }
    }

    /// The reason of an error of the operating system.
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

/// An unavailable source: the reason, and one line with the attempt, the error and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Unavailable {
    pub reason: Reason,
    /// The attempt, the error, the remedy.
    pub detail: String,
}

impl Unavailable {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The current state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `powercap`, `model`, `cpu`, `docker`.
    pub source: &'static str,
    /// Available, or the reason why not.
    pub state: Result<(), Unavailable>,
    /// Content of an available source, for people: "2 packages, 6 zones".
    pub detail: String,
    /// True when the configuration requires it: `/ready` fails without it.
    pub wanted: bool,
}

impl SourceState {
    /// An available source with its details, or an unavailable one.
    #[must_use]
    pub fn new(source: &'static str, state: Result<String, Unavailable>, wanted: bool) -> Self {
        let (state, detail) = match state {
            Ok(detail) => (Ok(()), detail),
            Err(why) => (Err(why), String::new()),
        };
        Self { source, state, detail, wanted }
    }

    /// `usable`, or the reason why it is not.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.state.as_ref().map_or_else(|why| why.reason.as_str(), |()| "usable")
    }

    /// Content of an available source, or the attempt, the error and the remedy.
    #[must_use]
    pub fn text(&self) -> &str {
        self.state.as_ref().map_or_else(|why| &*why.detail, |()| &*self.detail)
    }

    /// The name of the source, and why it is unavailable.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.state.as_ref().err().map(|why| format!("{}: {why}", self.source))
    }
}

/// Logs the state of every source.
pub fn log_sources(sources: &[SourceState]) {
    for source in sources {
        match &source.state {
            Ok(()) => tracing::info!("{}: usable, {}", source.source, source.detail),
            Err(why) => tracing::warn!("{}: {why}", source.source),
        }
    }
}

/// Updates the state of a source, and logs a change once.
pub fn update_state(sources: &mut [SourceState], name: &str, state: Result<(), Unavailable>) {
    let Some(source) = sources.iter_mut().find(|source| source.source == name) else { return };
    if source.state == state {
        return;
    }
    // The line may contain a figure that changes with every tick, so it is logged again only with
    // another reason.
    let reason = |state: &Result<(), Unavailable>| state.as_ref().err().map(|why| why.reason);
    let first = source.state.as_ref().is_err_and(|why| why.detail == NOT_READ);
    match &state {
        Ok(()) if first => tracing::info!("{name}: usable"),
        Ok(()) => tracing::info!("{name}: usable again"),
        Err(why) if first || reason(&source.state) != Some(why.reason) => tracing::warn!("{name}: {why}"),
        Err(_) => {}
    }
    source.state = state;
}

/// Updates the state of a source that is opened while the probe runs, and adds it when it is new. A
/// source that was available once is wanted.
pub fn update_or_add(
    sources: &mut Vec<SourceState>,
    name: &'static str,
    state: Result<(), Unavailable>,
    detail: String,
) {
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
    update_state(sources, name, state);
}
