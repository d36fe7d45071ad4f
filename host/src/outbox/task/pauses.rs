//! Waiting for effects, and between attempts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::Task;
use super::removals::CONFIRMED_MAX;
use crate::source::Outlet;

/// How long a message that its target refuses may keep a new one waiting that does not depend on it.
const FRESH_MIN: Duration = Duration::from_secs(1);
/// Effects that do not depend on one that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Later ones, of other keys.
    Later,
    /// Delayed ones.
    Delayed,
}

impl Task {
    /// Waits for effects or for another request; removes confirmed effects if no commit does. Every
    /// arm only observes.
    pub(super) async fn rest(
        &mut self,
        durable: &mut watch::Receiver<u64>,
        at_most: Option<Duration>,
    ) {
        // Confirmed rows should not stay for long: a crash would send them again.
        let limit = if self.parts.store.has_confirmed_effects() {
            Some(at_most.unwrap_or(CONFIRMED_MAX).min(CONFIRMED_MAX))
        } else {
            at_most
        };
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        // A commit removes them itself. Requests may come faster than the time is over.
        let no_commit = tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => false,
            _ = self.changed.changed() => true,
            _ = durable.changed() => false,
            () = over => true,
        };
        if no_commit && self.parts.store.has_confirmed_effects() {
            self.removals.remove().await;
        }
    }

    /// Whether the target takes some effects although it refuses others.
    fn takes_others(&self, others: Others) -> bool {
        let holds_ordered = others == Others::Later && self.holds_ordered.load(Ordering::Relaxed);
        match &self.outlet {
            Outlet::Log(_) => !holds_ordered,
            Outlet::Stream(publisher) => {
                let is_in_doubt = self.is_in_doubt.load(Ordering::Relaxed);
                publisher.is_up() && !is_in_doubt && !(holds_ordered && self.has_places())
            }
        }
    }

    /// Waits before the next attempt; not as long if there are effects meanwhile that the target may
    /// take. Every arm only observes.
    pub(super) async fn rest_after_trouble(
        &mut self,
        durable: &mut watch::Receiver<u64>,
        pause: Duration,
        due: Option<Duration>,
    ) {
        let (later, delayed) = (
            self.takes_others(Others::Later),
            self.takes_others(Others::Delayed),
        );
        let fresh = async {
            // Not at once, because refused ones are tried again with them.
            tokio::time::sleep(FRESH_MIN).await;
            tokio::select! {
                _ = durable.changed(), if later => {}
                () = tokio::time::sleep(due.unwrap_or_default()), if delayed && due.is_some() => {}
                else => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => {}
            _ = self.changed.changed() => {}
            () = tokio::time::sleep(pause) => {}
            () = fresh => {}
        }
        // The pause may be long, and the rows have left.
        if self.parts.store.has_confirmed_effects() {
            self.removals.remove().await;
        }
    }
}
