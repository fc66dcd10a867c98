//! What changes by itself: carbon intensity, budgets, and who can be reached. Asked for on a thread of its own, so that a page never waits for it.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    cost::{Prices, budget, budget::Standing, carbon},
    energy::{Refused, database::Database, probe::Probe},
};

/// How often whoever can be asked is looked after.
const REACH_EVERY: Duration = Duration::from_secs(15);
/// How often budgets are followed.
const FOLLOW_EVERY: Duration = Duration::from_secs(60);

/// What changes by itself.
#[derive(Clone, Default)]
pub struct Live {
    /// Of the grid, as it was learnt; `None` until then.
    pub carbon: Option<Arc<carbon::Carbon>>,
    /// Grows with each figure that was learnt.
    pub version: u64,
    /// How the budgets stand.
    pub budgets: Vec<Standing>,
    /// Why the source of carbon intensity does not serve.
    pub trouble: Option<String>,
    /// Probes and the database: their names, and why they do not serve.
    pub reached: Vec<(String, String)>,
}

/// Asks for carbon intensity, follows budgets, and looks after whoever can be asked.
pub struct Follower {
    /// The page of carbon intensity.
    pub source: Option<carbon::Source>,
    /// Budgets.
    pub budgets: Vec<budget::Settings>,
    /// What hours cost.
    pub prices: Prices,
    /// Where the counters are.
    pub database: Option<Database>,
    /// Probes by the names under which the page has them.
    pub probes: Vec<(String, Probe)>,
    /// What past hours cost, so that each is asked for once.
    pub hours: budget::Known,
}

impl Follower {
    /// Runs until `stop` says so.
    pub fn run(mut self, live: &ArcSwap<Live>, stop: &mpsc::Receiver<()>) {
        let (mut ask_at, mut follow_at, mut reach_at) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            let mut now = (**live.load()).clone();
            let mut changed = false;
            if let Some(source) = &self.source
                && Instant::now() >= ask_at
            {
                changed = true;
                match source.ask(Timestamp::now()) {
                    Ok(reading) => {
                        if now.trouble.take().is_some() {
                            info!("carbon intensity is known again");
                        }
                        if let Some(carbon) = &mut self.prices.carbon {
                            Arc::make_mut(carbon).learn(reading);
                            now.carbon = Some(carbon.clone());
                        }
                        now.version += 1;
                        ask_at = Instant::now() + source.every;
                    }
                    Err(why) => {
                        if now.trouble.as_ref() != Some(&why) {
                            warn!("no carbon intensity: {why}");
                        }
                        now.trouble = Some(why);
                        ask_at = Instant::now() + source.every.min(Duration::from_secs(60));
                    }
                }
            }
            if Instant::now() >= reach_at {
                changed = true;
                now.reached = self.reach();
                reach_at = Instant::now() + REACH_EVERY;
            }
            if self.prices.carbon.as_mut().is_some_and(|carbon| carbon.is_old() && Arc::make_mut(carbon).read_again()) {
                changed = true;
                now.carbon.clone_from(&self.prices.carbon);
                now.version += 1;
            }
            if !self.budgets.is_empty() && Instant::now() >= follow_at {
                changed = true;
                let database = self.database.as_ref();
                let standing = budget::follow(&self.budgets, &self.prices, database, Timestamp::now(), &mut self.hours);
                for (old, new) in standing.iter().map(|new| (now.budgets.iter().find(|old| old.name == new.name), new))
                {
                    if let Err((_, why)) = &new.followed
                        && old.is_none_or(|old| old.followed != new.followed)
                    {
                        warn!("budget {} is not followed: {why}", new.name);
                    }
                }
                now.budgets = standing;
                follow_at = Instant::now() + FOLLOW_EVERY;
            }
            if changed {
                live.store(Arc::new(now));
            }
            if !matches!(stop.recv_timeout(Duration::from_secs(1)), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Looks after whoever can be asked.
    fn reach(&self) -> Vec<(String, String)> {
        let word = |answer: Result<(), Refused>| match answer {
            Ok(()) => String::new(),
            Err(Refused::Never(reason, _)) => reason,
            Err(_) => "absent".to_owned(),
        };
        let probes = self.probes.iter().map(|(name, probe)| (name.clone(), word(probe.alive())));
        let database = self.database.iter().map(|database| ("database".to_owned(), word(database.alive())));
        probes.chain(database).collect()
    }
}
