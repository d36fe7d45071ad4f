//! The threads of all lanes of the process: deployments share them, so that a host with many of them
//! has no more threads at work than its cores can use.

use std::sync::LazyLock;

use parking_lot::Mutex;

/// Threads for each core. More than one, because they wait for each other at the end of each batch.
const PER_CORE: usize = 4;

/// Threads that nobody has taken.
static LEFT: LazyLock<Mutex<usize>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Mutex::new(cores * PER_CORE)
});

/// Some of the threads, until it is dropped.
pub(super) struct Permits(usize);

impl Permits {
    /// Takes this many, or as many as are left; none if there are none.
    pub(super) fn take(wanted: usize) -> Option<Self> {
        let mut left = LEFT.lock();
        let taken = wanted.min(*left);
        *left -= taken;
        (taken > 0).then_some(Self(taken))
    }

    pub(super) fn count(&self) -> usize {
        self.0
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        *LEFT.lock() += self.0;
    }
}
