//! The memory budget that the caches of all open files of a host share.
//!
//! A cache keeps its size while its file is open. The files that the host will open at its start
//! are therefore counted before anything is opened, and something is left for later deployments,
//! which get a part of the remainder. A restart divides everything again.

use std::sync::Arc;

use parking_lot::Mutex;

/// Files to expect in addition to the known ones.
const FILES_TO_COME: u64 = 4;
/// The smallest cache: with less, even a small state is read from disk over and over. With too many
/// files, caches exceed the budget by at most this much per file.
const CACHE_BYTES_MIN: u64 = 256 << 10;

/// The budget. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Caches {
    inner: Arc<Mutex<Account>>,
}

#[derive(Debug)]
struct Account {
    total: u64,
    used: u64,
    /// Known files that are not open yet.
    awaited: u64,
}

/// The part of one open file; dropping it releases the part.
#[derive(Debug)]
pub struct Share {
    bytes: u64,
    inner: Arc<Mutex<Account>>,
}

impl Caches {
    /// A budget of this many bytes, with this many known files.
    pub fn new(total: u64, files: usize) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Account {
                total,
                used: 0,
                awaited: files as u64,
            })),
        }
    }

    /// The part of one more file, at most `most` bytes.
    pub fn share(&self, most: u64) -> Share {
        let mut inner = self.inner.lock();
        let left = inner.total.saturating_sub(inner.used);
        // The known files that are to come, and some that are not known yet.
        let parts = inner.awaited + FILES_TO_COME;
        inner.awaited = inner.awaited.saturating_sub(1);
        // The minimum may exceed what is left; see `CACHE_BYTES_MIN`.
        let bytes = (left / parts).max(CACHE_BYTES_MIN).min(most);
        inner.used += bytes;
        drop(inner);
        Share {
            bytes,
            inner: Arc::clone(&self.inner),
        }
    }

    /// The current maximum of all caches together, in bytes.
    pub fn used(&self) -> u64 {
        self.inner.lock().used
    }
}

impl Share {
    /// Its size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner.lock().used -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 256 << 20;

    #[test]
    fn caches_of_all_files_together_stay_within_the_budget() {
        for known in [0, 1, 3, 40] {
            let caches = Caches::new(TOTAL, known);
            let mut shares: Vec<Share> = (0..known).map(|_| caches.share(u64::MAX)).collect();
            let even = shares.first().map_or(0, Share::bytes);
            assert!(
                shares.iter().all(|share| share.bytes().abs_diff(even) <= 1),
                "known files share alike"
            );
            // Hardly anyone deploys this many before the next restart; the smallest caches of them
            // fit as well.
            shares.extend((0..30).map(|_| caches.share(u64::MAX)));
            let sum: u64 = shares.iter().map(Share::bytes).sum();
            assert_eq!(sum, caches.used());
            assert!(
                sum <= TOTAL + 30 * CACHE_BYTES_MIN,
                "{known} known files: {sum} bytes"
            );
            let large: u64 = shares
                .iter()
                .map(Share::bytes)
                .filter(|bytes| *bytes > CACHE_BYTES_MIN)
                .sum();
            assert!(large <= TOTAL, "{known} known files: {large} bytes");
        }
    }

    #[test]
    fn a_file_that_is_closed_gives_its_part_back() {
        let caches = Caches::new(TOTAL, 0);
        let first = caches.share(u64::MAX).bytes();
        assert_eq!((caches.used(), caches.share(u64::MAX).bytes()), (0, first));
        assert_eq!(
            caches.share(1 << 20).bytes(),
            1 << 20,
            "no more than it can use"
        );
    }
}
