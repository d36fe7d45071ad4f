//! Waits for what a runner does.

use std::time::Duration;

use tokio::sync::watch;

use super::Runner;
use crate::failure::Failure;
use crate::pipeline::Desired;
use crate::position::Checkpoint;
use crate::progress::{DeploymentState, Now};
use crate::state::Store;

/// Attempts after which a state that can't be opened counts as lost.
const LOST_ATTEMPTS: u32 = 3;
/// Shortest time between two checks of figures that change with each batch.
const FIGURES_INTERVAL: Duration = Duration::from_millis(20);

impl Runner {
    /// Whether its state cannot be opened, so that it can neither be read nor held at a position.
    pub fn is_lost(&self) -> bool {
        let is_lost = |failure: Failure| failure.is_of_state() && failure.attempts >= LOST_ATTEMPTS;
        self.store().is_none() && self.now().failure.is_some_and(is_lost)
    }

    /// Whether it stopped because its stream was made again: its positions are of a history that is
    /// gone.
    pub fn has_diverged(&self) -> bool {
        let failure = self.now().failure;
        failure.is_some_and(|failure| failure.is_of_diverged_source())
    }

    /// Waits until the position passes `after`. Cancel-safe: it only observes.
    pub async fn advanced(&self, after: u64) {
        advanced(self.stores(), after).await;
    }

    /// Waits until a check finds something. It is made at once, and again at each milestone of the
    /// progress and each change of the source or the open state. Cancel-safe: it only observes.
    pub async fn until<T>(&self, mut find: impl FnMut(&Self) -> Option<T>) -> T {
        let (mut stores, mut source) = (self.stores(), self.shared.source_status.subscribe());
        loop {
            // Before the check, so that a change during it is not missed.
            let milestone = self.shared.progress.milestone();
            stores.mark_unchanged();
            source.mark_unchanged();
            if let Some(found) = find(self) {
                return found;
            }
            // Whatever comes first only makes the next check due. A sender that is gone says nothing
            // more, so its arm is left out.
            tokio::select! {
                () = milestone => {}
                Ok(()) = stores.changed() => {}
                Ok(()) = source.changed() => {}
            }
        }
    }

    /// The same for a check of figures that change with each batch: it is also made after batches,
    /// but not after each of them. Cancel-safe: it only observes.
    pub async fn until_figures<T>(&self, mut find: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            // Read before both arms, so that a batch during the first check is noticed.
            let position = self.position();
            let batch = async {
                tokio::join!(
                    self.advanced(position),
                    tokio::time::sleep(FIGURES_INTERVAL)
                )
            };
            // First what may have been found without a batch; a batch only makes another check due.
            tokio::select! {
                biased;
                found = self.until(&mut find) => return found,
                _ = batch => {}
            }
        }
    }

    /// Waits until it has a view that reflects at least a sequence. Cancel-safe: it only observes.
    pub async fn wait_until_answering(&self, at_least: Option<u64>) {
        loop {
            // The same here.
            let position = self.position();
            tokio::select! {
                biased;
                () = self.until(|runner| runner.try_snapshot(at_least).is_ok().then_some(())) => return,
                () = self.advanced(position) => {}
            }
        }
    }

    /// Waits until its module can't continue on its own. Cancel-safe: it only observes.
    pub async fn wait_until_stopped(&self) {
        self.until(|runner| runner.now().has_stopped().then_some(()))
            .await;
    }

    /// Waits briefly until the last request has taken effect; `before` is the progress before the
    /// request. A running guest call ends first. Cancel-safe: it only observes.
    pub async fn wait_until_settled(&self, before: &Now, at_most: Duration) {
        let settled = self.until(|runner| {
            let now = runner.now();
            // A pause is over when the thread rests, and not when it is asked for.
            let is_settled = match *runner.shared.control.borrow() {
                Desired::Pause => now.state == DeploymentState::Paused,
                Desired::Run(_) => now.starts > before.starts,
                Desired::Stop => true,
            };
            is_settled.then_some(())
        });
        let _ = tokio::time::timeout(at_most, settled).await;
    }

    /// Waits briefly until the last requested module has applied an event, found nothing to apply,
    /// or failed. Ends early if its source turns out to be unreachable, and waits for the
    /// confirmation of a second check. Cancel-safe: it only observes.
    pub async fn wait_until_begun(&self, at_most: Duration) {
        let begun = self.until(|runner| {
            let now = runner.now();
            let source = runner.source_status();
            let is_away = source.is_trouble() && !source.in_doubt;
            let is_known = now.begun
                || matches!(
                    now.state,
                    DeploymentState::Failed | DeploymentState::Paused | DeploymentState::Stopping
                )
                || now.failure.is_some()
                || (now.has_started() && is_away);
            is_known.then_some(())
        });
        let _ = tokio::time::timeout(at_most, begun).await;
    }

    /// Makes everything applied so far durable, and waits briefly for that. Cancel-safe.
    pub async fn flush_soon(&self, at_most: Duration) {
        // Without an open state nothing can be made durable; the caller finds out by its own means.
        let Some(store) = self.store() else { return };
        let (wanted, mut checkpoints) = (store.position(), store.checkpoints());
        // It may have to be reopened, which ends the wait.
        drop(store);
        // A change of pace makes a pipeline commit at once.
        self.change_pace(|_| ());
        let is_durable = |checkpoint: &Option<Checkpoint>| {
            checkpoint
                .as_ref()
                .map_or(0, |checkpoint| checkpoint.position)
                >= wanted
        };
        let _ = tokio::time::timeout(at_most, checkpoints.wait_for(is_durable)).await;
    }
}

/// Waits until the position of a state passes `after`, as the state opens and closes. Cancel-safe:
/// it only observes.
pub(super) async fn advanced(mut stores: watch::Receiver<Option<Store>>, after: u64) {
    loop {
        let store = stores.borrow_and_update().clone();
        let Some(store) = store else {
            if stores.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        };
        let mut positions = store.positions();
        // The file may be closed and opened again meanwhile.
        drop(store);
        let passed = async {
            // It may have passed already: `wait_for` looks before it waits.
            positions
                .wait_for(|position| *position > after)
                .await
                .is_ok()
        };
        // Both arms only observe: dropping one loses nothing.
        let (has_passed, has_ended) = tokio::select! {
            passed = passed => (passed, false),
            changed = stores.changed() => (false, changed.is_err()),
        };
        if has_passed {
            return;
        }
        if has_ended {
            return std::future::pending().await;
        }
    }
}
