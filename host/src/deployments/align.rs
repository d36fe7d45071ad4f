//! Aligning two runners: holding them at one position.
//!
//! The active runner stops at a batch boundary, and the other one continues to exactly that
//! position. If the other one is already ahead, it stops where it is, and the active one catches
//! up. Both are durable when they stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::Error;
use crate::pipeline::Ceiling;
use crate::runner::Runner;
use crate::state::Snapshot;

/// How long both may take to flush before anything is held, so that little is left to flush during
/// the hold.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Two runners that are held. Dropping it releases both.
#[derive(Debug)]
pub(crate) struct Aligned {
    /// The position of the runner that should take over.
    pub position: u64,
    /// The position of the active runner; it differs only if that runner can't move, because it is
    /// paused or failed.
    pub serving: u64,
    began: Instant,
    runners: [Arc<Runner>; 2],
}

/// They did not stop at one position in time.
#[derive(Debug, thiserror::Error)]
#[error("{}; applying was not held any longer", self.because())]
pub(crate) struct Missed {
    /// Position of the active runner.
    pub serving: u64,
    /// Position of the other one.
    pub candidate: u64,
    /// How long the attempt took.
    pub held: Duration,
    /// Which one was still at work.
    pub moves: &'static str,
}

impl Missed {
    fn because(&self) -> String {
        let Self {
            serving,
            candidate,
            held,
            moves,
        } = self;
        let within = format!("within {} ms", held.as_millis());
        if candidate != serving {
            return format!(
                "the candidate (at {candidate}) did not reach the active generation (at \
                 {serving}) {within}"
            );
        }
        // A position moves only at the end of what a runner does.
        format!(
            "the candidate and the active generation are both at {serving}, but the {moves} did \
             not stop there {within}: it was in the middle of a batch, or applied parked events \
             again"
        )
    }
}

impl Aligned {
    /// How long they have been held.
    pub(crate) fn held(&self) -> Duration {
        self.began.elapsed()
    }

    /// Both states at one position.
    pub(crate) fn snapshots(
        &self,
        serving: &Runner,
        runner: &Runner,
    ) -> Result<(Snapshot, Snapshot), Error> {
        // They differ only if the active runner cannot move; then there is nothing equal to compare.
        if self.serving != self.position {
            return Err(Error::Conflict(format!(
                "cannot compare: the active generation does not progress at {}, the candidate is at \
                 {}; resume the deployment first",
                self.serving, self.position
            )));
        }
        match (serving.store(), runner.store()) {
            (Some(ours), Some(theirs)) => Ok((ours.snapshot(), theirs.snapshot())),
            _ => Err(Error::NotOpen(
                "cannot compare: a state is still opening; try again".to_owned(),
            )),
        }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // Also runs if the caller's future is dropped in the middle, so no runner stays held.
        for runner in &self.runners {
            runner.set_ceiling(Ceiling::None);
        }
    }
}

/// Holds both runners at one position, for at most `at_most`.
pub(crate) async fn align(
    serving: &Arc<Runner>,
    candidate: &Arc<Runner>,
    at_most: Duration,
) -> Result<Aligned, Missed> {
    tokio::join!(
        serving.flush_soon(FLUSH_MAX),
        candidate.flush_soon(FLUSH_MAX)
    );
    let began = Instant::now();
    // The flushes of up to `FLUSH_MAX` do not count as held: both still apply meanwhile.
    // From here on, both are released no matter what happens.
    let mut aligned = Aligned {
        position: 0,
        serving: 0,
        began,
        runners: [Arc::clone(serving), Arc::clone(candidate)],
    };
    let deadline = tokio::time::Instant::from_std(began + at_most);
    let meet = async {
        // Every position is past 0, so the active runner stops at its next batch boundary.
        let change = serving.set_ceiling(Ceiling::Position(0));
        aligned.serving = serving.held_at(change).await;
        aligned.position = come_up(candidate, serving, aligned.serving).await;
        // The candidate was ahead from the start, so the active runner catches up.
        if aligned.position > aligned.serving && serving.is_running() {
            aligned.serving = if has_nothing_between(serving, candidate) {
                aligned.position
            } else {
                let change = serving.set_ceiling(Ceiling::Position(aligned.position));
                serving.held_at(change).await
            };
        }
        aligned.position >= aligned.serving
    };
    // If time is up, dropping `aligned` lifts both ceilings.
    match timeout_at(deadline, meet).await {
        Ok(true) => Ok(aligned),
        Ok(false) | Err(_) => Err(Missed {
            // Before `aligned` is dropped, which lets both move again.
            moves: if serving.is_held() {
                "candidate"
            } else {
                "active generation"
            },
            serving: serving.position(),
            candidate: candidate.position(),
            held: began.elapsed(),
        }),
    }
}

/// Brings a candidate to the position of the active runner, or finds that it is already past it;
/// returns the position.
///
/// If the server filters for a reader, the reader learns only once per second how far it has passed
/// the events of others. If the active runner has applied nothing after the candidate's position,
/// the candidate need not wait for that.
async fn come_up(candidate: &Arc<Runner>, serving: &Arc<Runner>, position: u64) -> u64 {
    if candidate.position() < position && has_nothing_between(candidate, serving) {
        // `advance` changes the position only of a runner that is held.
        let change = candidate.set_ceiling(Ceiling::Position(0));
        let stands_at = candidate.held_at(change).await;
        if stands_at >= position {
            return stands_at;
        }
        // A state without anything applied has nothing to commit a position with.
        // Looked at again: the active runner may have applied an event while the candidate stopped.
        let advanced =
            has_nothing_between(candidate, serving) && candidate.advance(position).await.is_ok();
        if advanced && candidate.position() >= position {
            // One that repeats another state may have to release or drop parked events at exactly
            // this position: it does so before it is held again.
            let change = candidate.set_ceiling(Ceiling::Position(0));
            return candidate.held_at(change).await;
        }
    }
    // The ordinary way: fold up to the active runner's position.
    let change = candidate.set_ceiling(Ceiling::Position(position));
    candidate.held_at(change).await
}

/// Whether the candidate lacks nothing although its position is lower: both apply the same events
/// of the same stream, and the active one has applied none that the candidate has not. If the
/// active one inherited a state with other subjects, it never saw earlier events of its own
/// subjects, and proves nothing about those.
fn has_nothing_between(behind: &Runner, ahead: &Runner) -> bool {
    // The position is read before `last_event` of the other: a race can only make the answer no.
    let position = behind.position();
    behind.applies_same_events(ahead)
        && behind.is_of_same_stream(ahead)
        && ahead.last_event() <= position
        // Each state records what it skips as it passes it.
        && ahead.store().is_some_and(|store| {
            store.exceptions().last_key_value().is_none_or(|(left_out, _)| *left_out <= position)
        })
        && ahead.program().subjects_from <= position
}
