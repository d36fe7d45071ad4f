//! What a run is: its seed, and how long it lasts. `make chaos` sets the variables; without any
//! it is the short run that is part of the suite.

use std::time::{Duration, Instant};

/// Kills of the host in one round, after which everything is checked at rest and begun again on
/// empty folders. A stream that grew for hours would make each rebuild take minutes, and so fewer
/// kills fall into one.
const KILLS_IN_ROUND: u64 = 30;

/// Kills of the host in the short run, and how long they may take: what is checked at rest comes on
/// top of it.
const KILLS_SHORT: u64 = 30;
const CHAOS_SHORT: Duration = Duration::from_secs(80);
/// How long the kills of a round may take in a long run.
const CHAOS_LONG: Duration = Duration::from_secs(600);
/// Seed of the short run: what a change is checked by should not differ from one run to the next.
/// Other seeds are for long runs.
const SHORT_SEED: u64 = 311_395_774;

/// How long a run lasts.
#[derive(Debug)]
pub struct Plan {
    /// Seed of the first round; each further round has the next one.
    pub seed: u64,
    /// Kills of the host in all, if not as many as fit into the time.
    kills: Option<u64>,
    /// Whether one round is all there is.
    is_short: bool,
    /// How long things break in a round, at most.
    pub chaos_of_round: Duration,
    /// When the last round may begin.
    until: Option<Instant>,
}

impl Plan {
    /// The plan that `CHAOS_SEED`, `CHAOS_KILLS` and `CHAOS_MINUTES` describe.
    pub fn from_environment() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(
                text.parse::<u64>()
                    .unwrap_or_else(|_| panic!("{name}={text} is no number")),
            )
        };
        let minutes = number("CHAOS_MINUTES");
        let kills = number("CHAOS_KILLS").or_else(|| minutes.is_none().then_some(KILLS_SHORT));
        let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
        let is_short = minutes.is_none() && number("CHAOS_KILLS").is_none();
        let chaos_of_round = if is_short { CHAOS_SHORT } else { CHAOS_LONG };
        let drawn = || {
            if is_short {
                SHORT_SEED
            } else {
                fastrand::u64(1..1_000_000_000)
            }
        };
        let seed = number("CHAOS_SEED").unwrap_or_else(drawn);
        Self {
            seed,
            kills,
            is_short,
            chaos_of_round,
            until,
        }
    }

    /// How many kills the next round has, after this many; 0 at the end.
    pub fn kills_of_next_round(&self, done: u64) -> u64 {
        if self.until.is_some_and(|until| Instant::now() >= until) || (self.is_short && done > 0) {
            return 0;
        }
        self.kills.map_or(KILLS_IN_ROUND, |kills| {
            kills.saturating_sub(done).min(KILLS_IN_ROUND)
        })
    }
}
