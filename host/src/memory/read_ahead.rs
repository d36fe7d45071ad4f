//! The memory that batches take between their stream and the pipeline that applies them: half of it
//! for batches that are queued, half for events that readers have requested and not returned yet.
//!
//! An event that is larger than a request is requested alone, and its size is not known before. All
//! readers of a host share the memory for such events, as much again as for batches that are queued:
//! a reader takes it before it requests the event, and the event holds it until nobody has the event
//! any more. One that is larger than all of it goes alone. A pipeline that rests with such an event
//! drops it, and reads it again later, as soon as another reader waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::freed::Freed;

/// Unit in which memory is allocated, in bytes.
pub(crate) const UNIT: u64 = 1 << 10;

/// Memory for batches read ahead, of all pipelines of a host.
#[derive(Clone, Debug)]
pub(crate) struct ReadAhead {
    pub(crate) units: Arc<Semaphore>,
    pub(crate) total: u32,
    requests: Arc<Requests>,
    large: Arc<LargeEvents>,
    /// What was read ahead and is used no more.
    freed: Arc<Freed>,
}

/// Memory for events that servers may send because readers have requested them.
#[derive(Debug)]
struct Requests {
    bytes: u64,
    readers: AtomicU64,
}

/// The memory for events that are larger than a request.
#[derive(Debug)]
struct LargeEvents {
    units: Arc<Semaphore>,
    total: u32,
    /// How many readers wait for it.
    waiting: watch::Sender<usize>,
}

impl ReadAhead {
    pub(crate) fn new(bytes: u64) -> Self {
        // Queued batches and requested events may be there at the same time, so they do not share.
        let queued = bytes / 2;
        // At least one unit: a budget of nothing would stop every reader for ever.
        let total = u32::try_from(queued / UNIT).unwrap_or(u32::MAX).max(1);
        let units = || Arc::new(Semaphore::new((total as usize).min(Semaphore::MAX_PERMITS)));
        Self {
            units: units(),
            total,
            large: Arc::new(LargeEvents {
                units: units(),
                total,
                waiting: watch::Sender::default(),
            }),
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
        RequestShare {
            requests: Arc::clone(&self.requests),
            large: Arc::clone(&self.large),
        }
    }

    /// Waits until a reader waits for the memory of a large event. Cancel-safe.
    pub(crate) async fn large_is_wanted(&self) {
        let mut waiting = self.large.waiting.subscribe();
        // The sender lives as long as this does.
        drop(waiting.wait_for(|waiting| *waiting > 0).await);
    }

    /// What is taken now, in bytes.
    pub(crate) fn used(&self) -> u64 {
        let taken = |units: &Semaphore| {
            (self.total as usize).saturating_sub(units.available_permits()) as u64 * UNIT
        };
        taken(&self.units) + taken(&self.large.units)
    }
}

/// The part of one reader; dropping it leaves more to the others.
#[derive(Debug)]
pub(crate) struct RequestShare {
    requests: Arc<Requests>,
    large: Arc<LargeEvents>,
}

impl RequestShare {
    /// How much this reader's open requests may bring in together, in bytes. It changes with the
    /// number of readers.
    pub(crate) fn bytes(&self) -> u64 {
        self.requests.bytes / self.requests.readers.load(Ordering::Relaxed).max(1)
    }

    /// Waits for the memory of an event that has at most this many bytes: all there is, if it may be
    /// larger. First come, first served. Cancel-safe: what was taken is released.
    pub(crate) async fn large(&self, bytes: u64) -> Large {
        let LargeEvents {
            units,
            total,
            waiting,
        } = &*self.large;
        let wanted = units_of(bytes).min(*total);
        let taken = match Arc::clone(units).try_acquire_many_owned(wanted) {
            Ok(taken) => taken,
            Err(_) => {
                let _waiting = Waiting::new(waiting);
                Arc::clone(units)
                    .acquire_many_owned(wanted)
                    .await
                    .expect("nobody closes it")
            }
        };
        Large(taken)
    }
}

/// This many bytes as units, at least one.
fn units_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT))
        .unwrap_or(u32::MAX)
        .max(1)
}

/// A reader that waits, counted.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The memory of one large event.
#[derive(Debug)]
pub(crate) struct Large(OwnedSemaphorePermit);

impl Large {
    /// Releases what an event of this size does not need; one that is larger than all there is keeps
    /// all of it.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let wanted = units_of(bytes as u64) as usize;
        if let Some(surplus) = self.0.num_permits().checked_sub(wanted) {
            drop(self.0.split(surplus));
        }
    }

    /// The same data, which holds this memory as long as anybody has a clone of it.
    pub(crate) fn hold(this: Arc<Self>, data: Bytes) -> Bytes {
        Bytes::from_owner(Held {
            data,
            _memory: this,
        })
    }
}

/// Data with the memory that it holds.
struct Held {
    data: Bytes,
    _memory: Arc<Large>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for RequestShare {
    fn drop(&mut self) {
        self.requests.readers.fetch_sub(1, Ordering::Relaxed);
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

    #[tokio::test]
    async fn large_events_share_their_memory_until_nobody_has_them() {
        let ahead = ReadAhead::new(24 << 20);
        let (one, other) = (ahead.reader(), ahead.reader());
        let hold = |mut large: Large, bytes: usize| {
            large.shrink_to(bytes);
            Large::hold(Arc::new(large), vec![1; bytes].into())
        };
        let large = one.large(64 << 20).await;
        assert_eq!(ahead.used(), 12 << 20, "all of it: the size is not known");
        let data = hold(large, 7 << 20);
        assert_eq!(ahead.used(), 7 << 20, "now it is");
        let copy = data.clone();
        drop(data);
        assert_eq!(ahead.used(), 7 << 20, "a clone is the same data");
        let waits = other.large(6 << 20);
        tokio::pin!(waits);
        // Neither is over before the other has begun.
        tokio::select! {
            biased;
            _ = &mut waits => panic!("it is not free"),
            () = ahead.large_is_wanted() => {}
        }
        drop(copy);
        let data = hold(waits.await, 20 << 20);
        assert_eq!(ahead.used(), 6 << 20);
        drop(data);
        assert_eq!(ahead.used(), 0);
        assert_eq!(*ahead.large.waiting.borrow(), 0);
    }
}
