//! The memory that batches take between their stream and the pipeline that applies them.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Unit in which memory is allocated, in bytes.
pub(crate) const UNIT: u64 = 1 << 10;

/// Memory for batches read ahead, of all pipelines of a host.
#[derive(Clone, Debug)]
pub(crate) struct ReadAhead {
    pub(crate) units: Arc<Semaphore>,
    pub(crate) total: u32,
}

impl ReadAhead {
    pub(crate) fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new((total as usize).min(Semaphore::MAX_PERMITS))), total }
    }

    /// What is taken now, in bytes.
    pub(crate) fn used(&self) -> u64 {
        (self.total as usize).saturating_sub(self.units.available_permits()) as u64 * UNIT
    }
}
