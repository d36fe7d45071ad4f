//! Housekeeping: each piece runs in a separate task, so that nothing waits for anything else.

use std::sync::Arc;

use super::Rollouts;

impl Rollouts {
    /// Runs work in a separate task, unless the same work is already running for that name.
    pub(crate) fn chore(
        &self,
        kind: &'static str,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let chore = (kind, name.to_owned());
        if !self.inner.chores.lock().insert(chore.clone()) {
            return;
        }
        // Weak: a long chore must not keep a stopped host alive.
        let inner = Arc::downgrade(&self.inner);
        // Also if the work panics, or its runtime ends: the name would be taken for good otherwise.
        let over = OnDrop(move || {
            if let Some(inner) = inner.upgrade() {
                inner.chores.lock().remove(&chore);
            }
        });
        tokio::spawn(async move {
            work.await;
            drop(over);
        });
    }
}

/// Runs a closure when it is dropped, for whatever reason.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
