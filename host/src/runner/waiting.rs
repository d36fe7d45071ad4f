//! Waiting for what becomes of a wish.

use std::time::{Duration, Instant};

use super::Runner;
use crate::api::DeploymentState;
use crate::pipeline::Desired;
use crate::progress::Now;

/// Attempts after which a state that can't be opened is taken for lost.
const LOST_ATTEMPTS: u32 = 3;

impl Runner {
    /// Whether its state cannot be opened, and so neither be read nor come to stand anywhere.
    pub fn is_lost(&self) -> bool {
        let is_lost = |failure: crate::api::Failure| failure.kind == "state" && failure.attempts >= LOST_ATTEMPTS;
        self.store().is_none() && self.now().failure.is_some_and(is_lost)
    }

    /// Waits until what was asked for last is so, but not for long; `before` is how it was before that was asked. A call of
    /// the guest comes to its end first. Cancel-safe: it only looks.
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

    /// Waits until the module that was asked for last has applied something, found nothing to apply or failed, but not for
    /// long, and no longer once its source turns out to be away; what a second look is to confirm is waited for. Cancel-safe: it only looks.
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
