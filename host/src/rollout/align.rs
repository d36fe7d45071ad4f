//! Holding two runners at one position.
//!
//! The one that serves stops at a batch boundary, the other one goes on to exactly that position. Where the other one is
//! ahead already it stops where it is, and the one that serves comes up to it. Both are durable when they stand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use crate::pipeline::Ceiling;
use crate::runner::Runner;

/// How long both may take to make durable what they have in memory before anything is held, so that little is left.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Two runners that stand still. Dropping it lets both go on.
#[derive(Debug)]
pub struct Aligned {
    /// The position of the one that is to take over.
    pub position: u64,
    /// The position of the one that serves; another one only where that can't move, as it is paused or failed.
    pub serving: u64,
    began: Instant,
    runners: [Arc<Runner>; 2],
}

/// They did not come to stand together in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "the candidate (at {candidate}) did not meet the active generation (at {serving}) within {held:?}; applying was not \
     held any longer"
)]
pub struct Missed {
    /// Position of the one that serves.
    pub serving: u64,
    /// Position of the other one.
    pub candidate: u64,
    /// How long was tried.
    pub held: Duration,
}

impl Aligned {
    /// For how long they have been held.
    pub fn held(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        for runner in &self.runners {
            runner.set_ceiling(Ceiling::None);
        }
    }
}

/// Brings both to stand at one position, held for no longer than `at_most`.
pub async fn align(serving: &Arc<Runner>, candidate: &Arc<Runner>, at_most: Duration) -> Result<Aligned, Missed> {
    tokio::join!(serving.flush_soon(FLUSH_MAX), candidate.flush_soon(FLUSH_MAX));
    let began = Instant::now();
    // From here on whatever happens lets them go.
    let mut aligned = Aligned { position: 0, serving: 0, began, runners: [Arc::clone(serving), Arc::clone(candidate)] };
    let deadline = tokio::time::Instant::from_std(began + at_most);
    let meet = async {
        let epoch = serving.set_ceiling(Ceiling::Position(0));
        aligned.serving = serving.stands(epoch).await;
        aligned.position = come_up(candidate, serving, aligned.serving).await;
        if aligned.position > aligned.serving && serving.is_running() {
            aligned.serving = if has_nothing_between(serving, candidate) {
                aligned.position
            } else {
                let epoch = serving.set_ceiling(Ceiling::Position(aligned.position));
                serving.stands(epoch).await
            };
        }
        aligned.position >= aligned.serving
    };
    match timeout_at(deadline, meet).await {
        Ok(true) => Ok(aligned),
        Ok(false) | Err(_) => {
            Err(Missed { serving: serving.position(), candidate: candidate.position(), held: began.elapsed() })
        }
    }
}

/// Brings a candidate to stand where the one that serves does, or where it is already beyond; where.
///
/// A reader that the server filters learns only every second how far it has passed the events of others. Where the one
/// that serves has applied nothing behind the candidate's position, the candidate need not wait for that.
async fn come_up(candidate: &Arc<Runner>, serving: &Arc<Runner>, position: u64) -> u64 {
    if candidate.position() < position && has_nothing_between(candidate, serving) {
        let epoch = candidate.set_ceiling(Ceiling::Position(0));
        let stands_at = candidate.stands(epoch).await;
        if stands_at >= position {
            return stands_at;
        }
        // One that has no state at all has nothing to note a position beside.
        let advanced = has_nothing_between(candidate, serving) && candidate.advance(position).await.is_ok();
        if advanced && candidate.position() >= position {
            return position;
        }
    }
    let epoch = candidate.set_ceiling(Ceiling::Position(position));
    candidate.stands(epoch).await
}

/// Whether what one lacks of the other's position would change nothing: both apply the same events of the same stream,
/// and the other one has applied none that the one has not. Where the other one took over a state that was built from
/// other subjects, it never saw what came of its own before that: it proves nothing about those.
fn has_nothing_between(behind: &Runner, ahead: &Runner) -> bool {
    let position = behind.position();
    behind.applies_like(ahead)
        && behind.counts_like(ahead)
        && ahead.last_event() <= position
        // What it left out is noted by each state as it passes it.
        && ahead.store().is_some_and(|store| {
            store.exceptions().last_key_value().is_none_or(|(left_out, _)| *left_out <= position)
        })
        && ahead.program().subjects_from <= position
}
