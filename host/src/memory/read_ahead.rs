//! The memory that batches take between their stream and the pipeline that applies them: half of it
//! for batches that are queued, half for events that readers have requested and not returned yet.
//!
//! Events that are larger than a request of their reader are requested alone. All readers of a host
//! share the memory for them, which belongs to such an event until it is applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::freed::Freed;

/// Unit in which memory is allocated, in bytes.
pub(crate) const UNIT: u64 = 1 << 10;

/// How long a reader waits for the memory of a large event once it is the first that waits, and with
/// those before it.
const LARGE_WAIT: Duration = Duration::from_secs(5);
const LARGE_WAIT_MAX: Duration = Duration::from_secs(20);

/// Memory for batches read ahead, of all pipelines of a host.
#[derive(Clone, Debug)]
pub(crate) struct ReadAhead {
    pub(crate) units: Arc<Semaphore>,
    pub(crate) total: u32,
    requests: Arc<Requests>,
    /// What was read ahead and is used no more.
    freed: Arc<Freed>,
}

/// Memory for events that servers may send because readers have requested them.
#[derive(Debug)]
struct Requests {
    bytes: u64,
    readers: AtomicU64,
    /// Memory for large events, in units.
    large: Arc<Semaphore>,
    large_total: u32,
    /// Whoever waits first for it.
    turn: tokio::sync::Mutex<()>,
}

impl ReadAhead {
    pub(crate) fn new(bytes: u64) -> Self {
        // Queued batches and requested events may be there at the same time, so they do not share.
        let queued = bytes / 2;
        let total = units(queued);
        Self {
            units: semaphore(total),
            total,
            requests: Arc::new(Requests {
                bytes: bytes - queued,
                readers: AtomicU64::new(0),
                large: semaphore(total),
                large_total: total,
                turn: tokio::sync::Mutex::default(),
            }),
            freed: Arc::default(),
        }
    }

    /// What was read ahead is used no more: this many bytes.
    pub(crate) fn freed(&self, bytes: u64) {
        self.freed.add(bytes);
    }

    /// Whether much was freed, and nothing more is.
    pub(super) fn has_calmed_down(&self) -> bool {
        self.freed.has_calmed_down()
    }

    /// The part of one more reader. What idle readers have requested takes no memory, but may at
    /// any time, so it is divided instead of charged.
    pub(crate) fn reader(&self) -> RequestShare {
        // Relaxed: with the number of a moment ago a reader asks for a little more or less.
        self.requests.readers.fetch_add(1, Ordering::Relaxed);
        RequestShare(Arc::clone(&self.requests))
    }

    /// What is taken now, in bytes.
    pub(crate) fn used(&self) -> u64 {
        let taken = |total: u32, free: &Semaphore| {
            (total as usize).saturating_sub(free.available_permits()) as u64 * UNIT
        };
        let Requests {
            large, large_total, ..
        } = &*self.requests;
        taken(self.total, &self.units) + taken(*large_total, large)
    }
}

/// So many bytes as units, at least one: a budget of nothing would stop every reader for ever.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1)
}

fn semaphore(units: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((units as usize).min(Semaphore::MAX_PERMITS)))
}

/// The part of one reader; dropping it leaves more to the others.
#[derive(Debug)]
pub(crate) struct RequestShare(Arc<Requests>);

impl RequestShare {
    /// How much this reader's open requests may bring in together, in bytes. It changes with the
    /// number of readers.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes / self.0.readers.load(Ordering::Relaxed).max(1)
    }

    /// Waits for the memory of an event that may have this many bytes; all there is, if it may be
    /// larger. None if others hold it for too long: a deployment that rests with a large event must
    /// not stop its neighbours. Only the first that waits goes without, and then the next, so that
    /// not all of them do at once. Cancel-safe.
    pub(crate) async fn large(&self, bytes: u64) -> Option<Large> {
        let wanted = units(bytes).min(self.0.large_total);
        let taking = async {
            let _turn = self.0.turn.lock().await;
            let taken = Arc::clone(&self.0.large).acquire_many_owned(wanted);
            tokio::time::timeout(LARGE_WAIT, taken).await.ok()
        };
        let taken = tokio::time::timeout(LARGE_WAIT_MAX, taking).await;
        // A closed semaphore gives none; nobody closes it.
        taken.ok().flatten()?.ok().map(Large)
    }
}

/// The memory of one event that is larger than a request may be.
#[derive(Debug)]
pub(crate) struct Large(OwnedSemaphorePermit);

impl Large {
    /// The same data, which holds this memory as long as there is a clone of it.
    pub(crate) fn hold(mut self, data: Bytes) -> Bytes {
        let surplus = self
            .0
            .num_permits()
            .saturating_sub(units(data.len() as u64) as usize);
        drop(self.0.split(surplus));
        Bytes::from_owner(Held {
            data,
            _memory: self,
        })
    }
}

/// Data with the memory that it holds.
struct Held {
    data: Bytes,
    _memory: Large,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for RequestShare {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_divide_what_their_requests_may_bring_in() {
        let ahead = ReadAhead::new(24 << 20);
        let first = ahead.reader();
        assert_eq!(first.bytes(), 12 << 20);
        let others: Vec<_> = (0..5).map(|_| ahead.reader()).collect();
        assert_eq!((first.bytes(), others[4].bytes()), (2 << 20, 2 << 20));
        drop(others);
        assert_eq!(
            first.bytes(),
            12 << 20,
            "what readers leave, the others may use"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn large_events_share_their_memory_until_nobody_holds_them() {
        let ahead = ReadAhead::new(24 << 20);
        let (one, other) = (ahead.reader(), ahead.reader());
        let large = one.large(64 << 20).await.expect("all of it is free");
        assert_eq!(ahead.used(), 12 << 20);
        let data = large.hold(vec![1; 7 << 20].into());
        assert_eq!(ahead.used(), 7 << 20, "its size is known now");
        assert!(
            other.large(6 << 20).await.is_none(),
            "it waits, and not for ever"
        );
        let copy = data.clone();
        drop(data);
        assert_eq!(ahead.used(), 7 << 20, "a clone is the same data");
        let waiting = tokio::spawn(async move { other.large(6 << 20).await.is_some() });
        tokio::task::yield_now().await;
        drop(copy);
        assert!(waiting.await.expect("it does not panic"));
        assert_eq!(ahead.used(), 0);
    }
}
