//! Wakes those who wait for a milestone: a change in kind, such as another state or a failure.
//!
//! A batch that only raises figures wakes nobody. The position of the store has a channel of its
//! own.

use std::ops::{Deref, DerefMut};

use parking_lot::MutexGuard;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{DeploymentState, Figures, Now, Progress};

/// What others wait for.
#[derive(PartialEq, Eq)]
struct Milestone {
    state: DeploymentState,
    starts: u64,
    begun: bool,
    awaits_start: bool,
    has_pending: bool,
    catches_up_to: Option<u64>,
    failure: Option<(String, Option<u64>, u32)>,
}

impl Milestone {
    fn of(now: &Now) -> Self {
        let failure = now.failure.as_ref();
        Self {
            state: now.state,
            starts: now.starts,
            begun: now.begun,
            awaits_start: now.awaits_start,
            has_pending: now.pending > 0,
            catches_up_to: now.catches_up_to,
            failure: failure
                .map(|failure| (failure.kind.clone(), failure.sequence, failure.attempts)),
        }
    }
}

/// The locked progress while it changes. Dropping it unlocks the progress, and wakes those who wait
/// if a milestone was passed.
pub(super) struct Change<'a> {
    // Fields are dropped in this order: those who are woken find the lock free.
    inner: MutexGuard<'a, Figures>,
    before: Milestone,
    wake: Wake<'a>,
}

struct Wake<'a> {
    passed: &'a Notify,
    is_due: bool,
}

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        if self.is_due {
            self.passed.notify_waiters();
        }
    }
}

impl Deref for Change<'_> {
    type Target = Figures;

    fn deref(&self) -> &Figures {
        &self.inner
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut Figures {
        &mut self.inner
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // Compared at the end of the change: several fields set one after the other wake once.
        self.wake.is_due = Milestone::of(&self.inner.now) != self.before;
    }
}

impl Progress {
    /// Locks the progress for a change that may pass a milestone.
    pub(super) fn change(&self) -> Change<'_> {
        let inner = self.inner.lock();
        let before = Milestone::of(&inner.now);
        Change {
            inner,
            before,
            wake: Wake {
                passed: &self.passed,
                is_due: false,
            },
        }
    }

    /// Becomes ready at the first milestone after this call, even if it was not polled before.
    pub fn milestone(&self) -> Notified<'_> {
        self.passed.notified()
    }
}
