//! The memory that batches take between their stream and the pipeline that applies them: half of it
//! for batches that are queued, half for events that readers have requested and not returned yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use super::freed::Freed;

/// Unit in which memory is allocated, in bytes.
pub(crate) const UNIT: u64 = 1 << 10;

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
}

impl ReadAhead {
    pub(crate) fn new(bytes: u64) -> Self {
        // Queued batches and requested events may be there at the same time, so they do not share.
        let queued = bytes / 2;
        // At least one unit: a budget of nothing would stop every reader for ever.
        let total = u32::try_from(queued / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            units: Arc::new(Semaphore::new((total as usize).min(Semaphore::MAX_PERMITS))),
            total,
            requests: Arc::new(Requests {
                bytes: bytes - queued,
                readers: AtomicU64::new(0),
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
        (self.total as usize).saturating_sub(self.units.available_permits()) as u64 * UNIT
    }
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
}
