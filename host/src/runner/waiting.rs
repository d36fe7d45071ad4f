//! Waits for the effect of a request.

use std::time::{Duration, Instant};

use super::Runner;
use crate::api::DeploymentState;
use crate::pipeline::Desired;
use crate::progress::Now;

/// Attempts after which a state that can't be opened counts as lost.
const LOST_ATTEMPTS: u32 = 3;

impl Runner {
    /// Whether its state cannot be opened, so that it can neither be read nor held at a position.
    pub fn is_lost(&self) -> bool {
        let is_lost = |failure: crate::api::Failure| failure.kind == "state" && failure.attempts >= LOST_ATTEMPTS;
        self.store().is_none() && self.now().failure.is_some_and(is_lost)
    }

    /// Waits briefly until the last request has taken effect; `before` is the progress before the request. A running
    /// guest call ends first. Cancel-safe: it only observes.
    pub async fn settles(&self, before: &Now, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let is_settled = || match *self.shared.control.borrow() {
            Desired::Pause => self.now().state == DeploymentState::Paused,
            Desired::Run(_) => self.now().starts > before.starts,
            Desired::Stop => true,
        };
        while !is_settled() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits briefly until the last requested module has applied an event, found nothing to apply, or failed. Ends
    /// early if its source turns out to be unreachable, and waits for the confirmation of a second check. Cancel-safe:
    /// it only observes.
    pub async fn begins(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let is_known = || {
            let now = self.now();
            let source = self.source_status();
            let is_away = source.is_trouble() && !source.in_doubt;
            now.begun
                || matches!(now.state, DeploymentState::Failed | DeploymentState::Paused | DeploymentState::Stopping)
                || now.failure.is_some()
                || (now.has_started() && is_away)
        };
        while !is_known() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
