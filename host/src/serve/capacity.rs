//! Limits concurrency: each kind of work has a fixed number of places, and a
//! request that gets none within a moment is asked to retry.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::extract;
use super::problem::{Kind, Problem};
use crate::config::Config;

/// How long a request waits for a place: bursts pass, overload does not pile up.
const WAIT: Duration = Duration::from_secs(1);
/// How long a deploy waits: a whole fleet may be deployed at once, and every deploy should get its turn.
const DEPLOY_WAIT: Duration = Duration::from_secs(30);
/// Concurrent scans and pages of events; each is short and occupies one blocking thread.
const SCANS_MAX: usize = 64;
/// Concurrent appends; many share one commit.
const APPENDS_MAX: usize = 256;
/// Concurrent deploys, from the check of an upload to the end. Only one is compiled at a time, and the others wait on
/// separate threads; checking a module takes several times its size in memory.
const DEPLOYS_MAX: usize = 4;
/// Memory for all request bodies together, in bytes; at least four uploads of the largest size.
const BODIES_BYTES: usize = 256 << 20;
/// Unit in which that memory is allocated, in bytes.
const BODY_UNIT: usize = 1 << 10;

/// The places.
pub(super) struct Capacity {
    watches_max: usize,
    pub(super) queries: Arc<Semaphore>,
    pub(super) scans: Arc<Semaphore>,
    pub(super) appends: Arc<Semaphore>,
    deploys: Arc<Semaphore>,
    pub(super) watches: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl Capacity {
    pub(super) fn new(config: &Config) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        let bodies = BODIES_BYTES.max(config.modules.upload_bytes_max.saturating_mul(4));
        Self {
            watches_max: config.serve.watches_max.min(Semaphore::MAX_PERMITS),
            queries: places(config.serve.queries_max),
            scans: places(SCANS_MAX),
            appends: places(APPENDS_MAX),
            deploys: places(DEPLOYS_MAX),
            watches: places(config.serve.watches_max),
            bodies: places(bodies.max(config.serve.body_bytes_max) / BODY_UNIT + 1),
        }
    }

    /// Room for a body of at most `limit` bytes, or of its announced length.
    pub(super) async fn body(&self, headers: &HeaderMap, limit: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let announced = extract::announced(headers).and_then(|bytes| usize::try_from(bytes).ok());
        let units = announced.unwrap_or(limit).min(limit) / BODY_UNIT + 1;
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        acquire_many(&self.bodies, units, "large requests", WAIT).await
    }

    /// A place for a deploy.
    pub(super) async fn deploy(&self) -> Result<OwnedSemaphorePermit, Problem> {
        acquire_many(&self.deploys, 1, "deploys", DEPLOY_WAIT).await
    }

    /// Current number of watches.
    pub(super) fn watches_open(&self) -> u32 {
        u32::try_from(self.watches_max - self.watches.available_permits()).unwrap_or(u32::MAX)
    }

    /// A place for a watch: granted at once or not at all, because watches stay open.
    pub(super) fn watch(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.watches.clone().try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => busy("watches"),
            TryAcquireError::Closed => unreachable!("the semaphores are never closed"),
        })
    }
}

/// A place for one piece of work.
pub(super) async fn acquire(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Problem> {
    acquire_many(places, 1, what, WAIT).await
}

async fn acquire_many(
    places: &Arc<Semaphore>,
    count: u32,
    what: &str,
    wait: Duration,
) -> Result<OwnedSemaphorePermit, Problem> {
    match tokio::time::timeout(wait, places.clone().acquire_many_owned(count)).await {
        Ok(permit) => Ok(permit.expect("the semaphores are never closed")),
        Err(_) => Err(busy(what)),
    }
}

fn busy(what: &str) -> Problem {
    Problem::new(Kind::Busy, format!("the host already runs as many {what} as it allows; try again in a moment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn request_beyond_the_places_is_told_to_come_back() {
        let places = Arc::new(Semaphore::new(1));
        let first = acquire(&places, "queries").await.expect("a place");
        assert_eq!(acquire(&places, "queries").await.expect_err("full").kind(), Kind::Busy);
        drop(first);
        drop(acquire(&places, "queries").await.expect("a place again"));
    }
}
