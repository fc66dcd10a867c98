//! Data that changes without a new result file: carbon intensity, budgets and the state of sources.
//!
//! A thread of its own requests it, so that a page never waits for a source.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tracing::{info, warn};

use results::{
    cost::{
        Prices,
        budget::{self, BudgetStatus},
        carbon,
    },
    energy::{SourceError, database::Database, probe::Probe},
};

/// Interval between checks of the data sources.
const CHECK_SOURCES_EVERY: Duration = Duration::from_secs(15);
/// Interval between updates of the budgets.
const UPDATE_BUDGETS_EVERY: Duration = Duration::from_secs(60);

/// The newest live data.
#[derive(Clone, Default)]
pub struct LiveState {
    /// Carbon intensity of the grid; `None` until the first reading.
    pub carbon: Option<Arc<carbon::Carbon>>,
    /// Incremented with each reading of the carbon intensity.
    pub version: u64,
    pub budgets: Vec<BudgetStatus>,
    /// Error of the carbon intensity source.
    pub carbon_error: Option<String>,
    /// Names of the probes and the database with the reason if they are unavailable, else empty.
    pub sources: Vec<(String, String)>,
}

/// Requests carbon intensity, tracks budgets and checks the data sources.
pub struct LiveUpdater {
    /// HTTP source of the carbon intensity.
    pub carbon_source: Option<carbon::Api>,
    pub budgets: Vec<budget::BudgetSettings>,
    pub prices: Prices,
    pub database: Option<Database>,
    /// Probes by their names on the page.
    pub probes: Vec<(String, Probe)>,
    /// Cost of past hours, so that each is requested once.
    pub hours: budget::HourlyCosts,
}

impl LiveUpdater {
    /// Runs until `stop` is dropped.
    pub fn run(mut self, live: &ArcSwap<LiveState>, stop: &mpsc::Receiver<()>) {
        let (mut carbon_at, mut budgets_at, mut sources_at) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            let mut state = (**live.load()).clone();
            let mut changed = false;
            if self.carbon_source.is_some() && Instant::now() >= carbon_at {
                changed = true;
                let pause = self.request_carbon(&mut state);
                carbon_at = Instant::now() + pause;
            }
            if Instant::now() >= sources_at {
                changed = true;
                state.sources = self.check_sources();
                sources_at = Instant::now() + CHECK_SOURCES_EVERY;
            }
            if self.prices.carbon.as_mut().is_some_and(|carbon| carbon.is_outdated() && Arc::make_mut(carbon).reload())
            {
                changed = true;
                state.carbon.clone_from(&self.prices.carbon);
                state.version += 1;
            }
            if !self.budgets.is_empty() && Instant::now() >= budgets_at {
                changed = true;
                self.update_budgets(&mut state);
                budgets_at = Instant::now() + UPDATE_BUDGETS_EVERY;
            }
            if changed {
                live.store(Arc::new(state));
            }
            if !matches!(stop.recv_timeout(Duration::from_secs(1)), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Requests the carbon intensity; returns the pause before the next request.
    fn request_carbon(&mut self, state: &mut LiveState) -> Duration {
        let Some(source) = &self.carbon_source else { return Duration::ZERO };
        match source.fetch(Timestamp::now()) {
            Ok(reading) => {
                if state.carbon_error.take().is_some() {
                    info!("carbon intensity is available again");
                }
                if let Some(carbon) = &mut self.prices.carbon {
                    Arc::make_mut(carbon).add(reading);
                    state.carbon = Some(carbon.clone());
                }
                state.version += 1;
                source.every
            }
            Err(error) => {
                if state.carbon_error.as_ref() != Some(&error) {
                    warn!("no carbon intensity: {error}");
                }
                state.carbon_error = Some(error);
                source.every.min(Duration::from_secs(60))
            }
        }
    }

    /// Computes the spending of each budget, and logs those that cannot be tracked.
    fn update_budgets(&mut self, state: &mut LiveState) {
        let database = self.database.as_ref();
        let statuses = budget::evaluate(&self.budgets, &self.prices, database, Timestamp::now(), &mut self.hours);
        for new in &statuses {
            let old = state.budgets.iter().find(|old| old.name == new.name);
            if let Err((_, why)) = &new.spending
                && old.is_none_or(|old| old.spending != new.spending)
            {
                warn!("budget {} is not tracked: {why}", new.name);
            }
        }
        state.budgets = statuses;
    }

    /// Names of the probes and the database with the reason if they are unavailable, else empty.
    fn check_sources(&self) -> Vec<(String, String)> {
        let reason = |result: Result<(), SourceError>| match result {
            Ok(()) => String::new(),
            Err(SourceError::Permanent(reason, _)) => reason,
            Err(_) => "absent".to_owned(),
        };
        let probes = self.probes.iter().map(|(name, probe)| (name.clone(), reason(probe.alive())));
        let database = self.database.iter().map(|database| ("database".to_owned(), reason(database.alive())));
        probes.chain(database).collect()
    }
}
